//! Filters of system calls. A refused call fails with an error; nothing is ever killed for one.

use std::collections::BTreeMap;

use anyhow::Result;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// What nothing that observer starts ever needs: it would change the machine, look into other processes, or reach code of the
/// kernel in which faults are often found.
const NEVER: [i64; 40] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_memfd_secret,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// What the programs of a confined child have no need of either: mounts, namespaces, BPF, devices, memory that no limit counts.
const NOT_IN_A_CHILD: [i64; 24] = [
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_memfd_create,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_shmat,
    libc::SYS_shmget,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_personality,
];

/// The same by a call that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const NOT_IN_A_CHILD_EITHER: [i64; 1] = [libc::SYS_mknod];
#[cfg(not(target_arch = "x86_64"))]
const NOT_IN_A_CHILD_EITHER: [i64; 0] = [];

/// Families of sockets that front ends use; a packet socket is not among them.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Flags of `clone` by which namespaces are made.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Rules by system call; one without conditions is refused whatever it is given.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// For the helper, and by inheritance for everything that it starts.
pub fn of_the_helper() -> Result<BpfProgram> {
    refusing(all(&NEVER), libc::EPERM)
}

/// For a confined program, beside the helper's. Only a trial, which has a network namespace of its own, may make sockets of the host's:
/// an abstract name leads to whoever listens in the same network namespace, and tells it that root is there.
pub fn of_a_child(is_trial: bool) -> Result<Vec<BpfProgram>> {
    let mut rules = all(&NOT_IN_A_CHILD);
    rules.extend(all(&NOT_IN_A_CHILD_EITHER));
    let condition = |compare, value: u64| SeccompCondition::new(0, SeccompCmpArgLen::Dword, compare, value);
    let families = FAMILIES.iter().filter(|family| is_trial || **family != libc::AF_UNIX);
    let others = families.map(|family| condition(SeccompCmpOp::Ne, *family as u64)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(others)?]);
    // It ends with observer, whatever it wants.
    let is_end = condition(SeccompCmpOp::Eq, libc::PR_SET_PDEATHSIG as u64)?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![is_end])?]);
    let flags = (0..32).map(|bit| 1u64 << bit).filter(|flag| NEW_NAMESPACES as u64 & flag != 0);
    let new = flags.map(|flag| SeccompRule::new(vec![condition(SeccompCmpOp::MaskedEq(flag), flag)?]));
    rules.insert(libc::SYS_clone, new.collect::<Result<_, _>>()?);
    // The flags of `clone3` are in memory, which a filter cannot read: without it the C library takes `clone`.
    Ok(vec![refusing(all(&[libc::SYS_clone3]), libc::ENOSYS)?, refusing(rules, libc::EPERM)?])
}

/// What the main process needs once it is confined: memory, threads, files to read, its terminal, the helper's socket, the maps
/// of its probes.
const OF_THE_MAIN_PROCESS: [i64; 92] = [
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_kill,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_setsockopt,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];
/// The same by calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: [i64; 12] = [
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_getpgrp,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: [i64; 0] = [];
/// For `check`, which asks name servers and reads what real connections bring.
const OF_CONNECTIONS: [i64; 9] = [
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_shutdown,
];
/// Commands of `bpf` that read and write maps that are open: look up, update, delete, next key, information, and the same of
/// many entries at once.
const MAP_COMMANDS: [u64; 9] = [1, 2, 3, 4, 15, 21, 24, 25, 26];

/// For the main process: all else is refused. `may_connect`: it may make sockets of the Internet's families.
pub fn of_the_main_process(may_connect: bool) -> Result<BpfProgram> {
    let mut rules = all(&OF_THE_MAIN_PROCESS);
    rules.extend(all(&OLDER));
    let condition = |argument, compare, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value);
    let one = |condition| anyhow::Ok(SeccompRule::new(vec![condition?])?);
    // Threads, and no process.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![one(condition(0, SeccompCmpOp::MaskedEq(thread), thread))?]);
    // To read, and nothing that is not there yet.
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    rules.insert(libc::SYS_openat, vec![one(condition(2, SeccompCmpOp::MaskedEq(writing), 0))?]);
    let commands = MAP_COMMANDS.iter().map(|command| one(condition(0, SeccompCmpOp::Eq, *command)));
    rules.insert(libc::SYS_bpf, commands.collect::<Result<_>>()?);
    if may_connect {
        rules.extend(all(&OF_CONNECTIONS));
        let families = [libc::AF_INET, libc::AF_INET6].map(|family| one(condition(0, SeccompCmpOp::Eq, family as u64)));
        rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_>>()?);
    }
    // Without `clone3` the C library takes `clone`, whose flags can be looked at.
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    filter(rules, refused, SeccompAction::Allow)
}

/// Each of them, whatever it is given.
fn all(calls: &[i64]) -> Rules {
    calls.iter().map(|number| (*number, Vec::new())).collect()
}

fn refusing(rules: Rules, error: i32) -> Result<BpfProgram> {
    filter(rules, SeccompAction::Allow, SeccompAction::Errno(error as u32))
}

/// Calls of another architecture, 32-bit ones among them, are refused too: their numbers mean something else.
fn filter(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let mut program: BpfProgram = SeccompFilter::new(rules, others, these, arch)?.try_into()?;
    // The library would kill the process for that.
    for instruction in &mut program {
        if (instruction.code, instruction.k) == (RETURN, libc::SECCOMP_RET_KILL_PROCESS) {
            instruction.k = NO_SUCH_CALL;
        }
    }
    // x32 has the architecture of x86-64, and numbers from 2^30 on: load the number, compare, return.
    let x32 = [
        sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        sock_filter { code: 0x35, jt: 0, jf: 1, k: 0x4000_0000 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: NO_SUCH_CALL },
    ];
    program.splice(0..0, x32);
    Ok(program)
}

/// `BPF_RET | BPF_K`, and what is returned: `ENOSYS`.
const RETURN: u16 = 0x06;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Filters the calls of this process from now on, and of all that it starts.
pub fn apply(program: &BpfProgram) -> Result<()> {
    Ok(seccompiler::apply_filter(program)?)
}

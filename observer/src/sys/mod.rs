//! The few system calls that need unsafe code; nothing else in user space does.
#![allow(unsafe_code, reason = "the only module of user space that may; each block names what it relies on")]

pub mod jail;

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type, perf_event_attr};
use nix::{
    sys::socket::{ControlMessageOwned, RecvMsg},
    unistd::ForkResult,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Forks while the process has one thread.
///
/// Fails when it has more: the child would inherit locks that nobody will release.
pub fn fork_single_threaded() -> io::Result<ForkResult> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("the helper must be started before any thread"));
    }
    // SAFETY: there is one thread, so the child may use the whole of the standard library.
    unsafe { nix::unistd::fork() }.map_err(io::Error::from)
}

/// Closes everything that this process has open but its standard streams and these descriptors. Only in a child that was just forked and
/// never returns: whatever owned the others is not used any more.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let firsts = std::iter::once(3).chain(kept.iter().map(|fd| fd + 1));
    let lasts = kept.iter().map(|fd| fd - 1).chain([u32::MAX]);
    for (first, last) in firsts.zip(lasts) {
        if first <= last {
            // SAFETY: takes numbers; see above. Before Linux 5.9 nothing is closed.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Watches a BPF ring for wake-ups. Must be called inside the runtime.
pub fn watch_readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the value owns its descriptor, which stays open and the same until the value is dropped.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}

/// The kernel gave this program more privileges than its caller has: it is setuid, or its file has capabilities.
pub fn has_more_privileges_than_its_caller() -> bool {
    // SAFETY: takes a number and returns one.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Gives freed memory back to the system; only a hint.
pub fn trim_memory() {
    // SAFETY: takes a number and touches only free memory of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has all threads allocate from two areas: with one for each, what a thread lets go is kept for it alone.
pub fn share_memory() {
    /// `M_ARENA_MAX`
    #[cfg(target_env = "gnu")]
    const AREAS: libc::c_int = -8;
    // SAFETY: takes numbers, before any other thread allocates.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(AREAS, 2);
    }
}

/// Sets what a signal does. For the helper, which only ignores.
pub fn set_signal_handler(signal: nix::sys::signal::Signal, handler: nix::sys::signal::SigHandler) -> io::Result<()> {
    // SAFETY: the handlers passed here run no code of ours.
    unsafe { nix::sys::signal::signal(signal, handler) }.map(drop).map_err(io::Error::from)
}

/// Descriptors that came with a message: whoever receives it owns them.
pub fn received_descriptors<S>(message: &RecvMsg<'_, '_, S>) -> io::Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
            descriptors.extend(received.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    Ok(descriptors)
}

/// Waits until every BPF program that was running has left: a grace period of the kernel's. False where the kernel does not
/// offer that.
pub fn wait_for_running_programs() -> bool {
    // SAFETY: the call takes numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

/// A socket option that is a block of bytes, whose beginning is the question; how many bytes the kernel wrote.
pub fn socket_option(socket: BorrowedFd<'_>, level: i32, name: i32, block: &mut [u8]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(block.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes at most `length` bytes, which the block has.
    let status =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, block.as_mut_ptr().cast(), &raw mut length) };
    if status == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}

/// Replaces a table of iptables-legacy in this thread's network namespace. `block` is a `struct ipt_replace` with its rules, or
/// the one of IPv6, in which `counters` is the place of a pointer: to `old` counters of 16 bytes, as many as the block says
/// that the table has now.
pub fn replace_xtable(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    block: &mut [u8],
    counters: usize,
    old: &mut [[u64; 2]],
) -> io::Result<()> {
    let pointer = (old.as_mut_ptr() as usize).to_ne_bytes();
    // The number of counters stands before the pointer.
    let number = counters.checked_sub(4).and_then(|at| block.get(at..at + 4)).and_then(|bytes| bytes.try_into().ok());
    if number.map(u32::from_ne_bytes) != u32::try_from(old.len()).ok() {
        return Err(io::Error::other("the block wants another number of counters"));
    }
    block
        .get_mut(counters..counters + pointer.len())
        .ok_or_else(|| io::Error::other("the block has no room for a pointer"))?
        .copy_from_slice(&pointer);
    let length = libc::socklen_t::try_from(block.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of the block, and writes as many counters as the block says, which are there.
    let status = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, block.as_ptr().cast(), length) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Address of a packet that leaves by an interface at its link layer, for a packet socket.
pub fn link_address(index: u32, ethertype: u16, address: [u8; 6]) -> io::Result<socket2::SockAddr> {
    // SAFETY: what is written is a whole `sockaddr_ll`, which fits, and its length is reported.
    unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = ethertype.to_be();
            (*link).sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
            (*link).sll_halen = address.len() as u8;
            (&mut (*link).sll_addr)[..address.len()].copy_from_slice(&address);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }
    .map(|((), address)| address)
}

/// Name of a thread that lives in a network namespace which observer has made: another observer knows by it that what is dropped
/// there is nobody's.
pub const COPY_THREAD: &CStr = c"observer-copy";

/// Names the calling thread so.
pub fn name_copy_thread() {
    let _ = rustix::thread::set_name(COPY_THREAD);
}

/// The user namespace that owns a namespace; of a user namespace, the one in which it was made.
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `NS_GET_USERNS` of `uapi/linux/nsfs.h`
    const GET: libc::Ioctl = 0xb701;
    // SAFETY: takes a descriptor and no memory; the kernel returns a new descriptor that nobody else has.
    unsafe {
        let users = libc::ioctl(namespace.as_raw_fd(), GET);
        if users < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(users)) }
    }
}

/// User id, in the caller's user namespace, of whoever made a user namespace.
pub fn maker_of_user_namespace(users: BorrowedFd<'_>) -> io::Result<u32> {
    /// `NS_GET_OWNER_UID` of `uapi/linux/nsfs.h`
    const GET: libc::Ioctl = 0xb704;
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes one user id.
    let got = unsafe { libc::ioctl(users.as_raw_fd(), GET, &raw mut uid) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}

/// What a child is to do, and what came of it.
struct SocketOrder {
    procs: i32,
    domain: i32,
    kind: i32,
    protocol: i32,
    uid: u32,
    gid: u32,
    groups: *const u32,
    group_count: usize,
    /// A descriptor, or an error's number below zero.
    made: i32,
}

/// Gives the calling thread these groups beside its own; other threads keep theirs.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads as many numbers as there are.
    match unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a socket made by a child that is in the cgroup of `procs`, an open `cgroup.procs`, while it does nothing else: the socket
/// is that cgroup's, and its file is opened as that user and group. The child shares memory and descriptors with this process,
/// whose thread waits for it; one that takes longer than `limit`, in a frozen cgroup, is killed.
pub fn socket_in_cgroup(
    procs: BorrowedFd<'_>,
    [domain, kind, protocol]: [i32; 3],
    (uid, gid, groups): (u32, u32, &[u32]),
    limit: Duration,
) -> io::Result<OwnedFd> {
    const STACK: usize = 64 * 1024;
    extern "C" fn child(order: *mut libc::c_void) -> i32 {
        // SAFETY: it is the order below, whose thread does nothing until this has ended; only system calls are made, and each
        // touches but what it is given.
        unsafe {
            let order = &mut *order.cast::<SocketOrder>();
            let failed = || -*libc::__errno_location();
            if libc::write(order.procs, b"0".as_ptr().cast(), 1) != 1 {
                order.made = failed();
                return 0;
            }
            if libc::syscall(libc::SYS_setgroups, order.group_count, order.groups) != 0 {
                order.made = failed();
                return 0;
            }
            // Of this child alone; whether it is so is reported by a second call.
            libc::syscall(libc::SYS_setfsgid, order.gid);
            libc::syscall(libc::SYS_setfsuid, order.uid);
            let is_user = libc::syscall(libc::SYS_setfsgid, order.gid) as u32 == order.gid
                && libc::syscall(libc::SYS_setfsuid, order.uid) as u32 == order.uid;
            order.made = if is_user {
                match libc::socket(order.domain, order.kind | libc::SOCK_CLOEXEC, order.protocol) {
                    -1 => failed(),
                    made => made,
                }
            } else {
                -libc::EPERM
            };
        }
        0
    }
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let (group_count, groups) = (groups.len(), groups.as_ptr());
    let (procs, made) = (procs.as_raw_fd(), -libc::ECANCELED);
    let mut order = SocketOrder { procs, domain, kind, protocol, uid, gid, groups, group_count, made };
    let pid = Arc::new(AtomicI32::new(0));
    let (done, waits) = mpsc::channel::<()>();
    let watched = Arc::clone(&pid);
    let watch = thread::spawn(move || {
        if waits.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let pid = watched.load(Ordering::SeqCst);
            if pid > 0 {
                // SAFETY: takes numbers. The child is not waited for before this thread has ended: its number is its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    });
    // SAFETY: the stack is the child's alone, and lives until it has ended, as the order does: this thread waits for that in the
    // call itself (`CLONE_VFORK`). The kernel writes the child's number where it is reported, before the child runs.
    let started = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID,
            (&raw mut order).cast(),
            pid.as_ptr(),
        )
    };
    let started = if started == -1 { Err(io::Error::last_os_error()) } else { Ok(started) };
    drop(done);
    let _ = watch.join();
    if let Ok(child) = started {
        // SAFETY: takes numbers; it is this thread's own child, which ends without a signal.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) };
    }
    started?;
    match order.made {
        // SAFETY: the child has just made it, and nobody else knows of it.
        made if made >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(made) }),
        failed => Err(io::Error::from_raw_os_error(-failed)),
    }
}

/// Hangs a BPF program on the hook LOCAL_OUT of this thread's network namespace, for IPv4, that drops every packet; gone with
/// the descriptor. Since Linux 6.4, with `CONFIG_NETFILTER_BPF_LINK`.
pub fn drop_by_netfilter_program(priority: i32) -> io::Result<OwnedFd> {
    // `r0 = NF_DROP; exit`
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
    // SAFETY: all zeros are what the kernel takes for not given.
    let (mut load, mut link): (bpf_attr, bpf_attr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    // SAFETY: every pointer that is given lives as long as the call, and the kernel only reads what they point to; a call
    // that succeeds returns a descriptor that nobody else has.
    unsafe {
        load.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_NETFILTER as u32;
        load.__bindgen_anon_3.expected_attach_type = bpf_attach_type::BPF_NETFILTER as u32;
        load.__bindgen_anon_3.insns = INSTRUCTIONS.as_ptr() as u64;
        load.__bindgen_anon_3.insn_cnt = INSTRUCTIONS.len() as u32;
        load.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
        let program = bpf(bpf_cmd::BPF_PROG_LOAD, &load)?;
        link.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.link_create.attach_type = bpf_attach_type::BPF_NETFILTER as u32;
        link.link_create.__bindgen_anon_3.netfilter.pf = libc::NFPROTO_IPV4 as u32;
        link.link_create.__bindgen_anon_3.netfilter.hooknum = libc::NF_INET_LOCAL_OUT as u32;
        link.link_create.__bindgen_anon_3.netfilter.priority = priority;
        bpf(bpf_cmd::BPF_LINK_CREATE, &link)
    }
}

/// Runs a BPF program whenever a function of the kernel begins, or returns; until the descriptor is closed. `kind` is the
/// number of the kernel's source of such events.
pub fn attach_kprobe(program: BorrowedFd<'_>, kind: u32, function: &CStr, is_return: bool) -> io::Result<OwnedFd> {
    // SAFETY: all zeros are what the kernel takes for not given.
    let mut attributes: perf_event_attr = unsafe { mem::zeroed() };
    attributes.type_ = kind;
    attributes.size = size_of::<perf_event_attr>() as u32;
    attributes.config = u64::from(is_return);
    attributes.__bindgen_anon_3.kprobe_func = function.as_ptr() as u64;
    // SAFETY: the kernel only reads the attributes and the name, and a call that succeeds returns a descriptor that nobody
    // else has; the requests take numbers.
    unsafe {
        let event = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            0,
            -1,
            aya_obj::generated::PERF_FLAG_FD_CLOEXEC,
        );
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        let event = OwnedFd::from_raw_fd(event as i32);
        for (request, value) in [
            (aya_obj::generated::PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()),
            (aya_obj::generated::PERF_EVENT_IOC_ENABLE, 0),
        ] {
            if libc::ioctl(event.as_raw_fd(), request.into(), value) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(event)
    }
}

/// Where a cgroup's BPF programs are asked about what is sent: when a socket is made, connected, sends without being, and on the way
/// out; of each family where there are two.
pub const CGROUP_HOOKS: [bpf_attach_type; 6] = [
    bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE,
    bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
    bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
    bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
    bpf_attach_type::BPF_CGROUP_INET_EGRESS,
];

/// Ids of the BPF programs that a cgroup, an open folder, has at a hook; or of all that are asked there, its parents' among them.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>, hook: bpf_attach_type, all: bool) -> io::Result<Vec<u32>> {
    const MAX: usize = 64;
    let mut ids = [0u32; MAX];
    // SAFETY: all zeros are what the kernel takes for not given.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most as many ids as it is reported, and their number; both live as long as the call.
    let number = unsafe {
        attributes.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
        attributes.query.attach_type = hook as u32;
        attributes.query.query_flags = if all { aya_obj::generated::BPF_F_QUERY_EFFECTIVE } else { 0 };
        attributes.query.__bindgen_anon_2.prog_cnt = MAX as u32;
        attributes.query.prog_ids = ids.as_mut_ptr() as u64;
        let command = bpf_cmd::BPF_PROG_QUERY as u32;
        if libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<bpf_attr>()) < 0 {
            return Err(io::Error::last_os_error());
        }
        attributes.query.__bindgen_anon_2.prog_cnt as usize
    };
    Ok(ids.into_iter().take(number.min(MAX)).collect())
}

/// How long a connection's first packet and its answer took, as TCP has measured it.
pub fn tcp_round_trip(socket: BorrowedFd<'_>) -> Option<Duration> {
    // SAFETY: all zeros are a valid value of numbers.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes as it is reported, into a value that lives as long as the call.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    (status == 0 && info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
}

/// # Safety
/// What the attributes point to must be as the command expects it, and the command one that returns a descriptor.
unsafe fn bpf(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw const *attributes, size_of::<bpf_attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

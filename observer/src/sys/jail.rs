//! The steps by which a child confines itself between fork and exec. The process that forks has threads, so nothing is allocated and
//! no lock is taken: system calls alone, and a second `fork` in the child, which has one thread.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
    sync::Arc,
};

use seccompiler::BpfProgram;

/// One step of building the child's root folder.
#[derive(Debug)]
pub enum Step {
    /// Make a folder.
    Folder(CString),
    /// Make an empty file.
    File(CString),
    /// Make a symbolic link: what it points to, and where it is.
    Link(CString, CString),
    /// Show a folder with everything that is mounted in it, read-only and without devices; before Linux 5.12 without what is
    /// mounted in it.
    Show(CString, CString),
    /// `mount(2)`.
    Mount {
        /// What is mounted: a path, or a file system's name for itself.
        source: CString,
        /// Where.
        target: CString,
        /// Type of the file system; empty for a bind mount.
        kind: CString,
        /// `MS_*`.
        flags: u64,
        /// Options of the file system; may be empty.
        data: CString,
    },
}

/// What becomes of a child before it executes its program. Everything is prepared by the parent.
#[derive(Debug)]
pub struct Jail {
    /// Build the root folder, in a mount namespace of the child's own.
    pub steps: Vec<Step>,
    /// The root folder that they build.
    pub root: CString,
    /// Capabilities that it keeps, and its bounding set: a bit for each.
    pub capabilities: u64,
    /// `RLIMIT_*` and their values.
    pub limits: Vec<(u32, u64)>,
    /// A Landlock ruleset, where the kernel has Landlock.
    pub landlock: Option<OwnedFd>,
    /// Process id of the parent.
    pub parent: libc::pid_t,
    /// Seccomp filters.
    pub filters: Vec<BpfProgram>,
    /// What it executes in place of what the command names.
    pub program: Option<Program>,
}

/// Words that a [`Program`] is given.
pub const WORDS: usize = 3;

/// A program that need not be in the child's root folder.
#[derive(Debug)]
pub struct Program {
    /// It.
    pub file: OwnedFd,
    /// Its name, and its arguments.
    pub words: [CString; WORDS],
}

/// Has the command's child live in namespaces of its own: mounts, processes, System V IPC and host name. It is killed with the
/// thread that started it, and everything that it started is killed with it.
pub fn confine(command: &mut Command, jail: Arc<Jail>) {
    // SAFETY: the closure runs in the forked child, makes system calls and forks once more; what it reads was prepared before the fork, and
    // nothing is allocated.
    unsafe {
        command.pre_exec(move || enter(&jail));
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// # Safety
/// Only between fork and exec, in a child with one thread.
unsafe fn enter(jail: &Jail) -> io::Result<()> {
    let mut alive: [RawFd; 2] = [-1; 2];
    // SAFETY: the kernel writes two descriptors; everything else takes numbers.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // It may have died before its death was a signal.
        if libc::getppid() != jail.parent {
            libc::_exit(127);
        }
        // Where memory is short, what reads a stranger's rules goes first.
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"1000".as_ptr().cast(), 4);
            libc::close(score);
        }
        check(libc::pipe2(alive.as_mut_ptr(), libc::O_CLOEXEC))?;
        check(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS))?;
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            child => supervise(child, alive[1]),
        }
        // From here on: process 1 of a process namespace.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::close(alive[1]))?;
        let mut parent = libc::pollfd { fd: alive[0], events: 0, revents: 0 };
        // The parent may have died before its death was a signal.
        if libc::poll(&raw mut parent, 1, 0) > 0 {
            libc::_exit(127);
        }
        check(libc::close(alive[0]))?;
        let none = ptr::null();
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_SLAVE, ptr::null()))?;
        for step in &jail.steps {
            run_step(step)?;
        }
        check(libc::chdir(jail.root.as_ptr()))?;
        // The new root is mounted over the old one, which no path leads to any more: nothing here keeps a descriptor of it, nor the
        // capability to leave a root folder. To unmount it would wait for a grace period of the kernel's, and `pivot_root`
        // does not work from a machine's first root.
        check(libc::mount(c".".as_ptr(), c"/".as_ptr(), none, libc::MS_MOVE, ptr::null()))?;
        check(libc::chroot(c".".as_ptr()))?;
        check(libc::chdir(c"/".as_ptr()))?;
        // Without it neither Landlock nor seccomp is to be had, and a program of root's would get its capabilities back.
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        keep_capabilities(jail.capabilities)?;
        for (resource, value) in &jail.limits {
            let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
            check(libc::setrlimit(*resource, &raw const limit))?;
        }
        if let Some(landlock) = &jail.landlock {
            check(libc::syscall(libc::SYS_landlock_restrict_self, landlock.as_raw_fd(), 0) as libc::c_int)?;
        }
        // Nothing of what the caller had open; the pipe that reports a failure is closed by the execution too.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for filter in &jail.filters {
            let program =
                libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_ptr().cast_mut().cast() };
            check(
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) as libc::c_int
            )?;
        }
        if let Some(Program { file, words }) = &jail.program {
            let mut pointers = [ptr::null(); WORDS + 1];
            for (pointer, word) in pointers.iter_mut().zip(words) {
                *pointer = word.as_ptr();
            }
            let environment = [ptr::null::<libc::c_char>()];
            let (empty, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
            libc::syscall(libc::SYS_execveat, file.as_raw_fd(), empty, pointers.as_ptr(), environment.as_ptr(), flags);
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The process outside: waits for the one inside, and ends as it did. It keeps nothing but the pipe that reports its own end.
///
/// # Safety
/// As [`enter`].
unsafe fn supervise(child: libc::pid_t, alive: RawFd) -> ! {
    // SAFETY: takes numbers, and the address of a number that lives as long as the call.
    unsafe {
        if libc::dup2(alive, 0) < 0 || libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) < 0 {
            // Before Linux 5.9 they are closed one by one.
            for descriptor in 1..4096 {
                libc::close(descriptor);
            }
        }
        let _ = keep_capabilities(0);
        let mut status = 0;
        loop {
            if libc::waitpid(child, &raw mut status, 0) == child {
                break;
            }
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(127);
            }
        }
        libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
    }
}

/// # Safety
/// As [`enter`].
unsafe fn run_step(step: &Step) -> io::Result<()> {
    // SAFETY: every string ends with a zero and lives as long as the call.
    unsafe {
        match step {
            Step::Folder(path) => check(libc::mkdir(path.as_ptr(), 0o755)),
            Step::File(path) => {
                let file = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o644);
                check(file)?;
                check(libc::close(file))
            }
            Step::Link(to, path) => check(libc::symlink(to.as_ptr(), path.as_ptr())),
            Step::Show(from, to) => show(from, to),
            Step::Mount { source, target, kind, flags, data } => {
                check(libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), *flags, data.as_ptr().cast()))
            }
        }
    }
}

/// # Safety
/// As [`enter`].
unsafe fn show(from: &CStr, to: &CStr) -> io::Result<()> {
    /// `MOUNT_ATTR_RDONLY`, `MOUNT_ATTR_NOSUID` and `MOUNT_ATTR_NODEV`
    const ATTRIBUTES: u64 = 1 | 2 | 4;
    /// `struct mount_attr`: what is set, what is cleared, propagation, a user namespace.
    const CHANGE: [u64; 4] = [ATTRIBUTES, 0, 0, 0];
    let (from, to, none) = (from.as_ptr(), to.as_ptr(), ptr::null());
    // SAFETY: both paths end with a zero, and the kernel reads as many bytes of the attributes as it is reported.
    unsafe {
        check(libc::mount(from, to, none, libc::MS_BIND | libc::MS_REC, ptr::null()))?;
        let size = size_of_val(&CHANGE);
        let flags = libc::AT_RECURSIVE;
        if libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, to, flags, CHANGE.as_ptr(), size) == 0 {
            return Ok(());
        }
        check(libc::umount2(to, libc::MNT_DETACH))?;
        check(libc::mount(from, to, none, libc::MS_BIND, ptr::null()))?;
        let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
        check(libc::mount(none, to, none, flags, ptr::null()))
    }
}

/// Keeps these capabilities, effective and permitted, and takes all others out of the bounding set for good.
///
/// # Safety
/// As [`enter`].
unsafe fn keep_capabilities(kept: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    const LAST: u64 = 63;
    // SAFETY: takes numbers and addresses of values of the layout that the version names.
    unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        for capability in (0..LAST).filter(|capability| kept & (1 << capability) == 0) {
            // The kernel knows fewer than there are bits.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        let header: [u32; 2] = [VERSION, 0];
        let (low, high) = (kept as u32, (kept >> 32) as u32);
        let sets: [[u32; 3]; 2] = [[low, low, 0], [high, high, 0]];
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) as libc::c_int)
    }
}

//! The few system calls that need unsafe code; nothing else in user space does.
#![allow(unsafe_code, reason = "the only module of user space that may; each block names what it relies on")]

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::unistd::ForkResult;
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

/// Watches a BPF ring for wake-ups. Must be called inside the runtime.
pub fn watch_readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the value owns its descriptor, which stays open and the same until the value is dropped.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}

/// Gives freed memory back to the system; only a hint.
pub fn trim_memory() {
    // SAFETY: takes a number and touches only free memory of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sets what a signal does. For the helper, which only ignores.
pub fn set_signal_handler(signal: nix::sys::signal::Signal, handler: nix::sys::signal::SigHandler) -> io::Result<()> {
    // SAFETY: the handlers passed here run no code of ours.
    unsafe { nix::sys::signal::signal(signal, handler) }.map(drop).map_err(io::Error::from)
}

/// Waits until every BPF program that was running has left: a grace period of the kernel's. False where the kernel does not
/// offer that.
pub fn wait_for_running_programs() -> bool {
    // SAFETY: the call takes numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

/// Cookie of this thread's network namespace: a number that the kernel never uses twice, other than the namespace's inode
/// number. Since Linux 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which the number has.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

//! A process as the eBPF side sees it, and the owner record of a socket.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of the kernel's task name, with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// The facts about a process that the eBPF side takes in the process's own context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Task {
    /// Start of the process (thread group leader), nanoseconds of `CLOCK_BOOTTIME`: with `pid` it survives pid reuse.
    pub start_ns: u64,
    /// Id of the cgroup in the unified hierarchy (inode number of its folder).
    pub cgroup: u64,
    /// Process id (the kernel's tgid) in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Parent's process id in the initial pid namespace.
    pub parent_pid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Effective user id in the initial user namespace.
    pub euid: u32,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// How often the process, and those that made it, ran another program: the kernel's own count, which fork hands on and
    /// every exec raises. Two of one process that differ have an exec between them.
    pub execs: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of the thread group leader, zero-terminated.
    pub comm: [u8; COMM_BYTES],
}

/// Value of the owner map: who a socket belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Owner {
    /// The process.
    pub task: Task,
    /// When it was bound to the socket, nanoseconds of `CLOCK_BOOTTIME`; tells a re-used entry from a retired one.
    pub bound_ns: u64,
    /// An [`OwnerSource`](super::OwnerSource).
    pub source: u32,
    /// How many different processes were found holding the socket when it was seeded; 1 for a binding hook.
    pub holders: u32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// Not zero once another process was seen inside a call on the socket.
    pub foreign: u32,
}

const _: () = assert!(size_of::<Task>() == 64);
const _: () = assert!(size_of::<Owner>() == 88);

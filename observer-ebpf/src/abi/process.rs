//! Process records: what the eBPF side says about a process at fork, exec and exit, and about the flows of other
//! namespaces' sockets.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::task::Task;

/// What happened. Values are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(TryFromBytes, Immutable, KnownLayout))]
#[repr(u8)]
pub enum ProcessEvent {
    /// A process (not a thread) was made; `task` is the child.
    Fork = 1,
    /// It runs another program; a path, a name and arguments follow the record.
    Exec = 2,
    /// Its last thread ended.
    Exit = 3,
    /// A cgroup of the unified hierarchy was made: `task.cgroup` is its id, its path follows in place of the name.
    Cgroup = 4,
    /// A socket of another namespace than the host's began a connection, or was closed: `task` is its owner, a
    /// [`FlowRecord`] follows in place of the arguments.
    Flow = 5,
    /// A connection to a destination that is waited for was established or given up, or a datagram came from there: `task` is the
    /// socket's owner, or zero where that is not known, a [`FlowRecord`] follows in place of the arguments.
    Reached = 6,
}

/// Bits of [`ProcessRecord::flags`].
pub mod process_flag {
    /// The path has more components, or a longer one, than were read.
    pub const PATH_CUT: u8 = 1;
    /// The arguments are longer than what was read.
    pub const ARGS_CUT: u8 = 2;
}

/// Bytes of the path that are read: components from the file up to the root, each zero-terminated.
pub const PATH_BYTES: usize = 1024;
/// Bytes of the name as executed, its terminating zero included.
pub const NAME_BYTES: usize = 256;
/// Bytes of arguments that are read, each argument zero-terminated.
pub const ARGS_BYTES: usize = 4095;

/// Where a socket's packets went: what names the sender once another namespace has taken the packet from its socket.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct FlowRecord {
    /// When the socket was connected or created, nanoseconds of `CLOCK_BOOTTIME`.
    pub since_ns: u64,
    /// Local address, in network byte order, an IPv4 one in the first four bytes; zero when not bound to one.
    pub local: [u8; 16],
    /// Remote address; zero when not connected.
    pub remote: [u8; 16],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// User id of the socket's creation, in the initial user namespace; only of what was reached.
    pub uid: u32,
    /// Local port, host byte order; of a ping socket its identifier.
    pub local_port: u16,
    /// Remote port, host byte order; 0 when not connected.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The addresses are IPv6.
    pub v6: u8,
    /// The socket was closed; of what is waited for: the connection ended without an answer.
    pub closed: u8,
    /// How the owner of what was reached is known: an [`OwnerSource`](super::OwnerSource), or 0 without one.
    pub source: u8,
}

const _: () = assert!(size_of::<FlowRecord>() == 56);

/// The fixed part of a process record; `path_bytes`, `name_bytes` and `args_bytes` of data follow it, in this order.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ProcessRecord {
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// The process; of an exit only `pid` and `start_ns`.
    pub task: Task,
    /// Start of the parent, nanoseconds of `CLOCK_BOOTTIME`.
    pub parent_start_ns: u64,
    /// Inode number of its pid namespace.
    pub pid_namespace: u32,
    /// Its process id in that namespace.
    pub inner_pid: u32,
    /// Inode number of its user namespace.
    pub user_namespace: u32,
    /// A [`ProcessEvent`].
    pub event: u8,
    /// Bits of [`process_flag`].
    pub flags: u8,
    /// Bytes of the executable's path that follow.
    pub path_bytes: u16,
    /// Bytes of the name as executed.
    pub name_bytes: u16,
    /// Bytes of arguments.
    pub args_bytes: u16,
    /// Of a process that was made or runs another program: user that made its user namespace, the
    /// outermost one below the initial one; all ones where that is not known. Of what was reached: group with which the
    /// socket's file was opened; all ones where that is not known. In the initial user namespace.
    pub ident: u32,
}

const _: () = assert!(size_of::<ProcessRecord>() == 8 + size_of::<Task>() + 8 + 3 * 4 + 2 + 3 * 2 + 4);
const _: () = assert!(size_of::<ProcessRecord>().is_multiple_of(8));

//! A connection that had no answer yet when observer started: what the walk over open files writes.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::task::Task;

/// One process that has such a connection's socket open.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct HangingRecord {
    /// When it was looked at, nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// Inode number of the socket file.
    pub inode: u64,
    /// The process.
    pub task: Task,
    /// Local address, in network byte order, an IPv4 one in the first four bytes.
    pub local: [u8; 16],
    /// Remote address.
    pub remote: [u8; 16],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// User id of the socket's creation, in the initial user namespace.
    pub uid: u32,
    /// Group with which its file was opened, likewise.
    pub gid: u32,
    /// Its mark.
    pub mark: u32,
    /// Milliseconds since the first SYN.
    pub age_ms: u32,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Remote port, host byte order.
    pub remote_port: u16,
    /// The addresses are IPv6.
    pub v6: u8,
    /// SYNs that were sent again.
    pub sent_again: u8,
    /// The last of them left the namespace's network stack; without any, nothing is known of it.
    pub left: u8,
    /// SYNs that are sent again at most, without those of [`Self::linear`]; 0 when that is not known.
    pub retries: u8,
    /// SYNs that are sent again at the first interval, before it doubles (`tcp_syn_linear_timeouts`, since 6.5).
    pub linear: u8,
    /// It is bound to an interface.
    pub bound: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<HangingRecord>() == 24 + size_of::<Task>() + 32 + 20 + 4 + 8);

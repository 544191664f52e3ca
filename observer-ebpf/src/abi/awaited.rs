//! Destinations that were blocked: user space waits for a connection to one of them.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Key of the map of what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct AwaitedKey {
    /// Remote address, in network byte order; an IPv4 one is mapped into IPv6.
    pub remote: [u8; 16],
    /// Inode number of the network namespace that the socket is in.
    pub netns: u32,
    /// Remote port, host byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// Value of the map: what was reported last of it, zeros before. Of the same process nothing more is reported for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct AwaitedValue {
    /// When a connection or a datagram was reported, nanoseconds of `CLOCK_BOOTTIME`.
    pub told_ns: u64,
    /// When the end of one was, likewise.
    pub ended_ns: u64,
    /// Process id of the socket's owner; 0 where that is not known.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

/// Destinations that are waited for at the same time.
pub const MAX_AWAITED: usize = 1024;

const _: () = assert!(size_of::<AwaitedKey>() == 24);
const _: () = assert!(size_of::<AwaitedValue>() == 24);

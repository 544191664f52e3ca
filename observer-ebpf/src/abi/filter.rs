//! Filters that the eBPF side applies itself, handed over as a frozen global: what they leave out is only counted.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Values of one kind that fit; with more the kind is left to user space.
pub const FILTER_VALUES: usize = 8;

/// A network to match, as four words each in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct FilterNetwork {
    /// 1 for IPv6, 0 for IPv4 (in the first word).
    pub v6: u32,
    /// Its address.
    pub address: [u32; 4],
    /// Bits of the address that count.
    pub mask: [u32; 4],
}

/// What must match: of each kind one value; a kind without values matches everything. Never leaves out what user space
/// would tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct KernelFilter {
    /// Not 0 when there is any filter.
    pub active: u32,
    /// Inode number of the network namespace that decides or that the packet came from; 0 for all.
    pub netns: u32,
    /// Destination ports, and how many.
    pub port: [u32; FILTER_VALUES],
    /// See [`Self::port`].
    pub ports: u32,
    /// IP protocols, and how many.
    pub protocol: [u32; FILTER_VALUES],
    /// See [`Self::protocol`].
    pub protocols: u32,
    /// Destination networks, and how many.
    pub network: [FilterNetwork; FILTER_VALUES],
    /// See [`Self::network`].
    pub networks: u32,
    /// Process ids whose trees are asked for, and how many.
    pub pid: [u32; FILTER_VALUES],
    /// See [`Self::pid`].
    pub pids: u32,
    /// Not 0 when these trees are only kept track of, and nothing is left out by them.
    pub follow: u32,
}

/// Value of the map of processes while trees are asked for: a process that lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Member {
    /// Its start, in units of [`TICK_NS`] since boot.
    pub start_ticks: u64,
    /// Not 0 when it belongs to a tree that is asked for.
    pub inside: u32,
    /// Zero.
    pub reserved: u32,
}

/// Nanoseconds of the clock tick in which /proc tells starts: `USER_HZ` is 100 wherever this program runs.
pub const TICK_NS: u64 = 10_000_000;

/// Words of a [`KernelFilter`].
pub const FILTER_WORDS: usize = size_of::<KernelFilter>() / size_of::<u32>();

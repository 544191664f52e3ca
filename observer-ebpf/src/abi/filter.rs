//! Filters that the kernel half applies itself, handed over as a frozen global: what they leave out is only counted.

/// Values of one kind that fit; with more the kind is left to user space.
pub const FILTER_VALUES: usize = 8;

/// A network to match, as four words each in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

impl KernelFilter {
    /// The words that it is made of, in the order of its fields.
    pub fn words(&self) -> [u32; FILTER_WORDS] {
        let mut words = [0; FILTER_WORDS];
        let networks = self
            .network
            .iter()
            .flat_map(|network| core::iter::once(network.v6).chain(network.address).chain(network.mask));
        let all = [self.active, self.netns]
            .into_iter()
            .chain(self.port)
            .chain([self.ports])
            .chain(self.protocol)
            .chain([self.protocols])
            .chain(networks)
            .chain([self.networks])
            .chain(self.pid)
            .chain([self.pids, self.follow]);
        for (word, value) in words.iter_mut().zip(all) {
            *word = value;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn words_are_in_the_order_of_the_fields() {
        let network = FilterNetwork { v6: 1, address: [2; 4], mask: [3; 4] };
        let filter = KernelFilter {
            active: 4,
            netns: 5,
            port: [6; FILTER_VALUES],
            ports: 7,
            protocol: [8; FILTER_VALUES],
            protocols: 9,
            network: [network; FILTER_VALUES],
            networks: 10,
            pid: [11; FILTER_VALUES],
            pids: 12,
            follow: 13,
        };
        let words = filter.words();
        let at = |offset: usize| words[offset / size_of::<u32>()];
        assert_eq!((at(offset_of!(KernelFilter, active)), at(offset_of!(KernelFilter, netns))), (4, 5));
        assert_eq!((at(offset_of!(KernelFilter, port)), at(offset_of!(KernelFilter, ports))), (6, 7));
        assert_eq!((at(offset_of!(KernelFilter, protocol)), at(offset_of!(KernelFilter, protocols))), (8, 9));
        let first = offset_of!(KernelFilter, network);
        assert_eq!((at(first), at(first + 4), at(first + 20), at(first + 36)), (1, 2, 3, 1));
        assert_eq!(at(offset_of!(KernelFilter, networks)), 10);
        assert_eq!((at(offset_of!(KernelFilter, pid)), at(offset_of!(KernelFilter, pids))), (11, 12));
        assert_eq!(at(offset_of!(KernelFilter, follow)), 13);
    }
}

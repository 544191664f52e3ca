//! Monotonic counters kept by the eBPF side, per CPU; nothing resets or evicts them.

/// Index into the counter array. In packets unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Outbound packets that a decision on this host dropped: the `seen` of the account line.
    Seen = 0,
    /// First packets of a key that were counted but not handed over: the ring was full, or too many came at once.
    RecordSkipped = 1,
    /// Sockets whose owner could not be kept because the owner map was full; in sockets.
    OwnerMapFull = 2,
    /// Dropped for a watched reason but not outbound by this host's own sockets; never reported.
    NotEgress = 3,
    /// Process records not handed over because their ring was full; in records.
    ProcessRingFull = 4,
    /// Of the packets seen, those for which there was no room: neither for a count, nor to be looked at.
    MapFull = 5,
    /// Of the packets seen, those that the filters in the kernel left out.
    Filtered = 6,
    /// Packets of any kind for which another program was run than the first one, which they had interrupted.
    Inner = 7,
}

impl Counter {
    /// Number of counters, the length of the array.
    pub const COUNT: u32 = 8;
}

//! Monotonic counters kept by the kernel half, per CPU; nothing resets or evicts them.

/// Index into the counter array. In packets unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Outbound packets that a decision on this host dropped: the `seen` of the account line.
    Seen = 0,
    /// Of these, not handed over because the ring was full.
    RingFull = 1,
    /// Sockets whose owner could not be kept because the owner map was full; in sockets.
    OwnerMapFull = 2,
    /// Dropped for a watched reason but not outbound by this host's own sockets; never reported.
    NotEgress = 3,
    /// Process records not handed over because their ring was full; in records.
    ProcessRingFull = 4,
}

impl Counter {
    /// Number of counters, the length of the array.
    pub const COUNT: u32 = 5;
}

//! What the two halves know of each other, and what became of packets.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64},
};

use crate::intake::ring::Sweeping;

/// What the two halves tell each other beside the queue.
#[derive(Debug, Default)]
pub(super) struct Flags {
    /// What is left is only counted.
    pub(super) hurry: AtomicBool,
    /// What was taken of it, in items of the queue and keys of counts: to see that it goes on.
    pub(super) taken: AtomicU64,
    /// A request to take in process records is in the queue.
    pub(super) nudged: AtomicBool,
    /// A request to look up the kernel's functions anew is in the queue.
    pub(super) modules: AtomicBool,
    /// nftables was among them: what was learnt of it holds no more.
    pub(super) rules_anew: AtomicBool,
    /// How far sweeping is.
    pub(super) sweeping: Arc<Sweeping>,
}

/// What became of packets in the slower half.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) reported: u64,
    pub(super) filtered: u64,
    pub(super) decode: u64,
    /// They turned out to be no egress.
    pub(super) inbound: u64,
    /// Given up at the end, because the output did not take them in time.
    pub(super) abandoned: u64,
    /// Counted together for want of room, so that it is not known whether they were to be reported.
    pub(super) undecided: u64,
}

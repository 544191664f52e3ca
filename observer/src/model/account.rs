//! The account: what became of every packet that was seen.

use serde::{Deserialize, Serialize};

use super::rule::RulesSeen;

/// Packets that were seen and not reported, by where they were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Lost {
    /// A kernel map was full.
    pub map: u64,
    /// The ring to user space was full: always 0, since what finds no room there is reported by its count. In the record because readers of
    /// schema 1 expect it.
    pub ring: u64,
    /// The record could not be decoded.
    pub decode: u64,
    /// The queue inside the program was full.
    pub queue: u64,
    /// The store could not take it.
    pub store: u64,
}

impl Lost {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { map, ring, decode, queue, store } = self;
        map + ring + decode + queue + store
    }
}

impl Account {
    /// The same where the store lost so many packets more.
    pub fn with_store_losses(&self, packets: u64) -> Self {
        let mut account = self.clone();
        let packets = packets.min(account.reported);
        account.reported -= packets;
        account.lost.store += packets;
        account
    }
}

/// Something that works worse than it could.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Degraded {
    /// What, in one or two words.
    pub what: String,
    /// Why.
    pub why: String,
    /// What that means for the answers.
    pub consequence: String,
}

impl Degraded {
    /// [`Self::what`] of a helper process that has died, or does not answer.
    pub const HELPER: &str = "helper";
}

/// The closing line of a stream, in packets. `seen = reported + filtered + lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Account {
    /// Outbound packets that a decision on this host dropped.
    pub seen: u64,
    /// Of these, told.
    pub reported: u64,
    /// Of these, left out by the filters that were given (or past the `--count` that was).
    pub filtered: u64,
    /// Of these, lost.
    pub lost: Lost,
    /// Program runs that the kernel skipped: an upper bound outside the equation.
    pub missed_max: u64,
    /// Rules that were named, by method.
    pub rules: RulesSeen,
    /// What works worse than it could.
    pub degraded: Vec<Degraded>,
}

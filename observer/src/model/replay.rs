//! A packet that is sent once more through a copy of the rules, and what became of it there.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The packet, as far as rules look at it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Packet {
    /// IP protocol.
    pub protocol: u8,
    /// From where.
    pub source: IpAddr,
    /// Its port; 0 for any.
    pub source_port: u16,
    /// To where.
    pub destination: IpAddr,
    /// Its port.
    pub destination_port: u16,
    /// User whose socket it is.
    pub uid: u32,
    /// Interface by which it was to leave, where that is known.
    pub interface: Option<String>,
}

/// Where its way ended, in handles of the ruleset in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Of the table.
    pub table: u64,
    /// Of the base chain.
    pub chain: u64,
    /// Of the rule; 0 for the base chain's policy.
    pub rule: u64,
    /// Chains from the base chain to the rule's own.
    pub path: Vec<String>,
}

/// What became of a packet in the copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replay {
    /// The copy is still being made.
    NotYet,
    /// Its way through the copy.
    Walked {
        /// What drops it; `None` when it passes.
        end: Option<Replayed>,
        /// What in the rules decides by more than the packet: then the end may have been another one the first time.
        doubt: Option<String>,
        /// Cookie of the namespace that was copied.
        netns_cookie: u64,
        /// The ruleset was in force at this time and is so still: nanoseconds of `CLOCK_BOOTTIME`.
        since_ns: u64,
    },
}

/// What came of packets that were replayed; in lines, not packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayCounts {
    /// The rule that was seen is the one at which the way through the copy ends.
    pub agreed: u64,
    /// It is not: the event says so.
    pub disagreed: u64,
    /// No rule was seen, and the copy named it.
    pub named: u64,
    /// No rule was seen, and the copy's answer is no proof, or it lets the packet pass: none is told.
    pub unsure: u64,
    /// There was no copy, or the packet could not be sent through it.
    pub unable: u64,
}

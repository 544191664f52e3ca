//! Packets of a conversation, beside its first one.

use serde::{Deserialize, Serialize};

/// `egress.packet`: which packet of a conversation was stopped, where it is not its own outbound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "kebab-case")]
pub enum PacketKind {
    /// IPv6 asks for the neighbour by which it leaves, or is answered.
    Solicitation,
    /// The same of IPv4.
    Arp,
    /// What comes back.
    Answer,
    /// A later packet of the connection.
    Segment,
    /// The ICMP packet that says which length is too big for the way.
    TooBig,
}

impl PacketKind {
    /// What was stopped, in a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Solicitation => "the neighbour discovery that it needs",
            Self::Arp => "the ARP exchange that it needs",
            Self::Answer => "the answer to it",
            Self::Segment => "a later packet of its connection",
            Self::TooBig => "the ICMP packet that tells its sender the length that fits",
        }
    }
}

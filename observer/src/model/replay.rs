//! A packet that is sent once more through a copy of the rules, and what became of it there.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, PacketBuilder, TcpOptionElement, TransportSlice};
use serde::{Deserialize, Serialize};

use super::rule::NamedRule;

/// The packet, and what rules look at beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// From its network header on, as it was when it was dropped and as far as it was captured.
    pub bytes: Vec<u8>,
    /// Bytes of the whole packet.
    pub length: u32,
    /// As it was sent, before any translation, where that differs.
    pub sent: Option<Ends>,
    /// Where it came from.
    pub origin: Origin,
    /// Interface by which it was to leave, where that is known.
    pub interface: Option<String>,
    /// It was not seen: it is what the kernel would send.
    pub is_made: bool,
}

impl Packet {
    /// A short datagram; likewise.
    pub fn datagram(from: SocketAddr, to: SocketAddr, origin: Origin) -> Option<Self> {
        const LIFETIME: u8 = 64;
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), LIFETIME),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), LIFETIME),
            _ => return None,
        };
        let mut bytes = Vec::new();
        ip.udp(from.port(), to.port()).write(&mut bytes, &[0; 12]).ok()?;
        let length = u32::try_from(bytes.len()).ok()?;
        Some(Self { bytes, length, sent: None, origin, interface: None, is_made: true })
    }

    /// Protocol, address and port to which it goes, before any translation; `None` where it has no ports.
    pub fn to(&self) -> Option<(&'static str, IpAddr, u16)> {
        let sliced = LaxSlicedPacket::from_ip(&self.bytes).ok()?;
        let address = match sliced.net? {
            LaxNetSlice::Ipv4(slice) => IpAddr::from(slice.header().destination_addr()),
            LaxNetSlice::Ipv6(slice) => IpAddr::from(slice.header().destination_addr()),
            LaxNetSlice::Arp(_) => return None,
        };
        let (transport, port) = match sliced.transport? {
            TransportSlice::Tcp(slice) => ("tcp", slice.destination_port()),
            TransportSlice::Udp(slice) => ("udp", slice.destination_port()),
            _ => return None,
        };
        let (address, port) = self.sent.map_or((address, Some(port)), |ends| ends.destination);
        Some((transport, address, port?))
    }

    /// What a datagram carries, as far as it was captured.
    pub fn payload(&self) -> Option<Vec<u8>> {
        match LaxSlicedPacket::from_ip(&self.bytes).ok()?.transport? {
            TransportSlice::Udp(slice) => Some(slice.payload().to_vec()),
            _ => None,
        }
    }

    /// It is TCP's first of a connection.
    pub fn begins(&self) -> bool {
        let sliced = LaxSlicedPacket::from_ip(&self.bytes).ok().and_then(|sliced| sliced.transport);
        matches!(sliced, Some(TransportSlice::Tcp(slice)) if slice.syn() && !slice.ack())
    }

    /// Address and port from which it comes, before any translation; likewise.
    pub fn from(&self) -> Option<(IpAddr, u16)> {
        let sliced = LaxSlicedPacket::from_ip(&self.bytes).ok()?;
        let address = match sliced.net? {
            LaxNetSlice::Ipv4(slice) => IpAddr::from(slice.header().source_addr()),
            LaxNetSlice::Ipv6(slice) => IpAddr::from(slice.header().source_addr()),
            LaxNetSlice::Arp(_) => return None,
        };
        let port = match sliced.transport? {
            TransportSlice::Tcp(slice) => slice.source_port(),
            TransportSlice::Udp(slice) => slice.source_port(),
            _ => return None,
        };
        let (address, port) = self.sent.map_or((address, Some(port)), |ends| ends.source);
        Some((address, port?))
    }

    /// A packet as the kernel begins a connection with; `None` where its ends are of different families.
    pub fn syn(from: SocketAddr, to: SocketAddr, origin: Origin) -> Option<Self> {
        use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgementPermitted, Timestamp, WindowScale};
        const LIFETIME: u8 = 64;
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), LIFETIME),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), LIFETIME),
            _ => return None,
        };
        let options =
            [MaximumSegmentSize(1460), SelectiveAcknowledgementPermitted, Timestamp(1, 0), Noop, WindowScale(7)];
        let syn = ip.tcp(from.port(), to.port(), 1, 64_240).syn().options(&options).ok()?;
        let mut bytes = Vec::new();
        syn.write(&mut bytes, &[]).ok()?;
        let length = u32::try_from(bytes.len()).ok()?;
        Some(Self { bytes, length, sent: None, origin, interface: None, is_made: true })
    }
}

/// Both ends of a packet; ports where the protocol has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// From where.
    pub source: (IpAddr, Option<u16>),
    /// To where.
    pub destination: (IpAddr, Option<u16>),
}

/// Where a packet came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// A socket of that namespace.
    Socket {
        /// User and group with which its file was opened.
        uid: u32,
        /// See `uid`.
        gid: u32,
        /// The user's other groups, as far as they are known.
        groups: Vec<u32>,
        /// Its mark.
        mark: u32,
        /// Id of its cgroup, where it may be sent from there.
        cgroup: Option<u64>,
    },
    /// It came in, and is forwarded.
    Interface {
        /// Number of the interface.
        index: u32,
    },
}

/// What ended its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// nftables.
    Nft(Replayed),
    /// A table of iptables-legacy: rules have no handles there, so it is named by its place.
    Legacy(Box<NamedRule>),
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
        end: Option<End>,
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
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ReplayCounts {
    /// The rule that was seen is the one at which the way through the copy ends.
    pub agreed: u64,
    /// It is not: the event says so.
    pub disagreed: u64,
    /// No rule was seen, and the copy named it.
    pub named: u64,
    /// No rule was seen, and the copy's answer is uncertain, or it lets the packet pass: none is reported.
    pub unsure: u64,
    /// There was no copy, or the packet could not be sent through it.
    pub unable: u64,
}

//! Addresses and ports of a packet, from its network header on.
//!
//! Takes whatever was captured, however short or hostile, and says only what the bytes prove: a port is never read
//! from a later fragment, from behind an encrypted or unknown header, or from past the end.

/// Ethertypes that the parser knows, host byte order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// Outer VLAN tag (802.1ad).
    pub const VLAN_OUTER: u16 = 0x88a8;
}

/// IP protocol numbers that the parser knows.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// IPv6 extension headers that are stepped over.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// Headers that are stepped over before giving up: as many as any real packet has, and a bound for the verifier.
const MAX_EXTENSIONS: usize = 8;
/// VLAN tags likewise.
const MAX_TAGS: usize = 2;

/// An IP address; IPv4 in the first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4, network byte order.
    V4 {
        /// Source.
        source: [u8; 4],
        /// Destination.
        destination: [u8; 4],
    },
    /// IPv6, network byte order.
    V6 {
        /// Source.
        source: [u8; 16],
        /// Destination.
        destination: [u8; 16],
    },
}

/// What follows the IP headers, as far as it is in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, UDP, SCTP, DCCP, UDP-Lite: ports in host byte order.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The TCP flags byte; `None` for other protocols and where it was not captured.
        tcp_flags: Option<u8>,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Another protocol, a later fragment, or too short: nothing more is known.
    Opaque,
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Both addresses.
    pub addresses: Addresses,
    /// IP protocol of the payload (the last header that could be reached).
    pub protocol: u8,
    /// Ports or type and code.
    pub transport: Transport,
    /// It is a fragment other than the first: `transport` is opaque.
    pub later_fragment: bool,
}

/// Parses `bytes`, which start at the network header of a packet whose `skb->protocol` was `ethertype`. `None` when
/// that is neither IPv4 nor IPv6 or the fixed header is not all there.
pub fn parse(bytes: &[u8], ethertype: u16) -> Option<Packet> {
    let mut kind = ethertype;
    let mut start = 0;
    for _ in 0..MAX_TAGS {
        if kind != ethertype::VLAN && kind != ethertype::VLAN_OUTER {
            break;
        }
        kind = be16(bytes, start + 2)?;
        start += 4;
    }
    let bytes = bytes.get(start..)?;
    match kind {
        ethertype::IPV4 => parse_v4(bytes),
        ethertype::IPV6 => parse_v6(bytes),
        _ => None,
    }
}

fn parse_v4(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < header.len() {
        return None;
    }
    let protocol = header[9];
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let payload = if later_fragment { &[] } else { bytes.get(length..).unwrap_or(&[]) };
    Some(Packet {
        addresses: Addresses::V4 {
            source: [header[12], header[13], header[14], header[15]],
            destination: [header[16], header[17], header[18], header[19]],
        },
        protocol,
        transport: parse_transport(payload, protocol),
        later_fragment,
    })
}

fn parse_v6(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 40] = bytes.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let addresses = Addresses::V6 { source: *header[8..].first_chunk()?, destination: *header[24..].first_chunk()? };
    let mut protocol = header[6];
    let mut at = header.len();
    let mut later_fragment = false;
    let mut reached = false;
    for _ in 0..MAX_EXTENSIONS {
        let length = match protocol {
            extension::FRAGMENT => {
                let Some(offset) = be16(bytes, at + 2) else { break };
                later_fragment |= offset & 0xfff8 != 0;
                8
            }
            extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::DESTINATION
            | extension::MOBILITY
            | extension::HIP
            | extension::SHIM6 => match bytes.get(at + 1) {
                Some(units) => (usize::from(*units) + 1) * 8,
                None => break,
            },
            extension::AUTHENTICATION => match bytes.get(at + 1) {
                Some(words) => (usize::from(*words) + 2) * 4,
                None => break,
            },
            _ => {
                reached = true;
                break;
            }
        };
        let Some(next) = bytes.get(at) else { break };
        protocol = *next;
        at += length;
        if later_fragment {
            break;
        }
    }
    let payload = if reached && !later_fragment { bytes.get(at..).unwrap_or(&[]) } else { &[] };
    Some(Packet { addresses, protocol, transport: parse_transport(payload, protocol), later_fragment })
}

fn parse_transport(payload: &[u8], protocol: u8) -> Transport {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP | protocol::DCCP => {
            match (be16(payload, 0), be16(payload, 2)) {
                (Some(source), Some(destination)) => Transport::Ports {
                    source,
                    destination,
                    tcp_flags: if protocol == protocol::TCP { payload.get(13).copied() } else { None },
                },
                _ => Transport::Opaque,
            }
        }
        protocol::ICMP | protocol::ICMPV6 => match payload {
            [kind, code, ..] => Transport::Icmp { kind: *kind, code: *code },
            _ => Transport::Opaque,
        },
        _ => Transport::Opaque,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;

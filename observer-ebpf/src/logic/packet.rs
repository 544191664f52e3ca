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

    #[inline(always)]
    pub(super) fn is(number: u8) -> bool {
        matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6)
    }
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
        /// What an echo request has for a port; `None` for any other message, and where it was not captured.
        identifier: Option<u16>,
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
    /// IPv6 hop-by-hop options stand first.
    pub hop_by_hop: bool,
}

/// Where a packet is read from: a copy on the host, the kernel's own memory in the eBPF side.
pub trait Bytes {
    /// `N` bytes from an offset on; `None` past the end.
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }
}

/// Parses `bytes`, which start at the network header of a packet whose `skb->protocol` was `ethertype`. `None` when
/// that is neither IPv4 nor IPv6 or the fixed header is not all there.
#[inline(always)]
pub fn parse(bytes: &(impl Bytes + ?Sized), ethertype: u16) -> Option<Packet> {
    let mut kind = ethertype;
    let mut start = 0;
    for _ in 0..MAX_TAGS {
        if kind != ethertype::VLAN && kind != ethertype::VLAN_OUTER {
            break;
        }
        kind = be16(bytes, start + 2)?;
        start += 4;
    }
    match kind {
        ethertype::IPV4 => parse_v4(bytes, start),
        ethertype::IPV6 => parse_v6(bytes, start),
        _ => None,
    }
}

#[inline(always)]
fn parse_v4(bytes: &(impl Bytes + ?Sized), start: usize) -> Option<Packet> {
    let header: [u8; 20] = bytes.read(start)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < header.len() {
        return None;
    }
    let protocol = header[9];
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let transport = if later_fragment { Transport::Opaque } else { parse_transport(bytes, start + length, protocol) };
    Some(Packet {
        addresses: Addresses::V4 {
            source: [header[12], header[13], header[14], header[15]],
            destination: [header[16], header[17], header[18], header[19]],
        },
        protocol,
        transport,
        later_fragment,
        hop_by_hop: false,
    })
}

#[inline(always)]
fn parse_v6(bytes: &(impl Bytes + ?Sized), start: usize) -> Option<Packet> {
    let header: [u8; 8] = bytes.read(start)?;
    let source: [u8; 16] = bytes.read(start + 8)?;
    let destination: [u8; 16] = bytes.read(start + 24)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut protocol = header[6];
    let mut at = start + 40;
    let mut later_fragment = false;
    let mut reached = false;
    for _ in 0..MAX_EXTENSIONS {
        if !extension::is(protocol) {
            reached = true;
            break;
        }
        let Some([next, units, high, low]) = bytes.read::<4>(at) else { break };
        at += match protocol {
            extension::FRAGMENT => {
                later_fragment = u16::from_be_bytes([high, low]) & 0xfff8 != 0;
                8
            }
            extension::AUTHENTICATION => (usize::from(units) + 2) * 4,
            _ => (usize::from(units) + 1) * 8,
        };
        protocol = next;
        if later_fragment {
            break;
        }
    }
    let transport = if reached && !later_fragment { parse_transport(bytes, at, protocol) } else { Transport::Opaque };
    Some(Packet {
        addresses: Addresses::V6 { source, destination },
        protocol,
        transport,
        later_fragment,
        hop_by_hop: header[6] == extension::HOP_BY_HOP,
    })
}

#[inline(always)]
fn parse_transport(bytes: &(impl Bytes + ?Sized), at: usize, protocol: u8) -> Transport {
    let Some([a, b, c, d]) = bytes.read::<4>(at) else { return Transport::Opaque };
    match protocol {
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP | protocol::DCCP => Transport::Ports {
            source: u16::from_be_bytes([a, b]),
            destination: u16::from_be_bytes([c, d]),
            tcp_flags: if protocol == protocol::TCP { bytes.read::<1>(at + 13).map(|[flags]| flags) } else { None },
        },
        protocol::ICMP | protocol::ICMPV6 => {
            let echo = matches!((protocol, a), (protocol::ICMP, 8) | (protocol::ICMPV6, 128));
            let identifier = if echo { be16(bytes, at + 4) } else { None };
            Transport::Icmp { kind: a, code: b, identifier }
        }
        _ => Transport::Opaque,
    }
}

/// True for a packet that carries another one, which is the socket's: a tunnel's keeps the socket of what it carries, but is
/// of another protocol than that sends, or from another port. The last two are the socket's.
#[inline(always)]
pub fn encapsulated(protocol: u8, source_port: u16, socket_protocol: u8, socket_port: u16) -> bool {
    /// A raw socket may send whole packets of any protocol.
    const RAW: u8 = 255;
    let other = protocol != socket_protocol && socket_protocol != 0 && socket_protocol != RAW;
    match protocol {
        protocol::UDP if socket_protocol == protocol::UDP => {
            socket_port != 0 && source_port != 0 && source_port != socket_port
        }
        // UDP; IP in IP, IPv6 in IP, GRE, ESP, L2TP.
        protocol::UDP | 4 | 41 | 47 | 50 | 115 => other,
        _ => false,
    }
}

#[inline(always)]
fn be16(bytes: &(impl Bytes + ?Sized), at: usize) -> Option<u16> {
    bytes.read(at).map(u16::from_be_bytes)
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;

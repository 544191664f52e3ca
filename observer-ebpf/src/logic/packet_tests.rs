//! Named cases, and etherparse as an independent second opinion on generated packets.
extern crate std;

use super::*;
use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;
use std::{vec, vec::Vec};

fn ports(packet: &Packet) -> Option<(u16, u16)> {
    match packet.transport {
        Transport::Ports { source, destination, .. } => Some((source, destination)),
        Transport::Icmp { .. } | Transport::Opaque => None,
    }
}

fn v4(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45 + (options / 4) as u8, 0, 0, 0, 0, 0];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 203, 0, 113, 10]);
    bytes.extend(vec![1; options]);
    bytes.extend(payload);
    bytes
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    bytes.extend([0xfd; 16]);
    bytes.extend([0x20; 16]);
    bytes.extend(payload);
    bytes
}

const SYN: [u8; 14] = [0xa0, 0x3e, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02];

#[test]
fn tcp_over_v4_with_options() {
    let packet = parse(&*v4(protocol::TCP, 0, 8, &SYN), ethertype::IPV4).unwrap();
    assert_eq!(ports(&packet), Some((0xa03e, 443)));
    assert_eq!(packet.transport, Transport::Ports { source: 0xa03e, destination: 443, tcp_flags: Some(2) });
}

#[test]
fn first_fragment_has_ports_and_later_ones_have_none() {
    let first = parse(&*v4(protocol::UDP, 0x2000, 0, &SYN), ethertype::IPV4).unwrap();
    assert_eq!(ports(&first), Some((0xa03e, 443)));
    let later = parse(&*v4(protocol::UDP, 0x2001, 0, &SYN), ethertype::IPV4).unwrap();
    assert_eq!((ports(&later), later.later_fragment), (None, true));
}

#[test]
fn v6_extension_headers_are_stepped_over() {
    let mut chain = vec![extension::ROUTING, 0, 0, 0, 0, 0, 0, 0];
    chain.extend([protocol::TCP, 1]);
    chain.extend([0; 14]);
    chain.extend(SYN);
    let packet = parse(&*v6(extension::HOP_BY_HOP, &chain), ethertype::IPV6).unwrap();
    assert_eq!((packet.protocol, ports(&packet)), (protocol::TCP, Some((0xa03e, 443))));
}

#[test]
fn v6_later_fragment_has_no_ports() {
    let mut chain = vec![protocol::UDP, 0, 0x00, 0x09, 0, 0, 0, 1];
    chain.extend(SYN);
    let packet = parse(&*v6(extension::FRAGMENT, &chain), ethertype::IPV6).unwrap();
    assert_eq!((packet.protocol, ports(&packet), packet.later_fragment), (protocol::UDP, None, true));
}

#[test]
fn more_extension_headers_than_the_bound_give_no_ports() {
    let mut chain = Vec::new();
    for _ in 0..MAX_EXTENSIONS {
        chain.extend([extension::DESTINATION, 0, 0, 0, 0, 0, 0, 0]);
    }
    chain.extend([protocol::TCP, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend(SYN);
    assert_eq!(ports(&parse(&*v6(extension::DESTINATION, &chain), ethertype::IPV6).unwrap()), None);
}

#[test]
fn encrypted_payload_has_no_ports() {
    let packet = parse(&*v4(50, 0, 0, &SYN), ethertype::IPV4).unwrap();
    assert_eq!((packet.protocol, packet.transport), (50, Transport::Opaque));
}

#[test]
fn vlan_tags_are_stepped_over() {
    let mut bytes = vec![0, 7, 0x81, 0x00, 0, 9, 0x08, 0x00];
    bytes.extend(v4(protocol::TCP, 0, 0, &SYN));
    assert_eq!(ports(&parse(&*bytes, ethertype::VLAN_OUTER).unwrap()), Some((0xa03e, 443)));
}

#[test]
fn other_ethertypes_and_wrong_versions_are_not_parsed() {
    assert_eq!(parse(&*v4(protocol::TCP, 0, 0, &SYN), ethertype::ARP), None);
    assert_eq!(parse(&*v4(protocol::TCP, 0, 0, &SYN), ethertype::IPV6), None);
    assert_eq!(parse(&[0x44; 64][..], ethertype::IPV4), None, "header length below 20");
}

#[test]
fn a_tunnels_packet_is_not_what_its_socket_sends() {
    assert!(encapsulated(17, 50_000, 6, 41_000), "TCP in VXLAN");
    assert!(encapsulated(17, 50_000, 17, 41_000), "UDP in VXLAN");
    assert!(encapsulated(47, 0, 1, 9), "a ping in GRE");
    assert!(!encapsulated(17, 41_000, 17, 41_000), "what the socket itself sends");
    assert!(!encapsulated(17, 41_000, 0, 0), "no socket");
    assert!(!encapsulated(17, 41_000, 255, 255), "a raw socket's own header");
    assert!(!encapsulated(47, 0, 47, 47), "a raw socket of that protocol");
}

proptest! {
    #[test]
    fn never_panics_and_never_reads_ports_from_a_later_fragment(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in any::<u16>()) {
        for kind in [kind, ethertype::IPV4, ethertype::IPV6, ethertype::VLAN] {
            if let Some(packet) = parse(&*bytes, kind) {
                prop_assert!(!packet.later_fragment || packet.transport == Transport::Opaque);
            }
        }
    }

    #[test]
    fn agrees_with_etherparse(
        v6 in any::<bool>(), transport in 0..4u8, source: u16, destination: u16,
        a in any::<[u8; 16]>(), b in any::<[u8; 16]>(), payload in prop::collection::vec(any::<u8>(), 0..64), cut in 0..120usize,
    ) {
        let builder = if v6 { PacketBuilder::ipv6(a, b, 64) } else {
            PacketBuilder::ipv4([a[0], a[1], a[2], a[3]], [b[0], b[1], b[2], b[3]], 64)
        };
        let mut bytes = Vec::new();
        match transport {
            0 => builder.tcp(source, destination, 7, 100).write(&mut bytes, &payload).unwrap(),
            1 => builder.udp(source, destination).write(&mut bytes, &payload).unwrap(),
            2 if v6 => builder.icmpv6_echo_request(1, 2).write(&mut bytes, &payload).unwrap(),
            2 => builder.icmpv4_echo_request(1, 2).write(&mut bytes, &payload).unwrap(),
            _ => builder.write(&mut bytes, IpNumber(253), &payload).unwrap(),
        }
        let kind = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
        let whole = parse(&*bytes, kind).expect("a whole packet parses");
        let theirs = etherparse::SlicedPacket::from_ip(&bytes).unwrap();
        let echo = Some(1);
        match theirs.transport {
            Some(etherparse::TransportSlice::Tcp(t)) => prop_assert_eq!(ports(&whole), Some((t.source_port(), t.destination_port()))),
            Some(etherparse::TransportSlice::Udp(t)) => prop_assert_eq!(ports(&whole), Some((t.source_port(), t.destination_port()))),
            Some(etherparse::TransportSlice::Icmpv4(t)) => prop_assert_eq!(whole.transport, Transport::Icmp { kind: t.type_u8(), code: t.code_u8(), identifier: echo }),
            Some(etherparse::TransportSlice::Icmpv6(t)) => prop_assert_eq!(whole.transport, Transport::Icmp { kind: t.type_u8(), code: t.code_u8(), identifier: echo }),
            _ => prop_assert_eq!(whole.transport, Transport::Opaque),
        }
        // Cut short, it says the same or less, never something else.
        if let Some(short) = parse(&bytes[..cut.min(bytes.len())], kind) {
            prop_assert_eq!(short.addresses, whole.addresses);
            prop_assert!(ports(&short).is_none() || ports(&short) == ports(&whole));
        }
    }
}

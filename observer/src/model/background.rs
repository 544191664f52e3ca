//! Blocked packets of background traffic.

use std::net::IpAddr;

use observer_ebpf::logic::packet::protocol;
use serde::{Deserialize, Serialize};

use super::{dropped::Dropped, names::Hook, packet_kind::PacketKind};

/// Kinds of background traffic, as the contract lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "kebab-case")]
pub enum Background {
    /// Multicast DNS.
    Mdns,
    /// Link-local multicast name resolution.
    Llmnr,
    /// Service discovery (UPnP).
    Ssdp,
    /// NetBIOS name and datagram service.
    Netbios,
    /// To everyone on the link.
    Broadcast,
    /// IGMP and multicast listener reports.
    MulticastJoin,
    /// Neighbour and router discovery.
    Discovery,
    /// A reset or FIN for a connection that is over.
    InvalidState,
    /// An answer to a peer that contacted this host.
    Answer,
    /// The kernel's own retransmits for a socket that its process has closed.
    Orphan,
    /// The packets by which another observer proves that it sees drops.
    SelfTest,
}

impl Background {
    /// Words for a person.
    pub fn label(self) -> &'static str {
        match self {
            Self::Mdns => "mDNS",
            Self::Llmnr => "LLMNR",
            Self::Ssdp => "SSDP",
            Self::Netbios => "NetBIOS",
            Self::Broadcast => "broadcast",
            Self::MulticastJoin => "multicast joins",
            Self::Discovery => "neighbour and router discovery",
            Self::InvalidState => "invalid-state RST and FIN",
            Self::Answer => "answers to inbound peers",
            Self::Orphan => "retransmits of closed sockets",
            Self::SelfTest => "observer's own self-tests",
        }
    }

    /// Which kind a dropped packet is; `None` when somebody may wait for it.
    pub fn of(dropped: &Dropped) -> Option<Self> {
        match dropped.packet {
            // Somebody may wait for the neighbour: that is known when it does not come, and reported then.
            Some(PacketKind::Arp | PacketKind::Solicitation) if dropped.waited_for.is_none() => {
                return Some(Self::Discovery);
            }
            // What it tells is waited for by whoever sends what is too long.
            Some(PacketKind::TooBig) => return None,
            Some(PacketKind::Answer) => return answer(dropped),
            Some(_) | None => {}
        }
        let endpoints = dropped.endpoints.as_ref()?;
        let to = endpoints.destination;
        if let Some((kind, _)) = dropped.icmp {
            return if endpoints.protocol == protocol::ICMPV6 { icmpv6(kind) } else { icmp(kind) };
        }
        match endpoints.destination_port {
            Some(5353) if is_group(to, "224.0.0.251", "ff02::fb") => Some(Self::Mdns),
            Some(5355) if is_group(to, "224.0.0.252", "ff02::1:3") => Some(Self::Llmnr),
            Some(1900) if is_group(to, "239.255.255.250", "ff02::c") => Some(Self::Ssdp),
            Some(137 | 138) if endpoints.protocol == protocol::UDP => Some(Self::Netbios),
            _ if dropped.tcp_flags.is_some() => tcp(dropped.tcp_flags?, dropped),
            None if endpoints.protocol == protocol::IGMP => Some(Self::MulticastJoin),
            None if dropped.hop_by_hop && endpoints.protocol == protocol::ICMPV6 => Some(Self::MulticastJoin),
            _ if to == IpAddr::from([255, 255, 255, 255]) => Some(Self::Broadcast),
            _ => None,
        }
    }
}

fn is_group(address: IpAddr, v4: &str, v6: &str) -> bool {
    [v4, v6].iter().any(|group| group.parse() == Ok(address))
}

fn icmp(kind: u8) -> Option<Background> {
    // Echo reply, errors, and answers to timestamp and mask requests: nothing that a process here asked for.
    match kind {
        0 | 3 | 4 | 5 | 11 | 12 | 14 | 18 => Some(Background::Answer),
        9 | 10 => Some(Background::Discovery),
        _ => None,
    }
}

fn icmpv6(kind: u8) -> Option<Background> {
    match kind {
        1..=4 | 129 => Some(Background::Answer),
        130..=132 | 143 => Some(Background::MulticastJoin),
        133..=137 => Some(Background::Discovery),
        _ => None,
    }
}

/// What comes to a connection that is over is waited for by nobody.
fn answer(dropped: &Dropped) -> Option<Background> {
    const SYN: u8 = 2;
    /// `TCP_TIME_WAIT`.
    const TIME_WAIT: u8 = 6;
    let flags = dropped.tcp_flags.filter(|_| dropped.hook == Some(Hook::Input))?;
    let is_over = match dropped.socket {
        None => flags & SYN == 0,
        Some(socket) => socket.orphan || socket.state == TIME_WAIT,
    };
    is_over.then_some(Background::InvalidState)
}

fn tcp(flags: u8, dropped: &Dropped) -> Option<Background> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    /// `TCP_ESTABLISHED`, `TCP_TIME_WAIT` and `TCP_NEW_SYN_RECV`.
    const ESTABLISHED: u8 = 1;
    const TIME_WAIT: u8 = 6;
    const NEW_SYN_RECV: u8 = 12;
    let state = dropped.socket.map(|socket| socket.state);
    let orphan = dropped.socket.is_none_or(|socket| socket.orphan);
    if dropped.socket.is_some_and(|socket| socket.kernel) && flags & SYN == 0 && state != Some(ESTABLISHED) {
        // Resets, and acknowledgements of connections that are over, go out by a socket of the kernel's.
        Some(Background::InvalidState)
    } else if flags & (SYN | ACK) == SYN | ACK || state == Some(NEW_SYN_RECV) {
        Some(Background::Answer)
    } else if flags & RST != 0 || state == Some(TIME_WAIT) || flags & FIN != 0 && orphan {
        Some(Background::InvalidState)
    } else if orphan && flags & SYN == 0 && dropped.owner.is_some() {
        Some(Background::Orphan)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoints;

    fn dropped(destination: &str, protocol: u8, port: Option<u16>) -> Dropped {
        let endpoints = Endpoints {
            source: "10.0.0.1".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            source_port: port.map(|_| 1),
            destination_port: port,
        };
        Dropped { endpoints: Some(endpoints), ..Dropped::example() }
    }

    fn tcp(destination: &str, tcp_flags: u8) -> Dropped {
        Dropped { tcp_flags: Some(tcp_flags), ..dropped(destination, 6, Some(443)) }
    }

    fn icmp(destination: &str, protocol: u8, kind: u8) -> Dropped {
        Dropped { icmp: Some((kind, 0)), ..dropped(destination, protocol, None) }
    }

    #[test]
    fn what_nobody_waits_for() {
        let udp = |destination, port| Background::of(&dropped(destination, 17, Some(port)));
        assert_eq!(udp("224.0.0.251", 5353), Some(Background::Mdns));
        assert_eq!(udp("10.0.0.9", 5353), None, "unicast to that port is a question someone asked");
        assert_eq!(udp("255.255.255.255", 9999), Some(Background::Broadcast));
        let tcp = |tcp_flags| Background::of(&tcp("10.0.0.9", tcp_flags));
        assert_eq!(tcp(2), None, "a SYN is waited for");
        assert_eq!(tcp(0x12), Some(Background::Answer));
        assert_eq!(tcp(4), Some(Background::InvalidState));
        assert_eq!(tcp(0x11), None, "FIN of a socket that is still open");
        let icmp = |destination, protocol, kind| Background::of(&icmp(destination, protocol, kind));
        assert_eq!(icmp("fe80::1", 58, 135), Some(Background::Discovery));
        assert_eq!(icmp("fe80::1", 58, 128), None, "a ping is waited for");
        assert_eq!(icmp("10.0.0.9", 1, 8), None);
        assert_eq!(icmp("10.0.0.9", 1, 0), Some(Background::Answer));
        assert_eq!(Background::of(&dropped("224.0.0.22", 2, None)), Some(Background::MulticastJoin));
    }

    #[test]
    fn the_kernel_finishing_a_closed_connection() {
        let mut orphan = tcp("10.0.0.9", 0x11);
        orphan.socket = orphan.socket.map(|socket| crate::model::Socket { orphan: true, ..socket });
        assert_eq!(Background::of(&orphan), Some(Background::InvalidState));
    }
}

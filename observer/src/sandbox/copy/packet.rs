//! The packet as it was sent: whole, with the addresses that its sender gave it. Pure.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpHeaders, IpNumber, LaxIpPayloadSlice, PacketBuilder};

use crate::{
    firewall::netfilter::family,
    model::{Ends, Origin, Packet},
};

/// What was not captured is not sent, where the packet is longer: no interface takes more at once.
const MAX_LENGTH: usize = 1280;
/// TCP's flags: SYN alone begins a connection.
const SYN: u8 = 2;
const FLAGS_OF_TCP: u8 = 0x3f;

/// A packet that can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// From its network header on.
    pub(super) bytes: Vec<u8>,
    /// IP protocol of what it carries.
    pub(super) protocol: u8,
    /// From where.
    pub(super) source: IpAddr,
    /// To where.
    pub(super) destination: IpAddr,
    /// Where the header of that protocol begins.
    transport: usize,
}

impl Whole {
    /// Of a packet as it was dropped.
    pub(super) fn of(packet: &Packet) -> Result<Self> {
        let (mut headers, payload) = IpHeaders::from_slice_lax(&packet.bytes)
            .map(|(headers, payload, _)| (headers, payload))
            .context("its headers are not whole")?;
        let LaxIpPayloadSlice { ip_number: IpNumber(protocol), fragmented, .. } = payload;
        ensure!(!fragmented, "it is a fragment");
        let transport = packet.bytes.len() - payload.payload.len();
        let length = (packet.length as usize).clamp(transport, MAX_LENGTH.max(packet.bytes.len()));
        if let Some(sent) = &packet.sent {
            readdress(&mut headers, sent)?;
        }
        let is_forwarded = matches!(packet.origin, Origin::Interface { .. });
        let (source, destination): (IpAddr, IpAddr) = match &mut headers {
            IpHeaders::Ipv4(header, _) => {
                header.total_len = u16::try_from(length)?;
                // Where it is forwarded this one is taken off before rules see it.
                header.time_to_live = header.time_to_live.saturating_add(u8::from(is_forwarded));
                header.header_checksum = header.calc_header_checksum();
                (header.source.into(), header.destination.into())
            }
            IpHeaders::Ipv6(header, _) => {
                header.payload_length = u16::try_from(length - 40)?;
                header.hop_limit = header.hop_limit.saturating_add(u8::from(is_forwarded));
                (header.source.into(), header.destination.into())
            }
        };
        let mut bytes = Vec::new();
        headers.write(&mut bytes)?;
        ensure!(bytes.len() == transport, "its headers are not written as they were read");
        bytes.extend(payload.payload);
        bytes.resize(length, 0);
        if let Some(Ends { source: (_, source), destination: (_, destination) }) = packet.sent {
            for (port, at) in [(source, transport), (destination, transport + 2)] {
                if let Some((port, into)) = port.zip(bytes.get_mut(at..at + 2)) {
                    into.copy_from_slice(&port.to_be_bytes());
                }
            }
        }
        Ok(Self { bytes, protocol, source, destination, transport })
    }

    /// `NFPROTO_*`
    pub(super) fn family(&self) -> u8 {
        if self.destination.is_ipv4() { family::IPV4 } else { family::IPV6 }
    }

    /// Address and port of its sender; port 0 where it has none.
    pub(super) fn from(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.port(0))
    }

    /// The same of its destination.
    pub(super) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.port(2))
    }

    fn port(&self, at: usize) -> u16 {
        let has_ports = [IpNumber::TCP, IpNumber::UDP].contains(&IpNumber(self.protocol));
        let bytes = self.transport().get(at..at + 2).filter(|_| has_ports);
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
    }

    /// The header of what it carries.
    pub(super) fn transport(&self) -> &[u8] {
        self.bytes.get(self.transport..).unwrap_or_default()
    }

    /// It begins a connection, whatever the table of connections says.
    pub(super) fn begins(&self) -> bool {
        const TCP: u8 = IpNumber::TCP.0;
        self.protocol == TCP && self.transport().get(13).is_some_and(|flags| flags & FLAGS_OF_TCP == SYN)
    }

    /// Whether a packet's headers, as far as they are shown, are those of this one.
    pub(super) fn is(&self, network: &[u8], transport: &[u8]) -> bool {
        let same = |range: std::ops::Range<usize>| network.get(range.clone()) == self.bytes.get(range);
        let addresses = match self.destination {
            IpAddr::V4(_) => same(9..10) && same(12..20),
            IpAddr::V6(_) => same(6..7) && same(8..40),
        };
        let shown = transport.len().min(4);
        addresses && shown > 0 && transport.get(..shown) == self.transport().get(..shown)
    }
}

fn readdress(headers: &mut IpHeaders, sent: &Ends) -> Result<()> {
    match (headers, sent.source.0, sent.destination.0) {
        (IpHeaders::Ipv4(header, _), IpAddr::V4(source), IpAddr::V4(destination)) => {
            (header.source, header.destination) = (source.octets(), destination.octets());
        }
        (IpHeaders::Ipv6(header, _), IpAddr::V6(source), IpAddr::V6(destination)) => {
            (header.source, header.destination) = (source.octets(), destination.octets());
        }
        _ => bail!("it was translated into another family"),
    }
    Ok(())
}

/// A datagram from here to that port of this machine, of root's.
pub(super) fn datagram(port: u16) -> Packet {
    const FROM: u16 = 40_000;
    const HERE: [u8; 4] = [127, 0, 0, 1];
    let mut bytes = Vec::new();
    // Into memory nothing fails.
    let _ = PacketBuilder::ipv4(HERE, HERE, 64).udp(FROM, port).write(&mut bytes, b"observer replay");
    let length = bytes.len() as u32;
    let origin = Origin::Socket { uid: 0, gid: 0, groups: Vec::new(), mark: 0, cgroup: None };
    Packet { bytes, length, sent: None, origin, interface: None, is_made: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_as_it_was_before_its_translation() {
        let ends = Ends {
            source: ("10.0.0.7".parse().unwrap(), Some(5000)),
            destination: ("192.0.2.1".parse().unwrap(), Some(443)),
        };
        let whole = Whole::of(&Packet { sent: Some(ends), ..datagram(7) }).unwrap();
        assert_eq!((whole.source, whole.destination), (ends.source.0, ends.destination.0));
        assert_eq!(whole.transport()[..4], [0x13, 0x88, 1, 0xbb]);
        assert!(whole.is(&whole.bytes[..20], whole.transport()));
        assert!(!whole.is(&datagram(7).bytes[..20], whole.transport()));
    }

    #[test]
    fn what_was_not_captured_is_as_long() {
        let short = Packet { length: 900, ..datagram(7) };
        let whole = Whole::of(&short).unwrap();
        assert_eq!((whole.bytes.len(), u16::from_be_bytes([whole.bytes[2], whole.bytes[3]])), (900, 900));
        assert_eq!(Whole::of(&Packet { length: 60_000, ..datagram(7) }).unwrap().bytes.len(), MAX_LENGTH);
    }

    #[test]
    fn a_forwarded_one_is_sent_from_a_hop_before() {
        let packet = Packet { origin: Origin::Interface { index: 2 }, ..datagram(7) };
        let whole = Whole::of(&packet).unwrap();
        assert_eq!(whole.bytes[8], packet.bytes[8] + 1);
        let header = etherparse::Ipv4Header::from_slice(&whole.bytes).unwrap().0;
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }

    #[test]
    fn the_first_of_a_connection_is_known_by_its_flags() {
        let tcp = |syn: bool, ack: bool| {
            let mut builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4);
            builder = if syn { builder.syn() } else { builder };
            builder = if ack { builder.ack(9) } else { builder };
            let mut bytes = Vec::new();
            builder.write(&mut bytes, b"").unwrap();
            Whole::of(&Packet { length: bytes.len() as u32, bytes, ..datagram(7) }).unwrap().begins()
        };
        assert!(tcp(true, false) && !tcp(true, true) && !tcp(false, true));
        assert!(!Whole::of(&datagram(7)).unwrap().begins());
    }

    #[test]
    fn fragments_and_halves_are_not_sent() {
        let mut fragment = datagram(7);
        fragment.bytes[6] = 0x20;
        assert!(Whole::of(&fragment).is_err());
        assert!(Whole::of(&Packet { bytes: vec![0x45; 12], ..datagram(7) }).is_err());
    }
}

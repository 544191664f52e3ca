//! The packets of a conversation in nftables' trace: which part each has in it, and which one was stopped.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use anyhow::{Context, Result, ensure};
use etherparse::IpNumber;

use super::{Caller, Exit, LOOPBACK, Talk, World, route};
use crate::{
    kernel::netlink::Body,
    model::PacketKind,
    sandbox::copy::{
        copied::Copied,
        listeners::Transport,
        passage::Passage,
        trace::{self, Begins, Tracer, Way},
    },
};

/// A packet in the trace.
pub(super) struct Seen {
    begins: Begins,
    /// Number of the interface by which it came.
    came_by: Option<u32>,
    is_arp: bool,
    network: Vec<u8>,
    transport: Vec<u8>,
    pub(super) told: Vec<Body>,
}

/// What a packet has to do with the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Its first packet.
    First,
    /// Another one that must come through.
    Other(PacketKind),
    /// One that may come through, or not.
    Beside(PacketKind),
}

/// The packets of a conversation, as the trace shows them.
pub(in crate::sandbox::copy) struct Following<'a> {
    pub(in crate::sandbox::copy) talk: &'a Talk,
    pub(in crate::sandbox::copy) exit: Exit,
    /// The caller's port.
    pub(in crate::sandbox::copy) own_port: u16,
    pub(super) packets: Vec<Seen>,
    /// The port from which its first packet left, after everything.
    pub(super) left_from: Option<u16>,
}

impl Following<'_> {
    pub(super) fn hear(&mut self, told: Vec<(u16, Body)>) {
        for (_, body) in told.into_iter().filter(|(kind, _)| trace::is_trace(*kind)) {
            let id = trace::id(&body);
            match trace::begins(&body).zip(trace::headers(&body)) {
                Some((begins, (network, transport))) => {
                    let (network, transport) = (network.to_vec(), transport.to_vec());
                    let (is_arp, came_by) = (trace::is_arp(&body), trace::came_by(&body));
                    self.packets.push(Seen { begins, came_by, is_arp, network, transport, told: vec![body] });
                }
                // A packet's memory may be another one's later: the last is meant.
                None => {
                    let is_its = |seen: &Seen| seen.told.first().and_then(trace::id) == id;
                    let Some(at) = self.packets.iter().rposition(is_its) else { continue };
                    if trace::passed(&body) && self.kind(&self.packets[at]) == Some(Part::First) {
                        let port = trace::headers(&body).and_then(|(_, transport)| transport.get(..2));
                        self.left_from =
                            port.and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes).or(self.left_from);
                    }
                    self.packets[at].told.push(body);
                }
            }
        }
    }

    /// The trace has its first packet.
    pub(super) fn has_begun(&self) -> bool {
        self.packets.iter().any(|seen| self.kind(seen) == Some(Part::First))
    }

    /// What a packet is to the conversation; nothing where it is none of it.
    pub(super) fn kind(&self, seen: &Seen) -> Option<Part> {
        const REQUEST: u8 = 1;
        let is_out = seen.begins == Begins::Out;
        if seen.is_arp {
            let is_request = seen.network.get(7) == Some(&REQUEST);
            // Who is asked for, or who answers.
            let at = if is_request { 24..28 } else { 14..18 };
            let about = seen.network.get(at).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
            if !about.is_some_and(|about| self.is_near(about)) {
                return None;
            }
            return Some(if is_request == is_out {
                Part::Other(PacketKind::Arp)
            } else {
                Part::Beside(PacketKind::Arp)
            });
        }
        let is_v6 = seen.network.first().is_some_and(|byte| byte >> 4 == 6);
        let protocol = *seen.network.get(if is_v6 { 6 } else { 9 })?;
        let (first, second) = (seen.transport.first().copied(), seen.transport.get(1).copied());
        match IpNumber(protocol) {
            IpNumber::IPV6_ICMP if is_v6 => match (first?, is_out) {
                // The kernel asks whether others have its own addresses, too.
                (135 | 136, _) if !self.is_about_the_next(seen) => None,
                (135, true) | (136, false) => Some(Part::Other(PacketKind::Solicitation)),
                (135, false) | (136, true) => Some(Part::Beside(PacketKind::Solicitation)),
                (2, true) => Some(Part::Other(PacketKind::TooBig)),
                _ => None,
            },
            IpNumber::ICMP if !is_v6 => {
                ((first, second, is_out) == (Some(3), Some(4), true)).then_some(Part::Other(PacketKind::TooBig))
            }
            of if of.0 == self.talk.protocol() => self.of_its_own(seen),
            _ => None,
        }
    }

    /// A solicitation, or an advertisement, is about the next on the way to the other end, or on the way back; as much as is shown of
    /// the address.
    fn is_about_the_next(&self, seen: &Seen) -> bool {
        const SHOWN: usize = 12;
        let source = seen.network.get(8..24).unwrap_or_default();
        let target = seen.transport.get(8..8 + SHOWN);
        let is_it = |address: IpAddr| matches!(address, IpAddr::V6(v6) if target == v6.octets().get(..SHOWN));
        source.iter().any(|byte| *byte != 0) && self.near().any(is_it)
    }

    /// Whoever is next on the way to the other end, or on the way back.
    fn near(&self) -> impl Iterator<Item = IpAddr> {
        let back = match &self.talk.from {
            Caller::Behind { source, .. } => Some(source.ip()),
            Caller::Here { .. } => None,
        };
        [self.exit.gateway, Some(self.exit.to.ip()), back].into_iter().flatten()
    }

    fn is_near(&self, address: IpAddr) -> bool {
        self.near().any(|near| near == address)
    }

    fn of_its_own(&self, seen: &Seen) -> Option<Part> {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        let port = |at: usize| Some(u16::from_be_bytes(seen.transport.get(at..at + 2)?.try_into().ok()?));
        let (from, to) = (port(0)?, port(2)?);
        let theirs = [self.talk.to.port(), self.exit.to.port()];
        let comes_from_beyond = seen.begins == Begins::In && seen.came_by == Some(self.exit.index);
        // Both may have the same port.
        let is_forth = theirs.contains(&to) && (from == self.own_port || !theirs.contains(&from)) && {
            !(comes_from_beyond && self.exit.index != LOOPBACK && !self.comes_by(self.exit.index))
        };
        if !is_forth {
            // Of an earlier conversation something may come late.
            let is_to_it = to == self.own_port || self.left_from.is_some_and(|port| port == to);
            return (theirs.contains(&from) && is_to_it).then_some(Part::Other(PacketKind::Answer));
        }
        let flags = seen.transport.get(13).copied().unwrap_or(0);
        let is_first = self.talk.transport == Transport::Udp || flags & (SYN | ACK) == SYN;
        Some(if is_first { Part::First } else { Part::Other(PacketKind::Segment) })
    }

    /// Who begins is behind that interface.
    fn comes_by(&self, of: u32) -> bool {
        matches!(self.talk.from, Caller::Behind { index, .. } if index == of)
    }

    /// The first packet of it that was stopped, and its trace.
    pub(super) fn stopped(&self) -> Option<(Option<PacketKind>, &[Body])> {
        self.packets.iter().filter(|seen| seen.told.iter().any(trace::drops)).find_map(|seen| {
            match self.kind(seen)? {
                Part::First => Some((None, seen.told.as_slice())),
                Part::Other(kind) => Some((Some(kind), seen.told.as_slice())),
                Part::Beside(_) => None,
            }
        })
    }

    /// The same of those that may be.
    pub(super) fn stopped_beside(&self) -> Option<(Option<PacketKind>, &[Body])> {
        self.packets.iter().filter(|seen| seen.told.iter().any(trace::drops)).find_map(|seen| {
            match self.kind(seen)? {
                Part::Beside(kind) => Some((Some(kind), seen.told.as_slice())),
                _ => None,
            }
        })
    }

    /// Where the first packet went to, after everything.
    pub(super) fn elsewhere(&self, worlds: &HashMap<u32, Rc<World>>) -> Result<Option<Exit>> {
        let firsts = self.packets.iter().filter(|seen| self.kind(seen) == Some(Part::First));
        let Some(passed) =
            firsts.flat_map(|seen| &seen.told).find(|body| trace::passed(body) && trace::headers(body).is_some())
        else {
            return Ok(None);
        };
        let to = self.destination(std::slice::from_ref(passed));
        let (Some(to), Some(index)) = (to, trace::leaves_by(passed)) else { return Ok(None) };
        if (index, to) == (self.exit.index, self.exit.to) {
            return Ok(Some(self.exit));
        }
        ensure!(
            index == LOOPBACK || worlds.contains_key(&index),
            "the rules send it by an interface that is not in the copy"
        );
        // By which gateway is a question of the routes there.
        let gateway = if index == LOOPBACK { None } else { route::gateway_of(to, index)? };
        Ok(Some(Exit { index, gateway, to }))
    }

    /// Where a packet comes from and where it goes, by the last headers in its trace.
    fn ends(&self, told: &[Body]) -> Option<[SocketAddr; 2]> {
        let (network, transport) = told.iter().rev().find_map(trace::headers)?;
        let is_v4 = self.talk.to.is_ipv4();
        let end = |v4: usize, v6: usize, port: usize| {
            let address = if is_v4 {
                <[u8; 4]>::try_from(network.get(v4..v4 + 4)?).ok().map(IpAddr::from)
            } else {
                <[u8; 16]>::try_from(network.get(v6..v6 + 16)?).ok().map(IpAddr::from)
            };
            let port = transport.get(port..port + 2)?.try_into().ok().map(u16::from_be_bytes);
            Some(SocketAddr::new(address?, port?))
        };
        Some([end(12, 8, 0)?, end(16, 24, 2)?])
    }

    /// Where a packet goes.
    pub(super) fn destination(&self, told: &[Body]) -> Option<SocketAddr> {
        self.ends(told).map(|[_, to]| to)
    }

    /// The other end as a packet has it.
    pub(super) fn other_end(&self, packet: Option<PacketKind>, told: &[Body]) -> Option<SocketAddr> {
        let [from, to] = self.ends(told)?;
        match packet {
            None | Some(PacketKind::Segment) => Some(to),
            Some(PacketKind::Answer) => Some(from),
            Some(_) => None,
        }
    }

    /// The address from which its first packet leaves, after everything.
    pub(super) fn leaves_as(&self) -> Option<IpAddr> {
        let firsts = self.packets.iter().filter(|seen| self.kind(seen) == Some(Part::First));
        let passed =
            firsts.flat_map(|seen| &seen.told).find(|body| trace::passed(body) && trace::headers(body).is_some())?;
        self.ends(std::slice::from_ref(passed)).map(|[from, _]| from.ip())
    }

    /// The way of the first packet.
    pub(super) fn first_way(&self, tracer: &Tracer, copied: &Copied) -> Result<Way> {
        let first = self.packets.iter().find(|seen| self.kind(seen) == Some(Part::First));
        tracer.follow(&copied.rules, &first.context("the packet was not seen in the copy")?.told)
    }

    /// Which packet of it is stopped on that way, where it is not told of.
    pub(super) fn kind_at(&self, passage: Passage) -> Option<PacketKind> {
        let is_answered =
            self.packets.iter().any(|seen| matches!(self.kind(seen), Some(Part::Other(PacketKind::Answer))));
        match (self.talk.passage(), passage) {
            (Passage::Out, Passage::In) => Some(PacketKind::Answer),
            (Passage::Through, _) => is_answered.then_some(PacketKind::Answer),
            _ => is_answered.then_some(PacketKind::Segment),
        }
    }
}

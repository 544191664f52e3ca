//! What a change lets through beside what it is for: conversations that nobody has asked for, held before and after it.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;

use super::{Asked, View};
use crate::{
    model::{Origin, Packet, PacketKind, Probe, ProbeDirection as Direction},
    sandbox::copy::{Caller, Held, Talk, Transport},
};

/// A user whom most hosts have, and another one.
const NOBODY: u32 = 65_534;
/// Somebody else's addresses: of networks for documentation.
const OTHERS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 77)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 77)),
];
/// Destinations for which all probes are made, and interfaces by which they come.
const MAX_DESTINATIONS: usize = 3;
const MAX_LINKS: usize = 4;
/// More of them take too long.
const MAX_PROBES: usize = 64;

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Known(Reach),
    Unknown,
}

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Its first packet is stopped.
    Closed,
    /// The first packet gets there, and something behind it is stopped: datagrams and SYNs of anybody get there, too.
    OneWay,
    /// The conversation completes.
    Open,
}

impl Reach {
    fn of(held: &Held) -> Self {
        match held {
            Held::Completed | Held::ByKnown(_) => Self::Open,
            Held::Stopped(stop) => match stop.packet {
                // Who has no neighbour sends nothing.
                None | Some(PacketKind::Solicitation | PacketKind::Arp) => Self::Closed,
                Some(PacketKind::Answer | PacketKind::Segment | PacketKind::TooBig) => Self::OneWay,
            },
        }
    }
}

/// Probes, and how to make each of them.
pub(super) struct Probes(Vec<(Probe, Template)>);

/// A conversation that can be held several times.
struct Template {
    transport: Transport,
    to: SocketAddr,
    from: From,
}

enum From {
    Here { uid: u32, gid: u32, groups: Vec<u32>, mark: u32 },
    Behind { index: u32, source: SocketAddr },
}

impl Probes {
    /// For what is to get through.
    pub(super) fn of(asked: &Asked<'_>, view: &View) -> Self {
        let mut all = Vec::new();
        let mut seen = Vec::new();
        let stopped = asked.packets.iter().filter(|(_, rule)| rule.is_some());
        for (packet, rule) in stopped {
            let Some((transport, address, port)) = packet.to() else { continue };
            let key = (transport, address.is_ipv6(), port);
            let to = SocketAddr::new(address, port);
            let is_another = seen.contains(&key);
            if !is_another && seen.len() >= MAX_DESTINATIONS {
                continue;
            }
            let transport = if transport == "tcp" { Transport::Tcp } else { Transport::Udp };
            let mut probes = Made { transport, all: &mut all };
            if is_another {
                probes.through_to(view, packet, to);
                continue;
            }
            seen.push(key);
            probes.beside(asked, view, packet, to);
            // Rules may be for both families, and what is done about them, too.
            let other_family = (key.0, !key.1, port);
            let are_both = rule.as_ref().is_some_and(|rule| rule.family == "inet" || rule.statement.is_some());
            if are_both
                && !asked.packets.iter().any(|(packet, _)| {
                    packet.to().is_some_and(|(transport, to, port)| (transport, to.is_ipv6(), port) == other_family)
                })
            {
                probes.outside_in(view, !to.is_ipv6(), port);
            }
        }
        Self(all)
    }
}

/// Probes of one protocol as they are made.
struct Made<'a> {
    transport: Transport,
    all: &'a mut Vec<(Probe, Template)>,
}

impl Made<'_> {
    fn add(&mut self, direction: Direction, to: SocketAddr, user: Option<u32>, by: Option<String>, from: From) {
        if self.all.len() >= MAX_PROBES {
            return;
        }
        let transport = self.transport;
        let probe = Probe {
            direction,
            transport: if transport == Transport::Tcp { "tcp" } else { "udp" }.to_owned(),
            address: to.ip(),
            port: to.port(),
            user,
            interface: by,
            is_one_way: false,
        };
        self.all.push((probe, Template { transport, to, from }));
    }

    /// The same to another destination, to another port or by another user; and from outside.
    fn beside(&mut self, asked: &Asked<'_>, view: &View, packet: &Packet, to: SocketAddr) {
        let (v6, port) = (to.is_ipv6(), to.port());
        let is_asked = |to: SocketAddr| {
            asked.packets.iter().any(|(packet, _)| {
                packet.to().is_some_and(|(_, address, port)| (address, port) == (to.ip(), to.port()))
            })
        };
        let elsewhere = SocketAddr::new(if v6 { OTHERS[1] } else { OTHERS[0] }, port);
        let other_port = SocketAddr::new(to.ip(), if port == u16::MAX { 1 } else { port + 1 });
        match &packet.origin {
            Origin::Socket { uid, gid, groups, mark, .. } => {
                let same = || From::Here { uid: *uid, gid: *gid, groups: groups.clone(), mark: *mark };
                for other in [elsewhere, other_port].into_iter().filter(|to| !is_asked(*to)) {
                    self.add(Direction::Egress, other, Some(*uid), None, same());
                }
                let user = if *uid == NOBODY { 0 } else { NOBODY };
                let other = From::Here { uid: user, gid: user, groups: Vec::new(), mark: 0 };
                self.add(Direction::Egress, to, Some(user), None, other);
            }
            Origin::Interface { index } => {
                let Some((address, _)) = packet.from() else { return };
                let index = view.entrance(*index).unwrap_or(*index);
                for other in [elsewhere, other_port].into_iter().filter(|to| !is_asked(*to)) {
                    let source = SocketAddr::new(address, 0);
                    self.add(Direction::Forward, other, None, view.link(index), From::Behind { index, source });
                }
                let own = From::Here { uid: 0, gid: 0, groups: Vec::new(), mark: 0 };
                self.add(Direction::Egress, to, Some(0), None, own);
            }
        }
        self.through_to(view, packet, to);
        self.outside_in(view, v6, port);
    }

    /// Whoever this host forwards for may want to go there, too; beside who sends this packet.
    fn through_to(&mut self, view: &View, packet: &Packet, to: SocketAddr) {
        if !view.forwards(to.is_ipv6()) {
            return;
        }
        let own = packet.from().map(|(address, _)| address);
        let has_come = matches!(packet.origin, Origin::Interface { .. });
        for (by, _, source) in links(view, to.is_ipv6()) {
            if !has_come || own != Some(source) {
                let from = From::Behind { index: by, source: SocketAddr::new(source, 0) };
                self.add(Direction::Forward, to, None, view.link(by), from);
            }
        }
    }

    /// To this host itself, and through it.
    fn outside_in(&mut self, view: &View, v6: bool, port: u16) {
        let links = links(view, v6);
        for (index, own, neighbour) in &links {
            let from = From::Behind { index: *index, source: SocketAddr::new(*neighbour, 0) };
            self.add(Direction::Ingress, SocketAddr::new(*own, port), None, view.link(*index), from);
        }
        if view.forwards(v6) {
            for (by, _, source) in &links {
                for (_, _, beyond) in links.iter().filter(|(to, ..)| to != by) {
                    let from = From::Behind { index: *by, source: SocketAddr::new(*source, 0) };
                    self.add(Direction::Forward, SocketAddr::new(*beyond, port), None, view.link(*by), from);
                }
            }
        }
    }
}

/// Interfaces, each with an own address and whoever is there.
fn links(view: &View, v6: bool) -> Vec<(u32, IpAddr, IpAddr)> {
    view.links(v6).into_iter().take(MAX_LINKS).collect()
}

impl Probes {
    /// What becomes of each of them now. What comes from outside and was not open before is tried with more
    /// patience.
    pub(super) fn tried(&self, view: &mut View, asked: &Asked<'_>, before: Option<&Outcomes>) -> Result<Outcomes> {
        let one = |(at, (probe, template)): (usize, &(Probe, Template))| {
            asked.goes_on()?;
            // What comes from outside must be known.
            let was_open = before.is_some_and(|before| before.0.get(at) == Some(&Outcome::Known(Reach::Open)));
            let is_patient = !was_open && probe.direction != Direction::Egress;
            let held = template
                .held(view, asked, false)
                .or_else(|error| if is_patient { template.held(view, asked, true) } else { Err(error) });
            Ok(match held {
                Ok(reach) => Outcome::Known(reach),
                Err(why) => {
                    log::debug!("a probe came to nothing: {why:#}");
                    Outcome::Unknown
                }
            })
        };
        Ok(Outcomes(self.0.iter().enumerate().map(one).collect::<Result<_>>()?))
    }

    /// Those of which these are the outcomes before and after.
    fn those(&self, before: &Outcomes, after: &Outcomes, wanted: impl Fn(Outcome, Outcome) -> bool) -> Vec<Probe> {
        let all = self.0.iter().zip(before.0.iter().zip(&after.0));
        let all = all.filter(|(_, (before, after))| wanted(**before, **after));
        let is_one_way = |after| after == Outcome::Known(Reach::OneWay);
        all.map(|((probe, _), (_, after))| Probe { is_one_way: is_one_way(*after), ..probe.clone() }).collect()
    }

    /// Those that get further now.
    pub(super) fn opened(&self, before: &Outcomes, after: &Outcomes) -> Vec<Probe> {
        self.those(before, after, |before, after| match (before, after) {
            (Outcome::Known(before), Outcome::Known(after)) => after > before,
            _ => false,
        })
    }

    /// Those that may get further now.
    pub(super) fn maybe_opened(&self, before: &Outcomes, after: &Outcomes) -> Vec<Probe> {
        self.those(before, after, |before, after| match (before, after) {
            (Outcome::Known(before), Outcome::Known(after)) => after > before,
            (Outcome::Unknown, Outcome::Known(after)) => after > Reach::Closed,
            (Outcome::Known(before), Outcome::Unknown) => before < Reach::Open,
            (Outcome::Unknown, Outcome::Unknown) => false,
        })
    }

    /// Those of which it is known what became of them.
    pub(super) fn known(&self, before: &Outcomes, after: &Outcomes) -> Vec<Probe> {
        self.those(before, after, |before, after| ![before, after].contains(&Outcome::Unknown))
    }
}

/// What became of probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcomes(Vec<Outcome>);

impl Template {
    /// How far the conversation gets.
    fn held(&self, view: &mut View, asked: &Asked<'_>, is_patient: bool) -> Result<Reach> {
        let from = match &self.from {
            From::Here { uid, gid, groups, mark } => Caller::Here {
                uid: *uid,
                gid: *gid,
                groups: groups.clone(),
                mark: *mark,
                cgroup: asked.cgroup.filter(|_| view.asks_for_cgroups()).map(File::try_clone).transpose()?,
                source: None,
            },
            From::Behind { index, source } => Caller::Behind { index: *index, source: *source },
        };
        let talk = Talk {
            transport: self.transport,
            to: self.to,
            from,
            payload: vec![0; 12],
            own_port: None,
            is_probe: !is_patient,
        };
        Ok(Reach::of(&view.hold(talk, asked.is_later)?))
    }
}

//! What a change lets through beside what it is for: conversations that nobody has asked for, held before and after it.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;

use super::{Asked, View};
use crate::{
    model::{Origin, Packet, Probe, ProbeDirection as Direction},
    sandbox::copy::{Caller, Talk, Transport},
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

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    Closed,
    /// The outcome is not known.
    Unknown,
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
        for packet in stopped.map(|(packet, _)| packet) {
            let Some((transport, address, port)) = packet.to() else { continue };
            let key = (transport, address.is_ipv6(), port);
            if seen.contains(&key) || seen.len() >= MAX_DESTINATIONS {
                continue;
            }
            seen.push(key);
            let transport = if transport == "tcp" { Transport::Tcp } else { Transport::Udp };
            Self::beside(asked, view, packet, transport, SocketAddr::new(address, port), &mut all);
        }
        Self(all)
    }

    fn beside(
        asked: &Asked<'_>,
        view: &View,
        packet: &Packet,
        transport: Transport,
        to: SocketAddr,
        all: &mut Vec<(Probe, Template)>,
    ) {
        let (v6, port) = (to.is_ipv6(), to.port());
        let mut add = |direction: Direction, to: SocketAddr, user: Option<u32>, by: Option<String>, from: From| {
            let probe = Probe {
                direction,
                transport: if transport == Transport::Tcp { "tcp" } else { "udp" }.to_owned(),
                address: to.ip(),
                port: to.port(),
                user,
                interface: by,
            };
            all.push((probe, Template { transport, to, from }));
        };
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
                    add(Direction::Egress, other, Some(*uid), None, same());
                }
                let user = if *uid == NOBODY { 0 } else { NOBODY };
                let other = From::Here { uid: user, gid: user, groups: Vec::new(), mark: 0 };
                add(Direction::Egress, to, Some(user), None, other);
            }
            Origin::Interface { index } => {
                let Some((address, _)) = packet.from() else { return };
                let index = view.entrance(*index).unwrap_or(*index);
                for other in [elsewhere, other_port].into_iter().filter(|to| !is_asked(*to)) {
                    let source = SocketAddr::new(address, 0);
                    add(Direction::Forward, other, None, view.link(index), From::Behind { index, source });
                }
                let own = From::Here { uid: 0, gid: 0, groups: Vec::new(), mark: 0 };
                add(Direction::Egress, to, Some(0), None, own);
            }
        }
        // From outside: to this host itself, and through it.
        let links: Vec<(u32, IpAddr, IpAddr)> = view.links(v6).into_iter().take(MAX_LINKS).collect();
        for (index, own, neighbour) in &links {
            let from = From::Behind { index: *index, source: SocketAddr::new(*neighbour, 0) };
            add(Direction::Ingress, SocketAddr::new(*own, port), None, view.link(*index), from);
        }
        if view.forwards(v6) {
            // Whoever this host forwards for may want to go there, too.
            if matches!(packet.origin, Origin::Socket { .. }) {
                for (by, _, source) in &links {
                    let from = From::Behind { index: *by, source: SocketAddr::new(*source, 0) };
                    add(Direction::Forward, to, None, view.link(*by), from);
                }
            }
            for (by, _, source) in &links {
                for (_, _, beyond) in links.iter().filter(|(to, ..)| to != by) {
                    let from = From::Behind { index: *by, source: SocketAddr::new(*source, 0) };
                    add(Direction::Forward, SocketAddr::new(*beyond, port), None, view.link(*by), from);
                }
            }
        }
    }

    /// What becomes of each of them now. What comes from outside and was not open before is tried with more
    /// patience.
    pub(super) fn tried(&self, view: &mut View, asked: &Asked<'_>, before: Option<&Outcomes>) -> Result<Outcomes> {
        let one = |(at, (probe, template)): (usize, &(Probe, Template))| {
            asked.goes_on()?;
            // What comes from outside must be known.
            let was_open = before.is_some_and(|before| before.0.get(at) == Some(&Outcome::Open));
            let is_patient = !was_open && probe.direction != Direction::Egress;
            let held = template
                .held(view, asked, false)
                .or_else(|error| if is_patient { template.held(view, asked, true) } else { Err(error) });
            Ok(match held {
                Ok(true) => Outcome::Open,
                Ok(false) => Outcome::Closed,
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
        all.map(|((probe, _), _)| probe.clone()).collect()
    }

    /// Those that were closed, and are open now.
    pub(super) fn opened(&self, before: &Outcomes, after: &Outcomes) -> Vec<Probe> {
        self.those(before, after, |before, after| (before, after) == (Outcome::Closed, Outcome::Open))
    }

    /// Those that may have been closed, and may be open now.
    pub(super) fn maybe_opened(&self, before: &Outcomes, after: &Outcomes) -> Vec<Probe> {
        self.those(before, after, |before, after| {
            matches!(
                (before, after),
                (Outcome::Closed, Outcome::Open | Outcome::Unknown) | (Outcome::Unknown, Outcome::Open)
            )
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
    /// The conversation completes.
    fn held(&self, view: &mut View, asked: &Asked<'_>, is_patient: bool) -> Result<bool> {
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
        Ok(view.hold(talk, asked.is_later)?.is_completed())
    }
}

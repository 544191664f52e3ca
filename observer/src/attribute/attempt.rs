//! Makes an attempt of a dropped packet: what is known of it at once, by itself and by its sender.

use std::{
    net::IpAddr,
    task::{Poll, ready},
};

use observer_ebpf::{
    abi::{Counted, DropKey},
    logic::packet::ethertype,
};
use uuid::Uuid;

use super::{
    Attribution,
    answers::Search,
    owner::{Found, Who},
    sender::Credentials,
};
use crate::{
    model::{
        Attempt, Background, Dropped, Endpoints, Family, FlowEnd, HELPER, Hook, OwnerKnown, PacketKind, Process,
        RuleSource, SPARE, Sender, Share,
    },
    privilege::HostQueries,
};

impl<E: HostQueries> Attribution<E> {
    /// See [`Owners::oriented`](super::owner::Owners::oriented).
    pub(crate) fn oriented(&mut self, dropped: Dropped) -> Dropped {
        self.owners.oriented(dropped)
    }

    /// Who sent a packet, and where to; and on whose account more is looked up. What decided is not known yet, and under which
    /// incident it is reported neither. `None` for a packet of another namespace that was coming in here, whose drop is no egress, and
    /// for what another observer's helper sends, which is nobody's block. Pending where the sender is to be looked for again, as
    /// `search` says; with `is_last` it is the last time.
    pub(crate) fn attempt(
        &mut self,
        dropped: &Dropped,
        search: &mut Search,
        is_last: bool,
    ) -> Poll<Option<(Attempt, Share)>> {
        if !ready!(self.owners.is_forwarded(dropped, search, is_last)) {
            return Poll::Ready(None);
        }
        let found = ready!(self.owners.owner(dropped, search, is_last));
        Poll::Ready(self.attempted(dropped, found))
    }

    /// The same of a sender that was found, or will not be.
    fn attempted(&mut self, dropped: &Dropped, found: Option<Found>) -> Option<(Attempt, Share)> {
        let end = self.clock.wall(dropped.boot_ns);
        let start = self.clock.wall(dropped.first_ns);
        let kernel = dropped.by_kernel();
        let socket = dropped.socket;
        let credentials = match socket {
            Some(socket) if !kernel => Credentials { uid: socket.uid, cgroup: socket.cgroup },
            _ => Credentials::default(),
        };
        let mut sender = self.sender(found, credentials, dropped.boot_ns);
        if sender.process.as_ref().is_some_and(is_named_as_a_helper)
            && sender.process.as_ref().is_some_and(|process| self.owners.queries.is_a_helper(process.pid))
        {
            return None;
        }
        // What comes to a socket that was found is waited for, whoever else is not known.
        let is_of_a_socket = dropped.packet == Some(PacketKind::Answer) && socket.is_none() && found.is_some();
        let background = Background::of(dropped).filter(|_| !is_of_a_socket);
        let own = self.is_own(&sender);
        sender.known = sender.known.or(kernel.then_some(OwnerKnown::Kernel));
        let (source, destination) = ends(dropped);
        let cookie = dropped.rule.map_or(0, |answer| answer.netns_cookie);
        let share = self.places.share(dropped.netns, cookie, socket.and_then(|socket| socket.uid));
        let attempt = Attempt {
            incident: Uuid::nil(),
            sender,
            start,
            end,
            packets: dropped.packets,
            bytes: dropped.bytes,
            family: family(dropped),
            protocol: dropped.protocol,
            source,
            destination,
            cause: Some(dropped.cause),
            verdict: None,
            decided_by: None,
            rule: None,
            rule_name: None,
            finding: None,
            drop_reason: self.reasons.name(dropped.reason).map(str::to_owned),
            hook: dropped.hook,
            interface: dropped.interface.clone(),
            nothing_left: self.unsent.nothing_left(dropped),
            packet: dropped.packet,
            background: background.or(own.then_some(Background::SelfTest)),
            encapsulated: dropped.encapsulated,
            coarse: dropped.coarse,
            netns: (dropped.netns != 0).then_some(dropped.netns),
            entering: None,
            is_elsewhere: self.places.is_other(dropped.netns),
            origin_netns: dropped.origin_netns,
            socket_inode: socket.and_then(|socket| socket.inode),
            wait: None,
            profiles: Vec::new(),
        };
        Some((attempt, share))
    }

    /// Another observer's proof, or what it replays: its helper sends nothing else, in namespaces of its own.
    /// It has ended, or the helper would have said so: what is left of it must be root's, of the host's own namespaces.
    fn is_own(&self, sender: &Sender) -> bool {
        let is_helper = |process: &Process| {
            is_named_as_a_helper(process)
                && process.executable.is_some()
                && process.executable == self.identity.executable
        };
        let is_roots = sender.user.as_ref().is_some_and(|user| user.id == 0);
        is_roots && sender.namespaces.is_none() && sender.process.as_ref().is_some_and(is_helper)
    }

    /// True while what was reported of the first packet is so for those that were counted beyond: its sender is named, and runs
    /// the same program, and its rule was seen.
    pub fn still_holds(&mut self, pattern: &Attempt, counted: &Counted) -> bool {
        // Which rule it was, is not in the key.
        if pattern.rule.as_ref().is_some_and(|rule| rule.source == RuleSource::Replay) {
            return false;
        }
        self.owners.catch_up();
        // The kernel runs no other program.
        let Some(process) = &pattern.sender.process else { return pattern.sender.known.is_some() };
        let Some(id) = self.owners.living(process.pid, counted.last_ns) else { return false };
        let ran = |boot_ns| Some(self.owners.processes.get(id)?.ran_at(boot_ns)?.since_ns);
        self.identity.process_id(id) == process.entity_id && ran(counted.first_ns) == ran(counted.last_ns)
    }

    /// Packets that were counted beyond the one that `pattern` reports: alike in everything but what only a single packet has.
    pub fn again(&mut self, pattern: Attempt, key: &DropKey, counted: &Counted) -> Attempt {
        let mut attempt = pattern;
        // Other sockets of the process may be among them.
        if key.cookie == 0 {
            attempt.socket_inode = None;
        }
        attempt.start = self.clock.wall(counted.first_ns);
        attempt.end = self.clock.wall(counted.last_ns);
        (attempt.packets, attempt.bytes) = (counted.packets, counted.bytes);
        attempt.nothing_left = false;
        let is_forwarded = attempt.origin_netns.is_some() || attempt.hook.is_some_and(Hook::is_of_forwarded);
        // Of a local sender the key holds no source port.
        if let Some(source) = attempt.source.as_mut().filter(|_| !is_forwarded) {
            source.port = None;
            source.nat = source.nat.map(|(ip, _)| (ip, None));
        }
        if let Some(process) = &mut attempt.sender.process {
            process.thread = None;
        }
        attempt
    }

    /// The namespace that the sender's socket is in, where it is known.
    pub(crate) fn home(&mut self, attempt: &Attempt) -> Option<u32> {
        match (attempt.sender.known, attempt.origin_netns) {
            (_, Some(origin)) => Some(origin),
            (Some(OwnerKnown::Flow), None) => {
                let (source, netns) = attempt.source.zip(attempt.netns)?;
                // Two that have the address make no answer.
                match *self.owners.homes(source.ip, netns) {
                    [only] => Some(only),
                    _ => None,
                }
            }
            _ => attempt.netns,
        }
    }
}

fn is_named_as_a_helper(process: &Process) -> bool {
    [HELPER, SPARE].contains(&process.name.as_str())
}

/// Where from and where to, as it was asked for; and as the packet has it, where that differs.
fn ends(dropped: &Dropped) -> (Option<FlowEnd>, Option<FlowEnd>) {
    let translated = dropped.endpoints.filter(|_| dropped.original.is_some());
    let end = |of: fn(Endpoints) -> (IpAddr, Option<u16>)| {
        let (ip, port) = of(dropped.original.or(dropped.endpoints)?);
        Some(FlowEnd { ip, port, nat: translated.map(of).filter(|other| *other != (ip, port)) })
    };
    (end(|of| (of.source, of.source_port)), end(|of| (of.destination, of.destination_port)))
}

fn family(dropped: &Dropped) -> Option<Family> {
    match dropped.endpoints {
        Some(endpoints) if endpoints.destination.is_ipv4() => Some(Family::Ipv4),
        Some(_) => Some(Family::Ipv6),
        None if dropped.ethertype == ethertype::ARP => Some(Family::Arp),
        None if dropped.coarse && dropped.ethertype == ethertype::IPV4 => Some(Family::Ipv4),
        None if dropped.coarse && dropped.ethertype == ethertype::IPV6 => Some(Family::Ipv6),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(destination: [u8; 4], port: u16) -> Endpoints {
        Endpoints {
            source: IpAddr::from([10, 0, 0, 1]),
            destination: IpAddr::from(destination),
            protocol: 6,
            source_port: Some(40_000),
            destination_port: Some(port),
        }
    }

    #[test]
    fn where_to_is_what_was_asked_for() {
        let mut dropped = Dropped { endpoints: Some(endpoints([10, 0, 0, 2], 80)), ..Dropped::example() };
        let plain = FlowEnd { ip: IpAddr::from([10, 0, 0, 2]), port: Some(80), nat: None };
        assert_eq!(ends(&dropped).1, Some(plain));
        dropped.original = Some(endpoints([203, 0, 113, 10], 443));
        let (source, destination) = ends(&dropped);
        let asked = FlowEnd { ip: IpAddr::from([203, 0, 113, 10]), port: Some(443), nat: Some((plain.ip, Some(80))) };
        assert_eq!(destination, Some(asked));
        assert_eq!(source.unwrap().nat, None, "it was not translated");
        assert_eq!(ends(&Dropped::example()), (None, None));
    }

    #[test]
    fn the_family_is_what_the_packet_proves() {
        let of = |ethertype, coarse| family(&Dropped { ethertype, coarse, ..Dropped::example() });
        assert_eq!(of(ethertype::ARP, false), Some(Family::Arp));
        assert_eq!(of(ethertype::IPV6, true), Some(Family::Ipv6));
        assert_eq!(of(ethertype::IPV4, false), None, "its headers could not be read");
    }
}

//! Makes an event of a dropped packet: everything that is known, each under its field.

use observer_ebpf::logic::packet::ethertype;
use uuid::Uuid;

use super::{
    attribute::{Attributor, Eyes, Found},
    host::{Clock, Identity},
    redact, unit,
    users::Users,
};
use crate::{
    model::{
        Action, Ancestor, Background, Cause, Destination, Dropped, ECS_VERSION, Ecs, Egress, Event, EventMeta, Hook,
        Kind, Network, Parent, Process, SCHEMA, Source, User, transport_name,
    },
    probe::layout::Reasons,
};

/// Name space of incident ids.
const INCIDENTS: Uuid = Uuid::from_u128(0x6f62_7365_7276_6572_2069_6e63_6964_656e);

/// Turns dropped packets into events.
pub struct Assembler<E> {
    identity: Identity,
    reasons: Reasons,
    attributor: Attributor<E>,
    users: Users,
    clock: Clock,
    redact: bool,
    run: Uuid,
    events: u64,
}

impl<E: Eyes> Assembler<E> {
    /// `redact` masks secrets in command lines.
    pub fn new(identity: Identity, reasons: Reasons, eyes: E, redact: bool) -> Self {
        Self {
            run: identity.run_id(),
            events: 0,
            identity,
            reasons,
            attributor: Attributor::new(eyes),
            users: Users::default(),
            clock: Clock::default(),
            redact,
        }
    }

    fn event_id(&mut self) -> Uuid {
        self.events += 1;
        Uuid::new_v5(&self.run, &self.events.to_be_bytes())
    }

    /// This host.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Gives back who answered questions.
    pub fn into_eyes(self) -> E {
        self.attributor.into_eyes()
    }

    /// One event for one packet.
    pub fn assemble(&mut self, dropped: &Dropped) -> Event {
        let timestamp = self.clock.wall(dropped.boot_ns);
        let found = self.attributor.owner(dropped);
        let socket = dropped.socket;
        let cgroup = found
            .as_ref()
            .and_then(|found| found.facts.as_ref()?.cgroup.clone())
            .or_else(|| self.attributor.cgroup_path(socket?.cgroup?));
        let unit = cgroup.as_deref().and_then(unit::unit);
        let process = found.as_ref().map(|found| self.process(found));
        let user =
            socket.and_then(|socket| socket.uid).map(|uid| self.user(uid, found.as_ref().and_then(|found| found.euid)));
        let drop_reason = self.reasons.name(dropped.reason).map(str::to_owned);
        let destination = dropped.endpoints.map(|endpoints| Destination {
            ip: endpoints.destination,
            port: endpoints.ports().map(|(_, destination)| destination),
        });
        let transport = dropped.endpoints.map(|endpoints| transport_name(endpoints.protocol));
        let cause = cause_name(dropped.cause);
        let hook = dropped.hook.map(hook_name);
        Event {
            timestamp,
            ecs: Ecs { version: ECS_VERSION },
            agent: self.identity.agent.clone(),
            host: self.identity.host.clone(),
            event: EventMeta {
                kind: Kind::Event,
                dataset: "observer.egress",
                module: "observer",
                id: Some(self.event_id()),
                category: &["network"],
                r#type: &["connection", "denied"],
                action: Action::EgressBlocked,
                outcome: Some("success"),
                sequence: None,
                start: timestamp,
                end: timestamp,
                reason: Some(reason(dropped, drop_reason.as_deref())),
            },
            network: Network { r#type: network_type(dropped), direction: "egress", transport: transport.clone() },
            source: dropped
                .endpoints
                .map(|endpoints| Source { ip: endpoints.source, port: endpoints.ports().map(|(source, _)| source) }),
            container: cgroup.as_deref().and_then(unit::container),
            egress: Egress {
                schema: SCHEMA,
                incident: incident(
                    process.as_ref(),
                    unit.as_deref(),
                    destination.as_ref(),
                    transport.as_deref(),
                    cause,
                    hook,
                ),
                cause,
                drop_reason,
                hook,
                interface: dropped.interface.clone(),
                count: 1,
                bytes: u64::from(dropped.bytes),
                background: Background::of(dropped),
                owner: found.as_ref().map(|found| found.known),
                unit,
                cgroup,
                netns: (dropped.netns != 0).then_some(dropped.netns),
                socket_inode: socket.and_then(|socket| socket.inode),
                ancestry: found.map(ancestry).unwrap_or_default(),
            },
            destination,
            process,
            user,
        }
    }

    fn process(&mut self, found: &Found) -> Process {
        let args = found
            .facts
            .as_ref()
            .filter(|facts| !facts.args.is_empty())
            .map(|facts| if self.redact { redact::redact(&facts.args) } else { facts.args.clone() });
        let start_ns =
            found.start_ns.unwrap_or(found.start_ticks * (1_000_000_000 / procfs::ticks_per_second().max(1)));
        Process {
            pid: found.pid,
            entity_id: self.identity.process_id(found.pid, found.start_ticks),
            name: found.name.clone(),
            executable: found.facts.as_ref().and_then(|facts| facts.executable.clone()),
            command_line: args.as_ref().map(|args| args.join(" ")),
            args,
            start: Some(self.clock.wall(start_ns)),
            parent: found.parent_pid.map(|pid| Parent {
                pid,
                name: found.parents.first().filter(|parent| parent.pid == pid).map(|parent| parent.name.clone()),
            }),
        }
    }

    fn user(&mut self, uid: u32, euid: Option<u32>) -> User {
        let mut plain =
            |id: u32| User { id: id.to_string(), name: self.users.name(id).map(str::to_owned), effective: None };
        let effective = euid.filter(|euid| *euid != uid).map(|euid| Box::new(plain(euid)));
        User { effective, ..plain(uid) }
    }
}

fn ancestry(found: Found) -> Vec<Ancestor> {
    std::iter::once(Ancestor { pid: found.pid, name: found.name })
        .chain(found.parents.into_iter().map(|parent| Ancestor { pid: parent.pid, name: parent.name }))
        .collect()
}

/// The same cause gives the same id, on every run and every host: program (or unit), destination, port, protocol and,
/// until the rule is known, the place of the decision.
fn incident(
    process: Option<&Process>,
    unit: Option<&str>,
    destination: Option<&Destination>,
    transport: Option<&str>,
    cause: &str,
    hook: Option<&str>,
) -> Uuid {
    let who =
        process.map(|process| process.executable.as_deref().unwrap_or(&process.name)).or(unit).unwrap_or_default();
    let (ip, port) = destination.map_or((String::new(), String::new()), |destination| {
        (destination.ip.to_string(), destination.port.map(|port| port.to_string()).unwrap_or_default())
    });
    let parts = [who, &ip, &port, transport.unwrap_or_default(), cause, hook.unwrap_or_default()];
    Uuid::new_v5(&INCIDENTS, parts.join("\0").as_bytes())
}

fn reason(dropped: &Dropped, drop_reason: Option<&str>) -> String {
    let what = match (dropped.cause, dropped.hook) {
        (Cause::Netfilter, Some(Hook::Output)) => "a firewall rule or policy at hook output stopped it".to_owned(),
        (Cause::Netfilter, Some(Hook::Postrouting)) => {
            "a firewall rule or policy at hook postrouting stopped it".to_owned()
        }
        (Cause::Netfilter, Some(Hook::Egress)) => {
            format!("a firewall rule or policy at hook egress{} stopped it", on(dropped))
        }
        (Cause::Netfilter, None) => "a firewall rule or policy stopped it".to_owned(),
        (Cause::Cgroup, _) => "a cgroup egress program (such as systemd's IPAddressDeny=) stopped it".to_owned(),
        (Cause::Tc, _) => format!("a traffic control action{} stopped it", on(dropped)),
    };
    match drop_reason {
        Some(name) => format!("{what} ({name})"),
        None => what,
    }
}

fn on(dropped: &Dropped) -> String {
    dropped.interface.as_ref().map(|interface| format!(" on {interface}")).unwrap_or_default()
}

fn network_type(dropped: &Dropped) -> Option<&'static str> {
    match dropped.endpoints {
        Some(endpoints) if endpoints.destination.is_ipv4() => Some("ipv4"),
        Some(_) => Some("ipv6"),
        None if dropped.ethertype == ethertype::ARP => Some("arp"),
        None => None,
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Netfilter => "netfilter",
        Cause::Cgroup => "cgroup",
        Cause::Tc => "tc",
    }
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
        Hook::Egress => "egress",
    }
}

//! Makes an event of a dropped packet: everything that is known, each under its field.

use observer_ebpf::{abi::Counted, logic::packet::ethertype};
use uuid::Uuid;

use super::{
    attribute::{Attributor, Eyes, Found},
    host::{Clock, Identity},
    redact, unit,
    users::Users,
};
use crate::{
    intake::decode::text,
    model::{
        Action, Background, Cause, Degraded, Destination, Direction, Dropped, ECS_VERSION, Ecs, Egress, Endpoints,
        Event, EventMeta, Hook, Image, Kind, Namespaces, Nat, Network, Orchestrator, OwnerKnown, Parent, Process,
        ProcessNamespaces, Resource, SCHEMA, Source, Thread, User, transport_name,
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
    pub fn new(identity: Identity, reasons: Reasons, attributor: Attributor<E>, redact: bool) -> Self {
        Self {
            run: identity.run_id(),
            events: 0,
            identity,
            reasons,
            attributor,
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

    /// What made the answers worse than they could be.
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut degraded = Vec::new();
        if let Some(why) = self.attributor.failure() {
            degraded.push(Degraded {
                what: "helper".to_owned(),
                why,
                consequence: "some processes and cgroups that are older than observer were not named".to_owned(),
            });
        }
        if self.attributor.undecodable > 0 {
            degraded.push(Degraded {
                what: "processes".to_owned(),
                why: format!("{} process records could not be read", self.attributor.undecodable),
                consequence: "some processes have no executable, arguments or parents".to_owned(),
            });
        }
        degraded
    }

    /// Takes in what was told of processes meanwhile.
    pub fn catch_up(&mut self) {
        self.attributor.catch_up();
    }

    /// False for a packet of another namespace that was coming in here: its drop is no egress.
    pub fn is_egress(&mut self, dropped: &Dropped) -> bool {
        if dropped.direction == Direction::Unrouted {
            self.attributor.catch_up();
        }
        self.attributor.is_forwarded(dropped)
    }

    /// One event for one packet.
    pub fn assemble(&mut self, dropped: &Dropped) -> Event {
        let timestamp = self.clock.wall(dropped.boot_ns);
        let start = self.clock.wall(dropped.first_ns);
        let found = self.attributor.owner(dropped);
        let socket = dropped.socket;
        let kernel = dropped.by_kernel();
        let who = found.map(|found| self.describe(found, dropped.boot_ns));
        let cgroup = match &who {
            Some(who) if who.cgroup.is_some() => who.cgroup.clone(),
            _ => socket.filter(|_| !kernel).and_then(|socket| self.attributor.cgroup_path(socket.cgroup?)),
        };
        let unit = cgroup.as_deref().and_then(unit::unit);
        let user = socket
            .filter(|_| !kernel)
            .and_then(|socket| socket.uid)
            .map(|uid| self.user(uid, who.as_ref().and_then(|who| who.euid)));
        let drop_reason = self.reasons.name(dropped.reason).map(str::to_owned);
        let asked = dropped.original.or(dropped.endpoints);
        let translated = dropped.endpoints.filter(|_| dropped.original.is_some());
        let destination = asked.map(|asked| {
            let place = |endpoints: Endpoints| (endpoints.destination, endpoints.destination_port);
            let (ip, port) = place(asked);
            let nat = translated.map(place).filter(|other| *other != (ip, port)).map(|(ip, port)| Nat { ip, port });
            Destination { ip, port, nat }
        });
        let source = asked.map(|asked| {
            let place = |endpoints: Endpoints| (endpoints.source, endpoints.source_port);
            let (ip, port) = place(asked);
            let nat = translated.map(place).filter(|other| *other != (ip, port)).map(|(ip, port)| Nat { ip, port });
            Source { ip, port, nat }
        });
        let mut container = cgroup.as_deref().and_then(unit::container);
        let named = container.as_ref().and_then(|container| self.attributor.container_name(&container.id));
        let (name, pod) = named.map(|named| (named.name, named.pod)).unzip();
        if let Some(container) = &mut container {
            container.name = name;
        }
        let orchestrator = pod.flatten().map(|(namespace, name)| Orchestrator {
            r#type: "kubernetes",
            namespace,
            resource: Resource { r#type: "pod", name },
        });
        let decided = dropped.cause != Cause::Queue;
        let transport = dropped.protocol.map(transport_name);
        let cause = cause_name(dropped.cause);
        let hook = dropped.hook.map(hook_name);
        let process = who.as_ref().map(|who| who.process.clone());
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
                r#type: if decided { &["connection", "denied"] } else { &["connection", "end"] },
                action: if decided { Action::EgressBlocked } else { Action::EgressDropped },
                outcome: Some(if decided { "success" } else { "failure" }),
                sequence: None,
                start,
                end: timestamp,
                reason: Some(reason(dropped, drop_reason.as_deref())),
            },
            network: Network { r#type: network_type(dropped), direction: "egress", transport: transport.clone() },
            source,
            container,
            orchestrator,
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
                count: dropped.packets,
                bytes: dropped.bytes,
                background: Background::of(dropped),
                owner: found.map(|found| found.known).or(kernel.then_some(OwnerKnown::Kernel)),
                owner_by: found.map(|found| found.by),
                script: who.as_ref().and_then(|who| who.script.clone()),
                truncated: who.as_ref().map(|who| who.truncated.clone()).unwrap_or_default(),
                namespaces: who.as_ref().and_then(|who| who.namespaces),
                unit,
                slice: cgroup.as_deref().and_then(unit::slice),
                relay: process.as_ref().and_then(relay),
                encapsulated: dropped.encapsulated.then_some(true),
                coarse: dropped.coarse.then_some(true),
                cgroup,
                netns: (dropped.netns != 0).then_some(dropped.netns),
                origin_netns: dropped.origin_netns,
                socket_inode: socket.and_then(|socket| socket.inode),
                ancestry: found
                    .zip(process.as_ref())
                    .map(|(found, process)| self.attributor.processes.ancestry(found.id, &process.name))
                    .unwrap_or_default(),
            },
            destination,
            process,
            user,
        }
    }

    /// The event of packets that were counted beyond the one that `pattern` tells of: alike in everything but what only a
    /// single packet has.
    pub fn again(&mut self, pattern: Event, counted: &Counted) -> Event {
        let mut event = pattern;
        event.timestamp = self.clock.wall(counted.last_ns);
        event.event.start = self.clock.wall(counted.first_ns);
        event.event.end = event.timestamp;
        event.event.id = Some(self.event_id());
        event.egress.count = counted.packets;
        event.egress.bytes = counted.bytes;
        if event.egress.origin_netns.is_none() && !FORWARDED.contains(&event.egress.hook.unwrap_or_default()) {
            // Of a local sender the key holds no source port.
            if let Some(source) = &mut event.source {
                source.port = None;
                source.nat = source.nat.take().map(|nat| Nat { port: None, ..nat });
            }
        }
        if let Some(process) = &mut event.process {
            process.thread = None;
        }
        event
    }

    /// Everything that is known about the process that was found, as it was at that time.
    fn describe(&mut self, found: Found, boot_ns: u64) -> Who {
        let processes = &self.attributor.processes;
        let entry = processes.get(found.id);
        let ran = entry.and_then(|entry| entry.ran_at(boot_ns));
        let image = ran.map(|ran| std::sync::Arc::clone(&ran.image));
        // The name at the time it was bound, unless the process has run another program since.
        let (task, bound_ns) = found.bound.unzip();
        let replaced = ran.zip(bound_ns).is_some_and(|(ran, bound_ns)| ran.since_ns > bound_ns);
        let bound_name = task.filter(|_| !replaced).and_then(|task| text(&task.comm));
        let name = bound_name
            .or_else(|| Some(ran?.name.clone()))
            .or_else(|| Some(entry?.name.clone()))
            .or_else(|| text(&task?.comm));
        let parent = entry
            .and_then(|entry| entry.parent)
            .map(|id| Parent { pid: id.pid, name: processes.get(id).map(|parent| parent.name.clone()) });
        let parent = parent.or_else(|| {
            let pid = task.map(|task| task.parent_pid).filter(|pid| *pid != 0)?;
            Some(Parent { pid, name: None })
        });
        let start_ns =
            task.map(|task| task.start_ns).or_else(|| entry?.start_ns).unwrap_or_else(|| found.id.start_ns());
        let thread = task.filter(|task| task.tid != task.pid && task.tid != 0).map(|task| Thread { id: task.tid });
        let euid = task.map(|task| task.euid).or_else(|| entry?.euid);
        let namespaces = entry.and_then(|entry| namespaces(entry.namespaces));
        let cgroup_id = task.map(|task| task.cgroup).or_else(|| Some(entry?.cgroup)).filter(|id| *id != 0);
        let cgroup_path = entry.and_then(|entry| entry.cgroup_path.clone());
        let cgroup = cgroup_id.and_then(|id| self.attributor.cgroup_path(id)).or(cgroup_path);
        let image = image.as_deref();
        let args = image.filter(|image| !image.args.is_empty()).map(|image| self.arguments(image));
        Who {
            process: Process {
                pid: found.id.pid,
                entity_id: self.identity.process_id(found.id),
                name: name.unwrap_or_default(),
                executable: image.and_then(executable),
                command_line: args.as_ref().map(|args| args.join(" ")),
                args,
                start: Some(self.clock.wall(start_ns)),
                thread,
                parent,
            },
            script: image.and_then(|image| image.script.clone()),
            truncated: [
                ("process.executable", image.is_some_and(|image| image.executable_cut)),
                ("process.args", image.is_some_and(|image| image.args_cut)),
            ]
            .into_iter()
            .filter_map(|(field, cut)| cut.then_some(field))
            .collect(),
            namespaces,
            euid,
            cgroup,
        }
    }

    fn arguments(&self, image: &Image) -> Vec<String> {
        let args: Vec<String> = image.args.iter().map(str::to_owned).collect();
        if self.redact { redact::redact(&args) } else { args }
    }

    fn user(&mut self, uid: u32, euid: Option<u32>) -> User {
        let mut plain =
            |id: u32| User { id: id.to_string(), name: self.users.name(id).map(str::to_owned), effective: None };
        let effective = euid.filter(|euid| *euid != uid).map(|euid| Box::new(plain(euid)));
        User { effective, ..plain(uid) }
    }
}

/// What is known about a process.
struct Who {
    process: Process,
    script: Option<String>,
    truncated: Vec<&'static str>,
    namespaces: Option<ProcessNamespaces>,
    euid: Option<u32>,
    cgroup: Option<String>,
}

/// Hooks of forwarded packets alone.
const FORWARDED: [&str; 3] = ["forward", "prerouting", "ingress"];

/// Programs that carry a rootless container's traffic, by the name of their file.
const RELAYS: [&str; 4] = ["slirp4netns", "pasta", "pasta.avx2", "passt"];

fn relay(process: &Process) -> Option<String> {
    let file = process.executable.as_deref()?.rsplit('/').next()?;
    RELAYS.contains(&file).then(|| file.to_owned())
}

/// A path of which only the end is known begins with a mark.
fn executable(image: &Image) -> Option<String> {
    let path = image.executable.as_ref()?;
    Some(if image.executable_cut { format!("…{path}") } else { path.clone() })
}

fn namespaces(numbers: Namespaces) -> Option<ProcessNamespaces> {
    let known = |number: u32| (number != 0).then_some(number);
    let namespaces =
        ProcessNamespaces { pid: known(numbers.pid), inner_pid: known(numbers.inner_pid), user: known(numbers.user) };
    (namespaces.pid.is_some() || namespaces.user.is_some()).then_some(namespaces)
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
    let what = match dropped.cause {
        Cause::Netfilter => {
            let hook = dropped.hook.map(|hook| format!(" at hook {}", hook_name(hook))).unwrap_or_default();
            let device = match dropped.hook {
                Some(Hook::Egress | Hook::Ingress) => on(dropped),
                _ => String::new(),
            };
            format!("netfilter stopped it{hook}{device}: a firewall rule or policy")
        }
        Cause::Cgroup => "a cgroup egress program (such as systemd's IPAddressDeny=) stopped it".to_owned(),
        Cause::Tc => format!("a traffic control action{} stopped it", on(dropped)),
        Cause::Queue => format!("a queue{} was full: nobody's decision", on(dropped)),
    };
    let named = match drop_reason {
        Some(name) => format!("{what} ({name})"),
        None => what,
    };
    if dropped.coarse { format!("{named}; several destinations together, for want of room") } else { named }
}

fn on(dropped: &Dropped) -> String {
    dropped.interface.as_ref().map(|interface| format!(" on {interface}")).unwrap_or_default()
}

fn network_type(dropped: &Dropped) -> Option<&'static str> {
    match dropped.endpoints {
        Some(endpoints) if endpoints.destination.is_ipv4() => Some("ipv4"),
        Some(_) => Some("ipv6"),
        None if dropped.ethertype == ethertype::ARP => Some("arp"),
        None if dropped.coarse && dropped.ethertype == ethertype::IPV4 => Some("ipv4"),
        None if dropped.coarse && dropped.ethertype == ethertype::IPV6 => Some("ipv6"),
        None => None,
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Netfilter => "netfilter",
        Cause::Cgroup => "cgroup",
        Cause::Tc => "tc",
        Cause::Queue => "queue",
    }
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
        Hook::Egress => "egress",
        Hook::Forward => "forward",
        Hook::Prerouting => "prerouting",
        Hook::Ingress => "ingress",
    }
}

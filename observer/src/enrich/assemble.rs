//! Makes an event of a dropped packet: everything that is known, each under its field.

use std::{sync::Arc, time::Instant};

use observer_ebpf::{
    abi::{Counted, DropKey, FROM_QUEUE, RuleAnswer, UNKNOWN_RULE, UNTAKEN},
    logic::packet::ethertype,
};
use uuid::Uuid;

use super::{
    attribute::{Attributor, Eyes},
    changes::Changes,
    fixes::{self, Fixes},
    host::{Clock, Identity},
    late::Late,
    replay::Opinion,
    restored::{Await, Awaited},
    rules::{Found, Rules, wanted},
    sender::Credentials,
    unsent::Unsent,
    users::Users,
};
use crate::{
    model::{
        Action, Background, Cause, Confirmation, Decider, Degraded, Destination, Direction, Doer, Dropped, ECS_VERSION,
        Ecs, Egress, EgressRule, Endpoints, Event, EventMeta, Hook, Kind, NamedRule, Nat, Network, OwnerKnown, Process,
        Purpose, RuleSource, RulesSeen, SCHEMA, Source, Verdict, transport_name,
    },
    probe::layout::Reasons,
};

/// Flags of TCP.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Name space of incident ids.
const INCIDENTS: Uuid = Uuid::from_u128(0x6f62_7365_7276_6572_2069_6e63_6964_656e);

/// Turns dropped packets into events.
pub struct Assembler<E> {
    pub(super) identity: Identity,
    reasons: Reasons,
    pub(super) attributor: Attributor<E>,
    pub(super) rules: Rules,
    pub(super) changes: Changes,
    pub(super) late: Late,
    pub(super) fixes: Fixes,
    pub(super) awaited: Awaited,
    unsent: Unsent,
    pub(super) users: Users,
    pub(super) clock: Clock,
    pub(super) redact: bool,
    run: Uuid,
    events: u64,
}

impl<E: Eyes> Assembler<E> {
    /// `redact` masks secrets in command lines.
    pub fn new(
        identity: Identity,
        reasons: Reasons,
        attributor: Attributor<E>,
        rules: Rules,
        changes: Changes,
        tell: Await,
        redact: bool,
    ) -> Self {
        Self {
            run: identity.run_id(),
            fixes: Fixes::new(rules.allowed.finds_fixes),
            events: 0,
            identity,
            reasons,
            attributor,
            rules,
            changes,
            late: Late::default(),
            awaited: Awaited::new(tell),
            unsent: Unsent::default(),
            users: Users::default(),
            clock: Clock::default(),
            redact,
        }
    }

    pub(super) fn event_id(&mut self) -> Uuid {
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
        if let Some(why) = self.awaited.failure() {
            degraded.push(Degraded {
                what: "restored".to_owned(),
                why: format!("the kernel half could not be told of a blocked destination: {why}"),
                consequence: "it is not told when some blocked destinations work again".to_owned(),
            });
        }
        degraded
    }

    /// Rules that were named, by method.
    pub fn rules_seen(&self) -> RulesSeen {
        self.rules.summary()
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
        let kernel = dropped.by_kernel();
        let socket = dropped.socket;
        let credentials = match socket {
            Some(socket) if !kernel => Credentials { uid: socket.uid, cgroup: socket.cgroup },
            _ => Credentials::default(),
        };
        let sender = self.sender(found, credentials, dropped.boot_ns);
        let own = self.is_own(sender.process.as_ref());
        let drop_reason = self.reasons.name(dropped.reason).map(str::to_owned);
        let asked = dropped.original.or(dropped.endpoints);
        let translated = dropped.endpoints.filter(|_| dropped.original.is_some());
        let destination = asked.map(|asked| {
            let place = |endpoints: Endpoints| (endpoints.destination, endpoints.destination_port);
            let (ip, port) = place(asked);
            let nat = translated.map(place).filter(|other| *other != (ip, port)).map(|(ip, port)| Nat { ip, port });
            Destination { ip, port, nat, domain: None }
        });
        let source = asked.map(|asked| {
            let place = |endpoints: Endpoints| (endpoints.source, endpoints.source_port);
            let (ip, port) = place(asked);
            let nat = translated.map(place).filter(|other| *other != (ip, port)).map(|(ip, port)| Nat { ip, port });
            Source { ip, port, nat }
        });
        let decided = dropped.cause != Cause::Queue;
        let transport = dropped.protocol.map(transport_name);
        let cause = cause_name(dropped.cause);
        let hook = dropped.hook.map(hook_name);
        if matches!(dropped.cause, Cause::Netfilter | Cause::Nfqueue) && dropped.netns != 0 {
            self.changes.adopt(dropped.netns, &mut self.attributor.eyes);
        }
        let began = Instant::now();
        let nothing_left = self.unsent.nothing_left(dropped);
        let found = self.rules.of(dropped, hook, &mut self.attributor.eyes);
        let read = began.elapsed();
        let opinion = self.rules.replays.of(dropped, hook, &found, &mut self.attributor.eyes);
        log::debug!("rule after {read:?}, opinion {opinion:?} after {:?}", began.elapsed());
        let Found { decision, unread, disputed } = found;
        let is_replayed = matches!(opinion, Opinion::Is(_));
        let decision = if let Opinion::Is(decision) = &opinion { Some(Arc::clone(decision)) } else { decision };
        let rule = decision.as_ref().and_then(|decision| decision.rule.as_ref());
        let decider = match dropped.cause {
            Cause::Nfqueue => self.queue(dropped),
            _ => decision.as_ref().and_then(|decision| decision.decider.clone()),
        };
        let translates = decider.as_ref().is_some_and(|decider| decider.purpose() == Some(Purpose::Translation));
        // Where nftables leaves it to the hooks' walker to free a packet, a rule of a nat chain may have dropped it.
        let decider = decider.filter(|_| !translates || self.rules.are_live());
        let cause = match rule {
            Some(rule) if rule.translates.is_some() => Purpose::Translation.cause(),
            _ => decider.as_ref().and_then(Decider::purpose).map_or(cause, Purpose::cause),
        };
        // What was told before its rule was known goes on, whatever the rule is there for.
        let story = if rule.is_some_and(|rule| rule.translates.is_some()) { cause_name(dropped.cause) } else { cause };
        let under = |decision: Option<&str>| {
            incident(
                sender.process.as_ref(),
                sender.unit.as_deref(),
                destination.as_ref(),
                transport.as_deref(),
                story,
                decision,
            )
        };
        let by_verdict = dropped.rule.filter(|answer| answer.function != 0 && answer.rule != UNKNOWN_RULE);
        let known_by = if is_replayed { dropped.rule } else { by_verdict };
        let is_news = self.late.is_first(under(hook));
        let goes_on = known_by.zip(rule.and_then(|rule| rule.words()));
        let goes_on =
            goes_on.is_some_and(|(answer, words)| self.late.goes_on(under(hook), &answer, is_replayed, words));
        // What was told before the text was known goes on under its incident.
        let provisional = dropped.rule.filter(|_| rule.is_some()).map(|answer| (answer, under(hook)));
        let provisional = provisional.filter(|(answer, told)| self.late.was_told(*told, answer));
        let incident = match (provisional, rule.and_then(|rule| rule.words())) {
            (Some((_, told)), _) => told,
            // The first packets of a block were told before there was a copy that could name their rule, or before verdicts were
            // probed.
            (None, Some(_)) if goes_on => under(hook),
            (None, words) => under(words.or(hook)),
        };
        let by_copy = matches!(opinion, Opinion::Later);
        let is_probed_next = |answer: &RuleAnswer| answer.chain != 0 && answer.rule == UNKNOWN_RULE && !is_replayed;
        if let Some(answer) = dropped.rule.filter(|answer| by_copy || is_probed_next(answer)) {
            let port = dropped.endpoints.and_then(|endpoints| endpoints.source_port).filter(|_| dropped.packets == 1);
            self.late.expect(incident, &answer, port, by_copy);
        }
        let event = Event {
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
                reason: Some(
                    rule.map(NamedRule::sentence)
                        .or_else(|| decider.as_ref().map(Decider::sentence))
                        .unwrap_or_else(|| reason(dropped, drop_reason.as_deref(), disputed)),
                ),
            },
            network: Network { r#type: network_type(dropped), direction: "egress", transport: transport.clone() },
            source,
            container: sender.container,
            orchestrator: sender.orchestrator,
            egress: Egress {
                schema: SCHEMA,
                incident,
                cause: Some(cause),
                verdict: match (rule, &decider) {
                    (Some(rule), _) => rule.verdict,
                    (None, Some(decider)) => decider.only_drops().then_some(Verdict::Drop),
                    (None, None) => None,
                },
                decided_by: decider.filter(|decider| *decider != Decider::default()),
                rule: rule.map(|rule| EgressRule {
                    confirmed_by: match (dropped.verdict_agrees, &opinion) {
                        (Some(true), _) => Some(Confirmation::Verdict),
                        (_, Opinion::Same(_)) => Some(Confirmation::Replay),
                        _ => None,
                    },
                    source: if is_replayed { RuleSource::Replay } else { RuleSource::Probe },
                    replay: opinion.words(),
                    // Where several ways lead to it, the copy has gone one.
                    path: match &opinion {
                        Opinion::Same(path) if rule.path.is_empty() => path.clone(),
                        _ => rule.path.clone(),
                    },
                    ..rule.seen()
                }),
                fix: None,
                restored: None,
                drop_reason,
                hook,
                interface: dropped.interface.clone(),
                nothing_left: nothing_left.then_some(true),
                count: dropped.packets,
                bytes: dropped.bytes,
                background: Background::of(dropped).or(own.then_some(Background::SelfTest)),
                owner: sender.known.or(kernel.then_some(OwnerKnown::Kernel)),
                owner_by: sender.by,
                script: sender.script,
                truncated: sender.truncated,
                namespaces: sender.namespaces,
                unit: sender.unit,
                slice: sender.slice,
                relay: sender.relay,
                encapsulated: dropped.encapsulated.then_some(true),
                coarse: dropped.coarse.then_some(true),
                cgroup: sender.cgroup,
                netns: (dropped.netns != 0).then_some(dropped.netns),
                origin_netns: dropped.origin_netns,
                socket_inode: socket.and_then(|socket| socket.inode),
                ancestry: sender.ancestry,
                attempts: None,
                outcome: None,
            },
            rule: rule.and_then(NamedRule::name),
            destination,
            process: sender.process,
            user: sender.user,
        };
        if decided && begins(event.network.transport.as_deref(), dropped.tcp_flags) {
            let gid = dropped.captured.as_ref().and_then(|captured| captured.opened_by).map(|(_, gid)| gid);
            self.wait_for(&event, (dropped.first_ns, dropped.boot_ns), gid);
        }
        if let Some(answer) = dropped.rule {
            let packet = || self.rules.replays.packet(dropped).and_then(fixes::first);
            let is_waited_for = event.egress.background.is_none();
            if let Some(rule) = rule.filter(|rule| is_waited_for && rule.words().is_some()) {
                self.fixes.consider(&event, rule, packet(), answer.netns_cookie);
            }
            if let Some(rule) = rule.filter(|_| goes_on && is_news) {
                self.late.tell(&event, rule);
            }
            self.late.remember(&event, answer, unread, || {
                (wanted(dropped, answer, hook), packet().filter(|_| is_waited_for))
            });
        }
        event
    }

    /// Another observer's proof, or what it replays: its helper sends nothing else, in namespaces of its own.
    fn is_own(&self, process: Option<&Process>) -> bool {
        let is_helper = |process: &Process| {
            process.name == HELPER && process.executable.is_some() && process.executable == self.identity.executable
        };
        process.is_some_and(is_helper)
    }

    /// In whose call a queue's packet was freed, or that none took it; `None` where that is not known.
    fn queue(&mut self, dropped: &Dropped) -> Option<Decider> {
        let answer = dropped.rule?;
        let pid = u32::try_from(answer.rule).ok().filter(|pid| *pid != 0);
        match (answer.table, pid) {
            (UNTAKEN, _) => Some(Decider { untaken: Some(true), ..Decider::default() }),
            (FROM_QUEUE, Some(pid)) => {
                let process = Doer { pid, name: self.attributor.name_of(pid, dropped.boot_ns) };
                Some(Decider { process: Some(process), ..Decider::default() })
            }
            _ => None,
        }
    }

    /// Modules of the kernel have come or gone, nftables' own among them or not.
    pub fn modules_changed(&mut self, nftables: bool) {
        self.rules.modules_changed(nftables, &mut self.attributor.eyes);
        self.changes.again(&mut self.attributor.eyes);
    }

    /// True while what was told of the first packet is so for those that were counted beyond: its sender is named, and runs
    /// the same program, and its rule was seen.
    pub fn still_holds(&mut self, pattern: &Event, counted: &Counted) -> bool {
        // Which rule it was, is not in the key.
        if pattern.egress.rule.as_ref().is_some_and(|rule| rule.source == RuleSource::Replay) {
            return false;
        }
        self.attributor.catch_up();
        // The kernel runs no other program.
        let Some(process) = &pattern.process else { return pattern.egress.owner.is_some() };
        let Some(id) = self.attributor.living(process.pid, counted.last_ns) else { return false };
        let ran = |boot_ns| Some(self.attributor.processes.get(id)?.ran_at(boot_ns)?.since_ns);
        self.identity.process_id(id) == process.entity_id && ran(counted.first_ns) == ran(counted.last_ns)
    }

    /// The event of packets that were counted beyond the one that `pattern` tells of: alike in everything but what only a
    /// single packet has.
    pub fn again(&mut self, pattern: Event, key: &DropKey, counted: &Counted) -> Event {
        let mut event = pattern;
        // Other sockets of the process may be among them.
        if key.cookie == 0 {
            event.egress.socket_inode = None;
        }
        event.timestamp = self.clock.wall(counted.last_ns);
        event.event.start = self.clock.wall(counted.first_ns);
        event.event.end = event.timestamp;
        event.event.id = Some(self.event_id());
        event.egress.count = counted.packets;
        event.egress.bytes = counted.bytes;
        event.egress.nothing_left = None;
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
        let decided = event.event.action == Action::EgressBlocked;
        if decided && begins(event.network.transport.as_deref(), Some(key.detail)) {
            self.wait_for(&event, (counted.first_ns, counted.last_ns), None);
        }
        event
    }
}

/// A packet that begins a connection by TCP's flags, or a datagram: what is answered to such a one can be told.
fn begins(transport: Option<&str>, tcp_flags: Option<u8>) -> bool {
    let is_syn = || tcp_flags.is_some_and(|flags| flags & (SYN | ACK) == SYN);
    transport == Some("udp") || transport == Some("tcp") && is_syn()
}

/// Name of the helper process.
pub const HELPER: &str = "observer-helper";

/// Hooks of forwarded packets alone.
const FORWARDED: [&str; 3] = ["forward", "prerouting", "ingress"];

/// The same cause gives the same id, on every run and every host: program (or unit), destination, port, protocol, and the
/// rule's text; until that is known, the place of the decision.
pub(super) fn incident(
    process: Option<&Process>,
    unit: Option<&str>,
    destination: Option<&Destination>,
    transport: Option<&str>,
    cause: &str,
    decision: Option<&str>,
) -> Uuid {
    let who =
        process.map(|process| process.executable.as_deref().unwrap_or(&process.name)).or(unit).unwrap_or_default();
    let (ip, port) = destination.map_or((String::new(), String::new()), |destination| {
        (destination.ip.to_string(), destination.port.map(|port| port.to_string()).unwrap_or_default())
    });
    let parts = [who, &ip, &port, transport.unwrap_or_default(), cause, decision.unwrap_or_default()];
    Uuid::new_v5(&INCIDENTS, parts.join("\0").as_bytes())
}

fn reason(dropped: &Dropped, drop_reason: Option<&str>, disputed: bool) -> String {
    let what = match dropped.cause {
        Cause::Netfilter => {
            let hook = dropped.hook.map(|hook| format!(" at hook {}", hook_name(hook))).unwrap_or_default();
            let device = match dropped.hook {
                Some(Hook::Egress | Hook::Ingress) => on(dropped),
                _ => String::new(),
            };
            let disputed = if disputed { ", of which two ways of seeing it disagree" } else { "" };
            format!("netfilter stopped it{hook}{device}: a firewall rule or policy{disputed}")
        }
        Cause::Cgroup => "a cgroup egress program (such as systemd's IPAddressDeny=) stopped it".to_owned(),
        Cause::Tc => format!("a traffic control action{} stopped it", on(dropped)),
        Cause::Queue => format!("a queue{} was full: nobody's decision", on(dropped)),
        Cause::Nfqueue => "a program that a rule asks (NFQUEUE) did not let it pass".to_owned(),
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
        Cause::Nfqueue => "nfqueue",
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

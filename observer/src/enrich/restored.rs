//! Destinations that were blocked, and that work again: the kernel half tells of a connection that is established to one of them,
//! and of a datagram that comes from there.
//!
//! It is the same story only where the same program reaches the destination for the same user, in the same unit and container,
//! from the same namespace: for others it may never have been blocked.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use observer_ebpf::{
    abi::{AwaitedKey, MAX_AWAITED},
    logic::packet::protocol,
};

use super::{
    assemble::Assembler,
    attribute::{Eyes, Found},
    sender::{Credentials, Sender},
};
use crate::model::{
    Action, By, Change, Container, Event, OwnerKnown, Preceding, Process, Reached, Restored, Source, transport_number,
};

/// How long changes of rules that came before may take to be heard.
const HEARD: Duration = Duration::from_millis(300);
/// Changes of rules of one namespace that are remembered, and namespaces.
const MAX_CHANGES: usize = 16;
const MAX_NAMESPACES: usize = 64;
/// Stories of one destination.
const MAX_STORIES: usize = 16;
/// Datagrams are waited for so long after the last one that was blocked, and that is renewed so often.
const ANSWERED: Duration = Duration::from_secs(60);
const RENEW: Duration = Duration::from_secs(15);
/// What comes sooner may be the answer to a datagram that was sent before any was blocked.
const LATE_NS: u64 = 500_000_000;
/// Stories that were told to be over and are remembered.
const MAX_OVER: usize = 64;
/// Connections that wait to be told.
const MAX_REACHED: usize = 256;

/// Tells the kernel half that a destination is waited for from now on, or not any more.
pub type Await = Box<dyn FnMut(&AwaitedKey, bool) -> Result<(), String> + Send>;

/// What was blocked, under its last line.
struct Blocked {
    event: Box<Event>,
    /// The first packet, nanoseconds of `CLOCK_BOOTTIME`.
    first_ns: u64,
    /// The last one.
    last_ns: u64,
    /// Group with which its socket's file was opened, where that is known.
    gid: Option<u32>,
}

/// What was told to work, and when it did: packets that were blocked before are counted later.
struct Over {
    key: AwaitedKey,
    event: Box<Event>,
    reached_ns: u64,
}

/// A change of rules.
struct Changed {
    boot_ns: u64,
    told: Preceding,
}

/// All of them.
pub(super) struct Awaited {
    tell: Await,
    blocked: HashMap<AwaitedKey, Vec<Blocked>>,
    /// In the order in which they came.
    order: VecDeque<AwaitedKey>,
    changes: HashMap<u32, VecDeque<Changed>>,
    reached: VecDeque<(Instant, Reached)>,
    /// Those that were told last.
    over: VecDeque<Over>,
    /// When datagrams were waited for last.
    armed: Option<Instant>,
    /// Why the kernel half does not know of one.
    failure: Option<String>,
}

impl Awaited {
    pub(super) fn new(tell: Await) -> Self {
        Self {
            tell,
            blocked: HashMap::new(),
            order: VecDeque::new(),
            changes: HashMap::new(),
            reached: VecDeque::new(),
            over: VecDeque::new(),
            armed: None,
            failure: None,
        }
    }

    /// Why some are not told of, if that is so.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A connection was begun and stopped; its socket is in this namespace.
    fn blocked(&mut self, event: &Event, netns: u32, (first_ns, last_ns): (u64, u64), gid: Option<u32>) {
        let Some(key) = key(event, netns) else { return };
        let who = Who { gid, ..Who::of(event) };
        let is_over = |over: &Over| over.key == key && last_ns <= over.reached_ns && is_same(&over.event, None, &who);
        if self.over.iter().any(is_over) {
            return;
        }
        if let Some(stories) = self.blocked.get_mut(&key) {
            let is_same = |story: &&mut Blocked| is_same(&story.event, story.gid, &who);
            if let Some(story) = stories.iter_mut().find(is_same) {
                story.last_ns = story.last_ns.max(last_ns);
                // The last rule that stopped it is what is told.
                if story.event.egress.incident != event.egress.incident {
                    *story.event = event.clone();
                }
            } else if stories.len() < MAX_STORIES {
                stories.push(Blocked { event: Box::new(event.clone()), first_ns, last_ns, gid });
            }
            return;
        }
        if self.blocked.len() >= MAX_AWAITED
            && let Some(eldest) = self.order.front().copied()
        {
            self.forget(&eldest);
        }
        if let Err(why) = (self.tell)(&key, true) {
            log::warn!("the kernel half does not wait for a destination: {why}");
            self.failure = Some(why);
            return;
        }
        self.blocked.insert(key, vec![Blocked { event: Box::new(event.clone()), first_ns, last_ns, gid }]);
        self.order.push_back(key);
    }

    fn forget(&mut self, key: &AwaitedKey) {
        self.blocked.remove(key);
        if self.order.front() == Some(key) {
            self.order.pop_front();
        } else {
            self.order.retain(|other| other != key);
        }
        if let Err(why) = (self.tell)(key, false) {
            log::debug!("a destination is still waited for: {why}");
        }
    }

    /// Rules were changed.
    pub(super) fn changed(&mut self, boot_ns: u64, change: &Change) {
        if self.blocked.is_empty() || self.changes.len() >= MAX_NAMESPACES {
            self.changes.clear();
        }
        let told = Preceding {
            id: change.event.id,
            at: change.timestamp,
            before_ms: 0,
            reason: change.egress.ruleset.in_short(&change.egress.ancestry),
        };
        let changes = self.changes.entry(change.egress.netns).or_default();
        if changes.len() >= MAX_CHANGES {
            changes.pop_front();
        }
        changes.push_back(Changed { boot_ns, told });
    }

    /// A connection was established to one of them.
    pub(super) fn reached(&mut self, reached: Reached, now: Instant) {
        if self.reached.len() < MAX_REACHED {
            self.reached.push_back((now, reached));
        }
    }

    /// Some are to be told yet.
    pub(super) fn are_waiting(&self) -> bool {
        !self.reached.is_empty()
    }

    /// The next one whose changes of rules have been heard by now; all of them at the end.
    fn next(&mut self, now: Instant, is_over: bool) -> Option<Reached> {
        self.reached
            .pop_front_if(|(since, _)| is_over || now.duration_since(*since) >= HEARD)
            .map(|(_, reached)| reached)
    }

    /// What was blocked until then, of this one; it is not waited for any more.
    fn take(&mut self, reached: &Reached, who: &Who<'_>) -> Option<Blocked> {
        let key = key_of(reached.remote.ip(), reached.remote.port(), reached.netns, reached.protocol);
        let stories = self.blocked.get_mut(&key)?;
        let changes = &self.changes;
        let is_it = |story: &Blocked| {
            story.last_ns < reached.boot_ns
                && is_same(&story.event, story.gid, who)
                && (reached.protocol != protocol::UDP || is_answer(story, reached, changes))
        };
        let story = stories.swap_remove(stories.iter().position(is_it)?);
        if stories.is_empty() {
            self.forget(&key);
        }
        if self.over.len() >= MAX_OVER {
            self.over.pop_front();
        }
        self.over.push_back(Over { key, event: story.event.clone(), reached_ns: reached.boot_ns });
        Some(story)
    }

    /// The last change of a namespace's rules in a time.
    fn change(&self, netns: u32, from_ns: u64, to_ns: u64) -> Option<Preceding> {
        let last = last_change(&self.changes, netns, from_ns, to_ns)?;
        Some(Preceding { before_ms: milliseconds(to_ns - last.boot_ns), ..last.told.clone() })
    }
}

fn last_change(changes: &HashMap<u32, VecDeque<Changed>>, netns: u32, from_ns: u64, to_ns: u64) -> Option<&Changed> {
    changes.get(&netns)?.iter().rev().find(|change| (from_ns..=to_ns).contains(&change.boot_ns))
}

/// A datagram is an answer to what was let out: whoever sends all the time, or to what was sent before, says nothing. So its socket was
/// made after the last block, or rules were changed since.
fn is_answer(story: &Blocked, reached: &Reached, changes: &HashMap<u32, VecDeque<Changed>>) -> bool {
    let is_new = reached.owner.and_then(|owner| owner.bound_ns).is_some_and(|bound_ns| bound_ns > story.last_ns);
    let netns = story.event.egress.netns.unwrap_or(0);
    let is_changed = last_change(changes, netns, story.last_ns, reached.boot_ns).is_some();
    story.last_ns + LATE_NS < reached.boot_ns && (is_new || is_changed)
}

/// For whom it was blocked, or works.
struct Who<'a> {
    process: Option<&'a Process>,
    script: Option<&'a str>,
    user: Option<&'a str>,
    unit: Option<&'a str>,
    container: Option<&'a Container>,
    gid: Option<u32>,
    source: Option<IpAddr>,
}

impl<'a> Who<'a> {
    fn of(event: &'a Event) -> Self {
        Self {
            process: event.process.as_ref(),
            script: event.egress.script.as_deref(),
            user: event.user.as_ref().map(|user| user.id.as_str()),
            unit: event.egress.unit.as_deref(),
            container: event.container.as_ref(),
            gid: None,
            source: event.source.as_ref().map(|source| source.ip),
        }
    }

    fn sent(sender: &'a Sender, reached: &Reached) -> Self {
        Self {
            process: sender.process.as_ref(),
            script: sender.script.as_deref(),
            user: sender.user.as_ref().map(|user| user.id.as_str()),
            unit: sender.unit.as_deref(),
            container: sender.container.as_ref(),
            gid: reached.gid,
            source: Some(reached.local.ip()),
        }
    }
}

/// Sessions of the same user are the same to rules, whatever their number.
fn unit(unit: Option<&str>) -> Option<&str> {
    unit.map(|unit| if unit.starts_with("session-") && unit.ends_with(".scope") { "session" } else { unit })
}

/// Nobody's fate is told by another's: rules may ask for any of this.
fn is_same(event: &Event, gid: Option<u32>, who: &Who<'_>) -> bool {
    let before = Who { gid, ..Who::of(event) };
    let is_other_group = matches!((before.gid, who.gid), (Some(before), Some(gid)) if before != gid);
    let is_other_source = matches!((before.source, who.source), (Some(before), Some(source)) if before != source);
    if is_other_group || is_other_source {
        return false;
    }
    let program = |process: &Process| process.executable.clone().unwrap_or_else(|| process.name.clone());
    before.process.map(program) == who.process.map(program)
        && before.script == who.script
        // Of a forwarded packet the socket's user is not known.
        && (before.user.is_none() || before.user == who.user)
        && unit(before.unit) == unit(who.unit)
        && before.container.map(|container| &container.id) == who.container.map(|container| &container.id)
}

fn key(event: &Event, netns: u32) -> Option<AwaitedKey> {
    let destination = event.destination.as_ref()?;
    let protocol = transport_number(event.network.transport.as_deref()?)?;
    Some(key_of(destination.ip, destination.port?, netns, protocol))
}

fn key_of(address: IpAddr, port: u16, netns: u32, protocol: u8) -> AwaitedKey {
    let mapped = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    AwaitedKey { remote: mapped.octets(), netns, port, protocol, reserved: 0 }
}

fn milliseconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000
}

impl<E: Eyes> Assembler<E> {
    /// A connection was begun and stopped: from now on it is waited for, if somebody waits for it.
    pub(super) fn wait_for(&mut self, event: &Event, times: (u64, u64), gid: Option<u32>) {
        let egress = &event.egress;
        if event.process.is_none() || egress.background.is_some() {
            return;
        }
        let home = match (egress.owner, egress.origin_netns) {
            (_, Some(origin)) => Some(origin),
            (Some(OwnerKnown::Flow), None) => {
                let forwarded = event.source.as_ref().zip(egress.netns);
                let homes = forwarded.map(|(source, netns)| self.attributor.homes(source.ip, netns));
                // Two that have the address make no answer.
                homes.and_then(|homes| <[u32; 1]>::try_from(homes).ok()).map(|[only]| only)
            }
            _ => egress.netns,
        };
        let Some(home) = home else { return };
        self.awaited.blocked(event, home, times, gid);
        let is_udp = event.network.transport.as_deref() == Some("udp");
        if is_udp && self.awaited.armed.is_none_or(|armed| armed.elapsed() > RENEW) {
            self.awaited.armed = Some(Instant::now());
            if let Err(why) = self.attributor.eyes.arm_answers(ANSWERED) {
                log::debug!("answers to datagrams are not seen: {why}");
            }
        }
    }

    /// The next line of a destination that works again: of the incident under which it was blocked, and of no packet.
    pub fn restored(&mut self, is_over: bool) -> Option<Event> {
        let now = Instant::now();
        for reached in self.attributor.reached.drain(..) {
            self.awaited.reached(reached, now);
        }
        while let Some(reached) = self.awaited.next(now, is_over) {
            let found = reached.owner.map(Found::bound);
            let cgroup = reached.owner.map(|owner| owner.task.cgroup).filter(|cgroup| *cgroup != 0);
            let sender = self.sender(found, Credentials { uid: Some(reached.uid), cgroup }, reached.boot_ns);
            if let Some(blocked) = self.awaited.take(&reached, &Who::sent(&sender, &reached)) {
                return Some(self.works(blocked, &reached, sender));
            }
        }
        None
    }

    fn works(&mut self, blocked: Blocked, reached: &Reached, sender: Sender) -> Event {
        let Blocked { mut event, first_ns, last_ns, .. } = blocked;
        let change = event.egress.netns.and_then(|netns| self.awaited.change(netns, last_ns, reached.boot_ns));
        let restored = Restored {
            after_ms: milliseconds(reached.boot_ns.saturating_sub(first_ns)),
            last_blocked: self.clock.wall(last_ns),
            by: if reached.protocol == protocol::UDP { By::Answer } else { By::Connection },
            change,
        };
        event.timestamp = self.clock.wall(reached.boot_ns);
        event.event.id = Some(self.event_id());
        event.event.action = Action::EgressRestored;
        event.event.r#type = &["connection", "allowed"];
        event.event.outcome = Some("success");
        event.event.start = self.clock.wall(first_ns);
        event.event.end = event.timestamp;
        event.event.reason = Some(restored.sentence());
        event.source = Some(Source { ip: reached.local.ip(), port: Some(reached.local.port()), nat: None });
        event.process = sender.process;
        event.user = sender.user;
        let egress = &mut event.egress;
        egress.restored = Some(restored);
        egress.count = 0;
        egress.bytes = 0;
        egress.nothing_left = None;
        egress.socket_inode = None;
        egress.unit = sender.unit;
        egress.slice = sender.slice;
        egress.cgroup = sender.cgroup;
        egress.truncated = sender.truncated;
        egress.namespaces = sender.namespaces;
        egress.ancestry = sender.ancestry;
        egress.owner = sender.known;
        egress.owner_by = sender.by;
        *event
    }
}

//! Destinations that were blocked, and that work again: the eBPF side reports a connection that is established to one of them,
//! one that is given up, and a datagram that comes from there.
//!
//! It is the same story only where the same program reaches the destination for the same user, in the same unit and container,
//! from the same namespace: for others it may never have been blocked.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use observer_ebpf::{
    abi::{AwaitedKey, MAX_AWAITED, OwnerSource},
    logic::packet::protocol,
};
use uuid::Uuid;

use super::Lookup;
use crate::model::{
    Attempt, Cause, FlowEnd, Outcome, PacketKind, Preceding, Process, Reached, Restored, RestoredBy, RuleName,
    RulesetChange, Sender,
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
/// A connection that was given up sooner is not reported.
const LONG_MS: u64 = 1_000;
/// Connections that wait to be reported.
const MAX_REACHED: usize = 256;

/// What was blocked, under its last line.
struct Blocked {
    attempt: Box<Attempt>,
    /// The first packet.
    first: Timestamp,
    /// The same, nanoseconds of `CLOCK_BOOTTIME`.
    first_ns: u64,
    /// The last one, likewise.
    last: Timestamp,
    last_ns: u64,
    /// Group with which its socket's file was opened, where that is known.
    gid: Option<u32>,
}

/// What was told to work, and when it did: packets that were blocked before are counted later.
struct Over {
    key: AwaitedKey,
    attempt: Box<Attempt>,
    reached_ns: u64,
}

/// A connection to one of them, and who made it.
struct Arrival {
    reached: Reached,
    sender: Sender,
    at: Timestamp,
    since: Instant,
}

/// A change of rules.
struct Changed {
    boot_ns: u64,
    told: Preceding,
}

/// All of them.
#[derive(Default)]
pub(super) struct Awaited {
    blocked: HashMap<AwaitedKey, Vec<Blocked>>,
    /// In the order in which they came.
    order: VecDeque<AwaitedKey>,
    changes: HashMap<u32, VecDeque<Changed>>,
    reached: VecDeque<Arrival>,
    /// Connections that ended without an answer, and are to be reported.
    ended: Vec<(Box<Attempt>, Outcome, Uuid)>,
    /// Those that were reported last.
    over: VecDeque<Over>,
    /// When datagrams were waited for last.
    armed: Option<Instant>,
    /// Why the eBPF side does not know of one.
    failure: Option<String>,
}

impl Awaited {
    /// Why some are not told of, if that is so.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A connection was begun and stopped, in this time; its socket is in this namespace.
    pub(super) fn blocked(
        &mut self,
        attempt: &Attempt,
        netns: u32,
        (first_ns, last_ns): (u64, u64),
        gid: Option<u32>,
        (lookup, now): (&mut impl Lookup, Instant),
    ) {
        let Some(key) = key(attempt, netns) else { return };
        if attempt.protocol == Some(protocol::UDP) && self.armed.is_none_or(|armed| now.duration_since(armed) > RENEW) {
            self.armed = Some(now);
            lookup.await_answers(ANSWERED);
        }
        let who = Who { gid, ..Who::of(attempt) };
        let is_over = |over: &Over| over.key == key && last_ns <= over.reached_ns && is_same(&over.attempt, None, &who);
        if self.over.iter().any(is_over) {
            return;
        }
        let new = || Blocked {
            attempt: Box::new(attempt.clone()),
            first: attempt.start,
            first_ns,
            last: attempt.end,
            last_ns,
            gid,
        };
        if let Some(stories) = self.blocked.get_mut(&key) {
            let is_same = |story: &&mut Blocked| is_same(&story.attempt, story.gid, &who);
            if let Some(story) = stories.iter_mut().find(is_same) {
                if last_ns > story.last_ns {
                    (story.last, story.last_ns) = (attempt.end, last_ns);
                }
                // The last rule that stopped it is what is reported.
                if story.attempt.incident != attempt.incident {
                    *story.attempt = attempt.clone();
                }
            } else if stories.len() < MAX_STORIES {
                stories.push(new());
            }
            return;
        }
        if self.blocked.len() >= MAX_AWAITED
            && let Some(eldest) = self.order.front().copied()
        {
            self.forget(&eldest, lookup);
        }
        if let Err(why) = lookup.await_destination(&key, true) {
            log::warn!("the eBPF side does not wait for a destination: {why}");
            self.failure = Some(why);
            return;
        }
        self.blocked.insert(key, vec![new()]);
        self.order.push_back(key);
    }

    fn forget(&mut self, key: &AwaitedKey, lookup: &mut impl Lookup) {
        self.blocked.remove(key);
        if self.order.front() == Some(key) {
            self.order.pop_front();
        } else {
            self.order.retain(|other| other != key);
        }
        if let Err(why) = lookup.await_destination(key, false) {
            log::debug!("a destination is still waited for: {why}");
        }
    }

    /// The rule of what was reported is known now.
    pub(super) fn named(&mut self, attempt: &Attempt) {
        let is_it = |story: &&mut Blocked| story.attempt.incident == attempt.incident;
        for story in self.blocked.values_mut().flatten().filter(is_it) {
            story.attempt.rule.clone_from(&attempt.rule);
            story.attempt.rule_name.clone_from(&attempt.rule_name);
        }
    }

    /// Rules were changed, as the line with this id tells.
    pub(super) fn changed(&mut self, boot_ns: u64, at: Timestamp, id: Option<Uuid>, change: &RulesetChange) {
        if self.blocked.is_empty() || self.changes.len() >= MAX_NAMESPACES {
            self.changes.clear();
        }
        let reason = change.ruleset.in_short(&change.sender.ancestry);
        let changes = self.changes.entry(change.netns).or_default();
        if changes.len() >= MAX_CHANGES {
            changes.pop_front();
        }
        changes.push_back(Changed { boot_ns, told: Preceding { id, at, before_ms: 0, reason } });
    }

    /// A connection to one of them was established, or given up.
    pub(super) fn reached(&mut self, reached: Reached, sender: Sender, at: Timestamp, now: Instant) {
        if reached.is_given_up {
            self.given_up(&reached, sender, at);
        } else if self.room() > 0 {
            self.reached.push_back(Arrival { reached, sender, at, since: now });
        }
    }

    /// A connection ended without an answer: its story goes on.
    fn given_up(&mut self, reached: &Reached, sender: Sender, at: Timestamp) {
        let key = key_of(reached.remote.ip(), reached.remote.port(), reached.netns, reached.protocol);
        let who = Who { gid: reached.gid, source: Some(reached.local.ip()), ..Who::from(&sender) };
        let mut stories = self.blocked.get(&key).into_iter().flatten();
        let owner = reached.owner.filter(|owner| owner.bound_ns.is_some_and(|bound_ns| bound_ns != 0));
        // Of a connection that began before observer the beginning is not known.
        let began = owner.filter(|owner| owner.source != OwnerSource::Seed).and_then(|owner| owner.bound_ns);
        let is_it = |story: &&Blocked| {
            story.first_ns < reached.boot_ns
                // Some packet of this very connection was blocked.
                && began.is_none_or(|began| story.last_ns >= began)
                && is_same(&story.attempt, story.gid, &who)
        };
        let Some(story) = stories.find(is_it) else { return };
        let waited_ms = began.map(|began| milliseconds(reached.boot_ns.saturating_sub(began)));
        // What fails at once is a reject, or the application's own decision.
        let least = milliseconds(reached.boot_ns - story.first_ns);
        if waited_ms.unwrap_or(least) < LONG_MS || self.ended.len() >= MAX_REACHED {
            return;
        }
        let (mut attempt, of) = (story.attempt.clone(), super::story(&story.attempt));
        attempt.start = waited_ms.map_or(story.first, |waited| at - Duration::from_millis(waited));
        attempt.end = at;
        // The port is given back before the state changes.
        let port = Some(reached.local.port()).filter(|port| *port != 0);
        attempt.source = Some(FlowEnd { ip: reached.local.ip(), port, nat: None });
        attempt.sender = sender;
        attempt.socket_inode = None;
        self.ended.push((Box::new(attempt.without_packets()), Outcome { waited_ms }, of));
    }

    /// Connections that ended without an answer, since the last time, and of which stories.
    pub(super) fn take_ended(&mut self) -> Vec<(Box<Attempt>, Outcome, Uuid)> {
        std::mem::take(&mut self.ended)
    }

    /// A connection from the same namespace to the same destination is to be reported yet.
    pub(super) fn is_arriving(&self, attempt: &Attempt) -> bool {
        let is_it = |Arrival { reached, .. }: &Arrival| {
            let to = Some((reached.remote.ip(), Some(reached.remote.port())));
            let home = attempt.origin_netns.or(attempt.netns);
            to == attempt.destination.map(|end| (end.ip, end.port)) && home == Some(reached.netns)
        };
        self.reached.iter().any(is_it)
    }

    /// So many more can be taken.
    pub(super) fn room(&self) -> usize {
        MAX_REACHED.saturating_sub(self.reached.len())
    }

    /// Some are to be reported yet.
    pub(super) fn are_waiting(&self) -> bool {
        !self.reached.is_empty() || !self.ended.is_empty()
    }

    /// The next one that works again, whose changes of rules have been told by now; all of them at the end. What it was reported under is
    /// not waited for any more.
    pub(super) fn next(
        &mut self,
        is_changing: impl Fn(u32, u64) -> bool,
        (lookup, now): (&mut impl Lookup, Instant),
        is_over: bool,
    ) -> Option<(Box<Attempt>, Restored, Uuid)> {
        loop {
            let arrival = self.reached.front()?;
            // A change of those rules that came before may wait to be reported, or not be heard yet.
            let waits = now.duration_since(arrival.since) < HEARD
                || is_changing(arrival.reached.netns, arrival.reached.boot_ns);
            if waits && !is_over {
                return None;
            }
            let arrival = self.reached.pop_front()?;
            if let Some(blocked) = self.take(&arrival, lookup) {
                let story = super::story(&blocked.attempt);
                let (attempt, restored) = self.works(blocked, arrival);
                return Some((attempt, restored, story));
            }
        }
    }

    /// What was blocked until then, of this one; it is not waited for any more.
    fn take(&mut self, Arrival { reached, sender, .. }: &Arrival, lookup: &mut impl Lookup) -> Option<Blocked> {
        let key = key_of(reached.remote.ip(), reached.remote.port(), reached.netns, reached.protocol);
        let who = Who { gid: reached.gid, source: Some(reached.local.ip()), ..Who::from(sender) };
        let stories = self.blocked.get_mut(&key)?;
        let changes = &self.changes;
        let pid = |sender: &Sender| sender.process.as_ref().map(|process| process.pid);
        let is_it = |story: &Blocked| {
            story.last_ns < reached.boot_ns
                && is_same(&story.attempt, story.gid, &who)
                && (reached.protocol != protocol::UDP || is_answer(story, reached, changes))
                // Who gets through may never have been meant.
                && (!may_mean_others(&story.attempt)
                    || pid(&story.attempt.sender) == pid(sender)
                    || is_changed(story, reached, changes))
        };
        let story = stories.swap_remove(stories.iter().position(is_it)?);
        if stories.is_empty() {
            self.forget(&key, lookup);
        }
        if self.over.len() >= MAX_OVER {
            self.over.pop_front();
        }
        self.over.push_back(Over { key, attempt: story.attempt.clone(), reached_ns: reached.boot_ns });
        Some(story)
    }

    fn works(&self, blocked: Blocked, Arrival { reached, sender, at, .. }: Arrival) -> (Box<Attempt>, Restored) {
        let Blocked { mut attempt, first, first_ns, last, last_ns, .. } = blocked;
        let netns = attempt.netns.unwrap_or(0);
        let change = last_change(&self.changes, netns, last_ns, reached.boot_ns).map(|change| Preceding {
            before_ms: milliseconds(reached.boot_ns - change.boot_ns),
            ..change.told.clone()
        });
        let restored = Restored {
            after_ms: milliseconds(reached.boot_ns.saturating_sub(first_ns)),
            last_blocked: last,
            by: if reached.protocol == protocol::UDP { RestoredBy::Answer } else { RestoredBy::Connection },
            change,
        };
        (attempt.start, attempt.end) = (first, at);
        attempt.source = Some(FlowEnd { ip: reached.local.ip(), port: Some(reached.local.port()), nat: None });
        attempt.sender = sender;
        attempt.nothing_left = false;
        attempt.socket_inode = None;
        (Box::new(attempt.without_packets()), restored)
    }
}

fn last_change(changes: &HashMap<u32, VecDeque<Changed>>, netns: u32, from_ns: u64, to_ns: u64) -> Option<&Changed> {
    changes.get(&netns)?.iter().rev().find(|change| (from_ns..=to_ns).contains(&change.boot_ns))
}

/// A datagram is an answer to what was let out: whoever sends all the time, or to what was sent before, says nothing. So its socket was
/// made after the last block, or rules were changed since.
fn is_answer(story: &Blocked, reached: &Reached, changes: &HashMap<u32, VecDeque<Changed>>) -> bool {
    let is_new = reached.owner.and_then(|owner| owner.bound_ns).is_some_and(|bound_ns| bound_ns > story.last_ns);
    story.last_ns + LATE_NS < reached.boot_ns && (is_new || is_changed(story, reached, changes))
}

/// Rules were changed between the last block and that.
fn is_changed(story: &Blocked, reached: &Reached, changes: &HashMap<u32, VecDeque<Changed>>) -> bool {
    let netns = story.attempt.netns.unwrap_or(0);
    last_change(changes, netns, story.last_ns, reached.boot_ns).is_some()
}

/// What two connections of one program to one destination may differ in, as words of a rule: nftables', and iptables' without its dashes.
const OF_ONE_CONNECTION: [&str; 41] = [
    "sport",
    "sports",
    "source-port",
    "ports",
    "dscp",
    "dscp-class",
    "tos",
    "tclass",
    "priority",
    "flowlabel",
    "ttl",
    "ttl-eq",
    "ttl-lt",
    "ttl-gt",
    "hoplimit",
    "hl-eq",
    "hl-lt",
    "hl-gt",
    "option",
    "tcp-option",
    "tcp-flags",
    "mss",
    "length",
    "mark",
    "label",
    "limit",
    "hashlimit",
    "hashlimit-upto",
    "quota",
    "count",
    "connlimit-above",
    "numgen",
    "statistic",
    "random",
    "probability",
    "jhash",
    "symhash",
    "u32",
    "string",
    "bytecode",
    "suppl-groups",
];
/// The same where the rest of the word is anything.
const BEGINNINGS: [&str; 3] = ["@th", "@nh", "@ih"];

/// Who gets through may be somebody whom the rule never meant: it asks for what another connection may not have, as may a rule that leads
/// to it; or what it asks for is not known yet.
fn may_mean_others(attempt: &Attempt) -> bool {
    let is_unknown = attempt.cause == Some(Cause::Netfilter) && attempt.rule.is_none() && attempt.decided_by.is_none();
    let asks = |words: &str| {
        words.split([' ', '"']).any(|word| {
            let word = word.trim_start_matches('-');
            OF_ONE_CONNECTION.contains(&word) || BEGINNINGS.iter().any(|of| word.starts_with(of))
        })
    };
    let name = attempt.rule_name.as_ref();
    // Of an answer the port that it comes to is the client's own.
    let is_by_port = |words: &str| attempt.packet == Some(PacketKind::Answer) && words.contains("dport");
    let words = name
        .map(|name| name.name.as_str())
        .into_iter()
        .chain(attempt.rule.as_ref().and_then(|rule| rule.text.as_deref()));
    // A front end of its own leads to its chains whatever a connection has.
    let is_plain = |name: &RuleName| ["nftables", "iptables"].contains(&name.ruleset.as_str());
    let is_led_to = attempt.rule.as_ref().is_some_and(|rule| rule.path.len() > 1) && name.is_some_and(is_plain);
    is_unknown || is_led_to || words.into_iter().any(|words| asks(words) || is_by_port(words))
}

/// For whom it was blocked, or works.
struct Who<'a> {
    sender: &'a Sender,
    gid: Option<u32>,
    source: Option<IpAddr>,
}

impl<'a> From<&'a Sender> for Who<'a> {
    fn from(sender: &'a Sender) -> Self {
        Self { sender, gid: None, source: None }
    }
}

impl<'a> Who<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        Self { source: attempt.source.map(|source| source.ip), ..Self::from(&attempt.sender) }
    }
}

/// Sessions of the same user are the same to rules, whatever their number.
pub(super) fn unit(unit: Option<&str>) -> Option<&str> {
    unit.map(|unit| if unit.starts_with("session-") && unit.ends_with(".scope") { "session" } else { unit })
}

/// Nobody's fate is reported by another's: rules may ask for any of this.
fn is_same(attempt: &Attempt, gid: Option<u32>, who: &Who<'_>) -> bool {
    let before = Who { gid, ..Who::of(attempt) };
    let is_other_group = matches!((before.gid, who.gid), (Some(before), Some(gid)) if before != gid);
    let is_other_source = matches!((before.source, who.source), (Some(before), Some(source)) if before != source);
    if is_other_group || is_other_source {
        return false;
    }
    let program = |process: &Process| process.executable.clone().unwrap_or_else(|| process.name.clone());
    let user = |sender: &Sender| sender.user.as_ref().map(|user| user.id);
    let container = |sender: &Sender| sender.container.as_ref().map(|container| container.id.clone());
    let (before, now) = (before.sender, who.sender);
    before.process.as_ref().map(program) == now.process.as_ref().map(program)
        && before.script == now.script
        // Of a forwarded packet the socket's user is not known.
        && (before.user.is_none() || user(before) == user(now))
        && unit(before.unit.as_deref()) == unit(now.unit.as_deref())
        && container(before) == container(now)
}

fn key(attempt: &Attempt, netns: u32) -> Option<AwaitedKey> {
    let destination = attempt.destination?;
    Some(key_of(destination.ip, destination.port?, netns, attempt.protocol?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_may_mean_other_connections() {
        let asked = |words: &str| {
            let name =
                RuleName { ruleset: "nftables".to_owned(), id: Uuid::nil(), name: words.to_owned(), description: None };
            may_mean_others(&Attempt { cause: Some(Cause::Route), rule_name: Some(name), ..Attempt::example() })
        };
        for words in [
            "tcp sport 40000-40010 drop",
            "ip dscp cs1 drop",
            "ip ttl 10 drop",
            "tcp option maxseg size < 700 drop",
            "-A OUTPUT -p tcp -m tcp --sport 5 -j DROP",
            "-A OUTPUT -m owner --gid-owner 1 --suppl-groups -j REJECT",
            "@th,0,16 5 drop",
        ] {
            assert!(asked(words), "{words}");
        }
        for words in ["tcp dport 443 drop", "-P OUTPUT DROP", "ip daddr 203.0.113.10 counter drop", "deny out 443/tcp"]
        {
            assert!(!asked(words), "{words}");
        }
    }
}

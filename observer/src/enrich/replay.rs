//! What a copy of the rules does with the same packet: a second opinion on a rule that was seen, and the only one on a rule that
//! was not.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use observer_ebpf::abi::{RuleAnswer, UNKNOWN_RULE};

use super::{answers::Answers, attribute::Eyes, rules::Found};
use crate::model::{
    Backend, Background, Captured, Cause, Decision, Direction, Dropped, End, Endpoints, Ends, Hanging, Hook, NamedRule,
    Origin, Packet, Replay, ReplayCounts, Replayed, Stopped, WantedRule,
};

/// Packets a second that are sent again at most, and how much of a second that may take: the rest has no second opinion, so that a
/// flood to many places is told in time.
const MAX_A_SECOND: u32 = 20;
const MAX_OF_A_SECOND: Duration = Duration::from_millis(100);
/// What stops connections that hang at start is looked for so long, for all of them together; a copy so often.
const MAX_WAIT: Duration = Duration::from_millis(400);
const STEP: Duration = Duration::from_millis(20);

/// What the copy says of a packet.
#[derive(Clone, Debug)]
pub(super) enum Opinion {
    /// Nothing: it was not asked, or cannot say.
    None,
    /// No rule was seen, and the copy was not there in time: it may name that of the next packet.
    Later,
    /// The rule that was seen is the one; the chains that led there.
    Same(Vec<String>),
    /// Something else, in words.
    Differs(String),
    /// No rule was seen; this is the one.
    Is(Arc<Decision>),
    /// No rule was seen, and none can be told, for this reason.
    Unsure(String),
}

impl Opinion {
    /// What is to be said of a rule that was seen, or of its absence.
    pub(super) fn words(&self) -> Option<String> {
        match self {
            Self::Differs(words) | Self::Unsure(words) => Some(words.clone()),
            _ => None,
        }
    }
}

/// What packets have in common for which the copy says the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Alike {
    netns: u32,
    protocol: u8,
    source: (IpAddr, Option<u16>),
    destination: (IpAddr, Option<u16>),
    /// TCP's flags, or ICMP's type and code.
    detail: (Option<u8>, Option<(u8, u8)>),
    interface: Option<String>,
    origin: Origin,
}

/// Packets that were replayed.
pub(super) struct Replays {
    /// A child may be put into the sender's cgroup for a moment.
    enters_cgroups: bool,
    /// How long a copy was waited for, of connections that hang.
    waited: Duration,
    known: Answers<Alike, Replay>,
    /// Since when, how many packets, and how long they took.
    sent: (Instant, u32, Duration),
    counts: ReplayCounts,
}

impl Replays {
    pub(super) fn new(enters_cgroups: bool) -> Self {
        Self {
            enters_cgroups,
            waited: Duration::ZERO,
            known: Answers::new(),
            sent: (Instant::now(), 0, Duration::ZERO),
            counts: ReplayCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> ReplayCounts {
        self.counts
    }

    /// One more is not too many.
    fn may_send(&mut self) -> bool {
        let (since, count, spent) = &mut self.sent;
        if since.elapsed() > Duration::from_secs(1) {
            self.sent = (Instant::now(), 1, Duration::ZERO);
            return true;
        }
        *count += 1;
        *count <= MAX_A_SECOND && *spent < MAX_OF_A_SECOND
    }

    /// Sends it, and counts what that takes.
    fn ask(&mut self, netns: u32, packet: &Packet, waits: bool, eyes: &mut impl Eyes) -> Result<Replay, String> {
        let began = Instant::now();
        let replay = eyes.replay(netns, packet, waits);
        self.sent.2 += began.elapsed();
        replay
    }

    /// The opinion on what was found for a packet. `hook` as an event names it.
    pub(super) fn of(&mut self, dropped: &Dropped, hook: Option<&str>, found: &Found, eyes: &mut impl Eyes) -> Opinion {
        let Some((alike, packet)) = packet(dropped, self.enters_cgroups) else { return Opinion::None };
        // Something else than a rule may have dropped it before any rule of the copy could.
        let Some(backend) = found.decision.as_ref().and_then(|decision| decision.backend()) else {
            return Opinion::None;
        };
        let answer = dropped.rule.filter(|answer| answer.rule != UNKNOWN_RULE && answer.chain != 0);
        // An earlier answer may be of an earlier ruleset, and names nothing by itself; one that says otherwise may be of another
        // packet.
        let agrees = |known: &Replay| {
            let end = match known {
                Replay::Walked { end: Some(End::Nft(end)), .. } => end,
                _ => return false,
            };
            answer.is_some_and(|answer| is_same(&answer, end))
        };
        // A second opinion is not worth that the senders of what comes next are looked for later.
        let waits = answer.is_none();
        let replay = match self.known.get_known(&alike).filter(agrees) {
            Some(known) => known,
            None if !self.may_send() => return Opinion::None,
            None => match self.ask(dropped.netns, &packet, waits, eyes) {
                Ok(Replay::NotYet) => return if answer.is_none() { Opinion::Later } else { Opinion::None },
                Ok(replay) => {
                    self.known.put(alike, replay.clone());
                    replay
                }
                Err(why) => {
                    log::debug!("not replayed in namespace {}: {why}", dropped.netns);
                    self.counts.unable += 1;
                    return Opinion::None;
                }
            },
        };
        let Replay::Walked { end, doubt, netns_cookie, since_ns } = replay else { return Opinion::None };
        // A namespace's number may be another one's by now.
        if dropped.rule.is_none_or(|answer| answer.netns_cookie != netns_cookie) {
            return Opinion::None;
        }
        match (answer, end) {
            (Some(answer), Some(End::Nft(end))) if is_same(&answer, &end) => {
                self.counts.agreed += 1;
                Opinion::Same(end.path)
            }
            (Some(_), end) => {
                self.counts.disagreed += 1;
                Opinion::Differs(differs(end.as_ref(), doubt.as_deref()))
            }
            // What drops it now may not have done so then; and of several packets each may have met another rule.
            (None, _) if dropped.first_ns <= since_ns => Opinion::Later,
            (None, _) if dropped.packets > 1 => Opinion::None,
            (None, Some(_)) if doubt.is_some() => {
                self.counts.unsure += 1;
                let doubt = doubt.unwrap_or_default();
                Opinion::Unsure(format!("the rules decide by more than the packet: {doubt}"))
            }
            (None, Some(End::Nft(end))) if backend == Backend::Nft => {
                self.named(dropped, hook, (&end, netns_cookie), eyes)
            }
            (None, Some(End::Legacy(rule))) if backend == Backend::IptablesLegacy => {
                self.named_legacy(found.decision.as_deref(), *rule)
            }
            (None, end) => {
                self.counts.unsure += 1;
                Opinion::Unsure(differs(end.as_ref(), doubt.as_deref()))
            }
        }
    }

    /// What stops the SYN of a connection that hangs, where that is certain: the copy of its namespace's rules drops it, as they
    /// are now. All connections together take [`MAX_WAIT`].
    pub(super) fn stops(&mut self, hanging: &Hanging, eyes: &mut impl Eyes) -> Option<Stopped> {
        // Where routes do not choose its way out, nobody knows which it is.
        if hanging.is_bound {
            return None;
        }
        let origin = Origin::Socket { uid: hanging.uid, gid: hanging.gid?, mark: hanging.mark, cgroup: None };
        let packet = Packet::syn(hanging.local, hanging.remote, origin)?;
        let replay = loop {
            if self.waited >= MAX_WAIT {
                return None;
            }
            let began = Instant::now();
            let replay = eyes.replay(hanging.netns, &packet, true);
            if matches!(replay, Ok(Replay::NotYet)) {
                std::thread::sleep(STEP);
            }
            self.waited += began.elapsed();
            match replay {
                Ok(Replay::NotYet) => {}
                Ok(replay) => break replay,
                Err(why) => {
                    log::debug!("not replayed in namespace {}: {why}", hanging.netns);
                    return None;
                }
            }
        };
        let Replay::Walked { end: Some(end), doubt: None, netns_cookie, .. } = replay else { return None };
        let rule = match end {
            End::Legacy(rule) => *rule,
            End::Nft(end) => {
                let wanted = wanted_rule(hanging.netns, netns_cookie, &end, None, hanging.remote.is_ipv6());
                eyes.rule(&wanted).ok()??.rule?
            }
        };
        Some(Stopped { netns: hanging.netns, netns_cookie, rule, packet, is_by_name: false })
    }

    /// The packet, if it can be sent again.
    pub(super) fn packet(&self, dropped: &Dropped) -> Option<Packet> {
        packet(dropped, self.enters_cgroups).map(|(_, packet)| packet)
    }

    /// The rule of iptables-legacy at which the way through the copy ended, where what was seen is not another table or chain.
    fn named_legacy(&mut self, seen: Option<&Decision>, rule: NamedRule) -> Opinion {
        let is_seen = |seen: &NamedRule| {
            (&seen.family, &seen.table) == (&rule.family, &rule.table) && rule.path.first() == Some(&seen.chain)
        };
        if seen.and_then(|seen| seen.rule.as_ref()).is_some_and(|seen| !is_seen(seen)) {
            self.counts.disagreed += 1;
            return Opinion::Unsure("a copy of the rules drops it in another table or chain than was seen".to_owned());
        }
        self.counts.named += 1;
        let decider = seen.and_then(|seen| seen.decider.clone());
        Opinion::Is(Arc::new(Decision { rule: Some(rule), decider }))
    }

    /// The rule at which the way through the copy ended, where it can be no other one and the ruleset in force has it.
    fn named(
        &mut self,
        dropped: &Dropped,
        hook: Option<&str>,
        (end, netns_cookie): (&Replayed, u64),
        eyes: &mut impl Eyes,
    ) -> Opinion {
        let in_chain = dropped.rule.filter(|answer| answer.chain != 0);
        if in_chain.is_some_and(|answer| (answer.table, answer.chain) != (end.table, end.chain)) {
            self.counts.disagreed += 1;
            return Opinion::Unsure("a copy of the rules drops it in another chain than was seen".to_owned());
        }
        let v6 = dropped.endpoints.is_some_and(|endpoints| endpoints.destination.is_ipv6());
        let wanted = wanted_rule(dropped.netns, netns_cookie, end, hook, v6);
        match eyes.rule(&wanted) {
            Ok(Some(decision)) => {
                self.counts.named += 1;
                Opinion::Is(Arc::new(decision))
            }
            Ok(None) => {
                self.counts.disagreed += 1;
                Opinion::Unsure("a copy of the rules drops it by a rule that does not fit".to_owned())
            }
            Err(why) => {
                log::debug!("what the copy names in namespace {} was not read: {why}", dropped.netns);
                Opinion::None
            }
        }
    }
}

/// The question for a rule at which the way through a copy ended.
fn wanted_rule(netns: u32, netns_cookie: u64, end: &Replayed, hook: Option<&str>, v6: bool) -> WantedRule {
    WantedRule {
        netns,
        netns_cookie,
        function: 0,
        table: end.table,
        chain: end.chain,
        rule: end.rule,
        hook: hook.map(str::to_owned),
        v6: Some(v6),
    }
}

fn is_same(answer: &RuleAnswer, end: &Replayed) -> bool {
    (answer.table, answer.chain, answer.rule) == (end.table, end.chain, end.rule)
}

/// What the copy does otherwise, in words.
fn differs(end: Option<&End>, doubt: Option<&str>) -> String {
    let what = match end {
        Some(_) => "a copy of the rules drops it by another rule",
        None => "a copy of the rules lets it pass",
    };
    match doubt {
        Some(doubt) => format!("{what}; they decide by more than the packet: {doubt}"),
        None => what.to_owned(),
    }
}

/// The packet, if it can be sent again: of a process in that namespace, or one that it forwards.
fn packet(dropped: &Dropped, enters_cgroups: bool) -> Option<(Alike, Packet)> {
    let fits = dropped.cause == Cause::Netfilter
        && !dropped.coarse
        && !dropped.encapsulated
        && dropped.netns != 0
        && !dropped.by_kernel()
        && Background::of(dropped).is_none();
    let Captured { bytes, opened_by, mark, arrived_by, .. } = dropped.captured.as_ref().filter(|_| fits)?;
    let origin = match (dropped.direction, dropped.hook) {
        (Direction::Local, Some(Hook::Output | Hook::Postrouting | Hook::Egress)) => {
            let (uid, gid) = (*opened_by)?;
            Origin::Socket { uid, gid, mark: *mark, cgroup: dropped.socket?.cgroup.filter(|_| enters_cgroups) }
        }
        (Direction::Forward | Direction::Unrouted, hook) if hook != Some(Hook::Ingress) => {
            Origin::Interface { index: (*arrived_by)? }
        }
        _ => return None,
    };
    // Where it has no way out yet, it is the one that it came in by.
    let interface = dropped.interface.clone().filter(|_| dropped.direction != Direction::Unrouted);
    let asked = dropped.original.or(dropped.endpoints)?;
    let alike = Alike {
        netns: dropped.netns,
        protocol: dropped.protocol?,
        source: (asked.source, asked.source_port),
        destination: (asked.destination, asked.destination_port),
        detail: (dropped.tcp_flags, dropped.icmp),
        interface: interface.clone(),
        origin: origin.clone(),
    };
    let ends = |of: Endpoints| Ends {
        source: (of.source, of.source_port),
        destination: (of.destination, of.destination_port),
    };
    // Of a packet at its interface the length has the link's header in it.
    let length = u32::try_from(dropped.ip_length()?).ok()?;
    let packet =
        Packet { bytes: bytes.to_vec(), length, sent: dropped.original.map(ends), origin, interface, is_made: false };
    Some((alike, packet))
}

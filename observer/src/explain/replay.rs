//! What a copy of the rules does with the same packet: a second opinion on a rule that was seen, and the only one on a rule that
//! was not.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use observer_ebpf::abi::{RuleAnswer, UNKNOWN_RULE};

use super::rules::Found;
use crate::{
    attribute::{Answers, Asking},
    model::{
        Backend, Background, Captured, Cause, Decision, Direction, Dropped, End, Endpoints, Ends, Hanging, Hook,
        NamedRule, Origin, Packet, Replay, ReplayCounts, Replayed, Share, Stopped, WantedRule,
    },
    privilege::{
        HostQueries,
        protocol::{Polled, Resend, Rule},
    },
};

/// Packets a second that are sent again at most on one account, and how much of a second that may take: the rest has no second
/// opinion, so that a flood to many places is reported in time.
const MAX_A_SECOND: u32 = 20;
const MAX_OF_A_SECOND: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// Accounts that are remembered.
const MAX_SHARES: usize = 256;
/// What stops connections that hang at start is looked for so long, for all of them together; a copy so often.
const MAX_WAIT: Duration = Duration::from_millis(400);
const STEP: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(2);

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
    /// No rule was seen, and none can be reported, for this reason.
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

/// How far the question for an opinion is.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// When the packet was first asked to be sent.
    began: Option<Instant>,
    /// What became of it.
    replay: Option<Replay>,
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
pub(crate) struct Replays {
    /// Packets may be sent again at all.
    may_replay: bool,
    /// A child may be put into the sender's cgroup for a moment.
    enters_cgroups: bool,
    /// How long a copy was waited for, of connections that hang.
    waited: Duration,
    known: Answers<Alike, Replay>,
    /// On each account: since when, how many packets, and how long they took.
    sent: HashMap<Share, (Instant, u32, Duration)>,
    counts: ReplayCounts,
}

impl Replays {
    pub(super) fn new(may_replay: bool, enters_cgroups: bool) -> Self {
        Self {
            may_replay,
            enters_cgroups,
            waited: Duration::ZERO,
            known: Answers::new(),
            sent: HashMap::new(),
            counts: ReplayCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> ReplayCounts {
        self.counts
    }

    /// One more on this account is not too many.
    fn may_send(&mut self, share: Share) -> bool {
        if self.sent.len() >= MAX_SHARES {
            self.sent.retain(|_, (since, ..)| since.elapsed() < SECOND);
        }
        let (since, count, spent) = self.sent.entry(share).or_insert((Instant::now(), 0, Duration::ZERO));
        if since.elapsed() > SECOND {
            (*since, *count, *spent) = (Instant::now(), 0, Duration::ZERO);
        }
        *count += 1;
        *count <= MAX_A_SECOND && *spent < MAX_OF_A_SECOND
    }

    /// The opinion on what was found for a packet. To be called until it is known, and not again; `step` says how far it is.
    pub(super) fn of<E: HostQueries>(
        &mut self,
        dropped: &Dropped,
        found: &Found,
        step: &mut Step,
        asking: &mut Asking<'_, E>,
    ) -> Poll<Opinion> {
        if !self.may_replay {
            return Poll::Ready(Opinion::None);
        }
        let Some((alike, packet)) = packet(dropped, self.enters_cgroups) else { return Poll::Ready(Opinion::None) };
        // Something else than a rule may have dropped it before any rule of the copy could.
        let Some(backend) = found.decision.as_ref().and_then(|decision| decision.backend()) else {
            return Poll::Ready(Opinion::None);
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
        let not_yet = || if answer.is_none() { Opinion::Later } else { Opinion::None };
        let known = || self.known.get_known(&alike).filter(agrees);
        let replay = match (step.replay.clone().or_else(known), step.began) {
            (Some(known), _) => known,
            (None, None) if !self.may_send(asking.share) => return Poll::Ready(Opinion::None),
            (None, began) => {
                step.began = Some(began.unwrap_or_else(Instant::now));
                // A second opinion is not worth that a copy is waited for.
                let waits = answer.is_none();
                let question = Resend { netns: dropped.netns, packet, waits };
                let mut polled = asking.poll(question.clone());
                if began.is_none() && polled.is_ready() {
                    // It is of an earlier packet, and perhaps of an earlier ruleset.
                    polled = asking.poll(question);
                }
                match polled {
                    Poll::Pending if asking.is_last => return Poll::Ready(not_yet()),
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(came) => {
                        if let (Some((.., spent)), Some(began)) = (self.sent.get_mut(&asking.share), began) {
                            *spent += began.elapsed().min(MAX_OF_A_SECOND / 4);
                        }
                        match came {
                            Ok(Replay::NotYet) => return Poll::Ready(not_yet()),
                            Ok(replay) => {
                                self.known.put(alike, replay.clone());
                                replay
                            }
                            Err(why) => {
                                log::debug!("not replayed in namespace {}: {why}", dropped.netns);
                                self.counts.unable += 1;
                                return Poll::Ready(Opinion::None);
                            }
                        }
                    }
                }
            }
        };
        step.replay = Some(replay.clone());
        let Replay::Walked { end, doubt, netns_cookie, since_ns } = replay else { return Poll::Ready(Opinion::None) };
        // A namespace's number may be another one's by now.
        if dropped.rule.is_none_or(|answer| answer.netns_cookie != netns_cookie) {
            return Poll::Ready(Opinion::None);
        }
        Poll::Ready(match (answer, end) {
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
                return self.named(dropped, (&end, netns_cookie), asking);
            }
            (None, Some(End::Legacy(rule))) if backend == Backend::IptablesLegacy => {
                self.named_legacy(found.decision.as_deref(), *rule)
            }
            (None, end) => {
                self.counts.unsure += 1;
                Opinion::Unsure(differs(end.as_ref(), doubt.as_deref()))
            }
        })
    }

    /// What stops the SYN of a connection that hangs, where that is certain: the copy of its namespace's rules drops it, as they
    /// are now. All connections together take [`MAX_WAIT`].
    pub(super) fn stops<E: HostQueries>(
        &mut self,
        hanging: &Hanging,
        share: Share,
        queries: &mut E,
    ) -> Option<Stopped> {
        // Where routes do not choose its way out, nobody knows which it is.
        if hanging.is_bound || !self.may_replay {
            return None;
        }
        let origin = Origin::Socket {
            uid: hanging.uid,
            gid: hanging.gid?,
            mark: hanging.mark,
            groups: Vec::new(),
            cgroup: None,
        };
        let packet = Packet::syn(hanging.local, hanging.remote, origin)?;
        let asked = Resend { netns: hanging.netns, packet: packet.clone(), waits: true };
        let replay = loop {
            match self.wait(&asked, share, queries)? {
                Ok(Replay::NotYet) => {
                    std::thread::sleep(STEP);
                    self.waited += STEP;
                }
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
                self.wait(&Rule { wanted }, share, queries)?.ok()??.rule?
            }
        };
        Some(Stopped { netns: hanging.netns, netns_cookie, rule, packet, is_by_name: false })
    }

    /// The answer to a question, waited for at start, when nothing else is to be done; nothing once all connections together have
    /// taken [`MAX_WAIT`].
    fn wait<E: HostQueries, Q: Polled + Clone>(
        &mut self,
        question: &Q,
        share: Share,
        queries: &mut E,
    ) -> Option<Q::Answer> {
        while self.waited < MAX_WAIT {
            let began = Instant::now();
            queries.take_answers();
            if let Poll::Ready(answer) = queries.poll(share, question.clone()) {
                return Some(answer);
            }
            std::thread::sleep(LOOK);
            self.waited += began.elapsed();
        }
        None
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
    fn named<E: HostQueries>(
        &mut self,
        dropped: &Dropped,
        (end, netns_cookie): (&Replayed, u64),
        asking: &mut Asking<'_, E>,
    ) -> Poll<Opinion> {
        let in_chain = dropped.rule.filter(|answer| answer.chain != 0);
        if in_chain.is_some_and(|answer| (answer.table, answer.chain) != (end.table, end.chain)) {
            self.counts.disagreed += 1;
            let why = "a copy of the rules drops it in another chain than was seen";
            return Poll::Ready(Opinion::Unsure(why.to_owned()));
        }
        let v6 = dropped.endpoints.is_some_and(|endpoints| endpoints.destination.is_ipv6());
        let wanted = wanted_rule(dropped.netns, netns_cookie, end, dropped.hook, v6);
        Poll::Ready(match asking.poll(Rule { wanted }) {
            Poll::Pending if asking.is_last => Opinion::Later,
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(Some(decision))) => {
                self.counts.named += 1;
                Opinion::Is(Arc::new(decision))
            }
            Poll::Ready(Ok(None)) => {
                self.counts.disagreed += 1;
                Opinion::Unsure("a copy of the rules drops it by a rule that does not fit".to_owned())
            }
            Poll::Ready(Err(why)) => {
                log::debug!("what the copy names in namespace {} was not read: {why}", dropped.netns);
                Opinion::Later
            }
        })
    }
}

/// The question for a rule at which the way through a copy ended.
fn wanted_rule(netns: u32, netns_cookie: u64, end: &Replayed, hook: Option<Hook>, v6: bool) -> WantedRule {
    WantedRule {
        netns,
        netns_cookie,
        function: 0,
        table: end.table,
        chain: end.chain,
        rule: end.rule,
        hook,
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
        && dropped.waited_for.is_none()
        && Background::of(dropped).is_none();
    let Captured { bytes, opened_by, mark, arrived_by, .. } = dropped.captured.as_ref().filter(|_| fits)?;
    let origin = match (dropped.direction, dropped.hook) {
        (Direction::Local, Some(Hook::Output | Hook::Postrouting | Hook::Egress)) => {
            let (uid, gid) = (*opened_by)?;
            Origin::Socket {
                uid,
                gid,
                groups: Vec::new(),
                mark: *mark,
                cgroup: dropped.socket?.cgroup.filter(|_| enters_cgroups),
            }
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

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;

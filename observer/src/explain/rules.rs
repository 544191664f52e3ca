//! The rule, or what else, that the kernel half saw drop a packet: believed only when user space finds it and it can have
//! dropped that packet; and how often that was so.

use std::{
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use observer_ebpf::abi::{RuleAnswer, UNKNOWN_RULE};

use super::replay::Replays;
use crate::{
    attribute::{Answers, Asking},
    model::{Background, Cause, Compared, Decision, Dropped, RuleCounts, RulesSeen, WantedRule},
    privilege::{Eyes, protocol::Rule},
    probe::{
        calibrate::proof::Unproven,
        rules::{Proof, Proving, RuleMaps},
    },
};

/// The functions that give verdicts are probed so long after the last block, and that is renewed so often.
const PROBED: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// The same where no verdict was seen.
const ANEW: Duration = Duration::from_secs(1);
/// How often the method is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether the kernel half tells what dropped a packet.
enum Method {
    /// It does, as far as this says.
    Armed(Proof),
    /// Not yet, when it was tried last, and why: nftables is not loaded, or the helper had too much to do.
    NotYet(Instant, String),
    /// It cannot, and why.
    Impossible(String),
}

/// What is known of what dropped a packet.
#[derive(Clone, Default)]
pub struct Found {
    /// Confirmed; `None` where the kernel half saw nothing, or nothing that can have been.
    pub decision: Option<Arc<Decision>>,
    /// It could not be looked up yet.
    pub unread: bool,
    /// Two ways of seeing it disagree: nothing is said of it.
    pub disputed: bool,
}

/// What may be done beside looking.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// A packet may be sent again, through a private copy of the rules.
    pub replays: bool,
    /// A packet may be sent again from its sender's cgroup.
    pub enters_cgroups: bool,
    /// Commands that would let it through may be tried in a private copy.
    pub finds_fixes: bool,
    /// What was stopped for this process or its children goes before everything else.
    pub first: Option<u32>,
}

/// Rules that were asked about.
pub struct Rules {
    maps: RuleMaps,
    method: Method,
    /// When the functions that give verdicts were probed last.
    probed: Option<Instant>,
    known: Answers<WantedRule, Option<Arc<Decision>>>,
    seen: RuleCounts,
    seen_by_verdict: RuleCounts,
    compared: Compared,
    pub(super) replays: Replays,
    /// Modules have changed, and the kernel's functions were not looked up since: when that was tried last.
    stale: Option<Instant>,
}

impl Rules {
    /// Tries the method.
    pub fn new(maps: RuleMaps, allowed: Allowed, prover: &mut impl Proving) -> Self {
        let mut rules = Self {
            maps,
            method: Method::NotYet(Instant::now(), String::new()),
            probed: None,
            known: Answers::new(),
            seen: RuleCounts::default(),
            seen_by_verdict: RuleCounts::default(),
            compared: Compared::default(),
            replays: Replays::new(allowed.replays, allowed.enters_cgroups),
            stale: None,
        };
        rules.arm(prover);
        rules
    }

    fn arm(&mut self, prover: &mut impl Proving) {
        self.method = match self.maps.arm(prover) {
            Ok(proof) => {
                log::debug!("seen live: {proof}");
                Method::Armed(proof)
            }
            Err(Unproven::Other(why)) => Method::Impossible(why),
            Err(error) => Method::NotYet(Instant::now(), error.to_string()),
        };
    }

    /// True when rules are told.
    pub fn are_live(&self) -> bool {
        matches!(&self.method, Method::Armed(proof) if proof.rules.is_ok())
    }

    /// True when rules are told from the second packet of a block on.
    pub fn are_probed(&self) -> bool {
        matches!(&self.method, Method::Armed(proof) if matches!(proof.verdicts, Some(Ok(()))))
    }

    /// Has the functions that give verdicts probed, as long as something is being blocked.
    fn probe(&mut self, after: Duration, eyes: &mut impl Eyes) {
        if !self.are_probed() || self.probed.is_some_and(|last| last.elapsed() < after) {
            return;
        }
        self.probed = Some(Instant::now());
        if let Err(why) = eyes.arm_verdicts(PROBED, false) {
            log::warn!("the functions that give verdicts are not probed: {why}");
        }
    }

    /// Modules have come or gone: functions are elsewhere, and what was not possible may be. What was learnt of nftables' own
    /// module holds as long as that stays.
    pub fn modules_changed(&mut self, nftables: bool, prover: &mut impl Proving) {
        self.maps.modules_changed();
        if nftables || matches!(self.method, Method::NotYet(..)) {
            self.arm(prover);
        } else {
            self.find_functions(prover);
        }
    }

    fn find_functions(&mut self, prover: &mut impl Proving) {
        let found = self.maps.find_functions(prover);
        self.stale = found.is_err().then(Instant::now);
        if let Err(error) = found {
            log::debug!("the kernel's functions were not looked up: {error}");
        }
    }

    /// Something is to be tried again.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.is_some()
    }

    /// Looks up again what was not to be had.
    pub(crate) fn refresh(&mut self, prover: &mut impl Proving) {
        if self.stale.is_some_and(|tried| tried.elapsed() > AGAIN) {
            self.find_functions(prover);
        }
    }

    /// Whether rules are seen, and what came of it so far.
    pub fn summary(&self) -> RulesSeen {
        let why = match &self.method {
            Method::Armed(proof) => proof.rules.as_ref().err().cloned(),
            Method::NotYet(_, why) | Method::Impossible(why) => Some(why.clone()),
        };
        let hooks = matches!(&self.method, Method::Armed(proof) if proof.hooks.is_ok());
        RulesSeen {
            live: why.is_none(),
            why,
            hooks,
            verdicts: self.are_probed(),
            probe: self.seen,
            verdict: self.seen_by_verdict,
            compared: (self.are_live() && self.are_probed()).then_some(self.compared),
            replay: self.replays.counts(),
        }
    }

    fn count(&mut self, by_verdict: bool) -> &mut RuleCounts {
        if by_verdict { &mut self.seen_by_verdict } else { &mut self.seen }
    }

    /// The rule that dropped a packet, or what else did, where the kernel half saw it and it is confirmed. To be called until it
    /// is known, and not again.
    pub(super) fn of<E: Eyes>(&mut self, dropped: &Dropped, asking: &mut Asking<'_, E>) -> Poll<Found> {
        let Some(answer) = dropped.rule.filter(|_| dropped.cause == Cause::Netfilter) else {
            // nftables may have been loaded since.
            if let (Cause::Netfilter, Method::NotYet(tried, _)) = (dropped.cause, &self.method)
                && tried.elapsed() > AGAIN
            {
                self.arm(asking.eyes);
            }
            return Poll::Ready(Found::default());
        };
        let by_chain = answer.function != 0 && answer.chain != 0;
        let found = if dropped.verdict_agrees == Some(false) {
            log::warn!("where the packet was freed and where the verdict was given, two rules were seen: {answer:?}");
            self.compared.disagreed += 1;
            Found { disputed: true, ..Found::default() }
        } else {
            let found = ready!(self.asked(dropped, answer, by_chain, asking));
            self.compared.agreed += u64::from(dropped.verdict_agrees.is_some());
            found
        };
        // What nobody waits for is not worth the cost. Behind the question, whose answer says what must be probed.
        if answer.chain != 0 && Background::of(dropped).is_none() {
            // Where no verdict was seen, a function may be missing that the ruleset has come to need.
            let unseen = answer.rule == UNKNOWN_RULE || !by_chain && dropped.verdict_agrees.is_none();
            self.probe(if unseen { ANEW } else { RENEW }, asking.eyes);
        }
        Poll::Ready(found)
    }

    /// The same of a packet that was told already, looked at anew.
    pub(crate) fn again<E: Eyes>(
        &mut self,
        wanted: &WantedRule,
        asking: &mut Asking<'_, E>,
    ) -> Poll<Option<Arc<Decision>>> {
        let answer = ready!(asking.poll(Rule { wanted: wanted.clone() }));
        Poll::Ready(answer.ok().flatten().map(|decision| {
            let decision = Arc::new(decision);
            self.known.put(wanted.clone(), Some(Arc::clone(&decision)));
            decision
        }))
    }

    fn asked<E: Eyes>(
        &mut self,
        dropped: &Dropped,
        answer: RuleAnswer,
        by_chain: bool,
        asking: &mut Asking<'_, E>,
    ) -> Poll<Found> {
        let by_verdict = by_chain && answer.rule != UNKNOWN_RULE;
        let wanted = wanted(dropped, answer);
        let unread = |rules: &mut Self| {
            let counts = rules.count(by_verdict);
            (counts.answered, counts.unread) = (counts.answered + 1, counts.unread + 1);
            Poll::Ready(Found { unread: true, ..Found::default() })
        };
        let named = match self.known.get_known(&wanted) {
            Some(known) => known,
            None => match asking.poll(Rule { wanted: wanted.clone() }) {
                Poll::Pending if asking.is_last => return unread(self),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(why)) => {
                    log::debug!("what decided in namespace {} was not read: {why}", wanted.netns);
                    return unread(self);
                }
                Poll::Ready(Ok(decision)) => {
                    let named = decision.map(Arc::new);
                    match &named {
                        Some(_) => self.known.put(wanted, named.clone()),
                        None => self.known.put_none(wanted, None),
                    }
                    named
                }
            },
        };
        let counts = self.count(by_verdict);
        counts.answered += 1;
        match named {
            Some(_) => counts.confirmed += 1,
            None => counts.discarded += 1,
        }
        Poll::Ready(Found { decision: named, ..Found::default() })
    }
}

/// What is asked about a packet.
pub fn wanted(dropped: &Dropped, answer: RuleAnswer) -> WantedRule {
    WantedRule {
        netns: dropped.netns,
        netns_cookie: answer.netns_cookie,
        function: answer.function,
        table: answer.table,
        chain: answer.chain,
        rule: answer.rule,
        hook: dropped.hook,
        v6: dropped.endpoints.map(|endpoints| endpoints.destination.is_ipv6()),
    }
}

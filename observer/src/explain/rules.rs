//! The rule, or what else, that the eBPF side saw drop a packet: believed only when user space finds it and it can have
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
    privilege::{HostQueries, protocol::Rule},
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

/// Whether the eBPF side tells what dropped a packet.
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
    /// Confirmed; `None` where the eBPF side saw nothing, or nothing that can have been.
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
    confirmed: Confirmed,
    pub(super) replays: Replays,
    /// Modules have changed, and the kernel's functions were not looked up since: when that was tried last.
    stale: Option<Instant>,
}

/// Answers of the eBPF side that the ruleset confirmed, or not; and how many.
struct Confirmed {
    known: Answers<WantedRule, Option<Arc<Decision>>>,
    seen: RuleCounts,
    seen_by_verdict: RuleCounts,
    compared: Compared,
}

impl Rules {
    /// Tries the method.
    pub fn new(maps: RuleMaps, allowed: Allowed, prover: &mut impl Proving) -> Self {
        let mut rules = Self {
            maps,
            method: Method::NotYet(Instant::now(), String::new()),
            probed: None,
            confirmed: Confirmed::new(),
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

    /// True when rules are reported.
    pub fn are_live(&self) -> bool {
        matches!(&self.method, Method::Armed(proof) if proof.rules.is_ok())
    }

    /// True when rules are reported from the second packet of a block on.
    pub fn are_probed(&self) -> bool {
        matches!(&self.method, Method::Armed(proof) if matches!(proof.verdicts, Some(Ok(()))))
    }

    /// Has the functions that give verdicts probed, as long as something is being blocked.
    fn probe(&mut self, after: Duration, queries: &mut impl HostQueries) {
        if !self.are_probed() || self.probed.is_some_and(|last| last.elapsed() < after) {
            return;
        }
        self.probed = Some(Instant::now());
        if let Err(why) = queries.arm_verdicts(PROBED, false) {
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
            probe: self.confirmed.seen,
            verdict: self.confirmed.seen_by_verdict,
            compared: (self.are_live() && self.are_probed()).then_some(self.confirmed.compared),
            replay: self.replays.counts(),
        }
    }

    /// The rule that dropped a packet, or what else did, where the eBPF side saw it and it is confirmed. To be called until it
    /// is known, and not again.
    pub(super) fn of<E: HostQueries>(&mut self, dropped: &Dropped, asking: &mut Asking<'_, E>) -> Poll<Found> {
        let Some(answer) = dropped.rule.filter(|_| dropped.cause == Cause::Netfilter) else {
            // nftables may have been loaded since.
            if let (Cause::Netfilter, Method::NotYet(tried, _)) = (dropped.cause, &self.method)
                && tried.elapsed() > AGAIN
            {
                self.arm(asking.queries);
            }
            return Poll::Ready(Found::default());
        };
        let by_chain = answer.function != 0 && answer.chain != 0;
        let found = ready!(self.confirmed.of(dropped, answer, asking));
        // Background traffic is not worth the cost. Behind the question, whose answer says what must be probed.
        if answer.chain != 0 && Background::of(dropped).is_none() {
            // Where no verdict was seen, a function may be missing that the ruleset has come to need.
            let unseen = answer.rule == UNKNOWN_RULE || !by_chain && dropped.verdict_agrees.is_none();
            self.probe(if unseen { ANEW } else { RENEW }, asking.queries);
        }
        Poll::Ready(found)
    }

    /// The same of a packet that was reported already, looked at anew.
    pub(crate) fn again<E: HostQueries>(
        &mut self,
        wanted: &WantedRule,
        asking: &mut Asking<'_, E>,
    ) -> Poll<Option<Arc<Decision>>> {
        let answer = ready!(asking.poll(Rule { wanted: wanted.clone() }));
        Poll::Ready(answer.ok().flatten().map(|decision| {
            let decision = Arc::new(decision);
            self.confirmed.known.put(wanted.clone(), Some(Arc::clone(&decision)));
            decision
        }))
    }
}

impl Confirmed {
    fn new() -> Self {
        Self {
            known: Answers::new(),
            seen: RuleCounts::default(),
            seen_by_verdict: RuleCounts::default(),
            compared: Compared::default(),
        }
    }

    fn count(&mut self, by_verdict: bool) -> &mut RuleCounts {
        if by_verdict { &mut self.seen_by_verdict } else { &mut self.seen }
    }

    /// What the ruleset says of an answer of the eBPF side.
    fn of<E: HostQueries>(&mut self, dropped: &Dropped, answer: RuleAnswer, asking: &mut Asking<'_, E>) -> Poll<Found> {
        if dropped.verdict_agrees == Some(false) {
            log::warn!("two ways of seeing the rule disagree in namespace {}: it is not reported", dropped.netns);
            log::debug!("{answer:?}");
            self.compared.disagreed += 1;
            return Poll::Ready(Found { disputed: true, ..Found::default() });
        }
        let found = ready!(self.asked(dropped, answer, asking));
        self.compared.agreed += u64::from(dropped.verdict_agrees.is_some());
        Poll::Ready(found)
    }

    fn asked<E: HostQueries>(
        &mut self,
        dropped: &Dropped,
        answer: RuleAnswer,
        asking: &mut Asking<'_, E>,
    ) -> Poll<Found> {
        let by_verdict = answer.function != 0 && answer.chain != 0 && answer.rule != UNKNOWN_RULE;
        let wanted = wanted(dropped, answer);
        let unread = |confirmed: &mut Self| {
            let counts = confirmed.count(by_verdict);
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

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;
    use crate::{
        model::{NamedRule, Share},
        privilege::{
            fake::Fake,
            protocol::{Request, encode},
        },
    };

    /// What the helper says of a rule; `None` for nothing yet.
    type Said = Option<Result<Option<Decision>, String>>;

    fn decision() -> Decision {
        Decision { rule: Some(NamedRule::example("udp dport 9 drop")), decider: None }
    }

    fn seen(answer: RuleAnswer) -> Dropped {
        Dropped { rule: Some(answer), cause: Cause::Netfilter, ..Dropped::example() }
    }

    const ANSWER: RuleAnswer = RuleAnswer { netns_cookie: 1, function: 0, table: 2, chain: 3, rule: 4 };

    /// Asks so often, of a helper that says so; how often it was asked, and the last answer.
    fn asked(
        confirmed: &mut Confirmed,
        said: Said,
        dropped: &Dropped,
        times: usize,
        is_last: bool,
    ) -> (u32, Poll<Found>) {
        let count = Rc::new(Cell::new(0));
        let counter = Rc::clone(&count);
        let mut queries = Fake(Box::new(move |request| {
            assert!(matches!(request, Request::Rule(_)), "{request:?}");
            counter.set(counter.get() + 1);
            said.as_ref().map(encode::<Rule>)
        }));
        let mut found = Poll::Pending;
        for _ in 0..times {
            let mut asking = Asking { queries: &mut queries, share: Share::Host, is_last };
            found = confirmed.of(dropped, dropped.rule.unwrap_or_default(), &mut asking);
        }
        (count.get(), found)
    }

    fn ready_found(found: Poll<Found>) -> Found {
        match found {
            Poll::Ready(found) => found,
            Poll::Pending => panic!("nothing was found"),
        }
    }

    #[test]
    fn what_the_ruleset_has_is_told_and_asked_about_once() {
        let mut confirmed = Confirmed::new();
        let (times, found) = asked(&mut confirmed, Some(Ok(Some(decision()))), &seen(ANSWER), 3, false);
        assert_eq!((times, ready_found(found).decision.as_deref()), (1, Some(&decision())));
        assert_eq!((confirmed.seen.answered, confirmed.seen.confirmed, confirmed.seen.discarded), (3, 3, 0));
        assert_eq!(confirmed.seen_by_verdict, RuleCounts::default());
    }

    #[test]
    fn what_the_ruleset_has_not_is_not_told() {
        let mut confirmed = Confirmed::new();
        let (_, found) = asked(&mut confirmed, Some(Ok(None)), &seen(ANSWER), 1, false);
        let found = ready_found(found);
        assert!(found.decision.is_none() && !found.unread && !found.disputed);
        assert_eq!((confirmed.seen.answered, confirmed.seen.discarded), (1, 1));
    }

    #[test]
    fn what_was_not_read_may_come_later() {
        let mut confirmed = Confirmed::new();
        let (_, found) = asked(&mut confirmed, None, &seen(ANSWER), 1, false);
        assert!(found.is_pending() && confirmed.seen == RuleCounts::default(), "there is time");
        let (_, found) = asked(&mut confirmed, None, &seen(ANSWER), 1, true);
        assert!(ready_found(found).unread, "its time is over");
        let (_, found) = asked(&mut confirmed, Some(Err("it is gone".to_owned())), &seen(ANSWER), 1, false);
        assert!(ready_found(found).unread);
        assert_eq!((confirmed.seen.answered, confirmed.seen.unread), (2, 2));
    }

    #[test]
    fn of_two_ways_that_disagree_neither_is_told() {
        let mut confirmed = Confirmed::new();
        let dropped = Dropped { verdict_agrees: Some(false), ..seen(ANSWER) };
        let (times, found) = asked(&mut confirmed, Some(Ok(Some(decision()))), &dropped, 1, true);
        let found = ready_found(found);
        assert!(times == 0 && found.disputed && found.decision.is_none());
        assert_eq!((confirmed.compared.agreed, confirmed.compared.disagreed), (0, 1));
        let dropped = Dropped { verdict_agrees: Some(true), ..seen(ANSWER) };
        let (times, _) = asked(&mut confirmed, Some(Ok(Some(decision()))), &dropped, 1, true);
        assert_eq!(times, 1);
        assert_eq!(confirmed.compared.agreed, 1);
    }

    #[test]
    fn what_was_seen_by_its_verdict_is_counted_so() {
        let mut confirmed = Confirmed::new();
        let by_verdict = seen(RuleAnswer { function: 5, ..ANSWER });
        let (first, _) = asked(&mut confirmed, Some(Ok(Some(decision()))), &by_verdict, 1, true);
        let by_chain = seen(RuleAnswer { function: 5, rule: UNKNOWN_RULE, ..ANSWER });
        let (second, _) = asked(&mut confirmed, Some(Ok(Some(decision()))), &by_chain, 1, true);
        assert_eq!((first, second), (1, 1));
        assert_eq!((confirmed.seen_by_verdict.confirmed, confirmed.seen.confirmed), (1, 1));
    }
}

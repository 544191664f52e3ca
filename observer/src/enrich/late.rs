//! Rules that could not be read in time, or their text: told later, in a line of their own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use observer_ebpf::abi::{RuleAnswer, UNKNOWN_RULE};
use uuid::Uuid;

use super::{assemble::Assembler, attribute::Eyes};
use crate::{
    model::{Action, Event, NamedRule, Packet, Purpose, WantedRule},
    patience,
};

/// Lines whose rules are waited for; of more the text stays absent.
const MAX_WAITING: usize = 64;
/// How long they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// A line without its rule, or without its text.
struct Waiting {
    event: Box<Event>,
    wanted: WantedRule,
    /// What was stopped, where somebody waits for it.
    packet: Option<Packet>,
    since: Instant,
}

/// Incidents of such lines that are remembered.
const MAX_PROVISIONAL: usize = 4096;

/// All of them, the eldest first; and under which incident each was told, which stays theirs in this run.
#[derive(Default)]
pub struct Late {
    waiting: Vec<Waiting>,
    provisional: HashMap<Uuid, RuleAnswer>,
    /// The same where the rule of packets that come later will be known: by a copy of the rules, or because verdicts are probed by
    /// then.
    expected: HashMap<Uuid, Expected>,
    /// Lines whose rule was known first by a later packet.
    known: Vec<(Event, NamedRule)>,
}

/// What was told of packets by their chain alone.
struct Expected {
    /// Cookie of the namespace, and handles of table and base chain: others are another story.
    place: (u64, u64, u64),
    /// Source port of the one packet that it was, if it was one: sent again, it meets the same rule.
    port: Option<u16>,
    /// Of several packets each may have met another rule or the policy, which gives no verdict.
    is_mixed: bool,
    /// The first rule that was named since, in words.
    named: Option<String>,
}

/// Where a walk through the rules began.
fn place(answer: &RuleAnswer) -> (u64, u64, u64) {
    (answer.netns_cookie, answer.table, answer.chain)
}

impl Late {
    /// Remembers a line whose rule is known but for its text, or could not be looked up yet (`unread`); the first one of its
    /// incident is enough.
    pub(super) fn remember(
        &mut self,
        event: &Event,
        answer: RuleAnswer,
        unread: bool,
        wanted: impl FnOnce() -> (WantedRule, Option<Packet>),
    ) {
        let known = event.egress.rule.as_ref().map_or(unread, |rule| rule.text.is_none());
        // Of what only the chain is known there is no text to come.
        if !known || answer.chain == 0 || answer.rule == UNKNOWN_RULE && !unread {
            return;
        }
        if self.provisional.len() < MAX_PROVISIONAL && answer.rule != UNKNOWN_RULE {
            self.provisional.entry(event.egress.incident).or_insert(answer);
        }
        if answer.rule != UNKNOWN_RULE {
            self.is_outdone(event.egress.incident);
        }
        let waits = self.waiting.iter().any(|waiting| waiting.event.egress.incident == event.egress.incident);
        if waits || self.waiting.len() >= MAX_WAITING {
            return;
        }
        let (wanted, packet) = wanted();
        self.waiting.push(Waiting { event: Box::new(event.clone()), wanted, packet, since: Instant::now() });
    }

    /// A chain that is waited for under this incident is not news any more: the rule is known.
    fn is_outdone(&mut self, incident: Uuid) {
        let is_chain = |waiting: &Waiting| waiting.wanted.rule == UNKNOWN_RULE;
        self.waiting.retain(|waiting| waiting.event.egress.incident != incident || !is_chain(waiting));
    }

    /// Something was told under this incident, and a copy of the rules (`by_copy`) or a probed verdict may name the rule of what
    /// comes next. `port` is the source port, where it was one packet.
    pub(super) fn expect(&mut self, incident: Uuid, answer: &RuleAnswer, port: Option<u16>, by_copy: bool) {
        let is_known = self.expected.contains_key(&incident);
        if is_known || self.expected.len() < MAX_PROVISIONAL {
            let expected = self.expected.entry(incident).or_insert(Expected {
                place: place(answer),
                port,
                is_mixed: port.is_none(),
                named: None,
            });
            expected.is_mixed |= is_known && !by_copy && (port.is_none() || port != expected.port);
        }
    }

    /// Whether what is named now goes on under the incident that was told before; it is the first rule that is named there.
    pub(super) fn goes_on(&mut self, incident: Uuid, answer: &RuleAnswer, by_copy: bool, words: &str) -> bool {
        let Some(expected) = self.expected.get_mut(&incident) else { return false };
        if expected.place != place(answer) || expected.is_mixed && !by_copy && expected.named.is_none() {
            return false;
        }
        expected.named.get_or_insert_with(|| words.to_owned()) == words
    }

    /// Whether no rule was named yet under an incident that goes on.
    pub(super) fn is_first(&self, incident: Uuid) -> bool {
        self.expected.get(&incident).is_some_and(|expected| expected.named.is_none())
    }

    /// The rule of what was told before is known by this packet: it is told in a line of its own too.
    pub(super) fn tell(&mut self, event: &Event, rule: &NamedRule) {
        self.is_outdone(event.egress.incident);
        if self.known.len() < MAX_WAITING {
            self.known.push((event.clone(), rule.clone()));
        }
    }

    /// Whether something was told of this rule under that incident, before its text was known.
    pub(super) fn was_told(&self, incident: Uuid, answer: &RuleAnswer) -> bool {
        self.provisional.get(&incident) == Some(answer)
    }

    /// Whether any is waited for.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.known.is_empty()
    }
}

impl<E: Eyes> Assembler<E> {
    /// Something is to be looked up yet: call [`Self::late`] from time to time.
    pub fn waits(&self) -> bool {
        let reached = !self.attributor.reached.is_empty() || self.awaited.are_waiting();
        reached || self.late.is_waiting() || self.rules.is_stale() || self.fixes.are_waiting()
    }

    /// Lines for the rules whose texts have come meanwhile, and for fixes: of the same incident, and of no packet.
    pub fn late(&mut self) -> Vec<Event> {
        self.rules.refresh(&mut self.attributor.eyes);
        let mut lines = Vec::new();
        for (mut event, rule) in std::mem::take(&mut self.late.known) {
            self.name(&mut event, &rule);
            lines.push(event);
        }
        let mut all = std::mem::take(&mut self.late.waiting).into_iter();
        while let Some(mut waiting) = all.next() {
            let decision = self.rules.again(&waiting.wanted, &mut self.attributor.eyes);
            let over = waiting.since.elapsed() >= patience::here(PATIENCE);
            // Without its text it is better than nothing.
            let enough = |rule: &&NamedRule| {
                let all = rule.text.is_some() || waiting.wanted.rule == UNKNOWN_RULE;
                all || over && waiting.event.egress.rule.is_none()
            };
            match decision.as_ref().and_then(|decision| decision.rule.as_ref()).filter(enough) {
                Some(rule) => {
                    self.name(&mut waiting.event, rule);
                    self.fixes.consider(&waiting.event, rule, waiting.packet, waiting.wanted.netns_cookie);
                    lines.push(*waiting.event);
                }
                // Asking takes a while where the text is not there yet: the others come first next time.
                None => {
                    self.late.waiting.extend(all);
                    if !over {
                        self.late.waiting.push(waiting);
                    }
                    break;
                }
            }
        }
        lines.extend(self.fixed());
        lines.extend(std::iter::from_fn(|| self.restored(false)));
        lines
    }

    /// Makes of a line the news of its rule.
    fn name(&mut self, event: &mut Event, rule: &NamedRule) {
        event.timestamp = Timestamp::now();
        event.event.action = Action::EgressRule;
        if rule.translates.is_some() {
            event.egress.cause = Some(Purpose::Translation.cause());
        }
        event.event.id = Some(self.event_id());
        event.event.reason = Some(rule.sentence());
        event.egress.count = 0;
        event.egress.bytes = 0;
        event.egress.verdict = rule.verdict;
        event.egress.rule = Some(rule.seen());
        event.rule = rule.name();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INCIDENT: Uuid = Uuid::from_u128(1);
    const PORT: u16 = 40_000;

    fn answer(netns_cookie: u64, rule: u64) -> RuleAnswer {
        RuleAnswer { netns_cookie, function: 7, table: 1, chain: 2, rule }
    }

    #[test]
    fn a_story_goes_on_with_the_first_rule_that_is_known() {
        let mut late = Late::default();
        assert!(!late.goes_on(INCIDENT, &answer(5, 3), false, "drop"), "nothing was told");
        late.expect(INCIDENT, &answer(5, UNKNOWN_RULE), Some(PORT), false);
        // Sent again.
        late.expect(INCIDENT, &answer(5, UNKNOWN_RULE), Some(PORT), false);
        assert!(!late.goes_on(INCIDENT, &answer(6, 3), false, "drop"), "another namespace's");
        assert!(late.is_first(INCIDENT));
        assert!(late.goes_on(INCIDENT, &answer(5, 3), false, "drop"));
        assert!(!late.is_first(INCIDENT), "it is told once");
        assert!(late.goes_on(INCIDENT, &answer(5, 3), false, "drop"));
        assert!(!late.goes_on(INCIDENT, &answer(5, 4), false, "reject"), "another rule is another story");
    }

    #[test]
    fn packets_of_which_each_may_have_met_another_rule_are_not_one_rules() {
        let mut late = Late::default();
        late.expect(INCIDENT, &answer(5, UNKNOWN_RULE), Some(PORT), false);
        late.expect(INCIDENT, &answer(5, UNKNOWN_RULE), Some(PORT + 1), false);
        assert!(!late.goes_on(INCIDENT, &answer(5, 3), false, "drop"), "a policy gives no verdict");
        assert!(late.goes_on(INCIDENT, &answer(5, 3), true, "drop"), "a copy names it where the packet is the same");
    }
}

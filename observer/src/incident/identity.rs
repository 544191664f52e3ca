//! Under which id something is reported. The same cause gives the same id, on every run and every host; and an id, once given, stays:
//! what was reported before its rule was known goes on under the id that it was reported under.

use observer_ebpf::abi::{RuleAnswer, UNKNOWN_RULE};
use uuid::Uuid;

use crate::{
    explain::Sight,
    model::{Attempt, Hook},
};

/// Name space of incident ids.
const INCIDENTS: Uuid = Uuid::from_u128(0x6f62_7365_7276_6572_2069_6e63_6964_656e);
/// What a connection that hangs has for a cause.
const HANGING: &str = "hanging";

/// What is known of how the packets of an incident were reported.
#[derive(Default)]
pub(super) struct Identity {
    /// What the eBPF side saw, of what was reported before that was looked up.
    seen: Option<RuleAnswer>,
    /// Of what was reported by its chain alone, while the rule of later packets would be known.
    expected: Option<Expected>,
    /// The rule that was named since, in words.
    named: Option<String>,
}

struct Expected {
    /// Cookie of the namespace, and handles of table and base chain: others are another story.
    place: (u64, u64, u64),
    /// Source port of the one packet that it was, if it was one: sent again, it meets the same rule.
    port: Option<u16>,
    /// Of several packets each may have met another rule or the policy, which gives no verdict.
    is_mixed: bool,
}

/// Where a walk through the rules began.
fn place(answer: &RuleAnswer) -> (u64, u64, u64) {
    (answer.netns_cookie, answer.table, answer.chain)
}

impl Identity {
    /// What is reported now belongs to what was reported under this id before its rule was known.
    pub(super) fn goes_on(&self, sight: &Sight) -> bool {
        let words = sight.rule().and_then(|rule| rule.words());
        // Another rule may have got the same handle since.
        if let (Some(named), Some(words)) = (&self.named, words) {
            return named == words;
        }
        if sight.decision.is_some() && sight.answer.is_some() && self.seen == sight.answer {
            return true;
        }
        if words.is_none() {
            return false;
        }
        // Known by a copy of the rules, or by its verdict.
        let is_by_verdict = |answer: &RuleAnswer| answer.function != 0 && answer.rule != UNKNOWN_RULE;
        let answer = sight.answer.filter(|answer| sight.is_replayed || is_by_verdict(answer));
        let expected = self.expected.as_ref().zip(answer);
        expected.is_some_and(|(expected, answer)| {
            expected.place == place(&answer) && (!expected.is_mixed || sight.is_replayed)
        })
    }

    /// What was reported under it has no rule so far, and a later packet was expected to have one.
    pub(super) fn is_unnamed(&self) -> bool {
        self.expected.is_some() && self.named.is_none()
    }

    /// Its rule is known.
    pub(super) fn name(&mut self, words: &str) {
        self.named.get_or_insert_with(|| words.to_owned());
    }

    /// Something is reported under it that was not looked up yet.
    pub(super) fn see(&mut self, answer: RuleAnswer) {
        self.seen.get_or_insert(answer);
    }

    /// Something is reported under it while a copy of the rules, or a probed verdict, may name the rule of what comes next.
    pub(super) fn expect(&mut self, sight: &Sight) {
        let is_probed_next =
            |answer: &RuleAnswer| answer.chain != 0 && answer.rule == UNKNOWN_RULE && !sight.is_replayed;
        let Some(answer) = sight.answer.filter(|answer| sight.is_copied_next || is_probed_next(answer)) else { return };
        match &mut self.expected {
            Some(expected) => {
                expected.is_mixed |= !sight.is_copied_next && (sight.port.is_none() || sight.port != expected.port);
            }
            None => {
                self.expected =
                    Some(Expected { place: place(&answer), port: sight.port, is_mixed: sight.port.is_none() });
            }
        }
    }
}

/// The id before the rule is known: by the place of the decision.
pub(super) fn without_a_rule(attempt: &Attempt, sight: &Sight) -> Uuid {
    id(attempt, sight.cause.name(), attempt.hook.map(Hook::name))
}

/// The id of something of which nothing was reported before.
pub(super) fn new(attempt: &Attempt, sight: &Sight) -> Uuid {
    let rule = sight.rule();
    // Whatever the rule is there for, its story is the cause that was seen.
    let translates = rule.is_some_and(|rule| rule.translates.is_some());
    let cause = if translates { sight.cause } else { attempt.cause.unwrap_or(sight.cause) };
    let words = rule.and_then(|rule| rule.words());
    id(attempt, cause.name(), words.or(attempt.hook.map(Hook::name)))
}

/// The id of a connection that hangs.
pub(super) fn of_a_wait(attempt: &Attempt) -> Uuid {
    id(attempt, HANGING, None)
}

/// Of program (or unit), destination, port, protocol, cause, and the rule's text or the place of the decision.
fn id(attempt: &Attempt, cause: &str, decision: Option<&str>) -> Uuid {
    let sender = &attempt.sender;
    let program = sender.process.as_ref().map(|process| process.executable.as_deref().unwrap_or(&process.name));
    let who = program.or(sender.unit.as_deref()).unwrap_or_default();
    let (ip, port) = attempt.destination.map_or((String::new(), String::new()), |end| {
        (end.ip.to_string(), end.port.map(|port| port.to_string()).unwrap_or_default())
    });
    let transport = attempt.transport().unwrap_or_default();
    let parts = [who, &ip, &port, &transport, cause, decision.unwrap_or_default()];
    Uuid::new_v5(&INCIDENTS, parts.join("\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{incident::tests::sight, model::Sender};

    const PORT: u16 = 40_000;

    fn answer(netns_cookie: u64, rule: u64) -> RuleAnswer {
        RuleAnswer { netns_cookie, function: 7, table: 1, chain: 2, rule }
    }

    fn unknown(netns_cookie: u64, port: u16) -> Sight {
        Sight { answer: Some(answer(netns_cookie, UNKNOWN_RULE)), port: Some(port), ..sight(None) }
    }

    fn known(netns_cookie: u64, text: &str) -> Sight {
        Sight { answer: Some(answer(netns_cookie, 3)), ..sight(Some(text)) }
    }

    #[test]
    fn a_story_goes_on_with_the_first_rule_that_is_known() {
        let mut identity = Identity::default();
        assert!(!identity.goes_on(&known(5, "drop")), "nothing was told");
        identity.expect(&unknown(5, PORT));
        // Sent again.
        identity.expect(&unknown(5, PORT));
        assert!(!identity.goes_on(&known(6, "drop")), "another namespace's");
        assert!(identity.is_unnamed() && identity.goes_on(&known(5, "drop")));
        identity.name("drop");
        assert!(!identity.is_unnamed(), "it is told once");
        assert!(identity.goes_on(&known(5, "drop")));
        assert!(!identity.goes_on(&known(5, "reject")), "another rule is another story");
    }

    #[test]
    fn packets_of_which_each_may_have_met_another_rule_are_not_one_rules() {
        let mut identity = Identity::default();
        identity.expect(&unknown(5, PORT));
        identity.expect(&unknown(5, PORT + 1));
        assert!(!identity.goes_on(&known(5, "drop")), "a policy gives no verdict");
        let by_copy = Sight { is_replayed: true, ..known(5, "drop") };
        assert!(identity.goes_on(&by_copy), "a copy names it where the packet is the same");
    }

    #[test]
    fn what_could_not_be_looked_up_in_time_keeps_its_id() {
        let mut identity = Identity::default();
        identity.see(answer(5, 3));
        assert!(identity.goes_on(&known(5, "drop")));
        assert!(!identity.goes_on(&Sight { answer: Some(answer(5, 4)), ..known(5, "drop") }));
        identity.name("drop");
        assert!(identity.goes_on(&Sight { answer: Some(answer(5, 9)), ..known(5, "drop") }), "by its words");
    }

    #[test]
    fn ids_are_of_cause_and_place_and_not_of_the_process() {
        let one = Attempt::example();
        let other = Attempt { sender: Sender::example("/usr/bin/curl", 99), ..one.clone() };
        assert_eq!(new(&one, &known(5, "drop")), new(&other, &known(6, "drop")));
        assert_ne!(new(&one, &known(5, "drop")), new(&one, &known(5, "reject")));
        assert_eq!(new(&one, &unknown(5, PORT)), without_a_rule(&one, &unknown(5, PORT)));
        let elsewhere = Attempt { sender: Sender::example("/usr/bin/wget", 7), ..one.clone() };
        assert_ne!(new(&one, &known(5, "drop")), new(&elsewhere, &known(5, "drop")));
        assert_ne!(of_a_wait(&one), new(&one, &unknown(5, PORT)));
    }
}

//! Rules whose text was not there in time: told later, in a line of their own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{assemble::Assembler, attribute::Eyes};
use crate::model::{Action, Event, NamedRule, WantedRule};

/// Lines whose rules are waited for; of more the text stays absent.
const MAX_WAITING: usize = 64;
/// How long they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// A line without its rule's text.
struct Waiting {
    event: Box<Event>,
    wanted: WantedRule,
    since: Instant,
}

/// Incidents of such lines that are remembered.
const MAX_PROVISIONAL: usize = 4096;

/// All of them, the eldest first; and under which incident each was told, which stays theirs in this run.
#[derive(Default)]
pub struct Late {
    waiting: Vec<Waiting>,
    provisional: HashMap<Uuid, Place>,
}

/// Family, table and handle of a rule.
type Place = (String, String, Option<u64>);

impl Late {
    /// Remembers a line whose rule is known but for its text; the first one of its incident is enough.
    pub(super) fn remember(&mut self, event: &Event, wanted: impl FnOnce() -> Option<WantedRule>) {
        let is_known = |rule: &crate::model::EgressRule| rule.handle.is_some() && rule.text.is_none();
        let Some(rule) = event.egress.rule.as_ref().filter(|rule| is_known(rule)) else { return };
        if self.provisional.len() < MAX_PROVISIONAL {
            let place = (rule.family.clone(), rule.table.clone(), rule.handle);
            self.provisional.entry(event.egress.incident).or_insert(place);
        }
        let waits = self.waiting.iter().any(|waiting| waiting.event.egress.incident == event.egress.incident);
        if waits || self.waiting.len() >= MAX_WAITING {
            return;
        }
        if let Some(wanted) = wanted() {
            self.waiting.push(Waiting { event: Box::new(event.clone()), wanted, since: Instant::now() });
        }
    }

    /// Whether something was told of this rule under that incident, before its text was known.
    pub(super) fn was_told(&self, incident: Uuid, rule: &NamedRule) -> bool {
        self.provisional
            .get(&incident)
            .is_some_and(|(family, table, handle)| (family, table, *handle) == (&rule.family, &rule.table, rule.handle))
    }

    /// Whether any is waited for.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl<E: Eyes> Assembler<E> {
    /// Some rule's text is still waited for.
    pub fn waits(&self) -> bool {
        self.late.is_waiting()
    }

    /// Lines for the rules whose texts have come meanwhile: of the same incident, and of no packet.
    pub fn late(&mut self) -> Vec<Event> {
        let mut lines = Vec::new();
        let mut all = std::mem::take(&mut self.late.waiting).into_iter();
        while let Some(mut waiting) = all.next() {
            let decision = self.rules.again(&waiting.wanted, &mut self.attributor.eyes);
            match decision.as_ref().and_then(|decision| decision.rule.as_ref()).filter(|rule| rule.text.is_some()) {
                Some(rule) => {
                    self.name(&mut waiting.event, rule);
                    lines.push(*waiting.event);
                }
                // Asking takes a while where the text is not there yet: the others come first next time.
                None => {
                    self.late.waiting.extend(all);
                    if waiting.since.elapsed() < PATIENCE {
                        self.late.waiting.push(waiting);
                    }
                    break;
                }
            }
        }
        lines
    }

    /// Makes of a line the news of its rule.
    fn name(&mut self, event: &mut Event, rule: &NamedRule) {
        event.timestamp = Timestamp::now();
        event.event.action = Action::EgressRule;
        event.event.id = Some(self.event_id());
        event.event.reason = Some(rule.sentence());
        event.egress.count = 0;
        event.egress.bytes = 0;
        event.egress.verdict = rule.verdict;
        event.egress.rule = Some(rule.seen());
        event.rule = rule.name();
    }
}

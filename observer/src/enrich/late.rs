//! Rules whose text was not there in time: told later, in a line of their own.

use std::time::{Duration, Instant};

use jiff::Timestamp;

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

/// All of them, the eldest first.
#[derive(Default)]
pub struct Late(Vec<Waiting>);

impl Late {
    /// Remembers a line whose rule is known but for its text; the first one of its incident is enough.
    pub(super) fn remember(&mut self, event: &Event, wanted: impl FnOnce() -> Option<WantedRule>) {
        let is_known = |rule: &crate::model::EgressRule| rule.handle.is_some() && rule.text.is_none();
        let waits = self.0.iter().any(|waiting| waiting.event.egress.incident == event.egress.incident);
        if waits || self.0.len() >= MAX_WAITING || !event.egress.rule.as_ref().is_some_and(is_known) {
            return;
        }
        if let Some(wanted) = wanted() {
            self.0.push(Waiting { event: Box::new(event.clone()), wanted, since: Instant::now() });
        }
    }

    /// Whether any is waited for.
    pub fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }
}

impl<E: Eyes> Assembler<E> {
    /// Lines for the rules whose texts have come meanwhile: of the same incident, and of no packet.
    pub fn late(&mut self) -> Vec<Event> {
        let mut lines = Vec::new();
        let mut all = std::mem::take(&mut self.late.0).into_iter();
        while let Some(mut waiting) = all.next() {
            let decision = self.rules.again(&waiting.wanted, &mut self.attributor.eyes);
            match decision.as_ref().and_then(|decision| decision.rule.as_ref()).filter(|rule| rule.text.is_some()) {
                Some(rule) => {
                    self.name(&mut waiting.event, rule);
                    lines.push(*waiting.event);
                }
                // Asking takes a while where the text is not there yet: the others come first next time.
                None => {
                    self.late.0.extend(all);
                    if waiting.since.elapsed() < PATIENCE {
                        self.late.0.push(waiting);
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

//! Rules that could not be read in time, or their text: told later, in a line of their own.

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use observer_ebpf::abi::UNKNOWN_RULE;

use super::Lookup;
use crate::{
    explain::Sight,
    model::{Attempt, Decision, NamedRule, Packet, Share, WantedRule},
    patience,
};

/// Lines whose rules are waited for; of more the text stays absent.
const MAX_WAITING: usize = 64;
const MAX_WAITING_OF_A_SHARE: usize = 12;
/// They are asked about so often.
const AGAIN: Duration = Duration::from_millis(500);
/// How long they are.
const PATIENCE: Duration = Duration::from_secs(60);

/// An attempt that was reported without its rule, or without its text.
pub(super) struct Waiting {
    pub(super) attempt: Box<Attempt>,
    pub(super) wanted: WantedRule,
    /// What was stopped, where somebody waits for it.
    pub(super) packet: Option<Packet>,
    /// On whose account.
    pub(super) share: Share,
    since: Instant,
    /// What is known of it: its text is waited for.
    known: Option<Arc<Decision>>,
    /// Not asked again before.
    next: Instant,
}

/// All of them, the eldest first.
#[derive(Default)]
pub(super) struct Late(Vec<Waiting>);

/// It may be known later what decided, or how it reads.
pub(super) fn may_come(attempt: &Attempt, sight: &Sight) -> bool {
    let Some(answer) = sight.answer else { return false };
    if sight.is_unread {
        return answer.chain != 0 || answer.function != 0;
    }
    // Of what only the chain or the function is known there is no text to come.
    let is_without_text = attempt.rule.as_ref().is_some_and(|rule| rule.text.is_none());
    is_without_text && answer.chain != 0 && answer.rule != UNKNOWN_RULE
}

impl Late {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for what decided; the first attempt of its incident is enough.
    pub(super) fn wait(&mut self, attempt: &Attempt, sight: &Sight, now: Instant) {
        let Some(wanted) = sight.wanted.clone() else { return };
        // Before their rules are known, packets of several may stand under one incident.
        let is_it = |waiting: &Waiting| {
            waiting.attempt.incident == attempt.incident && waiting.wanted == wanted && waiting.share == sight.share
        };
        if self.0.iter().any(is_it) {
            return;
        }
        // The eldest makes room: of the same account, where that has its share.
        let is_of_the_share = |waiting: &Waiting| waiting.share == sight.share;
        let of_the_share = self.0.iter().filter(|waiting| is_of_the_share(waiting)).count();
        if sight.share != Share::Host && of_the_share >= MAX_WAITING_OF_A_SHARE {
            let eldest = self.0.iter().position(is_of_the_share);
            eldest.map(|eldest| self.0.remove(eldest));
        } else if self.0.len() >= MAX_WAITING {
            let other = self.0.iter().position(|waiting| waiting.share != Share::Host);
            self.0.remove(other.unwrap_or(0));
        }
        self.0.push(Waiting {
            attempt: Box::new(attempt.clone()),
            wanted,
            packet: sight.packet.clone(),
            share: sight.share,
            since: now,
            known: None,
            next: now,
        });
    }

    /// A chain that is waited for under this incident, on this account, is not news any more: the rule is known.
    pub(super) fn is_outdone(&mut self, incident: uuid::Uuid, share: Share) {
        let is_chain = |waiting: &Waiting| waiting.wanted.chain != 0 && waiting.wanted.rule == UNKNOWN_RULE;
        let is_it = |waiting: &Waiting| waiting.attempt.incident == incident && waiting.share == share;
        self.0.retain(|waiting| !is_it(waiting) || !is_chain(waiting));
    }

    /// Those of which it is known now what decided; with `is_over` nothing comes any more.
    pub(super) fn take_known(
        &mut self,
        lookup: &mut impl Lookup,
        now: Instant,
        is_over: bool,
    ) -> Vec<(Waiting, Arc<Decision>)> {
        let mut found = Vec::new();
        for mut waiting in std::mem::take(&mut self.0) {
            let is_last = is_over || now.duration_since(waiting.since) >= patience::here(PATIENCE);
            if !is_last && now < waiting.next {
                self.0.push(waiting);
                continue;
            }
            let asked = lookup.rule(waiting.share, &waiting.wanted, is_last);
            if asked.is_ready() {
                waiting.next = now + AGAIN;
            }
            let decision = match asked {
                Poll::Ready(Some(decision)) => Some(decision),
                _ => waiting.known.take(),
            };
            match decision {
                Some(decision) if is_enough(&waiting, &decision, is_last) => found.push((waiting, decision)),
                known if !is_last => {
                    waiting.known = known;
                    self.0.push(waiting);
                }
                _ => {}
            }
        }
        found
    }
}

/// It says as much as there is to come.
fn is_enough(waiting: &Waiting, decision: &Decision, is_last: bool) -> bool {
    // Without its text it is better than nothing.
    let is_better = is_last && waiting.attempt.rule.is_none();
    let has_text = |rule: &NamedRule| rule.text.is_some();
    let is_all = waiting.wanted.rule == UNKNOWN_RULE || waiting.wanted.chain == 0;
    match &decision.rule {
        Some(rule) => has_text(rule) || is_all || is_better,
        None => decision.decider.is_some() && waiting.attempt.decided_by.is_none(),
    }
}

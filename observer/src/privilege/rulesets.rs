//! Rulesets of the namespaces in which something was blocked: read at the first question, and again when they have changed.
//!
//! Nothing of a namespace is kept open: a socket in it would keep it alive after its last process.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::netns;
use crate::{
    firewall::{nft, ruleset::Ruleset},
    model::{NamedRule, WantedRule},
};

/// How long a question waits for the text of a rule.
const PATIENCE: Duration = Duration::from_millis(80);
/// Namespaces whose rulesets are kept, those asked about last.
const MAX_NAMESPACES: usize = 256;
/// Rulesets of a namespace that are kept, and rules in those that are not in force: a rule that is gone is still named.
const MAX_KEPT: usize = 8;
const MAX_OLDER_RULES: usize = 50_000;

/// What is known of one namespace.
struct Space {
    /// The newest first.
    rulesets: VecDeque<Ruleset>,
    asked: Instant,
}

/// All of them, by the namespace's number.
#[derive(Default)]
pub(super) struct Rulesets(HashMap<u32, Space>);

impl Rulesets {
    /// The rule that the kernel half saw, if the ruleset has it, or had it, and it can have dropped that packet.
    pub(super) fn named(&mut self, wanted: &WantedRule) -> Result<Option<NamedRule>> {
        let deadline = Instant::now() + PATIENCE;
        let space =
            self.0.entry(wanted.netns).or_insert_with(|| Space { rulesets: VecDeque::new(), asked: Instant::now() });
        space.asked = Instant::now();
        let refreshed = space.refresh(wanted);
        let named = space.rulesets.iter_mut().find_map(|ruleset| ruleset.named(wanted, deadline));
        if self.0.len() > MAX_NAMESPACES {
            let eldest = self.0.iter().min_by_key(|(_, space)| space.asked).map(|(netns, _)| *netns);
            eldest.map(|netns| self.0.remove(&netns));
        }
        match named {
            // A handle is never used twice: whichever snapshot has the rule has the right one.
            Some(named) => Ok(Some(named)),
            None => refreshed.map(|()| None),
        }
    }
}

impl Space {
    /// Reads the ruleset, unless the newest snapshot is still in force and has the rule.
    fn refresh(&mut self, wanted: &WantedRule) -> Result<()> {
        // The number may be another namespace's by now: what is not there is looked for again.
        let known = self.rulesets.front().filter(|newest| newest.has(wanted)).map(Ruleset::generation);
        let fresh = netns::inside(Some(wanted.netns), move || match known {
            Some(known) if nft::generation().is_ok_and(|now| now == known) => Ok(None),
            _ => Ruleset::read().map(Some),
        })??;
        if let Some(fresh) = fresh {
            self.rulesets.push_front(fresh);
        }
        let older = |kept: &VecDeque<Ruleset>| kept.iter().skip(1).map(Ruleset::rules).sum::<usize>();
        while self.rulesets.len() > MAX_KEPT || self.rulesets.len() > 1 && older(&self.rulesets) > MAX_OLDER_RULES {
            self.rulesets.pop_back();
        }
        Ok(())
    }
}

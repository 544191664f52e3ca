//! ufw, which fills tables of iptables from its files in `/etc/ufw`.

mod files;
mod page;
mod plan;
mod recognise;
#[cfg(test)]
mod tests;
mod tuples;
mod words;

use std::collections::BTreeSet;

use anyhow::Result;

use super::{Found, FrontEnd, Known, Load, Needs, Page, Place, Plans, Seen, Step, Target, Unjudged, iptables};
use crate::{
    firewall::files::Root,
    model::{NamedRule, ProposedChange, Statement},
};

const NAME: &str = "ufw";

pub(super) struct Ufw;

impl FrontEnd for Ufw {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recognise(&self, seen: &Seen<'_>) -> Option<Found> {
        recognise::recognise(seen)
    }

    fn statement(&self, place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        words::statement(place, roots)
    }

    fn plans(&self, rule: &NamedRule, target: &Target, known: &Known) -> Plans {
        plan::plans(rule, target, known)
    }

    fn advice(&self, rule: &NamedRule, _target: &Target) -> Option<String> {
        self.advice_for_others(rule)
    }

    fn advice_for_others(&self, rule: &NamedRule) -> Option<String> {
        plan::advice(rule.statement.as_ref()?)
    }

    fn page(&self) -> Option<&'static Page> {
        Some(&page::PAGE)
    }

    fn needs(&self) -> Needs {
        files::NEEDS
    }

    fn start(&self, _rules: &[&NamedRule]) -> Vec<Step> {
        vec![Step::Run("ufw reload".to_owned())]
    }

    fn commands(&self) -> &'static [&'static str] {
        &["ufw"]
    }

    fn in_the_copy(&self, words: &[String], _handle: &dyn Fn(&str, &str, u64) -> Option<u64>) -> Result<Vec<String>> {
        /// Those that ask before they do it.
        const ASKS: [&str; 3] = ["delete", "enable", "reset"];
        let mut words = words.to_vec();
        if words.iter().skip(1).find(|word| *word != "route").is_some_and(|word| ASKS.contains(&word.as_str())) {
            words.insert(1, "--force".to_owned());
        }
        Ok(words)
    }

    fn has_refused(&self, said: &str) -> bool {
        ["Aborted", "not enabled"].iter().any(|words| said.contains(words))
    }

    fn load(&self, text: &str) -> Result<Option<Load>, Unjudged> {
        files::load(text)
    }

    fn modules(&self, change: &ProposedChange) -> Result<BTreeSet<String>> {
        Ok(match change {
            // It makes rules of what its own rules use anyhow.
            ProposedChange::Command(_) => BTreeSet::new(),
            ProposedChange::Ruleset(text) => iptables::modules_of_lines(text),
        })
    }
}

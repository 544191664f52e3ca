//! nftables itself: rules in tables that no known program manages.

mod command;
mod modules;
mod page;
mod plan;
mod recognise;

use std::collections::BTreeSet;

use anyhow::Result;

use super::{Found, FrontEnd, Known, Load, Page, Plans, Seen, Target, Unjudged, files::PROPOSED};
use crate::model::{NamedRule, ProposedChange};

/// Its name.
pub const NAME: &str = "nftables";

pub(super) struct Nftables;

impl FrontEnd for Nftables {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fills_iptables(&self) -> bool {
        false
    }

    fn recognise(&self, seen: &Seen<'_>) -> Option<Found> {
        recognise::recognise(seen)
    }

    fn plans(&self, rule: &NamedRule, target: &Target, _known: &Known) -> Plans {
        plan::plans(rule, target)
    }

    fn page(&self) -> Option<&'static Page> {
        Some(&page::PAGE)
    }

    fn commands(&self) -> &'static [&'static str] {
        &["nft"]
    }

    fn in_the_copy(&self, words: &[String], handle: &dyn Fn(&str, &str, u64) -> Option<u64>) -> Result<Vec<String>> {
        command::in_the_copy(words, handle)
    }

    /// A file for `nft -f`, which is what no other front end knows, in place of everything.
    fn load(&self, text: &str) -> Result<Option<Load>, Unjudged> {
        let command = &["nft", "-f", PROPOSED];
        let has_flush = text.lines().any(|line| line.split_whitespace().take(2).eq(["flush", "ruleset"]));
        let note = "the file has no `flush ruleset`: `nft -f` adds it to the rules in force, which are left out here";
        let note = (!has_flush).then_some(note);
        Ok(Some(Load { before: Some("nft flush ruleset"), path: PROPOSED, command, note }))
    }

    fn modules(&self, change: &ProposedChange) -> Result<BTreeSet<String>> {
        modules::of_change(change)
    }
}

//! iptables: rules that were made by its commands, in nftables (iptables-nft) or in the older tables.

mod files;
mod modules;
mod page;
mod plan;
mod recognise;
mod version;
mod words;

use std::collections::BTreeSet;

use anyhow::Result;

pub(super) use self::{
    files::{is_saved_by, is_v6},
    modules::{of_change as modules_of, of_lines as modules_of_lines},
    plan::exception,
    version::Version,
};
use super::{Found, FrontEnd, Known, Load, Needs, Page, Place, Plans, Seen, Target, Unjudged};
use crate::{
    firewall::files::Root,
    model::{NamedRule, ProposedChange, Statement},
};

/// Its name.
pub const NAME: &str = "iptables";

pub(super) struct Iptables;

impl FrontEnd for Iptables {
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

    fn page(&self) -> Option<&'static Page> {
        Some(&page::PAGE)
    }

    fn needs(&self) -> Needs {
        Needs { programs: &["iptables-restore", "ip6tables-restore"], noted_from: &[files::FERM], ..Needs::NOTHING }
    }

    fn commands(&self) -> &'static [&'static str] {
        &["iptables", "ip6tables", "iptables-nft", "ip6tables-nft"]
    }

    fn load(&self, text: &str) -> Result<Option<Load>, Unjudged> {
        Ok(files::load(text))
    }

    fn modules(&self, change: &ProposedChange) -> Result<BTreeSet<String>> {
        Ok(modules::of_change(change))
    }
}

//! firewalld, a daemon with tables of its own in nftables.

mod files;
mod page;
mod plan;
mod recognise;
mod rich;
mod words;

use super::{Found, FrontEnd, Known, Needs, Page, Place, Plans, Seen, Step, Target};
use crate::{
    firewall::files::Root,
    model::{NamedRule, Statement},
};

const NAME: &str = "firewalld";

/// Its statement in panic mode, which is in no file.
const PANIC_ON: &str = "--panic-on";

pub(super) struct Firewalld;

impl FrontEnd for Firewalld {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tables(&self) -> &'static [&'static str] {
        &recognise::TABLES
    }

    fn fills_iptables(&self) -> bool {
        false
    }

    fn recognise(&self, seen: &Seen<'_>) -> Option<Found> {
        recognise::recognise(seen)
    }

    fn statement(&self, place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        words::statement(place, roots)
    }

    fn plans(&self, rule: &NamedRule, target: &Target, _known: &Known) -> Plans {
        plan::plans(rule, target)
    }

    fn page(&self) -> Option<&'static Page> {
        Some(&page::PAGE)
    }

    fn needs(&self) -> Needs {
        files::NEEDS
    }

    fn start(&self, rules: &[&NamedRule]) -> Vec<Step> {
        files::start(rules.iter().any(|rule| rule.words() == Some(PANIC_ON)))
    }

    fn commands(&self) -> &'static [&'static str] {
        &["firewall-cmd"]
    }
}

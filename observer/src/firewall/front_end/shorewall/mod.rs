//! Shorewall.

mod words;

use super::{FrontEnd, Place, Target};
use crate::{
    firewall::files::Root,
    model::{NamedRule, Statement},
};

/// Its name, and that of an empty chain that it always makes.
const NAME: &str = "shorewall";

pub(super) struct Shorewall;

impl FrontEnd for Shorewall {
    fn name(&self) -> &'static str {
        NAME
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &[NAME]
    }

    fn statement(&self, place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        place.in_a_chain_of(NAME, self.chain_prefixes()).or_else(|| words::statement(place))
    }

    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        Some("Shorewall made this rule: add an ACCEPT to /etc/shorewall/rules (and /etc/shorewall6/rules), then `shorewall reload`".to_owned())
    }
}

//! iptables' own words: a rule as `iptables-save` writes it, or a policy.

use super::{NAME, files::FERM};
use crate::{
    firewall::{
        files::Root,
        front_end::{Place, words::plain},
    },
    model::{Backend, Statement},
};

/// A rule as `iptables-save` writes it, or a policy.
pub(super) fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    let named = place.named;
    if !place.is_iptables() {
        return None;
    }
    let program = match (named.family.as_str(), named.backend) {
        ("ip6", Backend::Nft) => "ip6tables",
        (_, Backend::Nft) => "iptables",
        ("ip6", Backend::IptablesLegacy) => "ip6tables-legacy",
        (_, Backend::IptablesLegacy) => "iptables-legacy",
    };
    let table = if named.table == "filter" { String::new() } else { format!(" -t {}", named.table) };
    let (what, name) = match named.position {
        Some(position) => (format!("{program}{table} rule {position} of {}", named.chain), place.saved?.to_owned()),
        None if named.is_policy() => (format!("{program}{table} policy"), format!("-P {} DROP", named.chain)),
        None => return None,
    };
    // It leaves no mark on the rules that it makes.
    let has_ferm = roots().iter().any(|root| root.read(FERM).is_ok());
    let note = has_ferm.then(|| format!("ferm is set up here, and may have made it: see {FERM}"));
    Some(Statement { note, ..plain(NAME, what, name) })
}

//! iptables-nft: rules that iptables wrote, in its own words.

use super::Place;
use crate::model::Statement;

/// A rule as `iptables-save` writes it, or a policy.
pub(super) fn statement(place: &Place<'_>) -> Option<Statement> {
    let named = place.named;
    if !place.is_iptables() {
        return None;
    }
    let program = if named.family == "ip6" { "ip6tables" } else { "iptables" };
    let table = if named.table == "filter" { String::new() } else { format!(" -t {}", named.table) };
    let (what, name) = match named.position {
        Some(position) => (format!("{program}{table} rule {position} of {}", named.chain), place.saved?.to_owned()),
        None if named.text.is_some() => (format!("{program}{table} policy"), format!("-P {} DROP", named.chain)),
        None => return None,
    };
    Some(Statement { ruleset: "iptables".to_owned(), what, name, number: None, comment: None, note: None })
}

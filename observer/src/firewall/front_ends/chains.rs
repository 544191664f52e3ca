//! Programs that are known by the names of their chains.

use super::Place;
use crate::model::Statement;

/// Such a program, and how the names of its chains begin.
pub const OWNERS: [(&str, &str); 9] = [
    ("docker", "DOCKER"),
    ("podman", "NETAVARK"),
    ("kubernetes", "KUBE-"),
    ("calico", "cali-"),
    ("cilium", "CILIUM_"),
    ("fail2ban", "f2b-"),
    ("shorewall", "shorewall"),
    ("tailscale", "ts-"),
    ("csf", "LOGDROPOUT"),
];

/// A rule in a chain of theirs.
pub(super) fn statement(place: &Place<'_>) -> Option<Statement> {
    let named = place.named;
    let (owner, _) = OWNERS.iter().find(|(_, prefix)| named.chain.starts_with(prefix))?;
    let number = named.position.map(|position| format!(", rule {position}")).unwrap_or_default();
    Some(Statement {
        ruleset: (*owner).to_owned(),
        what: format!("{owner}'s chain {}{number}", named.chain),
        name: place.text()?,
        number: None,
        comment: None,
        note: None,
    })
}

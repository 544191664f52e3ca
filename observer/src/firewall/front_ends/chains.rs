//! Programs that are known by the names of their chains, or by a rule that only they make.

use std::sync::LazyLock;

use regex_lite::Regex;

use super::{Does, Place};
use crate::model::Statement;

/// Such a program, and how the names of its chains begin.
pub const OWNERS: [(&str, &str); 11] = [
    ("docker", "DOCKER"),
    ("podman", "NETAVARK"),
    ("kubernetes", "KUBE-"),
    ("calico", "cali-"),
    ("cilium", "CILIUM_"),
    ("fail2ban", "f2b-"),
    (SHOREWALL, SHOREWALL),
    ("tailscale", "ts-"),
    ("csf", "LOGDROPOUT"),
    ("csf", "LOCALOUTPUT"),
    ("csf", "DENYOUT"),
];

/// Its name, and that of an empty chain that it always makes.
const SHOREWALL: &str = "shorewall";

/// What wg-quick's manual puts into `PostUp=`, as `iptables-save` and as `nft` write it.
static KILL_SWITCH: LazyLock<Option<[Regex; 2]>> = LazyLock::new(|| {
    Some([
        Regex::new(r"^! -o (\S+) -m mark ! --mark \S+ -m addrtype ! --dst-type LOCAL -j REJECT").ok()?,
        Regex::new(r#"^oifname != "?([^"\s]+)"? meta mark != \S+ fib daddr type != local .*\breject"#).ok()?,
    ])
});

/// A rule in a chain of theirs, or of their making.
pub(super) fn statement(place: &Place<'_>) -> Option<Statement> {
    let text = place.text()?;
    let whole = |ruleset: &str, what: String| Statement {
        ruleset: ruleset.to_owned(),
        what,
        name: text.clone(),
        number: None,
        comment: None,
        note: None,
    };
    let named = place.named;
    if let Some(interface) = kill_switch(&text) {
        let what = format!("the kill switch of wg-quick's interface {interface}, rule {}", named.position?);
        return Some(whole("wg-quick", what));
    }
    let owner = |chain: &str| OWNERS.iter().find(|(_, prefix)| chain.starts_with(prefix)).map(|(owner, _)| *owner);
    if let Some(owner) = owner(&named.chain) {
        let number = named.position.map(|position| format!(", rule {position}")).unwrap_or_default();
        return Some(whole(owner, format!("{owner}'s chain {}{number}", named.chain)));
    }
    // What is left of a table with its chains: not what others' chains lead to.
    let is_shorewalls = place.chains.iter().any(|chain| chain.name == SHOREWALL)
        && !named.path.iter().any(|chain| owner(chain).is_some());
    is_shorewalls.then(|| whole(SHOREWALL, shorewall(place)))
}

/// The interface, where it is the rule that lets nothing out beside its tunnel.
fn kill_switch(text: &str) -> Option<&str> {
    let name = |pattern: &Regex| Some(pattern.captures(text)?.get(1)?.as_str());
    KILL_SWITCH.as_ref()?.iter().find_map(name)
}

/// Its chains are called after two zones, such as `fw-net`; what ends there is often in a chain that all of them lead to.
fn shorewall(place: &Place<'_>) -> String {
    let named = place.named;
    let position = |position: Option<usize>| position.map(|position| format!(", rule {position}")).unwrap_or_default();
    let zones = |chain: &str| {
        let (from, to) = chain.split_once('-').or_else(|| chain.split_once('2'))?;
        (!chain.starts_with("sha-") && !from.is_empty() && !to.is_empty()).then(|| (from.to_owned(), to.to_owned()))
    };
    let between = named.path.iter().rev().find_map(|chain| Some((chain, zones(chain)?)));
    match between {
        Some((chain, (from, to))) if *chain == named.chain => {
            format!("shorewall's chain {chain}, from zone {from} to zone {to}{}", position(named.position))
        }
        Some((chain, (from, to))) => {
            // Where only one of its rules leads on, it is that one.
            let here = place.all.iter().filter(|rule| rule.chain == *chain).enumerate();
            let mut leading = here.filter(
                |(_, rule)| matches!(Does::of(rule), Does::Leads(to) if named.path.iter().any(|step| step == to)),
            );
            let index = leading.next().filter(|_| leading.next().is_none()).map(|(index, _)| index + 1);
            format!("shorewall's chain {chain}, from zone {from} to zone {to}{}, by {}", position(index), named.chain)
        }
        None => format!("shorewall's chain {}{}", named.chain, position(named.position)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_switch_is_told_by_its_rule() {
        for text in [
            r#"oifname != "wg0" meta mark != 0x0000ca6c fib daddr type != local counter packets 0 bytes 0 reject"#,
            "! -o wg0 -m mark ! --mark 0xca6c -m addrtype ! --dst-type LOCAL -j REJECT --reject-with icmp-port-unreachable",
        ] {
            assert_eq!(kill_switch(text), Some("wg0"), "{text}");
        }
        assert_eq!(kill_switch(r#"oifname != "wg0" reject"#), None);
        assert_eq!(kill_switch("-o wg0 -j REJECT"), None);
    }
}

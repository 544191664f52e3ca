//! Rules as they are: by `nft` in a table that nobody manages, by `iptables` in its own. What is put in front of a rule, or
//! behind all where it is the policy, lasts until the rules are loaded anew.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::plan::{Known, Plan, Target, plain};
use crate::model::{Backend, Lasts, NamedRule, Scope};

/// Those that make their rules themselves, and what is to be done instead.
const MANAGED: [(&str, &str); 10] = [
    (
        "podman",
        "podman made this rule: `podman network inspect` shows the network's isolation and whether it is internal",
    ),
    (
        "kubernetes",
        "a NetworkPolicy made this rule: `kubectl get networkpolicy -A`, and edit the one that selects the pod",
    ),
    ("calico", "Calico made this rule of a policy: `kubectl get networkpolicy,globalnetworkpolicy -A`, and edit that"),
    ("cilium", "Cilium made this rule of a policy: `kubectl get ciliumnetworkpolicy -A`, and edit that"),
    (
        "fail2ban",
        "a jail of fail2ban banned the address: `fail2ban-client status` shows which, `fail2ban-client set JAIL unbanip ADDRESS` lets it go",
    ),
    (
        "shorewall",
        "Shorewall made this rule: add an ACCEPT to /etc/shorewall/rules (and /etc/shorewall6/rules), then `shorewall reload`",
    ),
    ("tailscale", "Tailscale made this rule: look at the exit node and the accepted routes, `tailscale status`"),
    (
        "csf",
        "CSF made this rule: add the port to TCP_OUT or UDP_OUT (and TCP6_OUT or UDP6_OUT) in /etc/csf/csf.conf, then `csf -r`",
    ),
    (
        "wg-quick",
        "it lets nothing out beside the tunnel: bring that up, or take the rule from PostUp= of its file and `wg-quick down` and `up` it",
    ),
    ("ufw", "it is ufw's"),
];

pub(super) fn plans(rule: &NamedRule, target: &Target, known: &Known) -> Result<Vec<Plan>, Option<String>> {
    let ruleset = rule.statement.as_ref().map(|statement| statement.ruleset.as_str());
    if let Some((_, advice)) = MANAGED.iter().find(|(owner, _)| ruleset == Some(owner)) {
        return Err(Some((*advice).to_owned()));
    }
    let (Some(table), Some(chain)) = (plain(&rule.table), plain(&rule.chain)) else { return Ok(Vec::new()) };
    Ok(match ruleset {
        Some("docker") => iptables(rule, (table, "DOCKER-USER"), Some(1), target, known)
            .into_iter()
            .chain(iptables(rule, (table, chain), rule.position, target, known))
            .collect(),
        Some("iptables") => iptables(rule, (table, chain), rule.position, target, known),
        None if rule.backend == Backend::Nft => nft(rule, table, chain, target),
        _ => Vec::new(),
    })
}

/// The family's own addresses; all where a table has both.
fn of_family(rule: &NamedRule, target: &Target) -> Vec<IpAddr> {
    match rule.family.as_str() {
        "ip" => target.of_family(false),
        "ip6" => target.of_family(true),
        _ => target.addresses.clone(),
    }
}

fn nft(rule: &NamedRule, table: &str, chain: &str, target: &Target) -> Vec<Plan> {
    const FAMILIES: [&str; 4] = ["inet", "ip", "ip6", "netdev"];
    let Some(family) = FAMILIES.into_iter().find(|family| *family == rule.family) else { return Vec::new() };
    let place = format!("{family} {table} {chain}");
    // A chain's policy comes behind its last rule.
    let new = match rule.handle {
        Some(handle) => format!("nft insert rule {place} handle {handle}"),
        None => format!("nft add rule {place}"),
    };
    let lines = |matches: &[String]| -> (Vec<String>, Vec<String>) {
        matches
            .iter()
            .map(|matches| {
                let tag = tag(&place, matches);
                let line = format!("{new} {matches} accept comment {tag}");
                // A rule is deleted by its handle, which it gets when it is made.
                let undo = format!(
                    "nft delete rule {place} handle $(nft -a list chain {place} | sed -n 's/.*comment \"{tag}\" # handle //p')"
                );
                (line, undo)
            })
            .unzip()
    };
    let dport = format!("{} dport {}", target.transport, target.port);
    let addresses = of_family(rule, target);
    let to = |address: &IpAddr| format!("{} daddr {address} {dport}", if address.is_ipv6() { "ip6" } else { "ip" });
    both(
        rule,
        target,
        &addresses,
        lines(std::slice::from_ref(&dport)),
        lines(&addresses.iter().map(to).collect::<Vec<_>>()),
    )
}

fn iptables(
    rule: &NamedRule,
    (table, chain): (&str, &str),
    position: Option<usize>,
    target: &Target,
    known: &Known,
) -> Vec<Plan> {
    let v6 = rule.family == "ip6";
    let program = match (v6, known.iptables == Some(rule.backend), rule.backend) {
        (false, true, _) => "iptables",
        (true, true, _) => "ip6tables",
        (false, false, Backend::Nft) => "iptables-nft",
        (true, false, Backend::Nft) => "ip6tables-nft",
        (false, false, Backend::IptablesLegacy) => "iptables-legacy",
        (true, false, Backend::IptablesLegacy) => "ip6tables-legacy",
    };
    let of = if table == "filter" { program.to_owned() } else { format!("{program} -t {table}") };
    let new = position.map_or_else(|| format!("-A {chain}"), |position| format!("-I {chain} {position}"));
    let lines = |matches: &[String]| -> (Vec<String>, Vec<String>) {
        let all = matches.iter().rev();
        (
            all.clone().map(|matches| format!("{of} {new} {matches} -j ACCEPT")).collect(),
            all.map(|matches| format!("{of} -D {chain} {matches} -j ACCEPT")).collect(),
        )
    };
    let dport = format!("-p {} --dport {}", target.transport, target.port);
    let addresses = of_family(rule, target);
    let to: Vec<String> = addresses.iter().map(|address| format!("-d {address} {dport}")).collect();
    both(rule, target, &addresses, lines(&[dport]), lines(&to))
}

/// For the port, and for the addresses alone: the narrower first where the rule is about addresses itself.
fn both(
    rule: &NamedRule,
    target: &Target,
    addresses: &[IpAddr],
    port: (Vec<String>, Vec<String>),
    to: (Vec<String>, Vec<String>),
) -> Vec<Plan> {
    let plan = |(commands, undo): (Vec<String>, Vec<String>), scope, opens, more: Option<String>| Plan {
        commands,
        undo,
        scope,
        opens,
        lasts: Lasts::Reload,
        note: more,
    };
    let by_port = plan(port, Scope::Port, target.opens_port(), None);
    let by_address = plan(to, Scope::Address, target.opens_address(addresses), Some(target.of_addresses()));
    let names_addresses = rule.words().is_some_and(|words| {
        [" daddr", " saddr", "-d ", "-s ", "! -d", "! -s"].iter().any(|word| format!(" {words}").contains(word))
    });
    if names_addresses && !target.is_by_name { vec![by_address, by_port] } else { vec![by_port, by_address] }
}

/// What marks a rule so that it is found again.
fn tag(place: &str, matches: &str) -> String {
    let hash = Sha256::digest(format!("{place}\0{matches}"));
    let digits: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("observer-{digits}")
}

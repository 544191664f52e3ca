//! Which firewalls decide in a network namespace. Only reads, and loads no module: what is not loaded does
//! not decide.

use std::{fmt::Write, fs};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    front_ends::OWNERS,
    legacy,
    netfilter::{family, hook},
    nft::{self, Chain},
};

/// Tables that iptables-nft makes.
const IPTABLES_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// What its older tables are called here.
const LEGACY: &str = "iptables-legacy";
/// Base chains that iptables makes in them.
const IPTABLES_CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Tables of front ends that are recognised otherwise.
const OWNED_TABLES: [&str; 4] = ["firewalld", "firewalld_policy_drop", "netavark", "f2b-table"];

/// A program that manages rules, or rules that nobody known manages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontEnd {
    /// Name, as operators know it.
    pub name: String,
    /// How it was recognised.
    pub evidence: String,
    /// It has rules in force; otherwise it is only configured.
    pub active: bool,
}

/// The firewalls of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// All that were found.
    pub front_ends: Vec<FrontEnd>,
    /// Where several have rules: the order in which they decide, by hook.
    pub order: Vec<String>,
}

impl Inventory {
    /// Front ends with rules in force.
    pub fn active(&self) -> impl Iterator<Item = &FrontEnd> {
        self.front_ends.iter().filter(|front_end| front_end.active)
    }
}

/// Reads the namespace of the calling thread and the host's configuration files.
pub fn read() -> Result<Inventory> {
    let chains = if nftables_in_use() { nft::chains()? } else { Vec::new() };
    // Ending with none where they cannot be read: then nothing is known of their chains.
    let tables = legacy::tables().unwrap_or_default();
    let of_legacy: Vec<Chain> = tables.iter().filter_map(|table| Some(table.as_nft().ok()?.0)).flatten().collect();
    let legacy = legacy_tables();
    let ufw_enabled = fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|text| ufw_is_enabled(&text));
    let front_ends = recognise(&chains, &of_legacy, &legacy, ufw_enabled);
    let order = if front_ends.iter().filter(|front_end| front_end.active).count() > 1 {
        ["output", "forward", "postrouting"]
            .into_iter()
            .filter_map(|hook| order(&chains, &of_legacy, &front_ends, hook))
            .collect()
    } else {
        Vec::new()
    };
    Ok(Inventory { front_ends, order })
}

/// nftables is in this kernel, or its module is loaded. Asking for rules would load it.
pub fn nftables_in_use() -> bool {
    fs::read_to_string("/proc/modules").is_ok_and(|modules| modules.lines().any(|line| line.starts_with("nf_tables ")))
        || crate::probe::btf::Btf::of_kernel().is_ok_and(|btf| btf.has_struct("nft_chain"))
}

/// What iptables-nft asks about is in this kernel, or loaded: asking would load it.
pub fn has_compat() -> bool {
    fs::read_to_string("/proc/modules").is_ok_and(|modules| modules.lines().any(|line| line.starts_with("nft_compat ")))
        || crate::probe::btf::Btf::of_kernel().is_ok_and(|btf| btf.has_struct("nft_xt_match_priv"))
}

/// Names of the tables of iptables-legacy in the namespace of the calling thread.
fn legacy_tables() -> Vec<String> {
    let mut names: Vec<String> = legacy::names().into_iter().map(|(_, name)| name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn ufw_is_enabled(text: &str) -> bool {
    text.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes"))
}

/// iptables-nft's tables are of family ip or ip6, and their base chains have the names that iptables gives.
pub(super) fn is_iptables(chain: &Chain) -> bool {
    chain.hook.is_some()
        && [family::IPV4, family::IPV6].contains(&chain.family)
        && IPTABLES_TABLES.contains(&chain.table.as_str())
        && IPTABLES_CHAINS.contains(&chain.name.as_str())
}

/// Fingerprints, from chain and table names. Pure.
fn recognise(chains: &[Chain], of_legacy: &[Chain], legacy_tables: &[String], ufw_enabled: bool) -> Vec<FrontEnd> {
    let chain = |prefix: &str| chains.iter().chain(of_legacy).find(|chain| chain.name.starts_with(prefix));
    let table = |name: &str| chains.iter().find(|chain| chain.table == name);
    let mut found = Vec::new();
    match chain("ufw-") {
        Some(chain) => found.push(active("ufw", format!("chain {}", chain.name))),
        None if ufw_enabled => found.push(FrontEnd {
            name: "ufw".to_owned(),
            evidence: "enabled in /etc/ufw/ufw.conf, but none of its chains is there".to_owned(),
            active: false,
        }),
        None => {}
    }
    if table("firewalld").is_some() {
        found.push(active("firewalld", "table inet firewalld".to_owned()));
    }
    for (name, prefix) in OWNERS {
        let known = found.iter().any(|front_end| front_end.name == name);
        if let Some(chain) = chain(prefix).filter(|_| !known) {
            found.push(active(name, format!("chain {}", chain.name)));
        }
    }
    if !legacy_tables.is_empty() {
        found.push(active(LEGACY, format!("tables {}", legacy_tables.join(", "))));
    }
    let iptables = chains.iter().any(is_iptables);
    if iptables && !found.iter().any(|front_end| front_end.active && front_end.name != LEGACY) {
        found.push(active("iptables-nft", "tables of iptables in nftables".to_owned()));
    }
    let mut tables: Vec<&str> = chains
        .iter()
        .filter(|chain| chain.hook.is_some() && !is_iptables(chain))
        .map(|chain| chain.table.as_str())
        .collect();
    tables.retain(|table| !OWNED_TABLES.contains(table));
    tables.sort_unstable();
    tables.dedup();
    if !tables.is_empty() {
        found.push(active("nftables", format!("tables of no known front end: {}", tables.join(", "))));
    }
    found
}

/// Who decides at a hook, one after the other, where that is more than one chain: `output: ufw (ip, ip6 filter OUTPUT),
/// then nftables (inet t o)`.
fn order(chains: &[Chain], of_legacy: &[Chain], front_ends: &[FrontEnd], hook: &str) -> Option<String> {
    // Whoever is known by chains that iptables' own lead to.
    let by_iptables: Vec<&str> = front_ends
        .iter()
        .filter(|front_end| front_end.active && !["firewalld", "nftables", LEGACY].contains(&front_end.name.as_str()))
        .map(|front_end| front_end.name.as_str())
        .collect();
    let is_here = |chain: &&Chain| chain.hook.and_then(|number| hook::name(chain.family, number)) == Some(hook);
    // Of equal priority the one that came later is asked first; they are listed as their tables came. When those of
    // iptables-legacy came, is not known.
    let nft = chains.iter().rev().filter(is_here).map(|chain| (chain, false));
    let mut here: Vec<(&Chain, bool)> =
        nft.chain(of_legacy.iter().filter(is_here).map(|chain| (chain, true))).collect();
    here.sort_by_key(|(chain, _)| chain.priority);
    let mut steps: Vec<(i32, String, String, Vec<&str>)> = Vec::new();
    for (chain, is_legacy) in here {
        let owner = match chain.table.as_str() {
            "firewalld" | "firewalld_policy_drop" => "firewalld".to_owned(),
            _ if is_legacy => LEGACY.to_owned(),
            _ if is_iptables(chain) && by_iptables.is_empty() => "iptables".to_owned(),
            _ if is_iptables(chain) => by_iptables.join(" and "),
            _ => "nftables".to_owned(),
        };
        let place = format!("{} {}", chain.table, chain.name);
        let (priority, family) = (chain.priority.unwrap_or(0), family::name(chain.family));
        match steps.last_mut() {
            Some((of, by, at, families)) if (*of, &*by, &*at) == (priority, &owner, &place) => families.push(family),
            _ => steps.push((priority, owner, place, vec![family])),
        }
    }
    if steps.len() < 2 {
        return None;
    }
    let mut told = format!("{hook}: ");
    let mut before = None;
    for (priority, owner, place, mut families) in steps {
        let is_legacy = owner == LEGACY;
        told.push_str(match before {
            None => "",
            // When which of them came, is not known.
            Some((of, was_legacy)) if of == priority && was_legacy != is_legacy => ", before or after that ",
            Some(_) => ", then ",
        });
        families.sort_unstable();
        let _ = write!(told, "{owner} ({} {place}, priority {priority})", families.join(", "));
        before = Some((priority, is_legacy));
    }
    Some(told)
}

fn active(name: &str, evidence: String) -> FrontEnd {
    FrontEnd { name: name.to_owned(), evidence, active: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, base: bool) -> Chain {
        Chain {
            family: 2,
            table: table.to_owned(),
            name: name.to_owned(),
            handle: 1,
            hook: base.then_some(3),
            priority: base.then_some(0),
            policy: None,
        }
    }

    fn names(front_ends: &[FrontEnd]) -> Vec<(&str, bool)> {
        front_ends.iter().map(|front_end| (front_end.name.as_str(), front_end.active)).collect()
    }

    #[test]
    fn front_ends_are_known_by_their_chains() {
        let chains = [
            chain("filter", "OUTPUT", true),
            chain("filter", "ufw-user-output", false),
            chain("filter", "DOCKER-USER", false),
        ];
        assert_eq!(names(&recognise(&chains, &[], &[], true)), [("ufw", true), ("docker", true)]);
        assert_eq!(
            names(&recognise(&[chain("firewalld", "filter_OUTPUT", true)], &[], &[], false)),
            [("firewalld", true)]
        );
        assert_eq!(names(&recognise(&[chain("t", "out", true)], &[], &[], false)), [("nftables", true)]);
        assert_eq!(names(&recognise(&[chain("filter", "OUTPUT", true)], &[], &[], false)), [("iptables-nft", true)]);
        let native = Chain { family: 1, ..chain("filter", "output", true) };
        assert_eq!(names(&recognise(&[native], &[], &[], false)), [("nftables", true)], "Debian's stock nftables.conf");
        assert_eq!(names(&recognise(&[], &[], &["filter".to_owned()], false)), [("iptables-legacy", true)]);
        assert_eq!(names(&recognise(&[], &[], &[], true)), [("ufw", false)]);
        assert!(recognise(&[], &[], &[], false).is_empty());
        let by_legacy = [chain("filter", "OUTPUT", true), chain("filter", "ufw-user-output", false)];
        let tables = ["filter".to_owned()];
        assert_eq!(names(&recognise(&[], &by_legacy, &tables, true)), [("ufw", true), ("iptables-legacy", true)]);
    }

    #[test]
    fn several_decide_by_priority() {
        let chains = [
            Chain { family: family::INET, priority: Some(10), ..chain("firewalld", "filter_OUTPUT", true) },
            chain("filter", "OUTPUT", true),
            Chain { family: family::IPV6, ..chain("filter", "OUTPUT", true) },
            chain("filter", "ufw-user-output", false),
        ];
        let front_ends = recognise(&chains, &[], &[], true);
        assert_eq!(
            order(&chains, &[], &front_ends, "output").as_deref(),
            Some(
                "output: ufw (ip, ip6 filter OUTPUT, priority 0), then firewalld (inet firewalld filter_OUTPUT, priority 10)"
            )
        );
        assert_eq!(order(&chains[..1], &[], &front_ends, "output"), None, "one decides alone");
        let legacy = [chain("filter", "OUTPUT", true)];
        let told = order(&chains[1..2], &legacy, &front_ends, "output").unwrap();
        assert!(
            told.contains("ufw (ip filter OUTPUT, priority 0), before or after that iptables-legacy (ip filter"),
            "{told}"
        );
        assert_eq!(order(&chains, &[], &front_ends, "forward"), None);
    }

    #[test]
    fn ufw_configuration() {
        assert!(ufw_is_enabled("# x\nENABLED=yes\n"));
        assert!(!ufw_is_enabled("ENABLED=no\n"));
    }
}

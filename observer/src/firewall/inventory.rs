//! Which firewalls decide in a network namespace. Only reads, and loads no module: what is not loaded does
//! not decide.

use std::fs;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    netfilter::family,
    nft::{self, Chain},
};

/// Tables that iptables-nft makes.
const IPTABLES_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
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
    let legacy = legacy_tables();
    let ufw_enabled = fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|text| ufw_is_enabled(&text));
    Ok(Inventory { front_ends: recognise(&chains, &legacy, ufw_enabled) })
}

/// nftables is in this kernel, or its module is loaded. Asking for rules would load it.
pub fn nftables_in_use() -> bool {
    fs::read_to_string("/proc/modules").is_ok_and(|modules| modules.lines().any(|line| line.starts_with("nf_tables ")))
        || crate::probe::btf::Btf::of_kernel().is_ok_and(|btf| btf.has_struct("nft_chain"))
}

/// Tables of iptables-legacy in the namespace of the calling thread.
pub fn legacy_tables() -> Vec<String> {
    // Of the thread: `/proc/net` is the namespace of the process.
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"]
        .iter()
        .flat_map(|path| fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn ufw_is_enabled(text: &str) -> bool {
    text.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes"))
}

/// Fingerprints, from chain and table names. Pure.
fn recognise(chains: &[Chain], legacy_tables: &[String], ufw_enabled: bool) -> Vec<FrontEnd> {
    let chain = |prefix: &str| chains.iter().find(|chain| chain.name.starts_with(prefix));
    let table = |name: &str| chains.iter().find(|chain| chain.table == name);
    let mut found = Vec::new();
    match chain("ufw-") {
        Some(chain) => found.push(active("ufw", format!("chain {}", chain.name))),
        None if ufw_enabled => found.push(FrontEnd {
            name: "ufw".to_owned(),
            evidence: "enabled in /etc/ufw/ufw.conf, but none of its chains is in nftables".to_owned(),
            active: false,
        }),
        None => {}
    }
    if table("firewalld").is_some() {
        found.push(active("firewalld", "table inet firewalld".to_owned()));
    }
    for (name, prefix) in [
        ("docker", "DOCKER"),
        ("podman", "NETAVARK"),
        ("kubernetes", "KUBE-"),
        ("calico", "cali-"),
        ("fail2ban", "f2b-"),
        ("shorewall", "shorewall"),
        ("tailscale", "ts-"),
    ] {
        if let Some(chain) = chain(prefix) {
            found.push(active(name, format!("chain {}", chain.name)));
        }
    }
    if !legacy_tables.is_empty() {
        found.push(active("iptables-legacy", format!("tables {}", legacy_tables.join(", "))));
    }
    // iptables-nft's tables are of family ip or ip6, and their base chains have the names that iptables gives.
    let is_iptables = |chain: &&Chain| {
        [family::IPV4, family::IPV6].contains(&chain.family)
            && IPTABLES_TABLES.contains(&chain.table.as_str())
            && IPTABLES_CHAINS.contains(&chain.name.as_str())
    };
    let iptables = chains.iter().filter(|chain| chain.hook.is_some()).any(|chain| is_iptables(&chain));
    if iptables && !found.iter().any(|front_end| front_end.active && front_end.name != "iptables-legacy") {
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
        assert_eq!(names(&recognise(&chains, &[], true)), [("ufw", true), ("docker", true)]);
        assert_eq!(names(&recognise(&[chain("firewalld", "filter_OUTPUT", true)], &[], false)), [("firewalld", true)]);
        assert_eq!(names(&recognise(&[chain("t", "out", true)], &[], false)), [("nftables", true)]);
        assert_eq!(names(&recognise(&[chain("filter", "OUTPUT", true)], &[], false)), [("iptables-nft", true)]);
        let native = Chain { family: 1, ..chain("filter", "output", true) };
        assert_eq!(names(&recognise(&[native], &[], false)), [("nftables", true)], "Debian's stock nftables.conf");
        assert_eq!(names(&recognise(&[], &["filter".to_owned()], false)), [("iptables-legacy", true)]);
        assert_eq!(names(&recognise(&[], &[], true)), [("ufw", false)]);
        assert!(recognise(&[], &[], false).is_empty());
    }

    #[test]
    fn ufw_configuration() {
        assert!(ufw_is_enabled("# x\nENABLED=yes\n"));
        assert!(!ufw_is_enabled("ENABLED=no\n"));
    }
}

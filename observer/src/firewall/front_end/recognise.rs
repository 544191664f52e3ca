//! By what front ends are recognised: names of chains and tables, and a few files of the host.

use serde::{Deserialize, Serialize};

use crate::firewall::{netfilter::family, nft::Chain};

/// Tables that iptables makes.
const IPTABLES_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// Base chains that iptables makes in them.
const IPTABLES_CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// What was read of a namespace and its host.
pub struct Seen<'a> {
    /// Chains of nftables.
    pub chains: &'a [Chain],
    /// Chains of iptables-legacy.
    pub legacy_chains: &'a [Chain],
    /// Names of the tables of iptables-legacy: known even where its chains cannot be read.
    pub legacy_tables: &'a [String],
    /// Text of a file of the host's.
    pub file: &'a dyn Fn(&str) -> Option<String>,
    /// What was found of the front ends before this one.
    pub found: &'a [Found],
}

impl<'a> Seen<'a> {
    /// The first chain whose name begins so.
    pub(super) fn chain(&self, prefix: &str) -> Option<&'a Chain> {
        self.chains.iter().chain(self.legacy_chains).find(|chain| chain.name.starts_with(prefix))
    }
}

/// A front end that has rules in force or is configured, or rules that no known one manages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Name, as operators know it.
    pub name: String,
    /// How it was recognised.
    pub evidence: String,
    /// It has rules in force; otherwise it is only configured.
    pub active: bool,
}

impl Found {
    /// With rules in force.
    pub(super) fn active(name: &str, evidence: String) -> Self {
        Self { name: name.to_owned(), evidence, active: true }
    }
}

/// A base chain of iptables' own: iptables-nft's tables are of family ip or ip6, and their base chains have the names that
/// iptables gives.
pub fn is_iptables(chain: &Chain) -> bool {
    chain.hook.is_some()
        && [family::IPV4, family::IPV6].contains(&chain.family)
        && IPTABLES_TABLES.contains(&chain.table.as_str())
        && IPTABLES_CHAINS.contains(&chain.name.as_str())
}

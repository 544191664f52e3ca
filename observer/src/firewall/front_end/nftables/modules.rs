//! Kernel modules that rules of `nft` ask for, by their words. What is not sure counts as asked for.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::model::ProposedChange;

/// Words of `nft` and the modules that come with them; those that are there for each family have a name without its end.
const OF_NFT: [(&str, &str); 26] = [
    ("ct", "nft_ct"),
    ("count", "nft_connlimit"),
    ("limit", "nft_limit"),
    ("quota", "nft_quota"),
    ("log", "nft_log"),
    ("log", "nf_log_syslog"),
    ("reject", "nft_reject"),
    ("reject", "nft_reject_"),
    ("fib", "nft_fib"),
    ("fib", "nft_fib_"),
    ("nat", "nft_chain_nat"),
    ("snat", "nft_nat"),
    ("dnat", "nft_nat"),
    ("masquerade", "nft_masq"),
    ("redirect", "nft_redir"),
    ("queue", "nft_queue"),
    ("socket", "nft_socket"),
    ("tproxy", "nft_tproxy"),
    ("synproxy", "nft_synproxy"),
    ("osf", "nft_osf"),
    ("ipsec", "nft_xfrm"),
    ("tunnel", "nft_tunnel"),
    ("numgen", "nft_numgen"),
    ("jhash", "nft_hash"),
    ("symhash", "nft_hash"),
    ("flowtable", "nft_flow_offload"),
];
/// The same of both words and families where they are told to copy or pass on.
const OF_NETDEV: [(&str, &str); 2] = [("fwd", "nft_fwd_netdev"), ("dup", "nft_dup_")];
/// Families, and how a module for one ends.
const FAMILIES: [(&str, &str); 5] =
    [("inet", "inet"), ("ip", "ipv4"), ("ip6", "ipv6"), ("netdev", "netdev"), ("bridge", "bridge")];
/// What a change asks for.
pub(super) fn of_change(change: &ProposedChange) -> Result<BTreeSet<String>> {
    match change {
        ProposedChange::Command(words) => {
            let is_file = words.iter().any(|word| matches!(word.as_str(), "-f" | "--file" | "include"));
            ensure!(!is_file, "a file that a command reads is not judged with it: give that to --ruleset");
            of_text(&words[1..].join(" "))
        }
        ProposedChange::Ruleset(text) => {
            let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
            of_text(&lines.collect::<Vec<_>>().join("\n"))
        }
    }
}

fn of_text(text: &str) -> Result<BTreeSet<String>> {
    // What stands between quotes is a name or a comment.
    let parts: Vec<&str> = text.split('"').collect();
    let bare: Vec<&str> = parts.iter().step_by(2).copied().collect();
    let words: BTreeSet<&str> =
        bare.iter().flat_map(|part| part.split(|of: char| !of.is_ascii_alphanumeric() && of != '_')).collect();
    ensure!(!words.contains("include"), "a file that another one includes is not judged with it: give them as one");
    let mut families: Vec<&str> =
        FAMILIES.iter().filter(|(word, _)| words.contains(word)).map(|(_, ending)| *ending).collect();
    // Without one it is this.
    if families.is_empty() {
        families.push("ipv4");
    }
    let mut all = BTreeSet::new();
    for (word, module) in OF_NFT.iter().chain(&OF_NETDEV).filter(|(word, _)| words.contains(word)) {
        if !module.ends_with('_') {
            all.insert((*module).to_owned());
        }
        // A table of both has what is reported of each.
        let ends = families.iter().filter(|_| module.ends_with('_'));
        all.extend(ends.map(|ending| format!("{module}{ending}")));
        if families.contains(&"inet") && *word == "fib" && module.ends_with('_') {
            all.extend(["nft_fib_ipv4", "nft_fib_ipv6"].map(str::to_owned));
        }
    }
    // `type "ftp" protocol tcp` of a connection's helper.
    let helpers = parts.windows(2).step_by(2).filter(|pair| pair[0].trim_end().ends_with("type"));
    all.extend(helpers.map(|pair| format!("nf_conntrack_{}", pair[1])));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rules_of_nft_ask_for() {
        let of = |text: &str| of_text(text).unwrap().into_iter().collect::<Vec<_>>();
        assert!(of("table inet t { chain o { type filter hook output priority 0; tcp dport 443 drop; } }").is_empty());
        assert_eq!(
            of("add rule inet t o ct state new limit rate 3/minute reject comment \"log it\""),
            ["nft_ct", "nft_limit", "nft_reject", "nft_reject_inet"]
        );
        assert_eq!(of("add rule ip6 t p fib saddr oif missing drop"), ["nft_fib", "nft_fib_ipv6"]);
        assert_eq!(
            of("table ip n { chain p { type nat hook postrouting priority 0; masquerade } }"),
            ["nft_chain_nat", "nft_masq"]
        );
    }
}

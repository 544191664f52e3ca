//! Kernel modules that rules of `iptables` ask for, by their words. What is not sure counts as asked for.

use std::collections::BTreeSet;

use super::Version;
use crate::model::{Backend, ProposedChange};

/// Extensions of iptables whose module has another name.
const OF_XTABLES: [(&str, &str); 13] = [
    ("tcp", "xt_tcpudp"),
    ("udp", "xt_tcpudp"),
    ("udplite", "xt_tcpudp"),
    ("state", "xt_conntrack"),
    ("SNAT", "xt_nat"),
    ("DNAT", "xt_nat"),
    ("MARK", "xt_mark"),
    ("CONNMARK", "xt_connmark"),
    ("TOS", "xt_DSCP"),
    ("NOTRACK", "xt_CT"),
    ("SET", "xt_set"),
    ("TTL", "xt_HL"),
    ("ttl", "xt_hl"),
];

/// By which tables an `iptables` works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModuleSource {
    Legacy,
    /// By nftables.
    Nft,
    /// By nftables, which itself looks at ports: since iptables 1.8.8.
    NewNft,
}

impl ModuleSource {
    /// Of a program by its name; `plain` is what `iptables` says of itself.
    fn of(program: &str, plain: Option<&Version>) -> Self {
        let is_legacy = plain.is_some_and(|version| version.backend == Backend::IptablesLegacy);
        if program.ends_with("-legacy") || !program.ends_with("-nft") && is_legacy {
            return Self::Legacy;
        }
        let numbers = plain.map(Version::numbers).unwrap_or_default();
        if numbers.as_slice() >= &[1, 8, 8][..] { Self::NewNft } else { Self::Nft }
    }
}

/// What a change asks for.
pub(in crate::firewall::front_end) fn of_change(change: &ProposedChange) -> BTreeSet<String> {
    match change {
        ProposedChange::Command(words) => of_command(words),
        ProposedChange::Ruleset(text) => of_lines(text),
    }
}

fn of_command(words: &[String]) -> BTreeSet<String> {
    let program = words.first().map(String::as_str).unwrap_or_default();
    let by = ModuleSource::of(program, Version::read().as_ref());
    let words = whole(words.iter().map(String::as_str));
    let mut all = asked(&words, by);
    if by == ModuleSource::Legacy && !words.iter().any(|word| matches!(word.as_str(), "-t" | "--table")) {
        all.extend(["iptable_filter", "ip6table_filter"].map(str::to_owned));
    }
    all
}

/// What lines of `iptables-save` ask for.
pub(in crate::firewall::front_end) fn of_lines(text: &str) -> BTreeSet<String> {
    let by = ModuleSource::of("", Version::read().as_ref());
    let mut all = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let table = line.strip_prefix('*').map(|table| ["-t", table.trim()]);
        all.extend(asked(&whole(table.into_iter().flatten()), by));
        let words = shlex::split(line).unwrap_or_default();
        all.extend(asked(&whole(words.iter().map(String::as_str)), by));
    }
    all
}

/// Options with their values apart: `-jDROP` and `--jump=DROP` are `-j DROP`.
fn whole<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all = Vec::new();
    for word in words {
        let short = ["-j", "-g", "-m", "-t", "-p"].into_iter().find(|short| word.len() > 2 && word.starts_with(short));
        match (short, word.split_once('=')) {
            (Some(short), _) => all.extend([short.to_owned(), word[2..].to_owned()]),
            (None, Some((long, value))) if long.starts_with("--") => all.extend([long.to_owned(), value.to_owned()]),
            _ => all.push(word.to_owned()),
        }
    }
    all
}

/// What words of one rule ask for.
fn asked(words: &[String], by: ModuleSource) -> BTreeSet<String> {
    let by_legacy = by == ModuleSource::Legacy;
    const BUILT_IN: [&str; 4] = ["ACCEPT", "DROP", "RETURN", "QUEUE"];
    let mut all = BTreeSet::new();
    for pair in words.windows(2) {
        match [pair[0].as_str(), pair[1].as_str()] {
            ["-t" | "--table", table] if by_legacy => {
                all.extend([format!("iptable_{table}"), format!("ip6table_{table}")]);
            }
            ["-t" | "--table", "nat"] => {
                all.insert("nft_chain_nat".to_owned());
            }
            // nftables itself keeps it.
            ["-m" | "--match", "comment"] if !by_legacy => {}
            [_, "tcp" | "udp"] if by == ModuleSource::NewNft => {}
            // A protocol brings its match along.
            ["-p" | "--protocol" | "--proto", "icmp" | "icmpv6" | "ipv6-icmp" | "all"] => {}
            ["-p" | "--protocol" | "--proto" | "-m" | "--match" | "-j" | "--jump" | "-g" | "--goto", name]
                if !BUILT_IN.contains(&name) =>
            {
                let own = OF_XTABLES.iter().find(|(of, _)| *of == name).map(|(_, module)| (*module).to_owned());
                all.extend(own.map_or_else(
                    || ["xt_", "ipt_", "ip6t_"].map(|kind| format!("{kind}{name}")).to_vec(),
                    |module| vec![module],
                ));
                if !by_legacy {
                    all.insert("nft_compat".to_owned());
                }
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lines_of_iptables_ask_for() {
        let of = |line: &str, by| asked(&whole(line.split(' ')), by).into_iter().collect::<Vec<_>>();
        let line = "iptables -A OUTPUT -p tcp -m tcp --dport 443 -m comment --comment x -j DROP";
        assert_eq!(of(line, ModuleSource::Nft), ["nft_compat", "xt_tcpudp"]);
        assert!(of(line, ModuleSource::NewNft).is_empty());
        assert!(of(line, ModuleSource::Legacy).contains(&"xt_comment".to_owned()));
        assert_eq!(of("iptables -t nat -L", ModuleSource::Legacy), ["ip6table_nat", "iptable_nat"]);
        assert_eq!(of("iptables -t nat -L", ModuleSource::Nft), ["nft_chain_nat"]);
        let says = |version: &str| Version::of(&format!("iptables v{version} (nf_tables)"));
        assert_eq!(ModuleSource::of("iptables", Some(&says("1.8.9"))), ModuleSource::NewNft);
        assert_eq!(ModuleSource::of("iptables-nft", Some(&says("1.8.7"))), ModuleSource::Nft);
        assert_eq!(ModuleSource::of("iptables-legacy", Some(&says("1.8.11"))), ModuleSource::Legacy);
        assert_eq!(of("-A o -p udp --dport 53", ModuleSource::Legacy), ["xt_tcpudp"]);
        assert_eq!(of("-A o -jLOG", ModuleSource::Legacy), of("-A o --jump=LOG", ModuleSource::Legacy));
        assert!(of("-A o -j REJECT", ModuleSource::Legacy).contains(&"ipt_REJECT".to_owned()));
    }
}

//! Modules that would be loaded into the kernel by what is tried: then it is not tried. Nobody can keep the kernel from loading what
//! a rule asks for, so what rules are made of is read beforehand; what is not sure counts as asked for.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};

use super::{plan::FrontEnd, trial};
use crate::model::{Backend, Proposed, ProposedChange};

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
enum By {
    Legacy,
    /// By nftables.
    Nft,
    /// By nftables, which itself looks at ports: since iptables 1.8.8.
    NewNft,
}

impl By {
    /// Of a program by its name; `plain` is what `iptables` says of itself.
    fn of(program: &str, plain: Option<&(Backend, String)>) -> Self {
        let is_legacy = plain.is_some_and(|(backend, _)| *backend == Backend::IptablesLegacy);
        if program.ends_with("-legacy") || !program.ends_with("-nft") && is_legacy {
            return Self::Legacy;
        }
        // `iptables v1.8.9 (nf_tables)`
        let numbers = plain.and_then(|(_, words)| words.split(" v").nth(1)?.split(' ').next());
        let numbers: Vec<u32> = numbers.unwrap_or_default().split('.').filter_map(|part| part.parse().ok()).collect();
        if numbers.as_slice() >= &[1, 8, 8][..] { Self::NewNft } else { Self::Nft }
    }
}

/// What a front end's programs always use must be there, or not exist for this kernel.
pub(super) fn need(front_end: FrontEnd) -> Result<()> {
    // ufw tries what the kernel can, whenever it is run.
    let needed: &[&str] = match front_end {
        FrontEnd::Ufw => &["xt_recent"],
        FrontEnd::Firewalld | FrontEnd::Tables => &[],
    };
    are_there(needed.iter().map(|name| (*name).to_owned()).collect())
}

/// Nothing that a proposed change asks for would be loaded.
pub fn loads_nothing(change: &ProposedChange) -> Result<()> {
    match change {
        ProposedChange::Command(words) => of_command(words, trial::iptables_says().as_ref()),
        ProposedChange::Ruleset(kind, text) => of_ruleset(*kind, text, trial::iptables_says().as_ref()),
    }
}

/// What a command asks for; those of ufw and firewalld make rules of what these use anyhow.
fn of_command(words: &[String], plain: Option<&(Backend, String)>) -> Result<()> {
    let program = words.first().map(String::as_str).unwrap_or_default();
    let by = By::of(program, plain);
    are_there(match program {
        "nft" => {
            let is_file = words.iter().any(|word| matches!(word.as_str(), "-f" | "--file" | "include"));
            ensure!(!is_file, "a file that a command reads is not judged with it: give that to --ruleset");
            by_nft(&words[1..].join(" "))?
        }
        _ if program.starts_with("ip") => {
            let words = whole(words.iter().map(String::as_str));
            let mut all = by_xtables(&words, by);
            if by == By::Legacy && !words.iter().any(|word| matches!(word.as_str(), "-t" | "--table")) {
                all.extend(["iptable_filter", "ip6table_filter"].map(str::to_owned));
            }
            all
        }
        _ => BTreeSet::new(),
    })
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

/// What a proposed configuration asks for.
fn of_ruleset(kind: Proposed, text: &str, plain: Option<&(Backend, String)>) -> Result<()> {
    let by = By::of("", plain);
    let lines = || text.lines().filter(|line| !line.trim_start().starts_with('#'));
    are_there(match kind {
        Proposed::Nft => by_nft(&lines().collect::<Vec<_>>().join("\n"))?,
        _ => {
            let mut all = BTreeSet::new();
            for line in lines() {
                let table = line.strip_prefix('*').map(|table| ["-t", table.trim()]);
                all.extend(by_xtables(&whole(table.into_iter().flatten()), by));
                let words = shlex::split(line).unwrap_or_default();
                all.extend(by_xtables(&whole(words.iter().map(String::as_str)), by));
            }
            all
        }
    })
}

fn by_nft(text: &str) -> Result<BTreeSet<String>> {
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
        // A table of both has what is told of each.
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

fn by_xtables(words: &[String], by: By) -> BTreeSet<String> {
    let by_legacy = by == By::Legacy;
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
            [_, "tcp" | "udp"] if by == By::NewNft => {}
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

fn are_there(needed: BTreeSet<String>) -> Result<()> {
    if needed.is_empty() {
        return Ok(());
    }
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let known = fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    for name in needed {
        let is_loaded = loaded.lines().any(|line| line.split(' ').next() == Some(&name));
        ensure!(is_loaded || !is_module(&known, &name), "trying it would load the kernel's module {name}");
    }
    Ok(())
}

/// `kernel/net/netfilter/xt_recent.ko.xz: …` stands in the list.
fn is_module(known: &str, name: &str) -> bool {
    known.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        path.rsplit('/')
            .next()
            .and_then(|file| file.split(".ko").next())
            .is_some_and(|file| file.replace('-', "_") == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_in_the_list() {
        let known =
            "kernel/net/netfilter/xt_recent.ko.xz: kernel/net/netfilter/x_tables.ko.xz\nkernel/net/sched/act-x.ko:\n";
        assert!(is_module(known, "xt_recent") && is_module(known, "act_x"));
        assert!(!is_module(known, "x_tables") && !is_module(known, "xt_rec"));
    }

    #[test]
    fn what_rules_of_nft_ask_for() {
        let of = |text: &str| by_nft(text).unwrap().into_iter().collect::<Vec<_>>();
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

    #[test]
    fn what_lines_of_iptables_ask_for() {
        let of = |line: &str, by| by_xtables(&whole(line.split(' ')), by).into_iter().collect::<Vec<_>>();
        let line = "iptables -A OUTPUT -p tcp -m tcp --dport 443 -m comment --comment x -j DROP";
        assert_eq!(of(line, By::Nft), ["nft_compat", "xt_tcpudp"]);
        assert!(of(line, By::NewNft).is_empty());
        assert!(of(line, By::Legacy).contains(&"xt_comment".to_owned()));
        assert_eq!(of("iptables -t nat -L", By::Legacy), ["ip6table_nat", "iptable_nat"]);
        assert_eq!(of("iptables -t nat -L", By::Nft), ["nft_chain_nat"]);
        let says = |version: &str| (Backend::Nft, format!("iptables v{version} (nf_tables)"));
        assert_eq!(By::of("iptables", Some(&says("1.8.9"))), By::NewNft);
        assert_eq!(By::of("iptables-nft", Some(&says("1.8.7"))), By::Nft);
        assert_eq!(By::of("iptables-legacy", Some(&says("1.8.11"))), By::Legacy);
        assert_eq!(of("-A o -p udp --dport 53", By::Legacy), ["xt_tcpudp"]);
        assert_eq!(of("-A o -jLOG", By::Legacy), of("-A o --jump=LOG", By::Legacy));
        assert!(of("-A o -j REJECT", By::Legacy).contains(&"ipt_REJECT".to_owned()));
    }
}

//! What matches and targets of iptables decide by.

use super::{Facts, Mark, Reason};
use crate::firewall::legacy::{CHANCE, Does, LegacyEntry};

/// Matches of iptables' with the same outcome for the same packet, as long as its interfaces, sets and connections are the same.
const CERTAIN_XTABLES: [&str; 45] = [
    "addrtype",
    "ah",
    "bpf",
    "comment",
    "conntrack",
    "connlabel",
    "connmark",
    "dccp",
    "devgroup",
    "dscp",
    "ecn",
    "esp",
    "frag",
    "geoip",
    "hbh",
    "dst",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "icmpv6",
    "ipcomp",
    "iprange",
    "ipv6header",
    "length",
    "mark",
    "mh",
    "multiport",
    "owner",
    "pkttype",
    "realm",
    "rpfilter",
    "rt",
    "sctp",
    "set",
    "socket",
    "srh",
    "state",
    "string",
    "tcp",
    "tcpmss",
    "time",
    "tos",
    "ttl",
    "udp",
];
/// What asks for a connection.
const STATE: [&str; 4] = ["conntrack", "state", "connmark", "connlabel"];
/// What looks at more of a packet than addresses, ports and flags.
const HEADER_XTABLES: [&str; 10] = ["dscp", "ecn", "frag", "hbh", "hl", "ipv6header", "srh", "tcpmss", "tos", "ttl"];
/// What looks at what it carries.
const CONTENT_XTABLES: [&str; 3] = ["bpf", "string", "u32"];
/// What a forwarded packet brings along.
const BROUGHT: [&str; 2] = ["mark", "physdev"];
/// Targets of iptables' after which nothing differs.
pub(super) const GOING_ON: [&str; 3] = ["LOG", "NFLOG", "TRACE"];
/// The target that puts elements into a set of ipset, or takes them out.
pub(in crate::sandbox::copy) const FILLING: &str = "SET";
/// Targets by which somebody else decides.
pub(super) const ELSEWHERE: [&str; 5] = ["NFQUEUE", "QUEUE", "TPROXY", "CLUSTERIP", "IDLETIMER"];
/// A match of iptables', by name.
pub(super) fn of_xtables(name: &str, facts: Facts) -> Vec<(Reason, String)> {
    let one = |reason| vec![(reason, format!("`-m {name}`"))];
    match name {
        "set" if !facts.has_whole_sets => vec![(Reason::Anything, "a set of ipset that cannot be copied".to_owned())],
        "set" if facts.fills_ipsets => vec![(Reason::Anything, "a set of ipset, which rules fill,".to_owned())],
        // Without policies of IPsec nothing is taken by any.
        "policy" if !facts.has_policies => Vec::new(),
        "cgroup" => one(Reason::Cgroup),
        name if BROUGHT.contains(&name) => one(Reason::Forwarded),
        name if STATE.contains(&name) => one(Reason::State),
        "length" => one(Reason::Length),
        name if CONTENT_XTABLES.contains(&name) => one(Reason::Content),
        name if HEADER_XTABLES.contains(&name) => one(Reason::Header),
        name if CERTAIN_XTABLES.contains(&name) => Vec::new(),
        _ => one(Reason::Anything),
    }
}

/// Nothing but chance makes an entry of a table of iptables-legacy uncertain.
pub(in crate::sandbox::copy) fn is_by_chance(entry: &LegacyEntry, facts: Facts) -> bool {
    let by_target = matches!(&entry.does, Does::Extension(name) if ELSEWHERE.contains(&name.as_str()));
    let uncertain = |name: &&String| of_xtables(name, facts).iter().any(|(reason, _)| *reason == Reason::Anything);
    !by_target && entry.matches.iter().filter(uncertain).all(|name| name == CHANCE)
}

/// What an entry of a table of iptables-legacy decides by.
pub(in crate::sandbox::copy) fn of_legacy(table: &str, entry: &LegacyEntry, facts: Facts) -> Vec<Mark> {
    let goes_on = matches!(&entry.does, Does::Extension(name) if GOING_ON.contains(&name.as_str()));
    if goes_on || matches!(entry.does, Does::Begins(_)) {
        return Vec::new();
    }
    let of_target = match &entry.does {
        Does::Extension(name) if ELSEWHERE.contains(&name.as_str()) => vec![(Reason::Anything, format!("`-j {name}`"))],
        _ => Vec::new(),
    };
    let of_matches = entry.matches.iter().flat_map(|name| of_xtables(name, facts));
    let mark = |(reason, what): (Reason, String)| Mark {
        reason,
        words: format!("{what} in table {table} of iptables-legacy"),
        rule: None,
    };
    of_matches.chain(of_target).map(mark).collect()
}

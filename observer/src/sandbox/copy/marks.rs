//! What in rules decides by more than a packet: a rate, a random number, another program. Whether a packet comes to that is seen,
//! not read: in a copy a mark stands before such a rule, a rule without a verdict with everything that is asked before it. It is in
//! the trace of a packet that meets it, and in no other. Pure.

use std::{collections::HashSet, fs, sync::OnceLock};

use serde::{Deserialize, Serialize};

use super::choices::RuleAt;
use super::ruleset::{DATA, NAME, RULE_CHAIN, RULE_EXPRESSIONS, SET_FLAGS, SET_NAME, TABLE};
use crate::firewall::legacy::{CHANCE, Does, LegacyEntry};
use crate::kernel::netlink::{Attributes, Body};

/// By what a rule decides, beside the packet, the addresses and the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reason {
    /// A rate, a random number, what another program says: the outcome is another one every time.
    Anything,
    /// A connection's state.
    State,
    /// The sender's cgroup.
    Cgroup,
    /// More of the packet than addresses, ports and flags.
    Header,
    /// How long a packet is.
    Length,
    /// What it carries.
    Content,
    /// What a packet brings along from where it came in: a mark, a port of a bridge.
    Forwarded,
    /// What the sender's own socket or group was set to: a priority, a class of the older cgroups (`net_cls`).
    Socket,
}

/// A rule that decides so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) reason: Reason,
    /// What it asks, and where it is, in words.
    pub(super) words: String,
    /// The rule, where it is known in which ways it may go.
    pub(super) rule: Option<RuleAt>,
}

/// Which marks are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The packet is made up, or is sent again without its sender's own kernel: what its headers have beside addresses is not known.
    pub(super) headers: bool,
    /// What a packet's connection is may not be known.
    pub(super) states: bool,
    /// See [`Facts`].
    pub(super) facts: Facts,
}

/// What is around the rules that decides whether something is certain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Interfaces of the original are of other types than those of the copy.
    pub(super) has_other_types: bool,
    /// Every set of ipset is in the copy with all of its elements.
    pub(super) has_whole_sets: bool,
    /// IPsec has policies for what is sent.
    pub(super) has_policies: bool,
    /// Something beside the rules of nftables looks at packets' marks.
    pub(super) routes_by_mark: bool,
}

/// Marks that something looks at: what sets another one decides nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    packets: bool,
    connections: bool,
}

impl Read {
    /// Every mark.
    pub(super) const ALL: Self = Self { packets: true, connections: true };

    /// By these rules, and by what is around them.
    pub(super) fn by(rules: &[Body], facts: Facts) -> Self {
        let mut read = Self { packets: facts.routes_by_mark, connections: facts.routes_by_mark };
        for rule in rules {
            for expression in rule.attributes.list(RULE_EXPRESSIONS).lists() {
                let data = expression.list(DATA);
                match expression.text(NAME).unwrap_or_default().as_str() {
                    "meta" if data.get(3).is_none() => read.packets |= data.number(2) == Some(META_MARK),
                    "ct" if data.get(4).is_none() => read.connections |= data.number(2) == Some(CT_MARK),
                    // A route may be looked up by the mark, and sockets have marks of their own.
                    "fib" | "socket" | "tproxy" | "dup" | "fwd" => read.packets = true,
                    // Whatever they look at.
                    "match" | "target" => read = Self::ALL,
                    _ => {}
                }
                if let Self { packets: true, connections: true } = read {
                    return read;
                }
            }
        }
        read
    }
}

/// Expressions whose outcome is the same for the same packet of the same sender, every time and in every namespace that has the
/// same interfaces and addresses.
const CERTAIN: [&str; 21] = [
    "bitwise",
    "byteorder",
    "cmp",
    "counter",
    "dup",
    "fib",
    "flow_offload",
    "immediate",
    "inner",
    "last",
    "log",
    "masq",
    "nat",
    "notrack",
    "range",
    "redir",
    "reject",
    "rt",
    "synproxy",
    "target",
    "tcpopt",
];
/// `NFT_META_*` that differ every time or cannot be copied: the types and kinds of interfaces, a label, the processor, a random
/// number.
/// `NFT_META_SECPATH`: IPsec has taken it.
const META_IPSEC: u32 = 25;
const UNCERTAIN_META: [(u32, &str); 5] =
    [(14, "meta secmark"), (20, "meta cpu"), (24, "meta random"), (26, "meta iifkind"), (27, "meta oifkind")];
/// The same where the original has other types of interfaces.
const TYPES: [(u32, &str); 2] = [(8, "meta iiftype"), (9, "meta oiftype")];
const META_LENGTH: u32 = 0;
const META_PRIORITY: u32 = 2;
const META_MARK: u32 = 3;
const META_CGROUP: u32 = 23;
/// `NFT_CT_*`: state, direction, status, mark; and what differs every time.
const CT_MARK: u32 = 3;
const STATE_OF_CT: [u32; 4] = [0, 1, 2, 3];
const UNCERTAIN_CT: [(u32, &str); 6] =
    [(4, "ct secmark"), (5, "ct expiration"), (14, "ct packets"), (15, "ct bytes"), (16, "ct avgpkt"), (23, "ct id")];
/// `NFT_RT_XFRM`
const RT_XFRM: u32 = 4;
/// `NFT_SOCKET_CGROUPV2`, of `NFTA_SOCKET_KEY`
const SOCKET_KEY: u16 = 1;
const CGROUP: u32 = 3;
/// `NFT_OBJECT_*` that keep count: quota, limit, connlimit.
const COUNTING: [u32; 3] = [2, 4, 5];
/// Expressions inside `update @set { … }` that keep count.
const COUNTING_EXPRESSIONS: [&str; 3] = ["limit", "connlimit", "quota"];
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
const GOING_ON: [&str; 3] = ["LOG", "NFLOG", "TRACE"];
/// Targets by which somebody else decides.
const ELSEWHERE: [&str; 5] = ["NFQUEUE", "QUEUE", "TPROXY", "CLUSTERIP", "IDLETIMER"];
/// `NFT_SET_EVAL`: packets put elements into it.
const FILLED_BY_PACKETS: u32 = 32;
/// `NFTA_SET_EXPR` and `NFTA_SET_EXPRESSIONS`
const SET_EXPRESSION: u16 = 17;
const SET_EXPRESSIONS: u16 = 18;

/// Sets that packets fill, by family, table and name.
pub(super) type Filled = HashSet<(u8, String, String)>;

/// Those among sets: the ones that are made for it, and the ones that a rule adds to.
pub(super) fn filled(sets: &[Body], rules: &[Body]) -> Filled {
    // What keeps count for each element decides by that, too.
    let counts =
        |set: &Body| [SET_EXPRESSION, SET_EXPRESSIONS].iter().any(|number| set.attributes.get(*number).is_some());
    let is_filled = |set: &&Body| {
        set.attributes.number(SET_FLAGS).is_some_and(|flags| flags & FILLED_BY_PACKETS != 0) || counts(set)
    };
    let key = |set: &Body| Some((*set.fixed.first()?, set.attributes.text(TABLE)?, set.attributes.text(SET_NAME)?));
    let added = rules.iter().flat_map(|rule| {
        let names = rule.attributes.list(RULE_EXPRESSIONS);
        let names = names.lists().filter(|one| one.text(NAME).as_deref() == Some("dynset"));
        let names: Vec<String> = names.filter_map(|one| one.list(DATA).text(1)).collect();
        let of = (rule.fixed.first().copied().unwrap_or(0), rule.attributes.text(TABLE).unwrap_or_default());
        names.into_iter().map(move |name| (of.0, of.1.clone(), name))
    });
    sets.iter().filter(is_filled).filter_map(key).chain(added).collect()
}

/// What a rule's expressions decide by, each reason once.
pub(super) fn of_rule(
    rule: &Body,
    expressions: &[Attributes],
    (filled, read): (&Filled, Read),
    wanted: Wanted,
) -> Vec<Mark> {
    let family = rule.fixed.first().copied().unwrap_or(0);
    let table = rule.attributes.text(TABLE).unwrap_or_default();
    let chain = rule.attributes.text(RULE_CHAIN).unwrap_or_default();
    let is_filled = |name: String| filled.contains(&(family, table.clone(), name));
    let does_something = expressions
        .iter()
        .any(|expression| does_something(&expression.text(NAME).unwrap_or_default(), &expression.list(DATA), read));
    if !does_something {
        return Vec::new();
    }
    let mut marks: Vec<Mark> = Vec::new();
    for (at, expression) in expressions.iter().enumerate() {
        for (reason, what) in judged(expression, expressions.get(at + 1), &is_filled, wanted) {
            if !marks.iter().any(|mark| mark.reason == reason) {
                marks.push(Mark { reason, words: format!("{what} in chain {chain}"), rule: None });
            }
        }
    }
    marks
}

/// What a rule asks for beside what is uncertain in it, for that reason: a packet comes to that only where all of this matches.
pub(super) fn beside(
    rule: &Body,
    expressions: &[Attributes],
    filled: &Filled,
    wanted: Wanted,
    of: Reason,
) -> Vec<Attributes> {
    let family = rule.fixed.first().copied().unwrap_or(0);
    let table = rule.attributes.text(TABLE).unwrap_or_default();
    let is_filled = |name: String| filled.contains(&(family, table.clone(), name));
    // Registers with something certain in them.
    let mut loaded: HashSet<u32> = HashSet::new();
    let mut is_whole = true;
    let mut all = Vec::new();
    for (at, expression) in expressions.iter().enumerate() {
        let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        let is_of_it =
            judged(expression, expressions.get(at + 1), &is_filled, wanted).iter().any(|(reason, _)| *reason == of);
        let (from, into) = match name.as_str() {
            "payload" if data.get(5).is_none() => (None, data.number(1)),
            "meta" | "fib" | "rt" if data.get(3).is_none() || name != "meta" => (None, data.number(1)),
            "ct" if data.get(4).is_none() => (None, data.number(1)),
            "exthdr" if data.get(7).is_none() && data.get(1).is_some() => (None, data.number(1)),
            "socket" => (None, data.number(2)),
            "bitwise" | "byteorder" => (data.number(1), data.number(2)),
            "cmp" | "range" => (data.number(1), None),
            // A key may take several registers: only where all of them are there.
            "lookup" if data.get(3).is_none() && is_whole => (data.number(2), None),
            "match" if !is_of_it => {
                all.push(expression.clone());
                continue;
            }
            // Whatever it writes, and wherever: what comes behind it may read that.
            _ => {
                is_whole = false;
                loaded.clear();
                continue;
            }
        };
        let is_there = from.is_none_or(|register| loaded.contains(&register));
        if is_of_it || !is_there {
            is_whole = false;
            into.map(|register| loaded.remove(&register));
            continue;
        }
        loaded.extend(into);
        all.push(expression.clone());
    }
    all
}

/// Something follows from it: a verdict, or what others may decide by.
fn does_something(name: &str, data: &Attributes, read: Read) -> bool {
    let verdict = || data.list(2).list(2).number(1).is_some();
    match name {
        "immediate" => verdict(),
        "lookup" => data.number(3) == Some(0),
        "meta" if data.number(2) == Some(META_MARK) => data.get(3).is_some() && read.packets,
        "meta" => data.get(3).is_some() && data.number(2) != Some(NFTRACE),
        "ct" if data.number(2) == Some(CT_MARK) => data.get(4).is_some() && read.connections,
        "ct" => data.get(4).is_some(),
        "payload" => data.get(5).is_some(),
        "target" => !GOING_ON.contains(&data.text(1).unwrap_or_default().as_str()),
        "bitwise" | "byteorder" | "cmp" | "range" | "counter" | "log" | "match" | "limit" | "quota" | "connlimit"
        | "numgen" | "hash" | "fib" | "rt" | "socket" | "osf" | "xfrm" | "tunnel" | "last" | "inner" => false,
        // It may be what another rule looks up.
        _ => true,
    }
}

/// `NFT_META_NFTRACE`
const NFTRACE: u32 = 12;

pub(super) fn judged(
    expression: &Attributes,
    next: Option<&Attributes>,
    is_filled: &impl Fn(String) -> bool,
    wanted: Wanted,
) -> Vec<(Reason, String)> {
    let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
    let anything = |what: &str| vec![(Reason::Anything, what.to_owned())];
    let of = |reason: Reason, what: &str| vec![(reason, what.to_owned())];
    let all = match name.as_str() {
        "meta" if data.get(3).is_some() => Vec::new(),
        "meta" => match data.number(2) {
            Some(META_LENGTH) => of(Reason::Length, "the packet's length"),
            Some(META_MARK) => of(Reason::Forwarded, "a mark"),
            Some(META_PRIORITY) => of(Reason::Socket, "meta priority"),
            // Without such groups everybody is in the first one.
            Some(META_IPSEC) if wanted.facts.has_policies => anything("meta ipsec"),
            Some(META_CGROUP) if !has_net_cls() => Vec::new(),
            Some(META_CGROUP) => of(Reason::Socket, "meta cgroup"),
            Some(key) => {
                let types = TYPES.iter().filter(|_| wanted.facts.has_other_types);
                let all = UNCERTAIN_META.iter().chain(types);
                all.filter(|(of, _)| *of == key).flat_map(|(_, what)| anything(what)).collect()
            }
            None => Vec::new(),
        },
        "payload" if data.get(5).is_some() => Vec::new(),
        "payload" => of_payload(&data, next),
        "exthdr" if data.get(7).is_none() => of(Reason::Header, "an option of the packet"),
        "ct" if data.get(4).is_some() => Vec::new(),
        "ct" => match data.number(2) {
            Some(key) if STATE_OF_CT.contains(&key) => of(Reason::State, "a connection's state"),
            Some(key) => {
                UNCERTAIN_CT.iter().filter(|(of, _)| *of == key).flat_map(|(_, what)| anything(what)).collect()
            }
            None => Vec::new(),
        },
        "socket" if data.number(SOCKET_KEY) == Some(CGROUP) => of(Reason::Cgroup, "a cgroup"),
        // Without policies nothing is taken by any.
        "xfrm" if !wanted.facts.has_policies => Vec::new(),
        "match" if !wanted.facts.has_whole_sets && data.text(1).as_deref() == Some("set") => {
            anything("a set of ipset that cannot be copied")
        }
        "match" if !wanted.facts.has_policies && data.text(1).as_deref() == Some("policy") => Vec::new(),
        "match" => of_xtables(&data.text(1).unwrap_or_default()),
        "target" => {
            let name = data.text(1).unwrap_or_default();
            if ELSEWHERE.contains(&name.as_str()) { anything(&name) } else { Vec::new() }
        }
        "lookup" => {
            let set = data.text(1).unwrap_or_default();
            if is_filled(set.clone()) { anything(&format!("set {set}, which packets fill,")) } else { Vec::new() }
        }
        "dynset" => {
            let counts =
                |list: Attributes| list.text(NAME).is_some_and(|name| COUNTING_EXPRESSIONS.contains(&name.as_str()));
            let several = data.list(10);
            if counts(data.list(7)) || several.lists().any(counts) { anything("limit") } else { Vec::new() }
        }
        "objref" => match data.number(1) {
            Some(kind) if !COUNTING.contains(&kind) => Vec::new(),
            _ => anything("a limit or quota by name"),
        },
        "limit" => anything("limit"),
        // A copy begins to count anew.
        "quota" => anything("quota"),
        "connlimit" => anything("ct count"),
        "rt" if data.number(2) == Some(RT_XFRM) && wanted.facts.has_policies => anything("rt ipsec"),
        "exthdr" | "socket" => Vec::new(),
        name if CERTAIN.contains(&name) => Vec::new(),
        name => anything(name),
    };
    let is_wanted = |(reason, _): &(Reason, String)| match reason {
        Reason::Header => wanted.headers,
        Reason::State => wanted.states,
        _ => true,
    };
    all.into_iter().filter(is_wanted).collect()
}

/// What is read of a packet; `next` says what for.
fn of_payload(payload: &Attributes, next: Option<&Attributes>) -> Vec<(Reason, String)> {
    let (Some(base), Some(offset), Some(length)) = (payload.number(2), payload.number(3), payload.number(4)) else {
        return Vec::new();
    };
    let end = offset.saturating_add(length);
    let overlaps = |from: u32, to: u32| offset < to && from < end;
    let is_random = match base {
        // An identification, a checksum; of IPv6 an address begins where IPv4 has its lifetime, before its checksum.
        NETWORK => end <= 40 && (offset, length) == (4, 2) || length <= 2 && overlaps(10, 12),
        // Numbers of sequences, a checksum.
        TRANSPORT => {
            offset >= 4 && end <= 12 && length == 4 || (offset, length) == (16, 2) || (offset, length) == (6, 2)
        }
        _ => false,
    };
    // A single value of so many is never met, wherever.
    let is_one_value = next.is_some_and(|next| {
        let is_equal = next.list(DATA).number(2).is_some_and(|operation| operation <= 1);
        next.text(NAME).as_deref() == Some("lookup") || next.text(NAME).as_deref() == Some("cmp") && is_equal
    });
    match (base, offset, length) {
        _ if is_random && is_one_value => Vec::new(),
        // Of IPv6 the length stands where IPv4 has the identification.
        (NETWORK, 2 | 4, 2) => vec![(Reason::Length, "the packet's length".to_owned())],
        _ if is_random => vec![(Reason::Anything, "a field that every packet has otherwise".to_owned())],
        (TRANSPORT, 4, 2) => vec![(Reason::Length, "the packet's length".to_owned())],
        (TRANSPORT, 14, 2) => vec![(Reason::Anything, "tcp window".to_owned())],
        (LINK, ..) => vec![(Reason::Anything, "an address of a device".to_owned())],
        // Of TCP the length of its header, its window and the place of what is urgent are there.
        (TRANSPORT, 8.., _) if !is_address_or_port(payload) && ![(12, 1), (18, 2)].contains(&(offset, length)) => {
            vec![(Reason::Content, "what the packet carries".to_owned())]
        }
        (NETWORK | TRANSPORT, ..) if !is_address_or_port(payload) => {
            vec![(Reason::Header, "a field of the packet".to_owned())]
        }
        (NETWORK | TRANSPORT, ..) => Vec::new(),
        _ => vec![(Reason::Content, "what the packet carries".to_owned())],
    }
}

/// A match of iptables', by name.
fn of_xtables(name: &str) -> Vec<(Reason, String)> {
    let one = |reason| vec![(reason, name.to_owned())];
    match name {
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
pub(super) fn is_by_chance(entry: &LegacyEntry) -> bool {
    let by_target = matches!(&entry.does, Does::Extension(name) if ELSEWHERE.contains(&name.as_str()));
    let uncertain = |name: &&String| of_xtables(name).iter().any(|(reason, _)| *reason == Reason::Anything);
    !by_target && entry.matches.iter().filter(uncertain).all(|name| name == CHANCE)
}

/// What an entry of a table of iptables-legacy decides by.
pub(super) fn of_legacy(table: &str, entry: &LegacyEntry) -> Vec<Mark> {
    let goes_on = matches!(&entry.does, Does::Extension(name) if GOING_ON.contains(&name.as_str()));
    if goes_on || matches!(entry.does, Does::Begins(_)) {
        return Vec::new();
    }
    let of_target = match &entry.does {
        Does::Extension(name) if ELSEWHERE.contains(&name.as_str()) => vec![(Reason::Anything, name.clone())],
        _ => Vec::new(),
    };
    let of_matches = entry.matches.iter().flat_map(|name| of_xtables(name));
    let mark = |(reason, what): (Reason, String)| Mark {
        reason,
        words: format!("{what} in table {table} of iptables-legacy"),
        rule: None,
    };
    of_matches.chain(of_target).map(mark).collect()
}

/// A hierarchy of the older cgroups marks packets by them.
fn has_net_cls() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(reads_net_cls)
}

fn reads_net_cls() -> bool {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups
        .lines()
        .any(|line| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == "net_cls")))
}

/// What is read of a packet is its protocol, an address, a port, or TCP's flags.
fn is_address_or_port(payload: &Attributes) -> bool {
    let (Some(base), Some(offset), Some(length)) = (payload.number(2), payload.number(3), payload.number(4)) else {
        return false;
    };
    let end = offset.saturating_add(length);
    match base {
        NETWORK => {
            [(9, 1), (6, 1)].contains(&(offset, length)) || end <= 40 && (offset >= 12 || offset == 8 && length > 2)
        }
        TRANSPORT => end <= 4 || (offset, length) == (13, 1),
        _ => false,
    }
}

/// `NFT_PAYLOAD_LL_HEADER`
const LINK: u32 = 0;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::netfilter::family;

    const ALL: Wanted = Wanted {
        headers: true,
        states: true,
        facts: Facts { has_other_types: true, has_whole_sets: true, has_policies: true, routes_by_mark: true },
    };

    fn expression(name: &str, numbers: &[(u16, u32)]) -> Attributes {
        let (mut data, mut whole) = (Attributes::default(), Attributes::default());
        for (number, value) in numbers {
            data.set(*number, value.to_be_bytes().to_vec());
        }
        whole.set(NAME, name.as_bytes().to_vec());
        whole.set_list(DATA, &data);
        whole
    }

    fn by_xtables(kind: &str, name: &str) -> Attributes {
        let (mut data, mut whole) = (Attributes::default(), Attributes::default());
        data.set(1, name.as_bytes().to_vec());
        whole.set(NAME, kind.as_bytes().to_vec());
        whole.set_list(DATA, &data);
        whole
    }

    fn drop() -> Attributes {
        let (mut code, mut verdict, mut data, mut whole) =
            (Attributes::default(), Attributes::default(), Attributes::default(), Attributes::default());
        code.set(1, 0u32.to_be_bytes().to_vec());
        verdict.set_list(2, &code);
        data.set_list(2, &verdict);
        whole.set(NAME, b"immediate".to_vec());
        whole.set_list(DATA, &data);
        whole
    }

    fn rule(expressions: &[Attributes]) -> Body {
        let mut rule = Body::new(&[family::INET, 0, 0, 0]);
        rule.attributes.set(RULE_CHAIN, b"o".to_vec());
        rule.attributes.set_list(RULE_EXPRESSIONS, &Attributes::elements(expressions));
        rule
    }

    fn of(expressions: &[Attributes]) -> Vec<Reason> {
        let marks = of_rule(&rule(expressions), expressions, (&Filled::new(), Read::ALL), ALL);
        marks.into_iter().map(|mark| mark.reason).collect()
    }

    /// Names of what is asked beside what is uncertain.
    fn asked(expressions: &[Attributes], reason: Reason) -> Vec<String> {
        let all = beside(&rule(expressions), expressions, &Filled::new(), ALL, reason);
        all.iter().filter_map(|expression| expression.text(NAME)).collect()
    }

    #[test]
    fn a_mark_asks_for_everything_that_is_certain() {
        let user = expression("meta", &[(1, 8), (2, 10)]);
        let same = expression("cmp", &[(1, 8), (2, 0)]);
        let rate = expression("limit", &[]);
        let all = [user.clone(), same.clone(), rate.clone(), expression("counter", &[]), drop()];
        assert_eq!(
            (of(&all), asked(&all, Reason::Anything)),
            (vec![Reason::Anything], vec!["meta".into(), "cmp".into()])
        );
        assert_eq!(of(&[user.clone(), same.clone(), drop()]), []);
        // What is compared with something random is left out, and what comes behind is not.
        let random = expression("meta", &[(1, 8), (2, 24)]);
        let all = [random, same.clone(), user.clone(), same.clone(), by_xtables("match", "tcp"), drop()];
        assert_eq!(asked(&all, Reason::Anything), ["meta", "cmp", "match"]);
        // The same register, read before and behind it.
        let port = expression("payload", &[(1, 8), (2, 2), (3, 2), (4, 2)]);
        let all = [port, same.clone(), expression("numgen", &[(1, 8)]), same.clone(), drop()];
        assert_eq!(
            (of(&all), asked(&all, Reason::Anything)),
            (vec![Reason::Anything], vec!["payload".into(), "cmp".into()])
        );
        // What only logs decides nothing.
        assert_eq!(of(&[rate, expression("log", &[])]), []);
        assert_eq!(of(&[by_xtables("match", "recent"), by_xtables("target", "LOG")]), []);
    }

    #[test]
    fn what_the_kernel_does_itself_in_a_copy_is_certain() {
        for target in ["MASQUERADE", "TCPMSS", "DSCP", "TTL", "HL", "CT", "MARK", "SET", "SECMARK", "REJECT"] {
            assert_eq!(of(&[by_xtables("target", target)]), [], "{target}");
        }
        for name in ["masq", "nat", "redir", "notrack", "dup", "synproxy"] {
            assert_eq!(of(&[expression(name, &[])]), [], "{name}");
        }
        assert_eq!(of(&[expression("objref", &[(1, 1)]), drop()]), []);
        assert_eq!(of(&[expression("objref", &[(1, 4)]), drop()]), [Reason::Anything]);
        // The time of day is the same there.
        assert_eq!(of(&[expression("meta", &[(1, 8), (2, 32)]), drop()]), []);
        assert_eq!(of(&[by_xtables("match", "time"), drop()]), []);
    }

    #[test]
    fn each_reason_has_a_mark_of_its_own() {
        let all =
            [by_xtables("match", "conntrack"), by_xtables("match", "ttl"), by_xtables("match", "statistic"), drop()];
        assert_eq!(of(&all), [Reason::State, Reason::Header, Reason::Anything]);
        assert_eq!(of(&[by_xtables("match", "cgroup"), drop()]), [Reason::Cgroup]);
        assert_eq!(
            of(&[by_xtables("match", "length"), by_xtables("match", "string"), drop()]),
            [Reason::Length, Reason::Content]
        );
        assert_eq!(of(&[expression("meta", &[(1, 8), (2, 3)]), drop()]), [Reason::Forwarded]);
        // An address, a port, a lifetime, and what differs every time.
        let payload = |base, offset, length| expression("payload", &[(1, 8), (2, base), (3, offset), (4, length)]);
        assert_eq!(of(&[payload(1, 16, 4), drop()]), []);
        assert_eq!(of(&[payload(2, 2, 2), drop()]), []);
        assert_eq!(of(&[payload(1, 8, 1), drop()]), [Reason::Header]);
        assert_eq!(of(&[payload(2, 4, 4), expression("range", &[(1, 8)]), drop()]), [Reason::Anything]);
        assert_eq!(of(&[payload(2, 4, 4), expression("cmp", &[(1, 8), (2, 0)]), drop()]), []);
        assert_eq!(of(&[payload(1, 2, 2), drop()]), [Reason::Length]);
    }
}

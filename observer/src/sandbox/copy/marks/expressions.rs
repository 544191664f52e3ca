//! What expressions of nftables decide by.

use std::{fs, sync::OnceLock};

use super::{
    Reason, Wanted,
    xtables::{ELSEWHERE, of_xtables},
};
use crate::{
    kernel::netlink::Attributes,
    sandbox::copy::ruleset::{DATA, NAME},
};

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
/// `NFT_META_NFTRACE`
pub(super) const NFTRACE: u32 = 12;
/// `NFT_META_SECPATH`: IPsec has taken it.
const META_IPSEC: u32 = 25;
/// `NFT_META_*` that differ every time or cannot be copied: the types and kinds of interfaces, a label, the processor, a random
/// number.
const UNCERTAIN_META: [(u32, &str); 5] =
    [(14, "meta secmark"), (20, "meta cpu"), (24, "meta random"), (26, "meta iifkind"), (27, "meta oifkind")];
/// The same where the original has other types of interfaces.
const TYPES: [(u32, &str); 2] = [(8, "meta iiftype"), (9, "meta oiftype")];
const META_LENGTH: u32 = 0;
const META_PRIORITY: u32 = 2;
pub(super) const META_MARK: u32 = 3;
const META_CGROUP: u32 = 23;
/// `NFT_CT_*`: state, direction, status, mark; and what differs every time.
pub(super) const CT_MARK: u32 = 3;
const STATE_OF_CT: [u32; 4] = [0, 1, 2, 3];
/// `NFT_CT_PROTO_SRC` and `NFT_CT_PROTO_DST`: a connection's ports, in either direction.
const PORTS_OF_CT: [u32; 2] = [11, 12];
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
pub(super) const COUNTING_EXPRESSIONS: [&str; 3] = ["limit", "connlimit", "quota"];
/// What an expression of a rule decides by; `next` is the one behind it.
pub(in crate::sandbox::copy) fn judged(
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
        // The value of a time stamp of TCP's, `NFT_EXTHDR_OP_TCPOPT`.
        "exthdr" if (data.get(2), data.number(6)) == (Some(&[8]), Some(1)) && data.number(3).unwrap_or(0) >= 2 => {
            anything("a time stamp")
        }
        "exthdr" if data.get(7).is_none() => of(Reason::Header, "an option of the packet"),
        "ct" if data.get(4).is_some() => Vec::new(),
        "ct" => match data.number(2) {
            Some(key) if STATE_OF_CT.contains(&key) => of(Reason::State, "a connection's state"),
            // A single one of the sender's is never met, and one of the other end's is known.
            Some(key) if PORTS_OF_CT.contains(&key) && !is_one_value(next) => of_ports(true, true),
            Some(key) => {
                UNCERTAIN_CT.iter().filter(|(of, _)| *of == key).flat_map(|(_, what)| anything(what)).collect()
            }
            None => Vec::new(),
        },
        "socket" if data.number(SOCKET_KEY) == Some(CGROUP) => of(Reason::Cgroup, "a cgroup"),
        // Without policies nothing is taken by any.
        "xfrm" if !wanted.facts.has_policies => Vec::new(),
        "match" if asks_for_counters(&data) => anything("`--match-set` with a counter"),
        "match" => {
            let name = data.text(1).unwrap_or_default();
            let (source, destination) = ports_of_match(&name, data.get(3).unwrap_or_default());
            of_xtables(&name, wanted.facts).into_iter().chain(of_ports(source, destination)).collect()
        }
        "target" => {
            let name = data.text(1).unwrap_or_default();
            let is_by_chance = sends_to_several_ports(&name, data.number(2), data.get(3).unwrap_or_default());
            let is_certain = !ELSEWHERE.contains(&name.as_str()) && !is_by_chance;
            if is_certain { Vec::new() } else { anything(&format!("`-j {name}`")) }
        }
        // Which of several ports it is sent to is another one each time.
        "nat" if data.number(NAT_TYPE) == Some(DNAT) && is_several(&data, NAT_PORTS) => anything(PORTS),
        "redir" if is_several(&data, REDIRECT_PORTS) => anything(PORTS),
        "lookup" => {
            let set = data.text(1).unwrap_or_default();
            if is_filled(set.clone()) { anything(&format!("set {set}, which packets fill,")) } else { Vec::new() }
        }
        "dynset" => {
            let counts =
                |list: Attributes| list.text(NAME).is_some_and(|name| COUNTING_EXPRESSIONS.contains(&name.as_str()));
            let several = data.list(10);
            if counts(data.list(7)) || several.lists().any(counts) { anything("`limit`") } else { Vec::new() }
        }
        "objref" => match data.number(1) {
            Some(kind) if !COUNTING.contains(&kind) => Vec::new(),
            _ => anything("a limit or quota by name"),
        },
        "limit" => anything("`limit`"),
        // A copy begins to count anew.
        "quota" => anything("`quota`"),
        "connlimit" => anything("`ct count`"),
        "rt" if data.number(2) == Some(RT_XFRM) && wanted.facts.has_policies => anything("rt ipsec"),
        "exthdr" | "socket" => Vec::new(),
        name if CERTAIN.contains(&name) => Vec::new(),
        name => anything(&format!("`{name}`")),
    };
    let is_wanted = |(reason, _): &(Reason, String)| match reason {
        Reason::Header => wanted.headers,
        Reason::State => wanted.states,
        _ => true,
    };
    all.into_iter().filter(is_wanted).collect()
}

/// `NFTA_NAT_TYPE`, and of that `NFT_NAT_DNAT`
const NAT_TYPE: u16 = 1;
const DNAT: u32 = 1;
/// The registers with the first and the last port: `NFTA_NAT_REG_PROTO_MIN` and `NFTA_REDIR_REG_PROTO_MIN`, and what follows each.
const NAT_PORTS: u16 = 5;
const REDIRECT_PORTS: u16 = 1;
const PORTS: &str = "which of several ports it is sent to,";

/// A translation has another register for the last port than for the first.
fn is_several(data: &Attributes, first: u16) -> bool {
    data.number(first + 1).is_some_and(|last| data.number(first) != Some(last))
}

/// A target of iptables' sends to one of several ports: by `struct nf_nat_range2`, or that of the first revision.
fn sends_to_several_ports(name: &str, revision: Option<u32>, info: &[u8]) -> bool {
    /// Where each has its ports.
    const IN_RANGE: usize = 36;
    const IN_FIRST: usize = 16;
    if !["DNAT", "REDIRECT"].contains(&name) {
        return false;
    }
    let at = if info.len() >= IN_RANGE + 4 && revision != Some(0) { IN_RANGE } else { IN_FIRST };
    info.get(at..at + 2).zip(info.get(at + 2..at + 4)).is_some_and(|(first, last)| first != last)
}

/// Ports of either end that a rule asks for several of.
fn of_ports(source: bool, destination: bool) -> Vec<(Reason, String)> {
    let source = source.then(|| (Reason::SourcePort, "the sender's port".to_owned()));
    source.into_iter().chain(destination.then(|| (Reason::DestinationPort, "the receiver's port".to_owned()))).collect()
}

/// It is asked for one value alone, or for another one.
fn is_one_value(next: Option<&Attributes>) -> bool {
    next.is_some_and(|next| {
        let is_equal = next.list(DATA).number(2).is_some_and(|operation| operation <= 1);
        next.text(NAME).as_deref() == Some("cmp") && is_equal
    })
}

/// What is read of a packet; `next` says what for.
fn of_payload(payload: &Attributes, next: Option<&Attributes>) -> Vec<(Reason, String)> {
    let (Some(base), Some(offset), Some(length)) = (payload.number(2), payload.number(3), payload.number(4)) else {
        return Vec::new();
    };
    let end = offset.saturating_add(length);
    let overlaps = |from: u32, to: u32| offset < to && from < end;
    let is_random = match base {
        // A flow's label, of IPv6.
        NETWORK if (offset, length) == (1, 3) => true,
        // An identification, a checksum; of IPv6 an address begins where IPv4 has its lifetime, before its checksum.
        NETWORK => end <= 40 && (offset, length) == (4, 2) || length <= 2 && overlaps(10, 12),
        // Numbers of sequences, a checksum.
        TRANSPORT => {
            offset >= 4 && end <= 12 && length == 4 || (offset, length) == (16, 2) || (offset, length) == (6, 2)
        }
        _ => false,
    };
    let is_named = |name: &str| next.is_some_and(|next| next.text(NAME).as_deref() == Some(name));
    // Of two ends one has a port that is another one each time. It is never a single one.
    let asks_for_several = next.is_some() && !is_one_value(next);
    // Every set of servers' ports would be one for the receiver's.
    let asks_for_range = ["range", "cmp", "bitwise"].into_iter().any(is_named) && asks_for_several;
    // One byte there is a kind of message.
    let is_port = |from: u32| length > 1 && overlaps(from, from + 2);
    let (is_source, is_destination) = (is_port(0) && asks_for_several, is_port(2) && asks_for_range);
    match (base, offset, length) {
        (TRANSPORT, ..4, _) if is_source || is_destination => of_ports(is_source, is_destination),
        // A single value of so many is never met, wherever.
        _ if is_random && (is_one_value(next) || is_named("lookup")) => Vec::new(),
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

/// A match of a set of ipset that asks how often an element was met, from its third revision on (`struct xt_set_info_match_v3`).
fn asks_for_counters(data: &Attributes) -> bool {
    /// What names the set, and the flags at the end.
    const SET: usize = 4;
    const FLAGS: usize = 8;
    const INFO: u16 = 3;
    let is_set = data.text(1).as_deref() == Some("set") && data.number(2).is_some_and(|revision| revision >= 3);
    let info = data.get(INFO).unwrap_or_default();
    is_set && info.get(SET..info.len().saturating_sub(FLAGS)).is_some_and(|asked| asked.iter().any(|byte| *byte != 0))
}

/// Whether a match of iptables' asks for several ports, but not for all: of those that packets come from, and that they go to. By
/// `struct xt_tcp`, `struct xt_udp`, `struct xt_multiport_v1` and `struct xt_conntrack_mtinfo3`.
fn ports_of_match(name: &str, info: &[u8]) -> (bool, bool) {
    /// Ports in a list, their flags behind them, and what a flag says of a list: which ports it is about.
    const LISTED: usize = 15;
    const FLAGS: usize = 2 + 2 * LISTED;
    const OF_SOURCE: u8 = 0;
    const OF_EITHER: u8 = 2;
    /// Of `struct xt_conntrack_mtinfo3`: what is asked for, and the ports that who begins sends from, and is answered at.
    const ASKED: usize = 146;
    const OWN_PORT: u16 = 1 << 8;
    const ANSWERED_PORT: u16 = 1 << 11;
    const OWN: usize = 138;
    const OWN_HIGH: usize = 154;
    const ANSWERED: usize = 144;
    const ANSWERED_HIGH: usize = 160;
    let number = |at: usize| info.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let range = |at: usize| {
        number(at).zip(number(at + 2)).filter(|(first, last)| first != last && (*first, *last) != (0, u16::MAX))
    };
    match name {
        "tcp" | "udp" => (range(0).is_some(), range(4).is_some()),
        "multiport" => {
            let of = info.first().copied().unwrap_or(0);
            let has_range = info.get(FLAGS..FLAGS + LISTED).is_some_and(|flags| flags.iter().any(|flag| *flag != 0));
            (has_range && (of == OF_SOURCE || of == OF_EITHER), has_range && of != OF_SOURCE)
        }
        "conntrack" => {
            let asked = number(ASKED).unwrap_or(0);
            let is_range = |at: usize, high: usize| number(at).zip(number(high)).is_some_and(|(low, high)| low < high);
            let is_any = asked & OWN_PORT != 0 && is_range(OWN, OWN_HIGH)
                || asked & ANSWERED_PORT != 0 && is_range(ANSWERED, ANSWERED_HIGH);
            (is_any, is_any)
        }
        _ => (false, false),
    }
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

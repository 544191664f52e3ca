//! What in a ruleset decides by more than a packet: a rate, a set that changes by itself, a time of day, the state of a
//! connection, a cgroup. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    doubts::Depends,
    ruleset::{CHAIN_NAME, DATA, NAME, RULE_CHAIN, RULE_EXPRESSIONS, SET_FLAGS, SET_NAME, TABLE},
};
use crate::firewall::{
    legacy::{Does, LegacyEntry},
    netfilter::hook,
};
use crate::kernel::netlink::{Attributes, Body};

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// A socket of this namespace sends it.
    Out,
    /// It came in, and goes on.
    Through,
}

impl Passage {
    /// Hooks on it.
    pub(super) fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Out => &["output", "postrouting", "egress"],
            Self::Through => &["ingress", "prerouting", "forward", "postrouting", "egress"],
        }
    }
}

/// Expressions whose outcome is the same for the same packet of the same sender, every time and in every namespace that has the
/// same interfaces and addresses.
const CERTAIN: [&str; 9] = ["cmp", "bitwise", "immediate", "counter", "lookup", "log", "reject", "range", "byteorder"];
/// Others that only let a rule match, or not.
const MATCHING: [&str; 13] = [
    "limit",
    "quota",
    "connlimit",
    "numgen",
    "hash",
    "fib",
    "rt",
    "socket",
    "osf",
    "xfrm",
    "tunnel",
    "dynset",
    "objref",
];
/// Of `meta`: length, protocol, interfaces and their names, user, group, family, layer-4 protocol.
const CERTAIN_META: [u32; 9] = [1, 4, 5, 6, 7, 10, 11, 15, 16];
/// Its mark: the socket's, where there is one. What came in may have been marked by whatever is before all rules.
const META_MARK: u32 = 3;
const META_LENGTH: u32 = 0;
/// `NFT_CT_ZONE`
const CT_ZONE: u32 = 17;
/// Of `ct`: state, direction, status, mark.
const STATE_OF_CT: [u32; 4] = [0, 1, 2, 3];
/// `NFT_SOCKET_CGROUPV2`, of `NFTA_SOCKET_KEY`
const SOCKET_KEY: u16 = 1;
const CGROUP: u32 = 3;
/// Matches of iptables' that ask the packet, or the user of its socket.
/// No routing header leaves a socket: the kernel sends none of the kind that rules ask for.
const CERTAIN_XTABLES: [&str; 13] = [
    "tcp",
    "udp",
    "sctp",
    "dccp",
    "multiport",
    "comment",
    "addrtype",
    "icmp",
    "icmp6",
    "owner",
    "iprange",
    "REJECT",
    "rt",
];
/// What asks for a connection: known for the first packet of one, and where the table of connections can be read.
const STATE: [&str; 3] = ["conntrack", "state", "connmark"];
/// Of those, what looks at more of a packet than addresses, ports and flags.
const HEADER_XTABLES: [&str; 9] = ["length", "ttl", "hl", "tos", "dscp", "tcpmss", "ipv6header", "hbh", "frag"];
/// Targets of iptables' after which nothing differs.
const GOING_ON: [&str; 3] = ["LOG", "NFLOG", "TRACE"];
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: elements come and go.
const CHANGING: u32 = 16 | 32;
const ACCEPT: u32 = 1;

/// Family, table and name of a chain or set.
type SetKey = (u8, String, String);

fn key(body: &Body, name: u16) -> Option<SetKey> {
    Some((*body.fixed.first()?, body.attributes.text(TABLE)?, body.attributes.text(name)?))
}

/// What a rule is to whoever replays it.
#[derive(Default)]
pub(super) struct Judged {
    /// It ends a walk, or leads elsewhere.
    pub(super) decides: bool,
    pub(super) accepts: bool,
    /// Where it leads.
    pub(super) to: Vec<String>,
    /// It looks a verdict up.
    pub(super) looks_up: bool,
    /// What it depends on beside the packet.
    pub(super) uncertain: Option<String>,
    pub(super) by_state: bool,
    pub(super) by_cgroup: bool,
    /// It looks at more of the packet than addresses, ports and flags.
    pub(super) by_header: bool,
    /// It may give the packet other addresses or ports.
    pub(super) translates: bool,
}

impl Judged {
    /// A match of iptables', by name.
    fn xtables(&mut self, name: &str, way: Passage) {
        match name {
            "cgroup" if way == Passage::Out => self.by_cgroup = true,
            "mark" if way == Passage::Out => {}
            name if HEADER_XTABLES.contains(&name) => self.by_header = true,
            name if STATE.contains(&name) => self.by_state = true,
            name if CERTAIN_XTABLES.contains(&name) => {}
            name => self.uncertain = self.uncertain.take().or(Some(name.to_owned())),
        }
    }
}

fn judge(rule: &Body, of: &SetKey, changing: &HashSet<SetKey>, way: Passage) -> Judged {
    let mut judged = Judged::default();
    for expression in rule.attributes.list(RULE_EXPRESSIONS).lists() {
        let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        let verdict = data.list(2).list(2);
        let uncertain = match name.as_str() {
            "immediate" => {
                judged.to.extend(verdict.text(2));
                judged.accepts |= verdict.number(1) == Some(ACCEPT);
                judged.decides |= verdict.number(1).is_some();
                None
            }
            // Setting something is no match; but others may decide by a mark.
            "meta" if data.get(3).is_some() => {
                judged.decides |= data.number(2) == Some(META_MARK);
                None
            }
            "meta" if data.number(2) == Some(META_LENGTH) => {
                judged.by_header = true;
                None
            }
            "meta" if data.number(2) == Some(META_MARK) && way == Passage::Out => None,
            "meta" => data.number(2).filter(|key| !CERTAIN_META.contains(key)).map(|key| format!("meta key {key}")),
            // Something is written into the packet.
            "payload" if data.get(5).is_some() => {
                judged.translates = true;
                judged.decides = true;
                None
            }
            "payload" => {
                judged.by_header |= !is_address_or_port(&data);
                (!is_the_same(&data)).then(|| "a field that every packet has otherwise".to_owned())
            }
            "exthdr" => {
                judged.by_header = true;
                None
            }
            // Likewise; what is in another zone is another connection.
            "ct" if data.get(4).is_some() => {
                judged.decides = true;
                (data.number(2) == Some(CT_ZONE)).then(|| "a zone of connections".to_owned())
            }
            "ct" if data.number(2).is_some_and(|key| STATE_OF_CT.contains(&key)) => {
                judged.by_state = true;
                None
            }
            "socket" if data.number(SOCKET_KEY) == Some(CGROUP) && way == Passage::Out => {
                judged.by_cgroup = true;
                None
            }
            "match" => {
                judged.xtables(&data.text(1).unwrap_or_default(), way);
                None
            }
            "target" => {
                let named = data.text(1).unwrap_or_default();
                judged.decides |= !GOING_ON.contains(&named.as_str());
                let known =
                    ["REJECT", "MARK", "CONNMARK"].contains(&named.as_str()) || GOING_ON.contains(&named.as_str());
                judged.translates |= !known;
                (!known).then_some(named)
            }
            "lookup" => {
                judged.looks_up |= data.number(3) == Some(0);
                judged.decides |= judged.looks_up;
                let set = (of.0, of.1.clone(), data.text(1).unwrap_or_default());
                changing.contains(&set).then(|| format!("set {}", set.2))
            }
            "reject" => {
                judged.decides = true;
                None
            }
            // Of a connection it is decided once.
            "nat" | "masq" | "redir" => {
                judged.translates = true;
                judged.decides = true;
                judged.by_state = true;
                None
            }
            // It ends nothing, and only connections that are established go into it.
            "flow_offload" => {
                judged.by_state = true;
                None
            }
            name if CERTAIN.contains(&name) => None,
            name => {
                let is_match = MATCHING.contains(&name) || name == "ct";
                judged.decides |= !is_match;
                judged.translates |= !is_match;
                Some(name.to_owned())
            }
        };
        judged.uncertain = judged.uncertain.or(uncertain);
    }
    judged
}

/// What is read of a packet is its protocol, an address, a port, or TCP's flags.
pub(super) fn is_address_or_port(payload: &Attributes) -> bool {
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

/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`
pub(super) const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// What is read of a packet is the same in the copy: not its identification, and no checksum.
fn is_the_same(payload: &Attributes) -> bool {
    let (Some(base), Some(offset), Some(length)) = (payload.number(2), payload.number(3), payload.number(4)) else {
        return false;
    };
    let end = offset.saturating_add(length);
    let overlaps = |from: u32, to: u32| offset < to && from < end;
    match base {
        // Of IPv6 an address begins where IPv4 has its lifetime, before its checksum.
        NETWORK => end <= 40 && !overlaps(4, 6) && (!overlaps(10, 12) || length > 2),
        TRANSPORT => end <= 6 || offset >= 8 && end <= 16,
        _ => false,
    }
}

/// What decides on a way by more than the packet, the addresses and the interfaces.
pub(super) fn depends(chains: &[Body], sets: &[Body], rules: &[Body], way: Passage) -> Depends {
    let mut by_chain: HashMap<SetKey, Vec<&Body>> = HashMap::new();
    for rule in rules {
        if let Some(key) = key(rule, RULE_CHAIN) {
            by_chain.entry(key).or_default().push(rule);
        }
    }
    let changes = |set: &&Body| set.attributes.number(SET_FLAGS).is_some_and(|flags| flags & CHANGING != 0);
    let changing: HashSet<SetKey> = sets.iter().filter(changes).filter_map(|set| key(set, SET_NAME)).collect();
    let on_the_way = |chain: &&Body| {
        let (Some(family), Some(number)) = (chain.fixed.first(), chain.attributes.list(4).number(1)) else {
            return false;
        };
        hook::name(*family, number).is_some_and(|name| way.hooks().contains(&name))
    };
    let mut waiting: Vec<SetKey> =
        chains.iter().filter(on_the_way).filter_map(|chain| key(chain, CHAIN_NAME)).collect();
    let mut seen: HashSet<SetKey> = waiting.iter().cloned().collect();
    let mut found = Depends::on(waiting.len());
    while let Some(chain) = waiting.pop() {
        for rule in by_chain.get(&chain).into_iter().flatten() {
            let judged = judge(rule, &chain, &changing, way);
            found.translates |= judged.translates;
            let mut next: Vec<SetKey> = judged.to.iter().map(|to| (chain.0, chain.1.clone(), to.clone())).collect();
            if judged.looks_up {
                // Where a map leads is not followed: it may be anywhere in its table.
                next.extend(by_chain.keys().filter(|other| (other.0, &other.1) == (chain.0, &chain.1)).cloned());
            }
            waiting.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
            found.add(judged, Some((chain.0, &rule.attributes)), |what| format!("{what} in chain {}", chain.2));
        }
    }
    found
}

impl Depends {
    /// One more rule of iptables-legacy, of that table, which was asked on the way.
    pub(super) fn add_legacy(&mut self, table: &str, entry: &LegacyEntry, way: Passage) {
        let keeps = |name: &str| ["REJECT", "MARK", "CONNMARK"].contains(&name) || GOING_ON.contains(&name);
        self.translates |= matches!(&entry.does, Does::Extension(name) if !keeps(name));
        let going_on = matches!(&entry.does, Does::Extension(name) if GOING_ON.contains(&name.as_str()));
        let mut judged = Judged {
            decides: !going_on && !matches!(entry.does, Does::Begins(_)),
            accepts: entry.does == Does::Accepts,
            ..Judged::default()
        };
        for one in &entry.matches {
            judged.xtables(one, way);
        }
        match &entry.does {
            // Which connection it is of, depends on the zone.
            Does::Extension(name) if name == "CT" => judged.uncertain = Some("a zone of connections".to_owned()),
            // Of a connection it is decided once.
            Does::Extension(_) if table == "nat" => judged.by_state = true,
            _ => {}
        }
        self.add(judged, None, |what| format!("{what} in table {table} of iptables-legacy"));
    }
}

#[cfg(test)]
#[path = "depends_tests.rs"]
mod tests;

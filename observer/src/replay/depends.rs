//! What in a ruleset decides by more than a packet: a rate, a set that changes by itself, a time of day, the state of a
//! connection, a cgroup. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    netlink::{Attributes, Body},
    ruleset::{CHAIN_NAME, DATA, NAME, RULE_CHAIN, RULE_EXPRESSIONS, SET_FLAGS, SET_NAME, TABLE},
};
use crate::firewall::{
    legacy::{Does, Entry},
    netfilter::hook,
};

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A socket of this namespace sends it.
    Out,
    /// It came in, and goes on.
    Through,
}

impl Way {
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
const CERTAIN: [&str; 10] =
    ["cmp", "bitwise", "immediate", "counter", "lookup", "log", "reject", "range", "byteorder", "exthdr"];
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
const CERTAIN_META: [u32; 10] = [0, 1, 4, 5, 6, 7, 10, 11, 15, 16];
/// Its mark: the socket's, where there is one. What came in may have been marked by whatever is before all rules.
const META_MARK: u32 = 3;
/// Of `ct`: state, direction, status, mark.
const STATE_OF_CT: [u32; 4] = [0, 1, 2, 3];
/// `NFT_SOCKET_CGROUPV2`, of `NFTA_SOCKET_KEY`
const SOCKET_KEY: u16 = 1;
const CGROUP: u32 = 3;
/// Matches of iptables' that ask the packet, or the user of its socket.
const CERTAIN_XTABLES: [&str; 22] = [
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
    "length",
    "iprange",
    "ttl",
    "hl",
    "tos",
    "dscp",
    "tcpmss",
    "rt",
    "ipv6header",
    "hbh",
    "frag",
    "REJECT",
];
/// What asks for a connection: known for the first packet of one, and where the table of connections can be read.
const STATE: [&str; 3] = ["conntrack", "state", "connmark"];
/// Targets of iptables' that end nothing.
const GOING_ON: [&str; 5] = ["LOG", "NFLOG", "MARK", "CONNMARK", "TRACE"];
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: elements come and go.
const CHANGING: u32 = 16 | 32;
const ACCEPT: u32 = 1;

/// Family, table and name of a chain or set.
type Key = (u8, String, String);

fn key(body: &Body, name: u16) -> Option<Key> {
    Some((*body.fixed.first()?, body.attributes.text(TABLE)?, body.attributes.text(name)?))
}

/// What a rule is to whoever replays it.
#[derive(Default)]
struct Judged {
    /// It ends a walk, or leads elsewhere.
    decides: bool,
    accepts: bool,
    /// Where it leads.
    to: Vec<String>,
    /// It looks a verdict up.
    looks_up: bool,
    /// What it depends on beside the packet.
    uncertain: Option<String>,
    by_state: bool,
    by_cgroup: bool,
}

impl Judged {
    /// A match of iptables', by name.
    fn xtables(&mut self, name: &str, way: Way) {
        match name {
            "cgroup" if way == Way::Out => self.by_cgroup = true,
            "mark" if way == Way::Out => {}
            name if STATE.contains(&name) => self.by_state = true,
            name if CERTAIN_XTABLES.contains(&name) => {}
            name => self.uncertain = self.uncertain.take().or(Some(name.to_owned())),
        }
    }
}

fn judge(rule: &Body, of: &Key, changing: &HashSet<Key>, way: Way) -> Judged {
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
            // Setting something is no match.
            "meta" if data.get(3).is_some() => None,
            "meta" if data.number(2) == Some(META_MARK) && way == Way::Out => None,
            "meta" => data.number(2).filter(|key| !CERTAIN_META.contains(key)).map(|key| format!("meta key {key}")),
            "payload" => (!is_the_same(&data)).then(|| "a field that every packet has otherwise".to_owned()),
            // Likewise.
            "ct" if data.get(4).is_some() => None,
            "ct" if data.number(2).is_some_and(|key| STATE_OF_CT.contains(&key)) => {
                judged.by_state = true;
                None
            }
            "socket" if data.number(SOCKET_KEY) == Some(CGROUP) && way == Way::Out => {
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
                let known = named == "REJECT" || GOING_ON.contains(&named.as_str());
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
                judged.decides |= !MATCHING.contains(&name) && name != "ct";
                Some(name.to_owned())
            }
        };
        judged.uncertain = judged.uncertain.or(uncertain);
    }
    judged
}

/// What is read of a packet is the same in the copy: not its identification, and no checksum.
fn is_the_same(payload: &Attributes) -> bool {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
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

/// What decides by more than a packet, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Depends {
    /// Whatever the packet.
    pub(super) always: Option<String>,
    /// Unless it is the first of its connection, or that is known.
    pub(super) by_state: Option<String>,
    /// Unless it is sent from its sender's cgroup.
    pub(super) by_cgroup: Option<String>,
}

impl Depends {
    /// One more rule.
    fn add(&mut self, judged: Judged, told: impl Fn(&str) -> String) {
        if !judged.decides {
            return;
        }
        if self.always.is_none() {
            self.always = judged.uncertain.map(|what| told(&what));
        }
        if judged.by_state && !judged.accepts && self.by_state.is_none() {
            self.by_state = Some(told("a connection's state"));
        }
        if judged.by_cgroup && self.by_cgroup.is_none() {
            self.by_cgroup = Some(told("a cgroup"));
        }
    }

    /// Both rulesets' together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            always: self.always.or(other.always),
            by_state: self.by_state.or(other.by_state),
            by_cgroup: self.by_cgroup.or(other.by_cgroup),
        }
    }
}

/// The first thing on a way that decides by more than the packet, the addresses and the interfaces: a rate, a set that changes by
/// itself, a time of day; the first that does anything but accept by a connection's state; and the first that asks for a cgroup.
pub(super) fn depends(chains: &[Body], sets: &[Body], rules: &[Body], way: Way) -> Depends {
    let mut by_chain: HashMap<Key, Vec<&Body>> = HashMap::new();
    for rule in rules {
        if let Some(key) = key(rule, RULE_CHAIN) {
            by_chain.entry(key).or_default().push(rule);
        }
    }
    let changes = |set: &&Body| set.attributes.number(SET_FLAGS).is_some_and(|flags| flags & CHANGING != 0);
    let changing: HashSet<Key> = sets.iter().filter(changes).filter_map(|set| key(set, SET_NAME)).collect();
    let on_the_way = |chain: &&Body| {
        let (Some(family), Some(number)) = (chain.fixed.first(), chain.attributes.list(4).number(1)) else {
            return false;
        };
        hook::name(*family, number).is_some_and(|name| way.hooks().contains(&name))
    };
    let mut waiting: Vec<Key> = chains.iter().filter(on_the_way).filter_map(|chain| key(chain, CHAIN_NAME)).collect();
    let mut seen: HashSet<Key> = waiting.iter().cloned().collect();
    let mut found = Depends::default();
    while let Some(chain) = waiting.pop() {
        for rule in by_chain.get(&chain).into_iter().flatten() {
            let judged = judge(rule, &chain, &changing, way);
            let mut next: Vec<Key> = judged.to.iter().map(|to| (chain.0, chain.1.clone(), to.clone())).collect();
            if judged.looks_up {
                // Where a map leads is not followed: it may be anywhere in its table.
                next.extend(by_chain.keys().filter(|other| (other.0, &other.1) == (chain.0, &chain.1)).cloned());
            }
            waiting.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
            found.add(judged, |what| format!("{what} in chain {}", chain.2));
        }
    }
    found
}

impl Depends {
    /// One more rule of iptables-legacy, of that table, which was asked on the way.
    pub(super) fn add_legacy(&mut self, table: &str, entry: &Entry, way: Way) {
        let going_on = matches!(&entry.does, Does::Extension(name) if GOING_ON.contains(&name.as_str()));
        let mut judged = Judged {
            decides: !going_on && !matches!(entry.does, Does::Begins(_)),
            accepts: entry.does == Does::Accepts,
            ..Judged::default()
        };
        for one in &entry.matches {
            judged.xtables(one, way);
        }
        self.add(judged, |what| format!("{what} in table {table} of iptables-legacy"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::netfilter::family;

    fn text(text: &str) -> Vec<u8> {
        [text.as_bytes(), b"\0"].concat()
    }

    fn body(attributes: Attributes) -> Body {
        Body { fixed: vec![family::INET, 0, 0, 0], attributes }
    }

    /// A base chain on the way out.
    fn chain(name: &str) -> Body {
        let (mut hook, mut chain) = (Attributes::default(), Attributes::default());
        hook.set(1, 3u32.to_be_bytes().to_vec());
        chain.set(TABLE, text("t"));
        chain.set(CHAIN_NAME, text(name));
        chain.set_list(4, &hook);
        body(chain)
    }

    /// A rule of such expressions.
    fn rule(chain: &str, expressions: &[(&str, &[(u16, u32)])], verdict: Option<(u32, &str)>) -> Body {
        let mut all: Vec<Attributes> = expressions
            .iter()
            .map(|(name, numbers)| {
                let (mut expression, mut data) = (Attributes::default(), Attributes::default());
                for (attribute, number) in *numbers {
                    data.set(*attribute, number.to_be_bytes().to_vec());
                }
                expression.set(NAME, text(name));
                expression.set_list(DATA, &data);
                expression
            })
            .collect();
        if let Some((code, to)) = verdict {
            let [mut given, mut value, mut data, mut expression] = <[Attributes; 4]>::default();
            given.set(1, code.to_be_bytes().to_vec());
            if !to.is_empty() {
                given.set(2, text(to));
            }
            value.set_list(2, &given);
            data.set(1, 0u32.to_be_bytes().to_vec());
            data.set_list(2, &value);
            expression.set(NAME, text("immediate"));
            expression.set_list(DATA, &data);
            all.push(expression);
        }
        let mut rule = Attributes::default();
        rule.set(TABLE, text("t"));
        rule.set(RULE_CHAIN, text(chain));
        rule.set_list(RULE_EXPRESSIONS, &Attributes::elements(&all));
        body(rule)
    }

    const DROP: Option<(u32, &str)> = Some((0, ""));
    const JUMP: u32 = -3i32 as u32;

    fn of(rules: &[Body]) -> Depends {
        depends(&[chain("o")], &[], rules, Way::Out)
    }

    #[test]
    fn packets_addresses_and_interfaces_are_all() {
        let oif = ("meta", &[(2, 7)][..]);
        let field = |base, offset, length| {
            of(&[rule("o", &[("payload", &[(2, base), (3, offset), (4, length)])], DROP)]).always
        };
        assert_eq!(of(&[rule("o", &[oif, ("counter", &[])], DROP)]), Depends::default());
        for (base, offset, length) in [
            (1, 9, 1),
            (1, 12, 4),
            (1, 16, 2),
            (1, 8, 16),
            (1, 24, 16),
            (1, 8, 1),
            (1, 1, 1),
            (2, 0, 4),
            (2, 2, 2),
            (2, 13, 1),
        ] {
            assert_eq!(field(base, offset, length), None, "{base} {offset} {length}");
        }
        for (base, offset, length) in [(1, 4, 2), (1, 10, 2), (1, 36, 8), (2, 6, 2), (2, 16, 2), (0, 0, 6), (4, 0, 1)] {
            assert!(field(base, offset, length).is_some(), "{base} {offset} {length}");
        }
        let skb = ("meta", &[(2, 13)][..]);
        assert_eq!(of(&[rule("o", &[skb], DROP)]).always.as_deref(), Some("meta key 13 in chain o"));
        assert_eq!(of(&[rule("o", &[skb, ("counter", &[])], None)]), Depends::default(), "it decides nothing");
        assert_eq!(of(&[rule("lonely", &[skb], DROP)]), Depends::default(), "nothing leads there");
        let led = [rule("o", &[], Some((JUMP, "x"))), rule("x", &[("limit", &[])], DROP)];
        assert_eq!(of(&led).always.as_deref(), Some("limit in chain x"));
        assert!(of(&[rule("o", &[("synproxy", &[])], None)]).always.is_some(), "whatever that does");
    }

    #[test]
    fn a_connections_state_matters_where_it_does_not_accept() {
        let state = ("ct", &[(2, 0)][..]);
        assert_eq!(of(&[rule("o", &[state], Some((1, "")))]), Depends::default());
        let dropping = of(&[rule("o", &[state], DROP)]);
        assert_eq!((dropping.always, dropping.by_state.as_deref()), (None, Some("a connection's state in chain o")));
    }

    #[test]
    fn a_mark_and_a_cgroup_are_a_sockets() {
        let through = |rules: &[Body]| {
            let (mut hook, mut base) = (Attributes::default(), chain("o"));
            hook.set(1, 2u32.to_be_bytes().to_vec());
            base.attributes.set_list(4, &hook);
            depends(&[base], &[], rules, Way::Through)
        };
        let mark = [rule("o", &[("meta", &[(2, 3)])], DROP)];
        assert_eq!(of(&mark), Depends::default());
        assert_eq!(through(&mark).always.as_deref(), Some("meta key 3 in chain o"));
        let cgroup = [rule("o", &[("socket", &[(1, 3), (3, 2)])], DROP)];
        assert_eq!((of(&cgroup).always, of(&cgroup).by_cgroup.as_deref()), (None, Some("a cgroup in chain o")));
        assert_eq!(through(&cgroup).always.as_deref(), Some("socket in chain o"));
        assert_eq!(of(&[rule("o", &[("socket", &[(1, 0)])], DROP)]).always.as_deref(), Some("socket in chain o"));
    }

    #[test]
    fn legacy_rules_are_judged_by_their_matches() {
        let entry = |matches: &[&str], does: Does| Entry {
            at: 0,
            next: 0,
            target: 0,
            matches: matches.iter().map(|name| (*name).to_owned()).collect(),
            does,
            packets: 0,
        };
        let of = |entry| {
            let mut found = Depends::default();
            found.add_legacy("filter", &entry, Way::Out);
            found
        };
        assert_eq!(of(entry(&["tcp", "owner"], Does::Drops)), Depends::default());
        assert_eq!(of(entry(&["conntrack"], Does::Accepts)), Depends::default());
        assert!(of(entry(&["state"], Does::Drops)).by_state.is_some());
        assert_eq!(
            of(entry(&["limit"], Does::Drops)).always.as_deref(),
            Some("limit in table filter of iptables-legacy")
        );
        assert_eq!(of(entry(&["limit"], Does::Extension("LOG".to_owned()))), Depends::default());
    }
}

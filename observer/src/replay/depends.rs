//! What in a ruleset decides by more than a packet: a rate, a set that changes by itself, a time of day, a mark, the state of a
//! connection. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    netlink::{Attributes, Body},
    ruleset::{CHAIN_NAME, DATA, NAME, RULE_CHAIN, RULE_EXPRESSIONS, SET_FLAGS, SET_NAME, TABLE},
};
use crate::firewall::netfilter::hook;

/// Expressions whose outcome is the same for the same packet of the same sender, every time and in every namespace that has the
/// same interfaces and addresses.
const CERTAIN: [&str; 9] = ["cmp", "bitwise", "immediate", "counter", "lookup", "log", "reject", "range", "byteorder"];
/// Others that only let a rule match, or not.
const MATCHING: [&str; 14] = [
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
    "exthdr",
    "dynset",
    "objref",
];
/// Of `meta`: protocol, interfaces and their names, user, family, layer-4 protocol.
const CERTAIN_META: [u32; 8] = [1, 4, 5, 6, 7, 10, 15, 16];
/// Matches and targets of iptables'.
const CERTAIN_XTABLES: [&str; 8] = ["tcp", "udp", "multiport", "comment", "addrtype", "icmp", "REJECT", "LOG"];
/// What asks for the state of a connection: known for the first packet of one.
const STATE: [&str; 2] = ["conntrack", "state"];
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
}

fn judge(rule: &Body, of: &Key, changing: &HashSet<Key>) -> Judged {
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
            "meta" => data.number(2).filter(|key| !CERTAIN_META.contains(key)).map(|key| format!("meta key {key}")),
            "payload" => (!is_address_or_port(&data)).then(|| "a field that every packet has otherwise".to_owned()),
            "ct" if data.number(2) == Some(0) => {
                judged.by_state = true;
                None
            }
            "match" | "target" => {
                let named = data.text(1).unwrap_or_default();
                judged.decides |= name == "target" && named != "LOG";
                judged.by_state |= STATE.contains(&named.as_str());
                let known = CERTAIN_XTABLES.contains(&named.as_str()) || STATE.contains(&named.as_str());
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

/// What is read of a packet is its protocol, an address, a port, or TCP's flags: the same in the copy. Other fields are not:
/// lengths, lifetimes, options, what it carries.
fn is_address_or_port(payload: &Attributes) -> bool {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let (Some(base), Some(offset), Some(length)) = (payload.number(2), payload.number(3), payload.number(4)) else {
        return false;
    };
    let end = offset.saturating_add(length);
    match base {
        // Of IPv4 the protocol and addresses; of IPv6 the next header and addresses, whose first bytes are elsewhere IPv4's lifetime.
        NETWORK => {
            (offset, length) == (9, 1)
                || (offset, length) == (6, 1)
                || offset >= 12 && end <= 40
                || offset == 8 && length > 2 && end <= 40
        }
        TRANSPORT => end <= 4 || (offset, length) == (13, 1),
        _ => false,
    }
}

/// The first thing on the way out that decides by more than the packet, the addresses and the interfaces: a rate, a set that
/// changes by itself, a time of day, a mark; and the first that does anything but accept by a connection's state.
pub(super) fn depends(chains: &[Body], sets: &[Body], rules: &[Body]) -> Depends {
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
        hook::name(*family, number).is_some_and(|name| ["output", "postrouting", "egress"].contains(&name))
    };
    let mut waiting: Vec<Key> = chains.iter().filter(on_the_way).filter_map(|chain| key(chain, CHAIN_NAME)).collect();
    let mut seen: HashSet<Key> = waiting.iter().cloned().collect();
    let mut found = Depends::default();
    while let Some(chain) = waiting.pop() {
        for rule in by_chain.get(&chain).into_iter().flatten() {
            let judged = judge(rule, &chain, &changing);
            let mut next: Vec<Key> = judged.to.iter().map(|to| (chain.0, chain.1.clone(), to.clone())).collect();
            if judged.looks_up {
                // Where a map leads is not followed: it may be anywhere in its table.
                next.extend(by_chain.keys().filter(|other| (other.0, &other.1) == (chain.0, &chain.1)).cloned());
            }
            waiting.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
            if judged.decides {
                let told = |what: String| format!("{what} in chain {}", chain.2);
                found.always = found.always.or(judged.uncertain.map(told));
                if judged.by_state && !judged.accepts {
                    found.by_state = found.by_state.or(Some(told("a connection's state".to_owned())));
                }
            }
        }
    }
    found
}

/// What decides by more than a packet, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Depends {
    /// Whatever the packet.
    pub(super) always: Option<String>,
    /// Unless it is the first of its connection.
    pub(super) by_state: Option<String>,
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
        depends(&[chain("o")], &[], rules)
    }

    #[test]
    fn packets_addresses_and_interfaces_are_all() {
        let oif = ("meta", &[(2, 7)][..]);
        let field = |base, offset, length| {
            of(&[rule("o", &[("payload", &[(2, base), (3, offset), (4, length)])], DROP)]).always
        };
        assert_eq!(of(&[rule("o", &[oif, ("counter", &[])], DROP)]), Depends::default());
        for (base, offset, length) in
            [(1, 9, 1), (1, 12, 4), (1, 16, 2), (1, 8, 16), (1, 24, 16), (2, 0, 4), (2, 2, 2), (2, 13, 1)]
        {
            assert_eq!(field(base, offset, length), None, "{base} {offset} {length}");
        }
        for (base, offset, length) in [(1, 8, 1), (1, 2, 2), (1, 1, 1), (2, 4, 2), (2, 8, 4), (0, 0, 6), (4, 0, 1)] {
            assert!(field(base, offset, length).is_some(), "{base} {offset} {length}");
        }
        let mark = ("meta", &[(2, 3)][..]);
        assert_eq!(of(&[rule("o", &[mark], DROP)]).always.as_deref(), Some("meta key 3 in chain o"));
        assert_eq!(of(&[rule("o", &[mark, ("counter", &[])], None)]), Depends::default(), "it decides nothing");
        assert_eq!(of(&[rule("lonely", &[mark], DROP)]), Depends::default(), "nothing leads there");
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
}

//! What in rules decides by more than a packet: a rate, a random number, another program. Whether a packet comes to that is seen,
//! not read: in a copy a mark stands before such a rule, a rule without a verdict with everything that is asked before it. It is in
//! the trace of a packet that meets it, and in no other. Pure.

mod expressions;
mod xtables;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

pub(super) use self::{
    expressions::judged,
    xtables::{FILLING, is_by_chance, of_legacy},
};
use self::{
    expressions::{COUNTING_EXPRESSIONS, CT_MARK, META_MARK, NFTRACE},
    xtables::GOING_ON,
};
use super::choices::RuleAt;
use super::ruleset::{DATA, NAME, RULE_CHAIN, RULE_EXPRESSIONS, SET_FLAGS, SET_NAME, TABLE};
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
    /// The port that a packet comes from, beside a single one.
    SourcePort,
    /// The same of the one that it goes to.
    DestinationPort,
    /// What it carries.
    Content,
    /// What a packet brings along from where it came in: a mark, a port of a bridge.
    Forwarded,
    /// What the sender's own socket or group was set to: a priority, a class of the older cgroups (`net_cls`).
    Socket,
    /// It comes to this host itself, where nobody listens.
    Unheard,
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
    /// Rules put elements into sets of ipset, or take them out.
    pub(super) fills_ipsets: bool,
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

/// `NFT_SET_EVAL`: packets put elements into it.
const FILLED_BY_PACKETS: u32 = 32;
/// `NFTA_SET_EXPR` and `NFTA_SET_EXPRESSIONS`
const SET_EXPRESSION: u16 = 17;
const SET_EXPRESSIONS: u16 = 18;

/// Rules put elements into sets of ipset, or take them out.
pub(super) fn fill_ipsets(rules: &[Body]) -> bool {
    has(rules, |name, data| name == "target" && data.text(1).as_deref() == Some(FILLING))
}

/// Rules set marks of packets, or may.
pub(super) fn set_marks(rules: &[Body]) -> bool {
    has(rules, |name, data| match name {
        "meta" => data.get(3).is_some() && data.number(2) == Some(META_MARK),
        "target" => data.text(1).is_some_and(|target| target.contains("MARK") || target == "SET"),
        _ => false,
    })
}

/// One of the rules' expressions is such, by its name and what it has.
fn has(rules: &[Body], is_such: impl Fn(&str, &Attributes) -> bool) -> bool {
    rules.iter().any(|rule| {
        let all = rule.attributes.list(RULE_EXPRESSIONS);
        all.lists().any(|one| is_such(&one.text(NAME).unwrap_or_default(), &one.list(DATA)))
    })
}

/// Sets that packets fill, by family, table and name.
pub(super) type Filled = HashSet<(u8, String, String)>;

/// Those among sets: the ones that are made for it, and the ones that a rule adds to.
pub(super) fn filled(sets: &[Body], rules: &[Body]) -> Filled {
    // What keeps count for each element decides by that, too: but for what only counts.
    let decides = |one: &Attributes| one.text(NAME).is_some_and(|name| COUNTING_EXPRESSIONS.contains(&name.as_str()));
    let counts = |set: &Body| {
        decides(&set.attributes.list(SET_EXPRESSION))
            || set.attributes.list(SET_EXPRESSIONS).lists().any(|one| decides(&one))
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::netfilter::family;

    const ALL: Wanted = Wanted {
        headers: true,
        states: true,
        facts: Facts {
            has_other_types: true,
            has_whole_sets: true,
            fills_ipsets: false,
            has_policies: true,
            routes_by_mark: true,
        },
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

use super::*;
use crate::firewall::netfilter::family;
use crate::sandbox::copy::doubts::{Doubts, may_match};
use crate::sandbox::copy::packet::Whole;
use crate::sandbox::copy::packet::datagram;

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

/// Of one base chain.
fn nothing() -> Depends {
    Depends::on(1)
}

impl Depends {
    /// To a datagram.
    fn told(&self) -> Doubts {
        self.of(&Whole::of(&datagram(53)).unwrap())
    }

    fn always(&self) -> Option<String> {
        self.told().always
    }
}

fn of(rules: &[Body]) -> Depends {
    depends(&[chain("o")], &[], rules, Passage::Out)
}

#[test]
fn packets_addresses_and_interfaces_are_all() {
    let oif = ("meta", &[(2, 7)][..]);
    let field =
        |base, offset, length| of(&[rule("o", &[("payload", &[(2, base), (3, offset), (4, length)])], DROP)]).always();
    assert_eq!(of(&[rule("o", &[oif, ("counter", &[])], DROP)]), nothing());
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
    assert_eq!(of(&[rule("o", &[skb], DROP)]).always().as_deref(), Some("meta key 13 in chain o"));
    assert_eq!(of(&[rule("o", &[skb, ("counter", &[])], None)]), nothing(), "it decides nothing");
    assert_eq!(of(&[rule("lonely", &[skb], DROP)]), nothing(), "nothing leads there");
    let led = [rule("o", &[], Some((JUMP, "x"))), rule("x", &[("limit", &[])], DROP)];
    assert_eq!(of(&led).always().as_deref(), Some("limit in chain x"));
    assert!(of(&[rule("o", &[("synproxy", &[])], None)]).always().is_some(), "whatever that does");
}

#[test]
fn a_connections_state_matters_where_it_does_not_accept() {
    let state = ("ct", &[(2, 0)][..]);
    let accepting = of(&[rule("o", &[state], Some((1, "")))]);
    assert_eq!(accepting.told().by_state, None);
    assert!(accepting.clone().and(nothing()).told().by_state.is_some(), "another chain may drop what this one accepts");
    let dropping = of(&[rule("o", &[state], DROP)]);
    assert_eq!(
        (dropping.always(), dropping.told().by_state.as_deref()),
        (None, Some("a connection's state in chain o"))
    );
}

#[test]
fn a_mark_and_a_cgroup_are_a_sockets() {
    let through = |rules: &[Body]| {
        let (mut hook, mut base) = (Attributes::default(), chain("o"));
        hook.set(1, 2u32.to_be_bytes().to_vec());
        base.attributes.set_list(4, &hook);
        depends(&[base], &[], rules, Passage::Through)
    };
    let mark = [rule("o", &[("meta", &[(2, 3)])], DROP)];
    assert_eq!(of(&mark), nothing());
    assert_eq!(through(&mark).always().as_deref(), Some("meta key 3 in chain o"));
    let sets = ("meta", &[(2, 3), (3, 1)][..]);
    assert_eq!(of(&[rule("o", &[sets], None)]), nothing());
    let by_chance = of(&[rule("o", &[("numgen", &[]), sets], None)]);
    assert_eq!(by_chance.always().as_deref(), Some("numgen in chain o"), "others decide by the mark");
    let by_cgroup = of(&[rule("o", &[("socket", &[(1, 3)]), sets], None)]);
    assert!(by_cgroup.told().by_cgroup.is_some());
    let cgroup = [rule("o", &[("socket", &[(1, 3), (3, 2)])], DROP)];
    assert_eq!((of(&cgroup).always(), of(&cgroup).told().by_cgroup.as_deref()), (None, Some("a cgroup in chain o")));
    assert_eq!(through(&cgroup).always().as_deref(), Some("socket in chain o"));
    assert_eq!(of(&[rule("o", &[("socket", &[(1, 0)])], DROP)]).always().as_deref(), Some("socket in chain o"));
}

#[test]
fn legacy_rules_are_judged_by_their_matches() {
    let entry = |matches: &[&str], does: Does| LegacyEntry {
        at: 0,
        next: 0,
        target: 0,
        matches: matches.iter().map(|name| (*name).to_owned()).collect(),
        does,
        packets: 0,
    };
    let of = |entry| {
        let mut found = Depends::default();
        found.add_legacy("filter", &entry, Passage::Out);
        found
    };
    assert_eq!(of(entry(&["tcp", "owner"], Does::Drops)), Depends::default());
    assert_eq!(of(entry(&["conntrack"], Does::Accepts)).told().by_state, None);
    assert!(of(entry(&["limit"], Does::Extension("MARK".to_owned()))).always().is_some(), "others decide by the mark");
    assert!(of(entry(&["ttl"], Does::Drops)).told().by_header.is_some());
    assert!(of(entry(&["state"], Does::Drops)).told().by_state.is_some());
    assert_eq!(
        of(entry(&["limit"], Does::Drops)).always().as_deref(),
        Some("limit in table filter of iptables-legacy")
    );
    assert_eq!(of(entry(&["limit"], Does::Extension("LOG".to_owned()))), Depends::default());
}

/// `meta l4proto` or two bytes of a header, compared with a number.
fn compared(load: (&str, &[(u16, u32)]), register: u32, operation: u32, with: &[u8]) -> Vec<Attributes> {
    let expression = |name: &str, data: Attributes| {
        let mut expression = Attributes::default();
        expression.set(NAME, text(name));
        expression.set_list(DATA, &data);
        expression
    };
    let [mut loads, mut value, mut compares] = <[Attributes; 3]>::default();
    for (attribute, number) in load.1 {
        loads.set(*attribute, number.to_be_bytes().to_vec());
    }
    value.set(1, with.to_vec());
    compares.set(1, register.to_be_bytes().to_vec());
    compares.set(2, operation.to_be_bytes().to_vec());
    compares.set_list(3, &value);
    vec![expression(load.0, loads), expression("cmp", compares)]
}

#[test]
fn rules_that_a_packet_cannot_match_do_not_matter_to_it() {
    const UDP: u8 = 17;
    let protocol = ("meta", &[(1, 1), (2, 16)][..]);
    let port = ("payload", &[(1, 1), (2, 2), (3, 2), (4, 2)][..]);
    let matters = |family: u8, expressions: Vec<Attributes>| {
        let mut of = Attributes::default();
        of.set_list(RULE_EXPRESSIONS, &Attributes::elements(&expressions));
        may_match(family, &of, &Whole::of(&datagram(53)).unwrap(), false)
    };
    assert!(matters(family::INET, compared(protocol, 1, 0, &[UDP])));
    assert!(!matters(family::INET, compared(protocol, 1, 0, &[6])));
    assert!(!matters(family::INET, compared(protocol, 1, 1, &[UDP])), "anything but UDP");
    assert!(!matters(family::IPV6, Vec::new()), "the other family's table");
    assert!(
        matters(family::INET, compared(port, 1, 0, &[0, 53])) && !matters(family::INET, compared(port, 1, 0, &[0, 54]))
    );
    assert!(matters(family::INET, compared(port, 2, 0, &[0, 54])), "another register holds something else");
    let field = ("payload", &[(1, 1), (2, 2), (3, 6), (4, 2)][..]);
    assert!(matters(family::INET, compared(field, 1, 0, &[0, 54])), "of that nothing is known");
    let mut of = Attributes::default();
    of.set_list(RULE_EXPRESSIONS, &Attributes::elements(&compared(port, 1, 0, &[0, 54])));
    let packet = Whole::of(&datagram(53)).unwrap();
    assert!(may_match(family::INET, &of, &packet, true), "its port may be another one by then");
    let translating = [rule("o", &[("redir", &[])], None), rule("o", &[("limit", &[])], DROP)];
    assert!(depends(&[chain("o")], &[], &translating, Passage::Out).translates);
}

//! What a rule may do that decides by more than a packet: it is as if it were not there, or as if that part of it always matched; one
//! that looks up what is random does what is said for any of its values. Where a conversation comes to the same end in every one of
//! these ways, that end is certain. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    marks::{self, Filled, Reason, Wanted},
    remake::given_expressions,
    ruleset::{DATA, ELEMENTS, Listed, NAME, SET_NAME, TABLE},
};
use crate::kernel::netlink::{Attributes, Body};

/// A rule that has several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum RuleAt {
    /// By its place in the list.
    Nft(usize),
    /// Of iptables-legacy: by the table's place in the list, and its own in that.
    Legacy(usize, usize),
}

/// Which of its ways a rule goes.
pub(super) type Choices = BTreeMap<RuleAt, usize>;

/// Ways of one rule.
const MAX_WAYS: usize = 16;
/// `NFTA_SET_ELEM_DATA`
const ELEMENT_DATA: u16 = 2;

impl Listed {
    /// Every way of a rule, as expressions; nothing where they cannot be told.
    pub(super) fn ways(&self, rule: usize, filled: &Filled, wanted: Wanted) -> Option<Vec<Vec<Attributes>>> {
        let rule = self.rules.get(rule)?;
        let expressions = given_expressions(&rule.attributes);
        let table = rule.attributes.text(TABLE).unwrap_or_default();
        let is_filled =
            |name: String| filled.contains(&(rule.fixed.first().copied().unwrap_or(0), table.clone(), name));
        let mut ways = vec![Vec::new()];
        let mut loaded = Loaded::default();
        for (at, expression) in expressions.iter().enumerate() {
            let judged = marks::judged(expression, expressions.get(at + 1), &is_filled, wanted);
            let is_uncertain = judged.iter().any(|(reason, _)| *reason == Reason::Anything);
            match loaded.step(expression, is_uncertain)? {
                Step::Kept => ways.iter_mut().for_each(|way| way.push(expression.clone())),
                Step::Left => {}
                Step::AnyOf(set) => {
                    let values = self.values(rule, &set)?;
                    let data = expression.list(DATA);
                    ways =
                        ways.iter().flat_map(|way| values.iter().map(|value| with_value(way, &data, value))).collect();
                }
            }
            if ways.len() >= MAX_WAYS {
                return None;
            }
        }
        // As if it were not there.
        ways.push(Vec::new());
        Some(ways)
    }

    /// Each value in a map, once.
    fn values(&self, rule: &Body, set: &str) -> Option<Vec<Attributes>> {
        let is_of = |body: &&Body| {
            body.fixed.first() == rule.fixed.first()
                && body.attributes.get(TABLE) == rule.attributes.get(TABLE)
                && body.attributes.text(SET_NAME).as_deref() == Some(set)
        };
        let elements = self.elements.iter().filter(is_of).flat_map(|list| {
            let all: Vec<_> = list.attributes.list(ELEMENTS).lists().collect();
            all
        });
        let mut known = BTreeSet::new();
        let mut values = Vec::new();
        for element in elements.filter(|element| element.get(ELEMENT_DATA).is_some()) {
            let value = element.list(ELEMENT_DATA);
            if known.insert(value.bytes()) {
                values.push(value);
            }
            if values.len() > MAX_WAYS {
                return None;
            }
        }
        (!values.is_empty()).then_some(values)
    }
}

/// A way that goes on with a value in place of a lookup's outcome.
fn with_value(way: &[Attributes], lookup: &Attributes, value: &Attributes) -> Vec<Attributes> {
    /// `NFTA_IMMEDIATE_DREG` and `NFTA_IMMEDIATE_DATA`; `NFTA_LOOKUP_DREG`
    const INTO: u16 = 1;
    const VALUE: u16 = 2;
    const LOOKUP_INTO: u16 = 3;
    let [mut data, mut immediate] = <[Attributes; 2]>::default();
    data.set(INTO, lookup.number(LOOKUP_INTO).unwrap_or(0).to_be_bytes().to_vec());
    data.set_list(VALUE, value);
    immediate.set(NAME, b"immediate\0".to_vec());
    immediate.set_list(DATA, &data);
    way.iter().cloned().chain([immediate]).collect()
}

/// Registers with something uncertain in them, each four bytes of them by its place.
#[derive(Default)]
struct Loaded(BTreeSet<u32>);

/// What becomes of an expression.
enum Step {
    Kept,
    Left,
    /// Any value of this map.
    AnyOf(String),
}

impl Loaded {
    /// The next expression; nothing where what is uncertain is used in a way that cannot be told.
    fn step(&mut self, expression: &Attributes, is_uncertain: bool) -> Option<Step> {
        /// A key takes no more registers.
        const KEY: u32 = 16;
        let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        // The first one is the verdict, the next four are those of sixteen bytes.
        let place = |number: u16| match data.number(number)? {
            0 => None,
            register @ 1..8 => Some((register - 1) * 4),
            register => Some(register - 8),
        };
        // Where it reads, and where it writes.
        let (from, into) = match name.as_str() {
            "payload" if data.get(5).is_none() => (None, place(1)),
            "exthdr" if data.get(7).is_none() && data.get(1).is_some() => (None, place(1)),
            "meta" if data.get(3).is_none() => (None, place(1)),
            "ct" if data.get(4).is_none() => (None, place(1)),
            "fib" | "rt" | "numgen" | "osf" | "xfrm" => (None, place(1)),
            "socket" | "tunnel" => (None, place(2)),
            "hash" | "bitwise" | "byteorder" => (place(1), place(2)),
            "cmp" | "range" => (place(1), None),
            "lookup" => (place(2), place(3)),
            "immediate" => (None, place(1)),
            "limit" | "quota" | "connlimit" | "match" | "counter" | "log" | "last" | "target" | "notrack"
            | "reject" | "objref" => {
                return Some(if is_uncertain { Step::Left } else { Step::Kept });
            }
            // What is done only to count is as good as not done.
            "dynset" if is_uncertain && self.0.is_empty() => return Some(Step::Left),
            // Whatever it does with what it is given.
            _ => return self.0.is_empty().then_some(Step::Kept),
        };
        let reads = |from: u32| match name.as_str() {
            "cmp" | "range" => self.0.contains(&from),
            _ => self.0.range(from..from + KEY).next().is_some(),
        };
        let is_given = from.is_some_and(reads);
        match (name.as_str(), is_given || is_uncertain) {
            ("lookup", true) if data.get(3).is_some() => {
                into.map(|into| self.0.remove(&into));
                Some(Step::AnyOf(data.text(1)?))
            }
            (_, true) => {
                self.0.extend(into);
                Some(Step::Left)
            }
            (_, false) => {
                into.map(|into| self.0.remove(&into));
                Some(Step::Kept)
            }
        }
    }
}

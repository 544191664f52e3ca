//! The possible outcomes of a rule that decides by more than a packet, here called its ways: the uncertain part matches, or it does not; a
//! map that is asked for a random number gives any of its values. If a conversation has the same outcome in all of them, that outcome is
//! certain. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use serde::{Deserialize, Serialize};

use super::{
    marks::{self, Filled, Reason, Wanted},
    remake::given_expressions,
    ruleset::{DATA, ELEMENTS, Listed, NAME, SET_NAME, TABLE, is_end},
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

/// Ways of one rule: a service may have so many servers.
const MAX_WAYS: usize = 32;
/// `NFTA_NG_MODULUS` and `NFTA_NG_OFFSET`
const MODULUS: u16 = 2;
const OFFSET: u16 = 4;
/// `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_DATA`, `NFTA_SET_ELEM_KEY_END`
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_KEY_END: u16 = 10;

impl Listed {
    /// Every way of a rule, as expressions; `None` if the ways cannot be listed.
    pub(super) fn ways(&self, rule: usize, filled: &Filled, wanted: Wanted) -> Option<Vec<Vec<Attributes>>> {
        // Several numbers may lead to one value of a map. Where a number does not lead to a map, each number is a way.
        self.listed(rule, (filled, wanted), false).or_else(|| self.listed(rule, (filled, wanted), true))
    }

    /// The same, with a way for each number that is drawn or not.
    fn listed(
        &self,
        rule: usize,
        (filled, wanted): (&Filled, Wanted),
        by_number: bool,
    ) -> Option<Vec<Vec<Attributes>>> {
        let rule = self.rules.get(rule)?;
        let expressions = given_expressions(&rule.attributes);
        let table = rule.attributes.text(TABLE).unwrap_or_default();
        let is_filled =
            |name: String| filled.contains(&(rule.fixed.first().copied().unwrap_or(0), table.clone(), name));
        let mut ways = vec![Vec::new()];
        let mut loaded = Loaded::default();
        // The numbers of which one was drawn, and into which register.
        let mut drawn = None::<(u32, Range<u32>)>;
        // What a rule has done where it ends: what stands in front of what does not match is carried out.
        let mut missed: Vec<Vec<Attributes>> = Vec::new();
        for (at, expression) in expressions.iter().enumerate() {
            let judged = marks::judged(expression, expressions.get(at + 1), &is_filled, wanted);
            let data = expression.list(DATA);
            let is_uncertain = judged.iter().any(|(reason, _)| *reason == Reason::Anything);
            // Whoever makes the rule chooses how many numbers there are.
            let is_listed = |numbers: &Range<u32>| is_uncertain && by_number && numbers.len() <= MAX_WAYS;
            if let Some((into, numbers)) = numbers(expression, &data).filter(|(_, numbers)| is_listed(numbers)) {
                let with = |way: &Vec<Attributes>, number: u32| {
                    way.iter().cloned().chain([immediate(into, &value(number))]).collect::<Vec<_>>()
                };
                ways = ways.iter().flat_map(|way| numbers.clone().map(|number| with(way, number))).collect();
                if ways.len() + missed.len() > MAX_WAYS {
                    return None;
                }
                // It is certain now, for what is asked of it behind this.
                loaded.forget(into);
                continue;
            }
            match loaded.step(expression, is_uncertain)? {
                Step::Kept => ways.iter_mut().for_each(|way| way.push(expression.clone())),
                Step::Moved => {
                    // What is made of it, or drawn beside it, are other numbers.
                    let is_first = drawn.is_none() && numbers(expression, &data).is_some();
                    drawn = numbers(expression, &data).filter(|_| is_first);
                }
                Step::Asked => missed.extend(ways.iter().cloned()),
                Step::AnyOf(set) => {
                    let values = self.values(rule, &set)?;
                    let is_met = drawn.as_ref().is_some_and(|(into, numbers)| {
                        data.number(2) == Some(*into) && self.covers(rule, &set, numbers)
                    });
                    if !is_met {
                        missed.extend(ways.iter().cloned());
                    }
                    ways =
                        ways.iter().flat_map(|way| values.iter().map(|value| with_value(way, &data, value))).collect();
                }
            }
            if ways.len() + missed.len() > MAX_WAYS {
                return None;
            }
        }
        // Of ways that end alike one is enough.
        for way in missed {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        Some(ways)
    }

    /// The keys of a map are these numbers, each of them and no other.
    fn covers(&self, rule: &Body, set: &str, numbers: &Range<u32>) -> bool {
        let key = |element: &Attributes| {
            let is_one = !is_end(element) && element.get(ELEMENT_KEY_END).is_none();
            let bytes: [u8; 4] = element.list(ELEMENT_KEY).get(1)?.try_into().ok()?;
            is_one.then_some(u32::from_ne_bytes(bytes))
        };
        let keys: Option<BTreeSet<u32>> = self.elements_of(rule, set).iter().map(key).collect();
        !numbers.is_empty() && keys.is_some_and(|keys| keys.into_iter().eq(numbers.clone()))
    }

    /// Elements of a set in a rule's table.
    fn elements_of(&self, rule: &Body, set: &str) -> Vec<Attributes> {
        let is_of = |body: &&Body| {
            body.fixed.first() == rule.fixed.first()
                && body.attributes.get(TABLE) == rule.attributes.get(TABLE)
                && body.attributes.text(SET_NAME).as_deref() == Some(set)
        };
        let lists = self.elements.iter().filter(is_of).map(|list| list.attributes.list(ELEMENTS));
        lists.flat_map(|list| list.lists().collect::<Vec<_>>()).collect()
    }

    /// Each value in a map, once.
    fn values(&self, rule: &Body, set: &str) -> Option<Vec<Attributes>> {
        let mut known = BTreeSet::new();
        let mut values = Vec::new();
        for element in self.elements_of(rule, set).iter().filter(|element| element.get(ELEMENT_DATA).is_some()) {
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
    /// `NFTA_LOOKUP_DREG`
    const LOOKUP_INTO: u16 = 3;
    way.iter().cloned().chain([immediate(lookup.number(LOOKUP_INTO).unwrap_or(0), value)]).collect()
}

/// The expression that puts a value into a register.
fn immediate(into: u32, value: &Attributes) -> Attributes {
    /// `NFTA_IMMEDIATE_DREG` and `NFTA_IMMEDIATE_DATA`
    const INTO: u16 = 1;
    const VALUE: u16 = 2;
    let [mut data, mut immediate] = <[Attributes; 2]>::default();
    data.set(INTO, into.to_be_bytes().to_vec());
    data.set_list(VALUE, value);
    immediate.set(NAME, b"immediate\0".to_vec());
    immediate.set_list(DATA, &data);
    immediate
}

/// A number as a register has it: as `NFTA_DATA_VALUE`, in the host's order.
fn value(number: u32) -> Attributes {
    let mut value = Attributes::default();
    value.set(1, number.to_ne_bytes().to_vec());
    value
}

/// The register that a generator of numbers or a hash writes, and the numbers that it may write there.
fn numbers(expression: &Attributes, data: &Attributes) -> Option<(u32, Range<u32>)> {
    /// `NFTA_HASH_DREG`, `NFTA_HASH_MODULUS` and `NFTA_HASH_OFFSET`
    const HASH_INTO: u16 = 2;
    const HASH_MODULUS: u16 = 4;
    const HASH_OFFSET: u16 = 6;
    let (into, modulus, offset) = match expression.text(NAME)?.as_str() {
        "numgen" => (1, MODULUS, OFFSET),
        "hash" => (HASH_INTO, HASH_MODULUS, HASH_OFFSET),
        _ => return None,
    };
    let first = data.number(offset).unwrap_or(0);
    Some((data.number(into)?, first..first.saturating_add(data.number(modulus)?)))
}

/// Registers with something uncertain in them, each four bytes of them by its place.
#[derive(Default)]
struct Loaded(BTreeSet<u32>);

/// The first four bytes of a register. The first register is the verdict, the next four are those of sixteen bytes.
fn part_of(register: u32) -> Option<u32> {
    match register {
        0 => None,
        register @ 1..8 => Some((register - 1) * 4),
        register => Some(register - 8),
    }
}

/// What becomes of an expression.
enum Step {
    Kept,
    /// Something uncertain is loaded, or made into something else.
    Moved,
    /// Something uncertain is asked: the rule goes on, or does not.
    Asked,
    /// Any value of this map.
    AnyOf(String),
}

impl Loaded {
    /// What is certain from here on.
    fn forget(&mut self, register: u32) {
        self.0.retain(|part| Some(*part) != part_of(register));
    }

    /// Reads the next expression; `None` if it uses an uncertain value so that its outcomes cannot be listed.
    fn step(&mut self, expression: &Attributes, is_uncertain: bool) -> Option<Step> {
        /// A key takes no more registers; a number takes one, and whatever else is loaded no more than four.
        const KEY: u32 = 16;
        const NUMBER: u32 = 1;
        const WIDEST: u32 = 4;
        /// `NFTA_BITWISE_SREG2`
        const SECOND_SOURCE: u16 = 8;
        let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        let place = |number: u16| part_of(data.number(number)?);
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
            "limit" | "quota" | "connlimit" | "match" if is_uncertain => return Some(Step::Asked),
            // Of a quota, a limit or a count of connections that has a name.
            "objref" if is_uncertain && data.number(1).is_some() => return Some(Step::Asked),
            // The rule goes on where enough was counted.
            "dynset" if is_uncertain && self.0.is_empty() => return Some(Step::Asked),
            "limit" | "quota" | "connlimit" | "match" | "counter" | "log" | "last" | "notrack" => {
                return Some(Step::Kept);
            }
            // Another program decides, or whatever is done with something uncertain.
            _ => return (self.0.is_empty() && !is_uncertain).then_some(Step::Kept),
        };
        let reads = |from: u32| match name.as_str() {
            "cmp" | "range" => self.0.contains(&from),
            _ => self.0.range(from..from + KEY).next().is_some(),
        };
        // Two values may be made into one.
        let second = place(SECOND_SOURCE).filter(|_| name == "bitwise");
        let is_given = from.is_some_and(reads) || second.is_some_and(reads);
        match (name.as_str(), is_given || is_uncertain) {
            // What packets have put into a map is not known.
            ("lookup", true) if data.get(3).is_some() && is_uncertain => None,
            ("lookup", true) if data.get(3).is_some() => {
                into.map(|into| self.0.remove(&into));
                Some(Step::AnyOf(data.text(1)?))
            }
            (_, true) => {
                let width = if ["numgen", "hash"].contains(&name.as_str()) { NUMBER } else { WIDEST };
                self.0.extend(into.iter().flat_map(|into| *into..into + width));
                Some(if into.is_some() { Step::Moved } else { Step::Asked })
            }
            (_, false) => {
                into.map(|into| self.0.remove(&into));
                Some(Step::Kept)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(name: &str, numbers: &[(u16, u32)]) -> Attributes {
        let [mut data, mut whole] = <[Attributes; 2]>::default();
        for (number, value) in numbers {
            data.set(*number, value.to_be_bytes().to_vec());
        }
        whole.set(NAME, name.as_bytes().to_vec());
        whole.set_list(DATA, &data);
        whole
    }

    /// What becomes of each: kept, moved, asked, a value, or nothing is known.
    fn steps(expressions: &[(Attributes, bool)]) -> String {
        let mut loaded = Loaded::default();
        let one = |(expression, is_uncertain): &(Attributes, bool)| match loaded.step(expression, *is_uncertain) {
            Some(Step::Kept) => 'k',
            Some(Step::Moved) => 'm',
            Some(Step::Asked) => 'a',
            Some(Step::AnyOf(_)) => 'v',
            None => '?',
        };
        expressions.iter().map(one).collect()
    }

    #[test]
    fn what_is_made_of_something_random_is_random() {
        let random = (expression("numgen", &[(1, 1), (2, 3)]), true);
        let port = (expression("payload", &[(1, 1), (2, 2), (3, 2), (4, 2)]), false);
        let compared = (expression("cmp", &[(1, 1)]), false);
        let masked = (expression("bitwise", &[(1, 1), (2, 1)]), false);
        let verdict = (expression("immediate", &[(1, 0)]), false);
        let set = (expression("ct", &[(2, 3), (4, 1)]), false);
        let mut looked_up = expression("lookup", &[(2, 1), (3, 0)]);
        let mut data = looked_up.list(DATA);
        data.set(1, b"m".to_vec());
        looked_up.set_list(DATA, &data);
        let all = |of: &[&(Attributes, bool)]| steps(&of.iter().map(|one| (*one).clone()).collect::<Vec<_>>());
        assert_eq!(all(&[&random, &compared, &verdict]), "mak");
        assert_eq!(all(&[&random, &masked, &compared, &verdict]), "mmak");
        assert_eq!(all(&[&random, &(looked_up, false)]), "mv");
        // The same register, loaded anew.
        assert_eq!(all(&[&random, &compared, &port, &compared, &verdict]), "makkk");
        assert_eq!(all(&[&port, &compared, &random, &set]), "kkm?");
        assert_eq!(all(&[&(expression("limit", &[]), true), &verdict]), "ak");
        // The first register of sixteen bytes is four of four.
        let next = (expression("numgen", &[(1, 9), (2, 3)]), true);
        let compared = |register| (expression("cmp", &[(1, register)]), false);
        assert_eq!(all(&[&next, &compared(9), &compared(1)]), "mak");
    }
}

//! What rules do, chain by chain, whatever they are numbered: to compare what a front end made with what was in force.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use super::{
    passage::Passage,
    remake::given_expressions,
    ruleset::{CHAIN_HOOK, CHAIN_NAME, DATA, Listed, NAME, RULE_CHAIN, SET_NAME, TABLE},
};
use crate::kernel::netlink::Body;
use crate::{
    firewall::netfilter::{family, hook},
    model::{Origin, Packet},
};

/// `NFTA_CHAIN_POLICY`
const POLICY: u16 = 5;

/// Where a chain or set is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    family: u8,
    table: String,
    name: String,
    is_set: bool,
    is_legacy: bool,
}

impl fmt::Display for Spot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_set { "set" } else { "chain" };
        let of = if self.is_legacy { " of iptables-legacy" } else { "" };
        write!(formatter, "{kind}{of} {} {} {}", family::name(self.family), self.table, self.name)
    }
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// Number of the hook that a chain hangs on.
    hook: Option<u32>,
    /// Chains to which its rules lead.
    leads: BTreeSet<String>,
    /// A rule looks a verdict up: it may lead to any.
    leads_anywhere: bool,
    /// What it hangs on, its policy, and each of its rules, or what is in a set.
    content: Vec<Vec<u8>>,
}

/// Chains and named sets of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape(BTreeMap<Spot, Part>);

impl Shape {
    pub(super) fn of(listed: &Listed) -> Self {
        let mut shape = Self::default();
        let sets = sets(listed);
        for chain in &listed.chains {
            if let Some(spot) = spot(chain, CHAIN_NAME, false) {
                let part = shape.0.entry(spot).or_default();
                part.hook = chain.attributes.list(CHAIN_HOOK).number(1);
                part.content.push(chain.attributes.only(&[CHAIN_HOOK, POLICY]).bytes());
            }
        }
        for rule in &listed.rules {
            let Some(spot) = spot(rule, RULE_CHAIN, false) else { continue };
            let part = shape.0.entry(spot.clone()).or_default();
            part.content.push(rule_bytes(rule, &spot, &sets, &mut part.leads, &mut part.leads_anywhere));
        }
        for (spot, bytes) in sets {
            if !spot.name.starts_with("__") {
                shape.0.insert(spot, Part { content: vec![bytes], ..Part::default() });
            }
        }
        shape
    }

    /// One more chain of iptables-legacy: its hook and whether its policy drops, and its rules.
    pub(super) fn add_legacy(&mut self, place: (u8, &str, &str), hook: Option<(u32, bool)>, rules: &[String]) {
        let (family, table, name) = (place.0, place.1.to_owned(), place.2.to_owned());
        let mut part = Part { hook: hook.map(|(number, _)| number), ..Part::default() };
        part.content.push(vec![hook.map_or(2, |(_, drops)| u8::from(drops))]);
        for rule in rules {
            let words = ["-j ", "-g "].into_iter().filter_map(|option| rule.rsplit_once(option));
            part.leads.extend(words.filter_map(|(_, to)| to.split(' ').next()).map(str::to_owned));
            // In a copy nothing is answered: what rejects there drops.
            let plain = rule.split_once("-j REJECT").map_or(rule.as_str(), |(rule, _)| rule);
            part.content.push(plain.trim_end_matches("-j DROP").trim().as_bytes().to_vec());
        }
        self.0.insert(Spot { family, table, name, is_set: false, is_legacy: true }, part);
    }

    /// The first chain or set that is not the same in another one, of those that these packets may meet.
    pub fn otherwise(&self, other: &Self, packets: &[&Packet]) -> Option<String> {
        let is_v6 = |packet: &&&Packet| packet.to().is_some_and(|to| to.1.is_ipv6());
        let ways: BTreeSet<(bool, bool)> =
            packets.iter().map(|packet| (is_v6(&packet), matches!(packet.origin, Origin::Interface { .. }))).collect();
        ways.into_iter().find_map(|(v6, is_forwarded)| {
            let way = if is_forwarded { Passage::Through } else { Passage::Out };
            let mut all = self.met(v6, way);
            all.extend(other.met(v6, way));
            // What comes back is part of what is tried.
            all.extend(self.met(v6, way.back()));
            all.extend(other.met(v6, way.back()));
            all.into_iter().find(|spot| self.0.get(spot) != other.0.get(spot)).map(|spot| spot.to_string())
        })
    }

    /// Chains that a packet may meet, and named sets beside.
    fn met(&self, v6: bool, way: Passage) -> BTreeSet<Spot> {
        let not = if v6 { family::IPV4 } else { family::IPV6 };
        let is_base = |(spot, part): &(&Spot, &Part)| {
            let name = part.hook.and_then(|number| hook::name(spot.family, number));
            spot.is_set || name.is_some_and(|name| way.hooks().contains(&name))
        };
        let own = || self.0.iter().filter(|(spot, _)| spot.family != not);
        let mut waiting: Vec<Spot> = own().filter(is_base).map(|(spot, _)| spot.clone()).collect();
        let mut met: BTreeSet<Spot> = waiting.iter().cloned().collect();
        while let Some(spot) = waiting.pop() {
            let Some(part) = self.0.get(&spot) else { continue };
            let is_led = |other: &Spot| {
                (other.family, &other.table, other.is_legacy) == (spot.family, &spot.table, spot.is_legacy)
                    && !other.is_set
                    && (part.leads_anywhere || part.leads.contains(&other.name))
            };
            for next in own().map(|(other, _)| other).filter(|other| is_led(other)) {
                if met.insert(next.clone()) {
                    waiting.push(next.clone());
                }
            }
        }
        met
    }
}

fn spot(body: &Body, name: u16, is_set: bool) -> Option<Spot> {
    let of = &body.attributes;
    Some(Spot { family: *body.fixed.first()?, table: of.text(TABLE)?, name: of.text(name)?, is_set, is_legacy: false })
}

/// What is in sets: whoever has none of its own name is known by that.
fn sets(listed: &Listed) -> HashMap<Spot, Vec<u8>> {
    let mut sets: HashMap<Spot, Vec<u8>> = HashMap::new();
    let mut elements: HashMap<Spot, Vec<Vec<u8>>> = HashMap::new();
    for list in &listed.elements {
        let Some(spot) = spot(list, SET_NAME, true) else { continue };
        let all = list.attributes.list(3);
        elements.entry(spot).or_default().extend(all.lists().map(|one| one.only(&[1, 2, 3, 10]).bytes()));
    }
    for set in &listed.sets {
        let Some(spot) = spot(set, SET_NAME, true) else { continue };
        // Types and lengths of keys and data.
        let mut bytes = set.attributes.only(&[4, 5, 6, 7]).bytes();
        let mut all = elements.remove(&spot).unwrap_or_default();
        all.sort_unstable();
        bytes.extend(all.concat());
        sets.insert(spot, bytes);
    }
    sets
}

/// What a rule does, without what logs or counts.
fn rule_bytes(
    rule: &Body,
    spot: &Spot,
    sets: &HashMap<Spot, Vec<u8>>,
    leads: &mut BTreeSet<String>,
    leads_anywhere: &mut bool,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for expression in given_expressions(&rule.attributes) {
        let (kind, mut data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        match kind.as_str() {
            "counter" => continue,
            "immediate" => leads.extend(data.list(2).list(2).text(2)),
            "lookup" | "dynset" => {
                *leads_anywhere |= kind == "lookup" && data.number(3) == Some(0);
                let name = data.text(1).unwrap_or_default();
                let set = Spot { name: name.clone(), is_set: true, ..spot.clone() };
                match sets.get(&set).filter(|_| name.starts_with("__")) {
                    Some(content) => bytes.extend(content),
                    None => bytes.extend(name.as_bytes()),
                }
                // Its name and number.
                data = data.without(&[1, 4]);
            }
            _ => {}
        }
        bytes.extend(kind.as_bytes());
        bytes.extend(data.bytes());
    }
    bytes
}

//! The ruleset of a namespace, and the rule in it that the eBPF side saw drop a packet. A rule is only named when it is
//! there, and when it can have dropped that packet.

mod difference;

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use anyhow::Result;

use super::{
    entrance::entrance,
    files::Root,
    front_end::{self, Place},
    inventory,
    listing::{self, Pending},
    netfilter::{DROP, family, hook},
    nft::{Chain, RULESET, Rule, RuleVerdict as Does, Snapshot, Table},
};
use observer_ebpf::abi::UNKNOWN_RULE;

use crate::model::{Backend, Entrance, NamedRule, Statement, Verdict, WantedRule};

/// Why no command changes a table with an owner (`flags owner`).
const OWNED: &str =
    "the table belongs to the program that made it, which alone can change it: look at that program's settings";

/// A snapshot.
pub struct Ruleset {
    /// As it was numbered then, in its namespace.
    generation: u32,
    tables: Vec<Table>,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
    /// Rules by the handles of their table and their own.
    by_handle: HashMap<(u64, u64), usize>,
    listing: Option<Pending>,
    /// Statements of rules that were asked about, by the handles of table and rule: what is gone tomorrow is in no file then.
    named: HashMap<(u64, u64), Statement>,
    /// Bytes of what was read.
    bytes: u64,
}

/// Statements that are remembered.
const MAX_NAMED: usize = 256;

/// A ruleset of the host's own has no more bytes, nor has its text.
pub const MAX_BYTES: u64 = 64 << 20;

impl Ruleset {
    /// Its text as `nft` lists it, compressed, and its bytes before, where this is its digest.
    pub fn packed(&self, sha256: &str) -> Option<(u64, &[u8])> {
        self.listing.as_ref()?.packed(sha256)
    }

    /// Reads the namespace of the calling thread; neither the rules nor their text may have more than so many bytes.
    pub fn read(most: u64) -> Result<Self> {
        let (Snapshot { generation, tables, chains, rules, .. }, bytes) = RULESET.ask_within(0, most)?;
        let by_iptables = chains.iter().any(front_end::is_iptables) && inventory::has_compat();
        // What is listed from now on may be of a later ruleset: the listing knows its own number.
        let listing = Some(listing::begin(by_iptables, most));
        Ok(Self { generation, listing, bytes, ..Self::of(tables, chains, rules) })
    }

    /// As it was numbered when it was read, in its namespace.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    fn of(tables: Vec<Table>, chains: Vec<Chain>, rules: Vec<Rule>) -> Self {
        let handles: HashMap<(u8, &str), u64> =
            tables.iter().map(|table| ((table.family, table.name.as_str()), table.handle)).collect();
        let by_handle = rules
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| {
                Some(((*handles.get(&(rule.family, rule.table.as_str()))?, rule.handle), index))
            })
            .collect();
        Self { generation: 0, by_handle, tables, chains, rules, listing: None, named: HashMap::new(), bytes: 0 }
    }

    /// A verdict may come out of a map.
    pub fn has_maps(&self) -> bool {
        self.rules.iter().any(|rule| rule.verdicts.contains(&Does::Map))
    }

    /// All chains.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// All rules, each chain's in order.
    pub fn all(&self) -> &[Rule] {
        &self.rules
    }

    /// Handle of a table; its family as `nft` writes it.
    pub fn table(&self, family: &str, name: &str) -> Option<u64> {
        let table = self.tables.iter().find(|table| family::name(table.family) == family && table.name == name)?;
        Some(table.handle)
    }

    /// How many rules it holds.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Memory that it takes, in bytes and about: its names, what stands beside them, and its text.
    pub fn weight(&self) -> u64 {
        let beside = self.rules.len() * (size_of::<Rule>() + 64) + self.chains.len() * size_of::<Chain>();
        2 * self.bytes + beside as u64 + self.listing.as_ref().map_or(0, Pending::weight)
    }

    /// The rule or policy, if it is here and can have dropped the packet. Its text is waited for until then; files of front
    /// ends are looked for below `roots`, unless they are of a later ruleset.
    pub fn named(
        &mut self,
        wanted: &WantedRule,
        deadline: Instant,
        roots: Option<&mut dyn FnMut() -> Vec<Root>>,
    ) -> Option<NamedRule> {
        let mut named = self.find(wanted)?;
        if let Some(listing) = self.listing.as_mut().and_then(|listing| listing.until(deadline)) {
            // A listing is later than the snapshot. A handle is never used twice, so the text is the rule's whenever it is
            // there; the hash is the snapshot's only when nothing has changed in between.
            if named.handle.is_some() {
                named.text = listing.text(wanted.table, wanted.rule).map(str::to_owned);
            }
            named.ruleset_sha256 = (listing.generation == Some(self.generation)).then(|| listing.sha256.clone());
        }
        named.statement = roots.and_then(|roots| self.statement(wanted, &named, roots));
        let statement = named.statement.clone().filter(|statement| statement.note.is_none());
        if let Some(statement) = statement.filter(|_| self.named.len() < MAX_NAMED) {
            self.named.insert((wanted.table, wanted.rule), statement);
        }
        Some(named)
    }

    /// What it is in its front end's words.
    fn statement(
        &self,
        wanted: &WantedRule,
        named: &NamedRule,
        roots: &mut dyn FnMut() -> Vec<Root>,
    ) -> Option<Statement> {
        // Of a chain alone nothing is said.
        if wanted.rule == UNKNOWN_RULE {
            return None;
        }
        let table = self.tables.iter().find(|table| table.handle == wanted.table)?;
        let is_of = |family: u8, name: &str| family == table.family && name == table.name;
        let chains: Vec<&Chain> = self.chains.iter().filter(|chain| is_of(chain.family, &chain.table)).collect();
        let base = chains.iter().find(|chain| chain.handle == wanted.chain)?;
        let rules: Vec<&Rule> =
            self.rules.iter().filter(|rule| is_of(rule.family, &rule.table) && rule.chain == named.chain).collect();
        let saved = match (&self.listing, named.position) {
            (Some(listing), Some(position)) => {
                listing.saved(self.generation, table, &named.chain, position, rules.len())
            }
            _ => None,
        };
        let all: Vec<&Rule> = self.rules.iter().filter(|rule| is_of(rule.family, &rule.table)).collect();
        let place = Place { named, base: &base.name, rules: &rules, all: &all, chains: &chains, saved };
        front_end::statement(&place, roots)
    }

    fn find(&self, wanted: &WantedRule) -> Option<NamedRule> {
        let table = self.tables.iter().find(|table| table.handle == wanted.table)?;
        let is_of = |family: u8, name: &str| family == table.family && name == table.name;
        let base = self
            .chains
            .iter()
            .find(|chain| is_of(chain.family, &chain.table) && chain.handle == wanted.chain && chain.hook.is_some())?;
        let fits = wanted
            .hook
            .is_none_or(|wanted| base.hook.and_then(|hook| hook::name(table.family, hook)) == Some(wanted.name()))
            && wanted.v6.is_none_or(|v6| table.family != if v6 { family::IPV4 } else { family::IPV6 });
        if !fits {
            return None;
        }
        let named = Self::policy(table, base);
        if wanted.rule == UNKNOWN_RULE {
            // The rule may be in a chain that it leads to.
            return Some(NamedRule { text: None, verdict: None, path: Vec::new(), ..named });
        }
        if wanted.rule == 0 {
            return (base.policy == Some(DROP)).then_some(named);
        }
        let rule = self.rules.get(*self.by_handle.get(&(wanted.table, wanted.rule))?)?;
        let verdict = rule.verdicts.iter().find_map(|does| match does {
            // A map's verdict may be a drop, and never a reject.
            Does::Drop | Does::Map | Does::Translate(_) => Some(Verdict::Drop),
            Does::Reject => Some(Verdict::Reject),
            Does::Chain(_) => None,
        })?;
        let path = self.path(table, &base.name, &rule.chain)?;
        let position = self
            .rules
            .iter()
            .filter(|other| is_of(other.family, &other.table) && other.chain == rule.chain)
            .position(|other| other.handle == rule.handle);
        let entrance = match named.entrance {
            Entrance::Own => {
                let chains: Vec<&Chain> =
                    self.chains.iter().filter(|chain| is_of(chain.family, &chain.table)).collect();
                let rules: Vec<&Rule> = self.rules.iter().filter(|rule| is_of(rule.family, &rule.table)).collect();
                entrance(&chains, &rules, (&base.name, &rule.chain), &path)
            }
            nowhere => nowhere,
        };
        Some(NamedRule {
            chain: rule.chain.clone(),
            entrance,
            handle: Some(rule.handle),
            position: position.map(|position| position + 1),
            text: None,
            path,
            verdict: Some(verdict),
            translates: match rule.verdicts[..] {
                [Does::Translate(how)] => Some(how),
                _ => None,
            },
            ..named
        })
    }

    /// The policy of a base chain.
    fn policy(table: &Table, base: &Chain) -> NamedRule {
        NamedRule {
            backend: Backend::Nft,
            family: family::name(table.family).to_owned(),
            table: table.name.clone(),
            chain: base.name.clone(),
            handle: None,
            position: None,
            text: Some("policy drop".to_owned()),
            path: vec![base.name.clone()],
            verdict: Some(Verdict::Drop),
            ruleset_sha256: None,
            statement: None,
            translates: None,
            entrance: if table.is_owned { Entrance::Nowhere(OWNED.to_owned()) } else { Entrance::Own },
            packet: None,
            leads_to: None,
            translated: None,
            sees_forwarded: base.hook.is_some_and(|hook| {
                hook::name(table.family, hook).is_some_and(|name| !["input", "output"].contains(&name))
            }),
        }
    }

    /// The chains from one to another by jumps, where there is one way only; empty where there are several or a map of
    /// verdicts may lead there; `None` where nothing leads there.
    fn path(&self, table: &Table, from: &str, to: &str) -> Option<Vec<String>> {
        if from == to {
            return Some(vec![from.to_owned()]);
        }
        let mut leads: HashMap<&str, HashSet<&str>> = HashMap::new();
        let mut maps: HashSet<&str> = HashSet::new();
        for rule in self.rules.iter().filter(|rule| rule.family == table.family && rule.table == table.name) {
            for does in &rule.verdicts {
                match does {
                    Does::Chain(chain) => {
                        leads.entry(&rule.chain).or_default().insert(chain);
                    }
                    Does::Map => {
                        maps.insert(&rule.chain);
                    }
                    Does::Drop | Does::Reject | Does::Translate(_) => {}
                }
            }
        }
        let reach = |start: &str, along: &dyn Fn(&str) -> Vec<String>| {
            let mut seen = HashSet::from([start.to_owned()]);
            let mut waiting = vec![start.to_owned()];
            while let Some(chain) = waiting.pop() {
                waiting.extend(along(&chain).into_iter().filter(|next| seen.insert(next.clone())));
            }
            seen
        };
        let forward = |chain: &str| leads.get(chain).into_iter().flatten().map(|to| (*to).to_owned()).collect();
        let back = |chain: &str| {
            leads.iter().filter(|(_, to)| to.contains(chain)).map(|(from, _)| (*from).to_owned()).collect()
        };
        let reached = reach(from, &forward);
        if !reached.contains(to) {
            return reached.iter().any(|chain| maps.contains(chain.as_str())).then(Vec::new);
        }
        // Only chains that lie on some way: each must have one way in.
        let between: HashSet<String> = reach(to, &back).intersection(&reached).cloned().collect();
        let mut path = vec![to.to_owned()];
        while path.last().is_some_and(|last| last != from) {
            let last = path.last()?;
            let before: Vec<String> = back(last).into_iter().filter(|chain| between.contains(chain)).collect();
            let [only] = before.as_slice() else { return Some(Vec::new()) };
            if path.contains(only) {
                return Some(Vec::new());
            }
            path.push(only.clone());
        }
        path.reverse();
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn chain(name: &str, handle: u64, hook: Option<u32>, policy: Option<u32>) -> Chain {
        Chain {
            family: family::INET,
            table: "t".to_owned(),
            name: name.to_owned(),
            handle,
            hook,
            priority: hook.map(|_| 0),
            policy,
        }
    }

    pub(super) fn rule(chain: &str, handle: u64, does: Does) -> Rule {
        Rule {
            family: family::INET,
            table: "t".to_owned(),
            chain: chain.to_owned(),
            handle,
            verdicts: vec![does],
            packets: None,
        }
    }

    fn to(chain: &str) -> Does {
        Does::Chain(chain.to_owned())
    }

    pub(super) fn ruleset() -> Ruleset {
        Ruleset::of(
            vec![Table { family: family::INET, name: "t".to_owned(), handle: 9, is_owned: false }],
            vec![
                chain("out", 1, Some(hook::LOCAL_OUT), Some(DROP)),
                chain("forward", 2, Some(hook::FORWARD), Some(1)),
                chain("a", 3, None, None),
                chain("b", 4, None, None),
                chain("lonely", 5, None, None),
            ],
            vec![
                rule("out", 10, to("a")),
                rule("out", 11, Does::Drop),
                rule("a", 12, to("b")),
                rule("a", 13, Does::Reject),
                rule("b", 14, Does::Drop),
                rule("lonely", 15, Does::Drop),
                rule("forward", 16, Does::Map),
            ],
        )
    }

    fn wanted(chain: u64, rule: u64, hook: &str) -> WantedRule {
        WantedRule {
            netns: 1,
            netns_cookie: 1,
            function: 0,
            table: 9,
            chain,
            rule,
            hook: hook.parse().ok(),
            v6: Some(false),
        }
    }

    #[test]
    fn a_rule_is_named_with_the_way_to_it() {
        let named = ruleset().find(&wanted(1, 14, "output")).unwrap();
        assert_eq!((named.chain.as_str(), named.position, named.verdict), ("b", Some(1), Some(Verdict::Drop)));
        assert_eq!(named.path, ["out", "a", "b"]);
        let named = ruleset().find(&wanted(1, 13, "output")).unwrap();
        assert_eq!((named.position, named.verdict), (Some(2), Some(Verdict::Reject)));
    }

    #[test]
    fn what_cannot_have_dropped_it_is_not_named() {
        let cases = [
            (wanted(1, 10, "output"), "it only jumps"),
            (wanted(1, 15, "output"), "nothing leads there"),
            (wanted(1, 99, "output"), "no such rule"),
            (wanted(1, 11, "forward"), "another hook"),
            (wanted(3, 13, "output"), "no base chain"),
            (wanted(2, 0, "forward"), "the policy accepts"),
            (WantedRule { table: 8, ..wanted(1, 11, "output") }, "no such table"),
        ];
        for (wanted, why) in cases {
            assert_eq!(ruleset().find(&wanted), None, "{why}");
        }
    }

    #[test]
    fn a_policy_is_a_rule_without_a_handle() {
        let named = ruleset().find(&wanted(1, 0, "output")).unwrap();
        assert_eq!((named.handle, named.text.as_deref(), named.chain.as_str()), (None, Some("policy drop"), "out"));
    }

    #[test]
    fn a_map_may_lead_anywhere_and_two_ways_are_none() {
        let named = ruleset().find(&wanted(2, 15, "forward")).unwrap();
        assert!(named.path.is_empty());
        let mut two = ruleset();
        two.rules.push(rule("out", 17, to("b")));
        let two = Ruleset::of(two.tables, two.chains, two.rules);
        assert!(two.find(&wanted(1, 14, "output")).unwrap().path.is_empty());
    }
}

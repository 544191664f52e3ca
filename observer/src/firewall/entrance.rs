//! Where in a ruleset an exception for one rule belongs. A chain that two hooks lead to is no place for it: what is let through
//! on the way out would be let in too. Pure.

use std::collections::HashSet;

use super::nft::{Chain, Rule, RuleVerdict};
use crate::model::{Entrance, Jump};

/// The place for an exception from a rule, or the policy, of `chain`, which was reached from `base` along `path`: chains from
/// one to the other, empty where there are several ways. All chains and rules are those of its table.
pub fn entrance(chains: &[&Chain], rules: &[&Rule], (base, chain): (&str, &str), path: &[String]) -> Entrance {
    let hook_of = |name: &str| chains.iter().find(|chain| chain.name == name).and_then(|chain| chain.hook);
    let hook = hook_of(base);
    let others: Vec<&str> = chains
        .iter()
        .filter(|chain| chain.hook.is_some() && chain.hook != hook)
        .map(|chain| chain.name.as_str())
        .collect();
    let elsewhere = reached(rules, &others);
    // Nothing leads to a base chain.
    let is_own = |name: &str| hook_of(name).is_some() || !is_implicit(name) && !elsewhere.is_shared(name);
    if is_own(chain) {
        return Entrance::Own;
    }
    for (at, name) in path.iter().enumerate().rev().skip(1) {
        if is_own(name) {
            return before(rules, name, |to| path.get(at + 1).is_some_and(|next| next == to));
        }
    }
    // There are several ways: in front of the first of them.
    before(rules, base, |to| reached(rules, &[to]).has(chain))
}

/// In front of the first rule of a chain that leads on so.
fn before(rules: &[&Rule], chain: &str, leads: impl Fn(&str) -> bool) -> Entrance {
    let mut own = rules.iter().filter(|rule| rule.chain == chain).zip(1..);
    let found = own.find(|(rule, _)| {
        rule.verdicts.iter().any(|verdict| match verdict {
            RuleVerdict::Chain(to) => leads(to),
            RuleVerdict::Map => true,
            RuleVerdict::Drop | RuleVerdict::Reject | RuleVerdict::Translate(_) => false,
        })
    });
    found.map_or(Entrance::Nowhere("no rule that leads to it is known".to_owned()), |(rule, position)| {
        Entrance::Before(Jump { chain: chain.to_owned(), handle: rule.handle, position })
    })
}

/// A chain without a name of its own, made by `jump { … }`: no rule can be put into it.
fn is_implicit(name: &str) -> bool {
    name.strip_prefix("__chain").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Chains that rules lead to.
struct Reached {
    chains: HashSet<String>,
    /// A map of verdicts is among them, which may lead to any.
    has_maps: bool,
}

impl Reached {
    fn has(&self, chain: &str) -> bool {
        self.chains.contains(chain)
    }

    fn is_shared(&self, chain: &str) -> bool {
        self.has(chain) || self.has_maps
    }
}

fn reached(rules: &[&Rule], from: &[&str]) -> Reached {
    let mut all = Reached { chains: from.iter().map(|name| (*name).to_owned()).collect(), has_maps: false };
    let mut waiting: Vec<String> = all.chains.iter().cloned().collect();
    while let Some(chain) = waiting.pop() {
        for verdict in rules.iter().filter(|rule| rule.chain == chain).flat_map(|rule| &rule.verdicts) {
            match verdict {
                RuleVerdict::Chain(to) if all.chains.insert(to.clone()) => waiting.push(to.clone()),
                RuleVerdict::Map => all.has_maps = true,
                _ => {}
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::netfilter::{family, hook};

    fn chain(name: &str, hook: Option<u32>) -> Chain {
        let (table, priority) = ("t".to_owned(), hook.map(|_| 0));
        Chain { family: family::INET, table, name: name.to_owned(), handle: 1, hook, priority, policy: None }
    }

    fn rule(chain: &str, handle: u64, verdict: RuleVerdict) -> Rule {
        let (table, chain) = ("t".to_owned(), chain.to_owned());
        Rule { family: family::INET, table, chain, handle, verdicts: vec![verdict], packets: None }
    }

    fn of(rules: &[Rule], chain_of_the_rule: &str, path: &[&str]) -> Entrance {
        let chains = [
            chain("in", Some(hook::LOCAL_IN)),
            chain("out", Some(hook::LOCAL_OUT)),
            chain("a", None),
            chain("b", None),
        ];
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        let rules: Vec<&Rule> = rules.iter().collect();
        entrance(&chains.iter().collect::<Vec<_>>(), &rules, ("out", chain_of_the_rule), &path)
    }

    fn to(chain: &str) -> RuleVerdict {
        RuleVerdict::Chain(chain.to_owned())
    }

    fn before(chain: &str, handle: u64, position: usize) -> Entrance {
        Entrance::Before(Jump { chain: chain.to_owned(), handle, position })
    }

    #[test]
    fn a_chain_that_both_directions_lead_to() {
        let droplog = [
            rule("in", 1, to("a")),
            rule("out", 2, RuleVerdict::Reject),
            rule("out", 3, to("a")),
            rule("a", 4, RuleVerdict::Drop),
        ];
        assert_eq!(of(&droplog, "a", &["out", "a"]), before("out", 3, 2));
        assert_eq!(of(&droplog, "out", &["out"]), Entrance::Own);
        // Only the inner one is shared.
        let inner =
            [rule("in", 1, to("b")), rule("out", 2, to("a")), rule("a", 3, to("b")), rule("b", 4, RuleVerdict::Drop)];
        assert_eq!(of(&inner, "b", &["out", "a", "b"]), before("a", 3, 1));
        assert_eq!(of(&inner, "a", &["out", "a"]), Entrance::Own);
    }

    #[test]
    fn several_ways_maps_and_chains_without_a_name() {
        let two = [rule("in", 1, to("b")), rule("out", 2, to("a")), rule("out", 3, to("b")), rule("a", 4, to("b"))];
        assert_eq!(of(&two, "b", &[]), before("out", 2, 1));
        let map = [rule("in", 1, RuleVerdict::Map), rule("out", 2, to("a")), rule("a", 3, RuleVerdict::Drop)];
        assert_eq!(of(&map, "a", &["out", "a"]), before("out", 2, 1));
        assert_eq!(of(&map, "out", &["out"]), Entrance::Own);
        let implicit = [rule("out", 2, to("__chain3")), rule("__chain3", 3, RuleVerdict::Drop)];
        assert_eq!(of(&implicit, "__chain3", &["out", "__chain3"]), before("out", 2, 1));
        assert!(matches!(of(&[], "__chain3", &[]), Entrance::Nowhere(_)));
        assert!(!is_implicit("__chain") && !is_implicit("__chains"));
    }
}

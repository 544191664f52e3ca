//! What two snapshots of a namespace's ruleset differ by, in nft's words and in those of front ends.

use std::{collections::HashMap, time::Instant};

use super::Ruleset;
use crate::{
    firewall::{
        files::Root,
        front_end,
        netfilter::{DROP, family},
        nft::{Chain, Rule, Table},
    },
    model::{Difference, NamedRule, Statement, WantedRule},
};

/// Rules of each kind that a difference shows.
const MAX_TOLD: usize = 8;
/// Rules of each kind whose texts are compared: a front end that loads its rules anew makes each of them again.
const MAX_COMPARED: usize = 512;

impl Ruleset {
    /// What differs from an earlier snapshot of the same namespace. Texts are waited for until then; front ends' files are looked
    /// for below `roots`.
    pub fn difference(
        &mut self,
        earlier: &mut Self,
        deadline: Instant,
        roots: &mut dyn FnMut() -> Vec<Root>,
    ) -> Difference {
        let (new, gone) = (self.missing_in(earlier), earlier.missing_in(self));
        let (mut rules_added, mut rules_removed, mut remade) = (new.len(), gone.len(), 0);
        let (mut new, mut gone) = if new.len().max(gone.len()) <= MAX_COMPARED {
            let mut new = self.told(new, deadline);
            let mut gone = earlier.told(gone, deadline);
            // A rule that was made again with the same words is no new one.
            new.retain(|(_, text)| match gone.iter().position(|(_, other)| other == text) {
                Some(same) => {
                    gone.remove(same);
                    false
                }
                None => true,
            });
            remade = rules_added - new.len();
            (rules_added, rules_removed) = (new.len(), gone.len());
            (new, gone)
        } else {
            let first = |all: Vec<usize>| all.into_iter().take(MAX_TOLD).collect();
            (self.told(first(new), deadline), earlier.told(first(gone), deadline))
        };
        new.truncate(MAX_TOLD);
        gone.truncate(MAX_TOLD);
        let (mut statements, mut stated): (Vec<String>, usize) = (Vec::new(), 0);
        for (ruleset, rules, verb) in [(&*self, &new, "added"), (&*earlier, &gone, "removed")] {
            for words in rules.iter().filter_map(|(index, _)| ruleset.in_words(*index, verb, roots)) {
                stated += 1;
                if !statements.contains(&words) {
                    statements.push(words);
                }
            }
        }
        let policy = |chain: &Chain| match chain.policy {
            Some(DROP) => "drop",
            _ => "accept",
        };
        let policies = self.chains.iter().filter(|chain| chain.hook.is_some()).filter_map(|chain| {
            let same =
                |other: &&Chain| (other.family, &other.table, &other.name) == (chain.family, &chain.table, &chain.name);
            let before = match earlier.chains.iter().find(same) {
                Some(other) => policy(other),
                None if policy(chain) == "drop" => "new",
                None => "accept",
            };
            let place = format!("{} {} {}", family::name(chain.family), chain.table, chain.name);
            (before != policy(chain)).then(|| format!("{place}: {before} → {}", policy(chain)))
        });
        let is_left = |gone: &&Chain| {
            self.chains
                .iter()
                .any(|chain| (chain.family, &chain.table, &chain.name) == (gone.family, &gone.table, &gone.name))
        };
        let gone_policies = earlier
            .chains
            .iter()
            .filter(|chain| chain.hook.is_some() && policy(chain) == "drop" && !is_left(chain))
            .map(|chain| format!("{} {} {}: drop → gone", family::name(chain.family), chain.table, chain.name));
        let policies: Vec<String> = policies.chain(gone_policies).take(MAX_TOLD).collect();
        Difference {
            since: earlier.generation,
            generation: self.generation,
            policies,
            added: new.into_iter().map(|(_, text)| text).collect(),
            removed: gone.into_iter().map(|(_, text)| text).collect(),
            rules_added,
            rules_removed,
            statements,
            stated,
            remade,
        }
    }

    /// Gives the rules of a copy the texts of those that they were made from: sets without a name have one in a copy. `handles` are
    /// the original's by family, table and handle in the copy.
    pub fn read_as(&mut self, original: &mut Self, handles: &HashMap<(String, String, u64), u64>, deadline: Instant) {
        let of = |tables: &[Table], family: &str, name: &str| {
            let is_it = |table: &&Table| table.name == name && family::name(table.family) == family;
            tables.iter().find(is_it).map(|table| table.handle)
        };
        let (Some(own), Some(other)) = (&mut self.listing, &mut original.listing) else { return };
        let same = handles.iter().filter_map(|((family, table, rule), there)| {
            let table = (of(&self.tables, family, table)?, of(&original.tables, family, table)?);
            Some(((table.0, *rule), (table.1, *there)))
        });
        own.take_texts(other, same, deadline);
    }

    /// ``ufw added `allow out 443/tcp` ``; `None` for a rule of no front end's.
    fn in_words(&self, index: usize, verb: &str, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<String> {
        let rule = self.rules.get(index)?;
        let table = self.tables.iter().find(|table| table.family == rule.family && table.name == rule.table)?;
        let is_its = |chain: &&Chain| chain.family == rule.family && chain.table == rule.table && chain.hook.is_some();
        let leads = |chain: &&Chain| self.path(table, &chain.name, &rule.chain).is_some();
        let base = self.chains.iter().filter(is_its).find(leads)?;
        let of_its_chain =
            |other: &&Rule| (other.family, &other.table, &other.chain) == (rule.family, &rule.table, &rule.chain);
        let position = self.rules.iter().filter(of_its_chain).position(|other| other.handle == rule.handle)?;
        let text = self.listing.as_ref().and_then(|listing| listing.known()?.text(table.handle, rule.handle));
        let named = NamedRule {
            chain: rule.chain.clone(),
            handle: Some(rule.handle),
            position: Some(position + 1),
            text: text.map(str::to_owned),
            ..Self::policy(table, base)
        };
        let wanted = WantedRule {
            netns: 0,
            netns_cookie: 0,
            function: 0,
            table: table.handle,
            chain: base.handle,
            rule: rule.handle,
            hook: None,
            v6: None,
        };
        let known = self.named.get(&(table.handle, rule.handle)).cloned();
        let statement = known.or_else(|| self.statement(&wanted, &named, roots));
        // What front ends' files do not have is not their statement.
        let statement = statement.filter(|of| of.ruleset != front_end::NFTABLES && of.note.is_none())?;
        let Statement { ruleset, name, .. } = statement;
        Some(if ruleset == front_end::IPTABLES {
            // A line of iptables' has its place in front.
            let program = if rule.family == family::IPV6 { "ip6tables" } else { "iptables" };
            let table = if rule.table == "filter" { String::new() } else { format!("-t {} ", rule.table) };
            let name = name.trim_start_matches("-A ").trim_start_matches(&rule.chain).trim_start();
            format!("{program} {verb} `{table}-A {} {name}`", rule.chain)
        } else {
            format!("{ruleset} {verb} `{name}`")
        })
    }

    /// Rules that another snapshot does not have.
    fn missing_in(&self, other: &Self) -> Vec<usize> {
        let mut missing: Vec<usize> = self
            .by_handle
            .iter()
            .filter(|(handles, _)| !other.by_handle.contains_key(handles))
            .map(|(_, index)| *index)
            .collect();
        missing.sort_unstable();
        missing
    }

    /// Rules with their places and texts.
    fn told(&mut self, indexes: Vec<usize>, deadline: Instant) -> Vec<(usize, String)> {
        let tables: HashMap<(u8, &str), u64> =
            self.tables.iter().map(|table| ((table.family, table.name.as_str()), table.handle)).collect();
        let listing = self.listing.as_mut().and_then(|listing| listing.until(deadline));
        indexes
            .into_iter()
            .filter_map(|index| Some((index, self.rules.get(index)?)))
            .map(|(index, rule)| {
                let place = format!("{} {} {}", family::name(rule.family), rule.table, rule.chain);
                let table = tables.get(&(rule.family, rule.table.as_str()));
                let text = table.zip(listing).and_then(|(table, listing)| listing.text(*table, rule.handle));
                let words = match text {
                    Some(text) => format!("{place}: {text}"),
                    None => format!("{place}: handle {}", rule.handle),
                };
                (index, words)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{
        nft::RuleVerdict as Does,
        ruleset::tests::{rule, ruleset},
    };

    #[test]
    fn two_rulesets_differ_by_rules_and_policies() {
        let (mut before, mut after) = (ruleset(), ruleset());
        assert_eq!(after.difference(&mut before, Instant::now(), &mut Vec::new), Difference::default());
        after.rules.remove(1);
        after.rules.push(rule("a", 20, Does::Drop));
        after.chains[1].policy = Some(DROP);
        let mut after = Ruleset { generation: 3, ..Ruleset::of(after.tables, after.chains, after.rules) };
        let difference = after.difference(&mut before, Instant::now(), &mut Vec::new);
        assert_eq!(
            (difference.added, difference.removed),
            (vec!["inet t a: handle 20".to_owned()], vec!["inet t out: handle 11".to_owned()])
        );
        assert_eq!((difference.rules_added, difference.rules_removed), (1, 1));
        assert_eq!(difference.policies, ["inet t forward: accept → drop"]);
        assert_eq!((difference.since, difference.generation), (0, 3));
    }
}

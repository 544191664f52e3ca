//! Rules of iptables-legacy as people know them: as `iptables-legacy-save` writes them, and in their front end's words.

use std::{collections::BTreeSet, time::Instant};

use anyhow::Result;

use super::{
    super::{entrance::entrance, nft::Chain},
    Table,
};
use crate::{
    firewall::{
        files::Root,
        front_end::{self, Place},
        listing::{self, Pending},
        netfilter::family,
        nft::Rule,
    },
    model::{Backend, NamedRule, Statement, Verdict},
};

/// The texts of tables, which `iptables-legacy-save` may still be writing.
pub struct Saved(Vec<Pending>);

/// A chain as iptables writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainText {
    /// Family of its table.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its rules, behind `-A CHAIN`.
    pub rules: Vec<String>,
}

/// Where a rule, or a policy, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its chain.
    pub chain: String,
    /// Its place in it, from 1 on; `None` for the policy.
    pub position: Option<usize>,
    /// Chains from the built-in one on, where they are known.
    pub path: Vec<String>,
    /// What it does.
    pub verdict: Verdict,
}

impl Saved {
    /// Has them written in the namespace of the calling thread.
    pub fn begin(tables: &[Table]) -> Self {
        let families: BTreeSet<u8> = tables.iter().map(|table| table.layout.family).collect();
        Self(families.into_iter().map(listing::begin_legacy).collect())
    }

    /// All rules, by chain; `None` where they are not to be had by then.
    pub fn all(&mut self, deadline: Instant) -> Option<Vec<ChainText>> {
        let mut all = Vec::new();
        for pending in &mut self.0 {
            let listing = pending.until(deadline)?;
            all.extend(listing.saved().map(|(family, table, chain, rules)| ChainText {
                family,
                table: table.to_owned(),
                chain: chain.to_owned(),
                rules: rules.to_vec(),
            }));
        }
        Some(all)
    }

    /// A rule or policy of a table. Its text is waited for until then.
    pub fn named(&mut self, table: &Table, spot: Spot, deadline: Instant) -> Result<NamedRule> {
        let (chains, rules) = table.as_nft()?;
        let (all_chains, all): (Vec<&Chain>, Vec<&Rule>) = (chains.iter().collect(), rules.iter().collect());
        let base = spot.path.first().unwrap_or(&spot.chain);
        let entrance = entrance(&all_chains, &all, (base, &spot.chain), &spot.path);
        let here = rules.iter().filter(|rule| rule.chain == spot.chain).count();
        let text = spot.position.and_then(|position| {
            let mut all = self.0.iter_mut().filter_map(|listing| listing.until(deadline));
            all.find_map(|listing| {
                listing.iptables(table.layout.family, &table.name, &spot.chain, position, here).map(str::to_owned)
            })
        });
        let sees_forwarded = !["INPUT", "OUTPUT"].contains(&base.as_str());
        Ok(NamedRule {
            backend: Backend::IptablesLegacy,
            family: family::name(table.layout.family).to_owned(),
            table: table.name.clone(),
            chain: spot.chain,
            handle: None,
            position: spot.position,
            text: if spot.position.is_none() { Some("policy drop".to_owned()) } else { text },
            path: spot.path,
            verdict: Some(spot.verdict),
            ruleset_sha256: None,
            statement: None,
            translates: None,
            entrance,
            packet: None,
            leads_to: None,
            translated: None,
            sees_forwarded,
        })
    }
}

impl Table {
    /// Whether a rule is of this table.
    pub fn has(&self, named: &NamedRule) -> bool {
        family::name(self.layout.family) == named.family && self.name == named.table
    }

    /// One of its rules or policies in the words of its front end, whose files are looked for below `roots`.
    pub fn statement(&self, named: &NamedRule, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        let (chains, rules) = self.as_nft().ok()?;
        let here: Vec<&Rule> = rules.iter().filter(|rule| rule.chain == named.chain).collect();
        let place = Place {
            named,
            base: named.path.first().unwrap_or(&named.chain),
            rules: &here,
            all: &rules.iter().collect::<Vec<_>>(),
            chains: &chains.iter().collect::<Vec<_>>(),
            saved: named.position.and(named.text.as_deref()),
        };
        front_end::statement(&place, roots)
    }
}

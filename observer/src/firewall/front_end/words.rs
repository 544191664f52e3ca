//! What a front end is asked to say of a rule: where the rule is, and the statement that it was made of.

use super::is_iptables;
use crate::{
    firewall::nft::{Chain, Rule},
    model::{NamedRule, Statement},
};

/// Where a rule is.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The rule, or the policy.
    pub named: &'a NamedRule,
    /// The base chain from which it was reached.
    pub base: &'a str,
    /// All rules of its chain, in order.
    pub rules: &'a [&'a Rule],
    /// All rules of its table, each chain's in order.
    pub all: &'a [&'a Rule],
    /// All chains of its table.
    pub chains: &'a [&'a Chain],
    /// The same in iptables' own words, where iptables wrote it.
    pub saved: Option<&'a str>,
}

impl Place<'_> {
    /// Its place in the chain, from 0 on.
    pub(super) fn index(&self) -> Option<usize> {
        self.named.position?.checked_sub(1)
    }

    /// A table has a chain whose name begins so.
    pub(super) fn has_chain(&self, prefix: &str) -> bool {
        self.chains.iter().any(|chain| chain.name.starts_with(prefix))
    }

    /// It is one of iptables' own tables.
    pub(super) fn is_iptables(&self) -> bool {
        self.chains.iter().any(|chain| is_iptables(chain))
    }

    /// The rule as it is in force, in words.
    pub(super) fn text(&self) -> Option<String> {
        self.saved.map(str::to_owned).or_else(|| self.named.text.clone())
    }

    /// The statement of a rule in a table whose name says whose it is.
    pub(super) fn in_a_table_of(&self, owner: &str, table: &str) -> Option<Statement> {
        if self.named.table != table {
            return None;
        }
        let number = self.named.position.map(|position| format!(", rule {position}")).unwrap_or_default();
        Some(plain(owner, format!("{owner}'s chain {}{number}", self.named.chain), self.text()?))
    }

    /// The statement of a rule in a chain whose name says whose it is.
    pub(super) fn in_a_chain_of(&self, owner: &str, prefixes: &[&str]) -> Option<Statement> {
        let chain = &self.named.chain;
        if !prefixes.iter().any(|prefix| chain.starts_with(prefix)) {
            return None;
        }
        let number = self.named.position.map(|position| format!(", rule {position}")).unwrap_or_default();
        Some(plain(owner, format!("{owner}'s chain {chain}{number}"), self.text()?))
    }
}

/// A statement without a number, a comment or a note.
pub(super) fn plain(ruleset: &str, what: String, name: String) -> Statement {
    Statement { ruleset: ruleset.to_owned(), what, name, number: None, comment: None, note: None }
}

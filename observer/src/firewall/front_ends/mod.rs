//! What a rule is in the words of whoever manages it: the statement that an administrator once made, and where it is found.
//!
//! A front end's files say what its rules were made of; they are believed only where they agree with the rules in force.

mod chains;
mod firewalld;
mod iptables;
mod ufw;

use super::{
    files::Root,
    inventory::is_iptables,
    nft::{Chain, Rule, Verdict},
};
use crate::model::{NamedRule, Statement};

pub use chains::OWNERS;

/// Where a rule is.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The rule, or the policy.
    pub named: &'a NamedRule,
    /// The base chain from which it was reached.
    pub base: &'a str,
    /// All rules of its chain, in order.
    pub rules: &'a [&'a Rule],
    /// All chains of its table.
    pub chains: &'a [&'a Chain],
    /// The same in iptables' own words, where iptables wrote it.
    pub saved: Option<&'a str>,
}

impl Place<'_> {
    /// Its place in the chain, from 0 on.
    fn index(&self) -> Option<usize> {
        self.named.position?.checked_sub(1)
    }

    /// A table has a chain whose name begins so.
    fn has_chain(&self, prefix: &str) -> bool {
        self.chains.iter().any(|chain| chain.name.starts_with(prefix))
    }

    /// It is one of iptables' own tables.
    fn is_iptables(&self) -> bool {
        self.chains.iter().any(|chain| is_iptables(chain))
    }

    /// The rule as it is in force, in words.
    fn text(&self) -> Option<String> {
        self.saved.map(str::to_owned).or_else(|| self.named.text.clone())
    }
}

/// The statement of a rule or policy, if a front end that is known has it. `roots` are the folders in which its files may
/// be, the likeliest first.
pub fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    ufw::statement(place, roots)
        .or_else(|| firewalld::statement(place, roots))
        .or_else(|| chains::statement(place))
        .or_else(|| iptables::statement(place))
}

/// What a rule does, as far as its line in a file of iptables' says it too.
#[derive(Debug, PartialEq, Eq)]
enum Does<'a> {
    Drops,
    Rejects,
    Leads(&'a str),
    /// Accepts, returns, marks, logs.
    Else,
}

impl<'a> Does<'a> {
    fn of(rule: &'a Rule) -> Self {
        rule.verdicts.first().map_or(Self::Else, |verdict| match verdict {
            Verdict::Drop => Self::Drops,
            Verdict::Reject => Self::Rejects,
            Verdict::Chain(chain) => Self::Leads(chain),
            Verdict::Map => Self::Else,
        })
    }

    fn of_words(words: &'a [String]) -> Self {
        let target =
            words.windows(2).find(|pair| ["-j", "-g"].contains(&pair[0].as_str())).map(|pair| pair[1].as_str());
        match target {
            Some("DROP") => Self::Drops,
            Some("REJECT") => Self::Rejects,
            // iptables' own are in capitals.
            Some(target) if target.bytes().any(|byte| byte.is_ascii_lowercase()) => Self::Leads(target),
            _ => Self::Else,
        }
    }
}

/// Words that a line of iptables' and the text of the rule that was made of it share: addresses and ports.
fn shares_words(words: &[String], text: &str) -> bool {
    const OPTIONS: [&str; 10] =
        ["--dport", "--sport", "--dports", "--sports", "--ports", "-d", "-s", "--destination-port", "-o", "-i"];
    words
        .windows(2)
        .filter(|pair| OPTIONS.contains(&pair[0].as_str()))
        .flat_map(|pair| pair[1].split(','))
        .map(|word| word.trim_end_matches("/32").trim_end_matches("/128"))
        // Ranges, names of ports and abbreviated addresses are written in several ways.
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
        .all(|word| text.contains(word))
}

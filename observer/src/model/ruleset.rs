//! A change of firewall rules, as it was heard and as it is reported.

use serde::{Deserialize, Serialize};

use super::{
    decider::Actor,
    rule::Backend,
    sender::{Ancestor, Sender},
    share::Share,
};

/// What the kernel announced of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// When that was heard, nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Number of the ruleset from then on; `None` where announcements were lost.
    pub generation: Option<u32>,
    /// Who made it.
    pub by: Option<Actor>,
}

/// What differs in a ruleset from an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Difference {
    /// Number of the earlier one.
    pub since: u32,
    /// Number of the later one.
    pub generation: u32,
    /// How many rules are new.
    pub rules_added: usize,
    /// How many are gone.
    pub rules_removed: usize,
    /// Rules that are new, each with its place in front, the first ones.
    pub added: Vec<String>,
    /// Rules that are gone, likewise.
    pub removed: Vec<String>,
    /// Chains whose policy is another one, and which.
    pub policies: Vec<String>,
    /// Rules that are new or gone in their front end's words, each once: ``ufw added `allow out 443/tcp` ``.
    pub statements: Vec<String>,
    /// How many rules these are of.
    pub stated: usize,
    /// Rules that were made again with the same words, perhaps in another place.
    pub remade: usize,
}

/// A change of firewall rules, as it is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RulesetChange {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Words that go before a command so that it is run in that namespace, where it is not observer's own.
    pub entering: Option<String>,
    /// It is not observer's own.
    pub is_elsewhere: bool,
    /// The ruleset.
    pub ruleset: ChangedRuleset,
    /// Who changed it.
    pub sender: Sender,
    /// Whose namespace it is.
    pub share: Share,
}

/// `egress.ruleset`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ChangedRuleset {
    /// Whose it is.
    pub backend: Backend,
    /// Its number from then on; absent where announcements were lost.
    pub generation: Option<u32>,
    /// Who changed it, as the kernel says.
    pub changed_by: Option<Actor>,
    /// Changes in a row that this line reports the result of, itself among them.
    pub changes: u32,
    /// What changed, where the rules were known before and this is the last of several changes.
    pub difference: Option<Difference>,
}

impl ChangedRuleset {
    /// What was done, in a sentence.
    pub fn sentence(&self) -> String {
        format!("{} changed the firewall rules{}", self.who(), self.what())
    }

    fn who(&self) -> String {
        match &self.changed_by {
            Some(Actor { pid, name: Some(name) }) => format!("{name} (pid {pid})"),
            Some(Actor { pid, name: None }) => format!("process {pid}"),
            None => "somebody".to_owned(),
        }
    }

    /// The same in short, where it is not what is reported about: by whom, up to whoever ran the program, and what changed by this change alone.
    pub fn in_short(&self, ancestry: &[Ancestor]) -> String {
        const MAX_PARENTS: usize = 2;
        let mut names = ancestry.iter().map(|ancestor| ancestor.name.as_str());
        let who = match names.next() {
            Some(first) => std::iter::once(first).chain(names.take(MAX_PARENTS)).collect::<Vec<_>>().join(" ← "),
            None => self.who(),
        };
        let difference = self.difference.as_ref().filter(|difference| self.made(difference));
        let what = difference.map(|difference| format!(": {}", difference.words()));
        format!("{who} changed the firewall rules{}", what.unwrap_or_default())
    }

    /// What changed in the front end's words, where these say all of it.
    pub fn statements(&self) -> Option<String> {
        let difference = self.difference.as_ref().filter(|difference| self.made(difference))?;
        (!difference.statements.is_empty()).then(|| difference.words())
    }

    /// All of a difference is of these changes: no earlier one is in it.
    fn made(&self, difference: &Difference) -> bool {
        self.generation == Some(difference.generation)
            && difference.generation.wrapping_sub(difference.since) <= self.changes
    }

    /// What changed, as the end of a sentence; empty where that is not known.
    pub fn what(&self) -> String {
        match &self.difference {
            None => String::new(),
            Some(difference) if self.made(difference) => format!(": {}", difference.words()),
            // Earlier changes were not compared.
            Some(difference) => format!("; with earlier changes: {}", difference.words()),
        }
    }
}

impl Difference {
    /// In words: the front end's where they are known, else the first rule of each kind.
    fn words(&self) -> String {
        /// Statements that are named.
        const MOST: usize = 3;
        let mut parts: Vec<String> = Vec::new();
        if !self.statements.is_empty() {
            parts.extend(self.statements.iter().take(MOST).cloned());
            let more = self.statements.len().saturating_sub(MOST);
            parts.extend((more > 0).then(|| format!("{more} more statements")));
            let others = (self.rules_added + self.rules_removed).saturating_sub(self.stated);
            parts.extend(match others {
                0 => None,
                1 => Some("1 other rule changed".to_owned()),
                others => Some(format!("{others} other rules changed")),
            });
            parts.extend(self.policies.iter().map(|policy| format!("policy of {policy}")));
            return parts.join(", ");
        }
        for (count, what, first) in
            [(self.rules_added, "added", self.added.first()), (self.rules_removed, "removed", self.removed.first())]
        {
            let rules = if count == 1 { "1 rule".to_owned() } else { format!("{count} rules") };
            match first {
                _ if count == 0 => {}
                Some(first) if count == 1 => parts.push(format!("{rules} {what} ({first})")),
                Some(first) => parts.push(format!("{rules} {what} ({first}, …)")),
                None => parts.push(format!("{rules} {what}")),
            }
        }
        parts.extend(self.policies.iter().map(|policy| format!("policy of {policy}")));
        match (parts.is_empty(), self.remade) {
            (false, _) => parts.join(", "),
            (true, 0) => "no rule or policy differs".to_owned(),
            (true, remade) => {
                format!("no new rule or policy; {remade} rules were made again, perhaps in another order")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_in_words() {
        let mut ruleset = ChangedRuleset {
            backend: Backend::Nft,
            generation: Some(4),
            changed_by: None,
            changes: 1,
            difference: None,
        };
        assert_eq!(ruleset.sentence(), "somebody changed the firewall rules");
        ruleset.changed_by = Some(Actor { pid: 7, name: Some("nft".to_owned()) });
        ruleset.difference = Some(Difference {
            added: vec!["inet t o: drop".to_owned()],
            since: 3,
            generation: 4,
            rules_added: 2,
            rules_removed: 1,
            policies: vec!["inet t o: accept → drop".to_owned()],
            ..Difference::default()
        });
        assert_eq!(
            ruleset.sentence(),
            "nft (pid 7) changed the firewall rules: 2 rules added (inet t o: drop, …), 1 rule removed, policy of inet t o: \
             accept → drop"
        );
        ruleset.generation = Some(5);
        assert!(ruleset.sentence().starts_with("nft (pid 7) changed the firewall rules; with earlier changes: "));
        let statements = vec!["ufw added `allow out 443/tcp`".to_owned()];
        let added =
            Difference { since: 3, generation: 5, statements, stated: 2, rules_added: 2, ..Difference::default() };
        ruleset.difference = Some(added.clone());
        ruleset.changes = 2;
        assert_eq!(ruleset.sentence(), "nft (pid 7) changed the firewall rules: ufw added `allow out 443/tcp`");
        let policies = vec!["ip filter OUTPUT: accept → drop".to_owned()];
        ruleset.difference = Some(Difference { rules_added: 3, policies, ..added });
        assert!(ruleset.sentence().ends_with(
            "ufw added `allow out 443/tcp`, 1 other rule changed, policy of ip filter OUTPUT: accept → drop"
        ));
        ruleset.difference = Some(Difference { since: 3, generation: 5, remade: 4, ..Difference::default() });
        assert!(ruleset.sentence().ends_with("4 rules were made again, perhaps in another order"));
    }
}

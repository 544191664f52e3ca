//! What in a namespace's rules can stop what goes out: policies, and rules that drop or reject, as far as the chains on
//! the way out lead to them. Which packets a rule matches is not looked at.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    files::Root,
    inventory::{legacy_tables, nftables_in_use},
    netfilter::{DROP, family, hook},
    nft::{Chain, Rule, Verdict},
    ruleset::Ruleset,
};
use crate::model::{Statement, WantedRule};

/// How many are told one by one.
const MAX_TOLD: usize = 16;
/// Time for all texts together.
const PATIENCE: Duration = Duration::from_millis(500);

/// One thing that can stop a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deny {
    /// `ip filter ufw-user-output`: family, table and chain.
    pub place: String,
    /// `output`, `postrouting` or `egress`.
    pub hook: String,
    /// The rule's handle; `None` for the chain's policy.
    pub handle: Option<u64>,
    /// Family of its table, as `nft` writes it.
    pub family: String,
    /// `drop` or `reject`.
    pub verdict: String,
    /// The rule as `nft` writes it; `None` where it cannot be asked.
    pub text: Option<String>,
    /// The same in its front end's words; `None` where none is known for it.
    pub statement: Option<Statement>,
    /// Packets that its counter counted; `None` without one.
    pub packets: Option<u64>,
    /// Handle of the base chain that leads there.
    #[serde(skip)]
    base: u64,
}

/// All of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denies {
    /// Policies, then the rules with most packets.
    pub denies: Vec<Deny>,
    /// How many there are.
    pub total: usize,
    /// Rules with a verdict map, which may deny too.
    pub maps: usize,
    /// iptables-legacy has tables, which are not looked into.
    pub legacy: bool,
}

/// Reads the namespace of the calling thread; files of front ends are looked for below `roots`.
pub fn read(roots: &mut dyn FnMut() -> Vec<Root>) -> Result<Denies> {
    let mut ruleset = if nftables_in_use() { Some(Ruleset::read()?) } else { None };
    let mut denies = ruleset.as_ref().map_or_else(Denies::default, |ruleset| walk(ruleset.chains(), ruleset.all()));
    denies.legacy = !legacy_tables().is_empty();
    denies.total = denies.denies.len();
    denies.denies.sort_by_key(|deny| (deny.handle.is_some(), std::cmp::Reverse(deny.packets)));
    denies.denies.truncate(MAX_TOLD);
    let deadline = Instant::now() + PATIENCE;
    if let Some(ruleset) = &mut ruleset {
        for deny in &mut denies.denies {
            let mut place = deny.place.split(' ');
            let table = place.next().zip(place.next()).and_then(|(family, name)| ruleset.table(family, name));
            let Some(table) = table else { continue };
            let wanted = WantedRule {
                table,
                chain: deny.base,
                rule: deny.handle.unwrap_or(0),
                netns: 0,
                netns_cookie: 0,
                function: 0,
                hook: None,
                v6: None,
            };
            let Some(named) = ruleset.named(&wanted, deadline, Some(&mut *roots)) else { continue };
            deny.text = named.handle.and(named.text);
            deny.statement = named.statement;
        }
    }
    Ok(denies)
}

/// From every chain on the way out along jumps. Pure.
fn walk(chains: &[Chain], rules: &[Rule]) -> Denies {
    let mut found = Denies::default();
    for base in chains {
        let Some(hook) = base.hook.and_then(|hook| way_out(base.family, hook)) else { continue };
        let mut waiting = vec![base.name.as_str()];
        let mut seen = waiting.clone();
        while let Some(chain) = waiting.pop() {
            let here = rules
                .iter()
                .filter(|rule| rule.family == base.family && rule.table == base.table && rule.chain == chain);
            for rule in here {
                for verdict in &rule.verdicts {
                    match verdict {
                        Verdict::Drop | Verdict::Reject => found.denies.push(Deny {
                            place: place(base.family, &base.table, chain),
                            hook: hook.to_owned(),
                            handle: Some(rule.handle),
                            family: family::name(base.family).to_owned(),
                            verdict: if *verdict == Verdict::Drop { "drop" } else { "reject" }.to_owned(),
                            text: None,
                            statement: None,
                            packets: rule.packets,
                            base: base.handle,
                        }),
                        Verdict::Chain(to) => {
                            if !seen.contains(&to.as_str()) {
                                seen.push(to);
                                waiting.push(to);
                            }
                        }
                        Verdict::Map => found.maps += 1,
                    }
                }
            }
        }
        if base.policy == Some(DROP) {
            found.denies.push(Deny {
                place: place(base.family, &base.table, &base.name),
                hook: hook.to_owned(),
                handle: None,
                family: family::name(base.family).to_owned(),
                verdict: "drop".to_owned(),
                text: None,
                statement: None,
                packets: None,
                base: base.handle,
            });
        }
    }
    found
}

/// Hooks that a packet passes that is sent here.
fn way_out(family: u8, hook: u32) -> Option<&'static str> {
    hook::name(family, hook).filter(|name| ["output", "postrouting", "egress"].contains(name))
}

fn place(family: u8, table: &str, chain: &str) -> String {
    format!("{} {table} {chain}", family::name(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str, hook: Option<u32>, policy: Option<u32>) -> Chain {
        Chain {
            family: family::IPV4,
            table: "filter".to_owned(),
            name: name.to_owned(),
            handle: 1,
            hook,
            priority: None,
            policy,
        }
    }

    fn rule(chain: &str, handle: u64, verdict: Verdict) -> Rule {
        Rule {
            family: family::IPV4,
            table: "filter".to_owned(),
            chain: chain.to_owned(),
            handle,
            verdicts: vec![verdict],
            packets: None,
        }
    }

    #[test]
    fn only_what_the_way_out_leads_to() {
        let chains = [
            chain("INPUT", Some(1), Some(DROP)),
            chain("OUTPUT", Some(hook::LOCAL_OUT), Some(DROP)),
            chain("user", None, None),
            chain("lonely", None, None),
        ];
        let rules = [
            rule("INPUT", 1, Verdict::Drop),
            rule("OUTPUT", 2, Verdict::Chain("user".to_owned())),
            rule("OUTPUT", 3, Verdict::Map),
            rule("user", 4, Verdict::Reject),
            rule("user", 5, Verdict::Chain("OUTPUT".to_owned())),
            rule("lonely", 6, Verdict::Drop),
        ];
        let found = walk(&chains, &rules);
        let told: Vec<_> = found.denies.iter().map(|deny| (deny.handle, deny.verdict.as_str())).collect();
        assert_eq!(told, [(Some(4), "reject"), (None, "drop")]);
        assert_eq!((found.maps, found.denies[0].place.as_str()), (1, "ip filter user"));
    }
}

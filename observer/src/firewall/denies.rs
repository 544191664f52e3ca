//! What in a namespace's rules can block outbound traffic: policies, and rules that drop or reject, as far as the chains on
//! the way out lead to them. Which packets a rule matches is not looked at.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    files::Root,
    inventory::nftables_in_use,
    legacy,
    netfilter::{DROP, family, hook},
    nft::{Chain, RULESET, Rule, RuleVerdict, Snapshot},
    ruleset::{MAX_BYTES, Ruleset},
};
use crate::model::{self, Backend, Statement, WantedRule};

/// How many are reported one by one.
const MAX_TOLD: usize = 16;

/// One thing that can stop a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deny {
    /// `ip filter ufw-user-output`: family, table and chain.
    pub place: String,
    /// `output`, `postrouting` or `egress`.
    pub hook: String,
    /// The rule's handle, of iptables-legacy its place; `None` for the chain's policy.
    pub handle: Option<u64>,
    /// Which part of the kernel has it.
    pub backend: Backend,
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
    /// What can stop forwarded packets, such as those of containers.
    pub forwarded: Forwarded,
}

/// Rules and policies on the way of forwarded packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// Rules that drop or reject.
    pub rules: usize,
    /// Policies that drop.
    pub policies: usize,
    /// Chains that have them, each once.
    pub chains: Vec<String>,
}

/// Reads the namespace of the calling thread; files of front ends are looked for below `roots`.
pub fn read(patience: Duration, roots: &mut dyn FnMut() -> Vec<Root>) -> Result<Denies> {
    let mut ruleset = if nftables_in_use() { Some(Ruleset::read(MAX_BYTES)?) } else { None };
    let mut denies = ruleset.as_ref().map_or_else(Denies::default, |ruleset| walk(ruleset.chains(), ruleset.all()));
    let legacy = legacy::tables()?;
    for table in &legacy {
        let (chains, rules) = table.as_nft()?;
        let found = walk(&chains, &rules);
        let of_legacy = |deny| Deny { backend: Backend::IptablesLegacy, ..deny };
        denies.denies.extend(found.denies.into_iter().map(of_legacy));
    }
    let (out, forwarded): (Vec<Deny>, Vec<Deny>) = denies.denies.drain(..).partition(|deny| deny.hook != FORWARD);
    denies.denies = out;
    denies.forwarded = Forwarded::of(&forwarded);
    denies.total = denies.denies.len();
    denies.denies.sort_by_key(|deny| (deny.handle.is_some(), std::cmp::Reverse(deny.packets)));
    denies.denies.truncate(MAX_TOLD);
    let deadline = Instant::now() + patience;
    let mut saved = legacy::Saved::begin(&legacy);
    for deny in denies.denies.iter_mut().filter(|deny| deny.backend == Backend::IptablesLegacy) {
        say(deny, &legacy, &mut saved, deadline, roots)?;
    }
    if let Some(ruleset) = &mut ruleset {
        for deny in denies.denies.iter_mut().filter(|deny| deny.backend == Backend::Nft) {
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

impl Forwarded {
    fn of(denies: &[Deny]) -> Self {
        let policies = denies.iter().filter(|deny| deny.handle.is_none()).count();
        let mut chains: Vec<String> =
            denies.iter().filter_map(|deny| deny.place.rsplit(' ').next()).map(str::to_owned).collect();
        chains.sort_unstable();
        chains.dedup();
        chains.truncate(MAX_TOLD);
        Self { rules: denies.len() - policies, policies, chains }
    }
}

/// Has a rule or policy of iptables-legacy in words.
fn say(
    deny: &mut Deny,
    tables: &[legacy::Table],
    saved: &mut legacy::Saved,
    deadline: Instant,
    roots: &mut dyn FnMut() -> Vec<Root>,
) -> Result<()> {
    let [family, table, chain] = deny.place.split(' ').collect::<Vec<_>>()[..] else { return Ok(()) };
    let is_of = |of: &&legacy::Table| family::name(of.layout.family) == family && of.name == table;
    let Some(table) = tables.iter().find(is_of) else { return Ok(()) };
    let spot = legacy::Spot {
        chain: chain.to_owned(),
        position: deny.handle.and_then(|place| usize::try_from(place).ok()),
        path: Vec::new(),
        verdict: if deny.verdict == "reject" { model::Verdict::Reject } else { model::Verdict::Drop },
    };
    let named = saved.named(table, spot, deadline)?;
    deny.statement = table.statement(&named, roots);
    deny.text = named.position.and(named.text);
    Ok(())
}

/// Base chains that can drop what comes in without connection tracking having looked at it, each once. Reads the namespace of the calling
/// thread.
pub fn before_tracking() -> Result<Vec<String>> {
    let (mut sets, mut tracks) = (Vec::new(), false);
    if nftables_in_use() {
        let (Snapshot { chains, rules, tracks: by_nft, .. }, _) = RULESET.ask_within(0, MAX_BYTES)?;
        tracks |= by_nft;
        sets.push((chains, rules));
    }
    for table in legacy::tables()? {
        tracks |= table.tracks()?;
        sets.push(table.as_nft()?);
    }
    Ok(sets.iter().flat_map(|(chains, rules)| droppers(chains, rules, tracks)).collect())
}

/// See [`before_tracking`]; `tracks`: connection tracking is at work. Pure.
fn droppers(chains: &[Chain], rules: &[Rule], tracks: bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let way_in = |chain: &Chain| untracked_way_in(chain, tracks);
    for base in chains.iter().filter(|base| way_in(base).is_some()) {
        let Denies { denies, maps, .. } = walk_from([base], rules, way_in);
        let name = place(base.family, &base.table, &base.name);
        if (!denies.is_empty() || maps > 0) && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// The hook of a chain that comes before connection tracking, or of any on the way in where there is none.
fn untracked_way_in(chain: &Chain, tracks: bool) -> Option<&'static str> {
    /// `NF_IP_PRI_CONNTRACK`; of equal priority either may be first.
    const CONNTRACK: i32 = -200;
    let name = hook::name(chain.family, chain.hook?).filter(|_| chain.family != family::ARP)?;
    let is_before = match name {
        "ingress" => true,
        "prerouting" => !tracks || chain.priority? <= CONNTRACK,
        "input" | FORWARD => !tracks,
        _ => false,
    };
    is_before.then_some(name)
}

/// From every chain on the way out along jumps. Pure.
fn walk(chains: &[Chain], rules: &[Rule]) -> Denies {
    walk_from(chains, rules, |chain| way_out(chain.family, chain.hook?))
}

/// From every chain that has a hook of those. Pure.
fn walk_from<'a>(
    chains: impl IntoIterator<Item = &'a Chain>,
    rules: &'a [Rule],
    hook: impl Fn(&Chain) -> Option<&'static str>,
) -> Denies {
    let mut found = Denies::default();
    for base in chains {
        let Some(hook) = hook(base) else { continue };
        let mut waiting = vec![base.name.as_str()];
        let mut seen = waiting.clone();
        while let Some(chain) = waiting.pop() {
            let here = rules
                .iter()
                .filter(|rule| rule.family == base.family && rule.table == base.table && rule.chain == chain);
            for rule in here {
                for verdict in &rule.verdicts {
                    match verdict {
                        RuleVerdict::Drop | RuleVerdict::Reject => found.denies.push(Deny {
                            place: place(base.family, &base.table, chain),
                            hook: hook.to_owned(),
                            handle: Some(rule.handle),
                            backend: Backend::Nft,
                            family: family::name(base.family).to_owned(),
                            verdict: if *verdict == RuleVerdict::Drop { "drop" } else { "reject" }.to_owned(),
                            text: None,
                            statement: None,
                            packets: rule.packets,
                            base: base.handle,
                        }),
                        RuleVerdict::Chain(to) => {
                            if !seen.contains(&to.as_str()) {
                                seen.push(to);
                                waiting.push(to);
                            }
                        }
                        RuleVerdict::Map => found.maps += usize::from(hook != FORWARD),
                        // It lets pass what it can translate.
                        RuleVerdict::Translate(_) => {}
                    }
                }
            }
        }
        if base.policy == Some(DROP) {
            found.denies.push(Deny {
                place: place(base.family, &base.table, &base.name),
                hook: hook.to_owned(),
                handle: None,
                backend: Backend::Nft,
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

/// The hook of forwarded packets alone.
const FORWARD: &str = "forward";

/// Hooks that a packet passes that is sent or forwarded here.
fn way_out(family: u8, hook: u32) -> Option<&'static str> {
    hook::name(family, hook).filter(|name| ["output", FORWARD, "postrouting", "egress"].contains(name))
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

    fn rule(chain: &str, handle: u64, verdict: RuleVerdict) -> Rule {
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
            rule("INPUT", 1, RuleVerdict::Drop),
            rule("OUTPUT", 2, RuleVerdict::Chain("user".to_owned())),
            rule("OUTPUT", 3, RuleVerdict::Map),
            rule("user", 4, RuleVerdict::Reject),
            rule("user", 5, RuleVerdict::Chain("OUTPUT".to_owned())),
            rule("lonely", 6, RuleVerdict::Drop),
        ];
        let found = walk(&chains, &rules);
        let told: Vec<_> = found.denies.iter().map(|deny| (deny.handle, deny.verdict.as_str())).collect();
        assert_eq!(told, [(Some(4), "reject"), (None, "drop")]);
        assert_eq!((found.maps, found.denies[0].place.as_str()), (1, "ip filter user"));
    }

    #[test]
    fn what_drops_before_connection_tracking() {
        let at = |name: &str, number, priority| Chain { priority: Some(priority), ..chain(name, Some(number), None) };
        let chains = [
            at("raw", hook::PRE_ROUTING, -300),
            at("mangle", hook::PRE_ROUTING, -150),
            at("accepts", hook::PRE_ROUTING, -300),
            at("out", hook::LOCAL_OUT, -300),
            Chain { policy: Some(DROP), ..at("input", hook::LOCAL_IN, 0) },
            Chain { family: family::NETDEV, policy: Some(DROP), ..at("device", hook::NETDEV_INGRESS, 0) },
            chain("user", None, None),
        ];
        let rules = [
            rule("raw", 1, RuleVerdict::Chain("user".to_owned())),
            rule("user", 2, RuleVerdict::Drop),
            rule("mangle", 3, RuleVerdict::Drop),
            rule("out", 4, RuleVerdict::Drop),
        ];
        assert_eq!(droppers(&chains, &rules, true), ["ip filter raw", "netdev filter device"]);
        let untracked = ["ip filter raw", "ip filter mangle", "ip filter input", "netdev filter device"];
        assert_eq!(droppers(&chains, &rules, false), untracked);
    }
}

//! What stops a packet, by the rules of a namespace at one time.

use std::{
    fs::File,
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::Hide;
use crate::{
    firewall::{files::Root, ruleset::Ruleset},
    model::{End, NamedRule, Packet, WantedRule},
    sandbox::copy::{Building, Connection, Copied, Order, Sandbox},
};

/// A copy of the rules, and their texts, are waited for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// The table of a copy's own.
pub(super) const OWN: &str = " observer_replay ";

/// The rules of a namespace at one time: those of the host, or of a copy in which something was tried.
pub struct View {
    stage: Sandbox,
    ruleset: Option<Ruleset>,
    /// Below it are the front ends' files.
    root: Root,
    patience: Duration,
}

impl View {
    /// Of rules that were read, and the same as nftables lists them.
    pub fn new(
        copied: Copied,
        ruleset: Option<Ruleset>,
        root: Root,
        hide: &Hide,
        (logs, patience): (bool, u32),
    ) -> Result<Self> {
        let (send, receive) = channel();
        let _ = send.send(Ok(copied));
        let hide = Arc::clone(hide);
        let building = Building::begin(receive, logs, move |netns| hide(netns))?;
        let patience = PATIENCE * patience;
        let stage = building.until(Instant::now() + patience).ok().context("the copy was not there in time")??;
        Ok(Self { stage, ruleset, root, patience })
    }

    /// What differs from an earlier one, in rules that came and rules that went.
    pub fn difference(&mut self, earlier: &mut Self) -> (Vec<String>, Vec<String>) {
        let (Some(now), Some(before)) = (&mut self.ruleset, &mut earlier.ruleset) else { return Default::default() };
        // Front ends' files are the copy's own business.
        let difference = now.difference(before, Instant::now() + self.patience, &mut Vec::new);
        let own = |words: &String| !words.contains(OWN);
        let shown = |rules: Vec<String>, all: usize| -> Vec<String> {
            let more = all.saturating_sub(rules.len());
            let more = (more > 0).then(|| format!("and {more} more rules"));
            rules.into_iter().filter(own).chain(more).collect()
        };
        let mut added = shown(difference.added, difference.rules_added);
        added.extend(difference.policies.into_iter().map(|policy| format!("policy of {policy}")));
        (added, shown(difference.removed, difference.rules_removed))
    }

    /// What stops a packet; an error where that cannot be reported.
    pub fn judge(&mut self, packet: &Packet, cgroup: Option<&File>) -> Result<Option<NamedRule>> {
        let cgroup = match cgroup.filter(|_| self.stage.asks_for_cgroups()) {
            Some(cgroup) => Some(cgroup.try_clone()?),
            None => None,
        };
        let order = Order { packet: packet.clone(), connection: Connection::New, cgroup };
        let (end, doubt) = self.stage.replay(order)?;
        if let Some(doubt) = doubt {
            bail!("the rules decide by more than the packet: {doubt}");
        }
        let mut roots = || vec![self.root.again()];
        Ok(match end {
            None => None,
            Some(End::Legacy(mut rule)) => {
                rule.statement = self.stage.statement(&rule, &mut roots);
                Some(*rule)
            }
            Some(End::Nft(end)) => {
                let wanted = WantedRule {
                    netns: 0,
                    netns_cookie: 0,
                    function: 0,
                    table: end.table,
                    chain: end.chain,
                    rule: end.rule,
                    hook: None,
                    v6: None,
                };
                let ruleset = self.ruleset.as_mut().context("the copy has no rules")?;
                let rule = ruleset.named(&wanted, Instant::now() + self.patience, Some(&mut roots));
                Some(rule.context("a rule stops it that is not there")?)
            }
        })
    }
}

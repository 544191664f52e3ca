//! What is to get through.

use std::fs::File;

use anyhow::{Result, ensure};

use super::same::is_same;
use crate::{
    confinement::child,
    firewall::front_end::{Others, Target},
    model::{NamedRule, Origin, Packet},
};

/// What is to get through.
pub struct Asked<'a> {
    /// The packets, one for each address and port, and what stops each of them on the host.
    pub packets: &'a [(Packet, Option<NamedRule>)],
    /// Of each of them, whether its destination is known by name, and its address may be another one tomorrow.
    pub by_name: &'a [bool],
    /// Name of the interface by which they come, where they are forwarded.
    pub comes_by: Option<String>,
    /// Who else may send by the host, where that is known.
    pub others: Others,
    /// The sender's cgroup, where it may be sent from there.
    pub cgroup: Option<&'a File>,
    /// The sender does not run yet, and its cgroup is not there.
    pub is_later: bool,
    /// Other commands are looked for, too: for single addresses, for the port, for an hour.
    pub finds_others: bool,
    /// How often trials had been ended when this was asked ([`child::trials`]).
    pub began: u64,
}

impl Asked<'_> {
    /// What is to get through where a packet, by its place, is stopped by that rule: all addresses of its port that this rule stops.
    pub(super) fn target(&self, index: usize, rule: &NamedRule, stopped: &[Option<NamedRule>]) -> Option<Target> {
        let (packet, _) = self.packets.get(index)?;
        let (transport, _, port) = packet.to()?;
        let is_forwarded = matches!(packet.origin, Origin::Interface { .. });
        let comes_by = self.comes_by.clone().filter(|_| is_forwarded);
        let others = self.others;
        if let Some(to) = rule.translated {
            let (addresses, port) = (vec![to.ip()], to.port());
            return Some(Target { transport, port, addresses, is_by_name: false, is_forwarded, comes_by, others });
        }
        let mut addresses = Vec::new();
        let mut is_by_name = self.by_name.get(index).copied().unwrap_or(false);
        // In the order of the packets, whichever of them is asked about: then the commands are the same.
        for (other, ((packet, _), by)) in self.packets.iter().zip(stopped).enumerate() {
            let is_of_it = other == index || by.as_ref().is_some_and(|by| is_same(by, rule));
            let Some((_, address, _)) = packet.to().filter(|to| is_of_it && (to.0, to.2) == (transport, port)) else {
                continue;
            };
            is_by_name |= self.by_name.get(other).copied().unwrap_or(false);
            // Names may share an address.
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Some(Target { transport, port, addresses, is_by_name, is_forwarded, comes_by, others })
    }

    /// What stops each of them on the host.
    pub(super) fn rules(&self) -> Vec<Option<NamedRule>> {
        self.packets.iter().map(|(_, rule)| rule.clone()).collect()
    }

    /// It was not skipped meanwhile.
    pub(super) fn goes_on(&self) -> Result<()> {
        ensure!(child::trials() == self.began, "the test was skipped");
        Ok(())
    }

    /// The place of the first that is stopped, and by what.
    pub(super) fn first(&self) -> Option<(usize, &NamedRule)> {
        self.packets.iter().enumerate().find_map(|(index, (_, rule))| Some((index, rule.as_ref()?)))
    }
}

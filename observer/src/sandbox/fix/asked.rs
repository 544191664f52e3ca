//! What is to get through.

use std::{fs::File, net::IpAddr};

use anyhow::{Result, ensure};

use crate::{
    confinement::child,
    firewall::front_end::Target,
    model::{NamedRule, Origin, Packet},
};

/// What is to get through.
pub struct Asked<'a> {
    /// The packets, one for each address and port, and what stops each of them on the host.
    pub packets: &'a [(Packet, Option<NamedRule>)],
    /// Destinations are known by name, and the addresses may be others tomorrow.
    pub is_by_name: bool,
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
    /// What is to get through where this packet is stopped by that rule: all addresses of its port that are stopped.
    pub(super) fn target(&self, packet: &Packet, rule: &NamedRule) -> Option<Target> {
        let (transport, address, port) = packet.to()?;
        let is_forwarded = matches!(packet.origin, Origin::Interface { .. });
        if let Some(to) = rule.translated {
            let addresses = vec![to.ip()];
            return Some(Target { transport, port: to.port(), addresses, is_by_name: false, is_forwarded });
        }
        let stopped = self.packets.iter().filter(|(_, rule)| rule.is_some());
        let all = stopped.filter_map(|(packet, _)| packet.to()).chain([(transport, address, port)]);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (_, address, _) in all.filter(|to| (to.0, to.2) == (transport, port)) {
            // Names may share an address.
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Some(Target { transport, port, addresses, is_by_name: self.is_by_name, is_forwarded })
    }

    /// It was not skipped meanwhile.
    pub(super) fn goes_on(&self) -> Result<()> {
        ensure!(child::trials() == self.began, "the test was skipped");
        Ok(())
    }

    /// The first that is stopped, and by what.
    pub(super) fn first(&self) -> Option<(&Packet, &NamedRule)> {
        self.packets.iter().find_map(|(packet, rule)| Some((packet, rule.as_ref()?)))
    }
}

//! The older tables of iptables, which the kernel keeps beside nftables. What their rules are is said in iptables' words.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{Found, FrontEnd, Seen, iptables};
use crate::model::ProposedChange;

/// Its name.
pub const NAME: &str = "iptables-legacy";

pub(super) struct IptablesLegacy;

impl FrontEnd for IptablesLegacy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fills_iptables(&self) -> bool {
        false
    }

    fn recognise(&self, seen: &Seen<'_>) -> Option<Found> {
        let is_there = !seen.legacy_tables.is_empty();
        is_there.then(|| Found::active(NAME, format!("tables {}", seen.legacy_tables.join(", "))))
    }

    fn commands(&self) -> &'static [&'static str] {
        &["iptables-legacy", "ip6tables-legacy"]
    }

    fn modules(&self, change: &ProposedChange) -> Result<BTreeSet<String>> {
        Ok(iptables::modules_of(change))
    }
}

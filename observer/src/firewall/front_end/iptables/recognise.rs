//! iptables-nft is recognised by its tables in nftables, where no other front end fills them.

use crate::firewall::front_end::{Found, IPTABLES_LEGACY, Seen, is_iptables};

pub(super) fn recognise(seen: &Seen<'_>) -> Option<Found> {
    // The older tables are others.
    let is_anothers = seen.found.iter().any(|found| found.active && found.name != IPTABLES_LEGACY);
    let is_there = !is_anothers && seen.chains.iter().any(is_iptables);
    is_there.then(|| Found::active("iptables-nft", "tables of iptables in nftables".to_owned()))
}

//! What is left in nftables when all known front ends have taken theirs.

use super::NAME;
use crate::firewall::front_end::{ALL, Found, Seen, is_iptables};

pub(super) fn recognise(seen: &Seen<'_>) -> Option<Found> {
    let is_owned = |table: &str| ALL.iter().any(|front_end| front_end.tables().contains(&table));
    let bases = seen.chains.iter().filter(|chain| chain.hook.is_some() && !is_iptables(chain));
    let mut tables: Vec<&str> = bases.map(|chain| chain.table.as_str()).filter(|table| !is_owned(table)).collect();
    tables.sort_unstable();
    tables.dedup();
    let is_there = !tables.is_empty();
    is_there.then(|| Found::active(NAME, format!("tables of no known front end: {}", tables.join(", "))))
}

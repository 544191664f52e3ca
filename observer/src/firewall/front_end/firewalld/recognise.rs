//! firewalld is recognised by its table.

use super::NAME;
use crate::firewall::front_end::{Found, Seen};

/// The table of its rules.
pub(super) const TABLE: &str = "firewalld";
/// The table that drops everything in panic mode.
pub(super) const PANIC_TABLE: &str = "firewalld_policy_drop";
/// All of them.
pub(super) const TABLES: [&str; 2] = [TABLE, PANIC_TABLE];

pub(super) fn recognise(seen: &Seen<'_>) -> Option<Found> {
    let is_there = seen.chains.iter().any(|chain| chain.table == TABLE);
    is_there.then(|| Found::active(NAME, format!("table inet {TABLE}")))
}

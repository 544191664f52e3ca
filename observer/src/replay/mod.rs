//! The same packet once more, in a private network namespace with a copy of the rules in force: nftables itself says what
//! drops it. A second opinion where the rule was seen, and the only one where it was not.

mod depends;
mod netlink;
mod proof;
mod ruleset;
mod stage;
mod surroundings;

pub use proof::prove;
pub use stage::{Building, Copied, Stage, copy};

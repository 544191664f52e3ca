//! The same packet once more, in a private network namespace with a copy of the rules in force: nftables itself says what
//! drops it. A second opinion where the rule was seen, and the only one where it was not.

pub mod cgroup;
mod conntrack;
mod depends;
mod doubts;
mod inside;
mod legacy;
mod netlink;
mod packet;
mod proof;
mod ruleset;
mod send;
mod shape;
mod stage;
pub mod surroundings;

pub use conntrack::Connection;
pub use proof::prove;
pub use send::connecting;
pub use shape::Shape;
pub use stage::{
    Around, Asked, Building, Copied, Order, Stage, Version, around, ask, copy, logs_everywhere, own_namespace, version,
};

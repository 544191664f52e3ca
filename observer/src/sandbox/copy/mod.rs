//! The same packet once more, in a private network namespace with a copy of the rules in force: nftables itself says what
//! drops it. A second opinion where the rule was seen, and the only one where it was not.

pub mod cgroup;
mod conntrack;
mod depends;
mod doubts;
mod inside;
mod legacy;
mod packet;
mod proof;
mod ruleset;
mod send;
mod shape;
mod stage;
pub mod surroundings;

pub use super::copy::conntrack::Connection;
pub use super::copy::proof::prove;
pub use super::copy::ruleset::LISTED;
pub use super::copy::send::connecting;
pub use super::copy::shape::Shape;
pub use super::copy::stage::{
    Building, Copied, Order, Sandbox, Version, around, ask, logs_everywhere, own_namespace, take, version,
};
pub use super::copy::surroundings::SURROUNDINGS;

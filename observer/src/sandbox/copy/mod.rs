//! The same packet once more, in a private network namespace with a copy of the rules in force: nftables itself says what
//! drops it. A second opinion where the rule was seen, and the only one where it was not.

pub mod cgroup;
mod choices;
mod conntrack;
mod copied;
mod inside;
mod ipsec;
mod ipset;
mod lab;
mod legacy;
mod listeners;
mod marks;
mod packet;
mod passage;
mod proof;
mod remake;
mod ruleset;
mod send;
mod shape;
mod stage;
pub mod surroundings;
mod trace;
mod ways;

pub use super::copy::conntrack::Connection;
pub use super::copy::copied::{Copied, Handles, Kept, Version, around, ask, logs_everywhere, take, version};
pub(crate) use super::copy::ipsec::under_ipsec;
pub use super::copy::ipset::IPSETS;
pub(crate) use super::copy::lab::{Caller, Held, Stop, Talk};
pub(crate) use super::copy::listeners::Transport;
pub use super::copy::proof::prove;
pub use super::copy::ruleset::LISTED;
pub use super::copy::send::connecting;
pub use super::copy::shape::Shape;
pub(crate) use super::copy::stage::Talked;
pub use super::copy::stage::{Building, Hide, Order, Sandbox, own_namespace};
pub use super::copy::surroundings::SURROUNDINGS;

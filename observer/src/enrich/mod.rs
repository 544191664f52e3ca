//! Who sent it: the process, its parents, user, unit and container.
//!
//! [`proc`] and [`cgroups`] read the host (in the helper, which may), [`unit`], [`redact`] and [`users`] are pure,
//! [`processes`] remembers, [`attribute`] decides. Every claim has a source; two candidates make no answer.

mod answers;
pub mod assemble;
pub mod attribute;
pub mod cgroups;
pub mod changes;
pub mod containers;
mod fixes;
pub mod flows;
mod hanging;
pub mod host;
mod late;
pub mod proc;
pub mod processes;
pub mod redact;
mod replay;
pub mod resolve;
pub mod restored;
pub mod rules;
mod sender;
pub mod unit;
mod unsent;
pub mod users;

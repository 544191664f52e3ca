//! Who may do what, after start.
//!
//! The program splits before it does anything else: a small process is kept that starts the helper, and starts it again when it
//! has died ([`spare`]). The helper ([`helper`] is the side that asks, [`server`] the one that answers, with the requests of
//! [`protocol`]) keeps the few capabilities that reading other processes and entering namespaces takes, and does nothing but
//! answer. The process that decodes packets, reads names and prints gives everything up once its probes are attached
//! ([`crate::confinement::process`]). Both happen while there is one thread, because capabilities and namespaces belong to threads.

mod answers;
pub mod cgroups;
mod channel;
pub mod containers;
mod deciders;
#[cfg(test)]
pub(crate) mod fake;
mod fixes;
mod helper;
mod lanes;
mod listening;
mod netns;
mod polled;
mod preflights;
pub mod proc;
mod programs;
pub mod protocol;
mod queries;
mod replays;
mod routes;
mod rulesets;
mod server;
mod shared;
mod sockets;
mod spare;
mod texts;
mod trials;
mod verdicts;

pub use helper::{Helper, HelperError};
pub use listening::Listening;
pub use polled::Wake;
pub use queries::HostQueries;
pub use verdicts::KPROBES;

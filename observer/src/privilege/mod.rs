//! Who may do what, after start.
//!
//! The program splits before it does anything else: a small helper process ([`helper`], with the requests of
//! [`protocol`]) keeps the few capabilities that reading other processes and entering namespaces takes, and does nothing
//! but answer; the process that decodes packets, reads names and prints gives everything up once its probes are attached
//! ([`confine`]). Both happen while there is one thread, because capabilities and namespaces belong to threads.

mod answers;
mod confine;
mod deciders;
mod fixes;
mod helper;
mod listening;
mod netns;
mod preflights;
mod programs;
mod protocol;
mod replays;
mod routes;
mod rulesets;
mod server;
mod sockets;
mod trials;
mod verdicts;

pub use confine::{Confined, confine};
pub use helper::{Helper, HelperError};
pub use verdicts::KPROBES;

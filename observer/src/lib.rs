//! observer: who blocked my connection?
//!
//! A packet's death flows through these modules, each step its own type. A room knows the model and the rooms below it; only
//! [`service`] knows all of them, and [`cli`] stands above it. ARCHITECTURE.md draws the picture and lists the floors.

/// Above everything: arguments → plan → call the library.
mod cli;

/// Wires the rooms; owns start, threads and shutdown.
mod service;

/// The running kernel: types, symbols, clocks, cgroups.
mod kernel;

/// Programs attached, and proven to work.
mod probe;

/// Ring → drop records → dropped packets.
mod intake;

/// Dropped packets → attempts: process, user, unit, container.
mod attribute;

/// What stopped it: the rule, or what else decided.
mod explain;

/// A private copy of the rules: the same packet once more, and trials of commands.
mod sandbox;

/// What is asked before anything is installed.
mod check;

/// Which firewalls decide here.
mod firewall;

/// Attempts → incidents, and what becomes known of them later.
mod incident;

/// Lines → text and JSON.
mod render;

/// Where lines go, each with its thread.
mod sink;

/// What was recorded, in a file.
mod store;

/// The command of `observer run`: started, passed signals, waited for.
mod launch;

/// What this kernel and host support.
mod doctor;

/// The helper process, and giving up privileges.
mod privilege;

/// What each process may do, and the programs that read what strangers write.
mod confinement;

/// The confined process that reads rules, started from observer's own program.
mod reader;

/// Environment variables for developers.
mod developer;

/// How long is waited, on machines that are slower than any on which that was chosen.
mod patience;

/// The few system calls that need unsafe code.
mod sys;

/// Below everything: the words that all rooms share.
mod model;

pub use cli::{Exit, run};
pub use reader::main as read_rules;

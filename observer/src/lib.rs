//! observer: who blocked my connection?
//!
//! A packet's death flows through these modules in order, each step its own type. The rooms know the model and not each
//! other; only [`pipeline`] wires them, [`cli`] stands above it and [`model`] below. ARCHITECTURE.md draws the picture.

/// Above everything: arguments → plan → call the library.
pub mod cli;

/// Wires the rooms; owns start and shutdown.
pub mod pipeline;

/// BTF → layout → programs attached.
pub mod probe;

/// Ring → drop records → dropped packets.
pub mod intake;

/// Dropped packets → events: process, user, unit, container.
pub mod enrich;

/// The same packet through a copy of the rules.
pub mod replay;

/// What is asked before anything is installed.
pub mod check;

/// What would let a blocked packet through, tried in a copy.
pub mod fix;

/// Which firewalls decide here.
pub mod firewall;

/// Events → incidents.
pub mod incident;

/// Events, incidents and the account → text and JSON.
pub mod output;

/// The command of `observer run`: started, passed signals, waited for.
pub mod launch;

/// What this kernel and host support.
pub mod doctor;

/// The helper process, and giving up privileges.
pub mod privilege;

/// How long is waited, on machines that are slower than any on which that was chosen.
pub mod patience;

/// The few system calls that need unsafe code.
pub mod sys;

/// Below everything: the words that all rooms share.
pub mod model;

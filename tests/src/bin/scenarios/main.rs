//! The scenarios: the real program, real rulesets, real clients, one binary. It needs root, the program (`OBSERVER`), the
//! testbed's BPF object (`OBSERVER_TESTBED`) and nothing else of the project, so that it runs on other kernels as it is.

mod changes;
mod check;
mod cli;
mod containers;
mod deciders;
mod demo;
mod directions;
mod doctor;
mod firewalls;
mod fixes;
mod front_ends;
mod hanging;
mod hooks;
mod kernel_made;
mod overview;
mod owners;
mod packets;
mod privileges;
mod processes;
mod replay;
mod restored;
mod rules;
mod run;
mod storms;
mod systemd;
mod terminal;

use harness::kernel;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a scenario ends with when it did not fail.
enum Outcome {
    Passed,
    /// It cannot run here, and why.
    Skipped(String),
}

/// A scenario about drops that some kernels do not name.
fn unnamed(reason: &str) -> Option<Outcome> {
    (!kernel::names(reason)).then(|| Outcome::Skipped(format!("this kernel has no drop reason {reason}")))
}

/// A scenario with a netdev chain on the way out.
fn without_egress_hook() -> Option<Outcome> {
    (!kernel::knows("NF_NETDEV_EGRESS"))
        .then(|| Outcome::Skipped("this kernel's netdev chains have no egress hook".to_owned()))
}

/// A scenario in which something is tried by a front end's own programs.
fn without_trials() -> Option<Outcome> {
    (!kernel::is_at_least(5, 12))
        .then(|| Outcome::Skipped("this kernel cannot keep files from being written, and nothing is tried".to_owned()))
}

/// A scenario that changes what all namespaces share: only in a virtual machine, that ends afterwards.
fn without_a_machine() -> Option<Outcome> {
    std::env::var_os("OBSERVER_MACHINE")
        .is_none()
        .then(|| Outcome::Skipped("only in a virtual machine, with `cargo xtask vm`".to_owned()))
}

type Scenario = (&'static str, fn() -> anyhow::Result<Outcome>);

fn main() {
    let groups: [(&str, &[Scenario]); 26] = [
        ("packets", packets::ALL),
        ("firewalls", firewalls::ALL),
        ("front_ends", front_ends::ALL),
        ("fixes", fixes::ALL),
        ("check", check::ALL),
        ("hooks", hooks::ALL),
        ("rules", rules::ALL),
        ("replay", replay::ALL),
        ("deciders", deciders::ALL),
        ("changes", changes::ALL),
        ("restored", restored::ALL),
        ("directions", directions::ALL),
        ("containers", containers::ALL),
        ("kernel_made", kernel_made::ALL),
        ("owners", owners::ALL),
        ("processes", processes::ALL),
        ("hanging", hanging::ALL),
        ("overview", overview::ALL),
        ("run", run::ALL),
        ("storms", storms::ALL),
        ("cli", cli::ALL),
        ("terminal", terminal::ALL),
        ("doctor", doctor::ALL),
        ("privileges", privileges::ALL),
        ("systemd", systemd::ALL),
        ("demo", demo::ALL),
    ];
    let trials = groups.iter().flat_map(|(group, scenarios)| {
        scenarios.iter().map(move |(name, scenario)| {
            let scenario = *scenario;
            Trial::ignorable_test(format!("{group}::{name}"), move || match scenario() {
                Ok(Outcome::Passed) => Ok(Completion::Completed),
                Ok(Outcome::Skipped(why)) => Ok(Completion::ignored_with(format!("skipped: {why}"))),
                Err(error) => Err(Failed::from(format!("{error:#}"))),
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

//! The scenarios: the real program, real rulesets, real clients, one binary. It needs root, the program (`OBSERVER`), the
//! testbed's BPF object (`OBSERVER_TESTBED`) and nothing else of the project, so that it runs on other kernels as it is.

mod answers;
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
mod neighbours;
mod overview;
mod owners;
mod packages;
mod packets;
mod privileges;
mod processes;
mod recording;
mod replay;
mod restored;
mod rules;
mod run;
mod screens;
mod shares;
mod storms;
mod strangers;
mod systemd;
mod terminal;

use std::{
    panic::catch_unwind,
    sync::{Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::anyhow;
use harness::{kernel, record};
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

/// Runs a scenario beside others, or alone: what it says of time would be the others' doing.
fn at_its_time<T>(is_alone: bool, run: impl FnOnce() -> T) -> T {
    static OTHERS: RwLock<()> = RwLock::new(());
    if is_alone {
        let _alone = OTHERS.write();
        run()
    } else {
        let _beside = OTHERS.read();
        run()
    }
}

/// Runs a scenario at its time. One that fails beside others runs once more, alone, and its first failure is printed, here and at
/// the end of the whole test run: a busy machine slows down with what the others do, and time limits pass.
fn run(name: &str, is_alone: bool, scenario: fn() -> anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    let attempt = |is_alone| {
        let ended = catch_unwind(|| at_its_time(is_alone, || timed(name, scenario)));
        ended.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            Err(anyhow!("it panicked: {}", text.unwrap_or("no text")))
        })
    };
    match attempt(is_alone) {
        Err(error) if !is_alone => {
            println!("run again alone: {name}: {error:#}");
            attempt(true)
        }
        ended => ended,
    }
}

/// Scenarios whose time is reported at the end.
const SLOWEST: usize = 20;

/// How long each scenario took, without what it waited for others.
static TOOK: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Runs a scenario and notes how long it took.
fn timed<T>(name: &str, run: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = record::during(name, run);
    TOOK.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), name.to_owned()));
    result
}

/// Where the time went.
fn tell_slowest() {
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.sort_by(|one, other| other.cmp(one));
    let sum: Duration = took.iter().map(|(time, _)| *time).sum();
    println!("slowest of {} scenarios, which took {:.0} s one by one:", took.len(), sum.as_secs_f64());
    for (time, name) in took.iter().take(SLOWEST) {
        println!("  {:6.1} s  {name}", time.as_secs_f64());
    }
}

/// Others load modules and change settings, which a package must leave as they were, and are audited.
const ALONE: [&str; 2] = ["packages::a_debs_whole_life", "recording::no_audit_records"];

type Scenario = (&'static str, fn() -> anyhow::Result<Outcome>);

fn main() {
    // A caller that ignores Ctrl-C, such as a shell for what it runs in the background, must not make observer ignore it.
    harness::listen_to_interrupts();
    let groups: [(&str, &[Scenario]); 33] = [
        ("packages", packages::ALL),
        ("packets", packets::ALL),
        ("firewalls", firewalls::ALL),
        ("front_ends", front_ends::ALL),
        ("fixes", fixes::ALL),
        ("check", check::ALL),
        ("hooks", hooks::ALL),
        ("rules", rules::ALL),
        ("replay", replay::ALL),
        ("deciders", deciders::ALL),
        ("answers", answers::ALL),
        ("neighbours", neighbours::ALL),
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
        ("recording", recording::ALL),
        ("storms", storms::ALL),
        ("shares", shares::ALL),
        ("cli", cli::ALL),
        ("terminal", terminal::ALL),
        ("screens", screens::ALL),
        ("doctor", doctor::ALL),
        ("privileges", privileges::ALL),
        ("strangers", strangers::ALL),
        ("systemd", systemd::ALL),
        ("demo", demo::ALL),
    ];
    // Parts of names, or with `=` in front a whole one: libtest's own filter is one.
    let only = std::env::var("OBSERVER_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|part| !part.is_empty()).collect();
    let trials = groups.iter().flat_map(|(group, scenarios)| {
        scenarios.iter().map(move |(name, scenario)| {
            let scenario = *scenario;
            let name = format!("{group}::{name}");
            let is_alone = *group == "shares" || ALONE.contains(&name.as_str());
            Trial::ignorable_test(name.clone(), move || match run(&name, is_alone, scenario) {
                Ok(Outcome::Passed) => Ok(Completion::Completed),
                Ok(Outcome::Skipped(why)) => Ok(Completion::ignored_with(format!("skipped: {why}"))),
                Err(error) => Err(Failed::from(format!("{error:#}"))),
            })
        })
    });
    let is_it = |name: &str, part: &str| match part.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(part),
    };
    let wanted = trials.filter(|trial| only.is_empty() || only.iter().any(|part| is_it(trial.name(), part)));
    let conclusion = libtest_mimic::run(&Arguments::from_args(), wanted.collect());
    tell_slowest();
    conclusion.exit();
}

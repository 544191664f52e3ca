//! The project's own chores. `cargo xtask demo` and `cargo xtask test` are the two that a newcomer needs; each does all
//! its own set-up first.

mod build;
mod command;
mod floors;
mod lint;
mod package;
mod published;
mod record;
mod setup;
mod speed;
mod test;
mod vm;
mod words;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the observer project.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install what building and testing need; says what it installs. A second run costs nothing.
    Setup,
    /// Build both halves: leaves the program at target/release/observer, one static file.
    Build,
    /// Build, then run the program.
    Run {
        /// Passed to observer.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The main job on real input: the incident of 22 January 2024, in namespaces of its own.
    Demo {
        /// One of the two variants; without it, both.
        #[arg(value_parser = ["deny-443", "default-deny"])]
        variant: Option<String>,
    },
    /// All tests: unit, property, and scenarios against real firewalls, on this kernel and in virtual machines on others.
    /// Prints N passed, N failed, N skipped.
    Test {
        /// Only tests whose name contains this, on this kernel alone.
        filter: Option<String>,
    },
    /// Records what observer writes in each scenario, without what is different in every run; compares it with another record.
    Record {
        /// Folder of the record.
        folder: PathBuf,
        /// Another record that it is compared with.
        #[arg(long)]
        against: Option<PathBuf>,
        /// Only scenarios whose name contains this.
        filter: Option<String>,
    },
    /// Scenarios on other kernels, in virtual machines; without names, all of them.
    Vm(vm::Wanted),
    /// Make a .deb, a .rpm and a tar, with checksums and a list of the program's parts.
    Package(package::Wanted),
    /// Format and lint checks.
    Lint,
    /// What the kernel side costs: interleaved runs, medians and spread.
    Bench {
        /// Passed to the bench: `--rounds N`, `--output json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => {
            setup::toolchain()?;
            setup::test_tools()?;
            println!("everything is there");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Build => {
            println!("{}", build::release()?.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run { args } => command::become_it(command::new(build::release()?).args(args)),
        Verb::Demo { variant } => {
            setup::test_tools()?;
            let observer = build::quick()?;
            let demo = build::demo()?;
            command::become_it(command::new(demo).env("OBSERVER", observer).args(variant))
        }
        Verb::Test { filter } => test::run(filter.as_deref()),
        Verb::Record { folder, against, filter } => record::run(&folder, against.as_deref(), filter.as_deref()),
        Verb::Vm(wanted) => vm::run(&wanted),
        Verb::Package(wanted) => package::run(&wanted).map(|()| ExitCode::SUCCESS),
        Verb::Lint => lint::run(),
        Verb::Bench { args } => {
            setup::test_tools()?;
            let observer = build::release()?;
            let bench = build::test_program("bench")?;
            let object = build::ebpf_side()?.with_file_name("testbed-bpf");
            command::become_it(command::new(bench).env("OBSERVER", observer).env("OBSERVER_TESTBED", object).args(args))
        }
    }
}

/// The project's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

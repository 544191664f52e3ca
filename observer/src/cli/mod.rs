//! The command line: what was typed becomes what is meant, then the library is called.

mod check;
mod doctor;
mod exit;
mod filters;
mod overview;
mod run;
mod session;
mod watch;

use std::{io::Write, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;

use crate::{render::escape::escape, sink::notice::say_within};
pub use exit::Exit;

/// How long stderr is waited for at the end: whoever reads it may have stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who blocked my connection? This process, this destination, this rule.
///
/// Shows every outbound packet that this host drops or rejects, with the process that sent it. Reads only: no rule, no
/// setting and no file on this host is changed. Without a command, as root: how things stand, in a second.
#[derive(Debug, Parser)]
#[command(name = "observer", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Say more on stderr: warnings, `-vv` details, `-vvv` everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what this host blocks, as it happens.
    Watch(Box<watch::Args>),
    /// Run a command and say what it was denied: observer run -- CMD…, or -c 'LINE'.
    Run(Box<run::Args>),
    /// Whether this host would let destinations out, which rule stops them, and what would let them through.
    Check(Box<check::Args>),
    /// What this kernel and host support, what is degraded and why, with a remedy for each, and a self-test.
    Doctor(doctor::Args),
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a person.
    Human,
    /// One JSON object a line.
    Json,
}

/// Runs the command and returns its status.
pub fn run() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and is no error; a usage error is one sentence and the remedy.
            let status = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return status;
        }
    };
    start_log(cli.verbose);
    crate::render::remember_who_started();
    let result = match cli.command {
        Some(Command::Watch(args)) => watch::run(*args, cli.verbose),
        Some(Command::Run(args)) => run::run(&args, cli.verbose),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        None => overview::run(cli.verbose),
    };
    result.unwrap_or_else(|error| {
        say_within(&format!("observer: {error:#}"), LAST_WORDS);
        exit::of(&error)
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text.parse().map_err(|_| "write for example `90s`, `15m` or `2h`".to_owned())?;
    duration.try_into().map_err(|_| "it must not be negative".to_owned())
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Error,
        1 => log::LevelFilter::Warn,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    let mut logger = env_logger::Builder::new();
    logger.filter_level(level).format_target(false);
    if verbose == 0 {
        // What is said without being asked for looks like every other notice.
        logger.format(|buffer, record| writeln!(buffer, "observer: {}", escape(&record.args().to_string())));
    }
    logger.init();
}

/// How much the BPF half may say: an `aya_log` level, 0 for nothing.
fn kernel_log_level(verbose: u8) -> u8 {
    match verbose {
        0 => 0,
        1 => aya_log::Level::Warn as u8,
        2 => aya_log::Level::Debug as u8,
        _ => aya_log::Level::Trace as u8,
    }
}

//! The command line: what was typed becomes what is meant, then the library is called.

mod check;
mod completions;
mod config;
mod doctor;
mod exit;
mod filters;
mod forget;
mod man;
mod overview;
mod progress;
mod record;
mod report;
mod run;
mod session;
mod times;
mod watch;

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use jiff::{Span, SpanRelativeTo};

use crate::{
    render::escape::escape,
    sink::notice::{self, say_within},
};
pub use exit::Exit;

/// How long stderr is waited for at the end: whoever reads it may have stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who blocked my connection? Find the process, the destination and the rule.
///
/// Reports every outbound packet that this host drops or rejects, with the process that sent it, the firewall rule and a
/// tested fix. It changes no rule and no setting, and writes only the files that you
/// name, and the store of `record`. With no command (as root): print a one-screen
/// status.
#[derive(Debug, Parser)]
#[command(name = "observer", version, max_term_width = 80, after_help = AFTER_HELP)]
pub struct Cli {
    /// Print warnings to stderr; -vv details, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Print no notices (the ready line, warnings) to stderr
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Choose the output format of the status [default: human]
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What a help page of the whole program ends with.
const AFTER_HELP: &str = "\
Examples:
  observer watch                        Show blocks as they happen
  observer run -- apt-get update        Report what this command was denied
  observer check datadog                Test what the Datadog agent needs
  observer check example.com:443        Test one destination
  observer record                       Record every block in a store
  observer report --events --since 2h   Print what was recorded

Exit status:
  0  done, nothing wrong found
  1  finding: a blocked destination (check), a block (run --fail-on-block)
  2  wrong usage, or a file that cannot be read
  3  cannot observe here (needs root, or the kernel lacks a feature)
  4  something was lost and --strict was given
  `run` exits with its command's own status";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show blocked connections as they happen
    Watch(Box<watch::Args>),
    /// Run a command and report which of its connections were blocked
    Run(Box<run::Args>),
    /// Test whether destinations are allowed; name the rule and the fix
    Check(Box<check::Args>),
    /// Record every block in a store, as a service does
    ///
    /// A line counts as recorded once it is on the disk. The rule in it is the one that the kernel applied; `--prove always` also copies
    /// rulesets and tests fixes. `observer report` prints what was recorded.
    Record(Box<record::Args>),
    /// Print what was recorded
    Report(Box<report::Args>),
    /// Remove something from the store for good
    ///
    /// What is removed is overwritten in the file. A note stays: when, of whom and how many lines were removed. Copies of the file are not
    /// searched.
    Forget(forget::Args),
    /// Check system support and run a self-test
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Print the manual page
    Man,
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text for a person
    Human,
    /// One JSON object per line
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
    if cli.output.is_some() && cli.command.is_some() {
        let sentence = "`--output` before a command is for the status alone: write it behind the command";
        let _ = Cli::command().error(ErrorKind::ArgumentConflict, sentence).print();
        return Exit::Usage;
    }
    start_log(cli.verbose);
    notice::set_quiet(cli.quiet);
    crate::render::remember_who_started();
    let result = match cli.command {
        Some(Command::Watch(args)) => watch::run(*args, cli.verbose),
        Some(Command::Run(args)) => run::run(&args, cli.verbose),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Record(_)) => record::run(cli.verbose),
        Some(Command::Report(args)) => report::run(*args),
        Some(Command::Forget(args)) => forget::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Completions(args)) => completions::run(&args),
        Some(Command::Man) => man::run(),
        None => overview::run(cli.output.unwrap_or(Format::Human), cli.verbose),
    };
    result.unwrap_or_else(|error| {
        say_within(&format!("observer: {error:#}"), LAST_WORDS);
        exit::of(&error)
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    // A number alone is seconds.
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let span: Span = text.parse().map_err(|_| "write for example `90s`, `15m`, `2h` or `1d`".to_owned())?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| "write it in weeks, days, hours, minutes or seconds".to_owned())?;
    duration.try_into().map_err(|_| "a duration cannot be negative".to_owned())
}

/// What a person probably meant, as a question to end a sentence with; empty where nothing is near.
fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    /// Two words are alike from here on (1 is equal); what clap takes for its own suggestions.
    const ALIKE: f64 = 0.7;
    let alike = known.into_iter().map(|known| (strsim::jaro(typed, known), known)).filter(|(alike, _)| *alike > ALIKE);
    alike
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map_or(String::new(), |(_, known)| format!("did you mean `{known}`?"))
}

/// What came of writing to stdout: a reader that is gone is no error.
fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Error,
        1 => log::LevelFilter::Warn,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    let mut logger = env_logger::Builder::new();
    // What libraries say of themselves is no news of this host.
    logger.filter_level(log::LevelFilter::Error).filter_module("observer", level).format_target(false);
    if verbose == 0 {
        // What is said without being asked for looks like every other notice.
        logger.format(|buffer, record| writeln!(buffer, "observer: {}", escape(&record.args().to_string())));
    }
    logger.init();
}

/// How much the eBPF side may say: an `aya_log` level, 0 for nothing.
fn kernel_log_level(verbose: u8) -> u8 {
    match verbose {
        0 => 0,
        1 => aya_log::Level::Warn as u8,
        2 => aya_log::Level::Debug as u8,
        _ => aya_log::Level::Trace as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every help page is a file, so that a change of words is seen as one. `OBSERVER_BLESS=1` writes them anew.
    #[test]
    fn help_is_as_it_was_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/help");
        let mut command = Cli::command().term_width(80);
        command.build();
        let mut pages = vec![("observer".to_owned(), command.render_long_help().to_string())];
        for of in command.get_subcommands_mut().filter(|of| of.get_name() != "help") {
            let name = of.get_name().to_owned();
            pages.push((format!("{name}.short"), of.render_help().to_string()));
            pages.push((name, of.render_long_help().to_string()));
        }
        for (name, page) in pages {
            let path = format!("{folder}/{name}.txt");
            if std::env::var_os("OBSERVER_BLESS").is_some() {
                std::fs::write(&path, &page).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(page, kept, "{path} has other words: see them, then run the test with OBSERVER_BLESS=1");
        }
    }

    #[test]
    fn a_near_word_is_suggested() {
        assert_eq!(did_you_mean("datadgo", ["datadog", "dynatrace"]), "did you mean `datadog`?");
        assert_eq!(did_you_mean("weather", ["netfilter", "tc"]), "");
    }

    #[test]
    fn a_number_alone_is_seconds() {
        assert_eq!(
            (duration("5"), duration("90s"), duration("2h")),
            (Ok(Duration::from_secs(5)), Ok(Duration::from_secs(90)), Ok(Duration::from_secs(7200)))
        );
        assert!(duration("soon").is_err() && duration("-1s").is_err());
    }
}

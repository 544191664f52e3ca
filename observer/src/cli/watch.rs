//! `observer watch`

use std::{
    io::{self, BufWriter, IsTerminal},
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::{Timestamp, tz::TimeZone};
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Format, filters, session::Session};
use crate::{
    attribute::CommandLines,
    explain::rules::Allowed,
    model::{Account, Degraded},
    privilege::Helper,
    render::screen::{self, Screen},
    service::{Ended, LATE, Limits},
    sink::{Sink, fan::Outlet, jsonl::JsonLines, live::Live, notice::note, ordered::Ordered, terminal::Terminal},
};

/// Bytes collected before a write, when much happens at once.
const BUFFER: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filters: filters::Filters,
    /// Choose the output format
    #[arg(short, long, value_enum, default_value = "human")]
    output: Format,
    /// Stop after this time: 90s, 15m, 2h, 1d
    #[arg(long = "for", value_name = "DURATION", value_parser = super::duration)]
    duration: Option<Duration>,
    /// Stop after N events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Show background traffic (multicast, late resets) too
    #[arg(long)]
    all: bool,
    /// Exit with status 4 if anything was lost
    #[arg(long)]
    strict: bool,
    /// Show command lines with the secrets in them
    #[arg(long)]
    no_redact: bool,
    /// Never let a child process join the sender's cgroup
    ///
    /// Replaying a rule about cgroups takes such a child for a moment. Without it, rules about cgroups are reported from eBPF
    /// records only.
    #[arg(long)]
    no_cgroup_replay: bool,
    /// Make no private copy of the ruleset (implies --no-fix)
    ///
    /// Rules are then reported from eBPF records only.
    #[arg(long)]
    no_replay: bool,
    /// Do not look for a fix
    ///
    /// No command is then tried in a private copy of the ruleset.
    #[arg(long)]
    no_fix: bool,
}

pub(super) fn run(args: Args, verbose: u8) -> Result<Exit> {
    // The helper first: it is forked, and that takes a process with one thread.
    let helper = Helper::start()?;
    let named = args.filters.named_namespace();
    let filter = args.filters.plan()?;
    let allowed = Allowed {
        replays: !args.no_replay,
        enters_cgroups: !args.no_cgroup_replay,
        finds_fixes: !args.no_fix && !args.no_replay,
        first: None,
    };
    let session = Session::attach(helper, filter, allowed, verbose)?;
    let zone = TimeZone::system();
    let sink: Box<dyn Sink> = match args.output {
        Format::Json => {
            Box::new(JsonLines::new(BufWriter::with_capacity(BUFFER, io::stdout()), session.reporter().clone()))
        }
        Format::Human => {
            let styled = anstream::AutoStream::auto(io::stdout());
            let live = Live::of_stdout(styled.current_choice() != anstream::ColorChoice::Never);
            let screen = Screen::new(BufWriter::with_capacity(BUFFER, styled), screen::stdout_width);
            Box::new(Ordered::new(Terminal::new(screen, zone.clone(), args.all, live), session.changing()))
        }
    };
    let mut ready = session.ready_line();
    if args.output == Format::Human {
        let now = Timestamp::now().to_zoned(zone);
        ready = format!("{ready} · times {}", now.strftime("%Z (UTC%:z)"));
        if io::stdout().is_terminal() {
            ready.push_str(" · Ctrl-C ends");
        }
    }
    let limits = Limits {
        count: args.count,
        late: LATE,
        counts: match (args.output, args.all) {
            (Format::Json, _) => |_| true,
            (Format::Human, true) => |line| line.is_event(true),
            (Format::Human, false) => |line| line.is_event(false),
        },
    };
    let outlets = vec![Outlet { name: "the output", sink, is_needed: true }];
    let run = session.confined(outlets, limits, CommandLines::of(args.no_redact), &[]);
    let ignores_hangups = ignores(libc::SIGHUP);
    let until = async move {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        // Under `nohup` it goes on.
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            // The terminal is gone, and what was observed is not lost.
            _ = hangup.recv(), if !ignores_hangups => {}
            () = after(args.duration) => {}
            () = filters::watch_namespace(named) => {}
        }
        Ok(())
    };
    let ended = run.run(
        || {
            note(&ready);
            Ok(())
        },
        until,
    )?;
    match ended {
        Ended::Clean(account, _) if args.strict && anything_lost(&account) => Ok(Exit::Lost),
        Ended::Clean(..) | Ended::ClosedPipe => Ok(Exit::Done),
        Ended::Stuck => anyhow::bail!(
            "stdout is blocked; the last events and the summary were not written\nhint: the program that reads observer's \
             output has stopped; continue it, or write to a file"
        ),
    }
}

/// The caller has this process ignore a signal.
fn ignores(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

/// Waits, or for ever.
pub(super) async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

pub(super) fn anything_lost(account: &Account) -> bool {
    let has_gap = account.degraded.iter().any(|degraded| degraded.what == Degraded::HELPER);
    account.lost.total() > 0 || account.missed_max > 0 || has_gap
}

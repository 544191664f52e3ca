//! `observer watch`

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    os::fd::AsFd,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::{Exit, Format, exit, filters, kernel_log_level};
use crate::{
    doctor,
    enrich::{
        assemble::Assembler,
        attribute::{Attributor, Lives},
        host::{Identity, boot_ns},
        proc,
        processes::Processes,
    },
    model::{Account, Degraded, Filter},
    output::{Output, json::JsonLines, terminal::Terminal},
    pipeline::{Ended, Limits, Run},
    privilege::{Helper, confine},
    probe::Probes,
};

/// Bytes collected before a write, when much happens at once.
const BUFFER: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filters: filters::Filters,
    /// How events are written: for a person, or as JSON, one object a line.
    #[arg(short, long, value_enum, default_value = "human")]
    output: Format,
    /// Stop after this long, for example `90s` or `2h`.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Stop after this many events.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Show background traffic, which nobody waits for, like everything else.
    #[arg(long)]
    all: bool,
    /// Exit with status 4 when anything was lost.
    #[arg(long)]
    strict: bool,
    /// Show command lines as they are, with the passwords and keys in them.
    #[arg(long)]
    no_redact: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text.parse().map_err(|_| "write for example `90s`, `15m` or `2h`".to_owned())?;
    duration.try_into().map_err(|_| "it must not be negative".to_owned())
}

pub(super) fn run(args: Args, verbose: u8) -> Result<Exit> {
    // The helper first: it is forked, and that takes a process with one thread.
    let mut helper = Helper::start()?;
    let filter = args.filters.plan()?;
    let mut probes = Probes::attach(kernel_log_level(verbose)).map_err(|error| exit::with_hint(&error))?;
    let firewalls = firewalls(&mut helper, filter.netns);
    let since_ns = boot_ns();
    let mut degraded = doctor::shortcomings(&probes);
    let mut ring = probes.take_process_ring()?;
    let filling = ring.as_fd().try_clone_to_owned().context("cannot watch the ring of processes")?;
    let lives: Lives = Box::new(move || ring.next().map(|record| Bytes::copy_from_slice(&record)));
    // What ran before is read once; what begins from now on is told.
    let mut processes = Processes::default();
    if proc::sees_initial_pids() {
        let mut all = proc::all();
        all.sort_by_key(|facts| facts.id.start_ticks);
        all.into_iter().for_each(|facts| processes.seed(facts));
    }
    let zone = TimeZone::system();
    let output: Box<dyn Output> = match args.output {
        Format::Json => Box::new(JsonLines::new(BufWriter::with_capacity(BUFFER, io::stdout()))),
        Format::Human => {
            let styled = anstream::AutoStream::auto(io::stdout());
            Box::new(Terminal::new(BufWriter::with_capacity(BUFFER, styled), zone.clone(), args.all))
        }
    };
    let ready = ready_line(&filter, &probes, &firewalls, &zone, args.output);
    let attributor = Attributor::new(helper, processes, lives, since_ns);
    let assembler = Assembler::new(Identity::read(), std::mem::take(&mut probes.reasons), attributor, !args.no_redact);
    match confine(|| probes.totals().is_ok()) {
        Ok(confined) => {
            log::debug!("confined: {confined:?}");
            if let Some(why) = confined.still_root {
                degraded.push(Degraded {
                    what: "privileges".to_owned(),
                    why: format!("cannot become an unprivileged user: {why}"),
                    consequence: "the process that decodes packets runs as root, without capabilities".to_owned(),
                });
            }
        }
        Err(error) => degraded.push(Degraded {
            what: "privileges".to_owned(),
            why: format!("{error:#}"),
            consequence: "observer keeps more privileges than it needs".to_owned(),
        }),
    }
    crate::sys::trim_memory();
    let limits = Limits { duration: args.duration, count: args.count };
    let run = Run { probes, filling, assembler, output, filter, limits, degraded };
    let ended = run.run(|| {
        let _ = writeln!(anstream::stderr(), "{ready}");
    })?;
    match ended {
        Ended::Clean(account) if args.strict && anything_lost(&account) => Ok(Exit::Lost),
        Ended::Clean(_) | Ended::ClosedPipe => Ok(Exit::Done),
        Ended::Stuck => anyhow::bail!(
            "the output takes nothing, so the end of the events and the account are not written\nhint: whatever reads \
             observer's output has stopped; let it go on, or write to a file"
        ),
    }
}

fn anything_lost(account: &Account) -> bool {
    account.lost.total() > 0 || account.missed_max > 0
}

/// Which firewalls decide in observer's own namespace, or in the only one that is watched.
fn firewalls(helper: &mut Helper, netns: Option<u32>) -> String {
    match helper.firewalls(netns).map_err(|error| error.to_string()).and_then(|read| read) {
        Ok(inventory) => {
            let names: Vec<&str> = inventory.active().map(|front_end| front_end.name.as_str()).collect();
            match (names.is_empty(), netns) {
                (false, _) => format!("firewalls: {}", names.join(", ")),
                (true, Some(_)) => "no firewall rules there".to_owned(),
                (true, None) => "no firewall rules in this namespace".to_owned(),
            }
        }
        Err(why) => format!("firewalls unknown: {why}"),
    }
}

/// `observer: ready · all namespaces · …`: what is watched, and how it is told.
fn ready_line(filter: &Filter, probes: &Probes, firewalls: &str, zone: &TimeZone, format: Format) -> String {
    let mut parts = vec!["observer: ready".to_owned()];
    parts.push(filter.netns.map_or_else(|| "all namespaces".to_owned(), |number| format!("namespace net:[{number}]")));
    parts.push(format!("owners live, {} older sockets", probes.seeded));
    parts.push(firewalls.to_owned());
    if format == Format::Human {
        let now = Timestamp::now().to_zoned(zone.clone());
        parts.push(format!("times {}", now.strftime("%Z (UTC%:z)")));
        if io::stdout().is_terminal() {
            parts.push("Ctrl-C ends".to_owned());
        }
    }
    let failed: Vec<&str> =
        probes.states.iter().filter(|state| state.result.is_err()).map(|state| state.hook.name).collect();
    if !failed.is_empty() {
        parts.push(format!("degraded: {} (see `observer doctor`)", failed.join(", ")));
    }
    parts.join(" · ")
}

//! `observer record`

use std::{
    env,
    io::{self, BufWriter},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Exit, filters,
    session::Session,
    watch::{after, anything_lost},
};
use crate::{
    attribute::host::Identity,
    explain::rules::Allowed,
    privilege::Helper,
    service::{Ended, LATE, Limits},
    sink::{Sink, fan::Outlet, jsonl::JsonLines, notice::note, store::StoreSink},
    store::{self, Recorder, Settings},
};

/// Bytes collected before a write.
const BUFFER: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Record into this file
    ///
    /// Its folder must be one that only root can write to. It is made if it is missing.
    #[arg(long, value_name = "PATH", default_value = store::DEFAULT)]
    store: PathBuf,
    /// Keep what is not older than this: 30d, 12w
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = super::duration)]
    keep: Duration,
    /// Keep the file below this size: 256MiB, 1GiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    max_size: u64,
    /// Allocate this much at the start, so that recording goes on where others fill the disk
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    reserve: u64,
    /// Stop growing when the file system has less than this left
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    keep_free: u64,
    /// Print each line once it is stored: json is one object a line
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// Stop after this time: 90s, 15m, 2h, 1d
    #[arg(long = "for", value_name = "DURATION", value_parser = super::duration)]
    duration: Option<Duration>,
    /// Exit with status 4 if anything was lost
    #[arg(long)]
    strict: bool,
    /// Record command lines with the secrets in them
    #[arg(long)]
    no_redact: bool,
    #[command(flatten)]
    filters: filters::Filters,
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object per line
    Json,
}

pub(super) fn run(args: Args, verbose: u8) -> Result<Exit> {
    let Args { filters, store, keep, max_size, reserve, keep_free, output, duration, strict, no_redact } = args;
    if max_size < MIN_SIZE + reserve {
        let sentence = format!("--max-size is too small: {} MiB beside the reserve are the least", MIN_SIZE >> 20);
        return Err(super::exit::UsageError { sentence, hint: "leave it out for 256 MiB".to_owned() }.into());
    }
    let service = Manager::of_environment();
    let filter = filters.plan()?;
    // Both are forked, and that takes a process with one thread.
    let limits = store::Limits { age: keep, bytes: max_size, rest: keep_free };
    let settings = Settings { path: store, limits, reserve };
    let recorder = Recorder::start(&settings, &Identity::read().reporter)?;
    let helper = Helper::start()?;
    // Nobody waits for a fix here. Without copies of rulesets the host's audit log stays quiet.
    let allowed = Allowed { replays: false, enters_cgroups: false, finds_fixes: false, first: None };
    let session = Session::attach(helper, filter, allowed, verbose)?;
    let ready = format!("{} · store {}", session.ready_line(), settings.path.display());
    let lost = Arc::new(AtomicU64::new(0));
    let next = output.map(|Format::Json| -> Box<dyn Sink> {
        let writer = BufWriter::with_capacity(BUFFER, io::stdout());
        Box::new(JsonLines::new(writer, session.reporter().clone()))
    });
    let sink = StoreSink::new(recorder, next, Arc::clone(&lost));
    let outlets = vec![Outlet { name: "the store", sink: Box::new(sink), is_needed: true }];
    let limits = Limits { count: None, counts: |_| false, late: LATE };
    let run = session.confined(outlets, limits, !no_redact, &[]);
    let alive = service.clone();
    let until = async move {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = after(duration) => {}
            () = alive.keep_alive() => {}
        }
        Ok(())
    };
    let ended = run.run(
        || {
            note(&ready);
            service.tell("READY=1");
            Ok(())
        },
        until,
    );
    service.tell("STOPPING=1");
    match ended.context("recording has ended")? {
        Ended::Clean(account, _) if strict && (anything_lost(&account) || lost.load(Ordering::Relaxed) > 0) => {
            Ok(Exit::Lost)
        }
        Ended::Clean(..) | Ended::ClosedPipe => Ok(Exit::Done),
        Ended::Stuck => anyhow::bail!("the store takes nothing; the last lines and the account were not stored"),
    }
}

/// Room for a day of a busy host.
const MIN_SIZE: u64 = 8 << 20;

/// Bytes: `256MiB`, `1GB`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
    ];
    let wrong = || format!("write for example 256MiB or 1GiB: `{text}` is no size");
    let (number, unit) =
        UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes))).unwrap_or((text, 1));
    number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// The service manager, where one started this process (`sd_notify(3)`).
#[derive(Clone)]
struct Manager {
    /// Connected at once: later this process may not make sockets.
    socket: Option<Arc<UnixDatagram>>,
    /// It wants to hear something so often.
    watchdog: Option<Duration>,
}

impl Manager {
    fn of_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            let name = path.to_str().and_then(|path| path.strip_prefix('@'));
            match name {
                Some(name) => {
                    use std::os::linux::net::SocketAddrExt;
                    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).ok()?;
                    socket.connect_addr(&address).ok()?;
                }
                None => socket.connect(&path).ok()?,
            }
            Some(Arc::new(socket))
        });
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_meant).map(|micros| Duration::from_micros(micros) / 2);
        Self { socket, watchdog }
    }

    fn tell(&self, what: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(what.as_bytes());
        }
    }

    /// Says that it lives, for ever.
    async fn keep_alive(&self) {
        let Some(every) = self.watchdog else { return std::future::pending().await };
        loop {
            self.tell("WATCHDOG=1");
            tokio::time::sleep(every).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_they_are_typed() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!((size("1G"), size("5MB"), size("4096")), (Ok(1 << 30), Ok(5_000_000), Ok(4096)));
        assert!(size("much").is_err() && size("-1M").is_err() && size("99999999999999G").is_err());
    }
}

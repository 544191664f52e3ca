//! `observer record`

use std::{
    env,
    ffi::OsString,
    io::{self, BufWriter, IsTerminal},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Exit,
    config::{self, InForce},
    exit::{self, UsageError},
    filters,
    session::Session,
    watch::{after, anything_lost},
    written,
};
use crate::{
    attribute::{CommandLines, host::Identity},
    explain::rules::Allowed,
    privilege::Helper,
    probe::attach::check_privilege,
    service::{Ended, LATE, Limits, manager::Manager},
    sink::{Sink, fan::Outlet, jsonl::JsonLines, notice::note, store::StoreSink},
    store::{self, HeldDown, Recorder, Settings},
    sys,
};

/// Bytes collected before a write.
const BUFFER: usize = 64 * 1024;
/// Where this file is, nothing is recorded: a brake for a whole fleet.
const DISABLED: &str = "/etc/observer/disabled";
/// It is looked for so often.
const LOOK: Duration = Duration::from_secs(10);
/// Keys of the configuration file that need no restart.
const AT_ONCE: [&str; 3] = ["keep", "max_size", "keep_free"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read options from this TOML file
    ///
    /// The default is /etc/observer/observer.toml, if it exists. Each option below is a key, with `_` for `-`; filters are keys of the table
    /// `[filter]`. Command-line options override the file. SIGHUP reloads it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective options as TOML and exit
    #[arg(long)]
    print_config: bool,
    /// Record into this file
    ///
    /// Its folder must be one that only root can write to. It is made if it is missing.
    #[arg(long, value_name = "PATH", default_value = store::DEFAULT)]
    pub(super) store: PathBuf,
    /// Remove lines that are older than this: 30d, 12w
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = age)]
    keep: Duration,
    /// Keep the file below this size: 256MiB, 1GiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    max_size: u64,
    /// Reserve this much disk space at the start, so that recording goes on when the disk is full
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    reserve: u64,
    /// Let the file grow only while its file system has more than this free
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    keep_free: u64,
    /// What to record of command lines
    #[arg(long, value_enum, default_value = "redacted")]
    args: RecordedArgs,
    /// When to test fixes, in copies of the rulesets
    #[arg(long, value_enum, default_value = "on-demand")]
    prove: Prove,
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
    pub(super) filters: filters::Filters,
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object per line
    Json,
}

/// `--args`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RecordedArgs {
    /// Arguments, with secrets masked
    Redacted,
    /// The name of the program and its path only
    None,
}

/// `--prove`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Prove {
    /// When `check` or `run` asks: recording itself causes no audit records
    OnDemand,
    /// For each incident, as `watch` does
    Always,
}

impl Args {
    /// What is kept, beside a reserve.
    fn limits(&self, reserve: u64) -> Result<store::Limits, UsageError> {
        if reserve > store::MAX_RESERVE {
            let sentence = format!("reserve (--reserve) is too large: {} MiB are the most", store::MAX_RESERVE >> 20);
            return Err(UsageError { sentence, hint: "the default is 16 MiB".to_owned() });
        }
        if self.max_size < MIN_SIZE.saturating_add(reserve) {
            let sentence = format!(
                "max_size (--max-size) is too small for reserve (--reserve): it must be at least {} MiB larger",
                MIN_SIZE >> 20
            );
            return Err(UsageError { sentence, hint: "the defaults are 256 MiB and 16 MiB".to_owned() });
        }
        Ok(store::Limits { age: self.keep, bytes: self.max_size, rest: self.keep_free })
    }

    fn command_lines(&self) -> CommandLines {
        match self.args {
            // What a person typed goes before the file.
            _ if self.no_redact => CommandLines::Unredacted,
            RecordedArgs::None => CommandLines::None,
            RecordedArgs::Redacted => CommandLines::Redacted,
        }
    }

    /// Nobody waits for a fix here. Without copies of rulesets the host's audit log stays quiet.
    fn allowed(&self) -> Allowed {
        let proves = self.prove == Prove::Always;
        Allowed { replays: proves, enters_cgroups: proves, finds_fixes: proves, first: None }
    }
}

impl InForce {
    /// What is kept, beside a reserve that was allocated already, or this one's.
    fn limits_beside(&self, reserve: u64) -> Result<store::Limits, UsageError> {
        self.args.limits(reserve).map_err(|error| self.at_fault(&["max-size", "reserve"], error))
    }

    /// What is kept.
    pub(super) fn limits(&self) -> Result<store::Limits, UsageError> {
        self.limits_beside(self.args.reserve)
    }
}

pub(super) fn run(verbose: u8) -> Result<Exit> {
    let typed: Vec<OsString> = env::args_os().collect();
    let in_force = InForce::of(&typed)?;
    if in_force.args.print_config {
        // What would be refused at a start is refused here too.
        in_force.limits()?;
        in_force.args.filters.clone().verify()?;
        // Of other users' folders an unprivileged user knows little.
        if nix::unistd::geteuid().is_root() {
            store::verify_place(&in_force.args.store)?;
        }
        let text = in_force.toml()?;
        written(io::Write::write_all(&mut io::stdout(), text.as_bytes()))?;
        return Ok(Exit::Done);
    }
    check_privilege().map_err(|error| exit::with_hint(&error))?;
    if Path::new(DISABLED).symlink_metadata().is_ok() {
        note(&format!("observer: nothing is recorded: remove {DISABLED} to record again"));
        return Ok(Exit::Done);
    }
    // What comes before there is anything to reload must not end it.
    if !io::stdin().is_terminal() {
        sys::set_signal_handler(Signal::SIGHUP, SigHandler::SigIgn)?;
    }
    let args = &in_force.args;
    let service = Manager::of_environment();
    let named = args.filters.named_namespace();
    let filter = args.filters.clone().plan()?;
    let limits = in_force.limits()?;
    // Both are forked, and that takes a process with one thread.
    let settings = Settings { path: args.store.clone(), limits, reserve: args.reserve, has_brake: service.is_there() };
    let recorder = Recorder::start(&settings, &Identity::read().reporter).map_err(held_down)?;
    let helper = Helper::start()?;
    let session = Session::attach(helper, filter, args.allowed(), verbose)?;
    let ready = format!("{} · store {}", session.ready_line(), settings.path.display());
    let lost = Arc::new(AtomicU64::new(0));
    let next = args.output.map(|Format::Json| -> Box<dyn Sink> {
        let writer = BufWriter::with_capacity(BUFFER, io::stdout());
        Box::new(JsonLines::new(writer, session.reporter().clone()))
    });
    let changed_limits = Arc::new(Mutex::new(None));
    let sink = StoreSink::new(recorder, next, Arc::clone(&lost), Arc::clone(&changed_limits));
    let outlets = vec![Outlet { name: "the store", sink: Box::new(sink), is_needed: true }];
    let run_limits = Limits { count: None, counts: |_| false, late: LATE };
    let mut run = session.confined(outlets, run_limits, args.command_lines(), &[]);
    (run.is_recorded, run.manager) = (true, service.clone());
    let cannot_be_reloaded = in_force.cannot_be_reloaded();
    let (manager, duration, strict) = (service.clone(), args.duration, args.strict);
    let until = async move {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
        let has_terminal = io::stdin().is_terminal();
        let ends = async {
            tokio::select! {
                () = after(duration) => {}
                () = filters::watch_namespace(named) => {}
                () = disabled() => note(&format!("observer: recording ends: {DISABLED} is there")),
            }
        };
        tokio::pin!(ends);
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = &mut ends => break,
                _ = hangup.recv() => {
                    // Its terminal is gone.
                    if has_terminal {
                        break;
                    }
                    manager.tell("RELOADING=1");
                    match reload(&typed, &in_force, &changed_limits) {
                        Ok(words) => note(&format!("observer: {words}")),
                        Err(error) => note(&format!("observer: nothing was changed: {error:#}")),
                    }
                    manager.tell("READY=1");
                }
            }
        }
        manager.tell("STOPPING=1");
        Ok(())
    };
    let ended = run.run(
        || {
            note(&ready);
            cannot_be_reloaded.iter().for_each(|words| note(&format!("observer: warning: {words}")));
            service.tell("READY=1");
            Ok(())
        },
        until,
    );
    match ended.context("recording has ended")? {
        Ended::Clean(account, _) => {
            let of_the_store = lost.load(Ordering::Relaxed);
            let account = account.with_store_losses(of_the_store);
            let packets = if account.reported == 1 { "packet" } else { "packets" };
            let unseen = match account.missed_max {
                0 => String::new(),
                most => format!(", up to {most} not seen"),
            };
            note(&format!("observer: {} {packets} recorded, {} lost{unseen}", account.reported, account.lost.total()));
            Ok(if strict && anything_lost(&account) { Exit::Lost } else { Exit::Done })
        }
        Ended::ClosedPipe => Ok(Exit::Done),
        Ended::Stuck => anyhow::bail!("the store takes nothing; the last lines and the account were not stored"),
    }
}

/// A brake is what somebody wanted: the service manager must not start it again.
fn held_down(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<HeldDown>() {
        Ok(held) => UsageError {
            sentence: held.to_string(),
            hint: "`journalctl -u observer` shows why; start it with `systemctl start observer` after ten minutes"
                .to_owned(),
        }
        .into(),
        Err(error) => error,
    }
}

/// Ends when somebody has put the brake on.
async fn disabled() {
    let mut is_known = true;
    loop {
        match Path::new(DISABLED).symlink_metadata() {
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // By now this process is an unprivileged user's.
            Err(error) if is_known => {
                note(&format!("observer: cannot look for {DISABLED} while recording: {error}"));
                is_known = false;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads the configuration again, and has what needs no restart take effect; in words.
fn reload(typed: &[OsString], before: &InForce, limits: &Mutex<Option<store::Limits>>) -> Result<String> {
    let now = InForce::of(typed)?;
    let Some(file) = now.file.as_deref().or(before.file.as_deref()) else {
        return Ok(format!("nothing was changed: there is no {}", config::DEFAULT));
    };
    let file = file.display();
    // The reserve that was allocated stays until a restart.
    let wanted = now.limits_beside(before.args.reserve)?;
    if let Ok(mut limits) = limits.lock() {
        *limits = Some(wanted);
    }
    let (_, later): (Vec<String>, Vec<String>) =
        now.differs_in(before).into_iter().partition(|key| AT_ONCE.contains(&key.as_str()));
    let what = if now.file.is_some() { "was read again" } else { "is gone: the defaults are in force" };
    let at_once = now.words_for(&AT_ONCE);
    Ok(match later.as_slice() {
        [] => format!("{file} {what}: {at_once}"),
        keys => format!("{file} {what}: {at_once}; these keys take effect after a restart: {}", keys.join(", ")),
    })
}

/// Room for a day of a busy host.
const MIN_SIZE: u64 = 8 << 20;

/// Lines are kept for so long at least.
const SHORTEST: Duration = Duration::from_secs(3600);

/// How old lines may become.
fn age(text: &str) -> Result<Duration, String> {
    match super::duration(text) {
        // Days are meant as often as seconds.
        Ok(_) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("write a unit: {text}d, {text}w or {text}h"))
        }
        // `1m` is no month.
        Ok(short) if short < SHORTEST => Err("the shortest time is 1h; `m` is minutes".to_owned()),
        other => other.map_err(|_| "write for example 30d, 12w or 36h".to_owned()),
    }
}

/// Bytes: `256MiB`, `1GB`; K, M and G are powers of 1024.
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
    if text != "0" && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("write a unit: {text}MiB or {text}GiB"));
    }
    let (number, unit) =
        UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes))).unwrap_or((text, 1));
    number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_they_are_typed() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!((size("1G"), size("5MB"), size("0")), (Ok(1 << 30), Ok(5_000_000), Ok(0)));
        assert!(size("4096").is_err() && age("90").is_err() && age("90d").is_ok());
        assert!(size("much").is_err() && size("-1M").is_err() && size("99999999999999G").is_err());
    }
}

//! `observer` alone: the answer screen, within two seconds.

use std::{
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use clap::CommandFactory;
use jiff::{Timestamp, tz::TimeZone};
use tokio::signal::unix::{SignalKind, signal};

use super::{Cli, Exit, Format, config, exit, session::Session};
use crate::{
    attribute::{CommandLines, host::Identity},
    explain::rules::Allowed,
    incident::Snapshot,
    model::{Coverage, Filter, Line, Recorded},
    privilege::Helper,
    probe::attach::check_privilege,
    render::{
        overview::{self, Standing},
        screen::{self, Screen},
    },
    service::{Ended, LATE, Limits},
    sink::{Sink, fan::Outlet, jsonl::JsonLines, ordered::Ordered, terminal::Terminal},
    store::{OpenError, QueryError, Store},
};

/// How long it looks for what is blocked, and how long a fix is waited for then.
const LOOK: Duration = Duration::from_secs(1);
const FIX: Duration = Duration::from_millis(700);
/// Time between two looks for it.
const STEP: Duration = Duration::from_millis(20);

pub(super) fn run(output: Format, verbose: u8) -> Result<Exit> {
    if let Err(error) = check_privilege() {
        let _ = Cli::command().print_help();
        return Err(exit::with_hint(&error));
    }
    let mut helper = Helper::start()?;
    let standing = Standing {
        reporter: Identity::read().reporter,
        firewalls: helper.firewalls(None).map_err(|error| error.to_string()).and_then(|firewalls| firewalls),
        denies: helper.denies().map_err(|error| error.to_string()).and_then(|denies| denies),
        recorded: recorded(),
    };
    let zone = TimeZone::system();
    let width = if output == Format::Human { screen::stdout_width } else { screen::unlimited };
    let mut screen = Screen::new(BufWriter::new(anstream::AutoStream::auto(io::stdout())), width);
    let shown = match output {
        Format::Human => overview::standing(&mut screen, &standing, &Timestamp::now().to_zoned(zone.clone())),
        Format::Json => overview::json(&mut screen, &standing),
    };
    match shown.and_then(|()| screen.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
        result => result.context("cannot write the output")?,
    }
    let allowed = Allowed { replays: true, enters_cgroups: true, finds_fixes: true, first: None };
    let session = Session::attach(helper, Filter::default(), allowed, verbose)?;
    let found = Arc::new(AtomicBool::new(false));
    let sink: Box<dyn Sink> = match output {
        Format::Json => Box::new(JsonLines::new(screen, session.reporter().clone())),
        Format::Human => {
            let terminal = Terminal::new(screen, zone, false, None);
            Box::new(Watched { inner: Ordered::new(terminal, session.changing()), found: Arc::clone(&found) })
        }
    };
    let outlets = vec![Outlet { name: "the output", sink, is_needed: true }];
    let limits = Limits { count: None, counts: |_| false, late: LATE / 4 };
    let run = session.confined(outlets, limits, CommandLines::Redacted, &[]);
    let news = Arc::clone(&run.news);
    let until = async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let look = async {
            tokio::time::sleep(LOOK).await;
            let fixed = async {
                while news.load(Ordering::Acquire) {
                    tokio::time::sleep(STEP).await;
                }
            };
            let _ = tokio::time::timeout(FIX, fixed).await;
        };
        tokio::select! {
            () = look => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    };
    match run.run(|| Ok(()), until)? {
        Ended::Clean(..) if output == Format::Human => {
            let mut screen = Screen::new(anstream::AutoStream::auto(io::stdout()), screen::stdout_width);
            // A reader that is gone by now has read what mattered.
            let _ = overview::next(&mut screen, found.load(Ordering::Acquire));
        }
        Ended::Clean(..) | Ended::ClosedPipe | Ended::Stuck => {}
    }
    Ok(Exit::Done)
}

/// The last incidents in the store; `None` where there is no store.
fn recorded() -> Option<Result<Vec<Recorded>, String>> {
    const SHOWN: usize = 5;
    const OF_A_SHARE: usize = 3;
    let path = match config::OfTheStore::default().path() {
        Ok(path) => path,
        Err(error) => return Some(Err(error.to_string())),
    };
    match Store::open(&path).and_then(|store| store.last_incidents(SHOWN, OF_A_SHARE)) {
        Err(QueryError::Open(OpenError::Missing(_))) => None,
        other => Some(other.map_err(|error| error.to_string())),
    }
}

/// Notes whether there was anything to tell.
struct Watched<S> {
    inner: S,
    found: Arc<AtomicBool>,
}

impl<S: Sink> Sink for Watched<S> {
    fn take(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()> {
        self.found.fetch_or(line.is_event(false), Ordering::AcqRel);
        self.inner.take(line, story)
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
        self.inner.tick()
    }

    fn finish(&mut self, line: &Line, coverage: &Coverage) -> io::Result<()> {
        self.inner.finish(line, coverage)
    }
}

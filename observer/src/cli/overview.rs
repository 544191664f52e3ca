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

use super::{Cli, Exit, exit, session::Session};
use crate::{
    attribute::host::Identity,
    explain::rules::Allowed,
    incident::Snapshot,
    model::{Coverage, Filter, Line},
    privilege::Helper,
    probe::attach::check_privilege,
    render::overview::{self, Standing},
    service::{Ended, Limits},
    sink::{Sink, fan::Outlet, terminal::Terminal},
};

/// How long it looks for what is blocked.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(verbose: u8) -> Result<Exit> {
    if let Err(error) = check_privilege() {
        let _ = Cli::command().print_help();
        return Err(exit::with_hint(&error));
    }
    let mut helper = Helper::start()?;
    let standing = Standing {
        host: Identity::read().reporter.host,
        firewalls: helper.firewalls(None).map_err(|error| error.to_string()).and_then(|firewalls| firewalls),
        denies: helper.denies().map_err(|error| error.to_string()).and_then(|denies| denies),
    };
    let zone = TimeZone::system();
    let mut screen = BufWriter::new(anstream::AutoStream::auto(io::stdout()));
    let standing = overview::standing(&mut screen, &standing, &Timestamp::now().to_zoned(zone.clone()));
    match standing.and_then(|()| screen.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
        result => result.context("cannot write the output")?,
    }
    // A fix would come too late for this screen.
    let allowed = Allowed { replays: true, enters_cgroups: true, finds_fixes: false, first: None };
    let session = Session::attach(helper, Filter::default(), allowed, verbose)?;
    let found = Arc::new(AtomicBool::new(false));
    let output = Watched { inner: Terminal::new(screen, zone, false, None), found: Arc::clone(&found) };
    let outlets = vec![Outlet { name: "the output", sink: Box::new(output), is_needed: true }];
    let limits = Limits { count: None, counts: |_| false };
    let run = session.confined(outlets, limits, true, &[]);
    let until = async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    };
    match run.run(|| Ok(()), until)? {
        Ended::Clean(..) => {
            // A reader that is gone by now has read what mattered.
            let _ = overview::next(&mut anstream::AutoStream::auto(io::stdout()), found.load(Ordering::Acquire));
        }
        Ended::ClosedPipe | Ended::Stuck => {}
    }
    Ok(Exit::Done)
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

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

use super::{Cli, Exit, session::Session};
use crate::{
    enrich::{host::Identity, rules::Allowed},
    model::{Change, Event, Filter, Summary},
    output::{
        Output,
        overview::{self, Standing},
        terminal::Terminal,
    },
    pipeline::{Ended, Limits},
    privilege::Helper,
    probe::attach::check_privilege,
};

/// How long it looks for what is blocked.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(verbose: u8) -> Result<Exit> {
    if check_privilege().is_err() {
        let _ = Cli::command().print_help();
        return Ok(Exit::Done);
    }
    let mut helper = Helper::start()?;
    let standing = Standing {
        host: Identity::read().host,
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
    let allowed = Allowed { enters_cgroups: true, finds_fixes: false };
    let session = Session::attach(helper, Filter::default(), allowed, verbose)?;
    let found = Arc::new(AtomicBool::new(false));
    let output = Watched { inner: Terminal::new(screen, zone, false, None), found: Arc::clone(&found) };
    let run = session.confined(Box::new(output), Limits::default(), true, &[]);
    let until = async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    };
    match run.run(|| Ok(()), until)? {
        Ended::Clean(_) => {
            // A reader that is gone by now has read what mattered.
            let _ = overview::next(&mut anstream::AutoStream::auto(io::stdout()), found.load(Ordering::Acquire));
        }
        Ended::ClosedPipe | Ended::Stuck => {}
    }
    Ok(Exit::Done)
}

/// Notes whether there was anything to tell.
struct Watched<O> {
    inner: O,
    found: Arc<AtomicBool>,
}

impl<O: Output> Output for Watched<O> {
    fn event(&mut self, event: &Event) -> io::Result<bool> {
        let shown = self.inner.event(event)?;
        self.found.fetch_or(shown, Ordering::AcqRel);
        Ok(shown)
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        self.inner.change(change)
    }

    fn idle(&mut self) -> io::Result<bool> {
        self.inner.idle()
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        self.inner.finish(summary)
    }
}

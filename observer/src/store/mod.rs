//! The store: everything that was recorded, in one file of SQLite's.
//!
//! A process of its own writes it ([`keeper`]), and [`Recorder`] is this process's side of that; [`channel`] is between them. [`entry`] is a line as it is stored, [`schema`]
//! what the file looks like, [`retention`] what stays in it for how long, [`space`] how much room it takes, [`forget`] what is removed on request. [`query`] reads it, from any process that may read the file.
//!
//! A line is acknowledged once it is on the disk. What was acknowledged is there after a kill and after a loss of power.

mod age;
mod channel;
mod entry;
mod files;
mod forget;
mod keeper;
#[cfg(test)]
mod lab;
pub mod query;
mod retention;
mod schema;
mod space;
mod write;

use std::{
    ffi::CString,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::{
    sys::{
        prctl,
        signal::{SigHandler, Signal},
    },
    unistd::ForkResult,
};
use rustix::{fd::AsFd, net::RecvFlags};

pub use self::{
    channel::Progress,
    entry::Entry,
    files::{Lock, PlaceError},
    forget::Forgotten,
    keeper::Settings,
    query::{Forget, QueryError, Range, Store, Stored},
    retention::Limits,
    schema::OpenError,
    space::MAX_RESERVE,
};
use self::{
    channel::{Inbox, Reply, Request},
    entry::nanoseconds,
};
use crate::{
    confinement,
    model::{Account, Document, Reporter},
    sys,
};

/// Where the store is if nobody names another file.
pub const DEFAULT: &str = "/var/lib/observer/observer.db";
/// Name of the process that keeps it.
const NAME: &str = "observer-store";
/// A store that was not closed is looked through when it is opened: that takes a second for each few hundred megabytes.
const OPENING: Duration = Duration::from_secs(120);
/// How long what waits may take at the end.
const CLOSING: Duration = Duration::from_secs(30);

/// It was ended by force again and again.
#[derive(Debug, thiserror::Error)]
#[error("recording was ended by force three times within ten minutes, and does not start again by itself")]
pub struct HeldDown;

/// This process's side of a store that is written.
pub struct Recorder {
    socket: UnixStream,
    inbox: Inbox,
    progress: Progress,
    has_ended: bool,
    _lock: Lock,
}

impl Recorder {
    /// Opens a store for lines from now on. It forks: call it before any thread is started.
    pub fn start(settings: &Settings, reporter: &Reporter) -> Result<Self> {
        let lock = files::prepare(&settings.path)?;
        let reporter = serde_json::to_string(reporter).context("what is known of this host")?;
        let started_ns = nanoseconds(Timestamp::now());
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        match sys::fork_single_threaded().context("cannot start the process that keeps the store")? {
            ForkResult::Parent { .. } => {
                drop(theirs);
                let mut recorder = Self {
                    socket: ours,
                    inbox: Inbox::default(),
                    progress: Progress::default(),
                    has_ended: false,
                    _lock: lock,
                };
                recorder.await_opening()?;
                Ok(recorder)
            }
            ForkResult::Child => {
                drop(ours);
                // Whoever comes next waits until this one has stored what it has.
                sys::close_all_but(&[theirs.as_fd(), lock.as_fd()]);
                let kept = keep(settings, &reporter, started_ns, &theirs);
                if let Err(error) = &kept {
                    // It is heard where the store is not open yet.
                    let _ =
                        channel::send(&theirs, &Reply::Failed(format!("the process that keeps the store: {error:#}")));
                }
                std::process::exit(i32::from(kept.is_err()));
            }
        }
    }

    fn await_opening(&mut self) -> Result<()> {
        let deadline = Instant::now() + OPENING;
        loop {
            match self.inbox.next()? {
                Some(Reply::Open) => return Ok(()),
                Some(Reply::Failed(why)) => bail!("{why}"),
                Some(Reply::HeldDown) => bail!(HeldDown),
                Some(_) => bail!("the process that keeps the store says something else than that it is open"),
                None if !self.wait(deadline)? => bail!("the process that keeps the store has ended"),
                None => {}
            }
        }
    }

    /// Waits for more of what the keeper says: false where there is no more.
    fn wait(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left))?;
        match self.inbox.read(&self.socket) {
            // A machine that was suspended: the deadline is looked at again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted && Instant::now() < deadline => Ok(true),
            read => read.context("the store does not answer"),
        }
    }

    /// Hands a line over. It waits where the keeper is behind, and fails where it is gone.
    pub fn put(&mut self, entry: Entry) -> io::Result<()> {
        self.send(&Request::Line(Box::new(entry)))
    }

    /// A keeper that is gone is no reader of the output who has had enough: its closed socket must not look like that.
    fn send(&self, request: &Request) -> io::Result<()> {
        channel::send(&self.socket, request)
            .map_err(|error| io::Error::other(format!("the process that keeps the store does not answer: {error}")))
    }

    /// Hands over what lines refer to.
    pub fn keep(&mut self, document: Document) -> io::Result<()> {
        self.send(&Request::Document(Box::new(document)))
    }

    /// These limits hold from now on.
    pub fn limit(&mut self, limits: Limits) -> io::Result<()> {
        self.send(&Request::Limits(limits))
    }

    /// What has become of the lines so far, and what whoever looks after the host is to hear.
    pub fn hear(&mut self) -> io::Result<(Progress, Vec<String>)> {
        let mut bytes = [0; 4096];
        let is_ready = match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Ok((0, _)) => return Err(io::Error::other("the process that keeps the store has ended")),
            Ok(_) => true,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        if is_ready {
            self.inbox.read(&self.socket)?;
        }
        let mut notices = Vec::new();
        while let Some(said) = self.inbox.next()? {
            self.note(said, &mut notices);
        }
        let progress = self.progress.clone();
        self.progress.newly_lost.clear();
        Ok((progress, notices))
    }

    fn note(&mut self, said: Reply, notices: &mut Vec<String>) {
        match said {
            Reply::Stored(mut progress) => {
                let mut newly_lost = std::mem::take(&mut self.progress.newly_lost);
                newly_lost.append(&mut progress.newly_lost);
                self.progress = Progress { newly_lost, ..progress };
            }
            Reply::Notice(notice) => notices.push(notice),
            Reply::Ended => self.has_ended = true,
            Reply::Open | Reply::Failed(_) | Reply::HeldDown => {}
        }
    }

    /// Ends the run, and waits until everything is on the disk.
    pub fn finish(&mut self, account: &Account, at: Timestamp) -> Result<(Progress, Vec<String>)> {
        let account = serde_json::to_string(account).context("the account")?;
        self.send(&Request::End(account, nanoseconds(at)))?;
        let deadline = Instant::now() + CLOSING;
        let mut notices = Vec::new();
        while !self.has_ended {
            match self.inbox.next()? {
                Some(said) => self.note(said, &mut notices),
                None if !self.wait(deadline)? => bail!("the process that keeps the store has ended"),
                None => {}
            }
        }
        let progress = self.progress.clone();
        self.progress.newly_lost.clear();
        Ok((progress, notices))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = self.send(&Request::Abandon);
        }
    }
}

/// The keeper's whole life.
fn keep(settings: &Settings, reporter: &str, started_ns: i64, socket: &UnixStream) -> Result<()> {
    let _ = prctl::set_name(&CString::new(NAME)?);
    // Ctrl-C and a service manager's stop reach the whole group. The main process still has lines to send then; it closes the socket.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        sys::set_signal_handler(signal, SigHandler::SigIgn)?;
    }
    confinement::store::confine(files::folder(&settings.path))?;
    keeper::serve(settings, reporter, started_ns, socket)?;
    Ok(())
}

/// Why no store can be at this place, if it cannot: what [`Recorder::start`] would say of it.
pub fn verify_place(path: &Path) -> Result<(), PlaceError> {
    files::is_there(path).map(drop)
}

/// Counts the lines that [`forget`] would remove.
pub fn count_forgotten(path: &Path, what: &Forget) -> Result<i64> {
    let store = schema::open_to_read(path)?;
    forget::count(&store.connection, what).context("cannot read the store")
}

/// Removes what must not be kept, and leaves word of it.
pub fn forget(path: &Path, what: &Forget) -> Result<Forgotten> {
    // One that is empty, or no store, stays as it is.
    drop(schema::open_to_read(path)?);
    anyhow::ensure!(
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok(),
        OpenError::ReadOnly(path.to_owned())
    );
    files::is_there(path)?;
    let connection = schema::open(path)?;
    let forgotten =
        forget::forget(&connection, what, nanoseconds(Timestamp::now())).context("cannot remove it from the store")?;
    // Nobody records: it is at rest again.
    if let Ok(_lock) = files::lock(path, Duration::ZERO) {
        schema::rest(&connection);
    }
    Ok(forgotten)
}

/// Copies of a store beside it that [`forget`] does not reach: one that was damaged, or is of an older version.
pub fn copies(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return Vec::new() };
    let is_copy = |other: &str| {
        other.strip_prefix(&name).is_some_and(|rest| rest.starts_with(".damaged-") || rest.starts_with(".version-"))
    };
    let entries = fs::read_dir(files::folder(path)).into_iter().flatten().flatten();
    let mut copies: Vec<PathBuf> =
        entries.filter(|entry| is_copy(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect();
    copies.sort();
    copies
}

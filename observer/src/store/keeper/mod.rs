//! The process that keeps the store. It alone writes into it, has no privilege but its user's, and reaches no other file.
//!
//! It receives lines over a socket and answers how many of them are on the disk. If they cannot be stored, it keeps what it has room for,
//! counts the rest, and tries again every second. When the socket closes, it stores what it has and ends.

use std::{
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use self::{
    file::{Files, empty_log, inode, is_damage, is_log_full, open, set_aside},
    waiting::{BATCH, Waiting},
};
use super::{
    age::Age,
    channel::{Inbox, Reply, Request, send},
    entry::{nanoseconds, time},
    files,
    retention::Limits,
    schema::{passes, words},
    write::Writer,
};
use crate::model::Account;

mod file;
mod tidy;
mod waiting;

/// What is to be kept where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The database.
    pub path: PathBuf,
    /// How much is kept.
    pub limits: Limits,
    /// Bytes that are allocated at the start.
    pub reserve: u64,
    /// Where it was ended by force again and again, it does not start.
    pub has_brake: bool,
}

/// Lines are stored together after this time, or when there are [`BATCH`].
const GATHER: Duration = Duration::from_millis(500);
/// It is tried again so often.
const AGAIN: Duration = Duration::from_secs(1);
/// At the end it is tried again for so long.
const LAST: Duration = Duration::from_secs(20);
/// What is said beside a failure.
const GOES_ON: &str = "observer keeps running and retries every second";
/// So many ends by force within this time, nanoseconds, are too many.
const BRAKE: i64 = 3;
const BRAKE_TIME: i64 = 600_000_000_000;

/// The store, and what is on its way into it.
struct Keeper<'a> {
    settings: &'a Settings,
    limits: Limits,
    reporter: &'a str,
    /// When the run began.
    started_ns: i64,
    /// `None` while it cannot be opened.
    writer: Option<Writer>,
    /// The files that are open.
    files: Files,
    /// The folder that they are in: this process reaches no other.
    folder: Option<u64>,
    waiting: Waiting,
    /// What is failing, since when; it is said once.
    failing: Option<(String, Instant)>,
    /// When word was left that it goes on.
    lived: Instant,
    /// Old lines could not be removed, which was said.
    is_untidy: bool,
    tidied: Instant,
    age: Option<Age>,
    has_more: bool,
    /// More is in use than may be: nothing is stored until there is room.
    is_crowded: bool,
    /// Bytes in use when the file system came to have less room than its rest; `None` while it has.
    tight_at: Option<u64>,
}

/// Serves until the socket closes. The run began at `started_ns`.
pub(super) fn serve(settings: &Settings, reporter: &str, started_ns: i64, socket: &UnixStream) -> io::Result<()> {
    let (writer, failing, notice) = match open(settings, reporter, started_ns) {
        Ok((writer, notice)) => (Some(writer), None, notice),
        // It is tried again.
        Err(error) if error.may_pass() => {
            (None, Some((error.to_string(), Instant::now())), Some(format!("{error}; {GOES_ON}")))
        }
        Err(error) => return send(socket, &Reply::Failed(error.to_string())),
    };
    let by_force = writer.as_ref().and_then(|writer| writer.ended_by_force(started_ns - BRAKE_TIME, started_ns).ok());
    if let Some(writer) = writer.as_ref().filter(|_| settings.has_brake && by_force >= Some(BRAKE)) {
        let _ = writer.withdraw();
        return send(socket, &Reply::HeldDown);
    }
    let mut keeper = Keeper {
        files: Files::of(&settings.path),
        folder: inode(files::folder(&settings.path)),
        settings,
        limits: settings.limits,
        reporter,
        started_ns,
        writer,
        waiting: Waiting::default(),
        failing,
        lived: Instant::now(),
        is_untidy: false,
        tidied: Instant::now(),
        age: None,
        has_more: true,
        is_crowded: false,
        tight_at: None,
    };
    send(socket, &Reply::Open)?;
    for notice in notice.into_iter().chain(keeper.killed_before()).chain(keeper.reserve()) {
        send(socket, &Reply::Notice(notice))?;
    }
    let mut inbox = Inbox::default();
    let mut due: Option<Instant> = keeper.failing.is_some().then(|| Instant::now() + AGAIN);
    loop {
        let wait = match due {
            Some(due) if !keeper.is_crowded => due.saturating_duration_since(Instant::now()),
            _ => keeper.until_tidy(),
        };
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let is_open = match inbox.read(socket) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => true,
            other => other.unwrap_or(false),
        };
        while let Some(request) = inbox.next()? {
            match request {
                Request::Line(entry) => keeper.waiting.take(*entry),
                Request::Document(document) => keeper.waiting.keep(*document, now_ns()),
                Request::Limits(limits) => {
                    (keeper.limits, keeper.has_more) = (limits, true);
                    continue;
                }
                Request::End(account, ended_ns) => {
                    let said = keeper.end(Some(&account), ended_ns);
                    said.iter().try_for_each(|said| send(socket, said))?;
                    return send(socket, &Reply::Ended);
                }
                Request::Abandon => {
                    keeper.abandon();
                    return Ok(());
                }
            }
            due = due.or_else(|| Some(Instant::now() + GATHER));
        }
        if !is_open {
            // Nobody hears what comes of it.
            let deadline = Instant::now() + LAST;
            keeper.store();
            while keeper.waiting.lines() > 0 && keeper.failing.is_none() && Instant::now() < deadline {
                keeper.tidy();
                keeper.store();
            }
            return Ok(());
        }
        let is_due = due.is_some_and(|due| due <= Instant::now());
        let may_try = keeper.failing.as_ref().is_none_or(|_| is_due);
        if !keeper.is_crowded && (is_due || keeper.waiting.lines() >= BATCH && may_try) {
            // Whoever does not hear this is gone: what waits is stored once the socket says so.
            let _ = keeper.store().iter().try_for_each(|said| send(socket, said));
            due = match (&keeper.failing, keeper.is_crowded) {
                (Some(_), _) => Some(Instant::now() + AGAIN),
                (None, true) => Some(Instant::now()),
                (None, false) => None,
            };
        }
        if let Some(notice) = keeper.tidy() {
            let _ = send(socket, &Reply::Notice(notice));
        }
    }
}

fn now_ns() -> i64 {
    nanoseconds(Timestamp::now())
}

impl Keeper<'_> {
    /// What is to be said of a recorder before this one that was ended by force.
    fn killed_before(&self) -> Option<String> {
        let alive_ns = self.writer.as_ref()?.killed_before().ok()??;
        let alive = time(alive_ns).strftime("%Y-%m-%d %H:%M:%S UTC");
        Some(format!(
            "the last recorder was ended by force: nothing is recorded of the time from {alive}, its last commit, until now"
        ))
    }

    /// The account, JSON, with all that was lost here.
    fn with_losses(&self, account: Option<&str>) -> Option<String> {
        let account: Account = serde_json::from_str(account?).ok()?;
        let more = self.waiting.lost_packets.saturating_sub(account.lost.store);
        serde_json::to_string(&account.with_store_losses(more)).ok()
    }

    /// Ends a run that never began to observe, or whose output failed.
    fn abandon(&mut self) {
        let has_lines = self.waiting.had_lines();
        // Something may refer to the run already: what was removed meanwhile is noted in it.
        let is_withdrawn = !has_lines && self.writer.as_ref().is_some_and(|writer| writer.withdraw().is_ok());
        if !is_withdrawn {
            self.end(None, now_ns());
        }
    }

    /// Stores what waits; what is to be said of it.
    fn store(&mut self) -> Vec<Reply> {
        let mut said = Vec::new();
        while self.failing.is_some() || !self.waiting.is_empty() {
            match self.store_some(&mut said) {
                Ok(()) => {
                    if let Some((why, since)) = self.failing.take() {
                        let lost = self.waiting.lost_lines;
                        said.push(Reply::Notice(format!(
                            "the store takes lines again after {} s ({why}); {lost} lines are missing from it so far",
                            since.elapsed().as_secs()
                        )));
                    }
                    said.push(self.waiting.progress());
                    if self.is_crowded {
                        break;
                    }
                }
                Err(why) => {
                    if self.failing.is_none() {
                        said.push(Reply::Notice(format!("{why}; {GOES_ON}")));
                        self.failing = Some((why, Instant::now()));
                    }
                    said.push(self.waiting.progress());
                    break;
                }
            }
        }
        said
    }

    /// Stores one batch.
    fn store_some(&mut self, said: &mut Vec<Reply>) -> Result<(), String> {
        self.look_at_the_file(said)?;
        let path = self.settings.path.display();
        if self.writer.is_none() {
            if inode(files::folder(&self.settings.path)) != self.folder {
                return Err(format!("the folder of the store {path} was replaced: restart observer to record there"));
            }
            let (writer, notice) =
                open(self.settings, self.reporter, self.started_ns).map_err(|error| error.to_string())?;
            said.extend(notice.map(Reply::Notice));
            self.writer = Some(writer);
            self.age = None;
            self.files = Files::of(&self.settings.path);
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let gap = self.waiting.gap(self.failing.as_ref().map(|(why, _)| why.as_str()));
        if is_log_full(self.settings) {
            match empty_log(writer) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(format!(
                        "cannot write to the store {path}: a program that reads it keeps its log from being emptied"
                    ));
                }
                // What the next write says of it is done about it.
                Err(_) => {}
            }
        }
        let (lines, documents) = self.waiting.batch();
        let result = writer.store(lines, documents, gap.as_ref(), now_ns());
        match result {
            Ok(()) => {
                self.waiting.is_stored();
                self.watch_room();
                Ok(())
            }
            Err(error) => {
                // What is open may be what is wrong; or somebody else has written, and what was known of the store is read anew.
                if !passes(&error) {
                    self.writer = None;
                }
                if is_damage(&error) {
                    said.push(Reply::Notice(set_aside(&self.settings.path, &error)?));
                }
                Err(format!("cannot write to the store {path}: {}", words(&error)))
            }
        }
    }

    /// The end of the run.
    fn end(&mut self, account: Option<&str>, ended_ns: i64) -> Vec<Reply> {
        let mut said = self.store();
        let deadline = Instant::now() + LAST;
        while self.waiting.lines() > 0 && Instant::now() < deadline {
            if self.is_crowded && self.failing.is_none() {
                self.tidy();
            } else {
                std::thread::sleep(AGAIN);
            }
            said.extend(self.store());
        }
        self.waiting.lose_all();
        let account = self.with_losses(account);
        if self.writer.is_none() {
            said.push(Reply::Notice("the end of recording was not stored: the store cannot be opened".to_owned()));
        }
        while let Some(writer) = &mut self.writer {
            let why = self.failing.as_ref().map_or("recording was ended", |(why, _)| why);
            let gap = self.waiting.gap(Some(why));
            match writer.end(account.as_deref(), gap.as_ref(), ended_ns) {
                Ok(()) => break,
                Err(error) if Instant::now() >= deadline => {
                    said.push(Reply::Notice(format!("the end of recording was not stored: {}", words(&error))));
                    break;
                }
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
        said.push(self.waiting.progress());
        said
    }
}

//! The process that keeps the store. It alone writes into it, has no privilege but its user's, and reaches no other file.
//!
//! It receives lines over a socket and answers how many of them are on the disk. If they cannot be stored, it keeps what it has room for,
//! counts the rest, and tries again every second. When the socket closes, it stores what it has and ends.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::ErrorCode;

use super::{
    age::Age,
    channel::{Inbox, Progress, Reply, Request, send},
    entry::{Entry, nanoseconds},
    files,
    retention::{self, Limits},
    schema::{self, OpenError, words},
    space::{self, Room},
    write::{Gap, Writer},
};
use crate::model::{Account, Document};

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

/// Lines are stored together: after this time, or when there are so many.
const GATHER: Duration = Duration::from_millis(500);
const BATCH: usize = 2000;
/// Lines that wait where nothing can be stored, and their bytes.
const MAX_WAITING: usize = 50_000;
const MAX_WAITING_BYTES: usize = 32 << 20;
/// Bytes of rulesets that wait.
const MAX_WAITING_DOCUMENTS: usize = 16 << 20;
/// Bytes of the write-ahead log, beside what the reserve takes of it. Whoever reads for long keeps it from being emptied.
const MAX_LOG: u64 = 64 << 20;
/// It is tried again so often.
const AGAIN: Duration = Duration::from_secs(1);
/// At the end it is tried again for so long.
const LAST: Duration = Duration::from_secs(20);
/// What is said beside a failure.
const GOES_ON: &str = "observing goes on, and it is tried again every second";
/// So many ends by force within this time, nanoseconds, are too many.
const BRAKE: i64 = 3;
const BRAKE_TIME: i64 = 600_000_000_000;
/// While nothing is stored, word that the run goes on is left so often.
const ALIVE: Duration = Duration::from_secs(300);
/// Old lines are looked after so often; while there is much to do, a little after each batch.
const TIDY: Duration = Duration::from_secs(30);
const TIDY_MORE: Duration = Duration::from_millis(100);
/// And so often while lines come.
const TIDY_BESIDE: Duration = Duration::from_secs(2);
/// A store may have so much on a file system that is nearly full, too.
const LEAST: u64 = 4 << 20;
/// More than this part over the limit is too much; then room is made for so long before anything else.
const CROWDED: u64 = 8;
const CROWDED_TIME: Duration = Duration::from_millis(200);

/// Lines on their way into the store.
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
    waiting: VecDeque<Entry>,
    waiting_bytes: usize,
    documents: Vec<Document>,
    /// Lines that were handed over.
    taken: u64,
    stored: u64,
    lost: Lost,
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

/// Lines that found no room since the last word about it; and all.
#[derive(Default)]
struct Lost {
    since: Option<Gap>,
    lines: u64,
    packets: u64,
    /// Which they are, since the last word.
    which: Vec<(u64, u64)>,
}

impl Lost {
    fn count(&mut self, number: u64, packets: u64) {
        (self.lines, self.packets) = (self.lines + 1, self.packets + packets);
        match self.which.last_mut() {
            Some((first, lines)) if *first + *lines == number => *lines += 1,
            _ => self.which.push((number, 1)),
        }
    }
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
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        documents: Vec::new(),
        taken: 0,
        stored: 0,
        lost: Lost::default(),
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
    for notice in notice.into_iter().chain(keeper.reserve()) {
        send(socket, &Reply::Notice(notice))?;
    }
    let mut inbox = Inbox::default();
    let mut due: Option<Instant> = keeper.failing.is_some().then(|| Instant::now() + AGAIN);
    loop {
        let wait = match (due, keeper.has_more) {
            _ if keeper.is_crowded => Duration::ZERO,
            (Some(due), _) => due.saturating_duration_since(Instant::now()),
            (None, true) => TIDY_MORE,
            (None, false) => TIDY,
        };
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let is_open = match inbox.read(socket) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => true,
            other => other.unwrap_or(false),
        };
        while let Some(request) = inbox.next()? {
            match request {
                Request::Line(entry) => keeper.take(*entry),
                Request::Document(document) => keeper.keep(*document),
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
            while !keeper.waiting.is_empty() && keeper.failing.is_none() && Instant::now() < deadline {
                keeper.tidy();
                keeper.store();
            }
            return Ok(());
        }
        let is_due = due.is_some_and(|due| due <= Instant::now());
        let may_try = keeper.failing.as_ref().is_none_or(|_| is_due);
        if !keeper.is_crowded && (is_due || keeper.waiting.len() >= BATCH && may_try) {
            keeper.store().iter().try_for_each(|said| send(socket, said))?;
            due = match (&keeper.failing, keeper.is_crowded) {
                (Some(_), _) => Some(Instant::now() + AGAIN),
                (None, true) => Some(Instant::now()),
                (None, false) => None,
            };
        }
        if let Some(notice) = keeper.tidy() {
            send(socket, &Reply::Notice(notice))?;
        }
    }
}

/// Opens the store. One that is damaged is moved aside, which is said.
fn open(settings: &Settings, reporter: &str, started_ns: i64) -> Result<(Writer, Option<String>), OpenError> {
    let path = &settings.path;
    files::make(path).map_err(|error| OpenError::Make { path: path.clone(), error })?;
    let opened = Writer::open(path, reporter, started_ns).and_then(|writer| match is_whole(&writer) {
        Ok(()) => Ok(writer),
        Err(error) => Err(OpenError::Database { path: path.clone(), error }),
    });
    match opened {
        Ok(writer) => Ok((writer, None)),
        Err(OpenError::Database { error, .. }) if is_damage(&error) => {
            let failed = |error| OpenError::Copy { path: path.clone(), error };
            // A file of another kind was named by mistake.
            if !schema::has_been_one(path) {
                return Err(OpenError::Foreign(path.clone()));
            }
            let aside = schema::set_aside(path, Timestamp::now()).map_err(failed)?;
            files::make(path).map_err(failed)?;
            let writer = Writer::open(path, reporter, started_ns)?;
            Ok((writer, Some(damaged(path, &aside, &error))))
        }
        Err(error) => Err(error),
    }
}

fn damaged(path: &Path, aside: &Path, error: &rusqlite::Error) -> String {
    format!(
        "the store {} is damaged ({error}): it is now {}, which `sqlite3 FILE .recover` may still read; recording goes on in a new one",
        path.display(),
        aside.display()
    )
}

/// Looks through it after a run that was ended by force: the machine may have lost power.
fn is_whole(writer: &Writer) -> rusqlite::Result<()> {
    let sql =
        "SELECT count(*) FROM (SELECT ended_ns FROM runs ORDER BY id DESC LIMIT 1 OFFSET 1) WHERE ended_ns IS NULL";
    let by_force: i64 = writer.connection.query_row(sql, [], |row| row.get(0))?;
    if by_force == 0 {
        return Ok(());
    }
    let said: String = writer.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some(said)))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Inode numbers of a store and its log.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Files {
    store: Option<u64>,
    log: Option<u64>,
}

impl Files {
    fn of(path: &Path) -> Self {
        Self { store: inode(path), log: inode(&files::beside(path, "-wal")) }
    }
}

fn inode(path: &Path) -> Option<u64> {
    Some(fs::metadata(path).ok()?.ino())
}

fn now_ns() -> i64 {
    nanoseconds(Timestamp::now())
}

impl Keeper<'_> {
    /// Takes a line, or counts it where there is no room.
    fn take(&mut self, entry: Entry) {
        let bytes = weight(&entry);
        self.taken += 1;
        if self.waiting.len() >= MAX_WAITING || self.waiting_bytes + bytes > MAX_WAITING_BYTES {
            self.lose(self.taken - 1, &entry);
            return;
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(entry);
    }

    /// Counts a line that is not stored.
    fn lose(&mut self, number: u64, entry: &Entry) {
        self.lost.count(number, entry.packets);
        let gap = self.lost.since.get_or_insert_with(|| Gap {
            from_ns: entry.at_ns,
            until_ns: entry.at_ns,
            lines: 0,
            packets: 0,
            why: String::new(),
        });
        (gap.lines, gap.packets) = (gap.lines + 1, gap.packets + entry.packets);
        (gap.from_ns, gap.until_ns) = (gap.from_ns.min(entry.at_ns), gap.until_ns.max(entry.at_ns));
    }

    /// The account, JSON, with all that was lost here.
    fn with_losses(&self, account: Option<&str>) -> Option<String> {
        let account: Account = serde_json::from_str(account?).ok()?;
        let more = self.lost.packets.saturating_sub(account.lost.store);
        serde_json::to_string(&account.with_store_losses(more)).ok()
    }

    /// Ends a run that never began to observe, or whose output failed.
    fn abandon(&mut self) {
        let has_lines = self.taken > 0;
        match &self.writer {
            Some(writer) if !has_lines => {
                let _ = writer.withdraw();
            }
            _ => {
                self.end(None, now_ns());
            }
        }
    }

    /// Takes what lines refer to, or leaves word that it is missing.
    fn keep(&mut self, document: Document) {
        let waiting: usize = self.documents.iter().map(|document| document.packed.len()).sum();
        if waiting + document.packed.len() <= MAX_WAITING_DOCUMENTS {
            self.documents.push(document);
        } else {
            let now_ns = now_ns();
            self.lost.since.get_or_insert_with(|| Gap {
                from_ns: now_ns,
                until_ns: now_ns,
                lines: 0,
                packets: 0,
                why: String::new(),
            });
        }
    }

    /// Stores what waits; what is to be said of it.
    fn store(&mut self) -> Vec<Reply> {
        let mut said = Vec::new();
        while self.failing.is_some()
            || !self.waiting.is_empty()
            || !self.documents.is_empty()
            || self.lost.since.is_some()
        {
            match self.store_some(&mut said) {
                Ok(()) => {
                    if let Some((why, since)) = self.failing.take() {
                        let lost = self.lost.lines;
                        said.push(Reply::Notice(format!(
                            "the store takes lines again after {} s ({why}); {lost} lines are missing from it so far",
                            since.elapsed().as_secs()
                        )));
                    }
                    said.push(self.counts());
                    if self.is_crowded {
                        break;
                    }
                }
                Err(why) => {
                    if self.failing.is_none() {
                        said.push(Reply::Notice(format!("{why}; {GOES_ON}")));
                        self.failing = Some((why, Instant::now()));
                    }
                    said.push(self.counts());
                    break;
                }
            }
        }
        said
    }

    fn counts(&mut self) -> Reply {
        Reply::Stored(Progress {
            stored: self.stored,
            lost: self.lost.lines,
            lost_packets: self.lost.packets,
            newly_lost: std::mem::take(&mut self.lost.which),
        })
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
        let gap = self.lost.since.as_ref().map(|gap| {
            let why = match &self.failing {
                Some((why, _)) => why.clone(),
                None if gap.lines == 0 => "a ruleset was not stored: the queue was full".to_owned(),
                None => "the store was too slow".to_owned(),
            };
            Gap { why, ..gap.clone() }
        });
        if is_log_full(self.settings) && !empty_log(writer) {
            return Err(format!(
                "cannot write to the store {path}: a program that reads it keeps its log from being emptied"
            ));
        }
        let count = self.waiting.len().min(BATCH);
        let result = writer.store(&self.waiting.make_contiguous()[..count], &self.documents, gap.as_ref(), now_ns());
        match result {
            Ok(()) => {
                let bytes: usize = self.waiting.drain(..count).map(|entry| weight(&entry)).sum();
                self.waiting_bytes -= bytes;
                self.stored += count as u64;
                self.lost.since = None;
                self.documents.clear();
                // What comes in must not be faster than what goes.
                let used = Room::of(&writer.connection).map_or(0, |room| room.used);
                let limit = limit(&self.limits, self.settings.reserve, self.tight_at);
                // Nor may one share be over its part for long.
                self.has_more |= used > limit || self.tidied.elapsed() > TIDY_BESIDE;
                self.is_crowded = used > limit + limit / CROWDED;
                Ok(())
            }
            Err(error) => {
                if is_damage(&error) {
                    self.writer = None;
                    let aside =
                        schema::set_aside(&self.settings.path, Timestamp::now()).map_err(|error| error.to_string())?;
                    said.push(Reply::Notice(damaged(&self.settings.path, &aside, &error)));
                } else if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) {
                    // Somebody else has written: what was known of the store is read anew.
                    self.writer = None;
                } else if !matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
                ) {
                    // What is open may be what is wrong.
                    self.writer = None;
                }
                Err(format!("cannot write to the store {path}: {}", words(&error)))
            }
        }
    }

    /// Somebody may have moved or removed the file: lines that are written to it from then on are lost.
    fn look_at_the_file(&mut self, said: &mut Vec<Reply>) -> Result<(), String> {
        let path = &self.settings.path;
        let now = Files::of(path);
        // It is there with the first transaction.
        self.files.log = self.files.log.or(now.log);
        let Some(writer) = self.writer.as_ref().filter(|_| now != self.files) else { return Ok(()) };
        // What is in the log belongs to the file that was open: a new store, or a new log, would throw it away.
        if !empty_log(writer) {
            let path = path.display();
            return Err(format!("the store {path} or its log was moved or removed while another program uses it"));
        }
        self.writer = None;
        if inode(files::folder(path)) != self.folder {
            return Ok(());
        }
        let store = path.display();
        said.push(Reply::Notice(if now.store == self.files.store {
            format!("the log of the store {store} was removed; what was in it is in the store")
        } else {
            format!("the store {store} was moved or removed: a new one is begun")
        }));
        Ok(())
    }

    /// Looks after what is kept, a little at a time.
    fn tidy(&mut self) -> Option<String> {
        let every = match (self.is_crowded, self.has_more) {
            (true, _) => Duration::ZERO,
            (false, true) => TIDY_MORE,
            (false, false) => TIDY,
        };
        if self.failing.is_some() || self.tidied.elapsed() < every {
            return None;
        }
        let was_crowded = std::mem::replace(&mut self.is_crowded, false);
        let is_full = self.writer.as_ref().is_some_and(|writer| is_log_full(self.settings) && !empty_log(writer));
        if is_full {
            // Somebody reads: what is removed now would only make the log longer.
            (self.tidied, self.has_more) = (Instant::now(), false);
            return None;
        }
        let writer = self.writer.as_mut()?;
        let limits = &self.limits;
        let mut notice = None;
        let tidied: rusqlite::Result<bool> = (|| {
            if self.lived.elapsed() > ALIVE {
                writer.live(now_ns())?;
                self.lived = Instant::now();
            }
            let Room { used, free } = Room::of(&writer.connection)?;
            let is_tight = available(&self.settings.path).is_some_and(|left| left < limits.rest);
            if is_tight && self.tight_at.is_none() {
                let most = limit(limits, self.settings.reserve, Some((used + free).max(LEAST)));
                notice = Some(format!(
                    "the file system of {} has less than {} MiB left (--keep-free): the store grows to no more than {} MiB and removes \
                     its oldest lines",
                    self.settings.path.display(),
                    limits.rest >> 20,
                    most >> 20
                ));
            }
            // Pages that the file has already are used: those of the reserve.
            self.tight_at = is_tight.then(|| self.tight_at.unwrap_or((used + free).max(LEAST)));
            let limit = limit(limits, self.settings.reserve, self.tight_at);
            let age = match &mut self.age {
                Some(age) => age,
                None => self.age.insert(Age::read(&writer.connection, now_ns())?),
            };
            let now_ns = age.now(&writer.connection, now_ns())?;
            let until = Instant::now() + if was_crowded { CROWDED_TIME } else { Duration::ZERO };
            let has_more = loop {
                let has_more = retention::step(&writer.connection, limits, limit, now_ns)?;
                if !has_more || Instant::now() >= until {
                    break has_more;
                }
            };
            // Where nothing can be removed, lines are stored all the same.
            self.is_crowded = was_crowded && has_more && Room::of(&writer.connection)?.used > limit;
            if !has_more {
                space::shrink(&writer.connection, self.settings.reserve)?;
                // New lines have taken its pages. While there is room, others take their place.
                let (path, reserve) = (&self.settings.path, self.settings.reserve);
                if free.min(log(path)) < reserve / 2 && has_room_for(path, limits.rest + 2 * reserve) {
                    space::reserve(&writer.connection, reserve, log(path))?;
                }
            }
            Ok(has_more)
        })();
        // Steps before one that failed are done: texts that were removed have no number any more.
        if let Some(writer) = &mut self.writer {
            writer.forget_numbers();
        }
        self.tidied = Instant::now();
        self.has_more = match tidied {
            Ok(has_more) => has_more,
            Err(error) if is_damage(&error) => {
                self.writer = None;
                return match schema::set_aside(&self.settings.path, Timestamp::now()) {
                    Ok(aside) => Some(damaged(&self.settings.path, &aside, &error)),
                    Err(other) => {
                        Some(format!("the store {} is damaged ({error}): {other}", self.settings.path.display()))
                    }
                };
            }
            Err(error) => {
                let passes = matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
                );
                if !passes && !std::mem::replace(&mut self.is_untidy, true) {
                    notice = Some(format!(
                        "cannot remove old lines from the store {}: {}; it is tried again",
                        self.settings.path.display(),
                        words(&error)
                    ));
                }
                false
            }
        };
        notice
    }

    /// Allocates the reserve; what is to be said where that is not possible.
    fn reserve(&mut self) -> Option<String> {
        let writer = self.writer.as_ref()?;
        let Settings { path, limits, reserve, .. } = self.settings;
        let free = Room::of(&writer.connection).map_or(0, |room| room.free);
        // As much for the file as for its log, as far as they do not have it from before.
        let missing = reserve.saturating_sub(free) + reserve.saturating_sub(log(path));
        let failed = if missing > 0 && !has_room_for(path, limits.rest + missing) {
            format!(
                "the file system has less than {} MiB left, twice the reserve (--reserve) beside what is to stay free (--keep-free)",
                (limits.rest + missing) >> 20
            )
        } else {
            space::reserve(&writer.connection, *reserve, log(path)).err().map(|error| words(&error))?
        };
        Some(format!("no room is held in reserve for the store {}: {failed}", path.display()))
    }

    /// The end of the run.
    fn end(&mut self, account: Option<&str>, ended_ns: i64) -> Vec<Reply> {
        let mut said = self.store();
        let deadline = Instant::now() + LAST;
        while !self.waiting.is_empty() && Instant::now() < deadline {
            if self.is_crowded && self.failing.is_none() {
                self.tidy();
            } else {
                std::thread::sleep(AGAIN);
            }
            said.extend(self.store());
        }
        // Lines are stored in order: those that are not are the last.
        let left = self.taken - u64::try_from(self.waiting.len()).unwrap_or(0);
        for (number, entry) in (left..).zip(std::mem::take(&mut self.waiting)) {
            self.lose(number, &entry);
        }
        let account = self.with_losses(account);
        if self.writer.is_none() {
            said.push(Reply::Notice("the end of recording was not stored: the store cannot be opened".to_owned()));
        }
        while let Some(writer) = &mut self.writer {
            let gap = self.lost.since.as_ref().map(|gap| {
                let why = self.failing.as_ref().map_or("recording was ended", |(why, _)| why);
                Gap { why: why.to_owned(), ..gap.clone() }
            });
            match writer.end(account.as_deref(), gap.as_ref(), ended_ns) {
                Ok(()) => break,
                Err(error) if Instant::now() >= deadline => {
                    said.push(Reply::Notice(format!("the end of recording was not stored: {}", words(&error))));
                    break;
                }
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
        said.push(self.counts());
        said
    }
}

/// Bytes that may be in use. The reserve counts: the file takes no more than was said. On a file system that is nearly full they are no more
/// than the file had when it came to that.
fn limit(limits: &Limits, reserve: u64, tight_at: Option<u64>) -> u64 {
    let whole = limits.bytes.saturating_sub(reserve);
    tight_at.map_or(whole, |used| whole.min(used))
}

/// Bytes of the log beside a store.
fn log(path: &Path) -> u64 {
    fs::metadata(files::beside(path, "-wal")).map_or(0, |about| about.len())
}

fn is_log_full(settings: &Settings) -> bool {
    log(&settings.path) > MAX_LOG + settings.reserve
}

/// Empties the log: false where somebody reads the store as it was.
fn empty_log(writer: &Writer) -> bool {
    writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)) == Ok(0)
}

/// Bytes that a line takes in memory, about.
fn weight(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.body.len() + entry.who.as_ref().map_or(0, |who| who.body.len())
}

/// The file system of the store has so many bytes left for others than root.
fn has_room_for(path: &Path, bytes: u64) -> bool {
    available(path).is_none_or(|left| left >= bytes)
}

/// Bytes that the file system of the store has for others than root.
fn available(path: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(files::folder(path)).ok()?;
    Some(about.f_bavail * about.f_frsize)
}

//! The file of the store: how it is opened, whether it is still the one that is open, and what room it has.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use jiff::Timestamp;
use rusqlite::ErrorCode;

use super::{Keeper, Settings};
use crate::store::{
    channel::Reply,
    files,
    schema::{self, OpenError, words},
    write::Writer,
};

/// Bytes of the write-ahead log, beside what the reserve takes of it. Whoever reads for long keeps it from being emptied.
const MAX_LOG: u64 = 64 << 20;

/// Opens the store. One that is damaged is moved aside, which is said.
pub(super) fn open(
    settings: &Settings,
    reporter: &str,
    started_ns: i64,
) -> Result<(Writer, Option<String>), OpenError> {
    let path = &settings.path;
    files::make(path).map_err(|error| OpenError::Make { path: path.clone(), error })?;
    let opened = Writer::open(path, reporter, started_ns).and_then(|writer| match is_whole(&writer) {
        Ok(()) => Ok(writer),
        Err(error) => Err(OpenError::Database { path: path.clone(), error }),
    });
    match opened {
        Ok(writer) => Ok((writer, None)),
        Err(OpenError::Database { error, .. }) if is_damage(&error) => {
            // A file of another kind was named by mistake.
            if !schema::has_been_one(path) {
                return Err(OpenError::Foreign(path.clone()));
            }
            let said = set_aside(path, &error).map_err(OpenError::Aside)?;
            files::make(path).map_err(|error| OpenError::Make { path: path.clone(), error })?;
            let writer = Writer::open(path, reporter, started_ns)?;
            Ok((writer, Some(said)))
        }
        Err(error) => Err(error),
    }
}

/// Moves a damaged store aside; what is to be said of it, or why that failed.
pub(super) fn set_aside(path: &Path, error: &rusqlite::Error) -> Result<String, String> {
    let store = path.display();
    let aside = schema::set_aside(path, Timestamp::now())
        .map_err(|failed| format!("the store {store} is damaged ({error}) and cannot be moved aside: {failed}"))?;
    Ok(format!(
        "the store {store} is damaged ({error}): it is now {}, which `sqlite3 FILE .recover` may still read; recording goes on in a new one",
        aside.display()
    ))
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

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Inode numbers of a store and its log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Files {
    store: Option<u64>,
    pub(super) log: Option<u64>,
}

impl Files {
    pub(super) fn of(path: &Path) -> Self {
        Self { store: inode(path), log: inode(&files::beside(path, "-wal")) }
    }
}

pub(super) fn inode(path: &Path) -> Option<u64> {
    Some(fs::metadata(path).ok()?.ino())
}

impl Keeper<'_> {
    /// Somebody may have moved or removed the file: lines that are written to it from then on are lost.
    pub(super) fn look_at_the_file(&mut self, said: &mut Vec<Reply>) -> Result<(), String> {
        let path = &self.settings.path;
        let now = Files::of(path);
        // It is there with the first transaction.
        self.files.log = self.files.log.or(now.log);
        let Some(writer) = self.writer.as_ref().filter(|_| now != self.files) else { return Ok(()) };
        // What is in the log belongs to the file that was open: a new store, or a new log, would throw it away.
        let store = path.display();
        match empty_log(writer) {
            Ok(true) => {}
            Ok(false) => {
                return Err(format!("the store {store} or its log was moved or removed while another program uses it"));
            }
            Err(error) => {
                return Err(format!("the store {store} or its log was moved or removed: {}", words(&error)));
            }
        }
        self.writer = None;
        if inode(files::folder(path)) != self.folder {
            return Ok(());
        }
        said.push(Reply::Notice(if now.store == self.files.store {
            format!("the log of the store {store} was removed; what was in it is in the store")
        } else {
            format!("the store {store} was moved or removed: a new one is begun")
        }));
        Ok(())
    }
}

/// Bytes of the log beside a store.
pub(super) fn log(path: &Path) -> u64 {
    fs::metadata(files::beside(path, "-wal")).map_or(0, |about| about.len())
}

pub(super) fn is_log_full(settings: &Settings) -> bool {
    log(&settings.path) > MAX_LOG + settings.reserve
}

/// Empties the log: false where somebody reads the store as it was.
pub(super) fn empty_log(writer: &Writer) -> rusqlite::Result<bool> {
    writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}

/// The file system of the store has so many bytes left for others than root.
pub(super) fn has_room_for(path: &Path, bytes: u64) -> bool {
    available(path).is_none_or(|left| left >= bytes)
}

/// Bytes that the file system of the store has for others than root.
pub(super) fn available(path: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(files::folder(path)).ok()?;
    Some(about.f_bavail * about.f_frsize)
}

//! The database: how it is opened, what is in it, and how an older one becomes a newer one.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::files::beside;

/// `application_id` of a store: `obsv`, which `file` shows.
pub(super) const APPLICATION: i64 = 0x6f62_7376;
/// What brings a database of each version to the next one, from an empty file on. A published step is never changed: a store of that
/// version exists somewhere.
const STEPS: [&str; 1] = [V1];

const V1: &str = include_str!("schema/v1.sql");

/// A lock that somebody else holds is waited for so long; then lines wait, and it is tried again.
const PATIENCE: Duration = Duration::from_millis(250);
/// Pages of the write-ahead log after which it goes into the database.
const CHECKPOINT: u32 = 1000;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a later version of this program.
    #[error("{} is of version {found} and this observer reads up to {}: use the newer observer", .path.display(), STEPS.len())]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// Some other database.
    #[error("{} is no store of observer's", .0.display())]
    Foreign(PathBuf),
    /// It is not there.
    #[error("there is no store at {}: `observer record` makes one", .0.display())]
    Missing(PathBuf),
    /// The reader is in neither root nor the group.
    #[error("{} may not be read by this user: use sudo, or join the group `_observer` if the package made it", .0.display())]
    Forbidden(PathBuf),
    /// It is to be written by somebody else than root.
    #[error("only root can change {}: use sudo", .0.display())]
    ReadOnly(PathBuf),
    /// SQLite's own words.
    #[error("cannot open {}: {}", .path.display(), words(.error))]
    Database {
        /// The store.
        path: PathBuf,
        /// What failed.
        error: rusqlite::Error,
    },
    /// Its file.
    #[error("cannot make {}: {error}", .path.display())]
    Make {
        /// The store.
        path: PathBuf,
        /// What failed.
        error: io::Error,
    },
    /// It is damaged and stays where it is, which this says.
    #[error("{0}")]
    Aside(String),
    /// A file beside it.
    #[error("cannot copy {}: {error}", .path.display())]
    Copy {
        /// The store.
        path: PathBuf,
        /// What failed.
        error: io::Error,
    },
}

/// What SQLite's error means, in an administrator's words.
pub(super) fn words(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "no space is left in its file system".to_owned(),
        Some(ErrorCode::ReadOnly) => "it is read-only".to_owned(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another program holds its lock".to_owned(),
        Some(ErrorCode::SystemIoFailure) => format!("the disk does not take it ({error})"),
        _ => error.to_string(),
    }
}

impl OpenError {
    /// It is the disk's or another program's doing, and may pass.
    pub(super) fn may_pass(&self) -> bool {
        let Self::Database { error, .. } = self else { return false };
        passes(error) || matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::SystemIoFailure))
    }
}

/// Another program's lock or a full disk: nothing is wrong with what is open.
pub(super) fn passes(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull))
}

/// Opens a file whatever its name is: some relative names mean something else to SQLite.
fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let absolute = std::path::absolute(path).map_err(|error| OpenError::Make { path: path.to_owned(), error })?;
    let failed = |error| OpenError::Database { path: path.to_owned(), error };
    let connection = Connection::open_with_flags(absolute, flags).map_err(failed)?;
    // What a stranger wrote into a file does nothing but give rows.
    connection.pragma_update(None, "trusted_schema", false).map_err(failed)?;
    Ok(connection)
}

/// Opens a store to write, makes it where there is none, and brings an older one to this version.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error| OpenError::Database { path: path.to_owned(), error };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = connect(path, flags)?;
    connection.busy_timeout(PATIENCE).map_err(failed)?;
    let found = version(&connection, path)?;
    // Takes effect before the first table alone, and gives space back later without a rewrite of everything.
    if found == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
        connection.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    // COMMIT returns once the log is on the disk.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT).map_err(failed)?;
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(failed)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
    // What is removed is written over.
    connection.pragma_update(None, "secure_delete", true).map_err(failed)?;
    if found != STEPS.len() {
        if found > 0 {
            copy(&connection, path, found)?;
        }
        upgrade(&connection, &STEPS).map_err(failed)?;
    }
    Ok(connection)
}

/// A store at rest is one file, which the group can read: of a log beside it SQLite wants to write an index. Where somebody reads meanwhile it
/// stays as it is, which is no harm.
pub(super) fn rest(connection: &Connection) {
    let _ = connection.pragma_update(None, "journal_mode", "DELETE");
}

/// A store that is open to be read.
pub(super) struct Readable {
    pub(super) connection: Connection,
}

/// Opens a store to read, whether or not it is being written.
///
/// After a kill the log has to be read anew, for which SQLite wants to write an index beside it. Whoever may not do that reads a copy.
pub(super) fn open_to_read(path: &Path) -> Result<Readable, OpenError> {
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened.and_then(|file| file.metadata()) {
        Ok(about) if !about.is_file() => return Err(OpenError::Foreign(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(OpenError::Forbidden(path.to_owned()));
        }
        _ => {}
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    match readable(path, flags) {
        Err(OpenError::Database { error, .. })
            if matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen)) =>
        {
            let copy = Copy::of(path).map_err(|error| OpenError::Copy { path: path.to_owned(), error })?;
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            // SQLite has its files open by now: what is removed at once is not left by Ctrl-C.
            Ok(Readable { connection: readable(&copy.path, flags)? })
        }
        opened => Ok(Readable { connection: opened? }),
    }
}

fn readable(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let failed = |error| OpenError::Database { path: path.to_owned(), error };
    let connection = connect(path, flags)?;
    connection.busy_timeout(10 * PATIENCE).map_err(failed)?;
    match version(&connection, path)? {
        0 => Err(OpenError::Missing(path.to_owned())),
        _ => Ok(connection),
    }
}

/// A store and its log in a folder of the reader's own, which this removes when it is dropped.
struct Copy {
    folder: PathBuf,
    path: PathBuf,
}

impl Copy {
    fn of(path: &Path) -> io::Result<Self> {
        let folder = nix::unistd::mkdtemp(&std::env::temp_dir().join("observer-XXXXXX"))?;
        let copy = Self { path: folder.join("store.db"), folder };
        // The log last: what is in it and in the store too is the same.
        fs::copy(path, &copy.path)?;
        match fs::copy(beside(path, "-wal"), beside(&copy.path, "-wal")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for file in [copy.path.clone(), beside(&copy.path, "-wal")] {
            match fs::set_permissions(&file, fs::Permissions::from_mode(0o600)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Its version, 0 for an empty file.
fn version(connection: &Connection, path: &Path) -> Result<usize, OpenError> {
    let failed = |error| OpenError::Database { path: path.to_owned(), error };
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(failed);
    let (application, version, tables) =
        (number("application_id")?, number("user_version")?, number("schema_version")?);
    if application != APPLICATION && (application != 0 || version != 0 || tables != 0) {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    match usize::try_from(version) {
        Ok(version) if version <= STEPS.len() => Ok(version),
        _ => Err(OpenError::Newer { path: path.to_owned(), found: version }),
    }
}

/// Keeps the database as it was, beside it: an older program goes on with that.
fn copy(connection: &Connection, path: &Path, version: usize) -> Result<(), OpenError> {
    let kept = beside(path, &format!(".version-{version}"));
    if kept.exists() {
        return Ok(());
    }
    let failed = |error| OpenError::Copy { path: path.to_owned(), error };
    // What an interrupted one left is no copy.
    let begun = beside(&kept, ".new");
    match fs::remove_file(&begun) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    connection
        .execute("VACUUM INTO ?1", [begun.to_string_lossy()])
        .map_err(|error| OpenError::Database { path: path.to_owned(), error })?;
    let permissions = fs::metadata(path).map_err(failed)?.permissions();
    fs::set_permissions(&begun, permissions).map_err(failed)?;
    fs::File::open(&begun).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(&begun, &kept).map_err(failed)
}

/// Begins a transaction that writes. [`commit`] ends it.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")
}

/// Ends a transaction: what was done in it is on the disk when this returns, or none of it where something failed.
pub(super) fn commit<T>(connection: &Connection, done: rusqlite::Result<T>) -> rusqlite::Result<T> {
    let ended = done.and_then(|done| connection.execute_batch("COMMIT").map(|()| done));
    if ended.is_err() {
        // Some errors have done that already.
        let _ = connection.execute_batch("ROLLBACK");
    }
    ended
}

/// Takes all steps that it has not taken yet, each whole or not at all.
fn upgrade(connection: &Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (step, version) in steps.iter().zip(1..).skip(usize::try_from(found).unwrap_or(0)) {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {version}; COMMIT;"))?;
    }
    Ok(())
}

/// The file begins as SQLite's do, or has the mark of a store: what is damaged was one.
pub(super) fn has_been_one(path: &Path) -> bool {
    let mut head = [0; 72];
    let is_read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok();
    is_read && (head.starts_with(b"SQLite format 3\0") || head[68..] == APPLICATION.to_be_bytes()[4..])
}

/// Moves a damaged database aside, with what belongs to it. Nothing of it is removed: `sqlite3 FILE .recover` reads what can be read.
pub(super) fn set_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let aside = beside(path, &format!(".damaged-{}", now.strftime("%Y%m%dT%H%M%SZ")));
    fs::rename(path, &aside)?;
    for ending in ["-wal", "-shm"] {
        match fs::rename(beside(path, ending), beside(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_new_store_is_of_this_version() {
        let folder = folder();
        let path = folder.path().join("s.db");
        let store = open(&path).unwrap();
        let text = |name| store.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
        let number = |name| store.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!((text("journal_mode").as_str(), number("synchronous"), number("auto_vacuum")), ("wal", 2, 2));
        assert_eq!(number("user_version"), 1);
        drop(store);
        assert!(open(&path).is_ok() && open_to_read(&path).is_ok());
    }

    #[test]
    fn a_newer_one_is_refused_in_a_sentence() {
        let folder = folder();
        let path = folder.path().join("s.db");
        open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
        for refused in [open(&path).map(drop), open_to_read(&path).map(drop)] {
            let sentence = refused.unwrap_err().to_string();
            assert!(
                sentence.ends_with("is of version 7 and this observer reads up to 1: use the newer observer"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn another_programs_database_stays_as_it_is() {
        let folder = folder();
        let path = folder.path().join("s.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Foreign(_))));
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::write(&path, "no database, and long enough that it could be taken for the head of one: ".repeat(20))
            .unwrap();
        assert!(matches!(open(&path), Err(OpenError::Database { .. })));
        assert!(matches!(open_to_read(&folder.path().join("none.db")), Err(OpenError::Missing(_))));
    }

    #[test]
    fn an_upgrade_is_whole_or_not_at_all() {
        let folder = folder();
        let path = folder.path().join("s.db");
        let store = open(&path).unwrap();
        let broken = [V1, "CREATE TABLE more (a INTEGER); CREATE TABLE runs (a INTEGER);"];
        assert!(upgrade(&store, &broken).is_err());
        let _ = store.execute_batch("ROLLBACK");
        let count = |store: &Connection, name: &str| {
            let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
            store.query_row(sql, [name], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!(count(&store, "more"), 0);
        copy(&store, &path, 1).unwrap();
        upgrade(&store, &[V1, "CREATE TABLE more (a INTEGER);"]).unwrap();
        assert_eq!(count(&store, "more"), 1);
        let older = Connection::open(folder.path().join("s.db.version-1")).unwrap();
        assert_eq!((count(&older, "more"), count(&older, "runs")), (0, 1));
    }

    #[test]
    fn what_is_damaged_is_kept_beside() {
        let folder = folder();
        let path = folder.path().join("s.db");
        fs::write(&path, "damaged").unwrap();
        fs::write(folder.path().join("s.db-wal"), "log").unwrap();
        let aside = set_aside(&path, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(aside, folder.path().join("s.db.damaged-19700101T000000Z"));
        assert_eq!(fs::read(&aside).unwrap(), b"damaged");
        assert!(!path.exists() && folder.path().join("s.db.damaged-19700101T000000Z-wal").exists());
    }
}

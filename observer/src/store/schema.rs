//! The database: how it is opened, what is in it, and how an older one becomes a newer one.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
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

/// Nothing that SQLite 3.31 does not read: the `sqlite3` of older distributions is to open it. Times are nanoseconds since 1970, UTC. `parts` has what many lines share; a column that is not known is NULL.
const V1: &str = "
CREATE TABLE runs (
  id          INTEGER PRIMARY KEY,
  reporter    TEXT    NOT NULL,          -- agent and host, JSON
  started_ns  INTEGER NOT NULL,
  alive_ns    INTEGER NOT NULL,          -- the last time that lines were stored
  ended_ns    INTEGER,                   -- NULL: it runs, or it was ended by force
  account     TEXT                       -- JSON
);
CREATE TABLE gaps (
  id          INTEGER PRIMARY KEY,
  run         INTEGER NOT NULL REFERENCES runs,
  noted_ns    INTEGER NOT NULL,          -- when this was written
  from_ns     INTEGER NOT NULL,          -- the first and the last of what is missing
  until_ns    INTEGER NOT NULL,
  lines       INTEGER NOT NULL,
  packets     INTEGER NOT NULL,
  why         TEXT    NOT NULL           -- what could not be stored, or was removed
);
CREATE TABLE shares (
  id          INTEGER PRIMARY KEY,
  name        TEXT    NOT NULL UNIQUE,   -- a user or a namespace that fills the store
  weight      INTEGER NOT NULL DEFAULT 0 -- bytes that it takes, about: the triggers keep it
);
CREATE TABLE stories (
  id          INTEGER PRIMARY KEY,
  story       BLOB    NOT NULL UNIQUE,   -- an incident of one user, unit or container
  incident    BLOB    NOT NULL,
  share       INTEGER NOT NULL REFERENCES shares,
  rule        TEXT,                      -- hash of the rule's statement
  first_ns    INTEGER NOT NULL,
  last_ns     INTEGER NOT NULL,
  first_line  INTEGER NOT NULL,
  last_line   INTEGER NOT NULL,
  lines       INTEGER NOT NULL,          -- rows of `lines`
  packets     INTEGER NOT NULL,          -- of all lines, those that were folded or removed too
  bytes       INTEGER NOT NULL
);
CREATE INDEX stories_by_time ON stories(last_ns);
CREATE INDEX stories_by_share ON stories(share, last_ns);
CREATE INDEX stories_by_first ON stories(share, first_ns);
CREATE INDEX stories_with_more ON stories(share, last_ns) WHERE lines > 2;
CREATE INDEX stories_by_start ON stories(first_ns);
CREATE INDEX stories_by_incident ON stories(incident);
CREATE INDEX stories_by_rule ON stories(rule) WHERE rule IS NOT NULL;
CREATE TABLE processes (
  id          INTEGER PRIMARY KEY,
  hash        BLOB    NOT NULL UNIQUE,
  share       INTEGER NOT NULL,          -- of the first line with it
  pid         INTEGER,
  name        TEXT,
  executable  TEXT,
  uid         INTEGER,
  unit        TEXT,
  container   TEXT,
  body        TEXT    NOT NULL           -- the sender, JSON
);
CREATE INDEX processes_by_pid ON processes(pid);
CREATE INDEX processes_by_user ON processes(uid);
CREATE TABLE documents (
  id          INTEGER PRIMARY KEY,
  sha256      TEXT    NOT NULL UNIQUE,   -- of the text: what rules have as `ruleset_sha256`
  share       INTEGER NOT NULL,          -- of the first who had it
  stored_ns   INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,          -- of the text
  body        BLOB    NOT NULL           -- compressed: sqlar_uncompress(body, bytes)
);
CREATE TABLE states (
  id          INTEGER PRIMARY KEY,
  run         INTEGER NOT NULL REFERENCES runs,
  share       INTEGER NOT NULL,
  kind        TEXT    NOT NULL,          -- ruleset, routes, unit
  subject     TEXT    NOT NULL,          -- a network namespace, or a unit
  at_ns       INTEGER NOT NULL,          -- from this time on it was seen to be so
  sha256      TEXT    NOT NULL           -- its text, in `documents`
);
CREATE INDEX states_by_subject ON states(kind, subject, at_ns);
CREATE INDEX states_by_document ON states(sha256);
CREATE INDEX states_by_share ON states(share, at_ns);
CREATE TABLE parts (
  id          INTEGER PRIMARY KEY,
  hash        BLOB    NOT NULL UNIQUE,
  share       INTEGER NOT NULL,          -- of the first line with it
  destination TEXT,
  port        INTEGER,
  protocol    INTEGER,
  ruleset     TEXT,                      -- SHA-256: it may be in `documents`
  body        TEXT    NOT NULL           -- what a line says beside its sender, times and numbers, JSON
);
CREATE INDEX parts_by_destination ON parts(destination, port);
CREATE INDEX parts_by_ruleset ON parts(ruleset) WHERE ruleset IS NOT NULL;
CREATE TABLE lines (
  id          INTEGER PRIMARY KEY,
  run         INTEGER NOT NULL REFERENCES runs,
  line        BLOB,
  sequence    INTEGER,
  action      TEXT    NOT NULL,
  at_ns       INTEGER NOT NULL,
  start_ns    INTEGER,
  end_ns      INTEGER,
  share       INTEGER NOT NULL,          -- of its story, where it has one
  story       INTEGER REFERENCES stories,
  process     INTEGER REFERENCES processes,
  part        INTEGER NOT NULL REFERENCES parts,
  source      TEXT,                      -- JSON
  packets     INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,
  folded      INTEGER NOT NULL DEFAULT 1 -- how many lines this row stands for
);
CREATE INDEX lines_by_time ON lines(at_ns);
CREATE INDEX lines_by_story ON lines(story, at_ns) WHERE story IS NOT NULL;
CREATE INDEX lines_of_no_story ON lines(share, at_ns) WHERE story IS NULL;
CREATE INDEX lines_by_process ON lines(process) WHERE process IS NOT NULL;
CREATE INDEX lines_by_part ON lines(part);
CREATE INDEX lines_by_run ON lines(run);
CREATE TRIGGER line_stored AFTER INSERT ON lines BEGIN
  UPDATE shares SET weight = weight + 200 WHERE id = NEW.share; END;
CREATE TRIGGER line_removed AFTER DELETE ON lines BEGIN
  UPDATE shares SET weight = weight - 200 WHERE id = OLD.share; END;
CREATE TRIGGER story_stored AFTER INSERT ON stories BEGIN
  UPDATE shares SET weight = weight + 300 WHERE id = NEW.share; END;
CREATE TRIGGER story_removed AFTER DELETE ON stories BEGIN
  UPDATE shares SET weight = weight - 300 WHERE id = OLD.share; END;
CREATE TRIGGER process_stored AFTER INSERT ON processes BEGIN
  UPDATE shares SET weight = weight + 200 + length(NEW.body) WHERE id = NEW.share; END;
CREATE TRIGGER process_removed AFTER DELETE ON processes BEGIN
  UPDATE shares SET weight = weight - 200 - length(OLD.body) WHERE id = OLD.share; END;
CREATE TRIGGER part_stored AFTER INSERT ON parts BEGIN
  UPDATE shares SET weight = weight + 200 + length(NEW.body) WHERE id = NEW.share; END;
CREATE TRIGGER part_removed AFTER DELETE ON parts BEGIN
  UPDATE shares SET weight = weight - 200 - length(OLD.body) WHERE id = OLD.share; END;
CREATE TRIGGER document_stored AFTER INSERT ON documents BEGIN
  UPDATE shares SET weight = weight + 200 + length(NEW.body) WHERE id = NEW.share; END;
CREATE TRIGGER document_removed AFTER DELETE ON documents BEGIN
  UPDATE shares SET weight = weight - 200 - length(OLD.body) WHERE id = OLD.share; END;
CREATE TRIGGER state_stored AFTER INSERT ON states BEGIN
  UPDATE shares SET weight = weight + 300 WHERE id = NEW.share; END;
CREATE TRIGGER state_removed AFTER DELETE ON states BEGIN
  UPDATE shares SET weight = weight - 300 WHERE id = OLD.share; END;
CREATE TABLE state (
  name        TEXT PRIMARY KEY,
  value       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE VIEW blocked AS SELECT
    l.id, datetime(l.at_ns / 1000000000, 'unixepoch') AS time, l.packets, w.name AS program, w.pid, w.uid, w.unit, w.container,
    p.destination, p.port, p.protocol,
    json_extract(p.body, '$.Blocked.finding') AS finding, json_extract(p.body, '$.Blocked.rule.text') AS rule
  FROM lines l JOIN parts p ON p.id = l.part LEFT JOIN processes w ON w.id = l.process
  WHERE l.action = 'egress-blocked';
CREATE VIEW not_recorded AS SELECT
    datetime(coalesce(a.ended_ns, a.alive_ns) / 1000000000, 'unixepoch') AS since,
    (SELECT datetime(b.started_ns / 1000000000, 'unixepoch') FROM runs b WHERE b.id > a.id ORDER BY b.id LIMIT 1) AS until,
    CASE WHEN a.ended_ns IS NULL THEN 'ended by force: this is the last commit' ELSE 'stopped' END AS why, NULL AS lines
  FROM runs a WHERE a.ended_ns IS NOT NULL OR EXISTS (SELECT 1 FROM runs b WHERE b.id > a.id)
  UNION ALL SELECT datetime(from_ns / 1000000000, 'unixepoch'), datetime(until_ns / 1000000000, 'unixepoch'), why, lines FROM gaps
  ORDER BY 1;
";

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
    #[error("{} is a file of another program: name another one with --store", .0.display())]
    Foreign(PathBuf),
    /// It is not there.
    #[error("there is no store at {}: `observer record` makes one, `--store` names another", .0.display())]
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
        matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::DiskFull
                    | ErrorCode::ReadOnly
                    | ErrorCode::SystemIoFailure
            )
        )
    }
}

/// Opens a store to write, makes it where there is none, and brings an older one to this version.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error| OpenError::Database { path: path.to_owned(), error };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
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
    match fs::File::open(path) {
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
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
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

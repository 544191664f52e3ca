//! What goes into the store: lines in transactions, and the time in which they were taken.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    entry::{Entry, Of, Who, hash},
    schema::{self, OpenError},
};

/// Bytes that a line takes in the store beside its texts, with its places in the indexes; about.
pub(super) const LINE: i64 = 200;
/// Texts whose numbers are remembered.
const REMEMBERED: usize = 10_000;

/// What could not be stored, or was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) from_ns: i64,
    pub(super) until_ns: i64,
    pub(super) lines: u64,
    pub(super) packets: u64,
    pub(super) why: String,
}

/// An open store, and the run that its lines belong to.
pub(super) struct Writer {
    pub(super) connection: Connection,
    run: i64,
    next_line: i64,
    /// Changes when somebody else writes.
    version: i64,
    /// Numbers of texts, by their hash. Right only as long as every transaction is committed.
    parts: HashMap<[u8; 16], i64>,
    processes: HashMap<[u8; 16], i64>,
}

impl Writer {
    /// Opens a store for the lines of one run.
    pub(super) fn open(path: &Path, reporter: &str, started_ns: i64) -> Result<Self, OpenError> {
        let connection = schema::open(path)?;
        let begun = begin(&connection, reporter, started_ns);
        let (run, next_line) = begun.map_err(|error| OpenError::Database { path: path.to_owned(), error })?;
        Ok(Self { connection, run, next_line, version: 0, parts: HashMap::new(), processes: HashMap::new() })
    }

    /// Stores lines and what is missing between them: all, or none of it. It is on the disk when this returns.
    pub(super) fn store(&mut self, entries: &[Entry], gap: Option<&Gap>, now_ns: i64) -> rusqlite::Result<()> {
        let next_line = self.next_line;
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        // Somebody else may have removed texts, and given their numbers to others.
        let version = self.connection.pragma_query_value(None, "data_version", |row| row.get(0)).unwrap_or(0);
        if std::mem::replace(&mut self.version, version) != version {
            self.forget_numbers();
        }
        let stored = self.put_all(entries, gap, now_ns).and_then(|()| self.connection.execute_batch("COMMIT"));
        if stored.is_err() {
            // Some errors have done that already.
            let _ = self.connection.execute_batch("ROLLBACK");
            self.forget_numbers();
            self.next_line = next_line;
        }
        stored
    }

    /// Texts are removed from the store: what was remembered of them is not right any more.
    pub(super) fn forget_numbers(&mut self) {
        self.parts.clear();
        self.processes.clear();
    }

    fn put_all(&mut self, entries: &[Entry], gap: Option<&Gap>, now_ns: i64) -> rusqlite::Result<()> {
        if self.parts.len() + self.processes.len() > REMEMBERED {
            self.forget_numbers();
        }
        for entry in entries {
            self.put(entry)?;
        }
        if let Some(gap) = gap {
            note(&self.connection, self.run, gap)?;
        }
        let alive = "UPDATE runs SET alive_ns = max(alive_ns, ?1) WHERE id = ?2";
        self.connection.prepare_cached(alive)?.execute((now_ns, self.run)).map(drop)
    }

    fn put(&mut self, entry: &Entry) -> rusqlite::Result<()> {
        let (process, of_process) = entry.who.as_ref().map(|who| self.process(who)).transpose()?.unzip();
        let (part, of_part) = self.part(entry)?;
        let weight = LINE + of_process.unwrap_or(0) + of_part;
        let line = self.next_line;
        let story = entry.of.as_ref().map(|of| self.story(of, entry, line, weight)).transpose()?;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO lines (id, run, line, sequence, action, at_ns, start_ns, end_ns, story, process, part, source, packets, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?;
        statement.execute(params![
            line,
            self.run,
            entry.line.map(|id| *id.as_bytes()),
            entry.sequence.map(signed),
            entry.action,
            entry.at_ns,
            entry.span_ns.map(|(start, _)| start),
            entry.span_ns.map(|(_, end)| end),
            story,
            process,
            part,
            entry.source,
            signed(entry.packets),
            signed(entry.bytes),
        ])?;
        self.next_line += 1;
        Ok(())
    }

    /// Number of a sender, and how many bytes it is new.
    fn process(&mut self, who: &Who) -> rusqlite::Result<(i64, i64)> {
        let key = hash(&who.body);
        if let Some(known) = self.processes.get(&key) {
            return Ok((*known, 0));
        }
        let find = "SELECT id FROM processes WHERE hash = ?1";
        let known = self.connection.prepare_cached(find)?.query_row([key], |row| row.get(0)).optional()?;
        let (number, bytes) = if let Some(number) = known {
            (number, 0)
        } else {
            let Who { pid, name, executable, uid, unit, container, body } = who;
            let mut insert = self.connection.prepare_cached(
                "INSERT INTO processes (hash, pid, name, executable, uid, unit, container, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            (insert.insert(params![key, pid, name, executable, uid, unit, container, body])?, LINE + length(body))
        };
        self.processes.insert(key, number);
        Ok((number, bytes))
    }

    /// The same of what lines share beside it.
    fn part(&mut self, entry: &Entry) -> rusqlite::Result<(i64, i64)> {
        let key = hash(&entry.body);
        if let Some(known) = self.parts.get(&key) {
            return Ok((*known, 0));
        }
        let find = "SELECT id FROM parts WHERE hash = ?1";
        let known = self.connection.prepare_cached(find)?.query_row([key], |row| row.get(0)).optional()?;
        let (number, bytes) = if let Some(number) = known {
            (number, 0)
        } else {
            let Entry { destination, port, protocol, body, .. } = entry;
            let insert = "INSERT INTO parts (hash, destination, port, protocol, body) VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut insert = self.connection.prepare_cached(insert)?;
            (insert.insert(params![key, destination, port, protocol, body])?, LINE + length(body))
        };
        self.parts.insert(key, number);
        Ok((number, bytes))
    }

    /// Number of the story, which has one more line.
    fn story(&self, of: &Of, entry: &Entry, line: i64, weight: i64) -> rusqlite::Result<i64> {
        let share = "INSERT INTO shares (name) VALUES (?1) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id";
        let share: i64 = self.connection.prepare_cached(share)?.query_row([&of.share], |row| row.get(0))?;
        let (first, last) = entry.span_ns.unwrap_or((entry.at_ns, entry.at_ns));
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO stories
               (story, incident, share, rule, first_ns, last_ns, first_line, last_line, lines, weight, packets, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1, ?8, ?9, ?10)
             ON CONFLICT (story) DO UPDATE SET
               rule = coalesce(rule, excluded.rule), first_ns = min(first_ns, excluded.first_ns),
               last_ns = max(last_ns, excluded.last_ns), last_line = excluded.last_line, lines = lines + 1,
               weight = weight + excluded.weight, packets = packets + excluded.packets, bytes = bytes + excluded.bytes
             RETURNING id",
        )?;
        statement.query_row(
            params![
                *of.story.as_bytes(),
                *of.incident.as_bytes(),
                share,
                of.rule.map(|rule| rule.to_string()),
                first,
                last.max(entry.at_ns),
                line,
                weight,
                signed(entry.packets),
                signed(entry.bytes),
            ],
            |row| row.get(0),
        )
    }

    /// Ends the run: `account` is JSON.
    pub(super) fn end(&mut self, account: &str, ended_ns: i64) -> rusqlite::Result<()> {
        let end = "UPDATE runs SET ended_ns = ?1, alive_ns = max(alive_ns, ?1), account = ?2 WHERE id = ?3";
        self.connection.execute(end, (ended_ns, account, self.run))?;
        // A store at rest is one file, which the group can read: of a log beside it SQLite wants to write an index. Where somebody
        // reads meanwhile it stays as it is, which is no harm.
        let _ = self.connection.pragma_update(None, "journal_mode", "DELETE");
        Ok(())
    }
}

/// Begins a run, or goes on with it; its number, and that of the next line.
fn begin(connection: &Connection, reporter: &str, started_ns: i64) -> rusqlite::Result<(i64, i64)> {
    let same = "SELECT id FROM runs WHERE started_ns = ?1 AND reporter = ?2 AND ended_ns IS NULL";
    let run = match connection.query_row(same, (started_ns, reporter), |row| row.get(0)).optional()? {
        Some(run) => run,
        None => {
            let begin = "INSERT INTO runs (reporter, started_ns, alive_ns) VALUES (?1, ?2, ?2)";
            connection.prepare(begin)?.insert((reporter, started_ns))?
        }
    };
    let next = connection.query_row("SELECT coalesce(max(id), 0) + 1 FROM lines", [], |row| row.get(0))?;
    Ok((run, next))
}

/// Leaves word of what is missing.
pub(super) fn note(connection: &Connection, run: i64, gap: &Gap) -> rusqlite::Result<()> {
    let Gap { from_ns, until_ns, lines, packets, why } = gap;
    let sql = "INSERT INTO gaps (run, from_ns, until_ns, lines, packets, why) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.execute(sql, params![run, from_ns, until_ns, signed(*lines), signed(*packets), why]).map(drop)
}

/// SQLite's numbers have a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn length(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

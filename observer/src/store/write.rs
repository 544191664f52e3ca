//! What goes into the store: lines in transactions, and the time in which they were taken.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    entry::{Entry, Of, Who, hash, nanoseconds, share_name},
    schema::{self, OpenError},
};
use crate::model::Document;

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
    shares: HashMap<String, i64>,
}

impl Writer {
    /// Opens a store for the lines of one run.
    pub(super) fn open(path: &Path, reporter: &str, started_ns: i64) -> Result<Self, OpenError> {
        let connection = schema::open(path)?;
        let begun = begin(&connection, reporter, started_ns);
        let (run, next_line) = begun.map_err(|error| OpenError::Database { path: path.to_owned(), error })?;
        Ok(Self {
            connection,
            run,
            next_line,
            version: 0,
            parts: HashMap::new(),
            processes: HashMap::new(),
            shares: HashMap::new(),
        })
    }

    /// Stores lines and what is missing between them: all, or none of it. It is on the disk when this returns.
    pub(super) fn store(
        &mut self,
        entries: &[Entry],
        documents: &[Document],
        gap: Option<&Gap>,
        now_ns: i64,
    ) -> rusqlite::Result<()> {
        let next_line = self.next_line;
        schema::begin(&self.connection)?;
        // Somebody else may have removed texts, and given their numbers to others.
        let version = self.connection.pragma_query_value(None, "data_version", |row| row.get(0)).unwrap_or(0);
        if std::mem::replace(&mut self.version, version) != version {
            self.forget_numbers();
        }
        let put = self.put_all(entries, documents, gap, now_ns);
        let stored = schema::commit(&self.connection, put);
        if stored.is_err() {
            self.forget_numbers();
            self.next_line = next_line;
        }
        stored
    }

    /// Texts are removed from the store: what was remembered of them is not right any more.
    pub(super) fn forget_numbers(&mut self) {
        self.parts.clear();
        self.processes.clear();
        self.shares.clear();
    }

    fn put_all(
        &mut self,
        entries: &[Entry],
        documents: &[Document],
        gap: Option<&Gap>,
        now_ns: i64,
    ) -> rusqlite::Result<()> {
        if self.parts.len() + self.processes.len() + self.shares.len() > REMEMBERED {
            self.forget_numbers();
        }
        for entry in entries {
            self.put(entry)?;
        }
        for document in documents {
            self.keep(document, now_ns)?;
        }
        if let Some(gap) = gap {
            note(&self.connection, self.run, gap, now_ns)?;
        }
        self.live(now_ns)
    }

    /// Stores a text once, and that it is so from then on where it was otherwise before.
    fn keep(&mut self, document: &Document, now_ns: i64) -> rusqlite::Result<()> {
        let share = self.share(&share_name(document.share, None))?;
        let insert = "INSERT OR IGNORE INTO documents (sha256, share, stored_ns, bytes, body, weight) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        self.connection.prepare_cached(insert)?.execute(params![
            document.sha256,
            share,
            now_ns,
            signed(document.bytes),
            document.packed,
            // Its digest is in an index too.
            weight(document.packed.len() + 2 * document.sha256.len()),
        ])?;
        let (kind, at_ns): (&str, i64) = (document.kind.into(), nanoseconds(document.at));
        let last = "SELECT sha256 FROM states WHERE kind = ?1 AND subject = ?2 ORDER BY at_ns DESC, id DESC LIMIT 1";
        let last: Option<String> =
            self.connection.prepare_cached(last)?.query_row((kind, &document.subject), |row| row.get(0)).optional()?;
        if last.as_ref() != Some(&document.sha256) {
            let insert = "INSERT INTO states (run, share, kind, subject, at_ns, sha256, line) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let mut insert = self.connection.prepare_cached(insert)?;
            insert.execute(params![
                self.run,
                share,
                kind,
                document.subject,
                at_ns,
                document.sha256,
                self.next_line - 1
            ])?;
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry) -> rusqlite::Result<()> {
        let line = self.next_line;
        let mut share = self.share(&entry.share)?;
        let story = entry.of.as_ref().map(|of| self.story(of, entry, line, share)).transpose()?;
        let story = story.map(|(story, of_story)| {
            // What comes later of a story is on the account of whoever began it.
            share = of_story;
            story
        });
        let process = entry.who.as_ref().map(|who| self.process(who, share)).transpose()?;
        let part = self.part(entry, share)?;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO lines (id, run, line, sequence, action, at_ns, start_ns, end_ns, share, story, process, part, source, packets, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
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
            share,
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

    /// Number of a share.
    fn share(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(known) = self.shares.get(name) {
            return Ok(*known);
        }
        let find = "SELECT id FROM shares WHERE name = ?1";
        let known = self.connection.prepare_cached(find)?.query_row([name], |row| row.get(0)).optional()?;
        let number = match known {
            Some(number) => number,
            None => self.connection.prepare_cached("INSERT INTO shares (name) VALUES (?1)")?.insert([name])?,
        };
        self.shares.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Number of a sender.
    fn process(&mut self, who: &Who, share: i64) -> rusqlite::Result<i64> {
        let key = hash(&who.body);
        if let Some(known) = self.processes.get(&key) {
            return Ok(*known);
        }
        let find = "SELECT id FROM processes WHERE hash = ?1";
        let known = self.connection.prepare_cached(find)?.query_row([key], |row| row.get(0)).optional()?;
        let number = if let Some(number) = known {
            number
        } else {
            let Who { pid, name, executable, uid, unit, container, body } = who;
            let mut insert = self.connection.prepare_cached(
                "INSERT INTO processes (hash, share, pid, name, executable, uid, unit, container, body, weight)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            let texts = [name, executable, unit, container].into_iter().flatten().map(String::len).sum::<usize>();
            let weight = weight(body.len() + texts);
            insert.insert(params![key, share, pid, name, executable, uid, unit, container, body, weight])?
        };
        self.processes.insert(key, number);
        Ok(number)
    }

    /// Number of what lines share beside it.
    fn part(&mut self, entry: &Entry, share: i64) -> rusqlite::Result<i64> {
        let key = hash(&entry.body);
        if let Some(known) = self.parts.get(&key) {
            return Ok(*known);
        }
        let find = "SELECT id FROM parts WHERE hash = ?1";
        let known = self.connection.prepare_cached(find)?.query_row([key], |row| row.get(0)).optional()?;
        let number = if let Some(number) = known {
            number
        } else {
            let Entry { destination, port, protocol, ruleset, body, .. } = entry;
            let insert = "INSERT INTO parts (hash, share, destination, port, protocol, ruleset, body, weight)
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let mut insert = self.connection.prepare_cached(insert)?;
            // They are in an index too.
            let texts = [destination, ruleset].into_iter().flatten().map(String::len).sum::<usize>();
            let weight = weight(body.len() + 2 * texts);
            insert.insert(params![key, share, destination, port, protocol, ruleset, body, weight])?
        };
        self.parts.insert(key, number);
        Ok(number)
    }

    /// Number of the story, which has one more line, and of its share.
    fn story(&self, of: &Of, entry: &Entry, line: i64, share: i64) -> rusqlite::Result<(i64, i64)> {
        let (first, last) = entry.span_ns.unwrap_or((entry.at_ns, entry.at_ns));
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO stories
               (story, incident, share, rule, first_ns, last_ns, first_line, last_line, lines, packets, bytes, background)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1, ?8, ?9, ?10)
             ON CONFLICT (story) DO UPDATE SET
               rule = coalesce(rule, excluded.rule), first_ns = min(first_ns, excluded.first_ns),
               last_ns = max(last_ns, excluded.last_ns), last_line = excluded.last_line, lines = lines + 1,
               packets = packets + excluded.packets, bytes = bytes + excluded.bytes
             RETURNING id, share",
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
                signed(entry.packets),
                signed(entry.bytes),
                of.is_background,
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// Leaves word that the run goes on.
    pub(super) fn live(&self, now_ns: i64) -> rusqlite::Result<()> {
        let alive = "UPDATE runs SET alive_ns = max(alive_ns, ?1) WHERE id = ?2";
        self.connection.prepare_cached(alive)?.execute((now_ns, self.run)).map(drop)
    }

    /// How many other runs that were alive last between these times were ended by force. With a clock that was set back nothing is known.
    pub(super) fn ended_by_force(&self, since_ns: i64, until_ns: i64) -> rusqlite::Result<i64> {
        let sql = "SELECT count(*) FROM runs WHERE ended_ns IS NULL AND id <> ?1 AND alive_ns BETWEEN ?2 AND ?3";
        self.connection.query_row(sql, (self.run, since_ns, until_ns), |row| row.get(0))
    }

    /// When the run before this one was alive last, where it was ended by force.
    pub(super) fn killed_before(&self) -> rusqlite::Result<Option<i64>> {
        let sql = "SELECT alive_ns FROM (SELECT alive_ns, ended_ns FROM runs WHERE id < ?1 ORDER BY id DESC LIMIT 1)
                   WHERE ended_ns IS NULL";
        self.connection.query_row(sql, [self.run], |row| row.get(0)).optional()
    }

    /// Takes the run back: nothing is recorded in it.
    pub(super) fn withdraw(&self) -> rusqlite::Result<()> {
        self.connection.execute("DELETE FROM runs WHERE id = ?1", [self.run])?;
        schema::rest(&self.connection);
        Ok(())
    }

    /// Ends the run: `account` is JSON, `gap` what was not stored.
    pub(super) fn end(&mut self, account: Option<&str>, gap: Option<&Gap>, ended_ns: i64) -> rusqlite::Result<()> {
        schema::begin(&self.connection)?;
        let end = "UPDATE runs SET ended_ns = ?1, alive_ns = max(alive_ns, ?1), account = ?2 WHERE id = ?3";
        let ended = self
            .connection
            .execute(end, (ended_ns, account, self.run))
            .and_then(|_| gap.map_or(Ok(()), |gap| note(&self.connection, self.run, gap, ended_ns)));
        schema::commit(&self.connection, ended)?;
        schema::rest(&self.connection);
        Ok(())
    }
}

/// Begins a run, or goes on with it; its number, and that of the next line.
fn begin(connection: &Connection, reporter: &str, started_ns: i64) -> rusqlite::Result<(i64, i64)> {
    let same = "SELECT id FROM runs WHERE started_ns = ?1 AND reporter = ?2 AND ended_ns IS NULL";
    let run = match connection.query_row(same, (started_ns, reporter), |row| row.get(0)).optional()? {
        Some(run) => run,
        None => {
            let begin = "INSERT INTO runs (reporter, started_ns, alive_ns, line)
                         VALUES (?1, ?2, ?2, (SELECT coalesce(max(id), 0) FROM lines))";
            connection.prepare(begin)?.insert((reporter, started_ns))?
        }
    };
    // A number is not given again to a line that is younger than it says.
    let next = "SELECT 1 + max((SELECT coalesce(max(id), 0) FROM lines), (SELECT coalesce(max(line), 0) FROM ages))";
    let next = connection.query_row(next, [], |row| row.get(0))?;
    Ok((run, next))
}

/// Leaves word of what is missing.
pub(super) fn note(connection: &Connection, run: i64, gap: &Gap, noted_ns: i64) -> rusqlite::Result<()> {
    let Gap { from_ns, until_ns, lines, packets, why } = gap;
    let sql = "INSERT INTO gaps (run, noted_ns, from_ns, until_ns, lines, packets, why, line)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, (SELECT coalesce(max(id), 0) FROM lines))";
    connection.execute(sql, params![run, noted_ns, from_ns, until_ns, signed(*lines), signed(*packets), why]).map(drop)
}

/// Adds what was removed to what was noted of the same kind today, so that a flood is one row.
pub(super) fn sum_up(connection: &Connection, gap: &Gap, now_ns: i64) -> rusqlite::Result<()> {
    const DAY: i64 = 86_400_000_000_000;
    let run = connection.prepare_cached("SELECT max(id) FROM runs")?.query_row([], |row| row.get(0))?;
    let Gap { from_ns, until_ns, lines, packets, why } = gap;
    let add = "UPDATE gaps SET from_ns = min(from_ns, ?1), until_ns = max(until_ns, ?2), lines = lines + ?3, packets = packets + ?4
               WHERE id = (SELECT max(id) FROM gaps WHERE why = ?5 AND run = ?6) AND noted_ns BETWEEN ?7 AND ?8";
    let mut add = connection.prepare_cached(add)?;
    let added =
        add.execute(params![from_ns, until_ns, signed(*lines), signed(*packets), why, run, now_ns - DAY, now_ns])?;
    if added == 0 { note(connection, run, gap, now_ns) } else { Ok(()) }
}

/// Bytes of a row with so many in its texts: its part of a page, and pages of its own for what does not fit in there
/// (<https://sqlite.org/fileformat.html>, "B-tree Pages").
fn weight(bytes: usize) -> i64 {
    /// Numbers, a hash and what the indexes have.
    const REST: usize = 120;
    const PAGE: usize = 4096;
    /// The most and the least of a row that is not on pages of its own, and what such a page has of it.
    const MOST: usize = PAGE - 35;
    const LEAST: usize = (PAGE - 12) * 32 / 255 - 23;
    const OVERFLOW: usize = PAGE - 4;
    let bytes = bytes + REST;
    let local = match bytes {
        ..=MOST => bytes,
        _ => Some(LEAST + (bytes - LEAST) % OVERFLOW).filter(|local| *local <= MOST).unwrap_or(LEAST),
    };
    let whole = PAGE / (MOST / local) + (bytes - local).div_ceil(OVERFLOW) * PAGE;
    i64::try_from(whole).unwrap_or(i64::MAX)
}

/// SQLite's numbers have a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends by force, with the clock at these times.
    fn by_force(path: &Path, starts: &[i64]) {
        for started_ns in starts {
            Writer::open(path, "{}", *started_ns).unwrap();
        }
    }

    #[test]
    fn ends_by_force_count_for_a_while() {
        const MINUTE: i64 = 60_000_000_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        by_force(&path, &[100 * MINUTE, 101 * MINUTE, 102 * MINUTE]);
        let count = |at: i64| {
            let writer = Writer::open(&path, "{}", at).unwrap();
            let count = writer.ended_by_force(at - 10 * MINUTE, at).unwrap();
            writer.withdraw().unwrap();
            count
        };
        assert_eq!((count(103 * MINUTE), count(111 * MINUTE), count(200 * MINUTE)), (3, 2, 0));
        assert_eq!(count(MINUTE), 0, "the clock was set back");
    }

    #[test]
    fn an_end_by_force_is_known_to_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        let mut first = Writer::open(&path, "{}", 1).unwrap();
        assert_eq!(first.killed_before(), Ok(None));
        first.end(None, None, 5).unwrap();
        let second = Writer::open(&path, "{}", 7).unwrap();
        assert_eq!(second.killed_before(), Ok(None));
        second.live(9).unwrap();
        let third = Writer::open(&path, "{}", 20).unwrap();
        assert_eq!(third.killed_before(), Ok(Some(9)));
        // A view says so, and of the one that still seems to run, too.
        let count = |why: &str| -> i64 {
            let sql = "SELECT count(*) FROM not_recorded WHERE why LIKE ?1";
            third.connection.query_row(sql, [why], |row| row.get(0)).unwrap()
        };
        assert_eq!((count("stopped"), count("ended by force%"), count("no sign%")), (1, 1, 1));
        third.live(nanoseconds(jiff::Timestamp::now())).unwrap();
        assert_eq!(count("no sign%"), 0);
    }
}

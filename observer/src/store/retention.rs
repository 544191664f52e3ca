//! What is kept: noise is folded, what is old goes, and nobody's noise pushes out what happened to others.
//!
//! Everything is done in small steps, between two transactions of lines. The first and the last line of a story stay as long as it does, and its
//! sums are of all its lines, also of those that are gone.

use std::{collections::HashSet, time::Duration};

use rusqlite::{Connection, OptionalExtension, ToSql, params};
use serde::{Deserialize, Serialize};

use super::{
    query::Forget,
    write::{Gap, note},
};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// What has happened longer ago goes.
    pub age: Duration,
    /// Bytes of the store.
    pub bytes: u64,
    /// Bytes that are to stay free in its file system: with less the store does not grow.
    pub rest: u64,
}

/// Rows that are removed in one step.
const STEP: i64 = 500;
/// Lines of one story within a minute become one after an hour, and within an hour after a day.
const FOLDS: [Fold; 2] = [
    Fold { name: "folded_minutes", span: 60 * SECOND, after: 3600 * SECOND },
    Fold { name: "folded_hours", span: 3600 * SECOND, after: 24 * 3600 * SECOND },
];
const SECOND: i64 = 1_000_000_000;
/// Of the store's bytes one stranger has at most this part, and all strangers together at most that.
const OF_ONE: i64 = 8;
const OF_ALL: i64 = 2;
/// The share that is nobody's: root in observer's own namespace.
const HOST: &str = "root";

struct Fold {
    /// Up to where it was done, in `state`.
    name: &'static str,
    /// Lines of so many nanoseconds become one.
    span: i64,
    /// Once they are so old.
    after: i64,
}

/// Room in the store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Pages with something in them.
    pub(super) used: u64,
    /// Pages without.
    pub(super) free: u64,
}

impl Room {
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (page, pages, free) = (number("page_size")?, number("page_count")?, number("freelist_count")?);
        let bytes = |pages: i64| u64::try_from(pages.saturating_mul(page)).unwrap_or(0);
        Ok(Self { used: bytes(pages - free), free: bytes(free) })
    }
}

/// Does a part of what is to be done: true when there may be more. `limit` is how many bytes may be in use.
pub(super) fn step(connection: &Connection, limits: &Limits, limit: u64, now_ns: i64) -> rusqlite::Result<bool> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = in_transaction(connection, limits, limit, now_ns);
    match &done {
        Ok(_) => connection.execute_batch("COMMIT")?,
        Err(_) => {
            let _ = connection.execute_batch("ROLLBACK");
        }
    }
    done
}

fn in_transaction(connection: &Connection, limits: &Limits, limit: u64, now_ns: i64) -> rusqlite::Result<bool> {
    for fold in &FOLDS {
        if fold.step(connection, now_ns)? {
            return Ok(true);
        }
    }
    let age = i64::try_from(limits.age.as_nanos()).unwrap_or(i64::MAX);
    if expire(connection, now_ns.saturating_sub(age))? {
        return Ok(true);
    }
    make_room(connection, limits.bytes, limit)
}

impl Fold {
    /// Folds the next lines that are old enough, of some spans.
    fn step(&self, connection: &Connection, now_ns: i64) -> rusqlite::Result<bool> {
        let until = (now_ns - self.after).div_euclid(self.span) * self.span;
        let sql = "SELECT value FROM state WHERE name = ?1";
        let done: i64 =
            connection.prepare_cached(sql)?.query_row([self.name], |row| row.get(0)).optional()?.unwrap_or(0);
        // The clock may have been set back since.
        let done = done.min(until);
        let next = "SELECT min(at_ns) FROM lines WHERE at_ns >= ?1 AND at_ns < ?2";
        let next: Option<i64> = connection.prepare_cached(next)?.query_row([done, until], |row| row.get(0))?;
        // Where there is nothing to fold nothing is written: an idle host's disk may sleep.
        let Some(first) = next else { return Ok(false) };
        let start = first.div_euclid(self.span) * self.span;
        let end = start + self.span;
        self.fold(connection, start, end)?;
        let sql =
            "INSERT INTO state (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        connection.prepare_cached(sql)?.execute((self.name, end))?;
        Ok(true)
    }

    /// Makes the lines of each story in this span one, with their sums.
    fn fold(&self, connection: &Connection, start: i64, end: i64) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(
            "SELECT l.id, l.story FROM lines l JOIN stories s ON s.id = l.story
             WHERE l.at_ns >= ?1 AND l.at_ns < ?2 AND l.action IN ('egress-blocked', 'egress-dropped')
               AND l.id NOT IN (s.first_line, s.last_line)
             ORDER BY l.story, l.id",
        )?;
        let rows = statement.query_map([start, end], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let rows: Vec<(i64, i64)> = rows.collect::<Result<_, _>>()?;
        for of_one in rows.chunk_by(|one, other| one.1 == other.1).filter(|of_one| of_one.len() > 1) {
            let ids: Vec<i64> = of_one.iter().map(|(id, _)| *id).collect();
            fold_into_one(connection, &ids)?;
        }
        Ok(())
    }
}

/// Adds the numbers of all these lines up in the first, and removes the others.
fn fold_into_one(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    let [first, others @ ..] = ids else { return Ok(()) };
    for other in others {
        connection
            .prepare_cached(
                "UPDATE lines SET
                   packets = lines.packets + o.packets, bytes = lines.bytes + o.bytes, folded = lines.folded + o.folded,
                   start_ns = min(lines.start_ns, o.start_ns), end_ns = max(lines.end_ns, o.end_ns),
                   at_ns = max(lines.at_ns, o.at_ns), source = NULL
                 FROM (SELECT * FROM lines WHERE id = ?2) AS o WHERE lines.id = ?1",
            )?
            .execute([first, other])?;
    }
    remove(connection, others)
}

/// Removes lines, and texts that no other line has.
fn remove(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    let (mut parts, mut processes) = (HashSet::new(), HashSet::new());
    for id in ids {
        let removed = connection
            .prepare_cached("DELETE FROM lines WHERE id = ?1 RETURNING story, part, process")?
            .query_row([id], |row| {
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?))
            })
            .optional()?;
        let Some((story, part, process)) = removed else { continue };
        parts.insert(part);
        processes.extend(process);
        if let Some(story) = story {
            connection.prepare_cached("UPDATE stories SET lines = lines - 1 WHERE id = ?1")?.execute([story])?;
        }
    }
    let unused =
        "DELETE FROM parts WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM lines WHERE part = ?1) RETURNING ruleset";
    let mut rulesets: HashSet<String> = HashSet::new();
    for part in parts {
        let removed = connection.prepare_cached(unused)?.query_row([part], |row| row.get(0)).optional()?;
        rulesets.extend(removed.flatten());
    }
    let unused = "DELETE FROM rulesets WHERE sha256 = ?1 AND NOT EXISTS (SELECT 1 FROM parts WHERE ruleset = ?1)";
    for ruleset in rulesets {
        connection.prepare_cached(unused)?.execute([ruleset])?;
    }
    let unused = "DELETE FROM processes WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM lines WHERE process = ?1)";
    for process in processes {
        connection.prepare_cached(unused)?.execute([process])?;
    }
    Ok(())
}

/// Numbers that a query finds.
fn numbers(connection: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> rusqlite::Result<Vec<i64>> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map(parameters, |row| row.get(0))?.collect()
}

/// Removes what has happened before that: true when there may be more.
fn expire(connection: &Connection, before_ns: i64) -> rusqlite::Result<bool> {
    let stories = "SELECT id FROM stories WHERE last_ns < ?1 ORDER BY last_ns LIMIT 20";
    let over = numbers(connection, stories, &[&before_ns])?;
    for story in &over {
        if remove_story(connection, *story)? {
            return Ok(true);
        }
    }
    let lines = "SELECT l.id FROM lines l JOIN stories s ON s.id = l.story
                 WHERE l.at_ns < ?1 AND l.id NOT IN (s.first_line, s.last_line) LIMIT ?2";
    let middle = numbers(connection, lines, &[&before_ns, &STEP])?;
    remove(connection, &middle)?;
    // What belongs to no story stays as long as one that it may have to do with.
    let others = "SELECT id FROM lines WHERE story IS NULL
                  AND at_ns < min(?1, (SELECT coalesce(min(first_ns), ?1) FROM stories)) LIMIT ?2";
    let others = numbers(connection, others, &[&before_ns, &STEP])?;
    remove(connection, &others)?;
    connection.prepare_cached("DELETE FROM gaps WHERE until_ns < ?1")?.execute([before_ns])?;
    // The line that it was stored for may have gone before it came.
    let unused =
        "DELETE FROM rulesets WHERE stored_ns < ?1 AND NOT EXISTS (SELECT 1 FROM parts WHERE ruleset = sha256)";
    connection.prepare_cached(unused)?.execute([before_ns])?;
    let runs = "DELETE FROM runs WHERE alive_ns < ?1 AND id < (SELECT max(id) FROM runs)
                AND NOT EXISTS (SELECT 1 FROM lines WHERE run = runs.id)
                AND NOT EXISTS (SELECT 1 FROM gaps WHERE run = runs.id)";
    connection.prepare_cached(runs)?.execute([before_ns])?;
    // What has no weight has nothing in the store.
    connection.prepare_cached("DELETE FROM shares WHERE weight <= 0")?.execute([])?;
    Ok(!over.is_empty() || !middle.is_empty() || !others.is_empty())
}

/// Removes a story with all its lines, the last line last: true when it has more of them than one step removes.
fn remove_story(connection: &Connection, story: i64) -> rusqlite::Result<bool> {
    let lines = numbers(connection, "SELECT id FROM lines WHERE story = ?1 ORDER BY id LIMIT ?2", &[&story, &STEP])?;
    remove(connection, &lines)?;
    if lines.len() >= STEP as usize {
        return Ok(true);
    }
    connection.prepare_cached("DELETE FROM stories WHERE id = ?1")?.execute([story])?;
    Ok(false)
}

/// A user's or a namespace's part of the store.
struct Part {
    share: i64,
    is_host: bool,
    weight: i64,
}

/// Removes a little of whoever has more than is due to it: true when there may be more. With less in use than `limit` only who is over its
/// own part of `whole` loses anything.
fn make_room(connection: &Connection, whole: u64, limit: u64) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("SELECT id, name = ?1, weight FROM shares ORDER BY weight DESC")?;
    let parts = statement
        .query_map([HOST], |row| Ok(Part { share: row.get(0)?, is_host: row.get(1)?, weight: row.get(2)? }))?;
    let parts: Vec<Part> = parts.collect::<Result<_, _>>()?;
    let whole = i64::try_from(whole).unwrap_or(i64::MAX);
    let of_strangers: i64 = parts.iter().filter(|part| !part.is_host).map(|part| part.weight).sum();
    let largest_stranger = parts.iter().find(|part| !part.is_host);
    let is_full = Room::of(connection)?.used > limit;
    let from = match largest_stranger {
        Some(part) if part.weight > whole / OF_ONE || of_strangers > whole / OF_ALL => Some(part),
        _ if is_full => {
            let host = parts.iter().find(|part| part.is_host);
            host.filter(|host| host.weight >= of_strangers).or(largest_stranger).or(host)
        }
        _ => None,
    };
    let Some(from) = from else { return Ok(false) };
    // What is neither the first nor the last of its story, the oldest first; then whole stories.
    let middle = "SELECT l.id FROM stories s JOIN lines l ON l.story = s.id
                  WHERE s.share = ?1 AND s.lines > 2 AND l.id NOT IN (s.first_line, s.last_line) ORDER BY s.last_ns, l.id LIMIT ?2";
    let middle = numbers(connection, middle, &[&from.share, &STEP])?;
    if !middle.is_empty() {
        remove(connection, &middle)?;
        return Ok(true);
    }
    // What belongs to no story goes before stories in which something has happened since.
    let others = "SELECT id FROM lines WHERE story IS NULL AND share = ?1
                  AND at_ns < (SELECT coalesce(min(last_ns), 9223372036854775807) FROM stories WHERE share = ?1)
                  ORDER BY at_ns LIMIT ?2";
    let others = numbers(connection, others, &[&from.share, &STEP])?;
    if !others.is_empty() {
        remove(connection, &others)?;
        return Ok(true);
    }
    let oldest =
        numbers(connection, "SELECT id FROM stories WHERE share = ?1 ORDER BY last_ns LIMIT 50", &[&from.share])?;
    for story in &oldest {
        remove_story(connection, *story)?;
    }
    Ok(!oldest.is_empty())
}

/// Gives pages back to the file system that are neither in use nor part of the reserve.
pub(super) fn shrink(connection: &Connection, reserve: u64) -> rusqlite::Result<()> {
    /// Not page by page.
    const SLACK: u64 = 8 << 20;
    /// Pages of one step.
    const MOST: u64 = 4000;
    let Room { free, .. } = Room::of(connection)?;
    if free > reserve + SLACK {
        let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = ((free - reserve) / u64::try_from(page).unwrap_or(4096)).min(MOST);
        // It is done row by row.
        let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// Has so many bytes in the database's file without anything in them, and as many in its log: what is stored later takes their place,
/// where the file system has no room for anybody any more.
pub(super) fn reserve(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    let free = Room::of(connection)?.free;
    let Some(missing) = bytes.checked_sub(free).filter(|missing| *missing > 0) else { return Ok(()) };
    // Written, and only then given up: pages that are new and free at once would be a hole in the file.
    let filled = connection
        .execute_batch("BEGIN IMMEDIATE; DROP TABLE IF EXISTS reserve; CREATE TABLE reserve (bytes BLOB)")
        .and_then(|()| {
            let missing = i64::try_from(missing).unwrap_or(0);
            connection.execute("INSERT INTO reserve VALUES (zeroblob(?1))", params![missing])
        })
        .and_then(|_| {
            connection.execute_batch(
                "COMMIT; PRAGMA wal_checkpoint(PASSIVE); DROP TABLE reserve; PRAGMA wal_checkpoint(PASSIVE)",
            )
        });
    if filled.is_err() {
        let _ = connection.execute_batch("ROLLBACK");
        let _ = connection.execute_batch("DROP TABLE IF EXISTS reserve");
    }
    filled
}

/// Between two steps of [`forget`] others may write.
const PAUSE: Duration = Duration::from_millis(20);

/// What [`forget`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// So many lines were removed.
    pub lines: u64,
    /// They are still in the log: somebody reads the store as it was.
    pub are_in_the_log: bool,
}

/// Removes what must not be kept from every page, and leaves word that something was removed.
pub(super) fn forget(connection: &Connection, what: &Forget, now_ns: i64) -> rusqlite::Result<Forgotten> {
    // What is removed is written over.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    let (condition, parameter) = what.condition();
    let find = format!(
        "SELECT l.id, l.story, l.packets, l.at_ns FROM lines l WHERE {condition} AND l.id > ?2 ORDER BY l.id LIMIT {STEP}"
    );
    let mut gap = Gap { from_ns: i64::MAX, until_ns: i64::MIN, lines: 0, packets: 0, why: what.words() };
    let mut after = 0;
    loop {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let next = forget_some(connection, &find, (&*parameter, after), &mut gap).and_then(|next| {
            if next.is_none() && gap.lines > 0 {
                let run = connection.query_row("SELECT max(id) FROM runs", [], |row| row.get(0))?;
                note(connection, run, &Gap { until_ns: gap.until_ns.min(now_ns), ..gap.clone() })?;
            }
            Ok(next)
        });
        match next {
            Ok(next) => {
                connection.execute_batch("COMMIT")?;
                let Some(next) = next else { break };
                after = next;
            }
            Err(error) => {
                let _ = connection.execute_batch("ROLLBACK");
                return Err(error);
            }
        }
        std::thread::sleep(PAUSE);
    }
    // The log still has it as it was.
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    Ok(Forgotten { lines: gap.lines, are_in_the_log: busy != Ok(0) })
}

/// Removes the next lines; the last one's number, where there may be more.
fn forget_some(
    connection: &Connection,
    find: &str,
    (parameter, after): (&dyn ToSql, i64),
    gap: &mut Gap,
) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached(find)?;
    let rows = statement.query_map(params![parameter, after], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
    })?;
    let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
    let ids: Vec<i64> = rows.iter().map(|(id, ..)| *id).collect();
    remove(connection, &ids)?;
    for (_, _, packets, at_ns) in &rows {
        gap.lines += 1;
        gap.packets += u64::try_from(*packets).unwrap_or(0);
        (gap.from_ns, gap.until_ns) = (gap.from_ns.min(*at_ns), gap.until_ns.max(*at_ns));
    }
    let stories: HashSet<i64> = rows.iter().filter_map(|(_, story, ..)| *story).collect();
    for story in stories {
        // One that is left has another first or last line.
        let left = "UPDATE stories SET
                      first_line = (SELECT min(id) FROM lines WHERE story = ?1),
                      last_line = (SELECT max(id) FROM lines WHERE story = ?1)
                    WHERE id = ?1 AND EXISTS (SELECT 1 FROM lines WHERE story = ?1)";
        if connection.prepare_cached(left)?.execute([story])? == 0 {
            remove_story(connection, story)?;
        }
    }
    Ok(ids.last().copied().filter(|_| ids.len() >= STEP as usize))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::{
        model::{Attempt, Kind, Line, Share, User},
        store::{
            entry::{Entry, nanoseconds},
            query::{Range, Store},
            write::Writer,
        },
    };

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn limits(bytes: u64) -> Limits {
        Limits { age: Duration::from_secs(30 * 86_400), bytes, rest: 0 }
    }

    struct Lab {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        writer: Writer,
    }

    impl Lab {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s.db");
            let reporter = serde_json::to_string(&crate::model::Reporter::example()).unwrap();
            let writer = Writer::open(&path, &reporter, 0).unwrap();
            Self { _folder: folder, path, writer }
        }

        fn store(&mut self, entries: &[Entry]) {
            self.writer.store(entries, &[], None, 0).unwrap();
        }

        /// Does everything that is to be done at this time.
        fn tidy(&mut self, limits: &Limits, now: i64) {
            let now_ns = now * SECOND;
            while step(&self.writer.connection, limits, limits.bytes, now_ns).unwrap() {}
            self.writer.forget_numbers();
        }

        fn lines(&self) -> Vec<Line> {
            let mut lines = Vec::new();
            let each = |stored: crate::store::Stored| {
                lines.push(stored.line);
                Ok(())
            };
            Store::open(&self.path).unwrap().lines(Range::default(), each).unwrap();
            lines
        }

        fn number(&self, sql: &str) -> i64 {
            self.writer.connection.query_row(sql, [], |row| row.get(0)).unwrap()
        }
    }

    /// A packet of this story at that second.
    fn packet(story: u128, second: i64, uid: u32) -> Entry {
        let at = Timestamp::from_second(second).unwrap();
        let mut attempt = Attempt { start: at, end: at, packets: 2, bytes: 120, ..Attempt::example() };
        attempt.sender.user = Some(User { id: uid, name: None, effective: None });
        attempt.incident = Uuid::from_u128(story);
        let line = Line { id: None, sequence: Some(1), at, kind: Kind::Blocked(Box::new(attempt)) };
        Entry::of(&line, Some(Uuid::from_u128(story)), Share::Host).unwrap()
    }

    fn packets(lines: &[Line]) -> u64 {
        lines.iter().filter_map(Line::attempt).map(|attempt| attempt.packets).sum()
    }

    #[test]
    fn lines_fold_to_minutes_and_hours_with_their_sums() {
        let mut lab = Lab::new();
        lab.store(&(0..2 * HOUR).step_by(10).map(|second| packet(1, second, 0)).collect::<Vec<_>>());
        lab.tidy(&limits(1 << 30), 3 * HOUR);
        let lines = lab.lines();
        // The first and the last stand by themselves.
        assert_eq!((lines.len(), packets(&lines)), (120 + 2, 1440));
        assert_eq!(lines[0].at, Timestamp::UNIX_EPOCH);
        assert_eq!(lines.last().unwrap().at, Timestamp::from_second(2 * HOUR - 10).unwrap());
        lab.tidy(&limits(1 << 30), 3 * DAY);
        let lines = lab.lines();
        assert_eq!((lines.len(), packets(&lines)), (2 + 2, 1440));
        assert_eq!(lab.number("SELECT sum(folded) FROM lines"), 720);
        assert_eq!(lab.number("SELECT lines FROM stories"), 4);
    }

    #[test]
    fn what_is_old_goes_with_its_texts() {
        let mut lab = Lab::new();
        lab.store(&[packet(1, 0, 0), packet(1, 10, 0), packet(2, 0, 1000), packet(2, 20 * DAY, 1000)]);
        lab.tidy(&limits(1 << 30), 31 * DAY);
        let lines = lab.lines();
        assert_eq!(lines.len(), 2, "the second story goes on, and has its first line");
        assert_eq!(lab.number("SELECT count(*) FROM processes"), 1);
        assert_eq!(lab.number("SELECT count(*) FROM shares"), 1);
        lab.tidy(&limits(1 << 30), 60 * DAY);
        assert!(lab.lines().is_empty());
        assert_eq!(lab.number("SELECT count(*) FROM parts") + lab.number("SELECT count(*) FROM stories"), 0);
    }

    /// Of a week ago, while many flows are blocked for hours.
    #[test]
    fn noise_never_evicts_evidence() {
        let mut lab = Lab::new();
        lab.store(&(0..40).map(|at| packet(1, at, 0)).collect::<Vec<_>>());
        let limits = limits(1 << 20);
        for quarter in 0..12 {
            let second = 7 * DAY + quarter * 900;
            for minute in 0..15 {
                let noise: Vec<Entry> = (0..200).map(|flow| packet(100 + flow, second + minute * 60, 0)).collect();
                lab.store(&noise);
            }
            lab.tidy(&limits, second + 900);
            assert!(Room::of(&lab.writer.connection).unwrap().used <= limits.bytes);
        }
        let lines = lab.lines();
        let evidence: Vec<&Line> = lines
            .iter()
            .filter(|line| line.attempt().is_some_and(|attempt| attempt.incident == Uuid::from_u128(1)))
            .collect();
        assert_eq!(evidence.first().unwrap().at, Timestamp::UNIX_EPOCH);
        assert_eq!(evidence.last().unwrap().at, Timestamp::from_second(39).unwrap());
        let sum = "SELECT packets FROM stories WHERE story = (SELECT story FROM stories ORDER BY first_ns LIMIT 1)";
        assert_eq!(lab.number(sum), 80);
    }

    #[test]
    fn a_stranger_pushes_out_only_his_own() {
        let mut lab = Lab::new();
        lab.store(&(0..100).map(|story| packet(story, 0, 0)).collect::<Vec<_>>());
        lab.store(&(0..50).map(|story| packet(200 + story, 0, 1001)).collect::<Vec<_>>());
        let before = lab.number("SELECT count(*) FROM stories");
        for round in 0..20 {
            let flood: Vec<Entry> =
                (0..500).map(|at| packet(u128::from(10_000 + round * 500 + at as u32), 1, 1000)).collect();
            lab.store(&flood);
            lab.tidy(&limits(2 << 20), 2);
        }
        let of = |name: &str| {
            lab.number(&format!(
                "SELECT count(*) FROM stories s JOIN shares h ON h.id = s.share WHERE h.name = '{name}'"
            ))
        };
        assert_eq!((before, of("root"), of("user 1001")), (150, 100, 50));
        assert!(of("user 1000") < 10_000, "{}", of("user 1000"));
    }

    #[test]
    fn what_is_forgotten_is_in_no_page() {
        let mut lab = Lab::new();
        let mut secret = packet(1, 0, 1000);
        if let Some(who) = &mut secret.who {
            who.name = Some("a-name-that-nobody-else-has".to_owned());
        }
        lab.store(&[secret, packet(2, 0, 0)]);
        let forgotten = forget(&lab.writer.connection, &Forget::User(1000), nanoseconds(Timestamp::now())).unwrap();
        assert_eq!(forgotten, Forgotten { lines: 1, are_in_the_log: false });
        assert_eq!(lab.lines().len(), 1);
        assert_eq!(lab.number("SELECT lines FROM gaps"), 1);
        assert_eq!(lab.number("SELECT count(*) FROM gaps WHERE why = 'removed on request: user 1000'"), 1);
        for ending in ["", "-wal"] {
            let bytes = std::fs::read(format!("{}{ending}", lab.path.display())).unwrap_or_default();
            assert!(memchr::memmem::find(&bytes, b"a-name-that-nobody-else-has").is_none(), "{ending}");
        }
    }

    #[test]
    fn a_reserve_is_taken_in_place_of_new_pages() {
        let mut lab = Lab::new();
        reserve(&lab.writer.connection, 1 << 20).unwrap();
        let before = Room::of(&lab.writer.connection).unwrap();
        assert!(before.free >= 1 << 20, "{before:?}");
        lab.store(&(0..500).map(|story| packet(story, 0, 0)).collect::<Vec<_>>());
        let after = Room::of(&lab.writer.connection).unwrap();
        assert!(after.used > before.used && after.used + after.free == before.used + before.free, "{after:?}");
        shrink(&lab.writer.connection, 1 << 20).unwrap();
        assert_eq!(Room::of(&lab.writer.connection).unwrap(), after, "it is kept");
        reserve(&lab.writer.connection, 16 << 20).unwrap();
        shrink(&lab.writer.connection, 1 << 20).unwrap();
        assert!(Room::of(&lab.writer.connection).unwrap().free < 2 << 20, "what is beyond it is given back");
    }
}

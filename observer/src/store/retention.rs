//! What is kept: noise is folded, what is old goes, and nobody's noise pushes out what happened to others.
//!
//! Everything is done in small steps, between two transactions of lines. The first and the last line of a story stay as long as it does, and its
//! sums are of all its lines, also of those that are gone.

use std::{collections::HashSet, time::Duration};

use rusqlite::{Connection, OptionalExtension, ToSql};
use serde::{Deserialize, Serialize};

use super::space::Room;

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

/// Bytes that a line takes at least, and a story with its first line and texts; about.
const ROW: i64 = 400;
const STORY: i64 = 2000;
/// Bytes that a line of no story takes with its texts, about.
const OTHER: i64 = 1000;
/// Rows that are removed in one step.
pub(super) const STEP: i64 = 500;
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
    // Folding a long past must not keep a full store from having room.
    if Room::of(connection)?.used > limit && make_room(connection, limits.bytes, limit)? {
        return Ok(true);
    }
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
        let done = value(connection, self.name)?.unwrap_or(0);
        // The clock may have been set back since.
        let done = done.min(until);
        let next = "SELECT min(at_ns) FROM lines WHERE at_ns >= ?1 AND at_ns < ?2";
        let next: Option<i64> = connection.prepare_cached(next)?.query_row([done, until], |row| row.get(0))?;
        // Where there is nothing to fold nothing is written.
        let Some(first) = next else { return Ok(false) };
        let start = first.div_euclid(self.span) * self.span;
        let end = start + self.span;
        // One with many stories takes several steps.
        let (of, story) = (format!("{}_span", self.name), format!("{}_story", self.name));
        let is_begun = value(connection, &of)? == Some(start);
        let begun = if is_begun { value(connection, &story)?.unwrap_or(0) } else { 0 };
        match Self::fold(connection, (start, end), begun)? {
            Some(last) => {
                keep_value(connection, &of, start)?;
                keep_value(connection, &story, last)?;
            }
            None => {
                keep_value(connection, &story, 0)?;
                keep_value(connection, self.name, end)?;
            }
        }
        Ok(true)
    }

    /// Makes the lines of each story in this span one, with their sums. Begins behind a story's number; gives that of the last one, where there
    /// are more.
    fn fold(connection: &Connection, (start, end): (i64, i64), begun: i64) -> rusqlite::Result<Option<i64>> {
        /// In one step.
        const STORIES: usize = 100;
        let stories = format!(
            "SELECT id FROM stories WHERE id > ?1 AND first_ns < ?3 AND last_ns >= ?2 ORDER BY id LIMIT {STORIES}"
        );
        let stories = numbers(connection, &stories, &[&begun, &start, &end])?;
        for story in &stories {
            let lines = "SELECT l.id FROM lines l JOIN stories s ON s.id = l.story
                         WHERE l.story = ?1 AND l.at_ns >= ?2 AND l.at_ns < ?3 AND l.action IN ('egress-blocked', 'egress-dropped')
                           AND l.id NOT IN (s.first_line, s.last_line)
                         ORDER BY l.id";
            let lines = numbers(connection, lines, &[story, &start, &end])?;
            if lines.len() > 1 {
                fold_into_one(connection, &lines)?;
            }
        }
        Ok(stories.last().copied().filter(|_| stories.len() >= STORIES))
    }
}

/// A number that the store keeps by name.
pub(super) fn value(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached("SELECT value FROM state WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
}

/// Has the store keep a number.
pub(super) fn keep_value(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO state (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute((name, value)).map(drop)
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
pub(super) fn remove(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
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
    for ruleset in rulesets {
        remove_document(connection, &ruleset)?;
    }
    let unused = "DELETE FROM processes WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM lines WHERE process = ?1)";
    for process in processes {
        connection.prepare_cached(unused)?.execute([process])?;
    }
    Ok(())
}

/// Removes states, and texts that nothing refers to any more.
pub(super) fn remove_states(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    for id in ids {
        let removed = connection
            .prepare_cached("DELETE FROM states WHERE id = ?1 RETURNING sha256")?
            .query_row([id], |row| row.get::<_, String>(0))
            .optional()?;
        removed.map_or(Ok(()), |sha256| remove_document(connection, &sha256))?;
    }
    Ok(())
}

/// Removes a text that nothing refers to any more.
fn remove_document(connection: &Connection, sha256: &str) -> rusqlite::Result<()> {
    let unused = "DELETE FROM documents WHERE sha256 = ?1 AND NOT EXISTS (SELECT 1 FROM parts WHERE ruleset = ?1)
                  AND NOT EXISTS (SELECT 1 FROM states WHERE sha256 = ?1)";
    connection.prepare_cached(unused)?.execute([sha256]).map(drop)
}

/// Numbers that a query finds.
pub(super) fn numbers(connection: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> rusqlite::Result<Vec<i64>> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map(parameters, |row| row.get(0))?.collect()
}

/// SQL over `states s`: no story is left that it may have to do with. Any user of the host meets the rules of the host. It is in two parts so
/// that each is found by an index.
pub(super) const UNCONCERNED: &str = "(NOT EXISTS (SELECT 1 FROM stories o WHERE o.share = s.share)
    AND (s.share NOT IN (SELECT id FROM shares WHERE name = 'root') OR NOT EXISTS (SELECT 1 FROM stories)))";

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
    connection.prepare_cached("DELETE FROM gaps WHERE noted_ns < ?1")?.execute([before_ns])?;
    // What was so when the oldest story began is still of use.
    let over_states = "SELECT s.id FROM states s WHERE s.at_ns < ?1 AND (
                         EXISTS (SELECT 1 FROM states later
                                 WHERE later.kind = s.kind AND later.subject = s.subject AND later.at_ns > s.at_ns
                                 AND later.at_ns <= min(?1, (SELECT coalesce(min(first_ns), ?1) FROM stories)))
                         OR NOT EXISTS (SELECT 1 FROM stories WHERE share = s.share AND last_ns >= s.at_ns)
                            AND (s.share NOT IN (SELECT id FROM shares WHERE name = 'root')
                                 OR NOT EXISTS (SELECT 1 FROM stories WHERE last_ns >= s.at_ns))) LIMIT ?2";
    let over_states = numbers(connection, over_states, &[&before_ns, &STEP])?;
    remove_states(connection, &over_states)?;
    let runs = "DELETE FROM runs WHERE alive_ns < ?1 AND id < (SELECT max(id) FROM runs)
                AND NOT EXISTS (SELECT 1 FROM lines WHERE run = runs.id)
                AND NOT EXISTS (SELECT 1 FROM gaps WHERE run = runs.id)";
    connection.prepare_cached(runs)?.execute([before_ns])?;
    // What has no weight has nothing in the store.
    connection.prepare_cached("DELETE FROM shares WHERE weight <= 0")?.execute([])?;
    Ok(!over.is_empty() || !middle.is_empty() || !others.is_empty() || !over_states.is_empty())
}

/// Removes a story with all its lines, the last line last: true when it has more of them than one step removes.
pub(super) fn remove_story(connection: &Connection, story: i64) -> rusqlite::Result<bool> {
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
    let too_full = i64::try_from(Room::of(connection)?.used.saturating_sub(limit)).unwrap_or(i64::MAX);
    let from = match largest_stranger {
        Some(part) if part.weight > whole / OF_ONE || of_strangers > whole / OF_ALL => {
            Some((part, (part.weight - whole / OF_ONE).max(of_strangers - whole / OF_ALL)))
        }
        _ if too_full > 0 => {
            let host = parts.iter().find(|part| part.is_host);
            let from = host.filter(|host| host.weight >= of_strangers).or(largest_stranger).or(host);
            from.map(|from| (from, too_full))
        }
        _ => None,
    };
    let Some((from, too_much)) = from else { return Ok(false) };
    // The heaviest may have nothing but texts that others refer to: then the next one.
    // While the store has room, nobody else loses anything for that.
    let others = parts.iter().filter(|part| too_full > 0 && part.share != from.share);
    for part in std::iter::once(from).chain(others) {
        if make_room_of(connection, part.share, too_much)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes about so many bytes of a share: false where it has nothing.
fn make_room_of(connection: &Connection, share: i64, too_much: i64) -> rusqlite::Result<bool> {
    // No more than is needed, about.
    let most = (too_much / ROW + 1).min(STEP);
    // What is neither the first nor the last of its story, the oldest first; then whole stories.
    let middle = "SELECT l.id FROM stories s JOIN lines l ON l.story = s.id
                  WHERE s.share = ?1 AND s.lines > 2 AND l.id NOT IN (s.first_line, s.last_line) ORDER BY s.last_ns, l.id LIMIT ?2";
    // What belongs to no story stays as long as one that it may have to do with.
    let others = "SELECT id FROM lines WHERE story IS NULL AND share = ?1
                  AND at_ns < (SELECT coalesce(min(first_ns), 9223372036854775807) FROM stories WHERE share = ?1)
                  ORDER BY at_ns LIMIT ?2";
    // One that goes on for months must not have changes of rules push out all others.
    let oldest_others = "SELECT id FROM lines WHERE story IS NULL AND share = ?1
                         AND ?3 * (SELECT count(*) FROM lines WHERE story IS NULL AND share = ?1)
                             > (SELECT weight FROM shares WHERE id = ?1)
                         ORDER BY at_ns LIMIT ?2";
    for (lines, weight) in [(middle, None), (others, None), (oldest_others, Some(2 * OTHER))] {
        let lines = match &weight {
            None => numbers(connection, lines, &[&share, &most])?,
            Some(weight) => numbers(connection, lines, &[&share, &most, weight])?,
        };
        if !lines.is_empty() {
            remove(connection, &lines)?;
            return Ok(true);
        }
    }
    // What was so when the oldest of those stories began is still of use.
    let states = format!(
        "SELECT s.id FROM states s WHERE s.share = ?1 AND ({UNCONCERNED}
           OR EXISTS (SELECT 1 FROM states later WHERE later.kind = s.kind AND later.subject = s.subject AND later.at_ns > s.at_ns
                      AND later.at_ns <= CASE WHEN ?1 IN (SELECT id FROM shares WHERE name = 'root')
                                         THEN (SELECT min(first_ns) FROM stories)
                                         ELSE (SELECT min(first_ns) FROM stories WHERE share = ?1) END))
         ORDER BY s.at_ns LIMIT ?2"
    );
    let states = numbers(connection, &states, &[&share, &most])?;
    if !states.is_empty() {
        remove_states(connection, &states)?;
        return Ok(true);
    }
    let stories = (too_much / STORY + 1).min(STEP);
    let oldest = "SELECT id FROM stories WHERE share = ?1 ORDER BY last_ns LIMIT ?2";
    let oldest = numbers(connection, oldest, &[&share, &stories])?;
    for story in &oldest {
        remove_story(connection, *story)?;
    }
    Ok(!oldest.is_empty())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::{
        model::{Line, Share},
        store::{
            entry::Entry,
            lab::{Lab, change, packet},
        },
    };

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn limits(bytes: u64) -> Limits {
        Limits { age: Duration::from_secs(30 * 86_400), bytes, rest: 0 }
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

    /// Of a week ago, while a thousand flows are blocked for a day.
    #[test]
    fn noise_never_evicts_evidence() {
        let mut lab = Lab::new();
        lab.store(&(0..40).map(|at| packet(1, at, 0)).collect::<Vec<_>>());
        let limits = limits(4 << 20);
        for half_hour in 0..48 {
            let second = 7 * DAY + half_hour * 1800;
            lab.store(&(0..1000).map(|flow| packet(100 + flow, second, 0)).collect::<Vec<_>>());
            lab.tidy(&limits, second + 1800);
            assert!(Room::of(&lab.writer.connection).unwrap().used <= limits.bytes);
        }
        let lines = lab.lines();
        let evidence: Vec<&Line> = lines
            .iter()
            .filter(|line| line.attempt().is_some_and(|attempt| attempt.incident == Uuid::from_u128(1)))
            .collect();
        assert_eq!(evidence.first().unwrap().at, Timestamp::UNIX_EPOCH);
        assert_eq!(evidence.last().unwrap().at, Timestamp::from_second(39).unwrap());
        // Of each flow too the first and the last line, and the sum of all.
        assert_eq!(lab.number("SELECT count(*) FROM stories WHERE lines >= 2"), 1001);
        assert_eq!(lab.number("SELECT sum(packets) FROM stories"), 80 + 48 * 1000 * 2);
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
    fn changes_of_rules_push_out_only_those_of_their_namespace() {
        let mut lab = Lab::new();
        lab.store(&(0..100).map(|story| packet(story, 0, 0)).collect::<Vec<_>>());
        lab.store(&[change(1, 8, 0)]);
        for round in 0..20 {
            lab.store(&(0..500).map(|at| change(10 + round * 500 + at, 7, 0)).collect::<Vec<_>>());
            lab.tidy(&limits(2 << 20), 20_000);
        }
        let changes = |netns: u32| {
            let sql = "SELECT count(*) FROM lines l JOIN shares h ON h.id = l.share WHERE h.name";
            lab.number(&format!("{sql} = 'network namespace {netns}'"))
        };
        assert_eq!((lab.number("SELECT count(*) FROM stories"), changes(8)), (100, 1));
        assert!(changes(7) < 1000, "{}", changes(7));
        assert_eq!(lab.number("SELECT max(at_ns) / 1000000000 FROM lines"), 10 + 20 * 500 - 1, "the last one is there");
    }

    #[test]
    fn texts_of_the_host_stay_as_long_as_anybodys_incident() {
        let mut lab = Lab::new();
        lab.keep(1, "of the host", Share::Host);
        lab.store(&[packet(1, 5, 33), packet(1, 39 * DAY, 33)]);
        lab.tidy(&limits(1 << 30), 40 * DAY);
        assert_eq!(lab.number("SELECT count(*) FROM states"), 1, "the rules were those when it began");
        lab.tidy(&limits(1 << 30), 80 * DAY);
        assert_eq!(lab.number("SELECT (SELECT count(*) FROM states) + (SELECT count(*) FROM stories)"), 0);
    }

    #[test]
    fn changes_of_rules_within_an_incident_stay_with_it() {
        let mut lab = Lab::new();
        let of_the_namespace = |story: u128, second| {
            let mut entry = packet(story, second, 0);
            entry.share = "network namespace 7".to_owned();
            entry
        };
        lab.store(&[of_the_namespace(1, 0), change(5, 7, 0), of_the_namespace(1, 100)]);
        for round in 0..10 {
            lab.store(&(0..500).map(|at| of_the_namespace(2 + round * 500 + at, 200)).collect::<Vec<_>>());
        }
        let all = |lab: &Lab| {
            (
                lab.number("SELECT count(*) FROM stories WHERE first_ns = 0"),
                lab.number("SELECT count(*) FROM lines WHERE at_ns = 5000000000"),
            )
        };
        assert_eq!(all(&lab), (1, 1));
        lab.tidy(&limits(4 << 20), 300);
        assert!(lab.number("SELECT count(*) FROM stories") < 5001, "nothing had to go");
        let (stories, changes) = all(&lab);
        assert!(changes >= stories, "the change went, and its incident stays");
    }

    #[test]
    fn the_weight_of_a_share_is_that_of_its_rows() {
        let mut lab = Lab::new();
        lab.store(&(0..2 * HOUR).step_by(60).map(|second| packet(1, second, 1000)).collect::<Vec<_>>());
        lab.store(&(0..50).map(|story| packet(100 + story, 0, 0)).collect::<Vec<_>>());
        lab.store(&(0..50).map(|at| change(at, 7, 0)).collect::<Vec<_>>());
        for (second, text) in [(1, "one"), (2, "one"), (3, "other"), (4, "one")] {
            lab.keep(second, text, Share::Namespace(7));
        }
        assert_eq!(lab.number("SELECT 10 * (SELECT count(*) FROM states) + (SELECT count(*) FROM documents)"), 32);
        let differ = "SELECT count(*) FROM shares s WHERE weight <>
               (SELECT 200 * count(*) FROM lines WHERE share = s.id) + (SELECT 300 * count(*) FROM stories WHERE share = s.id)
             + (SELECT coalesce(sum(200 + length(body)), 0) FROM parts WHERE share = s.id)
             + (SELECT coalesce(sum(200 + length(body)), 0) FROM processes WHERE share = s.id)
             + (SELECT coalesce(sum(200 + length(body)), 0) FROM documents WHERE share = s.id)
             + (SELECT 300 * count(*) FROM states WHERE share = s.id)";
        assert_eq!(lab.number(differ), 0);
        lab.tidy(&limits(1 << 30), 3 * DAY);
        assert_eq!(lab.number(differ), 0);
        lab.tidy(&limits(1 << 30), 40 * DAY);
        assert_eq!(lab.number("SELECT count(*) FROM shares"), 0);
        assert_eq!(lab.number("SELECT (SELECT count(*) FROM states) + (SELECT count(*) FROM documents)"), 0);
    }
}

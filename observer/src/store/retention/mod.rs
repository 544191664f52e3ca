//! What is kept: noise is folded, what is old goes, and nobody's noise pushes out what happened to others.
//!
//! Everything is done in small steps, between two transactions of lines. The first and the last line of a story stay as long as it does, and its
//! sums are of all its lines, also of those that are gone.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, ToSql};
use serde::{Deserialize, Serialize};

use self::{
    fold::FOLDS,
    remove::{remove, remove_states, remove_story},
    room::make_room,
};
use super::space::Room;

mod fold;
pub(super) mod remove;
mod room;

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
pub(super) const STEP: i64 = 500;
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

/// A number that the store keeps by name.
pub(super) fn value(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached("SELECT value FROM state WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
}

/// Has the store keep a number.
pub(super) fn keep_value(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO state (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute((name, value)).map(drop)
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

#[cfg(test)]
mod tests;

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
use super::{
    age::{self, Now, Old},
    schema,
    space::Room,
};

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
pub(super) fn step(connection: &Connection, limits: &Limits, limit: u64, now: Now) -> rusqlite::Result<bool> {
    schema::begin(connection)?;
    schema::commit(connection, in_transaction(connection, limits, limit, now))
}

fn in_transaction(connection: &Connection, limits: &Limits, limit: u64, now: Now) -> rusqlite::Result<bool> {
    now.mark(connection, limits.age)?;
    // Folding a long past must not keep a full store from having room.
    if Room::of(connection)?.used > limit && make_room(connection, limits.bytes, limit, now.clock_ns)? {
        return Ok(true);
    }
    for fold in &FOLDS {
        if fold.step(connection, now)? {
            return Ok(true);
        }
    }
    if expire(connection, now.old(connection, age::span_ns(limits.age))?)? {
        return Ok(true);
    }
    make_room(connection, limits.bytes, limit, now.clock_ns)
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

/// Removes what is old: true when there may be more.
fn expire(connection: &Connection, old: Old) -> rusqlite::Result<bool> {
    let Old { line, before_ns, clock_ns } = old;
    let is_old = |time: &str| format!("({time} < ?2 OR {time} > ?3)");
    let last_ns = is_old("last_ns");
    let stories = format!("SELECT id FROM stories WHERE last_line < ?1 AND {last_ns} ORDER BY last_line LIMIT 20");
    let over = numbers(connection, &stories, &[&line, &before_ns, &clock_ns])?;
    for story in &over {
        if remove_story(connection, *story)?.1 {
            return Ok(true);
        }
    }
    let lines = format!(
        "SELECT l.id FROM lines l JOIN stories s ON s.id = l.story
         WHERE l.id < ?1 AND {} AND l.id NOT IN (s.first_line, s.last_line) LIMIT {STEP}",
        is_old("l.at_ns")
    );
    let middle = numbers(connection, &lines, &[&line, &before_ns, &clock_ns])?;
    remove(connection, &middle)?;
    // What belongs to no story stays as long as one that it may have to do with.
    let others = format!(
        "SELECT id FROM lines WHERE story IS NULL AND id < ?1 AND {}
         AND at_ns < (SELECT coalesce(min(first_ns), 9223372036854775807) FROM stories) LIMIT {STEP}",
        is_old("at_ns")
    );
    let others = numbers(connection, &others, &[&line, &before_ns, &clock_ns])?;
    remove(connection, &others)?;
    let gaps = format!("DELETE FROM gaps WHERE line < ?1 AND {}", is_old("noted_ns"));
    connection.prepare_cached(&gaps)?.execute([line, before_ns, clock_ns])?;
    // What was so when the oldest story began is still of use.
    let over_states = format!(
        "SELECT s.id FROM states s WHERE s.line < ?1 AND s.at_ns < ?2 AND (
           EXISTS (SELECT 1 FROM states later
                   WHERE later.kind = s.kind AND later.subject = s.subject AND later.at_ns > s.at_ns
                   AND later.at_ns <= min(?2, (SELECT coalesce(min(first_ns), ?2) FROM stories)))
           OR NOT EXISTS (SELECT 1 FROM stories WHERE share = s.share AND last_ns >= s.at_ns)
              AND (s.share NOT IN (SELECT id FROM shares WHERE name = 'root')
                   OR NOT EXISTS (SELECT 1 FROM stories WHERE last_ns >= s.at_ns))) LIMIT {STEP}"
    );
    let over_states = numbers(connection, &over_states, &[&line, &before_ns])?;
    remove_states(connection, &over_states)?;
    let runs = format!(
        "DELETE FROM runs WHERE line < ?1 AND {} AND id < (SELECT max(id) FROM runs)
         AND NOT EXISTS (SELECT 1 FROM lines WHERE run = runs.id) AND NOT EXISTS (SELECT 1 FROM gaps WHERE run = runs.id)
         AND NOT EXISTS (SELECT 1 FROM states WHERE run = runs.id)",
        is_old("alive_ns")
    );
    connection.prepare_cached(&runs)?.execute([line, before_ns, clock_ns])?;
    // What has no weight has nothing in the store.
    connection.prepare_cached("DELETE FROM shares WHERE weight <= 0")?.execute([])?;
    Ok(!over.is_empty() || !middle.is_empty() || !others.is_empty() || !over_states.is_empty())
}

#[cfg(test)]
mod tests;

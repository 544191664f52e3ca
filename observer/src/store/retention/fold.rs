//! Lines of one story that are close to each other become one with their sums, once they are old.

use rusqlite::{Connection, OptionalExtension};

use super::{keep_value, numbers, remove::remove, value};
use crate::store::age::Now;

/// Lines of one story within a minute become one after an hour, and within an hour after a day.
pub(super) const FOLDS: [Fold; 2] = [
    Fold { name: "folded_minutes", span: 60 * SECOND, after: 3600 * SECOND },
    Fold { name: "folded_hours", span: 3600 * SECOND, after: 24 * 3600 * SECOND },
];
const SECOND: i64 = 1_000_000_000;

pub(super) struct Fold {
    /// Up to where it was done, in `state`.
    name: &'static str,
    /// Lines of so many nanoseconds become one.
    span: i64,
    /// Once they are so old.
    after: i64,
}

impl Fold {
    /// Folds the next lines that are old enough, of some spans.
    pub(super) fn step(&self, connection: &Connection, now: Now) -> rusqlite::Result<bool> {
        let old = now.old(connection, self.after)?;
        let until = old.before_ns.div_euclid(self.span) * self.span;
        let done = value(connection, self.name)?.unwrap_or(0);
        // The clock may have been set back since.
        let done = done.min(until);
        let next = "SELECT at_ns FROM lines WHERE at_ns >= ?1 AND at_ns < ?2 ORDER BY at_ns LIMIT 1";
        let next: Option<i64> =
            connection.prepare_cached(next)?.query_row([done, until], |row| row.get(0)).optional()?;
        // Where there is nothing to fold nothing is written.
        let Some(first) = next else { return Ok(false) };
        let start = first.div_euclid(self.span) * self.span;
        let end = start + self.span;
        let is_new = "SELECT EXISTS (SELECT 1 FROM lines WHERE at_ns >= ?1 AND at_ns < ?2 AND id >= ?3)";
        if connection.prepare_cached(is_new)?.query_row([start, end, old.line], |row| row.get(0))? {
            return Ok(false);
        }
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
    remove(connection, others).map(drop)
}

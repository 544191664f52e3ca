//! How old lines are: by a time that no wrong clock can move far.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use super::retention::{keep_value, value};

/// The store's own time. It goes by like the boot clock, also where the wall clock was set back, and follows a wall clock that is ahead no
/// faster than [`CATCHES_UP`]: neither a clock that was set wrong nor a machine that was off for a year makes everything old at once.
pub(super) struct Age {
    /// Nanoseconds, at first those since 1970.
    now_ns: i64,
    at: Instant,
    kept_ns: i64,
}

/// What time it is: two ways of knowing, of which either may be wrong.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// By the wall clock, nanoseconds since 1970.
    pub(super) clock_ns: i64,
    /// By the store's own time.
    pub(super) age_ns: i64,
}

/// What is old by both: it was stored before `line`, and its time is before `before_ns`, or after `clock_ns`, where it cannot be right.
#[derive(Clone, Copy)]
pub(super) struct Old {
    pub(super) line: i64,
    pub(super) before_ns: i64,
    pub(super) clock_ns: i64,
}

/// So many times as fast as time goes by.
const CATCHES_UP: i64 = 10;
/// It is kept in the store so often.
const KEPT: i64 = 3_600_000_000_000;
/// Its name there.
const AGE: &str = "age";
/// Marks in `ages` are so far from each other: this part of the time for which lines are kept, within limits.
const MARKS: i64 = 1000;
const NEAREST: i64 = 100_000_000;
const FARTHEST: i64 = 300_000_000_000;

impl Age {
    /// As it was when the store was closed.
    pub(super) fn read(connection: &Connection, clock_ns: i64) -> rusqlite::Result<Self> {
        let marked: Option<i64> = connection.query_row("SELECT max(at_ns) FROM ages", [], |row| row.get(0))?;
        // What was kept may be an hour old.
        let kept = value(connection, AGE)?.max(marked);
        Ok(Self { now_ns: kept.unwrap_or(clock_ns), at: Instant::now(), kept_ns: kept.unwrap_or(0) })
    }

    /// What it is now, by that clock.
    pub(super) fn now(&mut self, connection: &Connection, clock_ns: i64) -> rusqlite::Result<Now> {
        let gone = i64::try_from(self.at.elapsed().as_nanos()).unwrap_or(i64::MAX);
        self.at = Instant::now();
        let most = self.now_ns.saturating_add(gone.saturating_mul(CATCHES_UP));
        self.now_ns = clock_ns.clamp(self.now_ns.saturating_add(gone).min(most), most);
        if self.now_ns - self.kept_ns > KEPT {
            keep_value(connection, AGE, self.now_ns)?;
            self.kept_ns = self.now_ns;
        }
        Ok(Now { clock_ns, age_ns: self.now_ns })
    }
}

impl Now {
    /// Marks which lines have been stored by now, where that is not known from a moment ago.
    pub(super) fn mark(self, connection: &Connection, kept: Duration) -> rusqlite::Result<()> {
        let apart = (span_ns(kept) / MARKS).clamp(NEAREST, FARTHEST);
        let last = "SELECT at_ns, line FROM ages ORDER BY at_ns DESC LIMIT 1";
        let last: Option<(i64, i64)> =
            connection.prepare_cached(last)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let stored = "SELECT coalesce(max(id), 0) FROM lines";
        let stored: i64 = connection.prepare_cached(stored)?.query_row([], |row| row.get(0))?;
        if last.is_some_and(|(at_ns, line)| line >= stored || self.age_ns.saturating_sub(at_ns) < apart) {
            return Ok(());
        }
        connection.prepare_cached("INSERT INTO ages (at_ns, line) VALUES (?1, ?2)")?.execute((self.age_ns, stored))?;
        let over = "DELETE FROM ages WHERE at_ns < (SELECT max(at_ns) FROM ages WHERE at_ns <= ?1)";
        connection.prepare_cached(over)?.execute([self.age_ns.saturating_sub(span_ns(kept))]).map(drop)
    }

    /// What has been in the store for longer than so many nanoseconds.
    pub(super) fn old(self, connection: &Connection, after_ns: i64) -> rusqlite::Result<Old> {
        let last = "SELECT line FROM ages WHERE at_ns <= ?1 ORDER BY at_ns DESC LIMIT 1";
        let age_ns = self.age_ns.saturating_sub(after_ns);
        let last: Option<i64> = connection.prepare_cached(last)?.query_row([age_ns], |row| row.get(0)).optional()?;
        Ok(Old {
            line: last.map_or(0, |last| last + 1),
            before_ns: self.clock_ns.saturating_sub(after_ns),
            clock_ns: self.clock_ns,
        })
    }
}

/// Nanoseconds of a span of time.
pub(super) fn span_ns(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    const HOUR: i64 = 3_600_000_000_000;
    const DAY: i64 = 24 * HOUR;

    #[test]
    fn a_clock_that_jumps_makes_nothing_old() {
        let folder = tempfile::tempdir().unwrap();
        let connection = schema::open(&folder.path().join("s.db")).unwrap();
        let mut age = Age::read(&connection, DAY).unwrap();
        assert!(age.now(&connection, DAY).unwrap().age_ns - DAY < HOUR);
        let jumped = age.now(&connection, 40_000 * DAY).unwrap().age_ns;
        assert!(jumped - DAY < HOUR, "{jumped}");
        let back = age.now(&connection, 0).unwrap().age_ns;
        assert!(back >= jumped && back - jumped < HOUR, "{back}");
        let mut again = Age::read(&connection, 40_000 * DAY).unwrap();
        assert!(again.now(&connection, 40_000 * DAY).unwrap().age_ns - DAY < HOUR, "it is kept");
    }
}

//! How old lines are: by a time that no wrong clock can move far.

use std::time::Instant;

use rusqlite::Connection;

use super::retention::{keep_value, value};

/// The time by which lines grow old. It follows the clock, forwards and back, but no faster than [`CATCHES_UP`]: a clock that was set wrong,
/// or a machine that was off for a year, must not make everything old at once; and a machine that begins each start in 1970 must not make
/// everything new.
pub(super) struct Age {
    /// Nanoseconds since 1970.
    now_ns: i64,
    at: Instant,
    kept_ns: i64,
}

/// So many times as fast as time goes by.
const CATCHES_UP: i64 = 10;
/// It is kept in the store so often.
const KEPT: i64 = 3_600_000_000_000;
/// Its name there.
const AGE: &str = "age";

impl Age {
    /// As it was when the store was closed.
    pub(super) fn read(connection: &Connection, clock_ns: i64) -> rusqlite::Result<Self> {
        let kept = value(connection, AGE)?;
        Ok(Self { now_ns: kept.unwrap_or(clock_ns), at: Instant::now(), kept_ns: kept.unwrap_or(0) })
    }

    /// What it is now, by that clock.
    pub(super) fn now(&mut self, connection: &Connection, clock_ns: i64) -> rusqlite::Result<i64> {
        let gone = i64::try_from(self.at.elapsed().as_nanos()).unwrap_or(i64::MAX);
        self.at = Instant::now();
        let most = gone.saturating_mul(CATCHES_UP);
        self.now_ns = clock_ns.clamp(self.now_ns.saturating_sub(most), self.now_ns.saturating_add(most));
        if (self.now_ns - self.kept_ns).abs() > KEPT {
            keep_value(connection, AGE, self.now_ns)?;
            self.kept_ns = self.now_ns;
        }
        Ok(self.now_ns)
    }
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
        assert_eq!(age.now(&connection, DAY).unwrap(), DAY);
        let jumped = age.now(&connection, 40_000 * DAY).unwrap();
        assert!(jumped - DAY < HOUR, "{jumped}");
        let back = age.now(&connection, 0).unwrap();
        assert!(jumped - back < HOUR, "{back}");
        let mut again = Age::read(&connection, 40_000 * DAY).unwrap();
        assert!(again.now(&connection, 40_000 * DAY).unwrap() - DAY < HOUR, "it is kept");
    }
}

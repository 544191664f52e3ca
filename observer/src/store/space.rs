//! Room in the store: what is in use, what is held in reserve, what is given back to the file system.

use rusqlite::{Connection, params};

/// The most that can be held in reserve, in bytes: SQLite fills no more in one value.
pub const MAX_RESERVE: u64 = 900 << 20;

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
/// where the file system has no room for anybody any more. `log` is how many bytes the log has.
pub(super) fn reserve(connection: &Connection, bytes: u64, log: u64) -> rusqlite::Result<()> {
    if Room::of(connection)?.free.min(log) >= bytes {
        return Ok(());
    }
    // Written, and only then given up: pages that are new and free at once would be a hole in the file.
    let filled = connection
        .execute_batch("BEGIN IMMEDIATE; DROP TABLE IF EXISTS reserve; CREATE TABLE reserve (bytes BLOB)")
        .and_then(|()| {
            // All of it goes through the log. In the file it takes free pages first, and new ones beside them.
            let bytes = i64::try_from(bytes).unwrap_or(0);
            connection.execute("INSERT INTO reserve VALUES (zeroblob(?1))", params![bytes])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::lab::{Lab, packet};

    #[test]
    fn a_reserve_is_taken_in_place_of_new_pages() {
        let mut lab = Lab::new();
        reserve(&lab.writer.connection, 1 << 20, 0).unwrap();
        let before = Room::of(&lab.writer.connection).unwrap();
        assert!(before.free >= 1 << 20, "{before:?}");
        lab.store(&(0..500).map(|story| packet(story, 0, 0)).collect::<Vec<_>>());
        let after = Room::of(&lab.writer.connection).unwrap();
        assert!(after.used > before.used && after.used + after.free == before.used + before.free, "{after:?}");
        shrink(&lab.writer.connection, 1 << 20).unwrap();
        assert_eq!(Room::of(&lab.writer.connection).unwrap(), after, "it is kept");
        reserve(&lab.writer.connection, 16 << 20, 0).unwrap();
        shrink(&lab.writer.connection, 1 << 20).unwrap();
        assert!(Room::of(&lab.writer.connection).unwrap().free < 2 << 20, "what is beyond it is given back");
    }
}

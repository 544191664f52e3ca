//! Removes rows with what nothing else refers to.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension};

use super::{STEP, numbers};

/// Lines that were removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Removed {
    /// As they were recorded: a folded one is several.
    pub(in crate::store) lines: u64,
    pub(in crate::store) packets: u64,
    /// When the first and the last of them were, nanoseconds since 1970.
    pub(in crate::store) from_ns: i64,
    pub(in crate::store) until_ns: i64,
}

impl Removed {
    pub(in crate::store) const NONE: Self = Self { lines: 0, packets: 0, from_ns: i64::MAX, until_ns: i64::MIN };

    pub(in crate::store) fn add(&mut self, other: Self) {
        (self.lines, self.packets) = (self.lines + other.lines, self.packets + other.packets);
        (self.from_ns, self.until_ns) = (self.from_ns.min(other.from_ns), self.until_ns.max(other.until_ns));
    }
}

/// Removes lines, and texts that no other line has.
pub(in crate::store) fn remove(connection: &Connection, ids: &[i64]) -> rusqlite::Result<Removed> {
    let mut all = Removed::NONE;
    let (mut parts, mut processes) = (HashSet::new(), HashSet::new());
    for id in ids {
        let removed = connection
            .prepare_cached("DELETE FROM lines WHERE id = ?1 RETURNING story, part, process, folded, packets, at_ns")?
            .query_row([id], |row| {
                let unsigned = |at: usize| row.get::<_, i64>(at).map(|number| u64::try_from(number).unwrap_or(0));
                let (lines, packets, at_ns) = (unsigned(3)?, unsigned(4)?, row.get(5)?);
                let one = Removed { lines, packets, from_ns: at_ns, until_ns: at_ns };
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?, one))
            })
            .optional()?;
        let Some((story, part, process, one)) = removed else { continue };
        all.add(one);
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
    Ok(all)
}

/// Removes states, and texts that nothing refers to any more.
pub(in crate::store) fn remove_states(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
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

/// Removes a story with all its lines, the last line last; what was removed, and true when it has more lines than one step removes.
pub(in crate::store) fn remove_story(connection: &Connection, story: i64) -> rusqlite::Result<(Removed, bool)> {
    let lines = numbers(connection, "SELECT id FROM lines WHERE story = ?1 ORDER BY id LIMIT ?2", &[&story, &STEP])?;
    let removed = remove(connection, &lines)?;
    if lines.len() >= STEP as usize {
        return Ok((removed, true));
    }
    connection.prepare_cached("DELETE FROM stories WHERE id = ?1")?.execute([story])?;
    Ok((removed, false))
}

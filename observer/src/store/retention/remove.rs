//! Removes rows with what nothing else refers to.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension};

use super::{STEP, numbers};

/// Removes lines, and texts that no other line has.
pub(in crate::store) fn remove(connection: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
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

/// Removes a story with all its lines, the last line last: true when it has more of them than one step removes.
pub(in crate::store) fn remove_story(connection: &Connection, story: i64) -> rusqlite::Result<bool> {
    let lines = numbers(connection, "SELECT id FROM lines WHERE story = ?1 ORDER BY id LIMIT ?2", &[&story, &STEP])?;
    remove(connection, &lines)?;
    if lines.len() >= STEP as usize {
        return Ok(true);
    }
    connection.prepare_cached("DELETE FROM stories WHERE id = ?1")?.execute([story])?;
    Ok(false)
}

//! Where the store is full, whoever has more than is due to it loses its oldest.

use rusqlite::Connection;

use super::{
    STEP, UNCONCERNED, numbers,
    remove::{Removed, remove, remove_states, remove_story},
};
use crate::store::{
    space::Room,
    write::{Gap, sum_up},
};

/// Bytes that a line takes at least, and a story with its first line and texts; about.
const ROW: i64 = 400;
const STORY: i64 = 2000;
/// Bytes that a line of no story takes with its texts, about.
const OTHER: i64 = 1000;
/// Of the store's bytes one stranger has at most this part, and all strangers together at most that.
const OF_ONE: i64 = 8;
const OF_ALL: i64 = 2;
/// The share that is nobody's: root in observer's own namespace.
const HOST: &str = "root";

/// A user's or a namespace's part of the store.
struct ShareRow {
    share: i64,
    name: String,
    weight: i64,
}

impl ShareRow {
    fn is_host(&self) -> bool {
        self.name == HOST
    }

    /// Leaves word of what was removed of it.
    fn note(&self, connection: &Connection, removed: Removed, now_ns: i64) -> rusqlite::Result<()> {
        // Of namespaces there may be very many.
        let name = if self.name.starts_with("network namespace ") { "network namespaces" } else { &self.name };
        let Removed { lines, packets, from_ns, until_ns } = removed;
        let gap = Gap { from_ns, until_ns, lines, packets, why: format!("removed to make room: lines of {name}") };
        sum_up(connection, &gap, now_ns)
    }
}

/// Removes a little of whoever has more than is due to it: true when there may be more. With less in use than `limit` only who is over its
/// own part of `whole` loses anything. What was removed is summed up in `gaps`.
pub(super) fn make_room(connection: &Connection, whole: u64, limit: u64, now_ns: i64) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("SELECT id, name, weight FROM shares ORDER BY weight DESC")?;
    let parts =
        statement.query_map([], |row| Ok(ShareRow { share: row.get(0)?, name: row.get(1)?, weight: row.get(2)? }))?;
    let parts: Vec<ShareRow> = parts.collect::<Result<_, _>>()?;
    let whole = i64::try_from(whole).unwrap_or(i64::MAX);
    let of_strangers: i64 = parts.iter().filter(|part| !part.is_host()).map(|part| part.weight).sum();
    let largest_stranger = parts.iter().find(|part| !part.is_host());
    let too_full = i64::try_from(Room::of(connection)?.used.saturating_sub(limit)).unwrap_or(i64::MAX);
    let from = match largest_stranger {
        Some(part) if part.weight > whole / OF_ONE || of_strangers > whole / OF_ALL => {
            Some((part, (part.weight - whole / OF_ONE).max(of_strangers - whole / OF_ALL)))
        }
        _ if too_full > 0 => {
            let host = parts.iter().find(|part| part.is_host());
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
        if let Some(removed) = make_room_of(connection, part.share, too_much)? {
            if removed.lines > 0 {
                part.note(connection, removed, now_ns)?;
            }
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes about so many bytes of a share: `None` where it has nothing.
fn make_room_of(connection: &Connection, share: i64, too_much: i64) -> rusqlite::Result<Option<Removed>> {
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
            return remove(connection, &lines).map(Some);
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
        return remove_states(connection, &states).map(|()| Some(Removed::NONE));
    }
    let stories = (too_much / STORY + 1).min(STEP);
    let oldest = "SELECT id FROM stories WHERE share = ?1 ORDER BY last_ns LIMIT ?2";
    let oldest = numbers(connection, oldest, &[&share, &stories])?;
    let mut all = Removed::NONE;
    for story in &oldest {
        all.add(remove_story(connection, *story)?.0);
    }
    Ok((!oldest.is_empty()).then_some(all))
}

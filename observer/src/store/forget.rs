//! Removes what must not be kept.

use std::{collections::HashMap, time::Duration};

use rusqlite::{Connection, params};

use super::{
    query::Forget,
    retention::{
        STEP, UNCONCERNED, numbers,
        remove::{Removed, remove, remove_states, remove_story},
    },
    schema,
    write::{Gap, note},
};

/// Between two steps of [`forget`] others may write.
const PAUSE: Duration = Duration::from_millis(20);

/// SQL over `lines l`: behind line ?1 and up to line ?2, what was before ?3 or is about whom [`find`] has found.
const FORGOTTEN: &str = "l.id > ?1 AND l.id <= ?2 AND (l.at_ns < ?3
    OR l.process IN (SELECT id FROM temp.forgotten_processes) OR l.part IN (SELECT id FROM temp.forgotten_parts)
    OR l.share IN (SELECT id FROM temp.forgotten_shares))";

/// What [`forget`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// So many lines were removed.
    pub lines: u64,
    /// No line is left.
    pub is_empty: bool,
    /// They are still in the log: somebody reads the store as it was.
    pub are_in_the_log: bool,
}

/// Removes what must not be kept from every page, and leaves word that something was removed.
pub(super) fn forget(connection: &Connection, what: &Forget, now_ns: i64) -> rusqlite::Result<Forgotten> {
    // What is removed is written over.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    let last = find(connection, what)?;
    let mut removed = Removed::NONE;
    let (mut after, mut noted) = (0, None);
    in_steps(connection, || {
        let next = forget_some(connection, (after, last, what.before_ns()), &mut removed)?;
        if removed.lines > 0 {
            // Each step leaves word of all so far: it may be the last one.
            let Removed { lines, packets, from_ns, until_ns } = removed;
            let gap = Gap { from_ns, until_ns: until_ns.min(now_ns), lines, packets, why: what.words() };
            noted = Some(leave_word(connection, noted, &gap, now_ns)?);
        }
        after = next.unwrap_or(after);
        Ok(next.is_some())
    })?;
    let find = format!(
        "SELECT s.id FROM states s WHERE s.share IN (SELECT id FROM temp.forgotten_shares)
         OR {UNCONCERNED}
         OR s.at_ns < ?1 AND EXISTS (SELECT 1 FROM states later WHERE later.kind = s.kind AND later.subject = s.subject
                                     AND later.at_ns > s.at_ns AND later.at_ns <= ?1)
         LIMIT {STEP}"
    );
    in_steps(connection, || {
        let states = numbers(connection, &find, &[&what.before_ns()])?;
        remove_states(connection, &states)?;
        Ok(states.len() >= STEP as usize)
    })?;
    // The log still has it as it was.
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    let is_empty = connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM lines)", [], |row| row.get(0))?;
    Ok(Forgotten { lines: removed.lines, is_empty, are_in_the_log: busy != Ok(0) })
}

/// Counts the lines that [`forget`] would remove. Nothing is changed.
pub(super) fn count(connection: &Connection, what: &Forget) -> rusqlite::Result<i64> {
    let last = find(connection, what)?;
    let count = format!("SELECT coalesce(sum(l.folded), 0) FROM lines l WHERE {FORGOTTEN}");
    connection.query_row(&count, [0, last, what.before_ns()], |row| row.get(0))
}

/// Finds whom it is about before anything is locked; the last line that is looked at. Numbers of what is removed may be given to others later.
fn find(connection: &Connection, what: &Forget) -> rusqlite::Result<i64> {
    let parameter = what.parameter();
    for (table, condition) in [("processes", what.processes()), ("parts", what.parts()), ("shares", what.shares())] {
        connection.execute_batch(&format!(
            "DROP TABLE IF EXISTS temp.forgotten_{table}; CREATE TEMP TABLE forgotten_{table} (id INTEGER PRIMARY KEY)"
        ))?;
        let find = format!("INSERT INTO temp.forgotten_{table} SELECT id FROM {table} WHERE {condition}");
        connection.execute(&find, [&*parameter])?;
    }
    connection.query_row("SELECT coalesce(max(id), 0) FROM lines", [], |row| row.get(0))
}

/// Leaves word of what was removed, in place of what was left before.
fn leave_word(connection: &Connection, noted: Option<i64>, gap: &Gap, now_ns: i64) -> rusqlite::Result<i64> {
    if let Some(id) = noted {
        connection.execute("DELETE FROM gaps WHERE id = ?1", [id])?;
    }
    let run = connection.query_row("SELECT max(id) FROM runs", [], |row| row.get(0))?;
    note(connection, run, gap, now_ns)?;
    Ok(connection.last_insert_rowid())
}

/// Does something in transactions, between which others may write, as long as there is more of it.
fn in_steps(connection: &Connection, mut step: impl FnMut() -> rusqlite::Result<bool>) -> rusqlite::Result<()> {
    loop {
        schema::begin(connection)?;
        if !schema::commit(connection, step())? {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Removes the next lines; the last one's number, where there may be more.
fn forget_some(
    connection: &Connection,
    (after, last, before_ns): (i64, i64, i64),
    removed: &mut Removed,
) -> rusqlite::Result<Option<i64>> {
    let find =
        format!("SELECT l.id, l.story, l.packets, l.bytes FROM lines l WHERE {FORGOTTEN} ORDER BY l.id LIMIT {STEP}");
    let mut statement = connection.prepare_cached(&find)?;
    let rows = statement.query_map(params![after, last, before_ns], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
    })?;
    let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
    let ids: Vec<i64> = rows.iter().map(|(id, ..)| *id).collect();
    removed.add(remove(connection, &ids)?);
    let mut stories: HashMap<i64, (i64, i64)> = HashMap::new();
    for (_, story, packets, bytes) in &rows {
        let Some(story) = story else { continue };
        let of_story = stories.entry(*story).or_default();
        *of_story = (of_story.0 + packets, of_story.1 + bytes);
    }
    for (story, (packets, bytes)) in stories {
        // One that is left begins with another line, and has no sums of what is gone.
        let left = "UPDATE stories SET
                      first_line = (SELECT min(id) FROM lines WHERE story = ?1),
                      last_line = (SELECT max(id) FROM lines WHERE story = ?1),
                      first_ns = (SELECT min(coalesce(start_ns, at_ns)) FROM lines WHERE story = ?1),
                      last_ns = (SELECT max(max(coalesce(end_ns, at_ns), at_ns)) FROM lines WHERE story = ?1),
                      packets = packets - ?2, bytes = bytes - ?3
                    WHERE id = ?1 AND EXISTS (SELECT 1 FROM lines WHERE story = ?1)";
        if connection.prepare_cached(left)?.execute([story, packets, bytes])? == 0 {
            remove_story(connection, story)?;
        }
    }
    Ok(ids.last().copied().filter(|_| ids.len() >= STEP as usize))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        model::Share,
        store::{
            entry::nanoseconds,
            lab::{Lab, change, packet},
        },
    };

    #[test]
    fn rulesets_of_a_user_are_forgotten_with_it() {
        let mut lab = Lab::new();
        lab.store(&[packet(1, 5, 1000), packet(2, 5, 0), change(5, 7, 1000), change(5, 7, 0)]);
        lab.keep(1, "of the user", Share::User(1000));
        lab.keep(1, "of the host", Share::Host);
        let texts =
            |lab: &Lab| lab.number("SELECT (SELECT count(*) FROM states) * 10 + (SELECT count(*) FROM documents)");
        assert_eq!(texts(&lab), 22);
        assert_eq!(
            (count(&lab.writer.connection, &Forget::User(1000)), lab.lines().len()),
            (Ok(2), 4),
            "nothing is changed"
        );
        forget(&lab.writer.connection, &Forget::User(1000), nanoseconds(Timestamp::now())).unwrap();
        assert_eq!((texts(&lab), lab.lines().len()), (11, 2));
        let before = |second| Forget::Before(Timestamp::from_second(second).unwrap());
        lab.keep(3, "of the host later", Share::Host);
        forget(&lab.writer.connection, &before(4), nanoseconds(Timestamp::now())).unwrap();
        assert_eq!((texts(&lab), lab.lines().len()), (11, 2), "what was in force then is still of use");
        forget(&lab.writer.connection, &before(9), nanoseconds(Timestamp::now())).unwrap();
        assert_eq!((texts(&lab), lab.lines().len()), (0, 0));
    }

    #[test]
    fn of_what_is_forgotten_no_time_and_no_sum_is_left() {
        let mut lab = Lab::new();
        lab.store(&[packet(1, 5, 1000), packet(1, 7, 1000), packet(1, 9, 1000)]);
        let before = Forget::Before(Timestamp::from_second(6).unwrap());
        forget(&lab.writer.connection, &before, nanoseconds(Timestamp::now())).unwrap();
        assert_eq!(lab.number("SELECT first_ns / 1000000000 * 100 + packets * 10 + lines FROM stories"), 742);
    }

    #[test]
    fn what_is_in_a_users_namespaces_is_that_users() {
        let mut lab = Lab::new();
        let mut inner = packet(1, 0, 100_007);
        let who = inner.who.as_mut().unwrap();
        let mut sender: crate::model::Sender = serde_json::from_str(&who.body).unwrap();
        sender.namespaces =
            Some(crate::model::ProcessNamespaces { pid: None, inner_pid: None, user: Some(7), user_owner: Some(1000) });
        who.body = serde_json::to_string(&sender).unwrap();
        lab.store(&[inner, packet(2, 0, 1001)]);
        let forgotten = forget(&lab.writer.connection, &Forget::User(1000), nanoseconds(Timestamp::now())).unwrap();
        assert_eq!((forgotten.lines, lab.lines().len()), (1, 1));
    }

    #[test]
    fn what_is_forgotten_is_in_no_page() {
        let mut lab = Lab::new();
        let mut secret = packet(1, 0, 1000);
        if let Some(who) = &mut secret.who {
            who.name = Some("a-name-that-nobody-else-has".to_owned());
        }
        lab.store(&[secret, packet(2, 0, 0)]);
        let forgotten = forget(&lab.writer.connection, &Forget::User(1000), nanoseconds(Timestamp::now())).unwrap();
        assert_eq!(forgotten, Forgotten { lines: 1, is_empty: false, are_in_the_log: false });
        assert_eq!(lab.lines().len(), 1);
        assert_eq!(lab.number("SELECT lines FROM gaps"), 1);
        assert_eq!(lab.number("SELECT count(*) FROM gaps WHERE why = 'removed on request: user 1000'"), 1);
        for ending in ["", "-wal"] {
            let bytes = std::fs::read(format!("{}{ending}", lab.path.display())).unwrap_or_default();
            assert!(memchr::memmem::find(&bytes, b"a-name-that-nobody-else-has").is_none(), "{ending}");
        }
    }
}

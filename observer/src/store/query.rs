//! What the store is asked: lines of a time and of whom, what is missing, and what is to be removed.

use std::{collections::HashMap, path::Path};

use jiff::Timestamp;
use rusqlite::{Row, ToSql};

use super::{
    entry::{Entry, Who, nanoseconds, time},
    schema::{self, OpenError, Readable},
};
use crate::model::{Line, Recorded, Reporter};

/// A store that is open to be read. Lines that are stored meanwhile are not in what it gives.
pub struct Store(Readable);

/// Which lines are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// From this time on.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
}

/// A line as it was stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The line.
    pub line: Line,
    /// The host and the program that told it.
    pub reporter: Reporter,
}

/// Why a store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// SQLite's own words.
    #[error("cannot read the store: {0}")]
    Database(#[from] rusqlite::Error),
    /// A line of another version.
    #[error("line {0} of the store cannot be understood: {1}")]
    Line(i64, serde_json::Error),
}

impl Store {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self, QueryError> {
        Ok(Self(schema::open_to_read(path)?))
    }

    /// Gives lines in the order in which they were stored, one after the other, all as the store is when this is called. Until it returns the
    /// store's log cannot be emptied: `each` must not wait for anybody. Lines that cannot be understood are left out: their number, and
    /// why the first one cannot.
    pub fn lines(
        &self,
        range: Range,
        mut each: impl FnMut(Stored) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<(u64, QueryError)>> {
        let mut left_out: Option<(u64, QueryError)> = None;
        let (since, until) = (range.since.map_or(i64::MIN, nanoseconds), range.until.map_or(i64::MAX, nanoseconds));
        let sql = format!("SELECT {COLUMNS} FROM lines l {TEXTS} WHERE l.at_ns >= ?1 AND l.at_ns < ?2 ORDER BY l.id");
        let mut statement = self.0.connection.prepare(&sql).map_err(QueryError::from)?;
        let mut rows = statement.query([since, until]).map_err(QueryError::from)?;
        while let Some(row) = rows.next().map_err(QueryError::from)? {
            match stored(row) {
                Ok(stored) => each(stored)?,
                Err(error) => left_out.get_or_insert((0, error)).0 += 1,
            }
        }
        Ok(left_out)
    }

    /// The last incidents, the newest first, without background. At most `of_a_share` are of the same user or namespace, so that one with
    /// many does not hide the others.
    pub fn last_incidents(&self, count: usize, of_a_share: usize) -> Result<Vec<Recorded>, QueryError> {
        /// Looked at of each share.
        const NEWEST: usize = 20;
        let sql = format!(
            "SELECT {COLUMNS}, s.share, s.packets, s.first_ns, s.last_ns
             FROM shares h JOIN stories s ON s.id IN
                    (SELECT id FROM stories WHERE share = h.id AND NOT background ORDER BY last_ns DESC LIMIT {NEWEST})
                  JOIN lines l ON l.id = s.last_line {TEXTS}
             ORDER BY s.last_ns DESC"
        );
        let mut statement = self.0.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        let mut of_share: HashMap<i64, usize> = HashMap::new();
        while let Some(row) = rows.next()?
            && found.len() < count
        {
            let share = of_share.entry(row.get(13)?).or_default();
            // One that cannot be understood hides no other.
            let Ok(stored) = stored(row) else { continue };
            let Some(attempt) = stored.line.attempt().cloned() else { continue };
            *share += 1;
            if *share <= of_a_share {
                let packets = u64::try_from(row.get::<_, i64>(14)?).unwrap_or(0);
                found.push(Recorded { attempt, packets, first: time(row.get(15)?), last: time(row.get(16)?) });
            }
        }
        Ok(found)
    }
}

/// What [`stored`] makes a line of, and where it is.
const COLUMNS: &str = "l.id, l.line, l.sequence, l.action, l.at_ns, l.start_ns, l.end_ns, l.packets, l.bytes, l.source,
                       r.reporter, p.body, w.body";
const TEXTS: &str =
    "JOIN runs r ON r.id = l.run JOIN parts p ON p.id = l.part LEFT JOIN processes w ON w.id = l.process";

fn stored(row: &Row<'_>) -> Result<Stored, QueryError> {
    let id: i64 = row.get(0)?;
    let unsigned = |at: usize| row.get::<_, i64>(at).map(|number| u64::try_from(number).unwrap_or(0));
    let start: Option<i64> = row.get(5)?;
    let end: Option<i64> = row.get(6)?;
    let who = row.get::<_, Option<String>>(12)?.map(|body| Who {
        pid: None,
        name: None,
        executable: None,
        uid: None,
        unit: None,
        container: None,
        body,
    });
    let entry = Entry {
        line: row.get::<_, Option<[u8; 16]>>(1)?.map(uuid::Uuid::from_bytes),
        sequence: row.get::<_, Option<i64>>(2)?.and_then(|number| u64::try_from(number).ok()),
        action: row.get(3)?,
        at_ns: row.get(4)?,
        span_ns: start.zip(end),
        packets: unsigned(7)?,
        bytes: unsigned(8)?,
        source: row.get(9)?,
        of: None,
        share: String::new(),
        who,
        destination: None,
        port: None,
        protocol: None,
        ruleset: None,
        body: row.get(11)?,
    };
    let reporter: String = row.get(10)?;
    Ok(Stored {
        line: entry.into_line().map_err(|error| QueryError::Line(id, error))?,
        reporter: serde_json::from_str(&reporter).map_err(|error| QueryError::Line(id, error))?,
    })
}

/// What is to be removed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forget {
    /// Lines of this user, and of whom there is in its user namespaces.
    User(u32),
    /// Lines of this container: its id, or how that begins.
    Container(String),
    /// Lines of what happened before this time.
    Before(Timestamp),
}

impl Forget {
    /// Which senders they are of: SQL over `processes`, with what is asked for as `?1`.
    pub(super) fn processes(&self) -> &'static str {
        match self {
            Self::User(_) => "uid = ?1 OR json_extract(body, '$.namespaces.user_owner') = ?1",
            Self::Container(_) => "substr(container, 1, length(?1)) = ?1",
            Self::Before(_) => "?1 IS NULL",
        }
    }

    /// Which texts of lines name them: SQL over `parts`. Whoever changed rules is in the line's own text.
    pub(super) fn parts(&self) -> &'static str {
        match self {
            Self::User(_) => {
                "json_extract(body, '$.RulesetChanged.sender.user.id') = ?1
                 OR json_extract(body, '$.RulesetChanged.sender.namespaces.user_owner') = ?1"
            }
            Self::Container(_) => {
                "substr(json_extract(body, '$.RulesetChanged.sender.container.id'), 1, length(?1)) = ?1"
            }
            Self::Before(_) => "?1 IS NULL",
        }
    }

    /// Which shares are theirs alone: SQL over `shares`.
    pub(super) fn shares(&self) -> &'static str {
        match self {
            Self::User(0) | Self::Container(_) | Self::Before(_) => "?1 IS NULL",
            Self::User(_) => "name = 'user ' || ?1",
        }
    }

    /// Before which time everything is removed, in nanoseconds since 1970.
    pub(super) fn before_ns(&self) -> i64 {
        match self {
            Self::Before(time) => nanoseconds(*time),
            Self::User(_) | Self::Container(_) => i64::MIN,
        }
    }

    /// What `?1` is.
    pub(super) fn parameter(&self) -> Box<dyn ToSql> {
        match self {
            Self::User(uid) => Box::new(*uid),
            Self::Container(id) => Box::new(id.clone()),
            Self::Before(time) => Box::new(nanoseconds(*time)),
        }
    }

    /// In words, as they are left in the store.
    pub(super) fn words(&self) -> String {
        match self {
            Self::User(uid) => format!("removed on request: user {uid}"),
            Self::Container(id) => format!("removed on request: container {id}"),
            Self::Before(time) => format!("removed on request: before {time}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::lab::{Lab, packet};

    #[test]
    fn a_line_that_cannot_be_understood_hides_no_other() {
        let mut lab = Lab::new();
        lab.store(&[packet(1, 0, 0), packet(2, 1, 0), packet(3, 2, 0)]);
        lab.writer.connection.execute("UPDATE parts SET body = '{' WHERE id = 2", []).unwrap();
        let store = Store::open(&lab.path).unwrap();
        let mut read = 0;
        let left_out = store.lines(Range::default(), |_| {
            read += 1;
            Ok(())
        });
        let (lines, error) = left_out.unwrap().unwrap();
        assert_eq!((read, lines), (2, 1));
        assert!(matches!(error, QueryError::Line(2, _)), "{error}");
        assert_eq!(store.last_incidents(5, 5).unwrap().len(), 2);
    }

    #[test]
    fn background_hides_no_incident() {
        let mut lab = Lab::new();
        lab.store(&[packet(1, 0, 0)]);
        for story in 2..60 {
            let mut background = packet(story, i64::try_from(story).unwrap(), 0);
            background.of.as_mut().unwrap().is_background = true;
            lab.store(&[background]);
        }
        assert_eq!(Store::open(&lab.path).unwrap().last_incidents(5, 5).unwrap().len(), 1);
    }
}

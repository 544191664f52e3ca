//! A store of their own for tests.

use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    age::Now,
    entry::Entry,
    query::{Range, Store, Stored},
    retention::{self, Limits},
    write::Writer,
};
use crate::model::{
    Attempt, Backend, ChangedRuleset, Document, DocumentKind, Kind, Line, Reporter, RulesetChange, Sender, Share, User,
};

/// A new store that is open.
pub(super) struct Lab {
    _folder: tempfile::TempDir,
    pub(super) path: PathBuf,
    pub(super) writer: Writer,
}

impl Lab {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        let reporter = serde_json::to_string(&Reporter::example()).unwrap();
        let writer = Writer::open(&path, &reporter, 0).unwrap();
        Self { _folder: folder, path, writer }
    }

    pub(super) fn store(&mut self, entries: &[Entry]) {
        self.writer.store(entries, &[], None, 0).unwrap();
        // As if each had been stored at its time.
        let connection = &self.writer.connection;
        let first = self.number("SELECT coalesce(max(id), 0) FROM lines") - entries.len() as i64;
        for (line, entry) in (first + 1..).zip(entries) {
            let mark = "INSERT INTO ages SELECT ?1, ?2 WHERE ?1 >= (SELECT coalesce(max(at_ns), ?1) FROM ages)
                        ON CONFLICT DO UPDATE SET line = excluded.line";
            connection.prepare_cached(mark).unwrap().execute([entry.at_ns, line]).unwrap();
        }
    }

    /// Stores routes as they were at that second.
    pub(super) fn keep(&mut self, second: i64, text: &str, share: Share) {
        let document = Document {
            kind: DocumentKind::Routes,
            subject: share.to_string(),
            at: Timestamp::from_second(second).unwrap(),
            sha256: format!("digest of {text}"),
            bytes: text.len() as u64,
            packed: text.as_bytes().to_vec(),
            share,
        };
        self.writer.store(&[], &[document], None, 0).unwrap();
    }

    /// Does everything that is to be done at this time, seconds since 1970.
    pub(super) fn tidy(&mut self, limits: &Limits, now: i64) {
        let now_ns = now * 1_000_000_000;
        self.tidy_by(limits, Now { clock_ns: now_ns, age_ns: now_ns });
    }

    /// The same, with a clock that may be wrong.
    pub(super) fn tidy_by(&mut self, limits: &Limits, now: Now) {
        while retention::step(&self.writer.connection, limits, limits.bytes, now).unwrap() {}
        self.writer.forget_numbers();
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let each = |stored: Stored| {
            lines.push(stored.line);
            Ok(())
        };
        Store::open(&self.path).unwrap().lines(Range::default(), each).unwrap();
        lines
    }

    pub(super) fn number(&self, sql: &str) -> i64 {
        self.writer.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

/// A packet of this story at that second.
pub(super) fn packet(story: u128, second: i64, uid: u32) -> Entry {
    let at = Timestamp::from_second(second).unwrap();
    let mut attempt = Attempt { start: at, end: at, packets: 2, bytes: 120, ..Attempt::example() };
    attempt.sender.user = Some(User { id: uid, name: None, effective: None });
    attempt.incident = Uuid::from_u128(story);
    let line = Line { id: None, sequence: Some(1), at, kind: Kind::Blocked(Box::new(attempt)) };
    Entry::of(&line, Some(Uuid::from_u128(story)), Share::Host).unwrap()
}

/// A change of rules in another namespace, by this user.
pub(super) fn change(second: i64, netns: u32, uid: u32) -> Entry {
    let at = Timestamp::from_second(second).unwrap();
    let ruleset = ChangedRuleset {
        backend: Backend::Nft,
        generation: Some(u32::try_from(second).unwrap()),
        changed_by: None,
        changes: 1,
        difference: None,
    };
    let change = RulesetChange {
        netns,
        entering: None,
        is_elsewhere: true,
        ruleset,
        sender: Sender { user: Some(User { id: uid, name: None, effective: None }), ..Sender::default() },
        share: Share::Namespace(netns),
    };
    let line = Line { id: None, sequence: Some(1), at, kind: Kind::RulesetChanged(Box::new(change)) };
    Entry::of(&line, None, Share::Namespace(netns)).unwrap()
}

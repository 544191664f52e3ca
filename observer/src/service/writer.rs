//! Applies filter and limits, numbers the lines and hands them to the sinks.

use std::io;

use jiff::Timestamp;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Limits, ledger::Ledger};
use crate::{
    incident::Snapshot,
    model::{Attempt, Cause, Document, Filter, Kind, Line},
    sink::fan::Fan,
};

/// Hands lines to the sinks, and ends observing when that is over.
pub(super) struct LineWriter {
    pub(super) fan: Fan,
    pub(super) filter: Filter,
    pub(super) ledger: Ledger,
    pub(super) error: Option<io::Error>,
    limits: Limits,
    stop: Option<oneshot::Sender<()>>,
    /// Name space of the ids of lines.
    run: Uuid,
    /// Ids that were given.
    ids: u64,
    /// Lines that were reported.
    lines: u64,
    /// Lines that count towards `--count`.
    shown: u64,
}

impl LineWriter {
    /// `run` is the name space of lines' ids.
    pub(super) fn new(fan: Fan, filter: Filter, limits: Limits, run: Uuid, stop: oneshot::Sender<()>) -> Self {
        Self {
            fan,
            filter,
            ledger: Ledger::default(),
            error: None,
            limits,
            stop: Some(stop),
            run,
            ids: 0,
            lines: 0,
            shown: 0,
        }
    }

    /// Nothing more is reported.
    pub(super) fn is_over(&self) -> bool {
        self.error.is_some() || self.limits.count.is_some_and(|count| self.shown >= count)
    }

    /// Looks whether a sink has failed.
    pub(super) fn look(&mut self) {
        self.error = self.error.take().or_else(|| self.fan.failure());
        self.stop_if_over();
    }

    /// An id for the next line.
    pub(super) fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::new_v5(&self.run, &self.ids.to_be_bytes())
    }

    /// Reports packets that were stopped. `story` counts them, and is called only where they pass the filter.
    pub(super) fn packets(&mut self, attempt: Box<Attempt>, story: impl FnOnce(&Attempt) -> Snapshot) {
        let (packets, at) = (attempt.packets, attempt.end);
        let kind = if attempt.cause == Some(Cause::Queue) { Kind::Dropped(attempt) } else { Kind::Blocked(attempt) };
        let line = Line { id: Some(self.id()), sequence: None, at, kind };
        if !self.filter.matches(&line) {
            self.ledger.filtered += packets;
            return;
        }
        let story = line.attempt().map(story);
        self.ledger.reported += packets;
        self.shown += u64::from((self.limits.counts)(&line));
        self.put(line, story);
    }

    /// Reports a line of no packet, which does not count towards `--count`. Of an attempt alone: the filter lets nothing else pass.
    pub(super) fn news(&mut self, at: Timestamp, kind: Kind, story: Option<Snapshot>) {
        let line = Line { id: Some(self.id()), sequence: None, at, kind };
        if !self.is_over() && self.filter.matches(&line) {
            self.put(line, story);
        }
    }

    /// Reports a change of rules under an id that was given before. The filter was applied when it was heard.
    pub(super) fn change(&mut self, id: Uuid, at: Timestamp, kind: Kind) {
        if !self.is_over() {
            self.put(Line { id: Some(id), sequence: None, at, kind }, None);
        }
    }

    /// Reports what no filter concerns.
    pub(super) fn unfiltered(&mut self, at: Timestamp, kind: Kind) {
        let id = self.id();
        self.change(id, at, kind);
    }

    /// Hands over what lines refer to.
    pub(super) fn document(&mut self, document: Document) {
        if self.error.is_none() {
            self.fan.document(document);
        }
    }

    /// Hands over a line, with its number.
    fn put(&mut self, mut line: Line, story: Option<Snapshot>) {
        if self.error.is_none() {
            self.lines += 1;
            line.sequence = Some(self.lines);
            self.fan.take(line, story);
        }
        self.stop_if_over();
    }

    fn stop_if_over(&mut self) {
        if self.is_over()
            && let Some(stop) = self.stop.take()
        {
            // The other end is gone only when everything is stopping already.
            let _ = stop.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            mpsc::{Receiver, Sender, channel},
        },
        time::Duration,
    };

    use super::*;
    use crate::{
        model::{Action, Coverage},
        sink::{Sink, fan::Outlet},
    };

    struct Told(Sender<Line>);

    impl Sink for Told {
        fn take(&mut self, line: &Line, _: Option<Snapshot>) -> io::Result<()> {
            self.0.send(line.clone()).map_err(io::Error::other)
        }

        fn tick(&mut self) -> io::Result<Option<Duration>> {
            Ok(None)
        }

        fn finish(&mut self, _: &Line, _: &Coverage) -> io::Result<()> {
            Ok(())
        }
    }

    fn writer(filter: Filter, count: Option<u64>) -> (LineWriter, Receiver<Line>, oneshot::Receiver<()>) {
        let (sender, lines) = channel();
        let outlet = Outlet { name: "the output", sink: Box::new(Told(sender)), is_needed: true };
        let fan = Fan::start(vec![outlet], &(Arc::new(|| ()) as _)).unwrap();
        let (stop, stopped) = oneshot::channel();
        let limits = Limits { count, counts: |line| line.is_event(false), late: Duration::ZERO };
        (LineWriter::new(fan, filter, limits, Uuid::nil(), stop), lines, stopped)
    }

    fn packets(writer: &mut LineWriter, attempt: Attempt) {
        writer.packets(Box::new(attempt), |_| Snapshot::example(1));
    }

    #[test]
    fn what_is_filtered_is_counted_and_not_told() {
        let filter = Filter { causes: vec![Cause::Nat], ..Filter::default() };
        let (mut writer, lines, _stopped) = writer(filter, None);
        writer.packets(Box::new(Attempt { packets: 3, ..Attempt::example() }), |_| panic!("it is no part of a story"));
        packets(&mut writer, Attempt { packets: 2, cause: Some(Cause::Nat), ..Attempt::example() });
        assert_eq!((writer.ledger.filtered, writer.ledger.reported), (3, 2));
        let line = lines.recv().unwrap();
        assert_eq!((line.sequence, line.action()), (Some(1), Action::EgressBlocked));
    }

    #[test]
    fn it_ends_after_so_many_events() {
        let (mut writer, lines, mut stopped) = writer(Filter::default(), Some(2));
        packets(&mut writer, Attempt { cause: Some(Cause::Queue), ..Attempt::example() });
        packets(&mut writer, Attempt::example());
        assert!(!writer.is_over() && stopped.try_recv().is_err());
        packets(&mut writer, Attempt::example());
        assert!(writer.is_over() && stopped.try_recv().is_ok());
        writer.news(Timestamp::UNIX_EPOCH, Kind::Rule(Box::new(Attempt::example())), None);
        writer.change(Uuid::nil(), Timestamp::UNIX_EPOCH, Kind::Rule(Box::new(Attempt::example())));
        drop(writer);
        let told: Vec<Action> = lines.iter().map(|line| line.action()).collect();
        assert_eq!(told, [Action::EgressDropped, Action::EgressBlocked, Action::EgressBlocked]);
    }

    #[test]
    fn a_sink_that_fails_ends_it() {
        let (mut writer, lines, mut stopped) = writer(Filter::default(), None);
        drop(lines);
        packets(&mut writer, Attempt::example());
        let begun = std::time::Instant::now();
        while !writer.is_over() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody noticed");
            writer.look();
        }
        assert!(stopped.try_recv().is_ok() && writer.error.is_some());
    }
}

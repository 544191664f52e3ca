//! Lines on their way into the store. A line is passed on to the next sink once it is on the disk.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Sink, notice::say_within};
use crate::{
    incident::{self, Snapshot},
    model::{Coverage, Document, Kind, Line, Share},
    store::{Entry, Limits, Progress, Recorder},
};

/// How long a notice may wait for who reads it.
const NOTICE: Duration = Duration::from_secs(1);
/// What the keeper says is heard so often while lines are on their way, and else.
const SOON: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(5);

/// Writes to the store.
pub struct StoreSink {
    recorder: Recorder,
    /// Lines for `next` that are not on the disk yet, with their numbers: as many as the keeper has, since those it lost go at once.
    waiting: VecDeque<(u64, Line, Option<Snapshot>)>,
    next: Option<Box<dyn Sink>>,
    sent: u64,
    /// Lines that were stored or lost.
    decided: u64,
    /// Lines that `next` has.
    passed_on: u64,
    /// Packets that the store has lost.
    lost: Arc<AtomicU64>,
    /// Limits that are to hold from now on.
    limits: Arc<Mutex<Option<Limits>>>,
}

impl StoreSink {
    /// `next` takes the lines that are stored; `lost` counts packets that were not; `limits` is looked into now and then.
    pub fn new(
        recorder: Recorder,
        next: Option<Box<dyn Sink>>,
        lost: Arc<AtomicU64>,
        limits: Arc<Mutex<Option<Limits>>>,
    ) -> Self {
        Self { recorder, waiting: VecDeque::new(), next, sent: 0, decided: 0, passed_on: 0, lost, limits }
    }

    fn send(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()> {
        let (of, share) = match (line.attempt(), &line.kind) {
            (Some(attempt), _) => {
                let (id, share) = story.map_or((incident::story(attempt), None), |story| (story.story, story.share));
                (Some(id), share.unwrap_or(Share::Host))
            }
            (None, Kind::RulesetChanged(change)) => (None, change.share),
            (None, _) => (None, Share::Host),
        };
        self.recorder.put(Entry::of(line, of, share)?)?;
        if self.next.is_some() {
            self.waiting.push_back((self.sent, line.clone(), story));
        }
        self.sent += 1;
        Ok(())
    }

    fn hear(&mut self) -> io::Result<()> {
        let limits = self.limits.lock().ok().and_then(|mut limits| limits.take());
        limits.map_or(Ok(()), |limits| self.recorder.limit(limits))?;
        let (progress, notices) = self.recorder.hear()?;
        self.note(&progress, &notices)
    }

    fn note(&mut self, progress: &Progress, notices: &[String]) -> io::Result<()> {
        for notice in notices {
            say_within(&format!("observer: {notice}"), NOTICE);
        }
        self.lost.store(progress.lost_packets, Ordering::Relaxed);
        self.decided = progress.stored + progress.lost;
        if let Some(next) = &mut self.next {
            let mut lost = VecDeque::from(progress.newly_lost.clone());
            if !lost.is_empty() {
                self.waiting.retain(|(number, ..)| !is_lost(&mut lost, *number));
            }
            // Lines are stored in their order.
            while self.passed_on < progress.stored
                && let Some((_, line, story)) = self.waiting.pop_front()
            {
                self.passed_on += 1;
                next.take(&line, story)?;
            }
            next.tick()?;
        }
        Ok(())
    }
}

impl Sink for StoreSink {
    fn take(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()> {
        self.send(line, story)?;
        self.hear()
    }

    fn document(&mut self, document: &Document) -> io::Result<()> {
        self.recorder.keep(document.clone())
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
        self.hear()?;
        Ok(Some(if self.decided < self.sent { SOON } else { IDLE }))
    }

    fn finish(&mut self, line: &Line, coverage: &Coverage) -> io::Result<()> {
        let with_losses =
            |lost: u64| Coverage { account: coverage.account.with_store_losses(lost), ..coverage.clone() };
        let told = with_losses(self.lost.load(Ordering::Relaxed));
        let summary = Line { kind: Kind::Summary(Box::new(told.clone())), ..line.clone() };
        self.send(&summary, None)?;
        let ended =
            self.recorder.finish(&told.account, line.at).map_err(|error| io::Error::other(format!("{error:#}")));
        let (progress, notices) = ended?;
        // The summary is the next sink's own to tell.
        self.waiting.pop_back();
        self.note(&progress, &notices)?;
        match &mut self.next {
            Some(next) => {
                let coverage = with_losses(progress.lost_packets);
                let summary = Line { kind: Kind::Summary(Box::new(coverage.clone())), ..line.clone() };
                next.finish(&summary, &coverage)
            }
            None => Ok(()),
        }
    }
}

/// A line is one of those that were lost. Both are in order, and each line is asked for once.
fn is_lost(lost: &mut VecDeque<(u64, u64)>, number: u64) -> bool {
    while lost.front().is_some_and(|(first, lines)| first + lines <= number) {
        lost.pop_front();
    }
    lost.front().is_some_and(|(first, _)| *first <= number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_were_lost_are_known() {
        let mut lost = VecDeque::from([(1, 2), (3, 1), (6, 1)]);
        let of_each: Vec<bool> = (0..8).map(|number| is_lost(&mut lost, number)).collect();
        assert_eq!(of_each, [false, true, true, true, false, false, true, false]);
    }
}

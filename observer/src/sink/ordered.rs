//! Lines in the order of their times, as a person reads them: a change of rules is reported once it is known what it changed, and
//! what happened after it waits for that, for a moment.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::Sink;
use crate::{
    incident::Snapshot,
    model::{Coverage, Kind, Line},
};

/// Every line waits so long: a change is heard a moment after what it causes may be seen.
const WINDOW: Duration = Duration::from_millis(150);
/// While a change is being compared, lines wait at most so long.
const LONGEST: Duration = Duration::from_millis(1300);
/// Lines that wait at most; with more of them the first one goes on.
const MAX_WAITING: usize = 1024;

struct Waiting {
    line: Line,
    story: Option<Snapshot>,
    since: Instant,
}

/// Passes lines on to another sink.
pub struct Ordered<S> {
    inner: S,
    /// A change of rules is being compared.
    changing: Arc<AtomicBool>,
    /// By their times.
    waiting: VecDeque<Waiting>,
}

impl<S: Sink> Ordered<S> {
    /// `changing` is set while a change of rules is to be reported yet.
    pub fn new(inner: S, changing: Arc<AtomicBool>) -> Self {
        Self { inner, changing, waiting: VecDeque::new() }
    }

    fn pass_on(&mut self, now: Instant, is_over: bool) -> io::Result<()> {
        let least = if self.changing.load(Ordering::Acquire) { LONGEST } else { WINDOW };
        while let Some(first) = self.waiting.front() {
            let has_waited = now.duration_since(first.since) >= least;
            if !has_waited && !is_over && self.waiting.len() <= MAX_WAITING {
                break;
            }
            if let Some(Waiting { line, story, .. }) = self.waiting.pop_front()
                && !self.is_outdone(&line)
            {
                self.inner.take(&line, story)?;
            }
        }
        Ok(())
    }
}

impl<S> Ordered<S> {
    /// A change of rules without its result, behind which the next change of the same namespace waits: that one has the result of both.
    fn is_outdone(&self, line: &Line) -> bool {
        let Kind::RulesetChanged(change) = &line.kind else { return false };
        let is_next = |other: &Waiting| {
            matches!(&other.line.kind, Kind::RulesetChanged(next)
            if next.netns == change.netns && next.sender.author() == change.sender.author())
        };
        change.ruleset.difference.is_none() && self.waiting.iter().any(is_next)
    }
}

impl<S: Sink> Sink for Ordered<S> {
    fn take(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()> {
        let now = Instant::now();
        let place = self.waiting.iter().rposition(|earlier| earlier.line.at <= line.at).map_or(0, |place| place + 1);
        self.waiting.insert(place, Waiting { line: line.clone(), story, since: now });
        self.pass_on(now, false)
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
        self.pass_on(Instant::now(), false)?;
        let due = self.inner.tick()?;
        let waits = (!self.waiting.is_empty()).then_some(WINDOW / 3);
        Ok(due.into_iter().chain(waits).min())
    }

    fn finish(&mut self, line: &Line, coverage: &Coverage) -> io::Result<()> {
        self.pass_on(Instant::now(), true)?;
        self.inner.finish(line, coverage)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::{Account, Attempt, Backend, ChangedRuleset, Difference, RulesetChange, Sender, Share};

    #[derive(Default)]
    struct Seen(Vec<i64>);

    impl Sink for Seen {
        fn take(&mut self, line: &Line, _: Option<Snapshot>) -> io::Result<()> {
            self.0.push(line.at.as_second());
            Ok(())
        }

        fn tick(&mut self) -> io::Result<Option<Duration>> {
            Ok(None)
        }

        fn finish(&mut self, _: &Line, _: &Coverage) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(second: i64) -> Line {
        let kind = Kind::Blocked(Box::new(Attempt::example()));
        Line { id: None, sequence: None, at: Timestamp::from_second(second).unwrap(), kind }
    }

    #[test]
    fn lines_come_in_the_order_of_their_times() {
        let changing = Arc::new(AtomicBool::new(true));
        let mut ordered = Ordered::new(Seen::default(), Arc::clone(&changing));
        for second in [3, 1, 2] {
            ordered.take(&line(second), None).unwrap();
        }
        let now = Instant::now();
        ordered.pass_on(now + WINDOW, false).unwrap();
        assert!(ordered.inner.0.is_empty(), "a change is to come");
        changing.store(false, Ordering::Release);
        ordered.pass_on(now + WINDOW, false).unwrap();
        assert_eq!(ordered.inner.0, [1, 2, 3]);
    }

    #[test]
    fn of_changes_in_a_row_the_one_with_their_result_goes_on() {
        let change = |second, difference: Option<Difference>| {
            let ruleset =
                ChangedRuleset { backend: Backend::Nft, generation: None, changed_by: None, changes: 1, difference };
            let change = RulesetChange {
                netns: 1,
                entering: None,
                is_elsewhere: false,
                ruleset,
                sender: Sender::default(),
                share: Share::Host,
            };
            Line { kind: Kind::RulesetChanged(Box::new(change)), ..line(second) }
        };
        let mut ordered = Ordered::new(Seen::default(), Arc::new(AtomicBool::new(false)));
        for told in [change(1, None), line(2), change(3, None), change(4, Some(Difference::default())), change(5, None)]
        {
            ordered.take(&told, None).unwrap();
        }
        ordered.pass_on(Instant::now() + WINDOW, false).unwrap();
        assert_eq!(ordered.inner.0, [2, 4, 5]);
    }

    #[test]
    fn nothing_waits_for_ever_and_nothing_is_lost() {
        let mut ordered = Ordered::new(Seen::default(), Arc::new(AtomicBool::new(true)));
        for second in 0..=MAX_WAITING as i64 {
            ordered.take(&line(second), None).unwrap();
        }
        assert_eq!(ordered.inner.0, [0], "there is no more room");
        ordered.pass_on(Instant::now() + LONGEST, false).unwrap();
        assert_eq!(ordered.inner.0.len(), MAX_WAITING + 1);
        ordered.take(&line(9), None).unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let coverage = Coverage { start: at, end: at, account: Account::default() };
        ordered.finish(&line(9), &coverage).unwrap();
        assert_eq!(ordered.inner.0.len(), MAX_WAITING + 2);
    }
}

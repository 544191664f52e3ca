//! Lines that wait for what is looked up for them. They are reported in the order in which they began: when all has come, or when their
//! time is over.

use std::{
    collections::VecDeque,
    task::Poll,
    time::{Duration, Instant},
};

/// Lines that wait at most: with more of them the eldest is reported at once.
const MAX_HELD: usize = 2048;
/// More of them than these are looked at again no more often than this.
const FEW: usize = 64;
const LOOK: Duration = Duration::from_millis(20);

/// A line that waits.
struct Held<T> {
    line: T,
    until: Instant,
    /// Everything has come: whether it is to be reported.
    is_ready: Option<bool>,
}

/// All of them, the eldest first.
pub(super) struct Waiting<T> {
    lines: VecDeque<Held<T>>,
    /// Answers have come since all that wait were looked at, and when that was.
    has_answers: bool,
    looked: Instant,
    /// The first one was looked at since the last answer.
    tried: bool,
}

impl<T> Waiting<T> {
    pub(super) fn new() -> Self {
        Self { lines: VecDeque::new(), has_answers: false, looked: Instant::now(), tried: false }
    }

    /// Holds a line that was looked at already, until then.
    pub(super) fn hold(&mut self, line: T, looked: Poll<bool>, until: Instant) {
        self.lines.push_back(Held { line, until, is_ready: ready(looked) });
    }

    /// Answers have come: `explain` looks at each line again, with whether it is the last time.
    pub(super) fn answered(&mut self, any: bool, now: Instant, mut explain: impl FnMut(&mut T, bool) -> Poll<bool>) {
        self.has_answers |= any;
        self.tried &= !any;
        let is_quick = self.lines.len() <= FEW || now.duration_since(self.looked) >= LOOK;
        if self.has_answers && is_quick {
            (self.has_answers, self.looked) = (false, now);
            // Whoever can be looked up further is, while others stand before it.
            for held in self.lines.iter_mut().skip(1) {
                held.is_ready = held.is_ready.or_else(|| ready(explain(&mut held.line, false)));
            }
        }
    }

    /// The first line, if everything has come for it or its time is over; and whether it is to be reported.
    pub(super) fn next(
        &mut self,
        (now, in_hurry): (Instant, bool),
        mut explain: impl FnMut(&mut T, bool) -> Poll<bool>,
    ) -> Option<(T, bool)> {
        let are_too_many = self.lines.len() > MAX_HELD;
        let held = self.lines.front_mut()?;
        let is_last = in_hurry || are_too_many || now >= held.until;
        if held.is_ready.is_none() && (is_last || !self.tried) {
            held.is_ready = ready(explain(&mut held.line, is_last));
        }
        self.tried = held.is_ready.is_none();
        let is_told = held.is_ready?;
        self.lines.pop_front().map(|held| (held.line, is_told))
    }

    /// After how long somebody must look again, where any wait.
    pub(super) fn due(&self, now: Instant) -> Option<Duration> {
        let first = self.lines.front()?;
        let until = first.until.saturating_duration_since(now);
        Some(if self.has_answers { until.min(LOOK) } else { until })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Any that waits is so.
    pub(super) fn any(&self, is_so: impl Fn(&T) -> bool) -> bool {
        self.lines.iter().any(|held| is_so(&held.line))
    }
}

fn ready(poll: Poll<bool>) -> Option<bool> {
    match poll {
        Poll::Ready(is_told) => Some(is_told),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(100);

    fn told(waiting: &mut Waiting<u32>, now: Instant, known: &[u32]) -> Vec<u32> {
        let explain = |line: &mut u32, is_last| {
            if is_last || known.contains(line) { Poll::Ready(true) } else { Poll::Pending }
        };
        waiting.answered(true, now, explain);
        std::iter::from_fn(|| waiting.next((now, false), explain).map(|(line, _)| line)).collect()
    }

    #[test]
    fn lines_are_told_in_their_order_and_in_time() {
        let mut waiting = Waiting::new();
        let now = Instant::now();
        (1..=3).for_each(|line| waiting.hold(line, Poll::Pending, now + HOLD));
        assert!(told(&mut waiting, now, &[2]).is_empty(), "the first one is not known");
        assert_eq!(waiting.due(now), Some(HOLD));
        assert_eq!(told(&mut waiting, now, &[1]), [1, 2]);
        assert_eq!(told(&mut waiting, now + HOLD, &[]), [3], "its time is over");
        assert!(waiting.is_empty() && waiting.due(now).is_none());
    }

    #[test]
    fn what_is_nobodys_block_is_not_told() {
        let mut waiting = Waiting::new();
        let now = Instant::now();
        waiting.hold(1, Poll::Ready(false), now + HOLD);
        assert_eq!(waiting.next((now, false), |_, _| Poll::Pending), Some((1, false)));
    }

    #[test]
    fn in_a_hurry_nothing_waits() {
        let mut waiting = Waiting::new();
        let now = Instant::now();
        waiting.hold(1, Poll::Pending, now + HOLD);
        let last = |_: &mut u32, is_last| if is_last { Poll::Ready(true) } else { Poll::Pending };
        assert_eq!(waiting.next((now, false), last), None);
        assert_eq!(waiting.next((now, true), last), Some((1, true)));
    }

    #[test]
    fn the_eldest_of_too_many_is_told() {
        let mut waiting = Waiting::new();
        let now = Instant::now();
        let many = u32::try_from(MAX_HELD).unwrap();
        (0..=many).for_each(|line| waiting.hold(line, Poll::Pending, now + HOLD));
        assert_eq!(told(&mut waiting, now, &[]), [0]);
    }
}

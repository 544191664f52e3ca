//! Answers of the helper that are good for a moment, so that a flood asks once; and how often it is worth asking again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);
/// How long it is good that nothing was found.
const BRIEF: Duration = Duration::from_millis(150);
/// Answers kept before the old ones are swept.
const MAX_ANSWERS: usize = 4096;
/// Looks for one sender, and how many senders a second get so many.
const ATTEMPTS: u32 = 6;
const PATIENT_LOOKS: u32 = 40;

/// Answers, each with the time until which it is good.
pub(crate) struct Answers<K, V>(HashMap<K, (Instant, V)>);

impl<K: std::hash::Hash + Eq + Clone, V: Clone> Answers<K, V> {
    pub(crate) fn new() -> Self {
        Self(HashMap::new())
    }

    /// The answer, asked for if it is not known or old.
    pub(crate) fn get(&mut self, key: K, ask: impl FnOnce() -> V) -> V {
        if let Some(answer) = self.get_known(&key) {
            return answer;
        }
        let answer = ask();
        self.put(key, answer.clone());
        answer
    }

    /// The answer that is known.
    pub(crate) fn get_known(&self, key: &K) -> Option<V> {
        self.0.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, answer)| answer.clone())
    }

    /// Remembers an answer for [`FRESH`].
    pub(crate) fn put(&mut self, key: K, answer: V) {
        self.put_for(FRESH, key, answer);
    }

    /// Remembers that there was none: for [`BRIEF`], since there may be one in a moment.
    pub(crate) fn put_none(&mut self, key: K, answer: V) {
        self.put_for(BRIEF, key, answer);
    }

    fn put_for(&mut self, time: Duration, key: K, answer: V) {
        let now = Instant::now();
        if self.0.len() >= MAX_ANSWERS {
            self.0.retain(|_, (until, _)| now < *until);
        }
        if self.0.len() < MAX_ANSWERS {
            self.0.insert(key, (now + time, answer));
        }
    }
}

/// Time between two looks for one sender.
const AGAIN: Duration = Duration::from_millis(4);

/// How often in a second a sender that cannot be found is looked for more than once: a flood of strangers' packets must not
/// hold up everything else.
#[derive(Default)]
pub(super) struct Patience {
    second: Option<Instant>,
    spent: u32,
}

impl Patience {
    /// How often to look for the next one.
    pub(super) fn attempts(&mut self) -> u32 {
        if self.second.is_none_or(|second| second.elapsed() > Duration::from_secs(1)) {
            (self.second, self.spent) = (Some(Instant::now()), 0);
        }
        self.spent += 1;
        if self.spent <= PATIENT_LOOKS { ATTEMPTS } else { 1 }
    }
}

/// How often the sender of one packet is still looked for.
#[derive(Default)]
pub(crate) struct Search {
    left: Option<u32>,
    next: Option<Instant>,
}

impl Search {
    /// It is not time for the next look.
    pub(super) fn is_early(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| now < next)
    }

    /// Nothing was found; true when that is the end of it. `attempts` says how often to look in all.
    pub(super) fn is_over(&mut self, now: Instant, attempts: impl FnOnce() -> u32) -> bool {
        let left = self.left.get_or_insert_with(attempts);
        *left = left.saturating_sub(1);
        self.next = Some(now + AGAIN);
        *left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_asked_for_once() {
        let mut answers = Answers::new();
        assert_eq!(answers.get(1, || "first"), "first");
        assert_eq!(answers.get(1, || "second"), "first");
        assert_eq!(answers.get_known(&2), None);
        answers.put(2, "put");
        assert_eq!(answers.get_known(&2), Some("put"));
    }

    #[test]
    fn patience_ends() {
        let mut patience = Patience::default();
        let attempts: Vec<u32> = (0..=PATIENT_LOOKS).map(|_| patience.attempts()).collect();
        assert_eq!((attempts.first(), attempts.last()), (Some(&ATTEMPTS), Some(&1)));
    }

    #[test]
    fn a_search_looks_again_in_a_moment_and_ends() {
        let (mut search, now) = (Search::default(), Instant::now());
        assert!(!search.is_early(now) && !search.is_over(now, || 2));
        assert!(search.is_early(now) && !search.is_early(now + AGAIN));
        assert!(search.is_over(now + AGAIN, || 99), "the number is asked for once");
    }
}

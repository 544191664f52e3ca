//! What is to be worked off: in the order in which it came while that is little, each account in turn once it is much. So whoever
//! sends very much waits behind itself, and not before others.

use std::collections::{HashMap, VecDeque};

use crate::model::Share;

/// With no more than this the order is that in which it came.
const FEW: usize = 256;

/// Items by account.
pub(super) struct Backlog<T> {
    /// Each with its number in the order of coming. None is empty.
    queues: HashMap<Share, VecDeque<(u64, T)>>,
    /// Accounts that have items, the next one first.
    turns: VecDeque<Share>,
    came: u64,
    len: usize,
}

impl<T> Backlog<T> {
    pub(super) fn new() -> Self {
        Self { queues: HashMap::new(), turns: VecDeque::new(), came: 0, len: 0 }
    }

    pub(super) fn push(&mut self, share: Share, item: T) {
        let queue = self.queues.entry(share).or_default();
        if queue.is_empty() {
            self.turns.push_back(share);
        }
        queue.push_back((self.came, item));
        self.came += 1;
        self.len += 1;
    }

    /// The next one to be worked off.
    pub(super) fn pop(&mut self) -> Option<T> {
        let place = if self.len <= FEW {
            let came = |share: &Share| self.queues.get(share).and_then(|queue| queue.front()).map(|(came, _)| *came);
            self.turns.iter().enumerate().min_by_key(|(_, share)| came(share)).map(|(place, _)| place)?
        } else {
            0
        };
        let share = self.turns.remove(place)?;
        let queue = self.queues.get_mut(&share)?;
        let (_, item) = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&share);
        } else {
            self.turns.push_back(share);
        }
        self.len -= 1;
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(mut backlog: Backlog<usize>) -> Vec<usize> {
        std::iter::from_fn(|| backlog.pop()).collect()
    }

    #[test]
    fn a_few_are_worked_off_as_they_came() {
        let mut backlog = Backlog::new();
        for item in 0..FEW {
            backlog.push(if item % 3 == 0 { Share::Host } else { Share::User(7) }, item);
        }
        assert_eq!(drained(backlog), (0..FEW).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_waits_behind_anothers_many() {
        let mut backlog = Backlog::new();
        (0..10_000).for_each(|item| backlog.push(Share::User(7), item));
        backlog.push(Share::Host, 20_000);
        backlog.push(Share::Namespace(3), 30_000);
        assert_eq!(backlog.len, 10_002);
        let order = drained(backlog);
        assert_eq!(order.len(), 10_002);
        assert!(order[..3].contains(&20_000) && order[..3].contains(&30_000), "{:?}", &order[..5]);
        let own: Vec<_> = order.into_iter().filter(|item| *item < 10_000).collect();
        assert!(own.is_sorted(), "each account's are in their order");
    }
}

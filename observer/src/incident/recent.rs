//! A map that forgets: what was not used for long, and what was used least lately where there is no more room.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

/// By `K`, at most so many, for so long after each was used last.
pub(super) struct Recent<K, V> {
    entries: HashMap<K, CacheEntry<V>>,
    /// Keys in the order in which they were used.
    order: BTreeMap<u64, K>,
    uses: u64,
    limit: usize,
    age: Duration,
}

struct CacheEntry<V> {
    value: V,
    used: Instant,
    /// Its place in the order.
    place: u64,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    pub(super) fn new(limit: usize, age: Duration) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), uses: 0, limit, age }
    }

    /// What is known, which is used by this.
    pub(super) fn get<Q>(&mut self, key: &Q, now: Instant) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.forget_old(now);
        let entry = self.entries.get_mut(key)?;
        let key = self.order.remove(&entry.place)?;
        self.uses += 1;
        (entry.used, entry.place) = (now, self.uses);
        self.order.insert(self.uses, key);
        Some(&mut entry.value)
    }

    /// The same; made where it is not known. What was used least lately makes room.
    pub(super) fn get_or_insert(&mut self, key: &K, now: Instant, make: impl FnOnce() -> V) -> &mut V {
        self.forget_old(now);
        if !self.entries.contains_key(key)
            && self.entries.len() >= self.limit
            && let Some((_, eldest)) = self.order.pop_first()
        {
            self.entries.remove(&eldest);
        }
        self.uses += 1;
        let place = self.uses;
        let entry = self.entries.entry(key.clone()).or_insert_with(|| CacheEntry { value: make(), used: now, place });
        self.order.remove(&entry.place);
        (entry.used, entry.place) = (now, place);
        self.order.insert(place, key.clone());
        &mut entry.value
    }

    /// Forgets what has another key than these.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&K) -> bool) {
        self.entries.retain(|key, _| is_kept(key));
        self.order.retain(|_, key| is_kept(key));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(eldest) = self.order.first_entry() {
            let is_old =
                |entry: &CacheEntry<V>| now.checked_duration_since(entry.used).is_some_and(|unused| unused > self.age);
            if !self.entries.get(eldest.get()).is_none_or(is_old) {
                break;
            }
            self.entries.remove(&eldest.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(10);

    #[test]
    fn what_was_used_least_lately_makes_room() {
        let mut recent = Recent::new(2, AGE);
        let now = Instant::now();
        recent.get_or_insert(&1, now, || "one");
        recent.get_or_insert(&2, now, || "two");
        assert!(recent.get(&1, now).is_some(), "used again");
        recent.get_or_insert(&3, now, || "three");
        assert_eq!(recent.get(&1, now), Some(&mut "one"));
        assert_eq!(recent.get(&2, now), None);
        assert_eq!(*recent.get_or_insert(&3, now, || "another"), "three");
        assert_eq!((recent.entries.len(), recent.order.len()), (2, 2));
    }

    #[test]
    fn it_goes_on_when_it_is_full() {
        let mut recent = Recent::new(100, AGE);
        let now = Instant::now();
        for key in 0..10_000 {
            assert_eq!(*recent.get_or_insert(&key, now, || key), key);
        }
        assert_eq!((recent.entries.len(), recent.order.len()), (100, 100));
    }

    #[test]
    fn what_was_not_used_for_long_is_gone() {
        let mut recent = Recent::new(9, AGE);
        let now = Instant::now();
        recent.get_or_insert(&1, now, || ());
        recent.get_or_insert(&2, now, || ());
        assert!(recent.get(&1, now + AGE).is_some(), "used in time");
        assert!(recent.get(&2, now + AGE + AGE / 2).is_none());
        assert!(recent.get(&1, now + AGE + AGE / 2).is_some());
        recent.retain(|_| false);
        assert!(recent.get(&1, now + AGE + AGE / 2).is_none());
    }
}

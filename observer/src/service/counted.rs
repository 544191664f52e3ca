//! What a generation's counts add to what was reported of its first packets.

use std::collections::HashMap;

use observer_ebpf::abi::DropKey;

use crate::model::{Attempt, Share};

/// First attempts of a generation that are kept as a pattern for what is counted beyond; the rest is made anew.
const MAX_PATTERNS: usize = 4096;

/// A first packet that was reported.
pub(super) struct Reported {
    pub(super) bytes: u64,
    pub(super) said: Said,
    /// On whose account it was.
    pub(super) share: Share,
}

/// What was said of a first packet.
pub(super) enum Said {
    /// It was no egress, as far as was known.
    Inbound,
    /// It is filtered.
    Filtered,
    /// This, on this account, if there was room to keep it.
    Attempt(Option<Box<(Attempt, Share)>>),
}

/// First packets of the even and the odd generation.
#[derive(Default)]
pub(super) struct Patterns([HashMap<DropKey, Reported>; 2]);

impl Patterns {
    /// One more can be kept.
    pub(super) fn have_room(&self) -> bool {
        self.0.iter().map(HashMap::len).sum::<usize>() < MAX_PATTERNS
    }

    pub(super) fn keep(&mut self, epoch: u32, key: DropKey, told: Reported) {
        self.0[(epoch & 1) as usize].insert(key, told);
    }

    /// Those of a generation, which is over.
    pub(super) fn take(&mut self, epoch: u32) -> HashMap<DropKey, Reported> {
        std::mem::take(&mut self.0[(epoch & 1) as usize])
    }
}

/// A generation is not younger than another one; their numbers begin anew.
pub(super) fn is_by(epoch: u32, other: u32) -> bool {
    other.wrapping_sub(epoch) as i32 >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_begin_anew() {
        assert!(is_by(1, 1) && is_by(1, 2) && !is_by(2, 1));
        assert!(is_by(u32::MAX, 0) && !is_by(0, u32::MAX));
    }

    #[test]
    fn two_generations_are_kept_apart() {
        let mut patterns = Patterns::default();
        let key = DropKey::default();
        patterns.keep(3, key, Reported { bytes: 3, said: Said::Inbound, share: Share::Host });
        patterns.keep(4, key, Reported { bytes: 4, said: Said::Filtered, share: Share::Host });
        assert_eq!(patterns.take(3).get(&key).map(|told| told.bytes), Some(3));
        assert!(patterns.take(3).is_empty());
        assert_eq!(patterns.take(4).len(), 1);
        assert!(patterns.have_room());
    }
}

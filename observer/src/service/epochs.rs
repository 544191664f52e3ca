//! Epochs of the counts: what an epoch's counts add to what was reported of its first packets, and when it may be swept.

use std::collections::{BTreeMap, HashMap, VecDeque};

use observer_ebpf::abi::{Counted, DropKey, flag};

use super::BACKLOG;
use crate::{
    intake::counts::Counts,
    model::{Attempt, Degraded, Share},
};

/// First attempts of an epoch that are kept as a pattern for what is counted beyond; the rest is made anew.
const MAX_PATTERNS: usize = 4096;
/// Senders whose accounts are remembered; and accounts of which it is reported that they were crowded.
const MAX_SENDERS: usize = 4096;
const MAX_CROWDED: usize = 64;

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

/// First packets of the even and the odd epoch.
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

    /// Those of an epoch, which is over.
    pub(super) fn take(&mut self, epoch: u32) -> HashMap<DropKey, Reported> {
        std::mem::take(&mut self.0[(epoch & 1) as usize])
    }
}

/// What was counted beyond a first packet: under which key, what was said of that, and on whose account.
pub(super) type Beyond = (DropKey, Counted, Option<Said>, Share);

/// What of a key tells on whose account it is: network namespace, user, whether there is a socket, and direction.
type SentBy = (u32, u32, bool, u8);

fn sender(key: &DropKey) -> SentBy {
    let netns = if key.origin_netns == 0 { key.netns } else { key.origin_netns };
    (netns, key.uid, key.flags & flag::SOCKET != 0, key.direction)
}

/// How far each epoch is.
pub(super) struct Epochs {
    counts: Counts,
    patterns: Patterns,
    /// First packets that wait for their turn, by epoch.
    firsts: BTreeMap<u32, usize>,
    /// What is left of the last sweep to be worked off.
    beyond: usize,
    /// The last epoch that was swept.
    swept: Option<u32>,
    /// Epochs that are to be swept once no first packet of theirs waits or is held any more.
    sweeps: VecDeque<u32>,
    /// Accounts of senders.
    senders: HashMap<SentBy, Share>,
    /// Packets that were counted without their destination, by account.
    crowded: BTreeMap<Share, u64>,
}

impl Epochs {
    pub(super) fn new(counts: Counts) -> Self {
        Self {
            counts,
            patterns: Patterns::default(),
            firsts: BTreeMap::new(),
            beyond: 0,
            swept: None,
            sweeps: VecDeque::new(),
            senders: HashMap::new(),
            crowded: BTreeMap::new(),
        }
    }

    /// A first packet is to wait for its turn; false where there is no room: it is reported by its count then.
    pub(super) fn first_waits(&mut self, epoch: u32) -> bool {
        if self.firsts.values().sum::<usize>() >= BACKLOG {
            return false;
        }
        *self.firsts.entry(epoch).or_default() += 1;
        true
    }

    /// Its turn has come.
    pub(super) fn first_taken(&mut self, epoch: u32) {
        if let Some(left) = self.firsts.get_mut(&epoch) {
            *left -= 1;
            if *left == 0 {
                self.firsts.remove(&epoch);
            }
        }
    }

    /// The epoch was swept: its counts cover a record that comes later.
    pub(super) fn is_swept(&self, epoch: u32) -> bool {
        self.swept.is_some_and(|swept| is_by(epoch, swept))
    }

    /// On whose account packets of such a key are.
    pub(super) fn is_of(&mut self, key: &DropKey, share: Share) {
        if self.senders.len() >= MAX_SENDERS {
            self.senders.clear();
        }
        self.senders.insert(sender(key), share);
    }

    /// One more attempt can be kept as a pattern.
    pub(super) fn has_room(&self) -> bool {
        self.patterns.have_room()
    }

    /// Keeps what was said of a first packet until its epoch is swept.
    pub(super) fn keep(&mut self, epoch: u32, key: DropKey, reported: Reported) {
        self.patterns.keep(epoch, key, reported);
    }

    /// An epoch is over, and to be swept in its turn.
    pub(super) fn is_over(&mut self, epoch: u32) {
        self.sweeps.push_back(epoch);
    }

    /// Some are to be swept.
    pub(super) fn are_waiting(&self) -> bool {
        !self.sweeps.is_empty()
    }

    /// The next epoch that can be swept: a first packet that waits, or is held, has not left its pattern yet.
    pub(super) fn next(&mut self, is_held: impl Fn(u32) -> bool) -> Option<u32> {
        let epoch = *self.sweeps.front()?;
        if self.firsts.keys().any(|of| is_by(*of, epoch)) || is_held(epoch) {
            return None;
        }
        self.sweeps.pop_front()
    }

    /// Both epochs that may hold counts at the end, the older one first.
    pub(super) fn last(&self) -> [u32; 2] {
        let next = self.swept.map_or(0, |swept| swept.wrapping_add(1));
        [next, next.wrapping_add(1)]
    }

    /// Reads and clears an epoch's counts: what was counted beyond first packets, how many keys there were, and what went wrong.
    pub(super) fn sweep(&mut self, epoch: u32) -> (Vec<Beyond>, u64, Option<anyhow::Error>) {
        let mut reported = self.patterns.take(epoch);
        self.swept = Some(epoch);
        let (swept, error) = self.counts.sweep(epoch);
        let found = swept.len() as u64;
        let mut all = Vec::new();
        for (key, mut counted) in swept {
            let first = reported.remove(&key);
            let known = first.as_ref().map(|first| first.share).or_else(|| self.senders.get(&sender(&key)).copied());
            if let Some(share) = known.filter(|_| key.flags & flag::COARSE != 0) {
                let share = if matches!(share, Share::Forwarded(_)) { Share::Forwarded(0) } else { share };
                if self.crowded.len() < MAX_CROWDED || self.crowded.contains_key(&share) {
                    *self.crowded.entry(share).or_default() += counted.packets;
                }
            }
            if let Some(first) = &first {
                counted.packets -= 1;
                counted.bytes -= first.bytes;
            }
            if counted.packets > 0 {
                let share = known.unwrap_or(Share::Namespace(sender(&key).0));
                all.push((key, counted, first.map(|first| first.said), share));
            }
        }
        self.beyond += all.len();
        (all, found, error)
    }

    /// One of them was worked off; true when none is left.
    pub(super) fn beyond_taken(&mut self) -> bool {
        self.beyond -= 1;
        self.beyond == 0
    }

    /// All of the last sweep was worked off.
    pub(super) fn is_done(&self) -> bool {
        self.beyond == 0
    }

    /// Who used up a share.
    pub(super) fn degraded(&self) -> impl Iterator<Item = Degraded> {
        self.crowded.iter().map(|(share, packets)| Degraded {
            what: "share".to_owned(),
            why: format!(
                "the table of counts had no room left for {share}, which sent to very many destinations or beside others that did"
            ),
            consequence: format!("{packets} of its packets were counted without their destination"),
        })
    }
}

/// An epoch is not younger than another one; their numbers begin anew.
pub(super) fn is_by(epoch: u32, other: u32) -> bool {
    other.wrapping_sub(epoch) as i32 >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_begin_anew() {
        assert!(is_by(1, 1) && is_by(1, 2) && !is_by(2, 1));
        assert!(is_by(u32::MAX, 0) && !is_by(0, u32::MAX));
    }

    #[test]
    fn two_epochs_are_kept_apart() {
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

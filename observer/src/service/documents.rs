//! Rulesets that lines refer to, for whoever keeps them: each is asked of the helper once, in parts.

use std::{
    collections::{HashMap, VecDeque},
    task::Poll,
    time::{Duration, Instant},
};

use crate::{
    model::{Attempt, Document, DocumentPart, Share},
    privilege::{HostQueries, protocol::RulesetText},
};

/// Rulesets that wait to be asked for, and those of one account.
const MAX_WAITING: usize = 64;
const MAX_WAITING_OF_A_SHARE: usize = 4;
/// Rulesets that are known to be kept; beyond that some are handed over again.
const MAX_KNOWN: usize = 4096;
/// Bytes of one, compressed. The store takes no longer messages.
const MAX_BYTES: u64 = 3 << 20;
/// A ruleset is handed over again after so long: what was kept may have been removed, or moved away.
const AGAIN: Duration = Duration::from_secs(60);

/// What was asked for, and what was handed over.
pub(super) struct Documents {
    /// Somebody keeps them.
    are_kept: bool,
    /// When they were handed over.
    known: HashMap<String, Instant>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    netns: u32,
    share: Share,
    sha256: String,
    packed: Vec<u8>,
}

impl Documents {
    /// `are_kept`: somebody keeps them.
    pub(super) fn new(are_kept: bool) -> Self {
        Self { are_kept, known: HashMap::new(), waiting: VecDeque::new() }
    }

    /// Has the ruleset of what was reported asked for, unless that was done.
    pub(super) fn want(&mut self, attempt: &Attempt, share: Share) {
        let Some(sha256) = attempt.rule.as_ref().and_then(|rule| rule.ruleset_sha256.as_ref()) else { return };
        let is_known = self.known.get(sha256).is_some_and(|handed_over| handed_over.elapsed() < AGAIN);
        let Some(netns) = attempt.netns.filter(|_| self.are_kept && !is_known) else { return };
        let of_the_share = self.waiting.iter().filter(|waiting| waiting.share == share).count();
        // What finds no place is asked for with the next line of it.
        if self.waiting.len() >= MAX_WAITING || share != Share::Host && of_the_share >= MAX_WAITING_OF_A_SHARE {
            return;
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(sha256.clone(), Instant::now());
        self.waiting.push_back(Waiting { netns, share, sha256: sha256.clone(), packed: Vec::new() });
    }

    /// Some have not come yet.
    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Those that have come. What the helper does not have any more is given up.
    pub(super) fn come<E: HostQueries>(&mut self, queries: &mut E) -> Vec<Document> {
        let mut whole = Vec::new();
        self.waiting.retain_mut(|waiting| {
            loop {
                let (netns, from) = (waiting.netns, waiting.packed.len() as u64);
                let question = RulesetText { netns, sha256: waiting.sha256.clone(), from };
                let Poll::Ready(answer) = queries.poll(waiting.share, question) else { return true };
                let Ok(Some(DocumentPart { bytes, packed, part })) = answer else {
                    // The next line of it asks again.
                    self.known.remove(&waiting.sha256);
                    return false;
                };
                waiting.packed.extend(&part);
                if waiting.packed.len() as u64 >= packed {
                    let packed = std::mem::take(&mut waiting.packed);
                    whole.push(Document { sha256: waiting.sha256.clone(), bytes, packed, share: waiting.share });
                    return false;
                }
                if part.is_empty() || packed > MAX_BYTES {
                    return false;
                }
            }
        });
        whole
    }
}

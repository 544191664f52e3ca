//! Texts that surround what was reported, for whoever keeps them: rulesets, routes, what units say. Each is asked of the helper.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write,
    task::Poll,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::{
    model::{Attempt, Document, DocumentKind, DocumentPart, Share},
    privilege::{
        HostQueries,
        protocol::{RoutesText, RulesetText, UnitText},
    },
};

/// Texts that wait to be asked for, and those of one account.
const MAX_WAITING: usize = 128;
const MAX_WAITING_OF_A_SHARE: usize = 8;
/// Texts that are known to be kept; beyond that some are handed over again.
const MAX_KNOWN: usize = 4096;
/// Bytes of one, compressed. The store takes no longer messages.
const MAX_BYTES: u64 = 3 << 20;
/// One is asked for again after so long: it may have changed, and what was kept may have been removed or moved away.
const AGAIN: Duration = Duration::from_secs(60);
/// How hard a text is compressed, of 10.
const LEVEL: u8 = 3;

/// Which text: of a ruleset the digest, of other texts what they are of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    Ruleset { netns: u32, sha256: String },
    Routes { netns: u32 },
    Unit { name: String },
}

/// What was asked for, and what was handed over.
pub(super) struct Documents {
    /// Somebody keeps them.
    are_kept: bool,
    /// When they were asked for.
    known: HashMap<Wanted, Instant>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    wanted: Wanted,
    share: Share,
    at: Timestamp,
    packed: Vec<u8>,
}

impl Documents {
    /// `are_kept`: somebody keeps them.
    pub(super) fn new(are_kept: bool) -> Self {
        Self { are_kept, known: HashMap::new(), waiting: VecDeque::new() }
    }

    /// Has what surrounds something that was reported asked for, unless that was done of late.
    pub(super) fn want(&mut self, attempt: &Attempt, share: Share) {
        if !self.are_kept {
            return;
        }
        if let Some(netns) = attempt.netns {
            let sha256 = attempt.rule.as_ref().and_then(|rule| rule.ruleset_sha256.clone());
            if let Some(sha256) = sha256 {
                self.ask(Wanted::Ruleset { netns, sha256 }, share, attempt.end);
            }
            self.ask(Wanted::Routes { netns }, share, attempt.end);
        }
        let sender = &attempt.sender;
        // Files of units of users' managers are their own.
        let is_of_the_system = sender.cgroup.as_deref().is_some_and(|path| !path.contains("/user@"));
        if let Some(name) = sender.unit.clone().filter(|_| is_of_the_system) {
            self.ask(Wanted::Unit { name }, share, attempt.end);
        }
    }

    fn ask(&mut self, wanted: Wanted, share: Share, at: Timestamp) {
        let of_the_share = self.waiting.iter().filter(|waiting| waiting.share == share).count();
        let is_full =
            self.waiting.len() >= MAX_WAITING || share != Share::Host && of_the_share >= MAX_WAITING_OF_A_SHARE;
        // What finds no place is asked for with the next line of it.
        if is_full || self.known.get(&wanted).is_some_and(|asked| asked.elapsed() < AGAIN) {
            return;
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(wanted.clone(), Instant::now());
        self.waiting.push_back(Waiting { wanted, share, at, packed: Vec::new() });
    }

    /// Some have not come yet.
    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Those that have come. A ruleset that the helper does not have yet is asked for again by the next line of it.
    pub(super) fn come<E: HostQueries>(&mut self, queries: &mut E) -> Vec<Document> {
        let mut whole = Vec::new();
        let known = &mut self.known;
        self.waiting.retain_mut(|waiting| match waiting.progress(queries) {
            Poll::Pending => true,
            Poll::Ready(document) => {
                if document.is_none() && waiting.may_come() {
                    known.remove(&waiting.wanted);
                }
                whole.extend(document);
                false
            }
        });
        whole
    }
}

impl Waiting {
    /// What there is not may be there the next time: a ruleset is, once it was read. What is too long stays so.
    fn may_come(&self) -> bool {
        matches!(self.wanted, Wanted::Ruleset { .. }) && self.packed.is_empty()
    }

    fn progress<E: HostQueries>(&mut self, queries: &mut E) -> Poll<Option<Document>> {
        let share = self.share;
        let (kind, subject, sha256, bytes, packed) = match &self.wanted {
            Wanted::Ruleset { netns, sha256 } => {
                let (netns, sha256) = (*netns, sha256.clone());
                let bytes = loop {
                    let question = RulesetText { netns, sha256: sha256.clone(), from: self.packed.len() as u64 };
                    let Poll::Ready(answer) = queries.poll(share, question) else { return Poll::Pending };
                    let Ok(Some(DocumentPart { bytes, packed, part })) = answer else { return Poll::Ready(None) };
                    self.packed.extend(&part);
                    if self.packed.len() as u64 >= packed {
                        break bytes;
                    }
                    if part.is_empty() || packed > MAX_BYTES {
                        return Poll::Ready(None);
                    }
                };
                (DocumentKind::Ruleset, netns.to_string(), sha256, bytes, std::mem::take(&mut self.packed))
            }
            Wanted::Routes { netns } => {
                let Poll::Ready(answer) = queries.poll(share, RoutesText { netns: *netns }) else {
                    return Poll::Pending;
                };
                let Ok(text) = answer else { return Poll::Ready(None) };
                packed(DocumentKind::Routes, netns.to_string(), &text)
            }
            Wanted::Unit { name } => {
                let Poll::Ready(answer) = queries.poll(share, UnitText { unit: name.clone() }) else {
                    return Poll::Pending;
                };
                let Some(text) = answer else { return Poll::Ready(None) };
                packed(DocumentKind::Unit, name.clone(), &text)
            }
        };
        // A ruleset is the one of the drop by its digest. Routes and units are as they are now.
        let at = if kind == DocumentKind::Ruleset { self.at } else { Timestamp::now() };
        Poll::Ready(Some(Document { kind, subject, at, sha256, bytes, packed, share }))
    }
}

fn packed(kind: DocumentKind, subject: String, text: &str) -> (DocumentKind, String, String, u64, Vec<u8>) {
    let sha256 = Sha256::digest(text).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(text.as_bytes(), LEVEL);
    (kind, subject, sha256, text.len() as u64, packed)
}

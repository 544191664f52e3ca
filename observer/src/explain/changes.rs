//! Changes of rules: of which namespaces they are heard, and how one is told.

use std::{
    collections::{HashMap, VecDeque},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    attribute::{Asking, Attribution},
    model::{Backend, ChangedRuleset, Commit, Difference, NetnsPlace, RulesetChange, Sender, Share},
    patience,
    privilege::{Eyes, Listening, protocol::Differ},
};

/// Namespaces that are listened to at the same time.
const MAX_NAMESPACES: usize = 64;
/// The same on one account.
const MAX_NAMESPACES_OF_A_SHARE: usize = 16;
/// A change is told after so long, whether it is known by then what is otherwise.
const COMPARED: Duration = Duration::from_millis(700);
/// Where it failed, it is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// How it stands with one namespace.
enum Heard {
    /// It was asked for, on this account.
    Asked(Share),
    /// It is listened to.
    Yes(Share),
    /// That failed, and when.
    Failed(Instant),
}

/// Namespaces that are listened to, or are to be, and changes that were heard.
pub struct Changes {
    heard: HashMap<u32, Heard>,
    begun: UnboundedSender<Listening>,
    changing: VecDeque<Changing>,
}

impl Changes {
    /// Hands over what listening takes to whoever does it.
    pub fn new(begun: UnboundedSender<Listening>) -> Self {
        Self { heard: HashMap::new(), begun, changing: VecDeque::new() }
    }

    /// A namespace is listened to from now on.
    pub fn hear(&mut self, listening: Listening) {
        let netns = listening.netns;
        let heard =
            if self.begun.send(listening).is_ok() { Heard::Yes(Share::Host) } else { Heard::Failed(Instant::now()) };
        self.heard.insert(netns, heard);
    }

    /// Listens to a namespace from now on, if that is not done already.
    pub(crate) fn adopt<E: Eyes>(&mut self, netns: u32, share: Share, eyes: &mut E) {
        match self.heard.get(&netns) {
            Some(Heard::Asked(_) | Heard::Yes(_)) => return,
            Some(Heard::Failed(failed)) if failed.elapsed() < AGAIN => return,
            _ => {}
        }
        let of_the_share = |heard: &Heard| matches!(heard, Heard::Asked(of) | Heard::Yes(of) if *of == share);
        let has_its_share = share != Share::Host
            && self.heard.values().filter(|heard| of_the_share(heard)).count() >= MAX_NAMESPACES_OF_A_SHARE;
        if has_its_share || self.heard.len() >= MAX_NAMESPACES && !self.heard.contains_key(&netns) {
            // Those that fail are not listened to.
            self.heard.retain(|_, heard| !matches!(heard, Heard::Failed(failed) if failed.elapsed() >= AGAIN));
            return;
        }
        self.heard.insert(netns, Heard::Asked(share));
        self.progress(eyes);
    }

    /// Takes what was asked for and has come.
    pub(crate) fn progress<E: Eyes>(&mut self, eyes: &mut E) {
        for (netns, heard) in &mut self.heard {
            let Heard::Asked(share) = *heard else { continue };
            let Poll::Ready(answer) = eyes.poll_listen(share, *netns) else { continue };
            *heard = match answer {
                Ok(listening) => match self.begun.send(listening) {
                    Ok(()) => Heard::Yes(share),
                    Err(_) => Heard::Failed(Instant::now()),
                },
                Err(why) => {
                    log::debug!("changes of rules in namespace {netns} are not heard: {why}");
                    Heard::Failed(Instant::now())
                }
            };
        }
    }

    /// What failed may succeed now.
    pub(crate) fn again(&mut self) {
        self.heard.retain(|_, heard| !matches!(heard, Heard::Failed(_)));
    }

    /// The process by which a namespace was known to live has ended: its rules are listened to by another one.
    pub(crate) fn deaf<E: Eyes>(&mut self, netns: u32, eyes: &mut E) {
        if let Some(Heard::Asked(share) | Heard::Yes(share)) = self.heard.remove(&netns) {
            self.adopt(netns, share, eyes);
        }
    }

    /// Rules were changed; the last one of several is told with what is otherwise. It is told by [`Self::changed`].
    pub(crate) fn change<E: Eyes>(&mut self, commit: Commit, is_last: bool, attribution: &mut Attribution<E>) {
        let sender = attribution.doer(commit.by.as_ref(), commit.boot_ns);
        let share = attribution.share(commit.netns, 0, None);
        self.changing.push_back(Changing { commit, sender, share, is_last, since: Instant::now(), difference: None });
    }

    /// Some are to be told.
    pub(crate) fn are_waiting(&self) -> bool {
        !self.changing.is_empty()
    }

    /// Some change of a namespace's rules waits to be told.
    pub(crate) fn is_changing(&self, netns: u32) -> bool {
        self.changing.iter().any(|changing| changing.commit.netns == netns)
    }

    /// The next change that can be told, and when it was heard, nanoseconds of `CLOCK_BOOTTIME`; with `is_over` whatever is known
    /// of it.
    pub(crate) fn changed<E: Eyes>(
        &mut self,
        attribution: &mut Attribution<E>,
        is_over: bool,
    ) -> Option<(u64, RulesetChange)> {
        let (at, place, difference) =
            (0..self.changing.len()).find_map(|at| self.compared(at, attribution, is_over))?;
        let Changing { commit, sender, .. } = self.changing.remove(at)?;
        let ruleset =
            ChangedRuleset { backend: Backend::Nft, generation: commit.generation, changed_by: commit.by, difference };
        let change = RulesetChange {
            netns: commit.netns,
            entering: place.entering,
            is_elsewhere: place.is_other,
            ruleset,
            sender,
        };
        Some((commit.boot_ns, change))
    }

    /// Where a change that waits happened, and what is otherwise, once both are known.
    fn compared<E: Eyes>(
        &mut self,
        at: usize,
        attribution: &mut Attribution<E>,
        is_over: bool,
    ) -> Option<(usize, NetnsPlace, Option<Difference>)> {
        let changing = &mut self.changing[at];
        let is_last = is_over || changing.since.elapsed() > patience::here(COMPARED);
        let (netns, generation) = (changing.commit.netns, changing.commit.generation);
        let (eyes, places) = attribution.eyes_and_places();
        let mut asking = Asking { eyes, share: changing.share, is_last };
        // Both questions go out at once.
        let difference = changing.is_last.then(|| asking.poll(Differ { netns, generation }));
        let Poll::Ready(place) = places.of(netns, 0, &mut asking) else {
            // What has come is not given away.
            if let Some(Poll::Ready(difference)) = difference {
                changing.difference = Some(difference);
            }
            return None;
        };
        let known = changing.difference.take().map(Poll::Ready);
        match known.or(difference) {
            Some(Poll::Pending) if !is_last => None,
            None | Some(Poll::Pending) => Some((at, place, None)),
            Some(Poll::Ready(Ok(difference))) => Some((at, place, difference)),
            Some(Poll::Ready(Err(why))) => {
                log::debug!("the rules of namespace {netns} were not read: {why}");
                Some((at, place, None))
            }
        }
    }
}

/// A change of rules that is to be told, once it is known what is otherwise.
struct Changing {
    commit: Commit,
    sender: Sender,
    share: Share,
    /// The last one of several: what is otherwise is told with it.
    is_last: bool,
    since: Instant,
    /// What is otherwise, once it has come.
    difference: Option<Result<Option<Difference>, String>>,
}

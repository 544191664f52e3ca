//! Changes of rules: of which namespaces they are heard, and how one is reported.

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
    privilege::{HostQueries, Listening, protocol::Differ},
};

/// Namespaces whose last compared ruleset is remembered.
const MAX_COMPARED: usize = 256;
/// Namespaces that are listened to at the same time.
const MAX_NAMESPACES: usize = 64;
/// The same on one account.
const MAX_NAMESPACES_OF_A_SHARE: usize = 16;
/// What changed is asked once nothing has changed for so long: front ends make many changes in a row, through chains of the moment.
const QUIET: Duration = Duration::from_millis(300);
/// Changes that never end are compared after so long.
const BURST: Duration = Duration::from_secs(3);
/// After so long a change is reported without what changed.
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
    /// Changes of a namespace since the last comparison.
    bursts: HashMap<u32, Burst>,
    /// Number of the ruleset that was compared last, by namespace.
    compared: HashMap<u32, u32>,
}

/// Changes in a row.
struct Burst {
    changes: u32,
    /// When the first was heard.
    first: Instant,
    /// Whoever made them; and whether somebody else made some.
    author: Option<u32>,
    has_others: bool,
}

impl Changes {
    /// Hands over what listening takes to whoever does it.
    pub fn new(begun: UnboundedSender<Listening>) -> Self {
        Self {
            heard: HashMap::new(),
            begun,
            changing: VecDeque::new(),
            bursts: HashMap::new(),
            compared: HashMap::new(),
        }
    }

    /// A namespace is listened to from now on.
    pub fn hear(&mut self, listening: Listening) {
        let netns = listening.netns;
        let heard =
            if self.begun.send(listening).is_ok() { Heard::Yes(Share::Host) } else { Heard::Failed(Instant::now()) };
        self.heard.insert(netns, heard);
    }

    /// Listens to a namespace from now on, if that is not done already.
    pub(crate) fn adopt<E: HostQueries>(&mut self, netns: u32, share: Share, queries: &mut E) {
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
        self.progress(queries);
    }

    /// Takes what was asked for and has come.
    pub(crate) fn progress<E: HostQueries>(&mut self, queries: &mut E) {
        for (netns, heard) in &mut self.heard {
            let Heard::Asked(share) = *heard else { continue };
            let Poll::Ready(answer) = queries.poll_listen(share, *netns) else { continue };
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
    pub(crate) fn deaf<E: HostQueries>(&mut self, netns: u32, queries: &mut E) {
        if let Some(Heard::Asked(share) | Heard::Yes(share)) = self.heard.remove(&netns) {
            self.adopt(netns, share, queries);
        }
    }

    /// Rules were changed; the last one of several is reported with what changed. It is reported by [`Self::changed`].
    pub(crate) fn change<E: HostQueries>(&mut self, commit: Commit, is_last: bool, attribution: &mut Attribution<E>) {
        let sender = attribution.actor(commit.by.as_ref(), commit.boot_ns);
        let share = attribution.share(commit.netns, 0, None);
        // What changed is reported with the last one.
        let is_earlier = |earlier: &&mut Changing| earlier.commit.netns == commit.netns && !earlier.is_asked;
        for earlier in self.changing.iter_mut().filter(is_earlier) {
            earlier.is_last = false;
        }
        let (now, author) = (Instant::now(), sender.author());
        let new = || Burst { changes: 0, first: now, author, has_others: false };
        let burst = self.bursts.entry(commit.netns).or_insert_with(new);
        burst.changes += 1;
        burst.has_others |= burst.author != author;
        self.changing.push_back(Changing {
            commit,
            sender,
            share,
            is_last,
            is_asked: false,
            burst: None,
            since: now,
            difference: None,
        });
    }

    /// Some are to be reported.
    pub(crate) fn are_waiting(&self) -> bool {
        !self.changing.is_empty()
    }

    /// A change of a namespace's rules from before this time, nanoseconds of `CLOCK_BOOTTIME`, waits to be reported.
    pub(crate) fn is_changing(&self, netns: u32, boot_ns: u64) -> bool {
        let waits = |changing: &Changing| changing.commit.netns == netns && changing.commit.boot_ns <= boot_ns;
        self.changing.iter().any(waits)
    }

    /// The next change that can be reported, and when it was heard, nanoseconds of `CLOCK_BOOTTIME`; with `is_over` whatever is known
    /// of it.
    pub(crate) fn changed<E: HostQueries>(
        &mut self,
        attribution: &mut Attribution<E>,
        is_over: bool,
    ) -> Option<(u64, RulesetChange)> {
        let (at, place, difference) =
            (0..self.changing.len()).find_map(|at| self.compared(at, attribution, is_over))?;
        let Changing { commit, sender, share, is_last, burst, .. } = self.changing.remove(at)?;
        let burst = burst.or_else(|| if is_last { self.bursts.remove(&commit.netns) } else { None });
        if let Some(difference) = &difference {
            if self.compared.len() >= MAX_COMPARED
                && let Some(other) = self.compared.keys().copied().find(|netns| !self.heard.contains_key(netns))
            {
                self.compared.remove(&other);
            }
            self.compared.insert(commit.netns, difference.generation);
        }
        let ruleset = ChangedRuleset {
            backend: Backend::Nft,
            generation: commit.generation,
            changed_by: commit.by,
            // What others made is not this one's doing.
            changes: burst.filter(|burst| !burst.has_others).map_or(1, |burst| burst.changes),
            difference,
        };
        let change = RulesetChange {
            netns: commit.netns,
            entering: place.entering,
            is_elsewhere: place.is_other,
            ruleset,
            sender,
            share,
        };
        Some((commit.boot_ns, change))
    }

    /// Where a change that waits happened, and what changed, once both are known.
    fn compared<E: HostQueries>(
        &mut self,
        at: usize,
        attribution: &mut Attribution<E>,
        is_over: bool,
    ) -> Option<(usize, NetnsPlace, Option<Difference>)> {
        let changing = &mut self.changing[at];
        let waited = changing.since.elapsed();
        let is_long = self.bursts.get(&changing.commit.netns).is_some_and(|burst| burst.first.elapsed() > BURST);
        if changing.is_last && waited < patience::here(QUIET) && !is_over && !is_long {
            return None;
        }
        let is_last = is_over || waited > patience::here(QUIET + COMPARED);
        let (netns, generation) = (changing.commit.netns, changing.commit.generation);
        let (queries, places) = attribution.queries_and_places();
        let mut asking = Asking { queries, share: changing.share, is_last };
        // Both questions go out at once.
        let since = self.compared.get(&netns).copied();
        if changing.is_last && !changing.is_asked {
            changing.is_asked = true;
            // What comes from now on is another burst.
            changing.burst = self.bursts.remove(&netns);
        }
        let difference = changing.is_last.then(|| asking.poll(Differ { netns, generation, since }));
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

/// A change of rules that is to be reported, once it is known what changed.
struct Changing {
    commit: Commit,
    sender: Sender,
    share: Share,
    /// The last one of several: what changed is reported with it.
    is_last: bool,
    /// What changed was asked for: a later change does not take its place any more.
    is_asked: bool,
    /// The changes that it is the last one of, once that was asked.
    burst: Option<Burst>,
    since: Instant,
    /// What changed, once it has come.
    difference: Option<Result<Option<Difference>, String>>,
}

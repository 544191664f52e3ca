//! Rulesets of the namespaces in which something was blocked: read at the first question, and again when they have changed,
//! at the latest at the next one.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::netns;
use crate::{
    firewall::{
        nft,
        ruleset::{MAX_BYTES, Ruleset},
    },
    kernel::netns_cookie,
    model::{Difference, DocumentPart, NamedRule, Share, WantedRule},
    patience,
};

/// How long a question waits for a ruleset to be read, and then for the text of a rule. Who sent the packets that come next is
/// not looked for meanwhile, and some of them do not live long.
const READING: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_millis(40);
/// The same to tell what was changed, which is rarer.
const COMPARING: Duration = Duration::from_millis(500);
/// Namespaces whose rulesets are kept, those asked about last.
const MAX_NAMESPACES: usize = 256;
/// Rulesets of a namespace that are kept, and rules in those that are not in force: a rule that is gone is still named.
const MAX_KEPT: usize = 8;
const MAX_OLDER_RULES: usize = 50_000;

/// Bytes of a text in one answer.
const PART: usize = 64 * 1024;

/// Numbers of rulesets that differences were given up to, and are remembered.
const MAX_ANSWERED: usize = 8;

/// Rulesets about which somebody asked within this time are read at every change.
const WARM: Duration = Duration::from_secs(600);

/// But for so many times as long as that took they are not read for a change again: whoever changes a long ruleset all the time
/// must not pay for being watched.
const COMPARED_SHARE: u32 = 50;
/// That much does not count.
const QUICK: Duration = Duration::from_millis(20);

/// A ruleset whose reading took so long is not read again for so many times as long: it must not cost its host too much.
const SLOW: Duration = Duration::from_millis(250);
const SHARE: u32 = 4;

/// Bytes of rulesets that are kept for one share, with those that are not in force, and for all shares but root's together; and
/// bytes of one ruleset of theirs. What is longer is not read.
const MAX_BYTES_OF_A_SHARE: u64 = 32 << 20;
const MAX_BYTES_OF_OTHERS: u64 = 96 << 20;
const MAX_BYTES_OF_ONE: u64 = 10 << 20;
/// Rulesets that are read at the same time for one share, and for root's.
const MAX_READINGS: usize = 2;
const MAX_READINGS_OF_ROOT: usize = 6;
/// A namespace about which nobody has asked for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// What is known of one namespace.
struct Space {
    /// The newest first.
    rulesets: VecDeque<Ruleset>,
    /// Nobody waited until it was read.
    reading: Option<Reading>,
    /// Numbers of the ruleset that was read first, and of those that differences were given up to: the last ones.
    answered: VecDeque<u32>,
    /// No change is looked at before.
    compared_until: Instant,
    /// When the last reading began.
    began: Instant,
    /// Not read again before.
    rests_until: Instant,
    /// Bytes of a ruleset that is read.
    most: u64,
    share: Share,
}

/// Rulesets that are being read, by share.
static READINGS: Mutex<BTreeMap<Share, usize>> = Mutex::new(BTreeMap::new());

/// One of them, as long as this lives.
struct Turn(Share);

impl Turn {
    fn take(share: Share) -> Result<Self> {
        let mut readings = READINGS.lock().unwrap_or_else(PoisonError::into_inner);
        let here = readings.entry(share).or_default();
        let most = if share == Share::Host { MAX_READINGS_OF_ROOT } else { MAX_READINGS };
        ensure!(*here < most, "others of {share} are being read");
        *here += 1;
        Ok(Self(share))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut readings = READINGS.lock().unwrap_or_else(PoisonError::into_inner);
        match readings.get_mut(&self.0) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(readings.remove(&self.0)),
        }
    }
}

/// The same with what is known without waiting for whoever is at work there.
struct Slot {
    space: Mutex<Space>,
    share: Share,
    asked: Mutex<Instant>,
    /// Bytes that it holds, about.
    weight: AtomicU64,
    /// A verdict may come out of a map in the ruleset that was read last.
    has_maps: AtomicBool,
}

/// All of them, by the namespace's cookie. Whoever waits for one holds up nobody who asks about another.
#[derive(Default)]
pub(super) struct Rulesets(Mutex<HashMap<u64, Arc<Slot>>>);

impl Rulesets {
    /// The rule that the eBPF side saw, if the ruleset has it, or had it, and it can have dropped that packet.
    pub(super) fn named(&self, wanted: &WantedRule, share: Share) -> Result<Option<NamedRule>> {
        let now = Instant::now();
        let slot = self.slot(wanted.netns_cookie, share);
        *slot.asked.lock().unwrap_or_else(PoisonError::into_inner) = now;
        let mut space = slot.space.lock().unwrap_or_else(PoisonError::into_inner);
        let refreshed = space.refresh(wanted.netns, wanted.netns_cookie, true, now + patience::here(READING));
        // A handle is never used twice in a namespace: whichever snapshot has the rule has the right one.
        let deadline = Instant::now() + patience::here(PATIENCE);
        let mut roots = || netns::roots(wanted.netns);
        let mut all = space.rulesets.iter_mut();
        let named = all
            .next()
            .and_then(|newest| newest.named(wanted, deadline, Some(&mut roots)))
            // What front ends' files say now they may not have said then.
            .or_else(|| all.find_map(|older| older.named(wanted, deadline, None)));
        slot.weigh(&space);
        drop(space);
        self.make_room(wanted.netns_cookie, share);
        match named {
            Some(named) => Ok(Some(named)),
            None => refreshed.map(|()| None),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, cookie: u64, share: Share) -> Arc<Slot> {
        let now = Instant::now();
        let new = || {
            Arc::new(Slot {
                space: Mutex::new(Space {
                    rulesets: VecDeque::new(),
                    reading: None,
                    answered: VecDeque::new(),
                    compared_until: now,
                    began: now,
                    rests_until: now,
                    most: if share == Share::Host { MAX_BYTES } else { MAX_BYTES_OF_ONE },
                    share,
                }),
                share,
                asked: Mutex::new(now),
                weight: AtomicU64::new(0),
                has_maps: AtomicBool::new(false),
            })
        };
        Arc::clone(self.all().entry(cookie).or_insert_with(new))
    }

    /// Forgets what was asked about longest ago: of a share that holds too much, and of all where there are too many.
    fn make_room(&self, current: u64, share: Share) {
        let mut all = self.all();
        let asked = |slot: &Slot| *slot.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let eldest = |all: &HashMap<u64, Arc<Slot>>, of: &dyn Fn(&Slot) -> bool| {
            let others = all.iter().filter(|(cookie, slot)| **cookie != current && of(slot));
            others.min_by_key(|(_, slot)| asked(slot)).map(|(cookie, _)| *cookie)
        };
        let before = all.len();
        all.retain(|cookie, slot| *cookie == current || asked(slot).elapsed() < FORGOTTEN);
        let is_of_the_share = |slot: &Slot| slot.share == share;
        let is_of_others = |slot: &Slot| slot.share != Share::Host;
        let held = |all: &HashMap<u64, Arc<Slot>>, of: &dyn Fn(&Slot) -> bool| {
            all.values().filter(|slot| of(slot)).map(|slot| slot.weight.load(Ordering::Relaxed)).sum::<u64>()
        };
        let mut bound = |of: &dyn Fn(&Slot) -> bool, most: u64| {
            while held(&all, of) > most {
                let Some(cookie) = eldest(&all, of) else { break };
                all.remove(&cookie);
            }
        };
        if share != Share::Host {
            bound(&is_of_the_share, MAX_BYTES_OF_A_SHARE);
            bound(&is_of_others, MAX_BYTES_OF_OTHERS);
        }
        while all.len() > MAX_NAMESPACES {
            let Some(cookie) = eldest(&all, &is_of_others).or_else(|| eldest(&all, &|_| true)) else { break };
            all.remove(&cookie);
        }
        let has_let_go = all.len() < before;
        drop(all);
        if has_let_go {
            crate::sys::trim_memory();
        }
    }

    /// Whether a verdict may come out of a map, in any ruleset that was read last.
    pub(super) fn have_maps(&self) -> bool {
        self.all().values().any(|slot| slot.has_maps.load(Ordering::Relaxed))
    }

    /// What differs from the ruleset with the number `since`, else from the first one that was read; where somebody asked about that
    /// namespace of late.
    pub(super) fn difference(&self, number: u32, since: Option<u32>) -> Result<Option<Difference>> {
        let cookie = netns::inside(Some(number), netns_cookie)??;
        let slot = self.all().get(&cookie).cloned();
        let is_warm = |slot: &Arc<Slot>| slot.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < WARM;
        let Some(slot) = slot.filter(is_warm) else { return Ok(None) };
        let mut space = slot.space.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        if began < space.compared_until {
            return Ok(None);
        }
        let deadline = began + patience::here(COMPARING);
        // A question may not have waited for it: it is what was in force before.
        if let Some(begun) = space.reading.take() {
            let _ = space.wait(begun, false, deadline)?;
        }
        space.refresh(number, cookie, false, deadline)?;
        slot.weigh(&space);
        space.compared_until = Instant::now() + began.elapsed().saturating_sub(QUICK) * COMPARED_SHARE;
        // A number that was never answered is of another namespace, which had the same inode number before.
        let since = since.filter(|since| space.answered.contains(since)).or(space.answered.front().copied());
        let Some(since) = since else { return Ok(None) };
        let mut kept = space.rulesets.iter_mut();
        let Some(newest) = kept.next().filter(|newest| newest.generation() != since) else { return Ok(None) };
        // A question may have had later ones read. Where it is not kept any more, the eldest that is left stands for it.
        let mut earlier = None;
        for ruleset in kept {
            let is_it = ruleset.generation() == since;
            earlier = Some(ruleset);
            if is_it {
                break;
            }
        }
        let mut roots = || netns::roots(number);
        let texts = Instant::now() + patience::here(COMPARING / 2);
        let difference = earlier.map(|earlier| newest.difference(earlier, texts, &mut roots));
        if let Some(difference) = &difference {
            if space.answered.len() >= MAX_ANSWERED {
                space.answered.pop_front();
            }
            space.answered.push_back(difference.generation);
        }
        Ok(difference)
    }
}

impl Rulesets {
    /// A part of the text of a ruleset that is kept.
    pub(super) fn text(&self, number: u32, sha256: &str, from: u64) -> Result<Option<DocumentPart>> {
        let cookie = netns::inside(Some(number), netns_cookie)??;
        let Some(slot) = self.all().get(&cookie).cloned() else { return Ok(None) };
        let space = slot.space.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((bytes, packed)) = space.rulesets.iter().find_map(|ruleset| ruleset.packed(sha256)) else {
            return Ok(None);
        };
        let rest = usize::try_from(from).ok().and_then(|from| packed.get(from..)).unwrap_or_default();
        let part = rest[..rest.len().min(PART)].to_vec();
        Ok(Some(DocumentPart { bytes, packed: packed.len() as u64, part }))
    }
}

impl Slot {
    fn weigh(&self, space: &Space) {
        self.weight.store(space.rulesets.iter().map(Ruleset::weight).sum(), Ordering::Relaxed);
        self.has_maps.store(space.rulesets.front().is_some_and(Ruleset::has_maps), Ordering::Relaxed);
    }
}

/// A ruleset on its way, and how long it took; nothing when the newest one that was known then is still in force.
type Reading = Receiver<Result<Option<(Ruleset, Duration)>>>;

impl Space {
    /// Reads the ruleset, unless the newest snapshot is still in force. One that takes longer is there for a later question.
    fn refresh(&mut self, number: u32, cookie: u64, is_asked: bool, deadline: Instant) -> Result<()> {
        if let Some(begun) = self.reading.take() {
            // It was waited for already. What it gives may be from before what is asked about.
            let _ = self.wait(begun, is_asked, Instant::now())?;
        }
        ensure!(Instant::now() >= self.rests_until, "it takes long to read, and was read a moment ago");
        let (known, most) = (self.rulesets.front().map(Ruleset::generation), self.most);
        let turn = Turn::take(self.share)?;
        self.began = Instant::now();
        let begun = netns::begin(number, move || {
            let _turn = turn;
            ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
            match known {
                Some(known) if nft::generation()? == known => Ok(None),
                _ => {
                    let began = Instant::now();
                    let ruleset = Ruleset::read(most)?;
                    Ok(Some((ruleset, began.elapsed())))
                }
            }
        })?;
        self.wait(begun, is_asked, deadline)?
    }

    /// Keeps what was read, if it is there by then; the inner error is of the reading.
    fn wait(&mut self, begun: Reading, is_asked: bool, deadline: Instant) -> Result<Result<()>> {
        let fresh = match begun.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(fresh)) => fresh,
            Ok(Err(error)) => {
                // One that changes all the time fails at once, and the next time it may not.
                if self.began.elapsed() > patience::here(SLOW) {
                    self.rests_until = Instant::now() + self.began.elapsed() * SHARE;
                }
                return Ok(Err(error));
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the thread in the network namespace failed"),
            Err(RecvTimeoutError::Timeout) => {
                self.reading = Some(begun);
                bail!("it is still being read");
            }
        };
        if let Some((ruleset, took)) = fresh {
            // What was read only to be compared must not keep a question waiting.
            if took > SLOW && is_asked {
                self.rests_until = Instant::now() + took * SHARE;
            }
            if self.answered.is_empty() {
                self.answered.push_back(ruleset.generation());
            }
            self.rulesets.push_front(ruleset);
        }
        let older = |kept: &VecDeque<Ruleset>| kept.iter().skip(1).map(Ruleset::rules).sum::<usize>();
        while self.rulesets.len() > MAX_KEPT || self.rulesets.len() > 1 && older(&self.rulesets) > MAX_OLDER_RULES {
            // The one that the next difference is asked for since stays, where there is room for another.
            let pinned = self.answered.back().copied();
            let is_other = |ruleset: &Ruleset| Some(ruleset.generation()) != pinned;
            let eldest = self.rulesets.iter().skip(1).rposition(is_other).map(|place| place + 1);
            match eldest.filter(|_| self.rulesets.len() > 2) {
                Some(eldest) => drop(self.rulesets.remove(eldest)),
                None => drop(self.rulesets.pop_back()),
            }
        }
        Ok(Ok(()))
    }
}

//! Copies of the rules of namespaces in which something was blocked, and packets that are sent through them.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap as BpfMap, Map, MapData};

use super::{cgroups::Cgroups, netns, shared::lock};
use crate::{
    kernel::{clock::boot_ns, netns_cookie},
    model::{End, Origin, Packet, Replay, Share},
    patience,
    sandbox::copy::{self, Building, Order, Sandbox, Version, surroundings},
};

/// Bytes of a ruleset that is copied before anybody asks: more takes seconds that nobody may ever need.
const AT_START: usize = 4 << 20;
/// The same of a ruleset that is not root's, whoever asks.
const OF_OTHERS: usize = 6 << 20;
/// That is done so long after start, when everything else is.
const AFTER_START: Duration = Duration::from_millis(500);
/// How long a question waits for a copy.
const PATIENCE: Duration = Duration::from_millis(60);
/// Copies that are kept, those asked about last; one that was asked about just now makes room for no other.
const MAX_COPIES: usize = 8;
const MAX_COPIES_OF_A_SHARE: usize = 3;
const MAX_COPIES_OF_OTHERS: usize = 6;
const IN_USE: Duration = Duration::from_secs(5);
/// A copy that took so long to make is not made anew for so many times as long.
const SLOW: Duration = Duration::from_millis(250);
const SHARE: u32 = 8;
/// After each copy none is made for so many times as long as it took: a host with rules in many namespaces must not pay for it.
const SHARE_OF_ALL: u32 = 4;
/// What could not be copied is not tried again before.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Addresses and routes change without the rules: an older copy is made anew.
const MAX_AGE: Duration = Duration::from_secs(60);

/// What is known of one namespace.
struct Copy {
    state: State,
    /// Somebody asked for it.
    is_asked: bool,
    begun: Instant,
    /// The ruleset was in force then: nanoseconds of `CLOCK_BOOTTIME`.
    since_ns: u64,
    /// What the copy before this one was of, and since when that was in force.
    before: Option<(Version, u64)>,
    /// Not made anew before.
    rests_until: Instant,
}

enum State {
    Building(Building),
    Ready(Box<Sandbox>),
    /// It could not be made, or does not fit any more, and why.
    Failed(String),
}

/// One namespace's, and on whose account it is made.
struct Slot {
    share: Share,
    copy: Mutex<Option<Copy>>,
    asked: Mutex<Instant>,
}

/// All of them, by the namespace's cookie.
#[derive(Default)]
struct Slots {
    slots: HashMap<u64, Arc<Slot>>,
    /// No copy is made on this account before.
    rests_until: HashMap<Share, Instant>,
}

/// Copies, and what making them takes. Whoever waits for one holds up nobody who asks about another.
#[derive(Default)]
pub(super) struct Replays {
    /// Names the namespaces of which nothing is seen.
    own: Mutex<Option<Own>>,
    slots: Mutex<Slots>,
    /// Held by every copy as long as its thread lives.
    copies: Arc<()>,
    /// A namespace that is copied without being asked about, and when.
    prepared: Mutex<Option<(u32, Instant)>>,
}

impl Replays {
    /// Takes the map that names own namespaces.
    pub(super) fn keep(&self, descriptors: Vec<OwnedFd>) -> Result<()> {
        let [map] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| anyhow::anyhow!("not one map"))?;
        let own = Arc::new(Mutex::new(BpfMap::try_from(Map::HashMap(MapData::from_fd(map)?))?));
        *lock(&self.own) = Some(own);
        Ok(())
    }

    /// Names the namespaces of which nothing is seen.
    pub(super) fn own(&self) -> Result<Own> {
        Ok(Arc::clone(lock(&self.own).as_ref().context("observer's own namespaces cannot be told from others")?))
    }

    /// Will copy a namespace's rules before anything was dropped there, once nothing else is to be done at start.
    pub(super) fn prepare_later(&self, number: Option<u32>) {
        *lock(&self.prepared) = number.map(|number| (number, Instant::now() + patience::here(AFTER_START)));
    }

    /// Does so, if it is time; else the time until then.
    pub(super) fn prepare(&self) -> Option<Duration> {
        let mut prepared = lock(&self.prepared);
        let (number, due) = (*prepared)?;
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        *prepared = None;
        let begin = || -> Result<()> {
            surroundings::kind()?;
            let cookie = netns::inside(Some(number), netns_cookie)??;
            let slot = self.slot(cookie, Share::Host)?;
            let mut copy = lock(&slot.copy);
            // Somebody may have asked by now.
            if copy.is_none() {
                *copy = Some(self.begin((cookie, number), (AT_START, false), None)?);
            }
            Ok(())
        };
        if let Err(error) = begin() {
            log::debug!("the rules are not copied yet: {error:#}");
        }
        None
    }

    /// What becomes of a packet in a copy of that namespace's rules; a copy is waited for a moment, if `waits`.
    pub(super) fn replay(
        &self,
        number: u32,
        (packet, waits): (&Packet, bool),
        cgroups: &Mutex<Cgroups>,
        share: Share,
    ) -> Result<Replay> {
        self.own()?;
        let asked = packet.clone();
        let (cookie, asked) = netns::inside(Some(number), move || anyhow::Ok((netns_cookie()?, copy::ask(&asked)?)))??;
        let now = Instant::now();
        let slot = self.slot(cookie, share)?;
        *lock(&slot.asked) = now;
        let mut held = lock(&slot.copy);
        if !is_current(held.as_ref(), &asked.version) {
            if lock(&self.slots).rests_until.get(&share).is_some_and(|until| now < *until) {
                return Ok(Replay::NotYet);
            }
            let limit = if share == Share::Host { usize::MAX } else { OF_OTHERS };
            *held = Some(self.begin((cookie, number), (limit, true), held.as_ref())?);
        }
        let Some(copy) = held.as_mut() else { return Ok(Replay::NotYet) };
        if let Some(took) = copy.finish(if waits { now + patience::here(PATIENCE) } else { now }) {
            let mut slots = lock(&self.slots);
            slots.rests_until.retain(|_, until| now < *until);
            slots.rests_until.insert(share, Instant::now() + took * SHARE_OF_ALL);
        }
        match &copy.state {
            State::Ready(stage) if stage.version == asked.version => {
                let id = match packet.origin {
                    Origin::Socket { cgroup, .. } => cgroup.filter(|_| stage.asks_for_cgroups()),
                    Origin::Interface { .. } => None,
                };
                // Where it is gone, or may not be entered, the rule is in doubt.
                let enter = |id| lock(cgroups).enter(id).inspect_err(|error| log::debug!("{error:#}")).ok();
                let order = Order { packet: packet.clone(), connection: asked.connection, cgroup: id.and_then(enter) };
                match stage.replay(order) {
                    Ok((mut end, doubt)) => {
                        if let Some(End::Legacy(rule)) = &mut end {
                            rule.statement = stage.statement(rule, &mut || netns::roots(number));
                        }
                        Ok(Replay::Walked { end, doubt, netns_cookie: cookie, since_ns: copy.since_ns })
                    }
                    Err(error) => {
                        // An address that is new, a route that differs: a new copy will have it.
                        copy.begun = now.checked_sub(MAX_AGE).unwrap_or(now);
                        copy.rests_until = copy.rests_until.max(now + Duration::from_secs(1));
                        Err(error)
                    }
                }
            }
            State::Failed(why) => bail!("{why}"),
            _ => Ok(Replay::NotYet),
        }
    }

    /// Where a namespace's copy is kept. A share other than root's has room for a part of them.
    fn slot(&self, cookie: u64, share: Share) -> Result<Arc<Slot>> {
        let mut all = lock(&self.slots);
        if let Some(slot) = all.slots.get(&cookie) {
            return Ok(Arc::clone(slot));
        }
        let of_the_share = all.slots.values().filter(|slot| slot.share == share).count();
        let of_others = all.slots.values().filter(|slot| slot.share != Share::Host).count();
        let is_full = share != Share::Host && of_the_share >= MAX_COPIES_OF_A_SHARE;
        let others_are_full = share != Share::Host && of_others >= MAX_COPIES_OF_OTHERS;
        if is_full || others_are_full || all.slots.len() >= MAX_COPIES {
            let is_idle = |slot: &Slot| {
                let copy = slot.copy.try_lock();
                let is_building = copy
                    .map_or(true, |copy| copy.as_ref().is_some_and(|copy| matches!(copy.state, State::Building(_))));
                !is_building
                    && lock(&slot.asked).elapsed() > IN_USE
                    && (!is_full || slot.share == share)
                    && (!others_are_full || slot.share != Share::Host)
            };
            let idle = all.slots.iter().filter(|(_, slot)| is_idle(slot));
            let eldest = idle.min_by_key(|(_, slot)| *lock(&slot.asked)).map(|(cookie, _)| *cookie);
            let eldest = eldest.context("other namespaces' rules are being copied")?;
            all.slots.remove(&eldest);
        }
        let slot = Arc::new(Slot { share, copy: Mutex::new(None), asked: Mutex::new(Instant::now()) });
        all.slots.insert(cookie, Arc::clone(&slot));
        Ok(slot)
    }

    fn begin(
        &self,
        (cookie, number): (u64, u32),
        (limit, is_asked): (usize, bool),
        old: Option<&Copy>,
    ) -> Result<Copy> {
        let own = self.own()?;
        // Whoever lives in a copy that was let go may still be at work.
        ensure!(Arc::strong_count(&self.copies) < 2 * MAX_COPIES, "earlier copies have not ended yet");
        let copy = Arc::clone(&self.copies);
        let since_ns = boot_ns();
        let copied = netns::begin(number, move || {
            ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
            copy::take(limit)
        })?;
        let hide = Arc::new(move |netns| {
            let _lives = &copy;
            Ok(Box::new(Hidden::new(Arc::clone(&own), netns)?) as Box<dyn Send>)
        });
        let building = Building::begin(copied, (copy::logs_everywhere(), false), hide)?;
        let now = Instant::now();
        let before = old.and_then(|old| match &old.state {
            State::Ready(stage) => Some((stage.version.clone(), old.since_ns)),
            _ => None,
        });
        Ok(Copy { state: State::Building(building), is_asked, begun: now, since_ns, before, rests_until: now })
    }
}

/// What there is, is of this ruleset, or is on its way, or is not to be made anew yet.
fn is_current(copy: Option<&Copy>, version: &Version) -> bool {
    let Some(copy) = copy else { return false };
    let rests = Instant::now() < copy.rests_until;
    match &copy.state {
        State::Building(_) => true,
        State::Ready(stage) => rests || stage.version == *version && copy.begun.elapsed() < MAX_AGE,
        State::Failed(_) => rests,
    }
}

impl Copy {
    /// Takes it when it is on its way, if it is there by then; how long it took, if it is.
    fn finish(&mut self, deadline: Instant) -> Option<Duration> {
        if !matches!(self.state, State::Building(_)) {
            return None;
        }
        let state = std::mem::replace(&mut self.state, State::Failed("it is being copied".to_owned()));
        let State::Building(building) = state else { return None };
        // Who waits for it once does not wait again.
        let deadline = if self.begun.elapsed() > patience::here(PATIENCE) { Instant::now() } else { deadline };
        match building.until(deadline) {
            Err(building) => {
                self.state = State::Building(building);
                None
            }
            Ok(Err(error)) => {
                self.state = State::Failed(format!("{error:#}"));
                if self.is_asked {
                    self.rests_until = Instant::now() + (self.begun.elapsed() * SHARE).max(AFTER_FAILURE);
                }
                None
            }
            Ok(Ok(stage)) => {
                let took = stage.took;
                // Nobody asked for the one that is made at start: it keeps nobody from another.
                if self.is_asked && took > patience::here(SLOW) {
                    self.rests_until = Instant::now() + took * SHARE;
                }
                // It may have changed between the question and the copy, unless it is what was in force before.
                let before = self.before.take().filter(|(version, _)| *version == stage.version);
                self.since_ns = before.map_or_else(boot_ns, |(_, since_ns)| since_ns);
                self.state = State::Ready(Box::new(stage));
                Some(took)
            }
        }
    }
}

/// The map that names namespaces of which nothing is seen.
pub(super) type Own = Arc<Mutex<BpfMap<MapData, u32, u32>>>;

/// One of them is hidden as long as this lives: its number may be another namespace's afterwards.
pub(super) struct Hidden {
    own: Own,
    netns: u32,
}

impl Hidden {
    pub(super) fn new(own: Own, netns: u32) -> Result<Self> {
        lock(&own).insert(netns, 1, 0).context("the copy cannot be hidden")?;
        Ok(Self { own, netns })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = lock(&self.own).remove(&self.netns);
    }
}

//! Copies of the rules of namespaces in which something was blocked, and packets that are sent through them.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap as BpfMap, Map, MapData};

use super::netns;
use crate::{
    enrich::{cgroups::Cgroups, host::boot_ns},
    model::{End, Origin, Packet, Replay},
    patience,
    probe::netns_cookie,
    replay::{self, Building, Order, Stage, Version, surroundings},
};

/// Bytes of a ruleset that is copied before anybody asks: more takes seconds that nobody may ever need.
const AT_START: usize = 4 << 20;
/// That is done so long after start, when everything else is.
const AFTER_START: Duration = Duration::from_millis(500);
/// How long a question waits for a copy.
const PATIENCE: Duration = Duration::from_millis(60);
/// Copies that are kept, those asked about last; one that was asked about just now makes room for no other.
const MAX_COPIES: usize = 8;
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
    asked: Instant,
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
    Ready(Box<Stage>),
    /// It could not be made, or does not fit any more, and why.
    Failed(String),
}

/// All of them, by the namespace's cookie.
#[derive(Default)]
pub(super) struct Replays {
    /// Names the namespaces of which nothing is seen.
    own: Option<Own>,
    copies: HashMap<u64, Copy>,
    /// A namespace that is copied without being asked about, and when.
    prepared: Option<(u32, Instant)>,
    /// No copy is made before.
    rests_until: Option<Instant>,
}

impl Replays {
    /// Takes the map that names own namespaces.
    pub(super) fn keep(&mut self, descriptors: Vec<OwnedFd>) -> Result<()> {
        let [map] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| anyhow::anyhow!("not one map"))?;
        self.own = Some(Arc::new(Mutex::new(BpfMap::try_from(Map::HashMap(MapData::from_fd(map)?))?)));
        Ok(())
    }

    /// Names the namespaces of which nothing is seen.
    pub(super) fn own(&self) -> Result<Own> {
        Ok(Arc::clone(self.own.as_ref().context("observer's own namespaces cannot be told from others")?))
    }

    /// Will copy a namespace's rules before anything was dropped there, once nothing else is to be done at start.
    pub(super) fn prepare_later(&mut self, number: Option<u32>) {
        self.prepared = number.map(|number| (number, Instant::now() + patience::here(AFTER_START)));
    }

    /// Does so, if it is time; else the time until then.
    pub(super) fn prepare(&mut self) -> Option<Duration> {
        let (number, due) = self.prepared?;
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.prepared = None;
        let mut begin = || -> Result<()> {
            surroundings::kind()?;
            let cookie = netns::inside(Some(number), netns_cookie)??;
            // Somebody may have asked by now.
            if self.copies.contains_key(&cookie) { Ok(()) } else { self.begin(cookie, number, AT_START) }
        };
        if let Err(error) = begin() {
            log::debug!("the rules are not copied yet: {error:#}");
        }
        None
    }

    /// What becomes of a packet in a copy of that namespace's rules; a copy is waited for a moment, if `waits`.
    pub(super) fn replay(
        &mut self,
        number: u32,
        packet: &Packet,
        waits: bool,
        cgroups: &mut Cgroups,
    ) -> Result<Replay> {
        ensure!(self.own.is_some(), "observer's own namespaces cannot be told from others");
        let asked = packet.clone();
        let (cookie, asked) =
            netns::inside(Some(number), move || anyhow::Ok((netns_cookie()?, replay::ask(&asked)?)))??;
        let now = Instant::now();
        if !self.is_current(cookie, &asked.version) {
            if self.rests_until.is_some_and(|until| now < until) {
                return Ok(Replay::NotYet);
            }
            self.begin(cookie, number, usize::MAX)?;
        }
        if let Some(copy) = self.copies.get_mut(&cookie) {
            copy.asked = now;
        }
        self.finish(cookie, if waits { now + patience::here(PATIENCE) } else { now })?;
        let Some(copy) = self.copies.get_mut(&cookie) else { return Ok(Replay::NotYet) };
        match &copy.state {
            State::Ready(stage) if stage.version == asked.version => {
                let id = match packet.origin {
                    Origin::Socket { cgroup, .. } => cgroup.filter(|_| stage.asks_for_cgroups()),
                    Origin::Interface { .. } => None,
                };
                // Where it is gone, or may not be entered, the rule is in doubt.
                let cgroup = id.and_then(|id| cgroups.enter(id).inspect_err(|error| log::debug!("{error:#}")).ok());
                let order = Order { packet: packet.clone(), connection: asked.connection, cgroup };
                match stage.replay(order) {
                    Ok((mut end, doubt)) => {
                        if let Some(End::Legacy(rule)) = &mut end {
                            rule.statement = stage.statement(rule, &mut || netns::roots(number));
                        }
                        Ok(Replay::Walked { end, doubt, netns_cookie: cookie, since_ns: copy.since_ns })
                    }
                    Err(error) => {
                        // An address that is new, a route that is otherwise: a new copy will have it.
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

    /// What there is, is of this ruleset, or is on its way, or is not to be made anew yet.
    fn is_current(&self, cookie: u64, version: &Version) -> bool {
        let Some(copy) = self.copies.get(&cookie) else { return false };
        let rests = Instant::now() < copy.rests_until;
        match &copy.state {
            State::Building(_) => true,
            State::Ready(stage) => rests || stage.version == *version && copy.begun.elapsed() < MAX_AGE,
            State::Failed(_) => rests,
        }
    }

    fn begin(&mut self, cookie: u64, number: u32, limit: usize) -> Result<()> {
        if !self.copies.contains_key(&cookie) && self.copies.len() >= MAX_COPIES {
            let idle = |copy: &Copy| !matches!(copy.state, State::Building(_)) && copy.asked.elapsed() > IN_USE;
            let eldest = self.copies.iter().filter(|(_, copy)| idle(copy)).min_by_key(|(_, copy)| copy.asked);
            let eldest = eldest.map(|(cookie, _)| *cookie).context("other namespaces' rules are being copied")?;
            self.copies.remove(&eldest);
        }
        let own = Arc::clone(self.own.as_ref().context("no map")?);
        // Whoever lives in a copy that was let go may still be at work.
        ensure!(Arc::strong_count(&own) < 2 * MAX_COPIES, "earlier copies have not ended yet");
        let since_ns = boot_ns();
        let copied = netns::begin(number, move || {
            ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
            replay::copy(limit)
        })?;
        let building = Building::begin(copied, replay::logs_everywhere(), move |netns| Hidden::new(own, netns))?;
        let now = Instant::now();
        let before = self.copies.get(&cookie).and_then(|old| match &old.state {
            State::Ready(stage) => Some((stage.version.clone(), old.since_ns)),
            _ => None,
        });
        let (state, is_asked) = (State::Building(building), limit == usize::MAX);
        let copy = Copy { state, is_asked, asked: now, begun: now, since_ns, before, rests_until: now };
        self.copies.insert(cookie, copy);
        Ok(())
    }

    /// Takes a copy that is on its way, if it is there by then.
    fn finish(&mut self, cookie: u64, deadline: Instant) -> Result<()> {
        let Some(copy) = self.copies.get_mut(&cookie) else { return Ok(()) };
        if !matches!(copy.state, State::Building(_)) {
            return Ok(());
        }
        let state = std::mem::replace(&mut copy.state, State::Failed("it is being copied".to_owned()));
        let State::Building(building) = state else { return Ok(()) };
        // Who waits for it once does not wait again.
        let deadline = if copy.begun.elapsed() > patience::here(PATIENCE) { Instant::now() } else { deadline };
        match building.until(deadline) {
            Err(building) => copy.state = State::Building(building),
            Ok(Err(error)) => {
                copy.state = State::Failed(format!("{error:#}"));
                if copy.is_asked {
                    copy.rests_until = Instant::now() + (copy.begun.elapsed() * SHARE).max(AFTER_FAILURE);
                }
            }
            Ok(Ok(stage)) => {
                let took = stage.took;
                self.rests_until = Some(Instant::now() + took * SHARE_OF_ALL);
                // Nobody asked for the one that is made at start: it keeps nobody from another.
                if copy.is_asked && took > patience::here(SLOW) {
                    copy.rests_until = Instant::now() + took * SHARE;
                }
                // It may have changed between the question and the copy, unless it is what was in force before.
                let before = copy.before.take().filter(|(version, _)| *version == stage.version);
                copy.since_ns = before.map_or_else(boot_ns, |(_, since_ns)| since_ns);
                copy.state = State::Ready(Box::new(stage));
            }
        }
        Ok(())
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
        own.lock().map_err(|_| anyhow::anyhow!("no map"))?.insert(netns, 1, 0).context("the copy cannot be hidden")?;
        Ok(Self { own, netns })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Ok(mut own) = self.own.lock() {
            let _ = own.remove(&self.netns);
        }
    }
}

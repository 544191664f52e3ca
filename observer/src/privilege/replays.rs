//! Copies of the rules of namespaces in which something was blocked, and packets that are sent through them.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap as BpfMap, Map, MapData};

use super::{netns, patience};
use crate::{
    firewall::nft,
    model::{Packet, Replay},
    replay::{self, Building, Stage},
    sys::netns_cookie,
};

/// How long a question waits for a copy.
const PATIENCE: Duration = Duration::from_millis(60);
/// Copies that are kept, those asked about last.
const MAX_STAGES: usize = 8;
/// A copy that took so long to make is not made anew for so many times as long.
const SLOW: Duration = Duration::from_millis(250);
const SHARE: u32 = 8;

/// What is known of one namespace.
struct Copy {
    state: State,
    asked: Instant,
    begun: Instant,
    /// Not made anew before.
    rests_until: Instant,
}

enum State {
    Building(Building),
    Ready(Stage),
    /// Of that generation it could not be made, and why.
    Failed(u32, String),
}

/// All of them, by the namespace's cookie.
#[derive(Default)]
pub(super) struct Replays {
    /// Names the namespaces of which nothing is seen.
    own: Option<BpfMap<MapData, u32, u32>>,
    copies: HashMap<u64, Copy>,
}

impl Replays {
    /// Takes the map that names own namespaces.
    pub(super) fn keep(&mut self, descriptors: Vec<OwnedFd>) -> Result<()> {
        let [map] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| anyhow::anyhow!("not one map"))?;
        self.own = Some(BpfMap::try_from(Map::HashMap(MapData::from_fd(map)?))?);
        Ok(())
    }

    /// What becomes of a packet in a copy of that namespace's rules.
    pub(super) fn replay(&mut self, number: u32, packet: &Packet) -> Result<Replay> {
        ensure!(self.own.is_some(), "observer's own namespaces cannot be told from others");
        let (cookie, generation) = netns::inside(Some(number), || anyhow::Ok((netns_cookie()?, nft::generation()?)))??;
        let now = Instant::now();
        if let Some(copy) = self.copies.get_mut(&cookie) {
            copy.asked = now;
        }
        if !self.is_current(cookie, generation) {
            self.begin(cookie, number)?;
        }
        self.finish(cookie, generation, now + patience::here(PATIENCE))?;
        match self.copies.get(&cookie).map(|copy| &copy.state) {
            Some(State::Ready(stage)) if stage.generation == generation => Ok(Replay::Walked {
                end: stage.replay(packet)?,
                doubt: stage.doubt(packet).map(str::to_owned),
                netns_cookie: cookie,
            }),
            Some(State::Failed(_, why)) => bail!("{why}"),
            _ => Ok(Replay::NotYet),
        }
    }

    /// What there is, is of this ruleset, or is on its way.
    fn is_current(&self, cookie: u64, generation: u32) -> bool {
        match self.copies.get(&cookie).map(|copy| (&copy.state, copy.rests_until)) {
            None => false,
            Some((State::Building(_), _)) => true,
            Some((State::Ready(stage), rests)) => stage.generation == generation || Instant::now() < rests,
            Some((State::Failed(of, _), rests)) => *of == generation || Instant::now() < rests,
        }
    }

    fn begin(&mut self, cookie: u64, number: u32) -> Result<()> {
        let copied = netns::begin(number, move || {
            ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
            replay::copy()
        })?;
        let own = self.own.as_mut().context("no map")?;
        let building = Building::begin(copied, |netns| own.insert(netns, 1, 0).context("the copy cannot be hidden"))?;
        let now = Instant::now();
        let copy = Copy { state: State::Building(building), asked: now, begun: now, rests_until: now };
        if let Some(old) = self.copies.insert(cookie, copy) {
            self.end(old);
        }
        while self.copies.len() > MAX_STAGES {
            let eldest = self.copies.iter().min_by_key(|(_, copy)| copy.asked).map(|(cookie, _)| *cookie);
            let old = eldest.and_then(|cookie| self.copies.remove(&cookie)).context("no copy")?;
            self.end(old);
        }
        Ok(())
    }

    /// Takes a copy that is on its way, if it is there by then.
    fn finish(&mut self, cookie: u64, generation: u32, deadline: Instant) -> Result<()> {
        let Some(copy) = self.copies.get_mut(&cookie) else { return Ok(()) };
        if !matches!(copy.state, State::Building(_)) {
            return Ok(());
        }
        let state = std::mem::replace(&mut copy.state, State::Failed(generation, String::new()));
        let State::Building(building) = state else { return Ok(()) };
        // Who waits for it once does not wait again.
        let deadline = if copy.begun.elapsed() > patience::here(PATIENCE) { Instant::now() } else { deadline };
        let netns = building.netns;
        match building.until(deadline) {
            Err(building) => copy.state = State::Building(building),
            Ok(Err(error)) => {
                copy.state = State::Failed(generation, format!("{error:#}"));
                let _ = self.own.as_mut().context("no map")?.remove(&netns);
            }
            Ok(Ok(stage)) => {
                let took = copy.begun.elapsed();
                if took > SLOW {
                    copy.rests_until = Instant::now() + took * SHARE;
                }
                copy.state = State::Ready(stage);
            }
        }
        Ok(())
    }

    /// Lets one go: its number may be another namespace's soon.
    fn end(&mut self, copy: Copy) {
        let netns = match copy.state {
            State::Ready(stage) => {
                let netns = stage.netns;
                stage.end();
                netns
            }
            // It ends once it finds that nobody waits for it.
            State::Building(building) => building.netns,
            State::Failed(..) => return,
        };
        if let Some(own) = &mut self.own {
            let _ = own.remove(&netns);
        }
    }
}

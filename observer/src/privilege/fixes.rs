//! Fixes that are being tried, one after the other, and those that were found.

use std::{
    collections::HashMap,
    fs::File,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use uuid::Uuid;

use super::{netns, replays::Own, trials::Place};
use crate::{
    enrich::cgroups::Cgroups,
    fix::{self, Asked},
    model::{Fix, Origin, Remedy, Stopped},
};

/// After each trial none begins for so many times as long as it took, but no longer than this.
const SHARE: u32 = 3;
const REST: Duration = Duration::from_secs(30);
/// What nobody asked for in this time is not told any more.
const FRESH: Duration = Duration::from_secs(10);

/// What has the same fix.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    netns_cookie: u64,
    rule: Option<Uuid>,
    packet: Vec<u8>,
    is_by_name: bool,
}

/// A trial that goes on, and when it began.
type Trying = (Key, Instant, Receiver<(Option<Fix>, Instant)>);

/// All of them.
#[derive(Default)]
pub(super) struct Fixes {
    found: HashMap<Key, (Option<Fix>, Instant)>,
    trying: Option<Trying>,
    rests_until: Option<Instant>,
}

impl Fixes {
    /// What lets this packet through, as far as it is known by now.
    pub(super) fn of(&mut self, stopped: &Stopped, own: Own, cgroups: &mut Cgroups) -> Result<Remedy> {
        let key = Key {
            netns_cookie: stopped.netns_cookie,
            rule: stopped.rule.name().map(|name| name.id),
            packet: stopped.packet.bytes.clone(),
            is_by_name: stopped.is_by_name,
        };
        if let Some((trying, began, coming)) = &self.trying {
            let found = match coming.try_recv() {
                Ok(found) => found,
                Err(TryRecvError::Empty) => return Ok(Remedy::NotYet),
                Err(TryRecvError::Disconnected) => (None, Instant::now()),
            };
            self.rests_until = Some(found.1 + (found.1.duration_since(*began) * SHARE).min(REST));
            self.found.retain(|_, (_, when)| when.elapsed() < FRESH);
            self.found.insert(trying.clone(), found);
            self.trying = None;
        }
        // It is told once: what is asked again is to be looked at anew.
        if let Some((fix, _)) = self.found.remove(&key).filter(|(_, when)| when.elapsed() < FRESH) {
            return Ok(fix.map_or(Remedy::None, |fix| Remedy::Is(Box::new(fix))));
        }
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return Ok(Remedy::NotYet);
        }
        self.trying = Some((key, Instant::now(), begin(stopped.clone(), own, cgroups)?));
        Ok(Remedy::NotYet)
    }
}

/// Looks for a fix by threads of its own, which nobody waits for.
fn begin(stopped: Stopped, own: Own, cgroups: &mut Cgroups) -> Result<Receiver<(Option<Fix>, Instant)>> {
    let cgroup: Option<File> = match stopped.packet.origin {
        Origin::Socket { cgroup: Some(id), .. } => cgroups.enter(id).ok(),
        _ => None,
    };
    let place = Place { number: stopped.netns, cookie: stopped.netns_cookie, own: Some(own) };
    let (send, coming) = channel();
    thread::Builder::new().name("fixes".to_owned()).spawn(move || {
        let home = netns::home(place.number);
        let known = home.as_ref().map(|home| fix::known(&home.root)).unwrap_or_default();
        let packets = [(stopped.packet, Some(stopped.rule))];
        let asked = Asked { packets: &packets, is_by_name: stopped.is_by_name, cgroup: cgroup.as_ref() };
        let fix = fix::find(&asked, &known, |attempt| place.tried(home?, attempt));
        let _ = send.send((fix, Instant::now()));
    })?;
    Ok(coming)
}

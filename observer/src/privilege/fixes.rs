//! Fixes that are being tried, one after the other, and those that were found.

use std::{
    collections::HashMap,
    fs::File,
    sync::{
        Mutex,
        mpsc::{Receiver, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use uuid::Uuid;

use super::{cgroups::Cgroups, netns, replays::Own, shared::lock, trials::Place};
use crate::{
    confinement::child,
    firewall::front_end::{self, Known},
    model::{Fix, Origin, Remedy, Share, Stopped},
    patience,
    sandbox::fix::{self, Asked},
};

/// After each trial none begins for so many times as long as it took, but no longer than this.
const SHARE: u32 = 3;
const REST: Duration = Duration::from_secs(30);
/// A trial that takes longer is ended.
const GIVE_UP: Duration = Duration::from_secs(150);
/// What nobody asked for in this time is not told any more.
const FRESH: Duration = Duration::from_secs(10);

/// What has the same fix.
#[derive(Clone, PartialEq, Eq, Hash)]
struct FixKey {
    netns_cookie: u64,
    rule: Option<Uuid>,
    packet: Vec<u8>,
    is_by_name: bool,
}

/// A trial that goes on.
struct Trying {
    key: FixKey,
    began: Instant,
    coming: Receiver<(Option<Fix>, Instant)>,
    share: Share,
    is_urgent: bool,
    /// It was given up for another one: what comes of it is no answer.
    is_given_up: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Fixes {
    found: HashMap<FixKey, (Option<Fix>, Instant)>,
    trying: Option<Trying>,
    rests_until: Option<Instant>,
}

impl Fixes {
    /// What lets this packet through, as far as it is known by now.
    pub(super) fn of(
        &mut self,
        (stopped, share, is_urgent): (&Stopped, Share, bool),
        own: Own,
        cgroups: &Mutex<Cgroups>,
    ) -> Result<Remedy> {
        let key = FixKey {
            netns_cookie: stopped.netns_cookie,
            rule: stopped.rule.name().map(|name| name.id),
            packet: stopped.packet.bytes.clone(),
            is_by_name: stopped.is_by_name,
        };
        if let Some(mut trying) = self.trying.take() {
            let found = match trying.coming.try_recv() {
                Ok(found) => found,
                // A file system of a stranger's may keep it for ever.
                Err(TryRecvError::Empty) if trying.began.elapsed() > patience::here(GIVE_UP) => {
                    child::end_trials();
                    (None, Instant::now())
                }
                Err(TryRecvError::Empty) => {
                    // Nobody else's takes the time of the host's own.
                    let goes_first =
                        is_urgent && !trying.is_urgent || share == Share::Host && trying.share != Share::Host;
                    if goes_first && trying.key != key && !trying.is_given_up {
                        // Whoever waits for one of its programs ends with it.
                        child::end_trials();
                        trying.is_given_up = true;
                    }
                    self.trying = Some(trying);
                    return Ok(Remedy::NotYet);
                }
                Err(TryRecvError::Disconnected) => (None, Instant::now()),
            };
            self.rests_until = Some(found.1 + (found.1.duration_since(trying.began) * SHARE).min(REST));
            self.found.retain(|_, (_, when)| when.elapsed() < FRESH);
            if !trying.is_given_up {
                self.found.insert(trying.key, found);
            }
        }
        // It is reported once: what is asked again is to be looked at anew.
        if let Some((fix, _)) = self.found.remove(&key).filter(|(_, when)| when.elapsed() < FRESH) {
            return Ok(fix.map_or(Remedy::None, |fix| Remedy::Is(Box::new(fix))));
        }
        if !is_urgent && self.rests_until.is_some_and(|until| Instant::now() < until) {
            return Ok(Remedy::NotYet);
        }
        let coming = begin(stopped.clone(), own, cgroups)?;
        self.trying = Some(Trying { key, began: Instant::now(), coming, share, is_urgent, is_given_up: false });
        Ok(Remedy::NotYet)
    }
}

/// Looks for a fix by threads of its own, which run detached.
fn begin(stopped: Stopped, own: Own, cgroups: &Mutex<Cgroups>) -> Result<Receiver<(Option<Fix>, Instant)>> {
    let cgroup: Option<File> = match stopped.packet.origin {
        Origin::Socket { cgroup: Some(id), .. } => lock(cgroups).enter(id).ok(),
        _ => None,
    };
    let place = Place::open(stopped.netns, stopped.netns_cookie, Some(own))?;
    let began = child::trials();
    let (send, coming) = channel();
    thread::Builder::new().name("fixes".to_owned()).spawn(move || {
        let home = netns::home(place.number);
        let known = home.as_ref().map(Known::read).unwrap_or_default();
        let stopped_by = stopped.rule.clone();
        let comes_by = match stopped.packet.origin {
            Origin::Interface { index } => place.inside(move || interface(index)).ok(),
            Origin::Socket { .. } => None,
        };
        let packets = [(stopped.packet, Some(stopped.rule))];
        let asked = Asked {
            packets: &packets,
            by_name: &[stopped.is_by_name],
            comes_by,
            cgroup: cgroup.as_ref(),
            others: front_end::Others::Nobody,
            is_later: false,
            finds_others: true,
            began,
        };
        let front_end = front_end::of(&stopped_by);
        let own_files = home.as_ref().ok().map(|home| netns::has_own_files(home, front_end));
        let fix = fix::find(&asked, &known, |attempt| place.tried(home?, began, attempt));
        let fix = fix.map(|fix| place.placed(fix, front_end, own_files));
        let _ = send.send((fix, Instant::now()));
    })?;
    Ok(coming)
}

/// Name of an interface of the calling thread's namespace.
fn interface(index: u32) -> Result<String> {
    let all = nix::net::if_::if_nameindex().context("cannot list the interfaces")?;
    let own = all.iter().find(|interface| interface.index() == index).context("it is gone")?;
    Ok(own.name().to_str().context("its name is no text")?.to_owned())
}

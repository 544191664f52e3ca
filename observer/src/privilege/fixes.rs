//! Fixes that are being tried, one after the other, and those that were found.

use std::{
    collections::HashMap,
    fs::File,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use super::{netns, patience, replays::Own};
use crate::{
    enrich::cgroups::Cgroups,
    fix::{self, Asked, Files, Hide, Target, Trial},
    model::{Fix, Origin, Packet, Remedy, Stopped},
    privilege::replays::Hidden,
    replay,
    sys::netns_cookie,
};

/// Fixes that are remembered.
const MAX_FIXES: usize = 256;
/// After each trial none begins for so many times as long as it took.
const SHARE: u32 = 3;
/// Bytes of a ruleset that is copied for it.
const MAX_BYTES: usize = 16 << 20;
/// What runs for it comes after everything else (`nice`).
const NICE: i32 = 10;

/// What has the same fix.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    netns_cookie: u64,
    rule: Option<Uuid>,
    packet: Vec<u8>,
    is_by_name: bool,
}

/// A trial that goes on, and when it began.
type Trying = (Key, Instant, Receiver<Option<Fix>>);

/// All of them.
#[derive(Default)]
pub(super) struct Fixes {
    found: HashMap<Key, Option<Fix>>,
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
            let fix = match coming.try_recv() {
                Ok(fix) => fix,
                Err(TryRecvError::Empty) => return Ok(Remedy::NotYet),
                Err(TryRecvError::Disconnected) => None,
            };
            self.rests_until = Some(Instant::now() + began.elapsed() * SHARE);
            if self.found.len() >= MAX_FIXES {
                self.found.clear();
            }
            self.found.insert(trying.clone(), fix);
            self.trying = None;
        }
        // It is told once: what is asked again is to be looked at anew.
        if let Some(fix) = self.found.remove(&key) {
            return Ok(fix.map_or(Remedy::None, |fix| Remedy::Is(Box::new(fix))));
        }
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return Ok(Remedy::NotYet);
        }
        self.trying = Some((key, Instant::now(), begin(stopped.clone(), own, cgroups)?));
        Ok(Remedy::NotYet)
    }
}

/// Looks for a fix by a thread of its own, which nobody waits for.
fn begin(stopped: Stopped, own: Own, cgroups: &mut Cgroups) -> Result<Receiver<Option<Fix>>> {
    let target = target(&stopped).context("it has no port")?;
    let cgroup: Option<File> = match stopped.packet.origin {
        Origin::Socket { cgroup: Some(id), .. } => cgroups.enter(id).ok(),
        _ => None,
    };
    let (number, cookie) = (stopped.netns, stopped.netns_cookie);
    let (send, coming) = channel();
    thread::Builder::new().name("fix".to_owned()).spawn(move || {
        // The files and the namespaces of a thread are its own, and end with it.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
        let home = netns::home(number);
        let known = home.as_ref().map(|home| fix::known(&home.root)).unwrap_or_default();
        let (logs, patience) = (replay::logs_everywhere(), patience::times());
        let enter = || -> Result<Trial> {
            let home = home?;
            let files = Files::read(&home.root)?;
            let hide: Hide =
                std::sync::Arc::new(move |netns| Ok(Box::new(Hidden::new(Own::clone(&own), netns)?) as Box<dyn Send>));
            let hidden = hide(replay::own_namespace()?)?;
            let copied = netns::begin(number, move || {
                ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
                replay::copy(MAX_BYTES)
            })?;
            let copied = copied.recv().context("the thread in the network namespace failed")??;
            Trial::enter(copied, (&files, home.mounts), (hide, hidden), logs, patience)
        };
        let packets = [stopped.packet.clone()];
        let asked = Asked { rule: &stopped.rule, packets: &packets, target: &target, cgroup: cgroup.as_ref() };
        let _ = send.send(fix::find(&asked, &known, enter));
    })?;
    Ok(coming)
}

fn target(stopped: &Stopped) -> Option<Target> {
    let Packet { origin, .. } = &stopped.packet;
    let (transport, address, port) = stopped.packet.to()?;
    Some(Target {
        transport,
        port,
        addresses: vec![address],
        is_by_name: stopped.is_by_name,
        is_forwarded: matches!(origin, Origin::Interface { .. }),
    })
}

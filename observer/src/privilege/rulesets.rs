//! Rulesets of the namespaces in which something was blocked: read at the first question, and again when they have changed,
//! at the latest at the next one.

use std::{
    collections::{HashMap, VecDeque},
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::netns;
use crate::{
    firewall::{nft, ruleset::Ruleset},
    model::{Difference, NamedRule, WantedRule},
    patience,
    probe::netns_cookie,
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

/// What is known of one namespace.
struct Space {
    /// The newest first.
    rulesets: VecDeque<Ruleset>,
    /// Nobody waited until it was read.
    reading: Option<Reading>,
    asked: Instant,
    /// No change is looked at before.
    compared_until: Instant,
    /// Not read again before.
    rests_until: Instant,
}

/// All of them, by the namespace's cookie.
#[derive(Default)]
pub(super) struct Rulesets(HashMap<u64, Space>);

impl Rulesets {
    /// The rule that the kernel half saw, if the ruleset has it, or had it, and it can have dropped that packet.
    pub(super) fn named(&mut self, wanted: &WantedRule) -> Result<Option<NamedRule>> {
        let now = Instant::now();
        let space = self.0.entry(wanted.netns_cookie).or_insert_with(|| Space {
            rulesets: VecDeque::new(),
            reading: None,
            asked: now,
            compared_until: now,
            rests_until: now,
        });
        space.asked = now;
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
        if self.0.len() > MAX_NAMESPACES {
            let eldest = self.0.iter().min_by_key(|(_, space)| space.asked).map(|(cookie, _)| *cookie);
            eldest.map(|cookie| self.0.remove(&cookie));
        }
        match named {
            Some(named) => Ok(Some(named)),
            None => refreshed.map(|()| None),
        }
    }
}

impl Rulesets {
    /// Whether a verdict may come out of a map, in any ruleset that was read last.
    pub(super) fn have_maps(&self) -> bool {
        self.0.values().filter_map(|space| space.rulesets.front()).any(Ruleset::has_maps)
    }

    /// What is otherwise than in the ruleset that was read last, where somebody asked about that of late.
    pub(super) fn difference(&mut self, number: u32) -> Result<Option<Difference>> {
        let cookie = netns::inside(Some(number), netns_cookie)??;
        let Some(space) = self.0.get_mut(&cookie).filter(|space| space.asked.elapsed() < WARM) else { return Ok(None) };
        let began = Instant::now();
        if began < space.compared_until {
            return Ok(None);
        }
        let deadline = began + patience::here(COMPARING);
        // A question may not have waited for it: it is what was in force before.
        if let Some(begun) = space.reading.take() {
            let _ = space.wait(begun, false, deadline)?;
        }
        let before = space.rulesets.front().map(Ruleset::generation);
        space.refresh(number, cookie, false, deadline)?;
        space.compared_until = Instant::now() + began.elapsed().saturating_sub(QUICK) * COMPARED_SHARE;
        let mut newest = space.rulesets.iter_mut();
        Ok(match (newest.next(), newest.next()) {
            (Some(after), Some(earlier)) if Some(earlier.generation()) == before => {
                Some(after.difference(earlier, Instant::now() + patience::here(PATIENCE)))
            }
            _ => None,
        })
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
        let known = self.rulesets.front().map(Ruleset::generation);
        let begun = netns::begin(number, move || {
            ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
            match known {
                Some(known) if nft::generation()? == known => Ok(None),
                _ => {
                    let began = Instant::now();
                    let ruleset = Ruleset::read()?;
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
            Ok(Err(error)) => return Ok(Err(error)),
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
            self.rulesets.push_front(ruleset);
        }
        let older = |kept: &VecDeque<Ruleset>| kept.iter().skip(1).map(Ruleset::rules).sum::<usize>();
        while self.rulesets.len() > MAX_KEPT || self.rulesets.len() > 1 && older(&self.rulesets) > MAX_OLDER_RULES {
            self.rulesets.pop_back();
        }
        Ok(Ok(()))
    }
}

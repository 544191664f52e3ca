//! Rulesets of the namespaces in which something was blocked: read at the first question, and again when they have changed,
//! at the latest at the next one.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::netns;
use crate::{
    firewall::{nft, ruleset::Ruleset},
    model::{Difference, NamedRule, WantedRule},
    sys::netns_cookie,
};

/// How long a question waits for the text of a rule. Who sent the packets that come next is not looked for meanwhile, and some
/// of them do not live long.
const PATIENCE: Duration = Duration::from_millis(40);
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

/// A ruleset whose reading took so long is not read again for so many times as long: it must not hold up everything else.
const SLOW: Duration = Duration::from_millis(250);
const SHARE: u32 = 4;

/// What is known of one namespace.
struct Space {
    /// The newest first.
    rulesets: VecDeque<Ruleset>,
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
            asked: now,
            compared_until: now,
            rests_until: now,
        });
        space.asked = now;
        let refreshed = space.refresh(wanted.netns, wanted.netns_cookie, true);
        // A handle is never used twice in a namespace: whichever snapshot has the rule has the right one.
        let deadline = Instant::now() + PATIENCE;
        let named = space.rulesets.iter_mut().find_map(|ruleset| ruleset.named(wanted, deadline));
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
        let before = space.rulesets.front().map(Ruleset::generation);
        space.refresh(number, cookie, false)?;
        space.compared_until = Instant::now() + began.elapsed().saturating_sub(QUICK) * COMPARED_SHARE;
        let mut newest = space.rulesets.iter_mut();
        Ok(match (newest.next(), newest.next()) {
            (Some(after), Some(earlier)) if Some(earlier.generation()) == before => {
                Some(after.difference(earlier, Instant::now() + PATIENCE))
            }
            _ => None,
        })
    }
}

impl Space {
    /// Reads the ruleset, unless the newest snapshot is still in force.
    fn refresh(&mut self, number: u32, cookie: u64, is_asked: bool) -> Result<()> {
        let began = Instant::now();
        ensure!(began >= self.rests_until, "it takes long to read, and was read a moment ago");
        let known = self.rulesets.front().map(Ruleset::generation);
        let fresh = netns::inside(Some(number), move || {
            ensure!(netns_cookie()? == cookie, "the namespace is gone, and its number another one's");
            match known {
                Some(known) if nft::generation()? == known => Ok(None),
                _ => Ruleset::read().map(Some),
            }
        });
        let took = began.elapsed();
        // What was read only to be compared must not keep a question waiting.
        if took > SLOW && is_asked {
            self.rests_until = Instant::now() + took * SHARE;
        }
        if let Some(fresh) = fresh?? {
            self.rulesets.push_front(fresh);
        }
        let older = |kept: &VecDeque<Ruleset>| kept.iter().skip(1).map(Ruleset::rules).sum::<usize>();
        while self.rulesets.len() > MAX_KEPT || self.rulesets.len() > 1 && older(&self.rulesets) > MAX_OLDER_RULES {
            self.rulesets.pop_back();
        }
        Ok(())
    }
}

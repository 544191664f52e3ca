//! The table of incidents, each everything of one cause: its id, the processes that it happened to, and its follow-ups (the rule,
//! what lets it through, that it works again).
//!
//! Only attempts that may pass the filter get here. Whatever takes time is asked of [`Lookup`], and its answer comes back as news.

mod fixes;
mod identity;
mod late;
mod recent;
mod restored;

use std::{
    collections::HashSet,
    mem,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use observer_ebpf::abi::{AwaitedKey, UNKNOWN_RULE};
use uuid::Uuid;

use self::{fixes::Fixes, identity::Identity, late::Late, recent::Recent, restored::Awaited};
use crate::{
    explain::{Sight, finding},
    model::{
        Attempt, Cause, Decision, EgressRule, Kind, NamedRule, Reached, Remedy, RulesetChange, Sender, Share, Stopped,
        WantedRule,
    },
};

/// Incidents that are remembered: of the host, and of each other account; and how long after they were used last.
const MAX_INCIDENTS: usize = 4096;
const MAX_INCIDENTS_OF_A_SHARE: usize = 256;
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Other accounts that are remembered.
const MAX_SHARES: usize = 32;
/// Stories of one incident; the one that was reported least lately makes room.
const MAX_PARTIES: usize = 16;
/// Processes of one story that are counted.
const MAX_PIDS: usize = 1000;
/// Rule lines that wait to be reported; of these, of one account.
const MAX_NAMED: usize = 64;
const MAX_NAMED_OF_A_SHARE: usize = 12;
/// Name space of stories' ids.
const STORIES: Uuid = Uuid::from_u128(0x6f62_7365_7276_6572_2073_746f_7279_2069);

/// What is asked about incidents, without waiting.
pub trait Lookup {
    /// What decided, as the eBPF side saw it; with `is_last` whatever is known by now.
    fn rule(&mut self, share: Share, wanted: &WantedRule, is_last: bool) -> Poll<Option<Arc<Decision>>>;
    /// What would let a packet through; whatever else is being tried is given up for what is urgent.
    fn fix(&mut self, share: Share, stopped: &Stopped, is_urgent: bool) -> Poll<Result<Remedy, String>>;
    /// Begins to watch a destination, or ends that.
    fn await_destination(&mut self, key: &AwaitedKey, is_awaited: bool) -> Result<(), String>;
    /// Watches for datagrams from such destinations for so long.
    fn await_answers(&mut self, time: Duration);
    /// The namespace that the sender's socket is in, where it is known.
    fn home(&mut self, attempt: &Attempt) -> Option<u32>;
}

/// A story: an incident of one party (user, container or unit, namespace), and its processes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which story: the same incident of the same party has the same id, whatever was forgotten since.
    pub story: Uuid,
    /// Processes of the story beside the last one.
    pub others: usize,
    /// There may be more of them: no more are counted.
    pub are_more: bool,
    /// On whose account it is looked at; `None` in news.
    pub share: Option<Share>,
}

impl Snapshot {
    /// Of news, which counts nobody.
    pub fn of(story: Uuid) -> Self {
        Self { story, others: 0, are_more: false, share: None }
    }
}

/// A line about the rule of what was told before.
fn by_rule(attempt: Box<Attempt>) -> News {
    News { at: Timestamp::now(), kind: Kind::Rule(Box::new(attempt.without_packets())), story: None }
}

#[cfg(test)]
impl Snapshot {
    /// The only process of a story with this number.
    pub(crate) fn example(story: u128) -> Self {
        Self { story: Uuid::from_u128(story), others: 0, are_more: false, share: Some(Share::Host) }
    }
}

/// Processes of a story, by its id; the one that was reported last is the last.
struct Story {
    id: Uuid,
    pids: HashSet<u32>,
}

/// Which story an attempt, or news of it, is of: its incident, and whom it happened to.
pub fn story(attempt: &Attempt) -> Uuid {
    let sender = &attempt.sender;
    let user = sender.user.as_ref().map(|user| user.id.to_string()).unwrap_or_default();
    let container = sender.container.as_ref().map(|container| container.id.as_str());
    let place = container.or(restored::unit(sender.unit.as_deref())).unwrap_or_default();
    let netns = attempt.netns.map(|netns| netns.to_string()).unwrap_or_default();
    let parts = [attempt.incident.to_string().as_str(), &user, place, &netns].join("\0");
    Uuid::new_v5(&STORIES, parts.as_bytes())
}

#[derive(Default)]
struct Incident {
    identity: Identity,
    stories: Vec<Story>,
}

/// Something that became known of what was reported.
pub struct News {
    /// When it did.
    pub at: Timestamp,
    /// What.
    pub kind: Kind,
    /// The story that it is of, where that is not the attempt's own: who reached a destination is known better than who was blocked.
    pub story: Option<Uuid>,
}

/// Those of each account: whoever causes many makes room among its own.
struct Table {
    host: Recent<Uuid, Incident>,
    others: Recent<Share, Recent<Uuid, Incident>>,
}

impl Table {
    fn of(&mut self, share: Share, now: Instant) -> &mut Recent<Uuid, Incident> {
        match share {
            Share::Host => &mut self.host,
            other => self.others.get_or_insert(&other, now, || Recent::new(MAX_INCIDENTS_OF_A_SHARE, REMEMBERED)),
        }
    }
}

/// An attempt whose rule was known first by a later packet.
struct Named {
    attempt: Box<Attempt>,
    decision: Arc<Decision>,
    share: Share,
}

/// All incidents of a run.
pub struct Incidents {
    table: Table,
    late: Late,
    named: Vec<Named>,
    fixes: Fixes,
    awaited: Awaited,
}

impl Incidents {
    /// `finds_fixes` looks for what lets through what was blocked; what was stopped for the process `first` and its children goes
    /// before everything else.
    pub fn new(finds_fixes: bool, first: Option<u32>) -> Self {
        let table = Table { host: Recent::new(MAX_INCIDENTS, REMEMBERED), others: Recent::new(MAX_SHARES, REMEMBERED) };
        Self {
            table,
            late: Late::default(),
            named: Vec::new(),
            fixes: Fixes::new(finds_fixes, first),
            awaited: Awaited::default(),
        }
    }

    /// Records an attempt, explained as far as possible, and sets its incident.
    pub fn take(&mut self, attempt: &mut Attempt, sight: &Sight, lookup: &mut impl Lookup, now: Instant) {
        let before = identity::without_a_rule(attempt, sight);
        let words = sight.rule().and_then(NamedRule::words);
        let table = self.table.of(sight.share, now);
        let known = table.get(&before, now).map(|incident| &mut incident.identity);
        let mut is_news = false;
        attempt.incident = match known.filter(|identity| identity.goes_on(sight)) {
            Some(identity) => {
                is_news = identity.is_unnamed() && words.is_some();
                if let Some(words) = words {
                    identity.name(words);
                }
                before
            }
            None => identity::new(attempt, sight),
        };
        let identity = &mut table.get_or_insert(&attempt.incident, now, Incident::default).identity;
        identity.expect(sight);
        let is_late = late::may_come(attempt, sight);
        if let Some(answer) = sight.answer.filter(|answer| is_late && answer.rule != UNKNOWN_RULE) {
            identity.see(answer);
        }
        if sight.begins {
            self.await_it(attempt, (sight.times, sight.gid), lookup, now);
        }
        let rule = sight.rule().filter(|_| words.is_some()).zip(sight.answer);
        if let Some((rule, answer)) = rule.filter(|_| attempt.background.is_none()) {
            self.fixes.consider(attempt, rule, sight.packet.as_ref(), (answer.netns_cookie, sight.share), now);
        }
        if is_news {
            self.later(attempt, sight);
        }
        if is_late {
            if sight.answer.is_some_and(|answer| answer.rule != UNKNOWN_RULE) {
                self.late.is_outdone(attempt.incident, sight.share);
            }
            self.late.wait(attempt, sight, now);
        }
    }

    /// The rule of what was reported before is known by this packet: it is reported in a line of its own too.
    fn later(&mut self, attempt: &Attempt, sight: &Sight) {
        self.late.is_outdone(attempt.incident, sight.share);
        let of_the_share = self.named.iter().filter(|named| named.share == sight.share).count();
        let has_its_share = sight.share != Share::Host && of_the_share >= MAX_NAMED_OF_A_SHARE;
        if let Some(decision) = sight.decision.as_ref().filter(|_| !has_its_share && self.named.len() < MAX_NAMED) {
            let (attempt, decision) = (Box::new(attempt.clone()), Arc::clone(decision));
            self.named.push(Named { attempt, decision, share: sight.share });
        }
    }

    /// Further packets of a known incident that began connections in this time.
    pub fn again(&mut self, attempt: &Attempt, times: (u64, u64), lookup: &mut impl Lookup, now: Instant) {
        self.await_it(attempt, (times, None), lookup, now);
    }

    /// A connection that hangs, and what stops it where that is certain.
    pub fn hanging(&mut self, attempt: &mut Attempt, stopped: Option<&Stopped>, share: Share, now: Instant) {
        attempt.incident = identity::of_a_wait(attempt);
        if let Some(Stopped { rule, packet, netns_cookie, .. }) = stopped {
            self.fixes.consider(attempt, rule, Some(packet), (*netns_cookie, share), now);
        }
    }

    /// Counts what is reported of an attempt: the story as it stands then.
    pub fn count(&mut self, attempt: &Attempt, share: Share, now: Instant) -> Snapshot {
        let stories = &mut self.table.of(share, now).get_or_insert(&attempt.incident, now, Incident::default).stories;
        let id = story(attempt);
        let known = stories.iter().position(|story| story.id == id).map(|place| stories.remove(place));
        let mut story = known.unwrap_or_else(|| Story { id, pids: HashSet::new() });
        if story.pids.len() < MAX_PIDS {
            story.pids.extend(attempt.sender.process.as_ref().map(|process| process.pid));
        }
        let others = story.pids.len().saturating_sub(1);
        let are_more = story.pids.len() >= MAX_PIDS;
        if stories.len() >= MAX_PARTIES {
            stories.remove(0);
        }
        stories.push(story);
        Snapshot { story: id, others, are_more, share: Some(share) }
    }

    /// From now on it is reported when the destination is reached, if somebody waits for it.
    fn await_it(
        &mut self,
        attempt: &Attempt,
        (times, gid): ((u64, u64), Option<u32>),
        lookup: &mut impl Lookup,
        now: Instant,
    ) {
        let is_lost = attempt.cause == Some(Cause::Queue);
        if is_lost || attempt.sender.process.is_none() || attempt.background.is_some() {
            return;
        }
        if let Some(home) = lookup.home(attempt) {
            self.awaited.blocked(attempt, home, times, gid, (lookup, now));
        }
    }

    /// Rules were changed, as the line with this id tells.
    pub fn ruleset_changed(&mut self, boot_ns: u64, at: Timestamp, id: Option<Uuid>, change: &RulesetChange) {
        self.awaited.changed(boot_ns, at, id, change);
    }

    /// Rules of a namespace are being changed: what is blocked later is blocked by the new ones.
    pub fn ruleset_is_changing(&mut self, netns: u32) {
        self.fixes.anew(netns);
    }

    /// So many more connections can be taken.
    pub fn room_for_reached(&self) -> usize {
        self.awaited.room()
    }

    /// A connection to a destination that is waited for was established, or given up.
    pub fn reached(&mut self, reached: Reached, sender: Sender, at: Timestamp, now: Instant) {
        self.awaited.reached(reached, sender, at, now);
    }

    /// What has become known meanwhile, of what was reported. With `is_over` nothing comes any more. `is_changing` says that a change of a
    /// namespace's rules is to be reported yet.
    pub fn news(
        &mut self,
        lookup: &mut impl Lookup,
        is_changing: impl Fn(u32, u64) -> bool,
        now: Instant,
        is_over: bool,
    ) -> Vec<News> {
        let mut news = Vec::new();
        for Named { attempt, decision, share } in mem::take(&mut self.named) {
            news.push(by_rule(self.named(attempt, &decision, share, now)));
        }
        for (waiting, decision) in self.late.take_known(lookup, now, is_over) {
            let late::Waiting { attempt, wanted, packet, share, .. } = waiting;
            // What is told with a fix has the rule, too.
            let attempt = self.named(attempt, &decision, share, now);
            if let Some(rule) = &decision.rule {
                let account = (wanted.netns_cookie, share);
                self.fixes.consider(&attempt, rule, packet.as_ref(), account, now);
            }
            news.push(by_rule(attempt));
        }
        for (attempt, outcome, story) in self.awaited.take_ended() {
            news.push(News { at: attempt.end, kind: Kind::Outcome(attempt, outcome), story: Some(story) });
        }
        while let Some((attempt, restored, story)) = self.awaited.next(&is_changing, (lookup, now), is_over) {
            self.fixes.give_up(story);
            let at = attempt.end;
            news.push(News { at, kind: Kind::Restored(attempt, Box::new(restored)), story: Some(story) });
        }
        let fix = self.fixes.take_known(lookup, now, |attempt| self.awaited.is_arriving(attempt));
        if let Some((attempt, fix)) = fix {
            let kind = Kind::Fix(Box::new(attempt.without_packets()), fix);
            news.push(News { at: Timestamp::now(), kind, story: None });
        }
        news
    }

    /// An attempt with what stopped it.
    fn named(&mut self, mut attempt: Box<Attempt>, decision: &Decision, share: Share, now: Instant) -> Box<Attempt> {
        // Where a later packet gave the rule, how it is known stays.
        let told = attempt.rule.take();
        finding::enter(&mut attempt, decision);
        let is_at = |rule: &EgressRule| (rule.family.clone(), rule.table.clone(), rule.chain.clone(), rule.handle);
        match (told, &mut attempt.rule) {
            (Some(told), _) if told.text.is_some() => attempt.rule = Some(told),
            // Of the same rule only its text is new.
            (Some(told), Some(rule)) if told.handle.is_some() && is_at(&told) == is_at(rule) => {
                (rule.source, rule.confirmed_by, rule.replay) = (told.source, told.confirmed_by, told.replay);
            }
            _ => {}
        }
        let words = decision.rule.as_ref().and_then(NamedRule::words);
        if let Some((words, incident)) = words.zip(self.table.of(share, now).get(&attempt.incident, now)) {
            incident.identity.name(words);
        }
        self.awaited.named(&attempt);
        attempt
    }

    /// Something is asked for yet, or is to be reported: [`Self::news`] is to be called from time to time.
    pub fn is_waiting(&self) -> bool {
        self.rules_may_come() || self.fixes.are_waiting() || self.awaited.are_waiting()
    }

    /// Like [`Self::is_waiting`], without fixes of others than the tree that goes first: `run` waits for these.
    pub fn news_may_come(&self) -> bool {
        self.rules_may_come() || self.fixes.first_are_waiting() || self.awaited.are_waiting()
    }

    /// A rule of what was reported may still come.
    pub fn rules_may_come(&self) -> bool {
        !self.late.is_empty() || !self.named.is_empty()
    }

    /// Why some destinations cannot be watched, where that is so.
    pub fn failure(&self) -> Option<&str> {
        self.awaited.failure()
    }
}

#[cfg(test)]
mod tests;

//! What would let blocked packets through: looked for once for each rule and port.

use std::{
    collections::VecDeque,
    task::Poll,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Lookup, recent::Recent};
use crate::{
    model::{Attempt, Fix, NamedRule, Origin, Packet, PacketKind, Remedy, Share, Stopped},
    patience,
};

/// Lines whose fix is looked for; of more it stays absent.
const MAX_WAITING: usize = 48;
const MAX_WAITING_OF_A_SHARE: usize = 16;
/// It is asked about so often.
const OFTEN: Duration = Duration::from_millis(100);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A connection to the same destination keeps a fix waiting for so long at most.
const DEFERRED: Duration = Duration::from_secs(1);
/// A rule that is in force again, or that another change did not remedy, is looked at anew after this time.
const AGAIN: Duration = Duration::from_secs(600);
/// Rules that are remembered.
const MAX_ASKED: usize = 4096;

/// What has the same fix.
#[derive(Clone, PartialEq, Eq, Hash)]
struct FixKind {
    netns: u32,
    netns_cookie: u64,
    rule: Uuid,
    transport: &'static str,
    port: u16,
    v6: bool,
    is_forwarded: bool,
}

struct Waiting {
    key: FixKind,
    attempt: Box<Attempt>,
    /// The sender belongs to the tree that goes before others.
    is_first: bool,
    share: Share,
    stopped: Stopped,
    /// Rules have changed since: only a fix that was tested under them counts.
    is_outdated: bool,
    /// Since when a connection to the same destination keeps it waiting.
    deferred: Option<Instant>,
    /// When it was asked first.
    since: Option<Instant>,
    /// Not asked again before.
    next: Option<Instant>,
}

impl Waiting {
    fn new(key: FixKind, attempt: &Attempt, (is_first, share): (bool, Share), stopped: Stopped) -> Self {
        let attempt = Box::new(attempt.clone());
        Self { key, attempt, is_first, share, stopped, is_outdated: false, deferred: None, since: None, next: None }
    }
}

/// All of them, the eldest first.
pub(super) struct Fixes {
    are_wanted: bool,
    /// A process: what was stopped for it or its children goes before everything else.
    first: Option<u32>,
    /// When each was asked for.
    asked: Recent<FixKind, Instant>,
    waiting: VecDeque<Waiting>,
}

impl Fixes {
    pub(super) fn new(are_wanted: bool, first: Option<u32>) -> Self {
        Self { are_wanted, first, asked: Recent::new(MAX_ASKED, AGAIN), waiting: VecDeque::new() }
    }

    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The same of those that go before others; of all where none do.
    pub(super) fn first_are_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.is_first || self.first.is_none())
    }

    /// A packet was stopped by this rule, and somebody waits for it.
    pub(super) fn consider(
        &mut self,
        attempt: &Attempt,
        rule: &NamedRule,
        packet: Option<&Packet>,
        (netns_cookie, share): (u64, Share),
        now: Instant,
    ) {
        let known = attempt.netns.zip(rule.name()).zip(packet).filter(|_| self.are_wanted);
        let Some(((netns, name), packet)) = known else { return };
        let Some((transport, address, port)) = packet.to() else { return };
        let is_forwarded = matches!(packet.origin, Origin::Interface { .. });
        let key = FixKind { netns, netns_cookie, rule: name.id, transport, port, v6: address.is_ipv6(), is_forwarded };
        let is_known = self.asked.get(&key, now).is_some_and(|asked| now.duration_since(*asked) <= AGAIN);
        let is_first = self.first.is_some_and(|pid| attempt.sender.descends_from(pid));
        let of_the_share = self.waiting.iter().filter(|waiting| waiting.share == share).count();
        if is_known || share != Share::Host && of_the_share >= MAX_WAITING_OF_A_SHARE {
            return;
        }
        // In place of one that was seen later, its connection's first one was made.
        let is_later = packet.is_made && transport == "tcp";
        let kind = attempt.packet.or(is_later.then_some(PacketKind::Segment));
        let rule = NamedRule { packet: kind, ..rule.clone() };
        let stopped = Stopped { netns, netns_cookie, rule, packet: packet.clone(), is_by_name: false };
        // What waits from before a change is asked for as it is now.
        if let Some(same) = self.waiting.iter_mut().find(|waiting| waiting.key == key && waiting.share == share) {
            *self.asked.get_or_insert(&key, now, || now) = now;
            *same = Waiting::new(key, attempt, (is_first, share), stopped);
            return;
        }
        // Whoever runs the command goes before all others, and root before its users.
        let rank = |is_first: bool, share: Share| (!is_first, share != Share::Host);
        let is_behind = |other: &Waiting| rank(other.is_first, other.share) > rank(is_first, share);
        if self.waiting.len() >= MAX_WAITING {
            // It takes the place of the last of these.
            let last = self.waiting.iter().rposition(is_behind);
            if last.and_then(|last| self.waiting.remove(last)).is_none() {
                return;
            }
        }
        *self.asked.get_or_insert(&key, now, || now) = now;
        let place = self.waiting.iter().position(is_behind).unwrap_or(self.waiting.len());
        let waiting = Waiting::new(key, attempt, (is_first, share), stopped);
        self.waiting.insert(place, waiting);
    }

    /// Rules of a namespace have changed. Whatever is stopped from now on is stopped in spite of the change, and is asked for anew; what was
    /// stopped before may pass now.
    pub(super) fn anew(&mut self, netns: u32) {
        self.asked.retain(|key| key.netns != netns);
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.stopped.netns == netns) {
            waiting.is_outdated = true;
        }
    }

    /// What was blocked works again: nobody needs its fix.
    pub(super) fn give_up(&mut self, story: Uuid) {
        self.waiting.retain(|waiting| super::story(&waiting.attempt) != story);
    }

    /// The next one that is known, and of which attempt.
    pub(super) fn take_known(
        &mut self,
        lookup: &mut impl Lookup,
        now: Instant,
        is_arriving: impl Fn(&Attempt) -> bool,
    ) -> Option<(Box<Attempt>, Box<Fix>)> {
        let mut place = 0;
        while let Some(waiting) = self.waiting.get_mut(place) {
            // Whether it works again is known in a moment, and its fix would come too late then.
            let is_held = is_arriving(&waiting.attempt)
                && now.duration_since(*waiting.deferred.get_or_insert(now)) < patience::here(DEFERRED);
            if is_held {
                place += 1;
                continue;
            }
            let is_over = now.duration_since(*waiting.since.get_or_insert(now)) > patience::here(PATIENCE);
            if !is_over && waiting.next.is_some_and(|next| now < next) {
                return None;
            }
            match lookup.fix(waiting.share, &waiting.stopped, waiting.is_first) {
                Poll::Pending if !is_over => return None,
                Poll::Ready(Ok(Remedy::NotYet)) if !is_over => {
                    waiting.next = Some(now + OFTEN);
                    return None;
                }
                Poll::Pending | Poll::Ready(Ok(Remedy::NotYet | Remedy::None)) => {}
                Poll::Ready(Ok(Remedy::Is(fix))) if waiting.is_outdated && !fix.verified => {}
                Poll::Ready(Ok(Remedy::Is(fix))) => {
                    return self.waiting.remove(place).map(|waiting| (waiting.attempt, fix));
                }
                Poll::Ready(Err(why)) => log::debug!("no fix was looked for: {why}"),
            }
            self.waiting.remove(place);
        }
        None
    }
}

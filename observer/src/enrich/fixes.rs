//! What would let blocked packets through: looked for once for each rule and port, and told in a line of its own.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{assemble::Assembler, attribute::Eyes};
use crate::model::{Action, Event, Fix, NamedRule, Origin, Packet, Remedy, Stopped};

/// Lines whose fix is looked for; of more it stays absent.
const MAX_WAITING: usize = 16;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A rule that is in force again, or that another change did not remedy, is looked at anew after this time.
const AGAIN: Duration = Duration::from_secs(600);
/// Rules that are remembered.
const MAX_ASKED: usize = 4096;

/// What has the same fix.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    netns_cookie: u64,
    rule: Uuid,
    transport: &'static str,
    port: u16,
    v6: bool,
    is_forwarded: bool,
}

struct Waiting {
    event: Box<Event>,
    stopped: Stopped,
    /// When it was asked first.
    since: Option<Instant>,
}

/// All of them, the eldest first.
pub(super) struct Fixes {
    are_wanted: bool,
    asked: HashMap<Key, Instant>,
    waiting: VecDeque<Waiting>,
}

impl Fixes {
    pub(super) fn new(are_wanted: bool) -> Self {
        Self { are_wanted, asked: HashMap::new(), waiting: VecDeque::new() }
    }

    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A packet was stopped by this rule, and somebody waits for it.
    pub(super) fn consider(&mut self, event: &Event, rule: &NamedRule, packet: Option<Packet>, netns_cookie: u64) {
        let known = event.egress.netns.zip(rule.name()).zip(packet).filter(|_| self.are_wanted);
        let Some(((netns, name), packet)) = known else { return };
        let Some((transport, address, port)) = packet.to() else { return };
        let is_forwarded = matches!(packet.origin, Origin::Interface { .. });
        let key = Key { netns_cookie, rule: name.id, transport, port, v6: address.is_ipv6(), is_forwarded };
        let is_new = self.asked.get(&key).is_none_or(|asked| asked.elapsed() > AGAIN);
        if !is_new || self.waiting.len() >= MAX_WAITING {
            return;
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.clear();
        }
        self.asked.insert(key, Instant::now());
        let stopped = Stopped { netns, netns_cookie, rule: rule.clone(), packet, is_by_name: false };
        self.waiting.push_back(Waiting { event: Box::new(event.clone()), stopped, since: None });
    }

    /// Rules have changed: whoever is stopped now is stopped in spite of that.
    pub(super) fn anew(&mut self) {
        self.asked.clear();
    }

    /// The next one that is known, and of which line.
    fn next(&mut self, eyes: &mut impl Eyes) -> Option<(Box<Event>, Fix)> {
        while let Some(waiting) = self.waiting.front_mut() {
            let over = waiting.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE;
            match eyes.fix(&waiting.stopped) {
                Ok(Remedy::NotYet) if !over => return None,
                Ok(Remedy::NotYet | Remedy::None) => {}
                Ok(Remedy::Is(fix)) => return self.waiting.pop_front().map(|waiting| (waiting.event, *fix)),
                Err(why) => log::debug!("no fix was looked for: {why}"),
            }
            self.waiting.pop_front();
        }
        None
    }
}

/// What a connection begins with, where a packet of it was stopped: that is what must get through. Others as they are.
pub(super) fn first(packet: Packet) -> Option<Packet> {
    let Some(("tcp", address, port)) = packet.to() else { return Some(packet) };
    if packet.begins() || matches!(packet.origin, Origin::Interface { .. }) {
        return Some(packet);
    }
    let (source, source_port) = packet.from()?;
    let syn = Packet::syn(SocketAddr::new(source, source_port), SocketAddr::new(address, port), packet.origin)?;
    Some(Packet { interface: packet.interface, ..syn })
}

impl<E: Eyes> Assembler<E> {
    /// Lines for the fixes that have become known: of the same incident, and of no packet.
    pub(super) fn fixed(&mut self) -> Option<Event> {
        let (event, fix) = self.fixes.next(&mut self.attributor.eyes)?;
        let mut event = *event;
        event.timestamp = Timestamp::now();
        event.event.action = Action::EgressFix;
        event.event.id = Some(self.event_id());
        event.egress.count = 0;
        event.egress.bytes = 0;
        event.egress.fix = Some(fix);
        Some(event)
    }
}

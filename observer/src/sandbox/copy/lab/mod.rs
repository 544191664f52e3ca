//! A conversation in a copy: whoever would send really sends, somebody behind the interface really answers, and the kernel itself says
//! whether they understand each other. A packet of it that is stopped is named by its trace.

mod course;
mod ends;
mod following;
mod route;
mod talk;
mod world;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use self::talk::{Caller, Held, Stop, Talk};
use self::{course::Course, following::Part};
pub(super) use self::{course::GIVEN, following::Following, world::World};
use super::{
    choices::Choices,
    copied::Copied,
    inside::PATIENCE,
    legacy,
    listeners::Transport,
    marks::{Mark, Reason},
    remake::{Made, Purpose},
    surroundings::{self, Peers, Surroundings},
    trace::Tracer,
};
use crate::{
    model::{End, PacketKind},
    patience,
};

/// A conversation takes milliseconds; nothing is known of one of which nothing is heard for so long.
const LIMIT: Duration = Duration::from_millis(900);
/// The same of one that nobody asked for: it is not known then.
const LIMIT_OF_PROBES: Duration = Duration::from_millis(200);
/// Counters of iptables-legacy are looked at so often: they are all that says of a packet that it was stopped there.
const STEP: Duration = Duration::from_millis(4);
/// A conversation in which nothing happens for so long has come to its end.
const SOON: Duration = Duration::from_millis(20);
/// Namespaces behind interfaces: each has its own, and all that are left share the last one.
const WORLDS: usize = 12;
/// A conversation has some twenty packets.
const MAX_PACKETS: usize = 512;
/// Gateways that are there from the beginning.
const MAX_GATEWAYS: usize = 64;
/// How often a neighbour is asked for, and how many milliseconds lie between.
const ASKED_FOR: &str = "60";
const ASKED_AGAIN_MS: &str = "20";
/// Translations that follow each other.
const MAX_HOPS: usize = 4;

/// Who is reached by an interface, by its number.
type Neighbour = (u32, IpAddr);

/// A copy in which conversations are held, with what is behind its interfaces; the calling thread lives in it.
pub(super) struct Lab {
    worlds: HashMap<u32, Rc<World>>,
    tracer: Tracer,
    made: Made,
    /// Which ways rules go in it.
    choices: Choices,
    /// What stops those who ask for neighbours that are known now, by interface.
    asked: RefCell<HashMap<Neighbour, Option<Box<Stop>>>>,
}

/// Where the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    /// Number of the interface; 1 is this namespace itself.
    index: u32,
    gateway: Option<IpAddr>,
    /// Who it is there, after all translations.
    pub(super) to: SocketAddr,
}

const LOOPBACK: u32 = 1;

impl Lab {
    /// Makes the copy in the calling thread's namespace, where rules go the ways that were chosen. `hide` keeps namespaces from being
    /// observed.
    pub(super) fn new(
        copied: &Copied,
        choices: &Choices,
        logs: bool,
        hide: &dyn Fn(u32) -> Result<Box<dyn Send>>,
    ) -> Result<Self> {
        let mut worlds: HashMap<u32, Rc<World>> = HashMap::new();
        let mut last = None;
        for (number, index) in copied.around.indexes().enumerate() {
            let world = match last.clone().filter(|_| number >= WORLDS) {
                Some(world) => world,
                None => Rc::new(World::make(hide)?),
            };
            last = Some(Rc::clone(&world));
            worlds.insert(index, world);
        }
        let (made, set) = copied.make(Purpose::Conversation, Peers::Behind(&worlds), logs, choices)?;
        set.context("what the namespace is set to cannot be copied")?;
        // Who is there may only be known once somebody has asked for it, and is asked for again much sooner than elsewhere.
        for name in copied.around.names() {
            for family in ["ipv4", "ipv6"] {
                surroundings::set(&format!("{family}/neigh/{name}/mcast_solicit"), ASKED_FOR)?;
                surroundings::set(&format!("{family}/neigh/{name}/retrans_time_ms"), ASKED_AGAIN_MS)?;
            }
        }
        // A mark may lead to any of them.
        for (index, gateway) in copied.around.gateways().take(MAX_GATEWAYS) {
            if let Some(world) = worlds.get(&index) {
                world.take(index, gateway)?;
            }
        }
        let tracer = Tracer::new(&copied.rules, &made, LIMIT)?;
        Ok(Self { worlds, tracer, made, choices: choices.clone(), asked: RefCell::default() })
    }

    /// Holds a conversation; what came of it, and the marks that its packets met.
    pub(super) fn hold(&self, copied: &mut Copied, talk: &Talk) -> Result<(Held, Vec<Mark>)> {
        match self.held(copied, talk) {
            // On a busy machine a packet may have been lost on its way between namespaces.
            Err(error) if !talk.is_probe && error.downcast_ref::<NothingCame>().is_some() => self.held(copied, talk),
            // A counter of iptables-legacy does not say whose packet it was, and IPv6 sends some of its own.
            Ok((Held::Stopped(stop), _)) if talk.to.is_ipv6() && matches!(stop.end, End::Legacy(_)) => {
                self.held(copied, talk)
            }
            held => held,
        }
    }

    fn held(&self, copied: &mut Copied, talk: &Talk) -> Result<(Held, Vec<Mark>)> {
        let mut exit = self.route(&copied.around, talk)?;
        let mut met: Vec<Mark> = Vec::new();
        for _ in 0..MAX_HOPS {
            let near = if let Caller::Behind { source, .. } = talk.from { Some(source.ip()) } else { None };
            let near = near.map(|near| (near, None));
            for (other, by) in near.into_iter().chain([(exit.to.ip(), Some((talk.protocol(), exit.to.port())))]) {
                if let Some(why) = copied.around.why_untested(other, by, || talk.is_marked() || copied.sets_marks()) {
                    bail!("{why}");
                }
            }
            let mut heard = match self.once(copied, talk, exit)? {
                Once::Elsewhere(next, marks) => {
                    exit = next;
                    met.extend(marks);
                    continue;
                }
                Once::Over(heard) => heard,
            };
            let parts = copied.around.parts_of(exit.index);
            if !parts.is_empty() && heard.held == Held::Completed {
                let decides = copied.rules.has_bridges || copied.rules.hangs_on(parts) || copied.mentions("physdev");
                ensure!(
                    !decides,
                    "rules about the ports of {}, or about the interface below it, decide, too; the copy does not have these",
                    named(&copied.around, exit.index)
                );
            }
            let passage = talk.passage();
            for passage in [passage, passage.back()] {
                heard.marks.extend(self.made.missing_on(passage, if talk.to.is_ipv4() { 2 } else { 10 }));
            }
            if heard.held == Held::Completed && exit.index == LOOPBACK {
                let listener = copied.around.listener(talk.transport, exit.to);
                heard.marks.extend(matches!(listener, Ok(None)).then(|| unheard(talk, exit)));
            }
            if heard.held == Held::Completed
                && let Some(stop) = self.asking(copied, talk, exit)?
            {
                heard.held = Held::ByKnown(stop);
            }
            return Ok((heard.held, heard.marks));
        }
        met.retain(|mark| mark.reason == Reason::Anything);
        ensure!(!met.is_empty(), "the rules send it around in circles");
        // What is random sends it to another one each time.
        Err(Undecided(met).into())
    }

    /// What would stop those who ask for the neighbour by which a conversation leaves, where that is only known for now.
    fn asking(&self, copied: &mut Copied, talk: &Talk, exit: Exit) -> Result<Option<Box<Stop>>> {
        let neighbour: Neighbour = (exit.index, exit.gateway.unwrap_or(exit.to.ip()));
        let is_asked = matches!(talk.from, Caller::Here { .. }) && !talk.is_probe && exit.index != LOOPBACK;
        if !is_asked || !copied.around.remembers(neighbour.0, neighbour.1) {
            return Ok(None);
        }
        if let Some(known) = self.asked.borrow().get(&neighbour) {
            return Ok(known.clone());
        }
        let search = |copied: &mut Copied| {
            world::forget(neighbour.0, neighbour.1)?;
            let came = self.once(copied, talk, exit);
            world::know(neighbour.0, neighbour.1)?;
            came
        };
        let mut came = search(copied);
        // A counter may be of other packets that IPv6 sends.
        if matches!(&came, Ok(Once::Over(Over { held: Held::Stopped(stop), .. })) if matches!(stop.end, End::Legacy(_)))
        {
            came = search(copied);
        }
        let stop = match came {
            // With a known neighbour it has just completed: whatever an unknown one is stopped by is about the search for it, also
            // where a counter does not tell of which packet it is.
            Ok(Once::Over(Over { held: Held::Stopped(stop), .. })) => Some(stop).filter(|stop| {
                matches!(stop.packet, Some(PacketKind::Solicitation | PacketKind::Arp))
                    || talk.to.is_ipv6() && matches!(stop.end, End::Legacy(_))
            }),
            // On a busy machine: it is held again.
            Err(error) if error.downcast_ref::<NothingCame>().is_some() => return Err(error),
            // Another time it may be known: it is not remembered.
            Err(error) => {
                log::debug!("whether that neighbour can be asked for is not known: {error:#}");
                return Ok(None);
            }
            // What that would be is not what was asked.
            Ok(_) => None,
        };
        self.asked.borrow_mut().insert(neighbour, stop.clone());
        Ok(stop)
    }

    /// Where a route leads.
    fn route(&self, around: &Surroundings, talk: &Talk) -> Result<Exit> {
        if let Caller::Behind { index, .. } = talk.from {
            ensure!(self.worlds.contains_key(&index), "the interface by which it comes is not in the copy");
        }
        let route = route::of(talk, around.chooses_hops_by_address())?;
        let exit = Exit { index: route.0, gateway: route.1, to: talk.to };
        ensure!(exit.index == LOOPBACK || self.worlds.contains_key(&exit.index), "{}", missing(around, exit.index));
        Ok(exit)
    }

    fn once(&self, copied: &mut Copied, talk: &Talk, exit: Exit) -> Result<Once> {
        // What was sent by rules to this host itself comes to somebody, or to nobody.
        let is_sent_here = exit.index == LOOPBACK && exit.to != talk.to;
        let is_here = exit.index == LOOPBACK;
        let listener = if is_here { copied.around.listener(talk.transport, exit.to)? } else { None };
        let is_heard = !is_sent_here || listener.is_some();
        let server = if is_heard { Some(self.answer(talk, exit, listener.unwrap_or(0))?) } else { None };
        let counted = legacy::count(&copied.legacy)?;
        self.tracer.socket.drain();
        let caller = self.caller(talk)?;
        let mut following = Following { talk, exit, own_port: 0, packets: Vec::new(), left_from: None };
        let mut course = Course::begin(talk, caller, server)?;
        following.own_port = course.own_port();
        let until = Instant::now() + patience::here(if talk.is_probe { LIMIT_OF_PROBES } else { LIMIT });
        let (mut last, mut moved_at) = ((0, 0), Instant::now());
        let mut counted_at = moved_at;
        // Of IPv6 only an interface's own addresses are found by who is behind it.
        let on_it = copied.around.addresses(exit.index).into_iter().map(|(address, _)| address);
        let mut led: Vec<IpAddr> = on_it.collect();
        loop {
            following.hear(self.tracer.socket.came()?);
            ensure!(following.packets.len() < MAX_PACKETS, "the rules send packets in circles");
            if let Some((packet, body)) = following.stopped() {
                let way = self.tracer.follow(&copied.rules, body)?;
                let end = way.end.context("a packet was stopped by a rule that is not known")?;
                let translated = following.other_end(packet, body).filter(|to| *to != talk.to);
                let stop = Stop { end: End::Nft(end), packet, leads_to: None, translated };
                return self.over(copied, &following, Held::Stopped(Box::new(stop)), &counted);
            }
            if let Some(next) = following.elsewhere(&self.worlds)?
                && next != exit
            {
                // By whichever port of this host it is sent, nobody is there.
                let is_nowhere = |exit: Exit| -> Result<bool> {
                    Ok(exit.index == LOOPBACK && copied.around.listener(talk.transport, exit.to)?.is_none())
                };
                if !(is_sent_here && is_nowhere(exit)? && is_nowhere(next)?) {
                    let Once::Over(over) = self.over(copied, &following, Held::Completed, &counted)? else {
                        bail!("a conversation that is over goes on");
                    };
                    return Ok(Once::Elsewhere(next, over.marks));
                }
            }
            if let Some(source) = following.leaves_as().filter(|source| !led.contains(source)) {
                // Whatever it was translated to leads back here.
                led.push(source);
                if let Some(world) = self.worlds.get(&exit.index) {
                    world.leads(exit.index, source)?;
                }
            }
            let moved = course.go_on();
            if let Ok(true) = moved {
                following.hear(self.tracer.socket.came()?);
                // Where both ends are behind one interface it may not have come here at all.
                ensure!(following.has_begun(), "the conversation does not come to this namespace in the copy");
                return self.over(copied, &following, Held::Completed, &counted);
            }
            let refused = moved.err();
            if refused.is_some() {
                // The trace of a rejected packet comes before its sender gets the error.
                following.hear(self.tracer.socket.came()?);
                if following.stopped().is_some() {
                    continue;
                }
            }
            let is_late = Instant::now() > until || refused.is_some();
            // Other packets are counted, too, such as those by which the copy joins groups: only what stands still was stopped.
            let now = (following.packets.len(), course.progress());
            if now != last {
                (last, moved_at) = (now, Instant::now());
            }
            let stands_still = moved_at.elapsed() > patience::here(SOON);
            if !copied.legacy.is_empty() && (is_late || stands_still && counted_at.elapsed() > STEP) {
                counted_at = Instant::now();
                let now = legacy::count(&copied.legacy)?;
                if let Some((table, spot, passage)) = counted.stopped(&now, &copied.legacy, talk.to.is_ipv6())? {
                    let packet = following.kind_at(passage);
                    let table = copied.legacy.get(table).context("a table that is not there")?;
                    let named = copied.saved.named(table, spot, Instant::now() + PATIENCE)?;
                    let stop = Stop { end: End::Legacy(Box::new(named)), packet, leads_to: None, translated: None };
                    return self.over(copied, &following, Held::Stopped(Box::new(stop)), &counted);
                }
            }
            if let (Some(_), true) = (&refused, is_sent_here && !is_heard) {
                let way = following.first_way(&self.tracer, copied)?;
                let by =
                    way.translated_by.with_context(|| format!("it is sent to {}, where nobody listens", exit.to))?;
                let stop = Stop { end: End::Nft(by), packet: None, leads_to: Some(exit.to), translated: None };
                return self.over(copied, &following, Held::Stopped(Box::new(stop)), &counted);
            }
            if let Some(error) = refused {
                return Err(error).context("the conversation failed in the copy");
            }
            if is_late {
                // What asks for a neighbour from beyond is the last that may have been in vain.
                if let Some((packet, body)) = following.stopped_beside() {
                    let way = self.tracer.follow(&copied.rules, body)?;
                    let end = way.end.context("a packet was stopped by a rule that is not known")?;
                    let stop = Stop { end: End::Nft(end), packet, leads_to: None, translated: None };
                    return self.over(copied, &following, Held::Stopped(Box::new(stop)), &counted);
                }
                let Once::Over(over) = self.over(copied, &following, Held::Completed, &counted)? else {
                    return Err(NothingCame.into());
                };
                // Somebody else may have it.
                let of_it: Vec<Mark> = over.marks.into_iter().filter(|mark| mark.reason == Reason::Anything).collect();
                return Err(if of_it.is_empty() { NothingCame.into() } else { Undecided(of_it).into() });
            }
            course.wait(&self.tracer.socket, if copied.legacy.is_empty() { until } else { Instant::now() + STEP })?;
        }
    }

    /// What is known then: the marks of every packet of it.
    fn over(&self, copied: &Copied, following: &Following<'_>, held: Held, counted: &legacy::Counted) -> Result<Once> {
        let mut marks: Vec<Mark> = Vec::new();
        for packet in &following.packets {
            let Some(part) = following.kind(packet) else { continue };
            let met = self.tracer.follow(&copied.rules, &packet.told)?.marks;
            let is_open = |mark: &Mark| match mark.reason {
                // What this host sends has the headers that its own kernel writes; what the other end's writes is not known.
                Reason::Header => part == Part::Other(PacketKind::Answer),
                // How long what an application says is.
                Reason::Length => part != Part::First || following.talk.transport == Transport::Udp,
                // Only that of who begins is another one each time.
                Reason::SourcePort => part != Part::Other(PacketKind::Answer),
                Reason::DestinationPort => part == Part::Other(PacketKind::Answer),
                _ => true,
            };
            marks.extend(met.into_iter().filter(is_open));
        }
        if !copied.legacy.is_empty() {
            let now = legacy::count(&copied.legacy)?;
            // Of a rule whose way was chosen nothing is uncertain.
            let is_open = |mark: &Mark| {
                mark.reason != Reason::Anything || !mark.rule.is_some_and(|rule| self.choices.contains_key(&rule))
            };
            marks.extend(counted.met(&now, (&copied.legacy, copied.facts()), following)?.into_iter().filter(is_open));
        }
        Ok(Once::Over(Over { held, marks }))
    }
}

/// A packet was lost, and nothing tells where.
#[derive(Debug, thiserror::Error)]
#[error("nothing came of the conversation in the copy, and no rule stopped a packet of it")]
struct NothingCame;

/// What came of it is another thing each time; the marks of what decides so.
#[derive(Debug, thiserror::Error)]
#[error("it depends on {}", .0.first().map_or("", |mark| mark.words.as_str()))]
pub(super) struct Undecided(pub(super) Vec<Mark>);

enum Once {
    /// Rules or marks send it elsewhere; the marks on its way.
    Elsewhere(Exit, Vec<Mark>),
    Over(Over),
}

struct Over {
    held: Held,
    marks: Vec<Mark>,
}

/// In the copy somebody was there.
fn unheard(talk: &Talk, exit: Exit) -> Mark {
    let at = if exit.to == talk.to { "there".to_owned() } else { format!("on {} of this host", exit.to) };
    Mark { reason: Reason::Unheard, words: format!("nothing listens {at} now"), rule: None }
}

fn missing(around: &Surroundings, index: u32) -> String {
    format!("interface {}, by which it leaves, is not in the copy", named(around, index))
}

fn named(around: &Surroundings, index: u32) -> String {
    around.name(index).map_or_else(|| format!("number {index}"), str::to_owned)
}

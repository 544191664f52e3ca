//! The slower half: takes from the queue, decodes, attributes, filters, writes. The only place where asking and writing
//! may wait.
//!
//! Every packet is in the counts. A record announces the first packet of a key and is told at once; when its generation is
//! swept, what was counted beyond that is told as one line, in the words of the first. A key whose record did not come
//! through is told by what the key alone says.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use observer_ebpf::abi::{Counted, DropKey};
use tokio::sync::oneshot;

use crate::{
    enrich::{assemble::Assembler, attribute::Eyes},
    intake::{
        counts::Counts,
        decode::{decode, of_key},
        ring::{Item, Sweeping},
    },
    model::{Commit, Degraded, Direction, Dropped, Event, Filter, Hanging, RulesSeen},
    output::Output,
};

/// Output that has something left to tell is asked this often.
const IDLE: Duration = Duration::from_millis(250);
/// First events of a generation that are kept as a pattern for what is counted beyond; the rest is made anew.
const MAX_PATTERNS: usize = 4096;

/// What the two halves tell each other beside the queue.
#[derive(Debug, Default)]
pub(super) struct Flags {
    /// What is left is only counted.
    pub(super) hurry: AtomicBool,
    /// A request to take in process records is in the queue.
    pub(super) nudged: AtomicBool,
    /// A request to look up the kernel's functions anew is in the queue.
    pub(super) modules: AtomicBool,
    /// nftables was among them: what was learnt of it holds no more.
    pub(super) rules_anew: AtomicBool,
    /// How far sweeping is.
    pub(super) sweeping: Arc<Sweeping>,
}

/// What the slower half did; in packets.
pub(super) struct Consumed {
    pub(super) reported: u64,
    pub(super) filtered: u64,
    pub(super) decode: u64,
    /// Packets that turned out to be no egress.
    pub(super) inbound: u64,
    /// Given up at the end, because the output did not take them in time.
    pub(super) abandoned: u64,
    /// Counted together for want of room, so that it is not known whether they were to be told.
    pub(super) undecided: u64,
    pub(super) output: Box<dyn Output>,
    pub(super) degraded: Vec<Degraded>,
    pub(super) rules: RulesSeen,
    pub(super) error: Option<io::Error>,
}

/// A first packet that was told.
struct Told {
    bytes: u64,
    said: Said,
}

enum Said {
    /// It was no egress, as far as was known.
    Inbound,
    /// This, if there was room to keep it.
    Event(Option<Box<Event>>),
}

/// The slower half.
pub(super) struct Consumer<E> {
    assembler: Assembler<E>,
    counts: Counts,
    filter: Filter,
    count: Option<u64>,
    stop: Option<oneshot::Sender<()>>,
    /// First packets of the even and the odd generation.
    told: [HashMap<DropKey, Told>; 2],
    /// The last generation that was swept.
    swept: Option<u32>,
    /// Lines that were told.
    lines: u64,
    /// Events that were shown.
    shown: u64,
    done: Consumed,
}

impl<E: Eyes> Consumer<E> {
    pub(super) fn new(
        assembler: Assembler<E>,
        counts: Counts,
        output: Box<dyn Output>,
        filter: Filter,
        count: Option<u64>,
        stop: oneshot::Sender<()>,
    ) -> Self {
        let done = Consumed {
            reported: 0,
            filtered: 0,
            decode: 0,
            inbound: 0,
            abandoned: 0,
            undecided: 0,
            output,
            degraded: Vec::new(),
            rules: RulesSeen::default(),
            error: None,
        };
        Self {
            assembler,
            counts,
            filter,
            count,
            stop: Some(stop),
            told: Default::default(),
            swept: None,
            lines: 0,
            shown: 0,
            done,
        }
    }

    /// What hangs already, then everything until the queue is closed and empty; then what is still counted is told too. After an error or the last event that
    /// was asked for, it counts on and writes no more; in a hurry it only counts.
    pub(super) fn run(mut self, hanging: &[Hanging], queue: &Receiver<Item>, flags: &Flags) -> Consumed {
        for hanging in hanging {
            self.state(hanging);
        }
        let mut asked = Instant::now();
        loop {
            let item = match queue.try_recv() {
                Ok(item) => Some(item),
                Err(_) => {
                    let waiting = self.pause();
                    asked = Instant::now();
                    // An idle host costs nothing: without anything to tell there is nothing to wake up for.
                    let next = if waiting { queue.recv_timeout(IDLE) } else { queue.recv().map_err(Into::into) };
                    match next {
                        Ok(item) => Some(item),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
            };
            if asked.elapsed() > IDLE {
                self.pause();
                asked = Instant::now();
            }
            match item {
                Some(Item::Drop(_)) if flags.hurry.load(Ordering::Relaxed) => {}
                Some(Item::Drop(bytes)) => self.first(bytes),
                Some(Item::Sweep(epoch)) => {
                    let found = self.sweep(epoch, flags);
                    flags.sweeping.found.store(found, Ordering::Release);
                    flags.sweeping.busy.store(false, Ordering::Release);
                }
                Some(Item::Processes) => {
                    flags.nudged.store(false, Ordering::Relaxed);
                    self.assembler.catch_up();
                }
                Some(Item::Modules | Item::Commits(_) | Item::Deaf(_)) if flags.hurry.load(Ordering::Relaxed) => {}
                Some(Item::Modules) => {
                    flags.modules.store(false, Ordering::Relaxed);
                    self.assembler.modules_changed(flags.rules_anew.swap(false, Ordering::Relaxed));
                }
                Some(Item::Commits(commits)) => self.changed(commits),
                Some(Item::Deaf(netns)) => self.assembler.deaf(netns),
                None => {}
            }
        }
        // Nothing counts any more: what is left may be of both generations, the older first.
        let next = self.swept.map_or(0, |swept| swept.wrapping_add(1));
        for epoch in [next, next.wrapping_add(1)] {
            self.sweep(epoch, flags);
        }
        // Changes of rules that came before have been heard.
        self.assembler.catch_up();
        while let Some(event) = self.assembler.restored(true) {
            self.news(event);
        }
        self.done.degraded.extend(self.assembler.degraded());
        self.done.rules = self.assembler.rules_seen();
        self.done
    }

    /// True when the output has something left to tell.
    fn pause(&mut self) -> bool {
        if self.done.error.is_some() {
            return false;
        }
        for event in self.assembler.late() {
            self.news(event);
        }
        self.done.output.waits(self.assembler.waits());
        let waiting = self.done.output.idle().unwrap_or_else(|error| {
            self.done.error = Some(error);
            false
        });
        self.stop_if_over();
        waiting || self.assembler.waits()
    }

    /// What has become known of something that was told: of no packet.
    fn news(&mut self, mut event: Event) {
        if self.is_over() || !self.filter.matches(&event) {
            return;
        }
        self.lines += 1;
        event.event.sequence = Some(self.lines);
        if let Err(error) = self.done.output.event(&event) {
            self.done.error = Some(error);
        }
    }

    /// Tells of a connection that hangs: of no packet, so that it is none of the events that are counted.
    fn state(&mut self, hanging: &Hanging) {
        let mut event = self.assembler.hanging(hanging);
        if self.done.error.is_some() || !self.filter.matches(&event) {
            return;
        }
        self.lines += 1;
        event.event.sequence = Some(self.lines);
        if let Err(error) = self.done.output.event(&event) {
            self.done.error = Some(error);
        }
        self.stop_if_over();
    }

    /// Changes of rules: of no packet either.
    fn changed(&mut self, commits: Vec<Commit>) {
        let count = commits.len();
        for (index, commit) in commits.into_iter().enumerate() {
            if self.is_over() || !self.filter.matches_change(commit.netns) {
                continue;
            }
            let mut change = self.assembler.change(commit, index + 1 == count);
            self.lines += 1;
            change.event.sequence = Some(self.lines);
            if let Err(error) = self.done.output.change(&change) {
                self.done.error = Some(error);
            }
        }
        self.stop_if_over();
    }

    /// The first packet of a key.
    fn first(&mut self, bytes: bytes::Bytes) {
        let first = match decode(bytes) {
            Ok(first) => first,
            Err(error) => {
                log::warn!("{error}");
                return;
            }
        };
        // What was swept has been told by its count.
        if self.swept.is_some_and(|swept| swept.wrapping_sub(first.epoch) as i32 >= 0) || self.is_over() {
            return;
        }
        let event = self.assemble(&first.dropped);
        let room = self.told.iter().map(HashMap::len).sum::<usize>() < MAX_PATTERNS;
        let said = match event {
            None => Said::Inbound,
            Some(event) => {
                self.tell(event.clone());
                Said::Event(room.then(|| Box::new(event)))
            }
        };
        let told = Told { bytes: first.dropped.bytes, said };
        if let Said::Inbound = told.said {
            self.done.inbound += 1;
        }
        self.told[(first.epoch & 1) as usize].insert(first.key, told);
    }

    /// Tells what was counted in a generation beyond the first packets; returns how many keys there were.
    fn sweep(&mut self, epoch: u32, flags: &Flags) -> u64 {
        let mut told = std::mem::take(&mut self.told[(epoch & 1) as usize]);
        self.swept = Some(epoch);
        let (swept, error) = self.counts.sweep(epoch);
        if let Some(error) = error {
            log::error!("{error:#}");
            self.done.degraded.push(Degraded {
                what: "counts".to_owned(),
                why: format!("{error:#}"),
                consequence: "some packets are counted late, and some may be missing from the sum".to_owned(),
            });
        }
        let found = swept.len() as u64;
        for (key, mut counted) in swept {
            let first = told.remove(&key);
            if let Some(first) = &first {
                counted.packets -= 1;
                counted.bytes -= first.bytes;
            }
            if counted.packets > 0 {
                self.beyond(&key, &counted, first.map(|first| first.said), flags);
            }
        }
        found
    }

    fn beyond(&mut self, key: &DropKey, counted: &Counted, said: Option<Said>, flags: &Flags) {
        if flags.hurry.load(Ordering::Relaxed) {
            self.done.abandoned += counted.packets;
            return;
        }
        if self.is_over() {
            self.done.filtered += counted.packets;
            return;
        }
        let event = match said {
            // Who could not be named then may be known by now, and whether it was egress.
            Some(Said::Event(Some(pattern))) if self.assembler.still_holds(&pattern, counted) => {
                Some(self.assembler.again(*pattern, key, counted))
            }
            _ => match of_key(key, counted) {
                // Where to is not known any more, and so not whether it was to go on from here, or asked for.
                Ok(dropped)
                    if dropped.coarse
                        && (dropped.direction == Direction::Unrouted || !self.filter.in_kernel_wholly()) =>
                {
                    let elsewhere = self
                        .filter
                        .netns
                        .is_some_and(|wanted| dropped.netns != wanted && dropped.origin_netns != Some(wanted));
                    let into = if elsewhere { &mut self.done.filtered } else { &mut self.done.undecided };
                    *into += counted.packets;
                    return;
                }
                Ok(dropped) => self.assemble(&dropped),
                Err(error) => {
                    log::warn!("{error}");
                    self.done.decode += counted.packets;
                    return;
                }
            },
        };
        match event {
            Some(event) => self.tell(event),
            None => self.done.inbound += counted.packets,
        }
    }

    /// Nothing more is written.
    fn is_over(&self) -> bool {
        self.done.error.is_some() || self.count.is_some_and(|count| self.shown >= count)
    }

    /// `None` for what is no egress.
    fn assemble(&mut self, dropped: &Dropped) -> Option<Event> {
        self.assembler.is_egress(dropped).then(|| self.assembler.assemble(dropped))
    }

    fn tell(&mut self, mut event: Event) {
        let packets = event.egress.count;
        if !self.filter.matches(&event) {
            self.done.filtered += packets;
            return;
        }
        self.done.reported += packets;
        self.lines += 1;
        event.event.sequence = Some(self.lines);
        match self.done.output.event(&event) {
            Ok(shown) => self.shown += u64::from(shown),
            Err(error) => self.done.error = Some(error),
        }
        self.stop_if_over();
    }

    fn stop_if_over(&mut self) {
        if self.is_over()
            && let Some(stop) = self.stop.take()
        {
            // The other end is gone only when everything is stopping already.
            let _ = stop.send(());
        }
    }
}

//! The consumer thread: takes items from the queue, decodes, attributes, filters, explains and reports them. It may wait for short
//! questions to the helper, never for rules, copies and trials.
//!
//! Every packet is in the counts. A record carries the first packet of a key, which is a line of its own. When its epoch is swept,
//! further packets of that key become one line that copies the first. A key whose record did not come
//! through is reported by what the key alone says.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    task::Poll,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use observer_ebpf::abi::{Counted, DropKey, answer};

use super::{
    backlog::Backlog,
    documents::Documents,
    epochs::{Beyond, Epochs, Reported, Said, is_by},
    held::Waiting,
    ledger::{Flags, Ledger},
    lookups::{Await, Lookups},
    making::{Making, Stage},
    writer::LineWriter,
};
use crate::{
    attribute::Attribution,
    explain::{self, Explainer, Sight, changes::Changes, finding},
    incident::{Incidents, News, Snapshot},
    intake::{
        counts::Counts,
        decode::{decode, of_key, peek},
        ring::Item,
    },
    model::{Attempt, Degraded, Direction, Dropped, Hanging, Kind, RulesSeen, Share},
    patience,
    privilege::HostQueries,
    sink::fan::Fan,
};

/// Items that are taken from the queue between two that are worked off.
const BATCH: usize = 4096;
/// Lines of one account that may wait for what is looked up: what comes beyond is reported with what is known at once.
const MAX_HELD_OF_ONE: usize = 256;
/// How often what is pending is looked at.
const IDLE: Duration = Duration::from_millis(250);
/// How long a line waits for what is looked up for it; what comes later is reported in a line of its own.
const HOLD: Duration = Duration::from_millis(120);
/// Senders that are looked for are looked for again so often.
const SEARCH: Duration = Duration::from_millis(4);
/// Time between two looks while waiting.
const STEP: Duration = Duration::from_millis(5);

/// What the slower half leaves.
pub(super) struct Consumed {
    pub(super) ledger: Ledger,
    pub(super) fan: Fan,
    pub(super) degraded: Vec<Degraded>,
    pub(super) rules: RulesSeen,
    pub(super) error: Option<io::Error>,
}

/// The stages from a packet to its line.
pub struct Rooms<E> {
    /// Who sent it.
    pub attribution: Attribution<E>,
    /// What stopped it.
    pub explainer: Explainer,
    /// Who changes rules.
    pub changes: Changes,
    /// As one story.
    pub incidents: Incidents,
    /// Tells the eBPF side which destinations to watch.
    pub tell: Await,
}

/// What is to be worked off.
enum Work {
    /// The first packet of a key in this generation, on this account.
    First { bytes: bytes::Bytes, epoch: u32, share: Share },
    /// What was counted beyond it, and what was said of it.
    Beyond(Box<Beyond>),
}

/// The slower half.
pub(super) struct Consumer<E> {
    rooms: Rooms<E>,
    backlog: Backlog<Work>,
    /// Lines that wait, by account.
    held_of: HashMap<Share, usize>,
    epochs: Epochs,
    writer: LineWriter,
    documents: Documents,
    /// How long late rules are waited for at the end.
    late: Duration,
    /// Follow-up lines may still come.
    news: Arc<AtomicBool>,
    /// A change of rules is to be reported yet.
    changing: Arc<AtomicBool>,
    /// Lines that wait.
    held: Waiting<Making>,
    /// When it was looked for senders last, and whether any is still looked for.
    searched: (Instant, bool),
    degraded: Vec<Degraded>,
}

/// Those of each account in turn, the host's first: a terminal shows some of them only.
fn in_turn<T>(all: &[T], share: impl Fn(&T) -> Share) -> Vec<&T> {
    let mut seen: HashMap<Share, usize> = HashMap::new();
    let mut ordered: Vec<_> = all
        .iter()
        .map(|one| {
            let share = share(one);
            let turn = seen.entry(share).or_default();
            *turn += 1;
            (*turn, share != Share::Host, one)
        })
        .collect();
    ordered.sort_by_key(|(turn, is_not_host, _)| (*turn, *is_not_host));
    ordered.into_iter().map(|(.., one)| one).collect()
}

impl<E: HostQueries> Consumer<E> {
    pub(super) fn new(
        rooms: Rooms<E>,
        counts: Counts,
        (writer, late): (LineWriter, Duration),
        (news, changing): (Arc<AtomicBool>, Arc<AtomicBool>),
        documents: Documents,
    ) -> Self {
        Self {
            rooms,
            documents,
            backlog: Backlog::new(),
            held_of: HashMap::new(),
            epochs: Epochs::new(counts),
            writer,
            late,
            news,
            changing,
            held: Waiting::new(),
            searched: (Instant::now(), false),
            degraded: Vec::new(),
        }
    }

    /// Reports that recording begins, with what is degraded, where it is recorded; connections that hang, then items until the queue is closed and empty, then the remaining counts. After an error or the
    /// last event that was asked for it only counts; in a hurry likewise.
    pub(super) fn run(
        mut self,
        begun: Option<Vec<Degraded>>,
        hanging: &[Hanging],
        queue: &Receiver<Item>,
        flags: &Flags,
    ) -> Consumed {
        let is_recorded = begun.is_some();
        if let Some(degraded) = begun {
            self.writer.unfiltered(Timestamp::now(), Kind::Started(degraded));
        }
        for hanging in in_turn(hanging, |hanging| self.rooms.attribution.share(hanging.netns, 0, Some(hanging.uid))) {
            self.state(hanging);
        }
        let mut asked = Instant::now();
        loop {
            self.go_on(flags);
            queue.try_iter().take(BATCH).for_each(|item| self.take(item, flags));
            if self.work(flags) {
                if asked.elapsed() > IDLE {
                    self.pause();
                    asked = Instant::now();
                }
                continue;
            }
            let waiting = self.pause();
            asked = Instant::now();
            // An idle host costs nothing: without anything to tell there is nothing to wake up for.
            let next = match self.held.due(asked) {
                Some(due) => queue.recv_timeout(due.min(if self.searched.1 { SEARCH } else { IDLE })),
                None if waiting || self.epochs.are_waiting() => queue.recv_timeout(IDLE),
                None => queue.recv().map_err(Into::into),
            };
            match next {
                Ok(item) => self.take(item, flags),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.finish(is_recorded, flags)
    }

    /// Works off the next item; false where there is none.
    fn work(&mut self, flags: &Flags) -> bool {
        let Some(work) = self.backlog.pop() else { return false };
        flags.taken.fetch_add(1, Ordering::Relaxed);
        match work {
            Work::First { bytes, epoch, share } => {
                self.epochs.first_taken(epoch);
                if !flags.hurry.load(Ordering::Relaxed) {
                    self.first(bytes, share);
                }
            }
            Work::Beyond(beyond) => {
                let (key, counted, said, share) = *beyond;
                self.beyond(&key, &counted, said, share, flags);
                if self.epochs.beyond_taken() {
                    flags.sweeping.busy.store(false, Ordering::Release);
                }
            }
        }
        true
    }

    /// Has the first packet of a key wait for its turn. One for which there is no room is reported by its count.
    fn wait(&mut self, bytes: bytes::Bytes, flags: &Flags) {
        let Some((epoch, share)) = peek(&bytes) else {
            log::warn!("a record of {} bytes cannot be read", bytes.len());
            return;
        };
        if !self.epochs.first_waits(epoch) {
            flags.sweeping.crowded_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.backlog.push(share, Work::First { bytes, epoch, share });
    }

    fn take(&mut self, item: Item, flags: &Flags) {
        flags.taken.fetch_add(1, Ordering::Relaxed);
        let in_hurry = flags.hurry.load(Ordering::Relaxed);
        match item {
            Item::Drop(_) | Item::Modules | Item::Commits(_) | Item::Deaf(_) if in_hurry => {}
            Item::Drop(bytes) => self.wait(bytes, flags),
            Item::Sweep(epoch) => self.epochs.is_over(epoch),
            Item::Processes => {
                flags.nudged.store(false, Ordering::Relaxed);
                self.rooms.attribution.catch_up();
            }
            Item::Modules => {
                flags.modules.store(false, Ordering::Relaxed);
                let nftables = flags.rules_anew.swap(false, Ordering::Relaxed);
                self.rooms.explainer.modules_changed(nftables, self.rooms.attribution.queries());
                self.rooms.changes.again();
            }
            Item::Commits(commits) => {
                let count = commits.len();
                for (index, commit) in commits.into_iter().enumerate() {
                    if !self.writer.is_over() && self.writer.filter.matches_change(commit.netns) {
                        self.rooms.incidents.ruleset_is_changing(commit.netns);
                        self.rooms.changes.change(commit, index + 1 == count, &mut self.rooms.attribution);
                    }
                }
                self.changing.store(self.rooms.changes.are_waiting(), Ordering::Release);
            }
            Item::Deaf(netns) => self.rooms.changes.deaf(netns, self.rooms.attribution.queries()),
            // `go_on` takes them in.
            Item::Answers => {}
        }
    }

    /// Tells what waits, sweeps what is left, and waits a moment for late news.
    fn finish(mut self, is_recorded: bool, flags: &Flags) -> Consumed {
        // Nothing counts any more. Both epochs may still hold counts; the older one comes first.
        self.settle(flags);
        for epoch in self.epochs.last() {
            self.sweep(epoch);
            self.settle(flags);
        }
        // Changes of rules that came before have been heard.
        self.rooms.attribution.catch_up();
        let until = Instant::now() + patience::here(self.late);
        let in_hurry = || flags.hurry.load(Ordering::Relaxed);
        while !in_hurry() && !self.writer.is_over() && self.rules_may_come() && Instant::now() < until {
            std::thread::sleep(STEP);
            self.rooms.attribution.queries().take_answers();
            self.tell_late(false);
        }
        self.tell_late(true);
        if is_recorded {
            self.writer.unfiltered(Timestamp::now(), Kind::Stopped);
        }
        self.degraded.extend(self.rooms.attribution.degraded());
        self.degraded.extend(self.epochs.degraded());
        if let Some(why) = self.rooms.incidents.failure() {
            self.degraded.push(Degraded {
                what: "restored".to_owned(),
                why: format!("a blocked destination cannot be watched: {why}"),
                consequence: "that some blocked destinations work again is not reported".to_owned(),
            });
        }
        self.writer.look();
        Consumed {
            ledger: self.writer.ledger,
            error: self.writer.error,
            fan: self.writer.fan,
            degraded: self.degraded,
            rules: self.rooms.explainer.rules().summary(),
        }
    }

    /// Works everything off: no line is held then, and all sweeps are done.
    fn settle(&mut self, flags: &Flags) {
        loop {
            self.go_on(flags);
            if self.work(flags) {
                continue;
            }
            if self.held.is_empty() && !self.epochs.are_waiting() {
                return;
            }
            std::thread::sleep(STEP);
        }
    }

    /// Takes in answers, and tells in their order the lines for which everything has come, or that have waited long enough.
    fn go_on(&mut self, flags: &Flags) {
        let mut any = self.rooms.attribution.queries().take_answers();
        let now = Instant::now();
        let in_hurry = flags.hurry.load(Ordering::Relaxed);
        if self.searched.1 && now.duration_since(self.searched.0) >= SEARCH {
            self.searched = (now, self.held.any(Making::is_searching));
            any = true;
        }
        let Self { held, rooms, writer, .. } = self;
        held.answered(any, now, |making, is_last| making.look(rooms, &writer.filter, is_last));
        loop {
            let Self { held, rooms, writer, .. } = self;
            let look = |making: &mut Making, is_last| making.look(rooms, &writer.filter, is_last);
            let Some((making, is_told)) = held.next((now, in_hurry), look) else { break };
            if let Some(held) = self.held_of.get_mut(&making.share) {
                *held -= 1;
                if *held == 0 {
                    self.held_of.remove(&making.share);
                }
            }
            self.told(making, is_told, in_hurry);
        }
        loop {
            let held = |epoch| self.held.any(|making: &Making| making.first.is_some_and(|(_, of, _)| is_by(of, epoch)));
            let Some(epoch) = self.epochs.next(held) else { break };
            let found = self.sweep(epoch);
            flags.sweeping.found.store(found, Ordering::Release);
            if self.epochs.is_done() {
                flags.sweeping.busy.store(false, Ordering::Release);
            }
        }
    }

    /// Reports a line that is complete, or counts it where it is not to be reported.
    fn told(&mut self, making: Making, is_told: bool, in_hurry: bool) {
        let packets = making.packets();
        let Making { stage, first, share } = making;
        let said = match stage {
            // Its epoch's sweep counts the first packet of a key.
            _ if is_told && (in_hurry || self.writer.is_over()) => {
                if first.is_none() {
                    let ledger = &mut self.writer.ledger;
                    *if in_hurry { &mut ledger.abandoned } else { &mut ledger.filtered } += packets;
                }
                return;
            }
            Stage::Explained(begun) => {
                let (mut attempt, sight) = self.rooms.explainer.conclude(*begun, &mut self.rooms.attribution);
                self.enter(&mut attempt, &sight);
                let is_kept = first.is_some() && self.epochs.has_room();
                let pattern = is_kept.then(|| Box::new(((*attempt).clone(), sight.share)));
                self.tell(attempt, sight.share);
                Said::Attempt(pattern)
            }
            Stage::Filtered(_) => {
                self.writer.ledger.filtered += packets;
                Said::Filtered
            }
            Stage::Sender(..) | Stage::Inbound(_) => {
                self.writer.ledger.inbound += packets;
                Said::Inbound
            }
        };
        if let Some((key, epoch, bytes)) = first {
            self.epochs.keep(epoch, key, Reported { bytes, said, share });
        }
    }

    /// Enters an attempt into the table of incidents.
    fn enter(&mut self, attempt: &mut Attempt, sight: &Sight) {
        let Rooms { attribution, explainer, incidents, tell, .. } = &mut self.rooms;
        incidents.take(attempt, sight, &mut Lookups { attribution, explainer, tell }, Instant::now());
    }

    /// Starts a line, and holds it until it is complete.
    fn begin(&mut self, dropped: Dropped, first: Option<(DropKey, u32, u64)>, share: Share) {
        let dropped = self.rooms.attribution.oriented(dropped);
        let mut making = Making::new(dropped, first, share);
        let is_last = self.held_of.get(&share).is_some_and(|held| *held >= MAX_HELD_OF_ONE);
        let looked = making.look(&mut self.rooms, &self.writer.filter, is_last);
        if looked == Poll::Ready(false) || is_last {
            self.told(making, looked != Poll::Ready(false), false);
            return;
        }
        *self.held_of.entry(share).or_default() += 1;
        self.searched.1 |= making.is_searching();
        self.held.hold(making, looked, Instant::now() + patience::here(HOLD));
    }

    /// True when something is to be reported yet.
    fn pause(&mut self) -> bool {
        self.writer.look();
        if self.writer.error.is_some() {
            return false;
        }
        self.tell_late(false);
        let is_stale = self.rooms.explainer.rules().is_stale();
        let comes = self.rooms.attribution.has_reached() || self.rooms.changes.are_waiting() || is_stale;
        self.changing.store(self.rooms.changes.are_waiting(), Ordering::Release);
        self.news.store(comes || self.rooms.incidents.news_may_come(), Ordering::Release);
        comes || self.rooms.incidents.is_waiting() || self.documents.are_waiting()
    }

    /// A rule of what was reported, or what changed by a change, may still come.
    fn rules_may_come(&self) -> bool {
        self.rooms.incidents.rules_may_come() || self.rooms.changes.are_waiting() || self.documents.are_waiting()
    }

    /// Tells what has become known of what was reported, and changes of rules.
    fn tell_late(&mut self, is_over: bool) {
        let now = Instant::now();
        while let Some((boot_ns, change)) = self.rooms.changes.changed(&mut self.rooms.attribution, is_over) {
            let (at, id) = (self.rooms.attribution.wall(boot_ns), self.writer.id());
            self.rooms.incidents.ruleset_changed(boot_ns, at, Some(id), &change);
            self.writer.change(id, at, Kind::RulesetChanged(Box::new(change)));
        }
        let room = self.rooms.incidents.room_for_reached();
        for reached in self.rooms.attribution.take_reached().into_iter().take(room) {
            let sender = self.rooms.attribution.who_reached(&reached);
            let at = self.rooms.attribution.wall(reached.boot_ns);
            self.rooms.incidents.reached(reached, sender, at, now);
        }
        let Rooms { attribution, explainer, incidents, changes, tell } = &mut self.rooms;
        explainer.rules().refresh(attribution.queries());
        changes.progress(attribution.queries());
        let mut lookups = Lookups { attribution, explainer, tell };
        let news = incidents.news(&mut lookups, |netns, boot_ns| changes.is_changing(netns, boot_ns), now, is_over);
        for News { at, mut kind, story } in news {
            let share = kind.attempt_mut().and_then(|attempt| {
                let uid = attempt.sender.user.as_ref().map(|user| user.id);
                Some(self.rooms.attribution.share(attempt.netns?, 0, uid))
            });
            if let (Kind::Rule(attempt), Some(share)) = (&kind, share) {
                self.documents.want(attempt, share);
            }
            self.writer.news(at, kind, story.map(|story| Snapshot { share, ..Snapshot::of(story) }));
        }
        for document in self.documents.come(self.rooms.attribution.queries()) {
            self.writer.document(document);
        }
    }

    /// Reports a connection that hung when observer started.
    fn state(&mut self, hanging: &Hanging) {
        let Rooms { attribution, explainer, incidents, .. } = &mut self.rooms;
        let (mut attempt, share) = explain::hanging::attempt(hanging, attribution);
        // What is filtered costs no look-up.
        if !self.writer.filter.concerns(&attempt) {
            return;
        }
        let stopped = explainer.stops(hanging, &mut attempt, share, attribution);
        let now = Instant::now();
        incidents.hanging(&mut attempt, stopped.as_ref(), share, now);
        let story = incidents.count(&attempt, share, now);
        self.writer.news(attempt.end, Kind::Hanging(Box::new(attempt)), Some(story));
    }

    /// The first packet of a key.
    fn first(&mut self, bytes: bytes::Bytes, share: Share) {
        let first = match decode(bytes) {
            Ok(first) => first,
            Err(error) => {
                log::warn!("{error}");
                return;
            }
        };
        // A record of a generation that was swept is covered by its counts.
        if self.epochs.is_swept(first.epoch) || self.writer.is_over() {
            return;
        }
        self.epochs.is_of(&first.key, share);
        let bytes = first.dropped.bytes;
        self.begin(first.dropped, Some((first.key, first.epoch, bytes)), share);
    }

    /// Has what was counted in a generation beyond the first packets wait for its turn; returns how many keys there were.
    fn sweep(&mut self, epoch: u32) -> u64 {
        let (beyond, found, error) = self.epochs.sweep(epoch);
        if let Some(error) = error {
            log::error!("{error:#}");
            self.degraded.push(Degraded {
                what: "counts".to_owned(),
                why: format!("{error:#}"),
                consequence: "some packets are counted late, and some may be missing from the sum".to_owned(),
            });
        }
        for counted in beyond {
            self.backlog.push(counted.3, Work::Beyond(Box::new(counted)));
        }
        found
    }

    fn beyond(&mut self, key: &DropKey, counted: &Counted, said: Option<Said>, share: Share, flags: &Flags) {
        if flags.hurry.load(Ordering::Relaxed) {
            self.writer.ledger.abandoned += counted.packets;
            return;
        }
        if self.writer.is_over() {
            self.writer.ledger.filtered += counted.packets;
            return;
        }
        let dropped = match said {
            // The sender may be known by now, and whether the packet was outbound.
            Some(Said::Attempt(Some(pattern))) if self.rooms.attribution.still_holds(&pattern.0, counted) => {
                self.again(*pattern, key, counted);
                return;
            }
            _ => match of_key(key, counted) {
                // A coarse key has no destination: neither its direction nor the filter can be decided.
                Ok(dropped)
                    if dropped.coarse
                        && ([Direction::Unrouted, Direction::Answer].contains(&dropped.direction)
                            || !self.writer.filter.in_kernel_wholly()) =>
                {
                    let elsewhere = self
                        .writer
                        .filter
                        .netns
                        .is_some_and(|wanted| dropped.netns != wanted && dropped.origin_netns != Some(wanted));
                    let into =
                        if elsewhere { &mut self.writer.ledger.filtered } else { &mut self.writer.ledger.undecided };
                    *into += counted.packets;
                    return;
                }
                Ok(dropped) => dropped,
                Err(error) => {
                    log::warn!("{error}");
                    self.writer.ledger.decode += counted.packets;
                    return;
                }
            },
        };
        self.begin(dropped, None, share);
    }

    /// Tells what was counted beyond a packet that was reported, in its words.
    fn again(&mut self, (pattern, share): (Attempt, Share), key: &DropKey, counted: &Counted) {
        let Rooms { attribution, explainer, incidents, tell, .. } = &mut self.rooms;
        let attempt = attribution.again(pattern, key, counted);
        let flags = (key.answer & answer::ERROR == 0).then_some(key.detail);
        if finding::begins(&attempt, flags) {
            let times = (counted.first_ns, counted.last_ns);
            incidents.again(&attempt, times, &mut Lookups { attribution, explainer, tell }, Instant::now());
        }
        self.tell(Box::new(attempt), share);
    }

    /// Tells of packets that were stopped.
    fn tell(&mut self, attempt: Box<Attempt>, share: Share) {
        self.documents.want(&attempt, share);
        let Self { writer, rooms, .. } = self;
        writer.packets(attempt, |attempt| rooms.incidents.count(attempt, share, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_hidden_behind_anothers_many() {
        let many: Vec<u32> = [7; 60].into_iter().chain([0, 9]).collect();
        let share = |uid: &u32| if *uid == 0 { Share::Host } else { Share::User(*uid) };
        let ordered: Vec<u32> = in_turn(&many, share).into_iter().copied().collect();
        assert_eq!((ordered.len(), &ordered[..3]), (62, &[0, 7, 9][..]));
    }
}

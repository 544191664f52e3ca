//! Lines for a person: one block a story, repeats in short, background folded into the closing lines.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io::{self, Write},
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use uuid::Uuid;

use super::{
    Sink,
    groups::Groups,
    live::{Live, MAX_ROWS},
    repeats::{Repeats, Row},
    top::Top,
};
use crate::{
    incident::{self, Snapshot},
    model::{Attempt, Background, Coverage, Kind, Line, RulesetChange},
    render::{
        screen::Screen,
        text::{self, Again, Text},
    },
};

/// What is reported in place is reported at most this often.
const REDRAW: Duration = Duration::from_millis(200);
/// So often it is looked whether repeats have waited long enough.
const LOOK: Duration = Duration::from_millis(250);
/// Senders and destinations that are named at the end.
const MOST: usize = 3;
/// Of changes in a row the last one is shown, which says what they made: it is waited for this long.
const BURST: Duration = Duration::from_secs(2);
/// Fixes that are remembered, not to be shown twice.
const MAX_FIXES: usize = 64;
/// Stories whose ends are shown.
const MAX_ENDED: usize = 4096;
/// Hanging connections that are shown.
const MAX_HANGING: usize = 20;

/// Writes to `W`, which strips styles where there is no terminal.
pub struct Terminal<W> {
    writer: Screen<W>,
    text: Text,
    repeats: Repeats,
    groups: Groups,
    /// The time of the last line.
    now: Timestamp,
    /// Stories that were reported.
    stories: u64,
    with_all: bool,
    background: BTreeMap<Background, u64>,
    /// Packets that full queues lost.
    dropped: u64,
    /// Repeats are reported in place, and the time when that was last done.
    live: Option<Live>,
    drawn: Option<Instant>,
    /// Packets that were blocked, by who sent them and where to.
    senders: Top,
    destinations: Top,
    /// Connections that hang and were shown, and those that were not; and when the last of these was reported.
    hanging: (usize, usize),
    hung: Option<Instant>,
    /// Commands of fixes that were shown, and whether they were tested.
    fixes: VecDeque<(Vec<String>, bool)>,
    /// Stories of which the end of a connection was shown.
    ended: HashSet<Uuid>,
    /// Stories that were shown to work again, and when: what was blocked before is counted late.
    works: HashMap<Uuid, Timestamp>,
    /// A change of rules that may not be the last one in a row.
    pending: Option<Pending>,
}

/// A change of rules that is to be shown.
struct Pending {
    at: Timestamp,
    change: Box<RulesetChange>,
    since: Instant,
}

impl<W: Write + Send> Terminal<W> {
    /// `with_all` shows background traffic and every destination like everything else; with `live` repeats are reported in place.
    pub fn new(writer: Screen<W>, zone: TimeZone, with_all: bool, live: Option<Live>) -> Self {
        Self {
            writer,
            text: Text::new(zone),
            repeats: Repeats::default(),
            groups: Groups::default(),
            now: Timestamp::UNIX_EPOCH,
            stories: 0,
            with_all,
            background: BTreeMap::new(),
            dropped: 0,
            live,
            drawn: None,
            senders: Top::default(),
            destinations: Top::default(),
            hanging: (0, 0),
            hung: None,
            fixes: VecDeque::new(),
            ended: HashSet::new(),
            works: HashMap::new(),
            pending: None,
        }
    }

    /// Takes away what is reported in place; it is drawn again below what is written now.
    fn make_room(&mut self) -> io::Result<()> {
        if let Some(live) = &mut self.live {
            live.erase(self.writer.unbroken())?;
            self.drawn = None;
        }
        Ok(())
    }

    fn stopped(&mut self, line: &Line, attempt: &Attempt, story: Option<Snapshot>) -> io::Result<()> {
        let is_lost = matches!(line.kind, Kind::Dropped(_));
        if is_lost {
            self.dropped += attempt.packets;
        }
        if !line.is_event(self.with_all) {
            if let Some(kind) = attempt.background.filter(|_| !is_lost) {
                *self.background.entry(kind).or_default() += attempt.packets;
            }
            return Ok(());
        }
        self.senders.add(&text::name(&attempt.sender), attempt.packets);
        self.destinations.add(&attempt.to(), attempt.packets);
        let is_late = |of: &Snapshot| self.works.get(&of.story).is_some_and(|works| attempt.end <= *works);
        if story.as_ref().is_some_and(is_late) {
            return Ok(());
        }
        let now = Instant::now();
        let folded = story.filter(|_| !self.with_all && !is_lost).and_then(|of| self.groups.fold(attempt, of.story));
        if let Some((story, folded)) = story.zip(folded) {
            self.stories += u64::from(folded.is_new);
            self.repeats.fold(attempt, story, (folded.group, folded.destinations), now);
        } else if story.is_none_or(|story| self.repeats.take(attempt, story, now)) {
            self.stories += 1;
            self.make_room()?;
            self.text.block(&mut self.writer, attempt, is_lost)?;
        }
        Ok(())
    }

    /// News of what is not shown whole is not shown either.
    fn is_folded(&self, attempt: &Attempt) -> bool {
        self.groups.is_folded(incident::story(attempt))
    }

    fn hangs(&mut self, attempt: &Attempt) -> io::Result<()> {
        if self.hanging.0 >= MAX_HANGING {
            self.hanging.1 += 1;
            self.hung = Some(Instant::now());
            return Ok(());
        }
        self.hanging.0 += 1;
        text::hanging(&mut self.writer, attempt)
    }

    /// Says how many more hang than were shown, once.
    fn more_hang(&mut self) -> io::Result<()> {
        self.hung = None;
        let more = std::mem::take(&mut self.hanging.1);
        if more > 0 { text::more_hang(&mut self.writer, more) } else { Ok(()) }
    }

    /// Of several changes in a row the last one says what they made.
    fn change(&mut self, at: Timestamp, change: &RulesetChange) -> io::Result<()> {
        let is_anothers = |pending: &Pending| {
            let of = |change: &RulesetChange| (change.netns, change.sender.author());
            of(&pending.change) != of(change)
        };
        if self.pending.as_ref().is_some_and(is_anothers) {
            self.tell_change()?;
        }
        self.pending = Some(Pending { at, change: Box::new(change.clone()), since: Instant::now() });
        if change.ruleset.difference.is_some() { self.tell_change() } else { Ok(()) }
    }

    /// Shows the change that waits.
    fn tell_change(&mut self) -> io::Result<()> {
        let Some(Pending { at, change, .. }) = self.pending.take() else { return Ok(()) };
        self.make_room()?;
        self.text.change(&mut self.writer, at, &change)
    }

    /// In place it has the time of its last packet, and as a line of its own that of the line before it.
    fn row(&self, row: &Row, is_line: bool, width: Option<usize>) -> String {
        let at = if is_line { self.now } else { row.last };
        let Row { who, others, to, packets, first, last, by, .. } = row;
        let again = Again {
            at,
            who,
            others: *others,
            to,
            packets: *packets,
            over: last.duration_since(*first),
            last: *last,
            by: by.as_deref(),
        };
        self.text.again(&again, width)
    }

    fn tell_repeats(&mut self, all: bool) -> io::Result<()> {
        for row in self.repeats.due(Instant::now(), all) {
            let row = self.row(&row, true, None);
            writeln!(self.writer, "{row}")?;
        }
        Ok(())
    }

    /// Repeats in place, when something changed and the last time was long enough ago.
    fn redraw(&mut self) -> io::Result<()> {
        let changed = self.drawn.is_none() || self.repeats.are_waiting();
        if !changed || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return Ok(());
        }
        let width = self.writer.width();
        let standing = self.repeats.standing(MAX_ROWS);
        let rows: Vec<String> = standing.iter().map(|row| self.row(row, false, width)).collect();
        if let Some(live) = &mut self.live {
            live.draw(self.writer.unbroken(), &rows)?;
            self.drawn = Some(Instant::now());
        }
        Ok(())
    }
}

impl<W: Write + Send> Sink for Terminal<W> {
    fn take(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()> {
        self.now = self.now.max(line.at);
        if !matches!(line.kind, Kind::RulesetChanged(_)) {
            self.tell_change()?;
        }
        match &line.kind {
            Kind::Blocked(attempt) | Kind::Dropped(attempt) => self.stopped(line, attempt, story),
            Kind::Hanging(attempt) => self.hangs(attempt),
            Kind::Rule(attempt) => {
                if !self.with_all && (attempt.background.is_some() || self.is_folded(attempt)) {
                    return Ok(());
                }
                self.make_room()?;
                self.text.rule(&mut self.writer, line.at, attempt)
            }
            Kind::Fix(attempt, fix) => {
                // The same commands stand above already, for another destination or after another change.
                let known = (fix.commands.clone(), fix.verified);
                if !self.with_all && !fix.commands.is_empty() && self.fixes.contains(&known) {
                    return Ok(());
                }
                self.fixes.push_back(known);
                if self.fixes.len() > MAX_FIXES {
                    self.fixes.pop_front();
                }
                self.make_room()?;
                self.text.fix(&mut self.writer, line.at, attempt, fix)
            }
            Kind::Outcome(attempt, outcome) => {
                let story = story.map_or_else(|| incident::story(attempt), |of| of.story);
                if !self.with_all && (attempt.background.is_some() || self.groups.is_folded(story)) {
                    return Ok(());
                }
                if self.ended.len() >= MAX_ENDED {
                    self.ended.clear();
                }
                // Whoever tries every few seconds ends as often: once is enough until it works.
                if !self.ended.insert(story) && !self.with_all {
                    return Ok(());
                }
                self.make_room()?;
                self.text.outcome(&mut self.writer, attempt, *outcome)
            }
            Kind::Restored(attempt, restored) => {
                // What is blocked again is a block of its own, which may need its fix again.
                self.fixes.clear();
                let story = story.map_or_else(|| incident::story(attempt), |of| of.story);
                if self.works.len() >= MAX_ENDED {
                    self.works.clear();
                }
                self.works.insert(story, attempt.end);
                self.groups.forget(story);
                self.ended.remove(&story);
                self.make_room()?;
                if let Some(row) = self.repeats.forget(story) {
                    let row = self.row(&row, true, None);
                    writeln!(self.writer, "{row}")?;
                }
                self.text.restored(&mut self.writer, attempt, restored)
            }
            Kind::RulesetChanged(change) => self.change(line.at, change),
            Kind::Started(_) | Kind::Stopped | Kind::Summary(_) => Ok(()),
        }
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
        if self.pending.as_ref().is_some_and(|pending| pending.since.elapsed() > BURST) {
            self.tell_change()?;
        }
        // They are looked at one after the other, before anything else.
        let hang_all = self.hung.is_none_or(|hung| hung.elapsed() >= LOOK);
        if hang_all {
            self.more_hang()?;
        }
        if self.live.is_some() {
            self.redraw()?;
        } else {
            self.tell_repeats(false)?;
        }
        self.writer.flush()?;
        Ok((self.repeats.are_waiting() || !hang_all || self.pending.is_some()).then_some(LOOK))
    }

    fn finish(&mut self, _: &Line, coverage: &Coverage) -> io::Result<()> {
        self.more_hang()?;
        self.tell_change()?;
        // What was reported in place becomes lines that stay.
        if self.live.is_some() {
            self.make_room()?;
            for row in self.repeats.standing(usize::MAX).into_iter().rev() {
                let row = self.row(&row, true, None);
                writeln!(self.writer, "{row}")?;
            }
        }
        self.tell_repeats(true)?;
        // What there was most of, where that is not said by the only block above.
        for (label, top) in [("most from", &self.senders), ("most to", &self.destinations)] {
            if top.names() > 1 {
                text::most(&mut self.writer, label, top.most(MOST))?;
            }
        }
        if !self.background.is_empty() {
            text::folded(&mut self.writer, self.background.iter())?;
        }
        text::account(&mut self.writer, coverage, self.stories, self.dropped)?;
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Account, Cause, Restored, RestoredBy};

    fn line(kind: Kind) -> Line {
        Line { id: None, sequence: Some(1), at: Timestamp::UNIX_EPOCH, kind }
    }

    fn coverage() -> Coverage {
        let at = Timestamp::UNIX_EPOCH;
        Coverage { start: at, end: at, account: Account { seen: 9, reported: 9, ..Account::default() } }
    }

    fn told(lines: &[(Kind, Option<Snapshot>)], with_background: bool) -> String {
        let mut terminal = Terminal::new(Screen::new(Vec::new(), || None), TimeZone::UTC, with_background, None);
        for (kind, story) in lines {
            terminal.take(&line(kind.clone()), *story).unwrap();
        }
        let end = line(Kind::Summary(Box::new(coverage())));
        terminal.finish(&end, &coverage()).unwrap();
        let plain = anstream::adapter::strip_bytes(terminal.writer.unbroken()).into_vec();
        String::from_utf8(plain).unwrap()
    }

    fn blocked(packets: u64) -> (Kind, Option<Snapshot>) {
        (Kind::Blocked(Box::new(Attempt { packets, ..Attempt::example() })), Some(Snapshot::example(1)))
    }

    #[test]
    fn one_block_and_its_repeats() {
        let text = told(&[blocked(1), blocked(1), blocked(7)], false);
        assert_eq!(text.matches("BLOCKED").count(), 1);
        assert!(text.contains("00:00:00 again    curl[7] → 203.0.113.10:443/tcp  ×9\n"), "{text}");
        assert!(text.ends_with("9 packets blocked, 1 incident · lost 0\n"), "{text}");
    }

    #[test]
    fn a_block_after_it_works_is_shown_whole() {
        let restored =
            Restored { after_ms: 1, by: RestoredBy::Connection, last_blocked: Timestamp::UNIX_EPOCH, change: None };
        let at = Timestamp::UNIX_EPOCH + Duration::from_secs(5);
        let works = Attempt { end: at, ..Attempt::example() };
        let works = Kind::Restored(Box::new(works), Box::new(restored));
        let late = blocked(2);
        let again = Attempt { end: at + Duration::from_secs(1), ..Attempt::example() };
        let again = Kind::Blocked(Box::new(again));
        let story = Some(Snapshot::example(1));
        let text = told(&[blocked(1), blocked(3), (works, story), late, (again, story)], false);
        let words: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let shown: Vec<&&str> = words.iter().filter(|word| ["BLOCKED", "again", "WORKS"].contains(word)).collect();
        assert_eq!(shown, [&"BLOCKED", &"again", &"WORKS", &"BLOCKED"], "{text}");
        assert!(text.contains("×4") && text.contains("2 incidents"), "{text}");
    }

    #[test]
    fn background_is_folded_unless_it_is_asked_for() {
        let background = Attempt { background: Some(Background::Mdns), ..Attempt::example() };
        let lines = [(Kind::Blocked(Box::new(background)), Some(Snapshot::example(1)))];
        let text = told(&lines, false);
        assert!(!text.contains("BLOCKED") && text.contains("folded (--all shows): 1 packet: mDNS 1"), "{text}");
        assert!(told(&lines, true).contains("(mDNS)"));
    }

    #[test]
    fn a_block_after_background_of_the_same_story_is_told_whole() {
        let background = Attempt { background: Some(Background::InvalidState), ..Attempt::example() };
        let lines = [(Kind::Blocked(Box::new(background)), Some(Snapshot::example(1))), blocked(2)];
        let text = told(&lines, false);
        assert!(text.contains("BLOCKED") && !text.contains("again"), "{text}");
        assert!(text.contains("1 incident"), "{text}");
    }

    #[test]
    fn what_hangs_is_shown_up_to_a_number() {
        let hanging = (Kind::Hanging(Box::new(Attempt::example())), Some(Snapshot::example(1)));
        let text = told(&vec![hanging; MAX_HANGING + 5], false);
        assert_eq!(text.matches("HANGING NOW").count(), MAX_HANGING);
        assert_eq!(text.matches("5 more hang").count(), 1, "{text}");
    }

    #[test]
    fn a_full_queue_is_not_a_block() {
        let queue = Attempt { cause: Some(Cause::Queue), ..Attempt::example() };
        let lines = [(Kind::Dropped(Box::new(queue)), Some(Snapshot::example(1)))];
        let text = told(&lines, false);
        assert!(text.contains("not blocked: full queues lost 1 packet\n8 packets blocked"), "{text}");
        assert!(told(&lines, true).contains("LOST"));
    }
}

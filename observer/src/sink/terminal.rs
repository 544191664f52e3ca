//! Lines for a person: one block a story, repeats in short, background folded into the closing lines.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;

use super::{
    Sink,
    live::{Live, MAX_ROWS},
    repeats::{Repeats, Row},
    top::Top,
};
use crate::{
    incident::Snapshot,
    model::{Attempt, Background, Coverage, Difference, Kind, Line, RulesetChange},
    render::text::{self, Text},
};

/// What is told in place is told at most this often.
const REDRAW: Duration = Duration::from_millis(200);
/// So often it is looked whether repeats have waited long enough.
const LOOK: Duration = Duration::from_millis(250);
/// Senders and destinations that are named at the end.
const MOST: usize = 3;
/// Changes of rules by the same program within this time are told as one.
const BURST: Duration = Duration::from_secs(1);
/// Hanging connections that are shown.
const MAX_HANGING: usize = 20;

/// Writes to `W`, which strips styles where there is no terminal.
pub struct Terminal<W> {
    writer: W,
    text: Text,
    repeats: Repeats,
    /// Stories that were told.
    stories: u64,
    with_background: bool,
    background: BTreeMap<Background, u64>,
    /// Packets that full queues lost.
    dropped: u64,
    /// Repeats are told in place, and the time when that was last done.
    live: Option<Live>,
    drawn: Option<Instant>,
    /// Packets that were blocked, by who sent them and where to.
    senders: Top,
    destinations: Top,
    /// Connections that hang and were shown, and those that were not; and when the last of these was told.
    hanging: (usize, usize),
    hung: Option<Instant>,
    /// Parent of who changed rules last, and when that was.
    changed: Option<(Option<u32>, Instant)>,
}

impl<W: Write + Send> Terminal<W> {
    /// `with_background` shows what nobody waits for like everything else; with `live` repeats are told in place.
    pub fn new(writer: W, zone: TimeZone, with_background: bool, live: Option<Live>) -> Self {
        Self {
            writer,
            text: Text::new(zone),
            repeats: Repeats::default(),
            stories: 0,
            with_background,
            background: BTreeMap::new(),
            dropped: 0,
            live,
            drawn: None,
            senders: Top::default(),
            destinations: Top::default(),
            hanging: (0, 0),
            hung: None,
            changed: None,
        }
    }

    /// Takes away what is told in place; it is drawn again below what is written now.
    fn make_room(&mut self) -> io::Result<()> {
        if let Some(live) = &mut self.live {
            live.erase(&mut self.writer)?;
            self.drawn = None;
        }
        Ok(())
    }

    fn stopped(&mut self, line: &Line, attempt: &Attempt, story: Option<Snapshot>) -> io::Result<()> {
        let is_lost = matches!(line.kind, Kind::Dropped(_));
        if is_lost {
            self.dropped += attempt.packets;
        }
        if !line.is_event(self.with_background) {
            if let Some(kind) = attempt.background.filter(|_| !is_lost) {
                *self.background.entry(kind).or_default() += attempt.packets;
            }
            return Ok(());
        }
        self.senders.add(&text::name(&attempt.sender), attempt.packets);
        self.destinations.add(&attempt.to(), attempt.packets);
        if story.is_none_or(|story| self.repeats.take(attempt, story, Instant::now())) {
            self.stories += 1;
            self.make_room()?;
            self.text.block(&mut self.writer, attempt, is_lost)?;
        }
        Ok(())
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

    fn change(&mut self, line: &Line, change: &RulesetChange) -> io::Result<()> {
        // A program that makes many changes, or has others make them as ufw does, is told once, and then what came of them.
        let by = change.sender.ancestry.get(1).map(|parent| parent.pid);
        let again = self.changed.as_ref().is_some_and(|(before, when)| *before == by && when.elapsed() < BURST);
        self.changed = Some((by, Instant::now()));
        let is_news = change.ruleset.difference.as_ref().is_some_and(Difference::is_any);
        if again && !is_news {
            return Ok(());
        }
        self.make_room()?;
        self.text.change(&mut self.writer, line.at, change)
    }

    fn row(&self, Row { who, others, to, packets, last }: &Row) -> String {
        self.text.again(*last, (who, *others), to, *packets)
    }

    fn tell_repeats(&mut self, all: bool) -> io::Result<()> {
        for row in self.repeats.due(Instant::now(), all) {
            writeln!(self.writer, "{}", self.row(&row))?;
        }
        Ok(())
    }

    /// Repeats in place, when something changed and the last time was long enough ago.
    fn redraw(&mut self) -> io::Result<()> {
        let changed = self.drawn.is_none() || self.repeats.are_waiting();
        if !changed || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return Ok(());
        }
        let rows: Vec<String> = self.repeats.standing(MAX_ROWS).iter().map(|row| self.row(row)).collect();
        if let Some(live) = &mut self.live {
            live.draw(&mut self.writer, &rows)?;
            self.drawn = Some(Instant::now());
        }
        Ok(())
    }
}

impl<W: Write + Send> Sink for Terminal<W> {
    fn take(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()> {
        match &line.kind {
            Kind::Blocked(attempt) | Kind::Dropped(attempt) => self.stopped(line, attempt, story),
            Kind::Hanging(attempt) => self.hangs(attempt),
            Kind::Rule(attempt) => {
                if attempt.background.is_some() && !self.with_background {
                    return Ok(());
                }
                self.make_room()?;
                self.text.rule(&mut self.writer, line.at, attempt)
            }
            Kind::Fix(attempt, fix) => {
                self.make_room()?;
                self.text.fix(&mut self.writer, line.at, attempt, fix)
            }
            Kind::Restored(attempt, restored) => {
                self.make_room()?;
                self.text.restored(&mut self.writer, attempt, restored)
            }
            Kind::RulesetChanged(change) => self.change(line, change),
            Kind::Summary(_) => Ok(()),
        }
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
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
        Ok((self.repeats.are_waiting() || !hang_all).then_some(LOOK))
    }

    fn finish(&mut self, _: &Line, coverage: &Coverage) -> io::Result<()> {
        self.more_hang()?;
        // What was told in place becomes lines that stay.
        if self.live.is_some() {
            self.make_room()?;
            for row in self.repeats.standing(usize::MAX).into_iter().rev() {
                writeln!(self.writer, "{}", self.row(&row))?;
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
    use crate::model::{Account, Cause};

    fn line(kind: Kind) -> Line {
        Line { id: None, sequence: Some(1), at: jiff::Timestamp::UNIX_EPOCH, kind }
    }

    fn coverage() -> Coverage {
        let at = jiff::Timestamp::UNIX_EPOCH;
        Coverage { start: at, end: at, account: Account { seen: 9, reported: 9, ..Account::default() } }
    }

    fn told(lines: &[(Kind, Option<Snapshot>)], with_background: bool) -> String {
        let mut terminal = Terminal::new(Vec::new(), TimeZone::UTC, with_background, None);
        for (kind, story) in lines {
            terminal.take(&line(kind.clone()), *story).unwrap();
        }
        let end = line(Kind::Summary(Box::new(coverage())));
        terminal.finish(&end, &coverage()).unwrap();
        let plain = anstream::adapter::strip_bytes(&terminal.writer).into_vec();
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
        assert_eq!(text.matches("and 5 more hang").count(), 1, "{text}");
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

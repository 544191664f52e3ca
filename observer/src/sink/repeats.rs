//! Repeats of what a terminal has shown: counted, and told now and then.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{incident::Snapshot, model::Attempt};

/// Repeats of a story are reported at most this often.
const QUIET: Duration = Duration::from_secs(5);
/// Stories whose repeats are reported; of more, those that have nothing to tell are forgotten first.
const MAX_STORIES: usize = 4096;

/// A story as a terminal has shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The last sender.
    pub(super) who: String,
    /// How many other processes there were, and whether there may be more.
    pub(super) others: (usize, bool),
    /// Where to, or how many destinations.
    pub(super) to: String,
    /// Packets that were shown.
    pub(super) packets: u64,
    /// The first one.
    pub(super) first: Timestamp,
    /// The last one.
    pub(super) last: Timestamp,
    /// Whose they are: a user's id.
    pub(super) user: Option<u32>,
    /// What stopped them, where these are destinations of which none is shown whole.
    pub(super) by: Option<String>,
}

struct Shown {
    row: Row,
    when: Instant,
    /// More has happened since it was reported.
    is_due: bool,
    is_repeated: bool,
    /// It is shown in place, and not in a line of its own.
    is_in_place: bool,
}

/// All of them, by the ids of their stories.
#[derive(Default)]
pub(super) struct Repeats(HashMap<Uuid, Shown>);

impl Repeats {
    /// Takes in what is shown; true when it is to be reported whole, because its story was not told yet.
    pub(super) fn take(&mut self, attempt: &Attempt, story: Snapshot, now: Instant) -> bool {
        self.add(story.story, row(attempt, story), now)
    }

    /// Takes in what is not shown whole, as one of so many destinations of a group.
    pub(super) fn fold(
        &mut self,
        attempt: &Attempt,
        story: Snapshot,
        (group, destinations): (Uuid, usize),
        now: Instant,
    ) {
        let more = if destinations == 1 {
            "1 more destination".to_owned()
        } else {
            format!("{destinations} more destinations")
        };
        let row = Row { to: more, by: attempt.finding.clone(), ..row(attempt, story) };
        if self.add(group, row, now)
            && let Some(told) = self.0.get_mut(&group)
        {
            (told.is_due, told.is_repeated) = (true, true);
        }
    }

    /// True where it is new.
    fn add(&mut self, id: Uuid, mut row: Row, now: Instant) -> bool {
        if let Some(told) = self.0.get_mut(&id) {
            row.packets += told.row.packets;
            row.first = row.first.min(told.row.first);
            told.row = row;
            (told.is_due, told.is_repeated) = (true, true);
            return false;
        }
        if self.0.len() >= MAX_STORIES {
            let eldest = self.0.iter().min_by_key(|(_, told)| (told.is_due, told.row.last)).map(|(id, _)| *id);
            eldest.map(|eldest| self.0.remove(&eldest));
        }
        self.0.insert(id, Shown { row, when: now, is_due: false, is_repeated: false, is_in_place: false });
        true
    }

    /// The story is over: what comes is another one. Its repeats, where any were not reported for good.
    pub(super) fn forget(&mut self, story: Uuid) -> Option<Row> {
        self.0.remove(&story).filter(|told| told.is_repeated && (told.is_due || told.is_in_place)).map(|told| told.row)
    }

    /// Repeats that have waited long enough; all of them at the end.
    pub(super) fn due(&mut self, now: Instant, all: bool) -> Vec<Row> {
        let is_due = |told: &&mut Shown| told.is_due && (all || now.duration_since(told.when) >= QUIET);
        let due = self.0.values_mut().filter(is_due);
        let mut due: Vec<Row> = due
            .map(|told| {
                (told.is_due, told.when) = (false, now);
                told.row.clone()
            })
            .collect();
        due.sort_by_key(|row| row.last);
        due
    }

    /// All stories that had repeats, as they stand, the last one first; those that are shown in place count as told.
    pub(super) fn standing(&mut self, number: usize) -> Vec<Row> {
        let repeated = self.0.values_mut().filter(|told| told.is_repeated);
        let mut standing: Vec<Row> = repeated
            .map(|told| {
                (told.is_due, told.is_in_place) = (false, true);
                told.row.clone()
            })
            .collect();
        standing.sort_by_key(|row| std::cmp::Reverse(row.last));
        if standing.len() > number {
            // Those of each user in turn: nobody's many push another's off the screen.
            let mut turns: HashMap<Option<u32>, usize> = HashMap::new();
            let mut turn = |row: &Row| {
                let turn = turns.entry(row.user).or_default();
                *turn += 1;
                *turn
            };
            let mut ordered: Vec<(usize, Row)> = standing.into_iter().map(|row| (turn(&row), row)).collect();
            ordered.sort_by_key(|(turn, row)| (*turn, row.user != Some(0)));
            standing = ordered.into_iter().take(number).map(|(_, row)| row).collect();
            standing.sort_by_key(|row| std::cmp::Reverse(row.last));
        }
        standing
    }

    /// Repeats are still to be reported.
    pub(super) fn are_waiting(&self) -> bool {
        self.0.values().any(|told| told.is_due)
    }
}

fn row(attempt: &Attempt, story: Snapshot) -> Row {
    Row {
        who: attempt.sender.words(),
        others: (story.others, story.are_more),
        to: attempt.to(),
        packets: attempt.packets,
        first: attempt.start,
        last: attempt.end,
        user: attempt.sender.user.as_ref().map(|user| user.id),
        by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(repeats: &mut Repeats, story: u128, packets: u64, now: Instant) -> bool {
        repeats.take(&Attempt { packets, ..Attempt::example() }, Snapshot::example(story), now)
    }

    #[test]
    fn the_first_is_told_whole_and_what_follows_is_counted() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        assert!(take(&mut repeats, 1, 1, now));
        assert!(repeats.due(now + QUIET, false).is_empty(), "nothing came since");
        assert!(!take(&mut repeats, 1, 1, now) && !take(&mut repeats, 1, 3, now));
        assert!(repeats.are_waiting());
        assert!(repeats.due(now, false).is_empty(), "it was told a moment ago");
        let due = repeats.due(now + QUIET, false);
        assert_eq!(due.iter().map(|row| row.packets).collect::<Vec<_>>(), [5]);
        assert!(repeats.due(now + 2 * QUIET, true).is_empty(), "told once");
        assert!(!repeats.are_waiting());
    }

    #[test]
    fn at_the_end_everything_is_told() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        for story in 1..=3 {
            take(&mut repeats, story, 1, now);
            take(&mut repeats, story, 1, now);
        }
        assert_eq!(repeats.due(now, true).len(), 3);
        assert_eq!(repeats.standing(2).len(), 2);
    }

    #[test]
    fn nobodys_many_push_anothers_off_the_screen() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        let user = |id| Some(crate::model::User { id, name: None, effective: None });
        let mut all: Vec<(u128, u32)> = vec![(1, 0)];
        all.extend((2..20).map(|story| (story, 1000)));
        for (story, id) in all {
            let mut attempt =
                Attempt { end: Timestamp::from_second(i64::try_from(story).unwrap()).unwrap(), ..Attempt::example() };
            attempt.sender.user = user(id);
            for _ in 0..2 {
                repeats.take(&attempt, Snapshot::example(story), now);
            }
        }
        let shown = repeats.standing(8);
        assert_eq!((shown.len(), shown.iter().filter(|row| row.user == Some(0)).count()), (8, 1));
    }

    #[test]
    fn there_is_always_room() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        take(&mut repeats, 0, 1, now);
        take(&mut repeats, 0, 1, now);
        for story in 1..2 * MAX_STORIES as u128 {
            assert!(take(&mut repeats, story, 1, now));
        }
        assert_eq!(repeats.0.len(), MAX_STORIES);
        assert!(!take(&mut repeats, 0, 1, now), "what has something to tell is kept");
    }
}

//! Lines and texts that wait for the store, and the count of those that found no room.

use std::collections::VecDeque;

use crate::{
    model::Document,
    store::{
        channel::{Progress, Reply},
        entry::Entry,
        write::Gap,
    },
};

/// Lines that are stored together at most.
pub(super) const BATCH: usize = 2000;
/// Lines that wait where nothing can be stored, and their bytes.
const MAX_LINES: usize = 50_000;
const MAX_BYTES: usize = 32 << 20;
/// Bytes of rulesets that wait.
const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// What waits for the store, in the order in which it came.
#[derive(Default)]
pub(super) struct Waiting {
    lines: VecDeque<Entry>,
    /// The number of each of them: lines between them may be lost.
    numbers: VecDeque<u64>,
    bytes: usize,
    documents: Vec<Document>,
    /// Lines that were handed over.
    taken: u64,
    stored: u64,
    /// What is missing since the store last noted it. Its reason is not known yet.
    gap: Option<Gap>,
    pub(super) lost_lines: u64,
    pub(super) lost_packets: u64,
    /// The first number and the count of lines lost in a row, since they were last told.
    newly_lost: Vec<(u64, u64)>,
}

impl Waiting {
    /// Takes a line, or counts it where there is no room.
    pub(super) fn take(&mut self, entry: Entry) {
        let bytes = weight(&entry);
        self.taken += 1;
        if self.lines.len() >= MAX_LINES || self.bytes + bytes > MAX_BYTES {
            self.lose(self.taken - 1, &entry);
            return;
        }
        self.bytes += bytes;
        self.lines.push_back(entry);
        self.numbers.push_back(self.taken - 1);
    }

    /// Takes what lines refer to, or notes that it is missing.
    pub(super) fn keep(&mut self, document: Document, now_ns: i64) {
        let waiting: usize = self.documents.iter().map(|document| document.packed.len()).sum();
        if waiting + document.packed.len() <= MAX_DOCUMENT_BYTES {
            self.documents.push(document);
        } else {
            self.gap.get_or_insert_with(|| nothing_at(now_ns));
        }
    }

    /// Lines, texts or a count of losses wait.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.documents.is_empty() && self.gap.is_none()
    }

    /// Lines that wait.
    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Lines were handed over since the start.
    pub(super) fn had_lines(&self) -> bool {
        self.taken > 0
    }

    /// The next lines to store, and all texts.
    pub(super) fn batch(&mut self) -> (&[Entry], &[Document]) {
        let count = self.lines.len().min(BATCH);
        (&self.lines.make_contiguous()[..count], &self.documents)
    }

    /// What is missing, and why: `failing`, or because it came too fast.
    pub(super) fn gap(&self, failing: Option<&str>) -> Option<Gap> {
        let gap = self.gap.as_ref()?;
        let why = match failing {
            Some(why) => why,
            None if gap.lines == 0 => "a ruleset was not stored: the queue was full",
            None => "the store was too slow",
        };
        Some(Gap { why: why.to_owned(), ..gap.clone() })
    }

    /// What [`Self::batch`] and [`Self::gap`] gave is in the store.
    pub(super) fn is_stored(&mut self) {
        let count = self.lines.len().min(BATCH);
        self.numbers.drain(..count);
        let bytes: usize = self.lines.drain(..count).map(|entry| weight(&entry)).sum();
        self.bytes -= bytes;
        self.stored += count as u64;
        self.documents.clear();
        self.gap = None;
    }

    /// Counts all lines that wait as lost.
    pub(super) fn lose_all(&mut self) {
        for (number, entry) in std::mem::take(&mut self.numbers).into_iter().zip(std::mem::take(&mut self.lines)) {
            self.lose(number, &entry);
        }
        self.bytes = 0;
    }

    /// Counts one line as lost. What was lost is told in order, also where it waited behind others that were lost before.
    fn lose(&mut self, number: u64, entry: &Entry) {
        (self.lost_lines, self.lost_packets) = (self.lost_lines + 1, self.lost_packets + entry.packets);
        match self.newly_lost.last_mut() {
            Some((first, lines)) if *first + *lines == number => *lines += 1,
            _ => self.newly_lost.push((number, 1)),
        }
        let gap = self.gap.get_or_insert_with(|| nothing_at(entry.at_ns));
        (gap.lines, gap.packets) = (gap.lines + 1, gap.packets + entry.packets);
        (gap.from_ns, gap.until_ns) = (gap.from_ns.min(entry.at_ns), gap.until_ns.max(entry.at_ns));
    }

    /// How far it is, with what was lost since the last answer.
    pub(super) fn progress(&mut self) -> Reply {
        self.newly_lost.sort_unstable();
        Reply::Stored(Progress {
            stored: self.stored,
            lost: self.lost_lines,
            lost_packets: self.lost_packets,
            newly_lost: std::mem::take(&mut self.newly_lost),
        })
    }
}

fn nothing_at(at_ns: i64) -> Gap {
    Gap { from_ns: at_ns, until_ns: at_ns, lines: 0, packets: 0, why: String::new() }
}

/// Bytes that a line takes in memory, about.
fn weight(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.body.len() + entry.who.as_ref().map_or(0, |who| who.body.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::lab::packet;

    #[test]
    fn lines_that_are_lost_keep_their_numbers() {
        let mut waiting = Waiting::default();
        let entry = packet(1, 0, 0);
        while waiting.lost_lines == 0 {
            waiting.take(entry.clone());
        }
        let full = waiting.taken - 1;
        let lost = |waiting: &mut Waiting| match waiting.progress() {
            Reply::Stored(progress) => progress.newly_lost,
            other => panic!("{other:?}"),
        };
        assert_eq!(lost(&mut waiting), [(full, 1)]);
        waiting.is_stored();
        waiting.take(entry.clone());
        waiting.take(entry);
        waiting.lose_all();
        let batch = BATCH as u64;
        assert_eq!(lost(&mut waiting), [(batch, full - batch), (full + 1, 2)]);
        assert_eq!((waiting.lost_lines, waiting.lost_packets), (full + 3 - batch, 2 * (full + 3 - batch)));
    }
}

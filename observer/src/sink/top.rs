//! Who and where most of it was: counts by name, within bounds.

use std::collections::HashMap;

/// Names that are counted one by one.
const MAX_NAMES: usize = 4096;

/// Packets by name.
#[derive(Debug, Default)]
pub struct Top {
    counts: HashMap<String, u64>,
    others: u64,
}

impl Top {
    /// Adds packets to a name; a name for which there is no room is counted with the others.
    pub fn add(&mut self, name: &str, packets: u64) {
        if let Some(count) = self.counts.get_mut(name) {
            *count += packets;
        } else if self.counts.len() < MAX_NAMES {
            self.counts.insert(name.to_owned(), packets);
        } else {
            self.others += packets;
        }
    }

    /// How many names were counted.
    pub fn names(&self) -> usize {
        self.counts.len()
    }

    /// The names with most packets, most first, and the packets of all others.
    pub fn most(&self, number: usize) -> (Vec<(&str, u64)>, u64) {
        let mut all: Vec<(&str, u64)> = self.counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        all.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        let rest = all.iter().skip(number).map(|(_, count)| count).sum::<u64>() + self.others;
        all.truncate(number);
        (all, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_first_and_nothing_is_lost() {
        let mut top = Top::default();
        for (name, packets) in [("curl", 3), ("apt", 5), ("curl", 1), ("ping", 2)] {
            top.add(name, packets);
        }
        assert_eq!(top.most(2), (vec![("apt", 5), ("curl", 4)], 2));
        for number in 0..2 * MAX_NAMES {
            top.add(&number.to_string(), 1);
        }
        let (most, rest) = top.most(1);
        assert_eq!((most, rest), (vec![("apt", 5)], 6 + 2 * MAX_NAMES as u64));
        assert_eq!(top.names(), MAX_NAMES);
    }
}

//! Many destinations that the same program is denied by the same rule: a few are shown whole, the rest as one line.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use uuid::Uuid;

use crate::{model::Attempt, render::text};

/// Stories of a group that are shown whole.
const WHOLE: usize = 3;
/// Groups that are remembered; of more, all are begun anew.
const MAX_GROUPS: usize = 1024;
/// Destinations of a group that are counted.
const MAX_DESTINATIONS: usize = 4096;
/// Stories that are not shown whole and are remembered.
const MAX_MEMBERS: usize = 20_000;
/// Name space of groups' ids.
const GROUPS: Uuid = Uuid::from_u128(0x6f62_7365_7276_6572_2067_726f_7570_2069);

#[derive(Default)]
struct Group {
    shown: HashSet<Uuid>,
    /// Hashes of where to.
    destinations: HashSet<u64>,
}

/// All of them, by their ids.
#[derive(Default)]
pub(super) struct Groups {
    all: HashMap<Uuid, Group>,
    /// Stories that are not shown whole.
    folded: HashSet<Uuid>,
}

/// A story that is not shown whole.
pub(super) struct Folded {
    /// Its group, under which it is counted.
    pub(super) group: Uuid,
    /// Destinations of the group that are not shown whole.
    pub(super) destinations: usize,
    /// The story was not known before.
    pub(super) is_new: bool,
}

impl Groups {
    /// Where a story belongs; `None` where it is shown whole.
    pub(super) fn fold(&mut self, attempt: &Attempt, story: Uuid) -> Option<Folded> {
        let id = group(attempt);
        if self.all.len() >= MAX_GROUPS && !self.all.contains_key(&id) {
            self.all.clear();
        }
        if self.folded.len() >= MAX_MEMBERS {
            self.folded.clear();
        }
        let group = self.all.entry(id).or_default();
        let was_folded = self.folded.contains(&story);
        if !was_folded && (group.shown.len() < WHOLE || group.shown.contains(&story)) {
            group.shown.insert(story);
            return None;
        }
        let is_new = self.folded.insert(story);
        if group.destinations.len() < MAX_DESTINATIONS {
            let mut hasher = DefaultHasher::new();
            attempt.to().hash(&mut hasher);
            group.destinations.insert(hasher.finish());
        }
        Some(Folded { group: id, destinations: group.destinations.len(), is_new })
    }

    /// A story is over: what comes is another one, and shown whole.
    pub(super) fn forget(&mut self, story: Uuid) {
        self.folded.remove(&story);
        for group in self.all.values_mut() {
            group.shown.remove(&story);
        }
    }

    /// A story is not shown whole, so that its follow-ups are not either.
    pub(super) fn is_folded(&self, story: Uuid) -> bool {
        self.folded.contains(&story)
    }
}

/// The same program, user and namespace, stopped by the same statement.
fn group(attempt: &Attempt) -> Uuid {
    let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    let user = number(attempt.sender.user.as_ref().map(|user| user.id));
    let by = attempt.rule_name.as_ref().map(|name| name.id.to_string()).or_else(|| attempt.finding.clone());
    let parts = [text::name(&attempt.sender), user, number(attempt.netns), by.unwrap_or_default()];
    Uuid::new_v5(&GROUPS, parts.join("\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Sender;

    #[test]
    fn a_few_are_shown_and_the_rest_is_counted() {
        let mut groups = Groups::default();
        let story = |number: u128| Uuid::from_u128(number);
        let to = |last: u8| {
            let mut attempt = Attempt::example();
            if let Some(end) = &mut attempt.destination {
                end.ip = [203, 0, 113, last].into();
            }
            attempt
        };
        let folded: Vec<bool> =
            (1..=5).map(|number| groups.fold(&to(number), story(number.into())).is_some()).collect();
        assert_eq!(folded, [false, false, false, true, true]);
        assert!(groups.is_folded(story(4)) && !groups.is_folded(story(3)));
        assert!(groups.fold(&to(3), story(3)).is_none(), "it was shown");
        assert_eq!(groups.fold(&to(4), story(4)).map(|folded| folded.destinations), Some(2));
        let other = Attempt { sender: Sender::example("/usr/bin/wget", 9), ..to(1) };
        assert!(groups.fold(&other, story(9)).is_none(), "another program");
    }
}

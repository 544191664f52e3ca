//! Folds repeats: the first event of an incident is told at once, what follows is counted and told now and then.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::model::Event;

/// Repeats of an incident are told at most this often.
const QUIET: Duration = Duration::from_secs(5);
/// Incidents remembered; beyond, the ones that were quiet longest are forgotten and would be told as new.
const MAX_INCIDENTS: usize = 4096;

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The first of its incident: tell it whole.
    New,
    /// Counted; it will be told later.
    Folded,
}

/// Repeats that are due.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeats {
    /// In short, who and where to; made by whoever told the first one.
    pub title: String,
    /// Packets since the incident began.
    pub count: u64,
    /// The last one.
    pub last: Timestamp,
}

struct Incident {
    title: String,
    count: u64,
    untold: u64,
    last: Timestamp,
    told: Instant,
}

/// All incidents of a run.
#[derive(Default)]
pub struct Fold {
    incidents: HashMap<Uuid, Incident>,
    /// How many different ones there were.
    pub total: u64,
}

impl Fold {
    /// Takes an event in. `title` is called for the first of an incident.
    pub fn take(&mut self, event: &Event, now: Instant, title: impl FnOnce() -> String) -> Told {
        if let Some(incident) = self.incidents.get_mut(&event.egress.incident) {
            incident.count += event.egress.count;
            incident.untold += event.egress.count;
            incident.last = event.event.end;
            return Told::Folded;
        }
        self.total += 1;
        if self.incidents.len() >= MAX_INCIDENTS {
            self.forget_quietest();
        }
        let incident =
            Incident { title: title(), count: event.egress.count, untold: 0, last: event.event.end, told: now };
        self.incidents.insert(event.egress.incident, incident);
        Told::New
    }

    /// Repeats that have waited long enough; all of them at the end.
    pub fn due(&mut self, now: Instant, all: bool) -> Vec<Repeats> {
        let mut due: Vec<Repeats> = self
            .incidents
            .values_mut()
            .filter(|incident| incident.untold > 0 && (all || now.duration_since(incident.told) >= QUIET))
            .map(|incident| {
                incident.untold = 0;
                incident.told = now;
                Repeats { title: incident.title.clone(), count: incident.count, last: incident.last }
            })
            .collect();
        due.sort_by_key(|repeats| repeats.last);
        due
    }

    /// Repeats are still to be told.
    pub fn waiting(&self) -> bool {
        self.incidents.values().any(|incident| incident.untold > 0)
    }

    fn forget_quietest(&mut self) {
        let quietest = self
            .incidents
            .iter()
            .filter(|(_, incident)| incident.untold == 0)
            .min_by_key(|(_, incident)| incident.last);
        let quietest = quietest.or_else(|| self.incidents.iter().min_by_key(|(_, incident)| incident.last));
        if let Some(id) = quietest.map(|(id, _)| *id) {
            self.incidents.remove(&id);
        }
    }
}

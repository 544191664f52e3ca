//! Folds repeats: the first event of an incident is told at once, what follows is counted and told now and then.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::model::{Event, OwnerKnown};

/// Repeats of an incident are told at most this often.
const QUIET: Duration = Duration::from_secs(5);
/// Incidents remembered; beyond, the ones that were quiet longest are forgotten and would be told as new.
const MAX_INCIDENTS: usize = 4096;
/// Processes of one incident that are counted.
const MAX_PIDS: usize = 10_000;

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
    /// The last process, as `name[pid]`, or what is known instead.
    pub who: String,
    /// How many other processes there were.
    pub others: usize,
    /// Where to; made by whoever told the first one.
    pub to: String,
    /// Packets since the incident began.
    pub count: u64,
    /// The last one.
    pub last: Timestamp,
}

/// What a person takes for one thing: the incident, and who it happened to. Another user, container or namespace is another
/// story even where the cause is the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    incident: Uuid,
    user: Option<String>,
    place: Option<String>,
    netns: Option<u32>,
}

impl Key {
    fn of(event: &Event) -> Self {
        Self {
            incident: event.egress.incident,
            user: event.user.as_ref().map(|user| user.id.clone()),
            place: event.container.as_ref().map(|container| container.id.clone()).or_else(|| event.egress.unit.clone()),
            netns: event.egress.netns,
        }
    }
}

struct Incident {
    who: String,
    pids: HashSet<u32>,
    to: String,
    count: u64,
    untold: u64,
    /// It happened more than once.
    repeated: bool,
    last: Timestamp,
    told: Instant,
}

impl Incident {
    fn repeats(&self) -> Repeats {
        Repeats {
            who: self.who.clone(),
            others: self.pids.len().saturating_sub(1),
            to: self.to.clone(),
            count: self.count,
            last: self.last,
        }
    }
}

/// All incidents of a run.
#[derive(Default)]
pub struct Fold {
    incidents: HashMap<Key, Incident>,
    /// How many different ones there were.
    pub total: u64,
}

impl Fold {
    /// Takes an event in. `to` is called for the first of an incident.
    pub fn take(&mut self, event: &Event, now: Instant, to: impl FnOnce() -> String) -> Told {
        let key = Key::of(event);
        let pid = event.process.as_ref().map(|process| process.pid);
        let who = who(event);
        if let Some(incident) = self.incidents.get_mut(&key) {
            incident.count += event.egress.count;
            incident.untold += event.egress.count;
            incident.repeated = true;
            incident.last = event.event.end;
            incident.who = who;
            if incident.pids.len() < MAX_PIDS {
                incident.pids.extend(pid);
            }
            return Told::Folded;
        }
        self.total += 1;
        if self.incidents.len() >= MAX_INCIDENTS {
            self.forget_quietest();
        }
        let incident = Incident {
            who,
            pids: pid.into_iter().collect(),
            to: to(),
            count: event.egress.count,
            untold: 0,
            repeated: false,
            last: event.event.end,
            told: now,
        };
        self.incidents.insert(key, incident);
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
                incident.repeats()
            })
            .collect();
        due.sort_by_key(|repeats| repeats.last);
        due
    }

    /// All incidents that had repeats, as they stand, the last one first; those that were told in place count as told.
    pub fn standing(&mut self, number: usize) -> Vec<Repeats> {
        let mut standing: Vec<Repeats> = self
            .incidents
            .values_mut()
            .filter(|incident| incident.repeated)
            .map(|incident| {
                incident.untold = 0;
                incident.repeats()
            })
            .collect();
        standing.sort_by_key(|repeats| std::cmp::Reverse(repeats.last));
        standing.truncate(number);
        standing
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
        if let Some(key) = quietest.map(|(key, _)| key.clone()) {
            self.incidents.remove(&key);
        }
    }
}

/// `curl[2211]`, or what is known instead. Not escaped: that is the output's business.
pub fn who(event: &Event) -> String {
    if event.egress.owner == Some(OwnerKnown::Kernel) {
        return "the kernel".to_owned();
    }
    match (&event.process, &event.egress.unit, &event.user) {
        (Some(process), ..) => format!("{}[{}]", process.name, process.pid),
        (None, Some(unit), _) => format!("a process of {unit}"),
        (None, None, Some(user)) => {
            format!("a process of user {}", user.name.clone().unwrap_or_else(|| format!("uid {}", user.id)))
        }
        (None, None, None) => "no process".to_owned(),
    }
}

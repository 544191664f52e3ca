//! Who sent it: the process, its parents, user, unit and container.
//!
//! [`owner`] decides which process it was, [`processes`] and [`flows`] remember, [`unit`], [`redact`] and [`users`] are pure.
//! [`Attribution`] makes of a dropped packet an attempt with its sender. Every claim has a source; two candidates make no answer.

mod answers;
mod asking;
mod attempt;
pub mod flows;
pub mod host;
mod invocation;
pub mod owner;
mod places;
pub mod processes;
pub mod redact;
mod sender;
pub mod unit;
mod unsent;
pub mod users;

use jiff::Timestamp;

pub(crate) use self::{
    answers::{Answers, Search},
    asking::Asking,
    owner::{Found, Owners},
    places::Places,
    sender::Credentials,
};
use self::{host::Identity, unsent::Unsent, users::Users};
use crate::{
    kernel::{clock::Clock, layout::Reasons},
    model::{Actor, Degraded, NetnsPlace, OwnerBy, OwnerKnown, Reached, Sender, Share},
    privilege::{HostQueries, protocol::Place},
};

/// Names the sender of what was dropped.
pub struct Attribution<E> {
    identity: Identity,
    reasons: Reasons,
    owners: Owners<E>,
    places: Places,
    users: Users,
    unsent: Unsent,
    clock: Clock,
    command_lines: CommandLines,
}

/// What lines have of command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandLines {
    /// Secrets are masked.
    Redacted,
    /// As they are: a person asked for that.
    Unredacted,
    /// Nothing.
    None,
}

impl CommandLines {
    /// Secrets are masked, unless a person asked for them.
    pub fn of(no_redact: bool) -> Self {
        if no_redact { Self::Unredacted } else { Self::Redacted }
    }
}

impl<E: HostQueries> Attribution<E> {
    /// `command_lines` is what lines have of command lines.
    pub fn new(identity: Identity, reasons: Reasons, owners: Owners<E>, command_lines: CommandLines) -> Self {
        Self {
            identity,
            reasons,
            owners,
            places: Places::default(),
            users: Users::default(),
            unsent: Unsent::default(),
            clock: Clock::default(),
            command_lines,
        }
    }

    /// This host.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whoever is asked about the host.
    pub(crate) fn queries(&mut self) -> &mut E {
        &mut self.owners.queries
    }

    /// The same, and what is known of network namespaces.
    pub(crate) fn queries_and_places(&mut self) -> (&mut E, &mut Places) {
        (&mut self.owners.queries, &mut self.places)
    }

    /// Takes in what was reported of processes meanwhile.
    pub fn catch_up(&mut self) {
        self.owners.catch_up();
    }

    /// Wall time of a time of `CLOCK_BOOTTIME` in nanoseconds.
    pub(crate) fn wall(&mut self, boot_ns: u64) -> Timestamp {
        self.clock.wall(boot_ns)
    }

    /// On whose account something is looked up in a namespace, for a socket of this user.
    pub(crate) fn share(&self, netns: u32, cookie: u64, uid: Option<u32>) -> Share {
        self.places.share(netns, cookie, uid)
    }

    /// What is known of a namespace, waited for: at start, when nobody waits for anything else.
    pub(crate) fn placed(&mut self, netns: u32) -> NetnsPlace {
        let is_other = self.places.is_other(netns);
        let place = if is_other {
            self.owners.queries.ask(Place { netns, cookie: 0 }).unwrap_or_default()
        } else {
            NetnsPlace::default()
        };
        NetnsPlace { is_other, ..place }
    }

    /// What the process with this number was called at that time.
    pub(crate) fn name_of(&mut self, pid: u32, boot_ns: u64) -> Option<String> {
        self.owners.name_of(pid, boot_ns)
    }

    /// Whoever the kernel says did something at that time.
    pub(crate) fn actor(&mut self, actor: Option<&Actor>, boot_ns: u64) -> Sender {
        self.owners.catch_up();
        let found = actor.and_then(|actor| {
            // It may have ended before it was heard what it did.
            let ended = || self.owners.processes.lately(actor.pid, actor.name.as_deref()?, boot_ns);
            ended().or_else(|| self.owners.living(actor.pid, boot_ns))
        });
        let found = found.map(|id| Found { id, known: OwnerKnown::Syscall, by: OwnerBy::Send, bound: None });
        self.sender(found, Credentials::default(), boot_ns)
    }

    /// Connections to destinations that are waited for, since the last time.
    pub(crate) fn take_reached(&mut self) -> Vec<Reached> {
        std::mem::take(&mut self.owners.reached)
    }

    /// Some of those are there.
    pub(crate) fn has_reached(&self) -> bool {
        !self.owners.reached.is_empty()
    }

    /// Who made such a connection.
    pub(crate) fn who_reached(&mut self, reached: &Reached) -> Sender {
        let found = reached.owner.map(Found::bound);
        let cgroup = reached.owner.map(|owner| owner.task.cgroup).filter(|cgroup| *cgroup != 0);
        self.sender(found, Credentials { uid: Some(reached.uid), cgroup }, reached.boot_ns)
    }

    /// What made the answers worse than they could be.
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut degraded = Vec::new();
        if let Some(why) = self.owners.failure() {
            degraded.push(Degraded {
                what: Degraded::HELPER.to_owned(),
                why,
                consequence:
                    "rules, fixes and names of processes older than observer are missing for what was blocked meanwhile"
                        .to_owned(),
            });
        }
        if self.owners.undecodable > 0 {
            degraded.push(Degraded {
                what: "processes".to_owned(),
                why: format!("{} process records could not be read", self.owners.undecodable),
                consequence: "some processes have no executable, arguments or parents".to_owned(),
            });
        }
        for (share, questions) in self.owners.queries.used_up() {
            degraded.push(Degraded {
                what: "share".to_owned(),
                why: format!("{share} caused more work than its share: {questions} questions were not looked up"),
                consequence: "rules, fixes or second opinions are missing for some of what was blocked there"
                    .to_owned(),
            });
        }
        degraded
    }
}

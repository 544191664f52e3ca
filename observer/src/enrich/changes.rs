//! Changes of rules: of which namespaces they are heard, and how one is told.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    assemble::Assembler,
    attribute::{Eyes, Found},
    sender::Credentials,
};
use crate::model::{
    Action, Change, ChangeEgress, ChangedRuleset, Commit, ECS_VERSION, Ecs, EventMeta, Kind, OwnerBy, OwnerKnown,
    SCHEMA,
};

/// Namespaces that are listened to at the same time.
const MAX_NAMESPACES: usize = 64;
/// Where it failed, it is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// What listening to a namespace takes.
#[derive(Debug)]
pub struct Listening {
    /// Its inode number.
    pub netns: u32,
    /// Hears of changes, and keeps the namespace alive.
    pub socket: OwnedFd,
    /// A process that lives there: readable when it ends.
    pub resident: OwnedFd,
}

/// Namespaces that are listened to, or where that failed and when.
pub struct Changes {
    heard: HashMap<u32, Option<Instant>>,
    begun: UnboundedSender<Listening>,
}

impl Changes {
    /// Hands over what listening takes to whoever does it.
    pub fn new(begun: UnboundedSender<Listening>) -> Self {
        Self { heard: HashMap::new(), begun }
    }

    /// Listens to a namespace from now on, if that is not done already.
    pub fn adopt(&mut self, netns: u32, eyes: &mut impl Eyes) {
        match self.heard.get(&netns) {
            Some(None) => return,
            Some(Some(failed)) if failed.elapsed() < AGAIN => return,
            None if self.heard.len() >= MAX_NAMESPACES => {
                // Those that fail are not listened to.
                self.heard.retain(|_, failed| failed.is_none_or(|failed| failed.elapsed() < AGAIN));
                return;
            }
            _ => {}
        }
        let failed = match eyes.listen(netns) {
            Ok(listening) => self.begun.send(listening).is_err().then(Instant::now),
            Err(why) => {
                log::debug!("changes of rules in namespace {netns} are not heard: {why}");
                Some(Instant::now())
            }
        };
        self.heard.insert(netns, failed);
    }

    /// What failed may succeed now.
    pub fn again(&mut self, eyes: &mut impl Eyes) {
        let failed: Vec<u32> =
            self.heard.iter().filter(|(_, failed)| failed.is_some()).map(|(netns, _)| *netns).collect();
        for netns in failed {
            self.forget(netns);
            self.adopt(netns, eyes);
        }
    }

    /// The process by which a namespace was known to live has ended: it is not listened to any more.
    pub fn forget(&mut self, netns: u32) {
        self.heard.remove(&netns);
    }
}

impl<E: Eyes> Assembler<E> {
    /// The process by which a namespace was known to live has ended: its rules are listened to by another one.
    pub fn deaf(&mut self, netns: u32) {
        self.changes.forget(netns);
        self.changes.adopt(netns, &mut self.attributor.eyes);
    }

    /// One line for one change of rules; the last one of several tells what is otherwise.
    pub fn change(&mut self, commit: Commit, is_last: bool) -> Change {
        self.attributor.catch_up();
        self.fixes.anew();
        let timestamp = self.clock.wall(commit.boot_ns);
        let found = commit.by.as_ref().and_then(|doer| {
            // It may have ended before its change was heard.
            let ended = || self.attributor.processes.lately(doer.pid, doer.name.as_deref()?, commit.boot_ns);
            ended().or_else(|| self.attributor.living(doer.pid, commit.boot_ns))
        });
        let found = found.map(|id| Found { id, known: OwnerKnown::Syscall, by: OwnerBy::Send, bound: None });
        let sender = self.sender(found, Credentials::default(), commit.boot_ns);
        let difference = match is_last.then(|| self.attributor.eyes.difference(commit.netns)) {
            None => None,
            Some(Ok(difference)) => difference,
            Some(Err(why)) => {
                log::debug!("the rules of namespace {} were not read: {why}", commit.netns);
                None
            }
        };
        let ruleset =
            ChangedRuleset { backend: "nft", generation: commit.generation, changed_by: commit.by, difference };
        let change = Change {
            timestamp,
            ecs: Ecs { version: ECS_VERSION },
            agent: self.identity.agent.clone(),
            host: self.identity.host.clone(),
            event: EventMeta {
                kind: Kind::Event,
                dataset: "observer.egress",
                module: "observer",
                id: Some(self.event_id()),
                category: &["configuration"],
                r#type: &["change"],
                action: Action::RulesetChanged,
                outcome: Some("success"),
                sequence: None,
                start: timestamp,
                end: timestamp,
                reason: Some(ruleset.sentence()),
            },
            process: sender.process,
            user: sender.user,
            container: sender.container,
            egress: ChangeEgress {
                schema: SCHEMA,
                netns: commit.netns,
                ruleset,
                unit: sender.unit,
                cgroup: sender.cgroup,
                ancestry: sender.ancestry,
            },
        };
        self.awaited.changed(commit.boot_ns, &change);
        change
    }
}

//! Decides which process a dropped packet belongs to.
//!
//! In this order, each with its proof:
//! 1. the owner that the kernel half bound to the socket's cookie; where the process on the CPU was another one and has
//!    this very socket open too (an inherited socket), that one sent it;
//! 2. no owner, or several holders when it was seeded: the process on the CPU when it has this very socket open
//!    (`syscall` when the socket was also locked by a call), else the only process that has it open;
//! 3. nothing: two candidates make no answer.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use observer_ebpf::abi::Task;

use crate::{
    intake::decode::text,
    model::{Dropped, Facts, Hook, OwnerKnown, Relative},
};

/// How long an answer about a process or a socket is good for. Short: a process may execute another program.
const FRESH: Duration = Duration::from_secs(1);
/// Answers kept before the oldest are swept.
const MAX_ANSWERS: usize = 4096;

/// Questions about the host that need privilege; the helper answers them.
pub trait Eyes {
    /// Facts about a process, `None` when it is gone or did not start at `start_ns`.
    fn facts(&mut self, pid: u32, start_ns: Option<u64>) -> Option<Facts>;
    /// Processes that have a socket open; only `first` when it is one of them, and nobody else is asked with `only_first`.
    fn holders(&mut self, inode: u64, first: u32, only_first: bool) -> Vec<u32>;
    /// Path of a cgroup by id.
    fn cgroup_path(&mut self, id: u64) -> Option<String>;
}

/// A process that was found to be the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Process id.
    pub pid: u32,
    /// Name.
    pub name: String,
    /// Start, clock ticks since boot.
    pub start_ticks: u64,
    /// Start, nanoseconds of `CLOCK_BOOTTIME`, where the kernel half said so.
    pub start_ns: Option<u64>,
    /// Effective user id.
    pub euid: Option<u32>,
    /// Parent's pid.
    pub parent_pid: Option<u32>,
    /// Parents, nearest first, as far as they still exist.
    pub parents: Vec<Relative>,
    /// What /proc says; `None` when the process is gone.
    pub facts: Option<Facts>,
    /// How it is known.
    pub known: OwnerKnown,
}

/// Remembers answers for a moment, so that a flood asks once.
pub struct Attributor<E> {
    eyes: E,
    facts: Answers<(u32, Option<u64>), Option<Facts>>,
    holders: Answers<(u64, u32, bool), Vec<u32>>,
    cgroups: Answers<u64, Option<String>>,
}

impl<E: Eyes> Attributor<E> {
    /// Asks `eyes`.
    pub fn new(eyes: E) -> Self {
        Self { eyes, facts: Answers::new(), holders: Answers::new(), cgroups: Answers::new() }
    }

    /// Gives back who answered questions.
    pub fn into_eyes(self) -> E {
        self.eyes
    }

    /// The process that sent a packet, when that can be proven.
    pub fn owner(&mut self, dropped: &Dropped) -> Option<Found> {
        let inode = dropped.socket.and_then(|socket| socket.inode);
        let current = dropped.current_pid;
        match dropped.owner {
            Some(owner) if !owner.shared => {
                let other = inode.filter(|_| current != 0 && current != owner.task.pid);
                if let Some(inode) = other
                    && self.holders(inode, current, true) == [current]
                    && let Some(found) = self.found_in_proc(current, OwnerKnown::Socket)
                {
                    return Some(found);
                }
                Some(self.found_by_kernel(&owner.task))
            }
            _ => {
                let inode = inode?;
                let locked = dropped.socket.is_some_and(|socket| socket.locked) && dropped.hook == Some(Hook::Output);
                match self.holders(inode, current, false).as_slice() {
                    [only] if *only == current && locked => self.found_in_proc(*only, OwnerKnown::Syscall),
                    [only] => self.found_in_proc(*only, OwnerKnown::Socket),
                    _ => None,
                }
            }
        }
    }

    /// Path of a cgroup by id.
    pub fn cgroup_path(&mut self, id: u64) -> Option<String> {
        self.cgroups.get(id, || self.eyes.cgroup_path(id))
    }

    fn found_in_proc(&mut self, pid: u32, known: OwnerKnown) -> Option<Found> {
        let facts = self.facts(pid, None)?;
        Some(Found {
            pid,
            name: facts.name.clone(),
            start_ticks: facts.start_ticks,
            start_ns: None,
            euid: facts.euid,
            parent_pid: facts.parents.first().map(|parent| parent.pid),
            parents: facts.parents.clone(),
            facts: Some(facts),
            known,
        })
    }

    fn found_by_kernel(&mut self, task: &Task) -> Found {
        let start_ticks = super::proc::ticks(task.start_ns);
        if let Some(facts) = self.facts(task.pid, Some(task.start_ns)) {
            return Found {
                pid: task.pid,
                name: facts.name.clone(),
                start_ticks,
                start_ns: Some(task.start_ns),
                euid: facts.euid.or(Some(task.euid)),
                parent_pid: facts.parents.first().map(|parent| parent.pid),
                parents: facts.parents.clone(),
                facts: Some(facts),
                known: OwnerKnown::Socket,
            };
        }
        // Gone: its parent often is not. A parent that started later only has the same number.
        let parent = (task.parent_pid != 0)
            .then(|| self.facts(task.parent_pid, None))
            .flatten()
            .filter(|parent| parent.start_ticks <= start_ticks);
        let parents = parent.map_or_else(Vec::new, |parent| {
            let nearest = Relative { pid: parent.pid, name: parent.name };
            std::iter::once(nearest).chain(parent.parents).collect()
        });
        Found {
            pid: task.pid,
            name: text(&task.comm).unwrap_or_else(|| "?".to_owned()),
            start_ticks,
            start_ns: Some(task.start_ns),
            euid: Some(task.euid),
            parent_pid: (task.parent_pid != 0).then_some(task.parent_pid),
            parents,
            facts: None,
            known: OwnerKnown::Socket,
        }
    }

    fn facts(&mut self, pid: u32, start_ns: Option<u64>) -> Option<Facts> {
        self.facts.get((pid, start_ns), || self.eyes.facts(pid, start_ns))
    }

    fn holders(&mut self, inode: u64, first: u32, only_first: bool) -> Vec<u32> {
        self.holders.get((inode, first, only_first), || self.eyes.holders(inode, first, only_first))
    }
}

/// Answers that are good for [`FRESH`].
struct Answers<K, V>(HashMap<K, (Instant, V)>);

impl<K: std::hash::Hash + Eq + Copy, V: Clone> Answers<K, V> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    fn get(&mut self, key: K, ask: impl FnOnce() -> V) -> V {
        if let Some((when, answer)) = self.0.get(&key)
            && when.elapsed() < FRESH
        {
            return answer.clone();
        }
        if self.0.len() >= MAX_ANSWERS {
            self.0.retain(|_, (when, _)| when.elapsed() < FRESH);
        }
        let answer = ask();
        if self.0.len() < MAX_ANSWERS {
            self.0.insert(key, (Instant::now(), answer.clone()));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cause, Owner, OwnerSource, Socket};

    /// A host with these processes (pid, start in nanoseconds, parent), and these holders of socket 7.
    struct Host {
        processes: Vec<(u32, u64, u32)>,
        holders: Vec<u32>,
    }

    impl Eyes for Host {
        fn facts(&mut self, pid: u32, start_ns: Option<u64>) -> Option<Facts> {
            let (_, start, parent) = *self.processes.iter().find(|(known, ..)| *known == pid)?;
            if start_ns.is_some_and(|wanted| wanted != start) {
                return None;
            }
            Some(Facts {
                pid,
                start_ticks: super::super::proc::ticks(start),
                name: format!("process{pid}"),
                executable: None,
                args: Vec::new(),
                euid: Some(0),
                cgroup: None,
                parents: vec![Relative { pid: parent, name: format!("process{parent}") }],
            })
        }

        fn holders(&mut self, _inode: u64, first: u32, only_first: bool) -> Vec<u32> {
            match self.holders.contains(&first) {
                true => vec![first],
                false if only_first => Vec::new(),
                false => self.holders.clone(),
            }
        }

        fn cgroup_path(&mut self, _id: u64) -> Option<String> {
            None
        }
    }

    const SECOND: u64 = 1_000_000_000;

    fn task(pid: u32, parent_pid: u32) -> Task {
        Task { pid, parent_pid, start_ns: 100 * SECOND, comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0", ..Task::default() }
    }

    fn dropped(owner: Option<Owner>, current_pid: u32, locked: bool) -> Dropped {
        Dropped {
            boot_ns: 0,
            endpoints: None,
            ethertype: 0,
            cause: Cause::Netfilter,
            hook: Some(Hook::Output),
            reason: 0,
            bytes: 0,
            netns: 0,
            interface: None,
            socket: Some(Socket {
                cookie: Some(1),
                inode: Some(7),
                uid: Some(0),
                cgroup: None,
                state: 1,
                locked,
                orphan: false,
            }),
            owner,
            current_pid,
            packet: bytes::Bytes::new(),
        }
    }

    fn bound(pid: u32, shared: bool) -> Option<Owner> {
        Some(Owner { task: task(pid, 5), source: OwnerSource::Create, shared })
    }

    fn who(host: Host, dropped: &Dropped) -> Option<(u32, OwnerKnown)> {
        Attributor::new(host).owner(dropped).map(|found| (found.pid, found.known))
    }

    fn host(holders: &[u32]) -> Host {
        Host {
            processes: vec![(10, 100 * SECOND, 5), (11, 100 * SECOND, 10), (5, SECOND, 1)],
            holders: holders.to_vec(),
        }
    }

    #[test]
    fn the_bound_process_and_never_the_one_on_the_cpu() {
        assert_eq!(who(host(&[10]), &dropped(bound(10, false), 11, true)), Some((10, OwnerKnown::Socket)));
        assert_eq!(who(host(&[10]), &dropped(bound(10, false), 0, false)), Some((10, OwnerKnown::Socket)));
    }

    #[test]
    fn a_child_that_inherited_the_socket_sent_it() {
        assert_eq!(who(host(&[10, 11]), &dropped(bound(10, false), 11, false)), Some((11, OwnerKnown::Socket)));
    }

    #[test]
    fn without_an_owner_one_holder_is_an_answer_and_two_are_none() {
        assert_eq!(who(host(&[11]), &dropped(None, 0, false)), Some((11, OwnerKnown::Socket)));
        assert_eq!(who(host(&[11]), &dropped(None, 11, true)), Some((11, OwnerKnown::Syscall)));
        assert_eq!(who(host(&[10, 11]), &dropped(None, 3, true)), None);
        assert_eq!(who(host(&[]), &dropped(None, 11, true)), None, "on the CPU without the socket is no proof");
    }

    #[test]
    fn a_socket_seeded_with_two_holders_is_open_until_one_is_seen_sending() {
        assert_eq!(who(host(&[10, 11]), &dropped(bound(10, true), 3, false)), None);
        assert_eq!(who(host(&[10, 11]), &dropped(bound(10, true), 11, false)), Some((11, OwnerKnown::Socket)));
    }

    #[test]
    fn a_process_that_is_gone_keeps_its_name_and_its_living_parents() {
        let mut attributor = Attributor::new(host(&[]));
        let found = attributor.owner(&dropped(bound(99, false), 0, false)).unwrap();
        assert_eq!((found.name.as_str(), found.facts, found.parent_pid), ("curl", None, Some(5)));
        assert_eq!(found.parents.iter().map(|parent| parent.pid).collect::<Vec<_>>(), [5, 1]);
    }

    #[test]
    fn a_parent_that_started_later_is_another_process() {
        let host = Host { processes: vec![(5, 200 * SECOND, 1)], holders: Vec::new() };
        let found = Attributor::new(host).owner(&dropped(bound(99, false), 0, false)).unwrap();
        assert!(found.parents.is_empty());
    }
}

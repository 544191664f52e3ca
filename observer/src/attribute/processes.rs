//! Every process that lives, and those that ended a while ago: what each ran, and who made it.
//!
//! Fed by the eBPF side from the moment it is attached, and once by /proc for what ran before. There is no bound on
//! living processes but memory (about half a kilobyte each, and its arguments); of those that ended, the last
//! [`MAX_ENDED`] are kept for [`KEPT`], as far as their arguments fit into [`MAX_ENDED_BYTES`].

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::flows::Flows;
use crate::{
    intake::decode::text,
    model::{Ancestor, Born, Facts, Image, Namespaces, ProcessChange, ProcessId},
};

/// How long a process is remembered after its end: as long as the kernel may retransmit for it.
const KEPT: Duration = Duration::from_secs(300);
/// Ended processes remembered at most; a fork bomb makes more.
const MAX_ENDED: usize = 32_768;
/// Bytes that their programs and arguments may take.
const MAX_ENDED_BYTES: usize = 64 << 20;
/// Programs remembered that a process ran one after the other.
const MAX_IMAGES: usize = 4;
/// Parents followed.
const MAX_PARENTS: usize = 64;
/// Cgroups whose path is remembered.
const MAX_CGROUPS: usize = 65_536;

/// A program that a process ran.
#[derive(Clone, Debug)]
pub struct Ran {
    /// From when on, nanoseconds of `CLOCK_BOOTTIME`.
    pub since_ns: u64,
    /// Name (`comm`) that it had then.
    pub name: String,
    /// The kernel's count of programs that it had run by then ([`Task::execs`]); `None` where only /proc told.
    ///
    /// [`Task::execs`]: observer_ebpf::abi::Task::execs
    pub execs: Option<u32>,
    /// The program.
    pub image: Arc<Image>,
}

impl Ran {
    /// False when the process is known to have run another program since, which was not told: its count of programs had
    /// gone on to `execs` by then.
    pub fn is_after(&self, execs: u32) -> bool {
        self.execs.is_none_or(|known| known == execs)
    }
}

/// One process.
#[derive(Clone, Debug)]
pub struct ProcessEntry {
    /// Name (`comm`) when it last ran a program or was made.
    pub name: String,
    /// Start, nanoseconds of `CLOCK_BOOTTIME`; `None` where only /proc told.
    pub start_ns: Option<u64>,
    /// The process that made it, as far as it is known.
    pub parent: Option<ProcessId>,
    /// Namespaces that are not the host's.
    pub namespaces: Namespaces,
    /// Effective user when it last ran a program.
    pub euid: Option<u32>,
    /// Id of its cgroup when it last ran a program; 0 when only /proc told.
    pub cgroup: u64,
    /// Path of its cgroup, where /proc told.
    pub cgroup_path: Option<String>,
    /// What it ran, each from this time on.
    ran: Vec<Ran>,
    /// Its children that are still in the table.
    children: u32,
    /// When it ended, nanoseconds of `CLOCK_BOOTTIME`.
    ended_ns: Option<u64>,
}

impl ProcessEntry {
    /// What it ran at that time.
    pub fn ran_at(&self, boot_ns: u64) -> Option<&Ran> {
        self.ran.iter().rev().find(|ran| ran.since_ns <= boot_ns).or(self.ran.first())
    }

    /// Bytes of memory that its programs take; shared ones are counted for each.
    fn bytes(&self) -> usize {
        self.ran.iter().map(|ran| ran.image.bytes()).sum()
    }
}

/// Parents of living processes that are passed over in one go while there is no room.
const MAX_PASSED_OVER: usize = 256;

/// A process that ended, when that was heard, and what its programs take.
#[derive(Clone, Copy)]
struct Ended {
    heard: Instant,
    id: ProcessId,
    bytes: usize,
}

/// All of them.
#[derive(Default)]
pub struct Processes {
    entries: HashMap<ProcessId, ProcessEntry>,
    /// The newest process with each number.
    latest: HashMap<u32, ProcessId>,
    ended: VecDeque<Ended>,
    /// Bytes that the ended ones' programs take.
    ended_bytes: usize,
    cgroups: HashMap<u64, String>,
    /// Where sockets of other namespaces sent to.
    pub flows: Flows,
}

impl Processes {
    /// Takes in what the eBPF side told.
    pub fn apply(&mut self, life: ProcessChange, now: Instant) {
        match life {
            ProcessChange::Fork(born) => {
                let parents = born.parent.and_then(|parent| self.entries.get(&parent)?.ran.last());
                let image = parents.filter(|ran| ran.is_after(born.task.execs)).map(|ran| Arc::clone(&ran.image));
                self.born(&born, image, now);
            }
            ProcessChange::Exec(born, image) => self.born(&born, Some(Arc::new(image)), now),
            ProcessChange::Exit { id, boot_ns } => self.end(id, boot_ns, now),
            ProcessChange::Flow(flow) => self.flows.add(flow, now),
            ProcessChange::Cgroup { id, path } => self.remember_cgroup(id, path),
            // No process.
            ProcessChange::Reached(_) => {}
        }
        self.forget(now);
    }

    /// Takes in what /proc said; what the eBPF side told stands.
    pub fn seed(&mut self, facts: Facts) {
        let parent = self.latest.get(&facts.parent_pid).copied();
        let entry = ProcessEntry {
            name: facts.name.clone(),
            start_ns: None,
            parent,
            namespaces: facts.namespaces,
            euid: facts.euid,
            cgroup: 0,
            cgroup_path: facts.cgroup,
            ran: vec![Ran { since_ns: 0, name: facts.name.clone(), execs: None, image: Arc::new(facts.image) }],
            children: 0,
            ended_ns: None,
        };
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.entries.entry(facts.id) {
            vacant.insert(entry);
            self.adopt(facts.id, parent, Instant::now());
        }
    }

    /// Takes in the arguments of what a process runs, which were not read before; without any they cannot be.
    pub fn complete(&mut self, id: ProcessId, unread: &Arc<Image>, read: Option<Image>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let image = match read {
            // It has run another program since, whose arguments these are.
            Some(read) if read.executable == unread.executable => {
                Image { args: read.args, args_cut: read.args_cut, args_unread: false, ..Image::clone(unread) }
            }
            _ => Image { args_cut: true, args_unread: false, ..Image::clone(unread) },
        };
        let image = Arc::new(image);
        for ran in entry.ran.iter_mut().filter(|ran| Arc::ptr_eq(&ran.image, unread)) {
            ran.image = Arc::clone(&image);
        }
    }

    /// The process, when it is known.
    pub fn get(&self, id: ProcessId) -> Option<&ProcessEntry> {
        self.entries.get(&id)
    }

    /// The process that had this number at that time, as long as no other has had it since.
    pub fn living(&self, pid: u32, boot_ns: u64) -> Option<ProcessId> {
        let id = *self.latest.get(&pid)?;
        (id.start_ns() <= boot_ns && !self.had_ended(id, boot_ns)).then_some(id)
    }

    /// The process of this number and name that had begun by that time, ended since or not, as long as no other has had the
    /// number.
    pub fn lately(&self, pid: u32, name: &str, boot_ns: u64) -> Option<ProcessId> {
        let id = *self.latest.get(&pid)?;
        (id.start_ns() <= boot_ns && self.entries.get(&id)?.name == name).then_some(id)
    }

    /// It is known to have ended by that time.
    pub fn had_ended(&self, id: ProcessId, boot_ns: u64) -> bool {
        self.entries.get(&id).and_then(|entry| entry.ended_ns).is_some_and(|ended_ns| ended_ns < boot_ns)
    }

    /// Its parents, nearest first: those that made it, whether they still live or not.
    pub fn parents(&self, id: ProcessId) -> impl Iterator<Item = (ProcessId, &ProcessEntry)> {
        let parent = |id: &ProcessId| self.entries.get(id)?.parent;
        std::iter::successors(parent(&id), parent).take(MAX_PARENTS).map_while(|id| Some((id, self.entries.get(&id)?)))
    }

    /// The process under the name that it had, and its parents.
    pub fn ancestry(&self, id: ProcessId, name: &str) -> Vec<Ancestor> {
        std::iter::once(Ancestor { pid: id.pid, name: name.to_owned() })
            .chain(self.parents(id).map(|(id, entry)| Ancestor { pid: id.pid, name: entry.name.clone() }))
            .collect()
    }

    /// Path of a cgroup that was made while observer ran, or that was asked for before.
    pub fn cgroup(&self, id: u64) -> Option<&str> {
        self.cgroups.get(&id).map(String::as_str)
    }

    /// Remembers the path of a cgroup: its id is never used again.
    pub fn remember_cgroup(&mut self, id: u64, path: String) {
        if self.cgroups.len() >= MAX_CGROUPS {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, path);
    }

    fn end(&mut self, id: ProcessId, boot_ns: u64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.ended_ns.is_none()
        {
            entry.ended_ns = Some(boot_ns);
            let bytes = entry.bytes();
            self.ended_bytes += bytes;
            self.ended.push_back(Ended { heard: now, id, bytes });
        }
    }

    fn born(&mut self, born: &Born, image: Option<Arc<Image>>, now: Instant) {
        let task = &born.task;
        let id = ProcessId::new(task.pid, task.start_ns);
        let name = text(&task.comm).unwrap_or_default();
        let ran = image.map(|image| Ran { since_ns: born.boot_ns, name: name.clone(), execs: Some(task.execs), image });
        match self.entries.entry(id) {
            std::collections::hash_map::Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.name = name;
                known.start_ns = Some(task.start_ns);
                known.namespaces = born.namespaces;
                known.euid = Some(task.euid);
                known.cgroup = task.cgroup;
                known.ran.extend(ran);
                if known.ran.len() > MAX_IMAGES {
                    known.ran.remove(0);
                }
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(ProcessEntry {
                    name,
                    start_ns: Some(task.start_ns),
                    parent: born.parent,
                    namespaces: born.namespaces,
                    euid: Some(task.euid),
                    cgroup: task.cgroup,
                    cgroup_path: None,
                    ran: ran.into_iter().collect(),
                    children: 0,
                    ended_ns: None,
                });
                self.adopt(id, born.parent, now);
            }
        }
    }

    fn adopt(&mut self, id: ProcessId, parent: Option<ProcessId>, now: Instant) {
        let known = self.latest.get(&id.pid).copied();
        if known.is_none_or(|known| known.start_ticks <= id.start_ticks) {
            self.latest.insert(id.pid, id);
            // Whoever had the number before has ended, whether that was reported or not.
            if let Some(before) = known.filter(|before| *before != id) {
                self.end(before, id.start_ns(), now);
            }
        }
        if let Some(parent) = parent.and_then(|parent| self.entries.get_mut(&parent)) {
            parent.children += 1;
        }
    }

    /// Forgets what ended long ago. A parent stays as long as its children are there, while there is room.
    fn forget(&mut self, now: Instant) {
        let crowded = |all: &Self| all.ended.len() > MAX_ENDED || all.ended_bytes > MAX_ENDED_BYTES;
        // Whoever has children goes last, but this must come to an end.
        let mut patience = self.ended.len().min(MAX_PASSED_OVER);
        while let Some(Ended { heard, id, bytes }) = self.ended.front().copied()
            && (crowded(self) || now.duration_since(heard) > KEPT)
        {
            let full = crowded(self) && patience == 0;
            patience = patience.saturating_sub(1);
            self.ended.pop_front();
            if !full && self.entries.get(&id).is_some_and(|entry| entry.children > 0) {
                self.ended.push_back(Ended { heard: now, id, bytes });
                continue;
            }
            self.ended_bytes -= bytes;
            let Some(entry) = self.entries.remove(&id) else { continue };
            if self.latest.get(&id.pid) == Some(&id) {
                self.latest.remove(&id.pid);
            }
            if let Some(parent) = entry.parent.and_then(|parent| self.entries.get_mut(&parent)) {
                parent.children = parent.children.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Arguments;
    use observer_ebpf::abi::Task;

    fn id(pid: u32, second: u64) -> ProcessId {
        ProcessId::new(pid, second * 1_000_000_000)
    }

    fn born(pid: u32, second: u64, parent: Option<ProcessId>, name: &str) -> Box<Born> {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        let start_ns = second * 1_000_000_000;
        Box::new(Born {
            boot_ns: start_ns,
            task: Task { pid, start_ns, comm, ..Task::default() },
            parent,
            namespaces: Namespaces::default(),
        })
    }

    /// An end ten seconds after the start.
    fn exit(pid: u32, second: u64) -> ProcessChange {
        ProcessChange::Exit { id: id(pid, second), boot_ns: (second + 10) * 1_000_000_000 }
    }

    fn image(path: &str) -> Image {
        Image { executable: Some(path.to_owned()), ..Image::default() }
    }

    fn executable(processes: &Processes, id: ProcessId, second: u64) -> Option<&str> {
        processes.get(id)?.ran_at(second * 1_000_000_000)?.image.executable.as_deref()
    }

    #[test]
    fn a_child_runs_its_parents_program_until_it_runs_another() {
        let mut processes = Processes::default();
        let now = Instant::now();
        processes.apply(ProcessChange::Exec(born(10, 1, None, "bash"), image("/bin/bash")), now);
        processes.apply(ProcessChange::Fork(born(11, 2, Some(id(10, 1)), "bash")), now);
        assert_eq!(executable(&processes, id(11, 2), 2), Some("/bin/bash"));
        let mut exec = born(11, 2, Some(id(10, 1)), "curl");
        exec.boot_ns = 3_000_000_000;
        processes.apply(ProcessChange::Exec(exec, image("/bin/curl")), now);
        assert_eq!(executable(&processes, id(11, 2), 4), Some("/bin/curl"));
        assert_eq!(executable(&processes, id(11, 2), 2), Some("/bin/bash"), "what it ran before is not forgotten");
        assert_eq!(processes.ancestry(id(11, 2), "curl").len(), 2);
    }

    #[test]
    fn a_program_that_was_not_told_is_not_taken_for_the_one_before() {
        let mut processes = Processes::default();
        let now = Instant::now();
        let with = |mut born: Box<Born>, execs: u32| {
            born.task.execs = execs;
            born
        };
        processes.apply(ProcessChange::Exec(with(born(10, 1, None, "bash"), 3), image("/bin/bash")), now);
        // It ran another program in between: its count has gone on.
        processes.apply(ProcessChange::Fork(with(born(11, 2, Some(id(10, 1)), "python"), 4)), now);
        processes.apply(ProcessChange::Fork(with(born(12, 2, Some(id(10, 1)), "bash"), 3)), now);
        assert_eq!(executable(&processes, id(11, 2), 2), None);
        assert_eq!(executable(&processes, id(12, 2), 2), Some("/bin/bash"));
        let ran = processes.get(id(10, 1)).unwrap().ran_at(0).unwrap();
        assert!(ran.is_after(3) && !ran.is_after(4));
    }

    #[test]
    fn the_same_number_later_is_another_process() {
        let mut processes = Processes::default();
        let now = Instant::now();
        processes.apply(ProcessChange::Exec(born(10, 1, None, "old"), image("/old")), now);
        processes.apply(exit(10, 1), now);
        assert_eq!(processes.living(10, 12_000_000_000), None);
        assert_eq!(processes.living(10, 5_000_000_000), Some(id(10, 1)), "it had not ended then");
        processes.apply(ProcessChange::Exec(born(10, 19, None, "new"), image("/new")), now);
        assert_eq!(processes.living(10, 20_000_000_000), Some(id(10, 19)));
        assert_eq!(executable(&processes, id(10, 1), 1), Some("/old"), "the ended one is still known");
    }

    #[test]
    fn the_ended_are_forgotten_and_parents_after_their_children() {
        let mut processes = Processes::default();
        let now = Instant::now();
        processes.apply(ProcessChange::Fork(born(10, 1, None, "parent")), now);
        processes.apply(ProcessChange::Fork(born(11, 2, Some(id(10, 1)), "child")), now);
        processes.apply(exit(10, 1), now);
        let later = now + KEPT + Duration::from_secs(1);
        processes.apply(exit(99, 1), later);
        assert!(processes.get(id(10, 1)).is_some(), "its child lives");
        processes.apply(exit(11, 2), later);
        let end = later + KEPT + KEPT;
        processes.apply(exit(99, 1), end);
        processes.apply(exit(99, 1), end + KEPT + KEPT);
        assert!(processes.entries.is_empty() && processes.latest.is_empty());
    }

    #[test]
    fn a_fork_bomb_stays_within_bounds() {
        let mut processes = Processes::default();
        let now = Instant::now();
        let mut parent = None;
        for pid in 0..3 * u32::try_from(MAX_ENDED).unwrap() {
            let born = born(pid, 1, parent, "bomb");
            parent = Some(id(pid, 1));
            processes.apply(ProcessChange::Fork(born), now);
            processes.apply(exit(pid, 1), now);
        }
        assert!(processes.entries.len() <= MAX_ENDED + 1, "{}", processes.entries.len());
        assert!(processes.ancestry(parent.unwrap(), "bomb").len() <= MAX_PARENTS + 1);
    }

    #[test]
    fn long_arguments_of_the_ended_stay_within_bounds() {
        let mut processes = Processes::default();
        let now = Instant::now();
        for pid in 0..u32::try_from(MAX_ENDED).unwrap() {
            let image = Image { args: Arguments::new(&[b'x'; 4096]), ..Image::default() };
            processes.apply(ProcessChange::Exec(born(pid, 1, None, "long"), image), now);
            processes.apply(exit(pid, 1), now);
        }
        let bytes: usize = processes.entries.values().map(ProcessEntry::bytes).sum();
        assert!(bytes <= MAX_ENDED_BYTES && bytes > MAX_ENDED_BYTES / 2, "{bytes}");
    }

    #[test]
    fn a_number_taken_over_ends_its_last_process_even_untold() {
        let mut processes = Processes::default();
        let now = Instant::now();
        processes.apply(ProcessChange::Fork(born(10, 1, None, "old")), now);
        processes.apply(ProcessChange::Fork(born(10, 5, None, "new")), now);
        assert!(processes.had_ended(id(10, 1), 6_000_000_000) && !processes.had_ended(id(10, 5), 6_000_000_000));
        processes.apply(exit(99, 1), now + KEPT * 2);
        assert_eq!(processes.entries.len(), 1, "and is forgotten like the others");
    }

    #[test]
    fn what_the_kernel_told_stands_against_proc() {
        let mut processes = Processes::default();
        processes.apply(ProcessChange::Exec(born(10, 1, None, "real"), image("/real")), Instant::now());
        let facts = Facts {
            id: id(10, 1),
            parent_pid: 1,
            namespaces: Namespaces::default(),
            name: "late".to_owned(),
            image: image("/late"),
            euid: None,
            cgroup: None,
        };
        processes.seed(facts);
        assert_eq!(processes.get(id(10, 1)).unwrap().name, "real");
    }
}

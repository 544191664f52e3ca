//! Decides which process a dropped packet belongs to.
//!
//! In this order, each with its proof:
//! 1. the kernel itself, when the socket is its own;
//! 2. the process that sent it. A datagram at the output hook, and a connection's packet while a call holds the socket's
//!    lock, leave inside the call of whoever is on the CPU, unless a queue to user space gave the packet back there. So
//!    that process is the sender if it is the socket's owner, has the socket open, or descends from its owner. What it
//!    sends later by a timer on that socket is its own too;
//! 3. the owner that the eBPF side bound to the socket's cookie; if that one has ended and exactly one process has the
//!    socket open, that process;
//! 4. without an owner, or with several holders when it was seeded, the only process that has it open;
//! 5. of a packet that this namespace forwards for another, which has left its socket behind, and of an answer that has none yet:
//!    the only process whose socket's addresses and ports are the packet's, before any translation;
//! 6. nobody: two candidates make no answer.

use std::{
    collections::HashMap,
    net::IpAddr,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use observer_ebpf::abi::Task;

use super::{
    answers::{Answers, Patience, Search},
    processes::Processes,
};
use crate::{
    intake::life,
    model::{
        Cause, ContainerName, Direction, Dropped, Facts, Hook, Owner, OwnerBy, OwnerKnown, OwnerSource, PacketKind,
        ProcessChange, ProcessId, Reached, Wanted,
    },
    privilege::{
        HostQueries,
        protocol::{CgroupPath, FactsOf, Holders, Holds, Homes, IsAHelper, NameOfContainer, Owns, Sockets},
    },
};

/// Senders that were proven and are remembered.
const MAX_SENDERS: usize = 4096;
/// A process record is there before the drop that needs it, but one of another CPU that is still being written may stand
/// in front of it: so long it is waited for, at most 40 times a second a few times.
const RETRY: Duration = Duration::from_micros(200);
/// Sockets with one packet's addresses that are looked at: all of one process, or there is no answer.
const MAX_CANDIDATES: usize = 4;
/// Parents that are asked for one by one when only /proc knows them.
const MAX_PARENTS: usize = 64;

/// Questions about who sent a packet, which are answered at once.
pub(super) trait Who: HostQueries {
    /// Facts about a process, `None` when it is gone or did not start then.
    fn facts(&mut self, pid: u32, start_ticks: Option<u64>) -> Option<Facts> {
        self.ask(FactsOf { pid, start_ticks }).ok().flatten()
    }

    /// True when the process has the socket open.
    fn holds(&mut self, pid: u32, inode: u64) -> bool {
        self.ask(Holds { pid, inode }).unwrap_or(false)
    }

    /// Processes that have a socket open.
    fn holders(&mut self, inode: u64) -> Vec<u32> {
        self.ask(Holders { inode }).unwrap_or_default()
    }

    /// Path of a cgroup by id.
    fn cgroup_path(&mut self, id: u64) -> Option<String> {
        self.ask(CgroupPath { id }).ok().flatten()
    }

    /// What a container is called.
    fn container_name(&mut self, id: &str) -> Option<ContainerName> {
        self.ask(NameOfContainer { id: id.to_owned() }).ok().flatten()
    }

    /// True when an interface of a network namespace has the address; `None` when that cannot be read.
    fn owns(&mut self, netns: u32, address: IpAddr) -> Option<bool> {
        self.ask(Owns { netns, address }).ok().flatten()
    }

    /// Namespaces but the forwarding one that have an address.
    fn homes(&mut self, address: IpAddr, forwarder: u32) -> Vec<u32> {
        self.ask(Homes { address, forwarder }).unwrap_or_default()
    }

    /// Inode numbers of the sockets that can have sent a packet, in this namespace.
    fn sockets(&mut self, wanted: &Wanted, netns: u32) -> Vec<u64> {
        self.ask(Sockets { wanted: *wanted, netns }).unwrap_or_default()
    }

    /// Whether a process is the helper of an observer: root's, and of the host.
    fn is_a_helper(&mut self, pid: u32) -> bool {
        self.ask(IsAHelper { pid }).unwrap_or(false)
    }
}

impl<E: HostQueries> Who for E {}

/// Where process records come from: the next one, if there is one.
pub type ProcessEvents = Box<dyn FnMut() -> Option<Bytes> + Send>;

/// The process that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub id: ProcessId,
    /// How it is known.
    pub known: OwnerKnown,
    /// What made it the owner.
    pub by: OwnerBy,
    /// The process when it was bound to the socket, and when that was.
    pub bound: Option<(Task, u64)>,
}

impl Found {
    /// The owner that the eBPF side bound to the socket.
    pub(super) fn bound(owner: Owner) -> Self {
        Self {
            id: ProcessId::new(owner.task.pid, owner.task.start_ns),
            known: OwnerKnown::Socket,
            by: match owner.source {
                OwnerSource::Connect => OwnerBy::Connect,
                OwnerSource::Create => OwnerBy::Create,
                OwnerSource::Seed => OwnerBy::Open,
            },
            bound: owner.bound_ns.map(|bound_ns| (owner.task, bound_ns)),
        }
    }
}

/// What a socket is remembered by: two kinds of numbers, which must not be mixed up.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum SocketKey {
    Cookie(u64),
    Inode(u64),
}

/// Who asked for the neighbour that answers by a packet, where it is such an answer and says so; nobody else's answer is this host's.
fn answered_to(dropped: &Dropped) -> Option<IpAddr> {
    /// Where ARP has whom it is for.
    const TARGET: usize = 24;
    let is_answer = dropped.direction == Direction::Answer;
    match dropped.packet.filter(|_| is_answer)? {
        PacketKind::Arp => {
            let bytes = dropped.captured.as_ref()?.bytes.get(TARGET..TARGET + 4)?;
            Some(<[u8; 4]>::try_from(bytes).ok()?.into())
        }
        PacketKind::Solicitation => dropped.endpoints.map(|endpoints| endpoints.source),
        _ => None,
    }
}

/// What a forwarded packet's sender is looked for by; `None` where it says too little.
fn wanted(dropped: &Dropped) -> Option<Wanted> {
    let endpoints = dropped.original.or(dropped.endpoints)?;
    let (from, to) = match (endpoints.destination_port, dropped.icmp) {
        (Some(to), _) => (endpoints.source_port?, to),
        (None, Some(_)) => (dropped.icmp_identifier?, 0),
        (None, None) => (u16::from(endpoints.protocol), 0),
    };
    Some(Wanted {
        source: (endpoints.source, from),
        destination: (endpoints.destination, to),
        protocol: endpoints.protocol,
    })
}

/// Knows all processes, and asks about sockets.
pub struct Owners<E> {
    pub(super) queries: E,
    /// Every process that is known.
    pub processes: Processes,
    lives: ProcessEvents,
    /// When the eBPF side began to tell of processes, in clock ticks since boot.
    since_ticks: u64,
    /// Who was proven to send on a socket, and when.
    senders: HashMap<SocketKey, (u64, ProcessId)>,
    holds: Answers<(u32, u64), bool>,
    holders: Answers<u64, Vec<u32>>,
    cgroups: Answers<u64, Option<String>>,
    names: Answers<String, Option<ContainerName>>,
    own: Answers<(u32, IpAddr), Option<bool>>,
    homes: Answers<(IpAddr, u32), Vec<u32>>,
    /// Senders found by a socket that was open, and when their packet died.
    open: Answers<Wanted, (u64, ProcessId)>,
    patience: Patience,
    /// The same of process records that are still being written.
    records: Patience,
    /// Connections to what is waited for, until somebody takes them.
    pub(super) reached: Vec<Reached>,
    /// Process records that could not be read.
    pub undecodable: u64,
}

impl<E: HostQueries> Owners<E> {
    /// Asks `queries`; learns of processes from `lives`, which reports everything since `since`.
    pub fn new(queries: E, processes: Processes, lives: ProcessEvents, since_ns: u64) -> Self {
        Self {
            queries,
            processes,
            lives,
            since_ticks: ProcessId::new(0, since_ns).start_ticks,
            senders: HashMap::new(),
            holds: Answers::new(),
            holders: Answers::new(),
            cgroups: Answers::new(),
            names: Answers::new(),
            own: Answers::new(),
            homes: Answers::new(),
            open: Answers::new(),
            patience: Patience::default(),
            records: Patience::default(),
            reached: Vec::new(),
            undecodable: 0,
        }
    }

    /// Why questions were not answered, where they were not.
    pub fn failure(&self) -> Option<String> {
        self.queries.failure()
    }

    /// Takes in what was reported of processes since the last time.
    pub fn catch_up(&mut self) {
        let now = Instant::now();
        while let Some(bytes) = (self.lives)() {
            match life::decode(bytes) {
                Ok(ProcessChange::Reached(reached)) => self.reached.push(*reached),
                Ok(life) => self.processes.apply(life, now),
                Err(error) => {
                    log::warn!("{error}");
                    self.undecodable += 1;
                }
            }
        }
    }

    /// The process that sent a packet, when that can be proven. Pending where it is to be looked for again, as `search` says;
    /// `is_last` looks for the last time.
    pub fn owner(&mut self, dropped: &Dropped, search: &mut Search, is_last: bool) -> Poll<Option<Found>> {
        self.catch_up();
        if dropped.socket.is_none() {
            self.forwarded(dropped, search, is_last)
        } else {
            Poll::Ready(self.of_socket(dropped))
        }
    }

    /// The same where the packet has its socket.
    fn of_socket(&mut self, dropped: &Dropped) -> Option<Found> {
        let socket = dropped.socket?;
        if socket.kernel {
            return None;
        }
        let bound = dropped.owner.filter(|owner| !owner.shared).map(Found::bound);
        let key = socket.cookie.map(SocketKey::Cookie).or(socket.inode.map(SocketKey::Inode));
        if let Some(sender) = self.sender(dropped) {
            if let Some(key) = key {
                self.senders.remove(&key);
            }
            if let Some(bound) = bound.filter(|bound| bound.id == sender) {
                return Some(self.known(bound));
            }
            if let Some(key) = key {
                if self.senders.len() >= MAX_SENDERS {
                    self.senders.clear();
                }
                self.senders.insert(key, (dropped.boot_ns, sender));
            }
            return Some(Found { id: sender, known: OwnerKnown::Syscall, by: OwnerBy::Send, bound: None });
        }
        // Who bound the socket anew since then sends for itself.
        let rebound_ns = bound.and_then(|bound| bound.bound).map_or(0, |(_, bound_ns)| bound_ns);
        if let Some((then_ns, sender)) = key.and_then(|key| self.senders.get(&key)).copied()
            && then_ns >= rebound_ns
            && self.processes.get(sender).is_some()
            && !self.processes.had_ended(sender, dropped.boot_ns)
        {
            return Some(Found { id: sender, known: OwnerKnown::Socket, by: OwnerBy::Send, bound: None });
        }
        if let Some(bound) = bound {
            let bound = self.known(bound);
            // One that nobody knows any more ended long ago.
            let ended = self.processes.get(bound.id).is_none() || self.processes.had_ended(bound.id, dropped.boot_ns);
            return Some(if ended { self.only_holder(socket.inode, dropped.boot_ns).unwrap_or(bound) } else { bound });
        }
        self.only_holder(socket.inode, dropped.boot_ns)
    }

    /// Path of a cgroup by id.
    pub fn cgroup_path(&mut self, id: u64) -> Option<String> {
        if let Some(path) = self.processes.cgroup(id) {
            return Some(path.to_owned());
        }
        let path = self.cgroups.get(id, || self.queries.cgroup_path(id))?;
        self.processes.remember_cgroup(id, path.clone());
        Some(path)
    }

    /// What a container is called.
    pub fn container_name(&mut self, id: &str) -> Option<ContainerName> {
        self.names.get(id.to_owned(), || self.queries.container_name(id))
    }

    /// The process on the CPU, where it is proven that it was sending this packet.
    fn sender(&mut self, dropped: &Dropped) -> Option<ProcessId> {
        let socket = dropped.socket?;
        let synchronous = match dropped.hook {
            Some(Hook::Output | Hook::Postrouting) => dropped.cause == Cause::Netfilter,
            Some(Hook::Egress) => dropped.cause == Cause::Cgroup,
            Some(Hook::Forward | Hook::Prerouting | Hook::Ingress | Hook::Input) | None => false,
        };
        if dropped.current_pid == 0 || !synchronous || !(socket.locked || socket.datagram) {
            return None;
        }
        let owner = dropped.owner.map(|owner| ProcessId::new(owner.task.pid, owner.task.start_ns));
        let current = self.living(dropped.current_pid, dropped.boot_ns);
        // Should the record of a process be lost, its socket's owner knows better who has its number now.
        let newer = owner.filter(|owner| {
            owner.pid == dropped.current_pid && current.is_none_or(|current| current.start_ticks < owner.start_ticks)
        });
        let current = newer.or(current)?;
        let proven = owner == Some(current)
            || owner.is_some_and(|owner| self.processes.parents(current).any(|(parent, _)| parent == owner))
            || socket.held
            || socket
                .inode
                .is_some_and(|inode| self.holds.get((current.pid, inode), || self.queries.holds(current.pid, inode)));
        proven.then_some(current)
    }

    /// It came from another namespace and is forwarded here: true unless its destination is an address of this one. As
    /// [`Self::owner`].
    pub fn is_forwarded(&mut self, dropped: &Dropped, search: &mut Search, is_last: bool) -> Poll<bool> {
        if let Some(to) = answered_to(dropped) {
            return Poll::Ready(self.may_own(dropped.netns, to));
        }
        // Somebody has taken the addresses of this namespace's own in another one.
        let began = dropped.original.or(dropped.endpoints).map(|endpoints| endpoints.source);
        if dropped.answers_another && began.is_some_and(|address| self.is_own(dropped.netns, address)) {
            return Poll::Ready(false);
        }
        if dropped.direction != Direction::Unrouted {
            return Poll::Ready(true);
        }
        let Some(endpoints) = dropped.endpoints else { return Poll::Ready(false) };
        let to = endpoints.destination;
        if to.is_multicast() || to.is_loopback() || to == IpAddr::from([255, 255, 255, 255]) {
            return Poll::Ready(false);
        }
        if self.may_own(dropped.netns, to) {
            return Poll::Ready(false);
        }
        if dropped.socket.is_some() || dropped.origin_netns.is_some() {
            return Poll::Ready(true);
        }
        // By a bridge, another host's packet comes in as well as a container's: only a known sender tells.
        self.catch_up();
        self.forwarded(dropped, search, is_last).map(|found| found.is_some())
    }

    /// An interface of a namespace has the address; true where that cannot be read.
    fn may_own(&mut self, netns: u32, address: IpAddr) -> bool {
        self.own.get((netns, address), || self.queries.owns(netns, address)) != Some(false)
    }

    /// An interface of a namespace has the address, as far as that can be read.
    fn is_own(&mut self, netns: u32, address: IpAddr) -> bool {
        self.own.get((netns, address), || self.queries.owns(netns, address)) == Some(true)
    }

    /// Of what goes the other way than the first packet of its connection: an answer to whoever began it on this host, or what somebody
    /// on this host answers to a peer that began it.
    pub fn oriented(&mut self, dropped: Dropped) -> Dropped {
        if dropped.direction != Direction::Answer {
            return dropped;
        }
        let began = dropped.original.or(dropped.endpoints).map(|endpoints| endpoints.source);
        let is_here = dropped.hook == Some(Hook::Input)
            || began.is_some_and(|address| {
                self.is_own(dropped.netns, address) || !self.homes(address, dropped.netns).is_empty()
            });
        if is_here { Dropped { origin_netns: None, ..dropped } } else { dropped.turned() }
    }

    /// The sender of a packet that has left its socket behind in another namespace. A socket that is being closed at this
    /// moment is in no table for a while, so it is looked for again.
    fn forwarded(&mut self, dropped: &Dropped, search: &mut Search, is_last: bool) -> Poll<Option<Found>> {
        let Some(wanted) = wanted(dropped).filter(|_| dropped.direction != Direction::Local) else {
            return Poll::Ready(None);
        };
        let now = Instant::now();
        if !is_last && search.is_early(now) {
            return Poll::Pending;
        }
        let homes = match dropped.origin_netns {
            Some(origin) => vec![origin],
            None if dropped.direction == Direction::Answer && self.is_own(dropped.netns, wanted.source.0) => {
                vec![dropped.netns]
            }
            None => self.homes(wanted.source.0, dropped.netns),
        };
        if let Some(found) = self.sender_by_address(&wanted, &homes, dropped.boot_ns) {
            return Poll::Ready(Some(found));
        }
        // Nobody on this host has the address: another machine's packet, and nobody to wait for.
        let is_over = search.is_over(now, || if homes.is_empty() { 1 } else { self.patience.attempts() });
        if is_last || is_over { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Namespaces but the forwarding one that have an address.
    pub(super) fn homes(&mut self, address: IpAddr, forwarder: u32) -> Vec<u32> {
        let key = (address, forwarder);
        if let Some(homes) = self.homes.get_known(&key) {
            return homes;
        }
        let homes = self.queries.homes(address, forwarder);
        if homes.is_empty() {
            self.homes.put_none(key, homes.clone());
        } else {
            self.homes.put(key, homes.clone());
        }
        homes
    }

    /// By what was reported of connections and closed sockets, or by the sockets that are open now. What was reported is asked again
    /// last: a socket that is open now has been there at the time only if no other with its port was closed since.
    fn sender_by_address(&mut self, wanted: &Wanted, homes: &[u32], boot_ns: u64) -> Option<Found> {
        let by_address = |id| Found { id, known: OwnerKnown::Flow, by: OwnerBy::Address, bound: None };
        if let Some(id) = self.processes.flows.sender(wanted, homes, boot_ns) {
            return Some(by_address(id));
        }
        if let Some((then_ns, id)) = self.open.get_known(wanted)
            && then_ns <= boot_ns
            && !self.processes.flows.closed_between(wanted, homes, then_ns, boot_ns)
        {
            return Some(by_address(id));
        }
        let inodes: Vec<u64> = homes.iter().flat_map(|home| self.queries.sockets(wanted, *home)).collect();
        let mut holders = Vec::new();
        for inode in inodes.iter().take(MAX_CANDIDATES) {
            holders.extend(self.queries.holders(*inode));
        }
        holders.sort_unstable();
        holders.dedup();
        if inodes.len() > MAX_CANDIDATES {
            holders.clear();
        }
        self.catch_up();
        if let Some(id) = self.processes.flows.sender(wanted, homes, boot_ns) {
            return Some(by_address(id));
        }
        let [only] = holders.as_slice() else { return None };
        let id = self.living(*only, boot_ns)?;
        self.open.put(*wanted, (boot_ns, id));
        Some(by_address(id))
    }

    /// The process that had this number at that time.
    pub(super) fn living(&mut self, pid: u32, boot_ns: u64) -> Option<ProcessId> {
        let known = self.processes.living(pid, boot_ns);
        known.or_else(|| self.ask(pid, None).filter(|id| id.start_ns() <= boot_ns))
    }

    /// What the process with this number was called at that time.
    pub fn name_of(&mut self, pid: u32, boot_ns: u64) -> Option<String> {
        let id = self.living(pid, boot_ns)?;
        Some(self.processes.get(id)?.name.clone())
    }

    fn only_holder(&mut self, inode: Option<u64>, boot_ns: u64) -> Option<Found> {
        let inode = inode?;
        match *self.holders.get(inode, || self.queries.holders(inode)) {
            [only] => {
                let id = self.living(only, boot_ns)?;
                Some(Found { id, known: OwnerKnown::Socket, by: OwnerBy::Holder, bound: None })
            }
            _ => None,
        }
    }

    /// Makes sure that as much as can be known about a bound process is in the table.
    fn known(&mut self, found: Found) -> Found {
        // What began since the eBPF side reports processes has a record.
        let recent = found.id.start_ticks > self.since_ticks;
        // Where the ring was full there are many without one.
        let mut left = if recent && self.processes.get(found.id).is_none() { self.records.attempts() } else { 0 };
        while left > 1 && self.processes.get(found.id).is_none() {
            left -= 1;
            std::thread::sleep(RETRY);
            self.catch_up();
        }
        if self.processes.get(found.id).is_none() {
            self.ask(found.id.pid, Some(found.id.start_ticks));
        }
        found
    }

    /// Asks /proc about a process and those of its parents that are not known yet.
    fn ask(&mut self, pid: u32, start_ticks: Option<u64>) -> Option<ProcessId> {
        let first = self.queries.facts(pid, start_ticks)?;
        let id = first.id;
        let mut chain = vec![first];
        while chain.len() < MAX_PARENTS
            && let Some(parent) = chain.last().map(|facts| facts.parent_pid).filter(|pid| *pid != 0)
            && self.processes.living(parent, id.start_ns()).is_none()
            && let Some(facts) = self.queries.facts(parent, None)
        {
            chain.push(facts);
        }
        // The eldest first: a child finds its parent in the table.
        for facts in chain.into_iter().rev() {
            self.processes.seed(facts);
        }
        Some(id)
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;

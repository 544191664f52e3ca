//! What `watch` and `run` share: attach, seed, confine.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use caps::Capability;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{exit, kernel_log_level};
use crate::{
    attribute::{Attribution, CommandLines, Owners, host::Identity, owner::ProcessEvents, processes::Processes},
    check::{
        hints::Hints,
        profiles::{self, Profiles},
    },
    confinement::process::confine,
    doctor,
    explain::{
        Explainer,
        changes::Changes,
        rules::{Allowed, Rules},
    },
    firewall::inventory::Inventory,
    incident::Incidents,
    intake::hanging,
    kernel::clock::boot_ns,
    model::{Degraded, Facts, Filter, Hanging, Reporter},
    privilege::{Helper, Listening, proc},
    probe::{Awaited, Probes, Tree},
    service::{Limits, Rooms, Run, manager::Manager, modules},
    sink::fan::Outlet,
};

/// Attached, and still with all privileges.
pub(super) struct Session {
    identity: Identity,
    allowed: Allowed,
    helper: Helper,
    filter: Filter,
    probes: Probes,
    firewalls: Result<Inventory, String>,
    since_ns: u64,
    degraded: Vec<Degraded>,
    hanging: Vec<Hanging>,
    filling: OwnedFd,
    lives: ProcessEvents,
    awaited: Awaited,
    processes: Processes,
    rules: Rules,
    /// Packets can be sent through a copy of the rules.
    replayed: bool,
    changes: Changes,
    /// A change of rules is to be reported yet.
    changing: Arc<AtomicBool>,
    listening: UnboundedReceiver<Listening>,
    modules: io::Result<OwnedFd>,
}

impl Session {
    /// Attaches everything, and takes in what ran before.
    pub(super) fn attach(mut helper: Helper, filter: Filter, allowed: Allowed, verbose: u8) -> Result<Self> {
        let modules = modules::listen();
        if !Probes::avoids_rules() {
            helper.begin_proof();
        }
        let mut probes =
            Probes::attach(kernel_log_level(verbose), &filter.in_kernel()).map_err(|error| exit::with_hint(&error))?;
        // Before anything is observed for the user: from the first event on, the rule is reported.
        let rules = Rules::new(probes.take_rules()?, allowed, &mut helper);
        // Nothing is replayed where it would be seen.
        let watched = filter.netns.or_else(own_netns);
        let own = probes.own_namespaces().map_err(|error| format!("{error:#}"));
        // The first copy is made before anything is blocked there.
        let copied = watched.filter(|_| allowed.replays);
        let replayed =
            own.and_then(|own| helper.keep_own_namespaces(own, copied)).map(|possible| possible && allowed.replays);
        if let Err(why) = &replayed {
            log::warn!("packets are not replayed: {why}");
        }
        let firewalls = firewalls(&mut helper, filter.netns);
        // Its own namespace's rules, or those that it is to watch, are listened to from the start, others when something is
        // blocked there.
        let (begun, listening) = unbounded_channel();
        let mut changes = Changes::new(begun);
        if let Some(netns) = watched {
            match helper.listen(netns) {
                Ok(listening) => changes.hear(listening),
                Err(why) => log::debug!("changes of rules in namespace {netns} are not heard: {why}"),
            }
        }
        let since_ns = boot_ns();
        let degraded = doctor::shortcomings(&probes);
        let hanging = hanging::decode(probes.take_hanging());
        let awaited = probes.take_awaited()?;
        let answers = probes.answer_program().map_err(|error| format!("{error:#}"));
        if let Err(why) = answers.and_then(|program| helper.keep_answer_program(program)) {
            // Of kernels that are older `doctor` tells.
            let level = if probes.may_probe().is_ok() { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "answers to datagrams are not seen: {why}");
        }
        let mut ring = probes.take_process_ring()?;
        let filling = ring.as_fd().try_clone_to_owned().context("cannot watch the ring of processes")?;
        let lives: ProcessEvents = Box::new(move || ring.next().map(|record| Bytes::copy_from_slice(&record)));
        // What ran before is read once; what begins from now on is reported.
        let mut processes = Processes::default();
        if proc::sees_initial_pids() {
            let mut all = proc::all();
            all.sort_by_key(|facts| facts.id.start_ticks);
            let trees: Vec<u32> = filter.pids.iter().copied().chain(filter.follow).collect();
            if !trees.is_empty() {
                place_in_tree(&mut probes, &all, &trees)?;
            }
            all.into_iter().for_each(|facts| processes.seed(facts));
        }
        Ok(Self {
            identity: Identity::read(),
            allowed,
            helper,
            filter,
            probes,
            firewalls,
            since_ns,
            degraded,
            hanging,
            filling,
            lives,
            awaited,
            processes,
            rules,
            replayed: replayed == Ok(true),
            changes,
            changing: Arc::default(),
            listening,
            modules,
        })
    }

    /// Set while a change of rules is to be reported yet.
    pub(super) fn changing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.changing)
    }

    /// What lines say of this host.
    pub(super) fn reporter(&self) -> &Reporter {
        &self.identity.reporter
    }

    /// Base chains that may drop answers unseen: of the namespace that is watched, and of the host's first one, which may forward for it.
    /// Where they are not known, observing is degraded.
    pub(super) fn unwatched(&mut self) -> Vec<String> {
        let first = fs::metadata("/proc/1/ns/net").ok().and_then(|about| u32::try_from(about.ino()).ok());
        let of_first = first.filter(|_| !is_own_netns(first)).map(|first| firewalls(&mut self.helper, Some(first)));
        let mut chains = Vec::new();
        for (of, place) in [(Some(&self.firewalls), ""), (of_first.as_ref(), " (first namespace)")] {
            let Some(of) = of else { continue };
            match of.as_ref().map_err(Clone::clone).and_then(|inventory| inventory.before_tracking.clone()) {
                Ok(found) => chains.extend(found.into_iter().map(|chain| format!("{chain}{place}"))),
                Err(why) => self.degraded.push(Degraded {
                    what: "answers".to_owned(),
                    why: format!("the rules on the way in were not read{place}: {why}"),
                    consequence: "answers may be dropped unseen before connection tracking".to_owned(),
                }),
            }
        }
        chains
    }

    /// Processes that live in the trees that are kept track of; once.
    pub(super) fn tree(&mut self) -> Result<Tree> {
        self.probes.take_tree()
    }

    /// Gives up every privilege but the capabilities in `keep`; then it can run.
    pub(super) fn confined(
        mut self,
        outlets: Vec<Outlet>,
        limits: Limits,
        command_lines: CommandLines,
        keep: &[Capability],
    ) -> Run<Helper> {
        if let Err(error) = self.helper.hurry() {
            log::debug!("{error:#}");
        }
        // An administrator's file that cannot be read is `check`'s business: the profiles that are built in are known.
        let profiles =
            Profiles::read(Path::new(profiles::FOLDER)).or_else(|_| Profiles::read(Path::new("/nonexistent")));
        let hints = profiles.map(|profiles| Hints::new(&profiles)).unwrap_or_default();
        let owners = Owners::new(self.helper, self.processes, self.lives, self.since_ns);
        let reasons = std::mem::take(&mut self.probes.reasons);
        let mut awaited = self.awaited;
        let tell =
            Box::new(move |key: &_, is_awaited| awaited.set(key, is_awaited).map_err(|error| format!("{error:#}")));
        let rooms = Rooms {
            attribution: Attribution::new(self.identity, reasons, owners, command_lines),
            explainer: Explainer::new(self.rules, Box::new(move |sender| hints.of(sender))),
            changes: self.changes,
            incidents: Incidents::new(self.allowed.finds_fixes, self.allowed.first),
            tell,
        };
        match confine(keep, false, || self.probes.totals().is_ok()) {
            Ok(confined) => {
                log::debug!("confined; kept: {:?}", confined.kept);
                if let Some(why) = confined.still_root {
                    self.degraded.push(Degraded {
                        what: "privileges".to_owned(),
                        why: format!("cannot become an unprivileged user: {why}"),
                        consequence: "the process that decodes packets runs as root, without capabilities".to_owned(),
                    });
                }
            }
            Err(error) => self.degraded.push(Degraded {
                what: "privileges".to_owned(),
                why: format!("{error:#}"),
                consequence: "observer keeps more privileges than it needs".to_owned(),
            }),
        }
        crate::sys::trim_memory();
        Run {
            probes: self.probes,
            filling: self.filling,
            listening: self.listening,
            modules: self.modules,
            rooms,
            outlets,
            news: Arc::default(),
            changing: self.changing,
            filter: self.filter,
            limits,
            degraded: self.degraded,
            hanging: self.hanging,
            is_recorded: false,
            manager: Manager::default(),
        }
    }

    /// `observer: ready · all namespaces · …`: what is watched, and how it is reported.
    pub(super) fn ready_line(&self) -> String {
        let (filter, probes) = (&self.filter, &self.probes);
        let mut parts = vec!["observer: ready".to_owned()];
        parts.push(match (&filter.netns_name, filter.netns) {
            (Some(name), _) => format!("namespace {name}"),
            (None, Some(number)) => format!("namespace net:[{number}]"),
            (None, None) => "all namespaces".to_owned(),
        });
        let hanging = if self.hanging.is_empty() { String::new() } else { format!(", {} hanging", self.hanging.len()) };
        let open =
            if probes.seeded == 1 { "1 socket was".to_owned() } else { format!("{} sockets were", probes.seeded) };
        parts.push(format!("{open} already open{hanging}"));
        let rules = match (self.rules.are_live(), self.rules.are_probed()) {
            (true, _) => "rules: live",
            (false, true) => "rules: live from a block's second packet on",
            (false, false) => "rules: not seen (see `observer doctor`)",
        };
        let seen = self.rules.are_live() || self.rules.are_probed();
        let replayed = match (seen && self.replayed, self.rules.are_live()) {
            (false, _) => "",
            (true, true) => ", verified by replay",
            (true, false) => ", and by replay",
        };
        parts.push(format!("{rules}{replayed}"));
        parts.push(firewalls_words(&self.firewalls, filter.netns));
        let only = filter.words();
        if !only.is_empty() {
            parts.push(format!("only {}", only.join(", ")));
        }
        if !self.degraded.is_empty() {
            let what: Vec<&str> = self.degraded.iter().map(|degraded| degraded.what.as_str()).collect();
            parts.push(format!("degraded: {} (see `observer doctor`)", what.join(", ")));
        }
        parts.join(" · ")
    }
}

/// Tells the eBPF side which of the processes that run already belong to the trees that are asked for.
fn place_in_tree(probes: &mut Probes, all: &[Facts], wanted: &[u32]) -> Result<()> {
    let parents: HashMap<u32, u32> = all.iter().map(|facts| (facts.id.pid, facts.parent_pid)).collect();
    for facts in all {
        let mut line =
            std::iter::successors(Some(facts.id.pid), |pid| parents.get(pid).copied().filter(|pid| *pid != 0))
                // Numbers that were read one by one may not fit together.
                .take(parents.len());
        let inside = line.any(|pid| wanted.contains(&pid));
        probes.place_in_tree(facts.id.pid, facts.id.start_ticks, inside)?;
    }
    // Who has ended in between was not taken out by its end.
    for facts in all.iter().filter(|facts| !proc::lives(facts.id)) {
        probes.take_out_of_tree(facts.id.pid)?;
    }
    Ok(())
}

/// It is the network namespace that observer itself is in; `None` stands for that too.
pub(super) fn is_own_netns(netns: Option<u32>) -> bool {
    netns.is_none_or(|netns| own_netns() == Some(netns))
}

/// Inode number of the network namespace that observer itself is in.
fn own_netns() -> Option<u32> {
    let number = fs::metadata("/proc/self/ns/net").ok()?.ino();
    u32::try_from(number).ok()
}

/// Which firewalls decide in observer's own namespace, or in the only one that is watched.
fn firewalls(helper: &mut Helper, netns: Option<u32>) -> Result<Inventory, String> {
    helper.firewalls(netns).map_err(|error| error.to_string()).and_then(|read| read)
}

/// The same in words.
fn firewalls_words(firewalls: &Result<Inventory, String>, netns: Option<u32>) -> String {
    match firewalls {
        Ok(inventory) => {
            let names: Vec<&str> = inventory.active().map(|front_end| front_end.name.as_str()).collect();
            match (names.is_empty(), netns) {
                (false, _) => format!("firewalls: {}", names.join(", ")),
                (true, Some(_)) => "no firewall rules there".to_owned(),
                (true, None) => "no firewall rules in this namespace".to_owned(),
            }
        }
        Err(why) => format!("firewalls unknown: {why}"),
    }
}

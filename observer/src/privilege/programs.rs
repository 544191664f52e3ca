//! BPF programs of a cgroup: which there are, and what they say to packets of its processes.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};

use super::{deciders::program_name, trials::Place};
use crate::{
    model::{Packet, Programs},
    sandbox::copy::{self, cgroup::Said},
    sys::{CGROUP_HOOKS, cgroup_programs},
};

/// Programs of systemd's that know the addresses which a unit may reach.
const OF_SYSTEMD: &str = "sd_fw_";
/// How the names of an observer's programs begin, which only look and never deny.
const OWN: &str = "own_sock_";

/// Whoever would send.
#[derive(Clone)]
pub(super) struct Cgroup {
    /// Where the unified hierarchy is mounted.
    pub(super) root: PathBuf,
    /// Its folder there.
    pub(super) folder: PathBuf,
    /// It is this process's own: no socket has to be made elsewhere.
    pub(super) is_own: bool,
}

impl Cgroup {
    /// Its `cgroup.procs`, open so that a process can be put there.
    pub(super) fn procs(&self) -> Result<File> {
        let path = self.folder.join("cgroup.procs");
        File::options().write(true).open(path).context("the cgroup cannot be entered")
    }

    /// Programs of any kind are asked there.
    fn has_programs(&self) -> bool {
        let Ok(folder) = File::open(&self.folder) else { return false };
        // Where that is not told, they are asked.
        CGROUP_HOOKS
            .into_iter()
            .any(|hook| cgroup_programs(folder.as_fd(), hook, true).map_or(true, |ids| !ids.is_empty()))
    }

    /// Programs that would be asked of a unit there, once it runs: those of its slices, but for systemd's own, which only count
    /// there, and observer's, which only look.
    pub(super) fn foreign(&self) -> Vec<String> {
        let Ok(folder) = File::open(&self.folder) else { return Vec::new() };
        let ids =
            CGROUP_HOOKS.into_iter().flat_map(|hook| cgroup_programs(folder.as_fd(), hook, true).unwrap_or_default());
        let mut names: Vec<String> =
            ids.map(|id| program_name(u64::from(id)).unwrap_or_else(|| id.to_string())).collect();
        names.retain(|name| !name.starts_with(OF_SYSTEMD) && !name.starts_with(OWN));
        names.sort();
        names.dedup();
        names
    }

    /// The programs that are asked there, in words, each with the cgroup that has it.
    fn words(&self, programs: Programs, is_v6: bool) -> String {
        let [create, connect4, connect6, send4, send6, egress] = CGROUP_HOOKS;
        let hook = match (programs, is_v6) {
            (Programs::Create, _) => create,
            (Programs::Connect, false) => connect4,
            (Programs::Connect, true) => connect6,
            (Programs::Send, false) => send4,
            (Programs::Send, true) => send6,
            (Programs::Egress, _) => egress,
        };
        let mut all = Vec::new();
        let parents = self.folder.ancestors().take_while(|folder| folder.starts_with(&self.root));
        for folder in parents {
            let ids =
                File::open(folder).and_then(|open| cgroup_programs(open.as_fd(), hook, false)).unwrap_or_default();
            let path = folder.strip_prefix(&self.root).unwrap_or(Path::new("")).display();
            for id in ids {
                let name = program_name(u64::from(id));
                if name.as_ref().is_some_and(|name| name.starts_with(OWN)) {
                    continue;
                }
                let of = name.as_ref().filter(|name| name.starts_with(OF_SYSTEMD)).map_or("", |_| " (IPAddressDeny=)");
                let name = name.map_or_else(|| format!("{id}"), |name| format!("`{name}`"));
                all.push(format!("{name} of cgroup /{path}{of}"));
            }
        }
        match all.as_slice() {
            [] => "a BPF program of its cgroup".to_owned(),
            [only] => format!("BPF program {only}"),
            several => format!("one of the BPF programs {}", several.join(", ")),
        }
    }
}

/// What is said to a packet, and by which programs.
pub(super) enum Answer {
    /// Nothing against it.
    Passes,
    /// These deny it.
    Denied(Programs, String),
    /// It cannot be reported, and why.
    Unknown(String),
}

impl Place {
    /// What the programs of a cgroup say to packets that are sent here; or that it cannot be reported, and why.
    pub(super) fn ask_programs(&self, cgroup: &Cgroup, packets: &[&Packet]) -> Vec<Answer> {
        if !cgroup.has_programs() {
            return packets.iter().map(|_| Answer::Passes).collect();
        }
        self.asked_programs(cgroup, packets).unwrap_or_else(|error| {
            let why = format!("BPF programs of its cgroup cannot be asked: {error:#}");
            packets.iter().map(|_| Answer::Unknown(why.clone())).collect()
        })
    }

    fn asked_programs(&self, cgroup: &Cgroup, packets: &[&Packet]) -> Result<Vec<Answer>> {
        let procs = if cgroup.is_own { None } else { Some(cgroup.procs()?) };
        let ask = || -> Result<Vec<Result<Said>>> {
            let hide = self.hide();
            let _hidden = hide(copy::own_namespace()?)?;
            self.inside(copy::around)?.make()?;
            Ok(packets.iter().map(|packet| copy::cgroup::ask(packet, procs.as_ref())).collect())
        };
        let said = thread::scope(|scope| {
            let thread = thread::Builder::new().name("replay".to_owned()).spawn_scoped(scope, ask)?;
            thread.join().map_err(|_| anyhow::anyhow!("the thread in the private namespace failed"))?
        })?;
        let of = |(packet, said): (&&Packet, Result<Said>)| match said {
            Ok(Said::Passes) => Answer::Passes,
            Ok(Said::Denied(programs)) => {
                let is_v6 = packet.to().is_some_and(|(_, address, _)| address.is_ipv6());
                Answer::Denied(programs, cgroup.words(programs, is_v6))
            }
            Ok(Said::Elsewhere(Some(to))) => {
                Answer::Unknown(format!("a BPF program of its cgroup sends it to {to} instead: ask for that"))
            }
            Ok(Said::Elsewhere(None)) => Answer::Unknown(
                "a BPF program of its cgroup sends it to this host itself instead: to a proxy here".to_owned(),
            ),
            Err(error) => Answer::Unknown(format!("what BPF programs of its cgroup say is not known: {error:#}")),
        };
        Ok(packets.iter().zip(said).map(of).collect())
    }
}

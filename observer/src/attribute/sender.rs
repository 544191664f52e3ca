//! Who sent it, as a line tells it: the process with its parents, the user, unit and container.

use std::{path::Path, sync::Arc};

use super::{
    Attribution, CommandLines, invocation,
    owner::{Found, Who as Asks},
    processes::Ran,
    redact, unit,
};
use crate::{
    intake::decode::text,
    model::{Image, Namespaces, Parent, Pod, Process, ProcessNamespaces, Sender, Truncated, User},
    privilege::HostQueries,
};

/// What the socket says of its sender.
#[derive(Clone, Copy, Default)]
pub(crate) struct Credentials {
    /// User id of its creation.
    pub(crate) uid: Option<u32>,
    /// Id of its cgroup.
    pub(crate) cgroup: Option<u64>,
}

impl<E: HostQueries> Attribution<E> {
    /// The sender: a process if one was found, and what its socket says.
    pub(crate) fn sender(&mut self, found: Option<Found>, socket: Credentials, boot_ns: u64) -> Sender {
        let who = found.map(|found| self.describe(found, boot_ns));
        let cgroup = match &who {
            Some(who) if who.cgroup.is_some() => who.cgroup.clone(),
            _ => socket.cgroup.and_then(|id| self.owners.cgroup_path(id)),
        };
        let user = socket.uid.map(|uid| self.user(uid, who.as_ref().and_then(|who| who.euid)));
        let unit = cgroup.as_deref().and_then(unit::unit);
        let mut container = cgroup.as_deref().and_then(unit::container);
        let named = container.as_ref().and_then(|container| self.owners.container_name(&container.id));
        let (name, pod) = named.map(|named| (named.name, named.pod)).unzip();
        if let Some(container) = &mut container {
            container.name = name;
        }
        let pod = pod.flatten().map(|(namespace, name)| Pod { namespace, name });
        let ancestry = found
            .zip(who.as_ref())
            .map(|(found, who)| self.owners.processes.ancestry(found.id, &who.process.name))
            .unwrap_or_default();
        let (process, script, truncated, namespaces) = match who {
            Some(who) => (Some(who.process), who.script, who.truncated, who.namespaces),
            None => (None, None, Vec::new(), None),
        };
        let started = process.as_ref().and_then(|process| process.start);
        let invocation = unit.as_deref().zip(cgroup.as_deref()).and_then(|(unit, cgroup)| {
            invocation::of(Path::new(invocation::FOLDER), unit, cgroup, started, self.clock.wall(boot_ns))
        });
        Sender {
            relay: process.as_ref().and_then(relay),
            process,
            user,
            container,
            pod,
            invocation,
            unit,
            slice: cgroup.as_deref().and_then(unit::slice),
            cgroup,
            script,
            truncated,
            namespaces,
            ancestry,
            known: found.map(|found| found.known),
            by: found.map(|found| found.by),
        }
    }

    /// Everything that is known about the process that was found, as it was at that time.
    fn describe(&mut self, found: Found, boot_ns: u64) -> Who {
        let ran = self.owners.processes.get(found.id).and_then(|entry| entry.ran_at(boot_ns));
        let unread = ran.map(|ran| Arc::clone(&ran.image)).filter(|image| image.args_unread);
        if let Some(unread) = unread {
            let facts = Asks::facts(&mut self.owners.queries, found.id.pid, Some(found.id.start_ticks));
            self.owners.processes.complete(found.id, &unread, facts.map(|facts| facts.image));
        }
        let processes = &self.owners.processes;
        let entry = processes.get(found.id);
        let (task, bound_ns) = found.bound.unzip();
        // What it ran when it was bound may be a program of which the eBPF side could not tell.
        let told = |ran: &&Ran| {
            bound_ns.zip(task).is_none_or(|(bound_ns, task)| ran.since_ns > bound_ns || ran.is_after(task.execs))
        };
        let ran = entry.and_then(|entry| entry.ran_at(boot_ns)).filter(told);
        let image = ran.map(|ran| Arc::clone(&ran.image));
        // The name at the time it was bound, unless the process has run another program since.
        let replaced = ran.zip(bound_ns).is_some_and(|(ran, bound_ns)| ran.since_ns > bound_ns);
        let bound_name = task.filter(|_| !replaced).and_then(|task| text(&task.comm));
        let name = bound_name
            .or_else(|| Some(ran?.name.clone()))
            .or_else(|| Some(entry?.name.clone()))
            .or_else(|| text(&task?.comm));
        let parent = entry
            .and_then(|entry| entry.parent)
            .map(|id| Parent { pid: id.pid, name: processes.get(id).map(|parent| parent.name.clone()) });
        let parent = parent.or_else(|| {
            let pid = task.map(|task| task.parent_pid).filter(|pid| *pid != 0)?;
            Some(Parent { pid, name: None })
        });
        let start_ns =
            task.map(|task| task.start_ns).or_else(|| entry?.start_ns).unwrap_or_else(|| found.id.start_ns());
        let thread = task.filter(|task| task.tid != task.pid && task.tid != 0).map(|task| task.tid);
        let euid = task.map(|task| task.euid).or_else(|| entry?.euid);
        let namespaces = entry.and_then(|entry| namespaces(entry.namespaces));
        let cgroup_id = task.map(|task| task.cgroup).or_else(|| Some(entry?.cgroup)).filter(|id| *id != 0);
        let cgroup_path = entry.and_then(|entry| entry.cgroup_path.clone());
        let cgroup = cgroup_id.and_then(|id| self.owners.cgroup_path(id)).or(cgroup_path);
        let image = image.as_deref();
        let args = image.filter(|image| !image.args.is_empty()).and_then(|image| self.arguments(image));
        Who {
            process: Process {
                pid: found.id.pid,
                entity_id: self.identity.process_id(found.id),
                name: name.unwrap_or_default(),
                executable: image.and_then(executable),
                args,
                start: Some(self.clock.wall(start_ns)),
                thread,
                parent,
            },
            script: image.and_then(|image| image.script.clone()),
            truncated: [
                (Truncated::Executable, image.is_some_and(|image| image.executable_cut)),
                (Truncated::Arguments, image.is_some_and(|image| image.args_cut)),
            ]
            .into_iter()
            .filter_map(|(field, cut)| cut.then_some(field))
            .collect(),
            namespaces,
            euid,
            cgroup,
        }
    }

    fn arguments(&self, image: &Image) -> Option<Vec<String>> {
        let args = || image.args.iter().map(str::to_owned).collect::<Vec<_>>();
        match self.command_lines {
            CommandLines::Redacted => Some(redact::redact(&args())),
            CommandLines::Unredacted => Some(args()),
            CommandLines::None => None,
        }
    }

    fn user(&mut self, uid: u32, euid: Option<u32>) -> User {
        let mut name = |id: u32| self.users.name(id).map(str::to_owned);
        let effective = euid.filter(|euid| *euid != uid).map(|euid| (euid, name(euid)));
        User { id: uid, name: name(uid), effective }
    }
}

/// What is known about a process.
struct Who {
    process: Process,
    script: Option<String>,
    truncated: Vec<Truncated>,
    namespaces: Option<ProcessNamespaces>,
    euid: Option<u32>,
    cgroup: Option<String>,
}

/// Programs that carry a rootless container's traffic, by the name of their file.
const RELAYS: [&str; 4] = ["slirp4netns", "pasta", "pasta.avx2", "passt"];

fn relay(process: &Process) -> Option<String> {
    let file = process.executable.as_deref()?.rsplit('/').next()?;
    RELAYS.contains(&file).then(|| file.to_owned())
}

/// A path of which only the end is known begins with a mark.
fn executable(image: &Image) -> Option<String> {
    let path = image.executable.as_ref()?;
    Some(if image.executable_cut { format!("…{path}") } else { path.clone() })
}

fn namespaces(numbers: Namespaces) -> Option<ProcessNamespaces> {
    let known = |number: u32| (number != 0).then_some(number);
    let namespaces = ProcessNamespaces {
        pid: known(numbers.pid),
        inner_pid: known(numbers.inner_pid),
        user: known(numbers.user),
        // Root's number is 0.
        user_owner: known(numbers.user).map(|_| numbers.user_owner).filter(|owner| *owner != u32::MAX),
    };
    (namespaces.pid.is_some() || namespaces.user.is_some()).then_some(namespaces)
}

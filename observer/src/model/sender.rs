//! Who sent something: the process with its parents, the user, unit and container.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;
use uuid::Uuid;

/// Everything that follows from who sent it. What is not known is `None`, never guessed and never an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Sender {
    /// The process.
    pub process: Option<Process>,
    /// The socket's user; the process's where it differs.
    pub user: Option<User>,
    /// Its container.
    pub container: Option<Container>,
    /// Its pod.
    pub pod: Option<Pod>,
    /// systemd unit.
    pub unit: Option<String>,
    /// What tells one run of the unit from another: systemd's invocation id.
    pub invocation: Option<String>,
    /// systemd slice.
    pub slice: Option<String>,
    /// The program that carries other processes' traffic in its own name: a rootless container's network.
    pub relay: Option<String>,
    /// cgroup path in the unified hierarchy.
    pub cgroup: Option<String>,
    /// The script that the process's executable interprets, as it was executed.
    pub script: Option<String>,
    /// What of the process is cut short.
    pub truncated: Vec<Truncated>,
    /// Namespaces of the process that are not the host's own.
    pub namespaces: Option<ProcessNamespaces>,
    /// The process and its parents, nearest first.
    pub ancestry: Vec<Ancestor>,
    /// How the process is known.
    pub known: Option<OwnerKnown>,
    /// What made it the owner.
    pub by: Option<OwnerBy>,
}

impl Sender {
    /// It belongs to the tree of this process.
    pub fn descends_from(&self, pid: u32) -> bool {
        self.ancestry.iter().any(|ancestor| ancestor.pid == pid)
    }

    /// Whoever had a program change rules, as ufw does by many of iptables'; else that program.
    pub fn author(&self) -> Option<u32> {
        let parent = self.ancestry.get(1).filter(|parent| parent.pid != 1);
        parent.or(self.ancestry.first()).map(|ancestor| ancestor.pid)
    }

    /// `curl[2211]`, or what is known instead. Not escaped: that is the renderer's business.
    pub fn words(&self) -> String {
        if self.known == Some(OwnerKnown::Kernel) {
            return "the kernel".to_owned();
        }
        match (&self.process, &self.unit, &self.user) {
            (Some(process), ..) => format!("{}[{}]", process.name, process.pid),
            (None, Some(unit), _) => format!("a process of {unit}"),
            (None, None, Some(user)) => {
                format!("a process of user {}", user.name.clone().unwrap_or_else(|| format!("uid {}", user.id)))
            }
            (None, None, None) => "no process".to_owned(),
        }
    }
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Process {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Survives pid reuse: made of boot, pid and start.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::uuid()"))]
    pub entity_id: Uuid,
    /// Name.
    pub name: String,
    /// Path of the executable.
    pub executable: Option<String>,
    /// Arguments, secrets masked.
    pub args: Option<Vec<String>>,
    /// When it started.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::some_time()"))]
    pub start: Option<Timestamp>,
    /// The thread that connected or created the socket, where it is not the first: its id in the initial namespace.
    pub thread: Option<u32>,
    /// Its parent.
    pub parent: Option<Parent>,
}

impl Process {
    /// Its arguments as one line.
    pub fn command_line(&self) -> Option<String> {
        self.args.as_ref().map(|args| args.join(" "))
    }
}

/// A process's parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Parent {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Name; `None` when the parent is gone.
    pub name: Option<String>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct User {
    /// User id in the initial namespace.
    pub id: u32,
    /// Name.
    pub name: Option<String>,
    /// The process's effective user, where it differs: id and name.
    pub effective: Option<(u32, Option<String>)>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Runtime: `docker`, `podman`, …
    pub runtime: Option<String>,
    /// Name.
    pub name: Option<String>,
}

/// A pod of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The process itself, or one of its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Ancestor {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Name.
    pub name: String,
}

/// A part of [`Process`] of which only the beginning or the end is known; as ECS names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Truncated {
    /// [`Process::executable`]
    #[serde(rename = "process.executable")]
    #[strum(serialize = "process.executable")]
    Executable,
    /// [`Process::args`]
    #[serde(rename = "process.args")]
    #[strum(serialize = "process.args")]
    Arguments,
}

/// `egress.owner`: how the process is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum OwnerKnown {
    /// It owns the socket.
    Socket,
    /// It was inside a call on that very socket.
    Syscall,
    /// It is the only one whose socket can have sent the packet, which another namespace forwarded.
    Flow,
    /// No process: the kernel sends on a socket of its own or without one (a tunnel, a network file system, a reset).
    Kernel,
}

/// `egress.owner_by`: what made the process the owner of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum OwnerBy {
    /// It connected the socket.
    Connect,
    /// It created the socket; who uses it may be another, but that is not proven.
    Create,
    /// It had the socket open when observer started.
    Open,
    /// It was seen sending on the socket.
    Send,
    /// It is the only process that has the socket open.
    Holder,
    /// Its socket's addresses and ports are the packet's.
    Address,
}

/// Numbers of a process in namespaces that are not the host's own; `None` where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ProcessNamespaces {
    /// Inode number of its pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its process id in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_pid: Option<u32>,
    /// Inode number of its user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// User id, in the initial user namespace, of whoever made that; of one within others, the outermost of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_owner: Option<u32>,
}

#[cfg(test)]
impl Sender {
    /// A program, as root runs it.
    pub(crate) fn example(executable: &str, pid: u32) -> Self {
        let name = executable.rsplit('/').next().unwrap_or(executable).to_owned();
        Self {
            process: Some(Process {
                pid,
                entity_id: Uuid::from_u128(pid.into()),
                name: name.clone(),
                executable: Some(executable.to_owned()),
                args: None,
                start: None,
                thread: None,
                parent: None,
            }),
            user: Some(User { id: 0, name: None, effective: None }),
            ancestry: vec![Ancestor { pid, name }],
            known: Some(OwnerKnown::Socket),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_it_was_has_a_name() {
        let mut sender = Sender::example("/usr/bin/curl", 7);
        assert_eq!(sender.words(), "curl[7]");
        sender.process = None;
        assert_eq!(sender.words(), "a process of user uid 0");
        sender.unit = Some("cron.service".to_owned());
        assert_eq!(sender.words(), "a process of cron.service");
        sender.known = Some(OwnerKnown::Kernel);
        assert_eq!(sender.words(), "the kernel");
        assert_eq!(Sender::default().words(), "no process");
    }
}

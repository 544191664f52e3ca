//! A process as the eBPF side and /proc know it.

use std::net::SocketAddr;

use observer_ebpf::abi::{TICK_NS, Task};
use serde::{Deserialize, Serialize};

use super::{dropped::Owner, flow::Flow};

/// A process, by what survives reuse of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Start, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// From a start in nanoseconds of `CLOCK_BOOTTIME`.
    pub fn new(pid: u32, start_ns: u64) -> Self {
        Self { pid, start_ticks: start_ns / TICK_NS }
    }

    /// Start in nanoseconds of `CLOCK_BOOTTIME`, to the tick.
    pub fn start_ns(self) -> u64 {
        self.start_ticks * TICK_NS
    }
}

/// The program that a process runs; a field that is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Path of the executable; of a script its interpreter. `None` for a kernel thread.
    pub executable: Option<String>,
    /// The path is only its end.
    pub executable_cut: bool,
    /// What was executed, where that is another file: a script.
    pub script: Option<String>,
    /// Arguments; empty for a kernel thread.
    pub args: Arguments,
    /// There are more arguments, or longer ones.
    pub args_cut: bool,
    /// The arguments were not read yet: they are in the process's own memory, which may be anything, and are looked at only where
    /// they are reported.
    pub args_unread: bool,
}

/// Arguments of a program, as the kernel keeps them: one text, each ended by a zero. An empty argument is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arguments(Box<str>);

impl Arguments {
    /// From the kernel's bytes, which need not be text.
    pub fn new(bytes: &[u8]) -> Self {
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        Self(String::from_utf8_lossy(bytes).into())
    }

    /// There are none: a kernel thread.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split('\0').take(if self.is_empty() { 0 } else { usize::MAX })
    }
}

impl Image {
    /// Bytes of memory that it takes, about.
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.args.0.len() + text(&self.executable) + text(&self.script)
    }
}

/// Namespaces of a process that are not the host's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Inode number of its pid namespace.
    pub pid: u32,
    /// Its process id in there.
    pub inner_pid: u32,
    /// Inode number of its user namespace.
    pub user: u32,
    /// User id, in the initial user namespace, of whoever made that; of one within others, the outermost of them; all ones where it is not known.
    pub user_owner: u32,
}

/// What /proc says about a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Which one.
    pub id: ProcessId,
    /// Its parent's process id; 0 for none.
    pub parent_pid: u32,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Name (`comm`).
    pub name: String,
    /// What it runs.
    pub image: Image,
    /// Effective user id.
    pub euid: Option<u32>,
    /// Path in the unified cgroup hierarchy.
    pub cgroup: Option<String>,
}

/// What a container is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerName {
    /// Its name; in a pod, the name there.
    pub name: String,
    /// Namespace and name of its pod.
    pub pod: Option<(String, String)>,
}

/// What the eBPF side tells about processes as it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessChange {
    /// A process was made.
    Fork(Box<Born>),
    /// A process runs another program.
    Exec(Box<Born>, Image),
    /// A process ended.
    Exit {
        /// Which one.
        id: ProcessId,
        /// When, nanoseconds of `CLOCK_BOOTTIME`.
        boot_ns: u64,
    },
    /// A socket of another namespace than the host's began a connection, or was closed.
    Flow(Flow),
    /// A connection was established to a destination that is waited for.
    Reached(Box<Reached>),
    /// A cgroup was made.
    Cgroup {
        /// Its id.
        id: u64,
        /// Its path in the unified hierarchy.
        path: String,
    },
}

/// A connection that was established to what was blocked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// The socket's owner, where it is known.
    pub owner: Option<Owner>,
    /// User id of the socket's creation.
    pub uid: u32,
    /// Group with which its file was opened; `None` where that is not known.
    pub gid: Option<u32>,
    /// Inode number of the network namespace that the socket is in.
    pub netns: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Local address and port.
    pub local: SocketAddr,
    /// Remote address and port.
    pub remote: SocketAddr,
    /// The connection ended without an answer.
    pub is_given_up: bool,
}

/// A process as it was made, or as it began to run another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Born {
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// The process.
    pub task: Task,
    /// Its parent.
    pub parent: Option<ProcessId>,
    /// Its namespaces.
    pub namespaces: Namespaces,
}

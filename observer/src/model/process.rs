//! A process as /proc knows it.

use serde::{Deserialize, Serialize};

/// A process that is named beside another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relative {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Name (`comm`).
    pub name: String,
}

/// What /proc says about a process; a field that could not be read is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Start, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
    /// Name (`comm`).
    pub name: String,
    /// Executable; `None` for a kernel thread.
    pub executable: Option<String>,
    /// Arguments; empty for a kernel thread.
    pub args: Vec<String>,
    /// Effective user id.
    pub euid: Option<u32>,
    /// Path in the unified cgroup hierarchy.
    pub cgroup: Option<String>,
    /// Parents, nearest first, up to pid 1.
    pub parents: Vec<Relative>,
}

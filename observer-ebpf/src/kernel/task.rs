//! The current process, read in its own context.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{bpf_get_current_cgroup_id, bpf_get_current_task},
};
use observer_ebpf::abi::{COMM_BYTES, Task};

use super::{
    layout::field,
    read::{Probe, Reader},
};

/// Facts about the process that is on the CPU.
#[inline(always)]
pub fn current() -> Task {
    // SAFETY: both helpers only return numbers.
    let (task, cgroup) = unsafe { (bpf_get_current_task(), bpf_get_current_cgroup_id()) };
    let id = bpf_get_current_pid_tgid();
    let user = bpf_get_current_uid_gid();
    let mut facts = from_task(task);
    facts.pid = (id >> 32) as u32;
    facts.tid = id as u32;
    facts.uid = user as u32;
    facts.gid = (user >> 32) as u32;
    facts.cgroup = cgroup;
    facts
}

/// Facts about any process, from its `task_struct`, the cgroup included.
#[inline(always)]
pub fn of(task: u64) -> Task {
    let mut facts = from_task(task);
    let cred: u64 = Probe::field(task, field!(task_cred)).unwrap_or(0);
    facts.uid = Probe::field(cred, field!(cred_uid)).unwrap_or(u32::MAX);
    facts.gid = Probe::field(cred, field!(cred_gid)).unwrap_or(u32::MAX);
    facts.pid = Probe::field(task, field!(task_tgid)).unwrap_or(0);
    facts.tid = Probe::field(task, field!(task_pid)).unwrap_or(0);
    let set: u64 = Probe::field(task, field!(task_cgroups)).unwrap_or(0);
    let cgroup: u64 = Probe::field(set, field!(css_set_cgroup)).unwrap_or(0);
    facts.cgroup = cgroup_id(cgroup);
    facts
}

/// The current task has no memory of its own: it is a thread of the kernel's.
#[inline(always)]
pub fn is_kernel_thread() -> bool {
    // SAFETY: the helper only returns a number.
    let task = unsafe { bpf_get_current_task() };
    Probe::field::<u64>(task, field!(task_mm)) == Some(0)
}

/// Inode number of the current process's network namespace.
#[inline(always)]
pub fn netns() -> u32 {
    // SAFETY: the helper only returns a number.
    let task = unsafe { bpf_get_current_task() };
    let namespaces: u64 = Probe::field(task, field!(task_nsproxy)).unwrap_or(0);
    let net: u64 = Probe::field(namespaces, field!(nsproxy_net)).unwrap_or(0);
    Probe::field(net, field!(net_inum)).unwrap_or(0)
}

/// Open files of the current process that are looked through.
const MAX_FILES: u32 = 64;

/// True when the current process has this `struct socket` among its first open files.
#[inline(always)]
pub fn holds(socket: u64) -> bool {
    socket != 0 && task_holds(socket) != 0
}

/// A function of its own to the verifier too: it is checked once, and not again for every way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn task_holds(socket: u64) -> u64 {
    // SAFETY: the helper only returns a number.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = Probe::field(task, field!(task_files)).unwrap_or(0);
    let table: u64 = Probe::field(files, field!(files_table)).unwrap_or(0);
    let size: u32 = Probe::field(table, field!(table_size)).unwrap_or(0);
    let list: u64 = Probe::field(table, field!(table_files)).unwrap_or(0);
    for index in 0..MAX_FILES {
        if index >= size {
            return 0;
        }
        let file: u64 = Probe::field(list, index * size_of::<u64>() as u32).unwrap_or(0);
        if Probe::field::<u64>(file, field!(file_private)) == Some(socket) {
            return 1;
        }
    }
    0
}

/// Id of a `struct cgroup`; 0 when it cannot be read.
#[inline(always)]
pub fn cgroup_id(cgroup: u64) -> u64 {
    let node: u64 = Probe::field(cgroup, field!(cgroup_kn)).unwrap_or(0);
    Probe::field(node, field!(kn_id)).unwrap_or(0)
}

#[inline(always)]
fn from_task(task: u64) -> Task {
    let leader: u64 = Probe::field(task, field!(task_leader)).unwrap_or(0);
    let parent: u64 = Probe::field(leader, field!(task_parent)).unwrap_or(0);
    let cred: u64 = Probe::field(task, field!(task_cred)).unwrap_or(0);
    Task {
        start_ns: Probe::field(leader, field!(task_start)).unwrap_or(0),
        parent_pid: Probe::field(parent, field!(task_tgid)).unwrap_or(0),
        euid: Probe::field(cred, field!(cred_euid)).unwrap_or(u32::MAX),
        execs: Probe::field(leader, field!(task_execs)).unwrap_or(0),
        comm: Probe::field::<[u8; COMM_BYTES]>(leader, field!(task_comm)).unwrap_or_default(),
        ..Task::default()
    }
}

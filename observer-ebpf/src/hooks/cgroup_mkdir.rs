//! `cgroup_mkdir(cgrp, path)`: a cgroup is made. A container that lives for seconds is named even when its cgroup is gone
//! by the time somebody asks.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::btf_tracepoint, programs::BtfTracePointContext};
use observer_ebpf::abi::{PATH_BYTES, ProcessEvent, Task};

use crate::kernel::{
    layout::field,
    process,
    read::{Probe, Reader},
    scratch, task,
};

/// `hierarchy_id` of the unified hierarchy.
const UNIFIED: i32 = 0;

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn proc_mkdir(context: BtfTracePointContext) -> i32 {
    let cgroup: u64 = context.arg(0);
    let path: u64 = context.arg(1);
    let root: u64 = Probe::field(cgroup, field!(cgroup_root)).unwrap_or(0);
    if Probe::field::<i32>(root, field!(root_hierarchy)) != Some(UNIFIED) {
        return 0;
    }
    let Some(scratch) = scratch::process() else { return 0 };
    let id = task::cgroup_id(cgroup);
    // SAFETY: the scratch space is this CPU's; the length is bounded by what it holds.
    unsafe {
        (*scratch).record = process::bare(Task { cgroup: id, ..Task::default() }, ProcessEvent::Cgroup);
        let into = (&raw mut (*scratch).data).cast();
        let read = bpf_probe_read_kernel_str(into, PATH_BYTES as u32, path as *const _);
        if read > 0 && read <= PATH_BYTES as i64 {
            (*scratch).record.name_bytes = read as u16;
            process::emit_scratch(scratch);
        }
    }
    0
}

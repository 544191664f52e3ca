//! `sched_process_fork(parent, child)`, `sched_process_exec(p, old_pid, bprm)`, `sched_process_exit(p)`: the life of a
//! process.
//!
//! Fork runs in the parent once the child is complete, exec in the process once its new memory is, exit in each thread
//! once it is counted off. So a process that lives some milliseconds is reported with everything, before it can send.

use core::hint::black_box;

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel_str, bpf_probe_read_user},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use observer_ebpf::abi::{ARGS_BYTES, NAME_BYTES, ProcessEvent, process_flag};

use crate::kernel::{
    layout::field,
    path, process,
    read::{Probe, Reader},
    scratch::{self, Process},
    task, tree,
};

#[btf_tracepoint(function = "sched_process_fork")]
pub fn proc_fork(context: BtfTracePointContext) -> i32 {
    let child: u64 = context.arg(1);
    let id: u32 = Probe::field(child, field!(task_pid)).unwrap_or(0);
    let process: u32 = Probe::field(child, field!(task_tgid)).unwrap_or(0);
    if id == process {
        let facts = task::of(child);
        tree::born(&facts);
        process::emit(&process::record(child, facts, ProcessEvent::Fork));
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn proc_exit(context: BtfTracePointContext) -> i32 {
    let thread: u64 = context.arg(0);
    let signal: u64 = Probe::field(thread, field!(task_signal)).unwrap_or(0);
    if Probe::field::<i32>(signal, field!(signal_live)) == Some(0) {
        let record = process::exit_record(thread);
        tree::ended(record.task.pid);
        process::emit(&record);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn proc_exec(context: BtfTracePointContext) -> i32 {
    let program: u64 = context.arg(2);
    // SAFETY: the helper only returns the current task's address.
    let current = unsafe { bpf_get_current_task() };
    let Some(scratch) = scratch::process() else { return 0 };
    // SAFETY: the scratch space is this CPU's, and nothing else of this object uses it in this hook.
    unsafe {
        (*scratch).record = process::record(current, task::current(), ProcessEvent::Exec);
        fill(scratch, program, current);
        process::emit_scratch(scratch);
    }
    0
}

/// Path, name and arguments, one behind the other.
#[inline(always)]
unsafe fn fill(scratch: *mut Process, program: u64, current: u64) {
    // SAFETY: all lengths are bounded by what the scratch space holds; the helpers check their sources.
    unsafe {
        let file: u64 = Probe::field(program, field!(bprm_file)).unwrap_or(0);
        let (path_bytes, whole) = path::read(scratch, file);
        if !whole {
            (*scratch).record.flags |= process_flag::PATH_CUT;
        }
        (*scratch).record.path_bytes = path_bytes as u16;

        let name: u64 = Probe::field(program, field!(bprm_filename)).unwrap_or(0);
        let mut at = black_box(u64::from(path_bytes)) & scratch::PATH_MASK;
        let into = (&raw mut (*scratch).data).cast::<u8>().add(at as usize);
        let read = bpf_probe_read_kernel_str(into.cast(), NAME_BYTES as u32, name as *const _);
        if read > 0 && read <= NAME_BYTES as i64 {
            (*scratch).record.name_bytes = read as u16;
            at += read as u64;
        }

        let memory: u64 = Probe::field(current, field!(task_mm)).unwrap_or(0);
        let start: u64 = Probe::field(memory, field!(mm_arg_start)).unwrap_or(0);
        let end: u64 = Probe::field(memory, field!(mm_arg_end)).unwrap_or(0);
        let mut bytes = end.wrapping_sub(start);
        if bytes > ARGS_BYTES as u64 {
            bytes = ARGS_BYTES as u64;
            (*scratch).record.flags |= process_flag::ARGS_CUT;
        }
        // The compiler knows that the mask changes nothing; not every kernel's verifier does.
        let into = (&raw mut (*scratch).data).cast::<u8>().add((black_box(at) & scratch::NAME_MASK) as usize);
        if bytes > 0 && bpf_probe_read_user(into.cast(), bytes as u32, start as *const _) == 0 {
            (*scratch).record.args_bytes = bytes as u16;
        }
    }
}

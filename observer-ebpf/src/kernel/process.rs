//! Process records and their ring.
//!
//! Nobody waits for most of them: user space takes them when a drop is to be named, or when the ring is a quarter full. So a host
//! on which nothing is blocked is not woken for every process that it starts.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::RingBuf,
    helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit},
    macros::btf_map,
};
use observer_ebpf::abi::{Counter, FlowRecord, ProcessEvent, ProcessRecord, Task};

use super::{
    counters::count,
    layout::field,
    read::{Probe, Reader},
    scratch::{DATA_BYTES, Process},
    share::maker,
    time::boot_ns,
};

/// Bytes of the ring: about ten thousand programs started.
const RING_BYTES: usize = 1 << 22;
/// Fill at which user space is woken to empty it.
const WAKE_AT: u64 = RING_BYTES as u64 / 4;

#[btf_map]
static PROCESSES: RingBuf<(), RING_BYTES> = RingBuf::new();
/// On the stack: a cgroup program may be preempted, and a CPU's scratch space is then another's.
#[repr(C)]
pub struct Whole {
    pub record: ProcessRecord,
    pub flow: FlowRecord,
}

/// The fixed part for a process.
#[inline(always)]
pub fn record(task: u64, facts: Task, event: ProcessEvent) -> ProcessRecord {
    let parent: u64 = Probe::field(task, field!(task_parent)).unwrap_or(0);
    let leader: u64 = Probe::field(parent, field!(task_leader)).unwrap_or(0);
    let pid: u64 = Probe::field(task, field!(task_thread_pid)).unwrap_or(0);
    let level: u32 = Probe::field(pid, field!(pid_level)).unwrap_or(0);
    let number = pid + u64::from(field!(pid_numbers)) + u64::from(level) * u64::from(field!(upid_bytes));
    let namespace: u64 = Probe::field(number, field!(upid_ns)).unwrap_or(0);
    let cred: u64 = Probe::field(task, field!(task_cred)).unwrap_or(0);
    let user_namespace: u64 = Probe::field(cred, field!(cred_user_ns)).unwrap_or(0);
    ProcessRecord {
        parent_start_ns: Probe::field(leader, field!(task_start)).unwrap_or(0),
        pid_namespace: Probe::field(namespace, field!(pid_ns_inum)).unwrap_or(0),
        inner_pid: Probe::field(number, field!(upid_nr)).unwrap_or(0),
        user_namespace: Probe::field(user_namespace, field!(user_ns_inum)).unwrap_or(0),
        ident: maker(user_namespace).1.unwrap_or(u32::MAX),
        ..bare(facts, event)
    }
}

/// A record of which only the event and some of the task are known.
#[inline(always)]
pub fn bare(task: Task, event: ProcessEvent) -> ProcessRecord {
    ProcessRecord {
        time_ns: boot_ns(),
        task,
        parent_start_ns: 0,
        pid_namespace: 0,
        inner_pid: 0,
        user_namespace: 0,
        event: event as u8,
        flags: 0,
        path_bytes: 0,
        name_bytes: 0,
        args_bytes: 0,
        ident: 0,
    }
}

/// The end of a process, from its last thread.
#[inline(always)]
pub fn exit_record(thread: u64) -> ProcessRecord {
    let leader: u64 = Probe::field(thread, field!(task_leader)).unwrap_or(0);
    let task = Task {
        pid: Probe::field(thread, field!(task_tgid)).unwrap_or(0),
        start_ns: Probe::field(leader, field!(task_start)).unwrap_or(0),
        ..Task::default()
    };
    bare(task, ProcessEvent::Exit)
}

/// Hands over a record without data.
#[inline(always)]
pub fn emit(record: &ProcessRecord) {
    emit_with(record);
}

/// Hands over a record with what stands behind it in `whole`.
#[inline(always)]
pub fn emit_with<T>(whole: &T) {
    output((&raw const *whole).cast(), size_of::<T>() as u64);
}

/// Hands over at once that somebody reached what is waited for. Written in place: it is too much for a stack.
#[inline(always)]
pub fn emit_reached(owner: Option<&Task>, flow: &FlowRecord, gid: u32) {
    let ring = (&raw const PROCESSES).cast_mut().cast();
    // SAFETY: the map is a ring buffer; what it gives holds both, is written wholly, and is given back on every path.
    unsafe {
        let whole = bpf_ringbuf_reserve(ring, size_of::<Whole>() as u64, 0).cast::<Whole>();
        if whole.is_null() {
            count(Counter::ProcessRingFull);
            return;
        }
        (*whole).record = bare(Task::default(), ProcessEvent::Reached);
        (*whole).record.args_bytes = size_of::<FlowRecord>() as u16;
        (*whole).record.ident = gid;
        if let Some(owner) = owner {
            (*whole).record.task = *owner;
        }
        (*whole).flow = *flow;
        bpf_ringbuf_submit(whole.cast(), u64::from(BPF_RB_FORCE_WAKEUP));
    }
}

/// Hands over what was put together, with as much data as its lengths say.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn emit_scratch(scratch: *const Process) {
    // SAFETY: the caller's promise.
    let record = unsafe { &(*scratch).record };
    let data = u64::from(record.path_bytes) + u64::from(record.name_bytes) + u64::from(record.args_bytes);
    let mut bytes = size_of::<ProcessRecord>() as u64 + data;
    if bytes > (size_of::<ProcessRecord>() + DATA_BYTES) as u64 {
        bytes = (size_of::<ProcessRecord>() + DATA_BYTES) as u64;
    }
    output(scratch.cast(), bytes);
}

#[inline(always)]
fn output(bytes: *const u8, length: u64) {
    let ring = (&raw const PROCESSES).cast_mut().cast();
    // SAFETY: the map is a ring buffer, and the verifier checks that `length` bytes are readable.
    let status = unsafe {
        let full = bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) > WAKE_AT;
        let flags = if full { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
        bpf_ringbuf_output(ring, bytes.cast_mut().cast(), length, u64::from(flags))
    };
    if status != 0 {
        count(Counter::ProcessRingFull);
    }
}

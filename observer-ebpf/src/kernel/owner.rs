//! Which process a socket belongs to, by socket cookie.
//!
//! The cookie is a number that the kernel never uses twice, unlike a socket's address. A binding hook makes it and
//! stores the owner under it; the drop reads it from the socket.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
};
use observer_ebpf::abi::{Counter, Owner, OwnerSource, Task};

use super::{counters::count, time::boot_ns};

/// Sockets whose owner is kept at the same time. Entries are allocated as they come: an idle host pays for what it has.
const MAX_SOCKETS: usize = 1 << 18;
/// Closed sockets whose owner is kept on, per CPU: a packet of a closed socket may still wait in a queue.
const MAX_CLOSED: u32 = 1 << 12;

#[btf_map]
static OWNERS: HashMap<u64, Owner, MAX_SOCKETS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// An entry of [`OWNERS`] that waits for its removal.
#[derive(Clone, Copy)]
#[repr(C)]
struct Closed {
    cookie: u64,
    bound_ns: u64,
}

/// Ring of the last closed sockets of each CPU; slot 0 of [`CLOSED_AT`] is the next position.
#[btf_map]
static CLOSED: PerCpuArray<Closed, { MAX_CLOSED as usize }> = PerCpuArray::new();
#[btf_map]
static CLOSED_AT: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Slot 0: not 0 once connects are observed, so that a connection's socket need not be bound before.
#[btf_map]
static CONNECTS: Array<u32, 1> = Array::new();

/// Connects are observed.
#[inline(always)]
pub fn bound_by_connect() -> bool {
    CONNECTS.get(0).is_some_and(|observed| *observed != 0)
}

/// Owner of the socket with this cookie.
#[inline(always)]
pub fn get(cookie: u64) -> Option<&'static Owner> {
    if cookie == 0 {
        return None;
    }
    // SAFETY: the value may be replaced while it is read; it is replaced only by the same socket's next owner, and the
    // reader copies it at once.
    unsafe { OWNERS.get(cookie) }
}

/// Notes that another process was seen inside a call on the socket.
#[inline(always)]
pub fn mark_foreign(cookie: u64) {
    if let Some(owner) = OWNERS.get_ptr_mut(cookie) {
        // SAFETY: the pointer is to a live map value; every writer writes the same.
        unsafe { (&raw mut (*owner).foreign).write_volatile(1) };
    }
}

/// Binds a socket to the process that is inside a call on it; not one without a cookie.
#[inline(always)]
pub fn bind(cookie: u64, task: Task, netns: u32, source: OwnerSource) {
    if cookie == 0 {
        return;
    }
    let owner = Owner { task, bound_ns: boot_ns(), source: source as u32, holders: 1, netns, foreign: 0 };
    if OWNERS.insert(cookie, owner, u64::from(BPF_ANY)).is_err() {
        count(Counter::OwnerMapFull);
    }
}

/// Notes that a process holds a socket that is older than observer. A binding hook's word stands; a second holder makes
/// the owner ambiguous.
#[inline(always)]
pub fn seed(cookie: u64, task: Task, netns: u32) {
    if let Some(known) = OWNERS.get_ptr_mut(cookie) {
        // SAFETY: the pointer is to a live map value; only the seeding iterator, which runs once and alone, writes seeds.
        unsafe {
            if (*known).source == OwnerSource::Seed as u32 && (*known).task.pid != task.pid {
                (*known).holders += 1;
            }
        }
        return;
    }
    let owner = Owner { task, bound_ns: boot_ns(), source: OwnerSource::Seed as u32, holders: 1, netns, foreign: 0 };
    if OWNERS.insert(cookie, owner, u64::from(BPF_NOEXIST)).is_err() && get(cookie).is_none() {
        count(Counter::OwnerMapFull);
    }
}

/// The socket is closed: its owner goes once as many other sockets were closed on this CPU as the ring holds.
#[inline(always)]
pub fn retire(cookie: u64) {
    let Some(owner) = get(cookie) else { return };
    let bound_ns = owner.bound_ns;
    let Some(at) = CLOSED_AT.get_ptr_mut(0) else { return };
    // SAFETY: the pointer is to this CPU's slot.
    let index = unsafe {
        let index = *at;
        *at = index.wrapping_add(1);
        index % MAX_CLOSED
    };
    let Some(slot) = CLOSED.get_ptr_mut(index) else { return };
    // SAFETY: as above.
    let previous = unsafe { core::ptr::replace(slot, Closed { cookie, bound_ns }) };
    // A socket that was connected again since has a newer entry, which stays.
    if get(previous.cookie).is_some_and(|owner| owner.bound_ns == previous.bound_ns) {
        let _ = OWNERS.remove(previous.cookie);
    }
}

//! Which processes belong to the trees that are asked for: kept only while a filter asks, and only for processes that live.
//!
//! Whoever is not in here may belong: user space decides then.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    btf_maps::HashMap,
    macros::btf_map,
};
use observer_ebpf::abi::{KernelFilter, Member, TICK_NS, Task};

use super::asked::{listed, word};

/// Processes that are known; a host that runs more has the rest told apart by user space.
const MAX_PROCESSES: usize = 1 << 16;

#[btf_map]
static TREE: HashMap<u32, Member, MAX_PROCESSES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// How many trees are asked for.
#[inline(always)]
fn asked() -> u32 {
    word(offset_of!(KernelFilter, pids))
}

/// A process was made.
#[inline(always)]
pub fn born(child: &Task) {
    if asked() == 0 {
        return;
    }
    // SAFETY: the value may be replaced while it is read; it is a whole word.
    let of_parent = unsafe { TREE.get(child.parent_pid) }.map(|parent| parent.inside);
    let inside = if listed(offset_of!(KernelFilter, pid), asked(), child.pid) { Some(1) } else { of_parent };
    match inside {
        Some(inside) => {
            let member = Member { start_ticks: child.start_ns / TICK_NS, inside, reserved: 0 };
            let _ = TREE.insert(child.pid, member, u64::from(BPF_ANY));
        }
        // The number may have been another's.
        None => {
            let _ = TREE.remove(child.pid);
        }
    }
}

/// A process ended.
#[inline(always)]
pub fn ended(pid: u32) {
    if asked() != 0 {
        let _ = TREE.remove(pid);
    }
}

/// True when this process lives, and belongs to none of the trees that are asked for.
#[inline(always)]
pub fn is_outside(pid: u32, start_ns: u64) -> bool {
    // SAFETY: as above.
    asked() != 0
        && word(offset_of!(KernelFilter, follow)) == 0
        && unsafe { TREE.get(pid) }.is_some_and(|member| member.start_ticks == start_ns / TICK_NS && member.inside == 0)
}

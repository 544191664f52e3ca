//! Monotonic per-CPU counters.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use observer_ebpf::abi::Counter;

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's slot, and programs of this object do not nest on one CPU in the same hook.
        unsafe { *value += 1 };
    }
}

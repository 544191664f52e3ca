//! Monotonic per-CPU counters.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use observer_ebpf::abi::Counter;

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's slot, and programs of this object do not nest on one CPU in the same hook.
        unsafe { *value += 1 };
    }
}

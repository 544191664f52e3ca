//! The ring to user space.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use observer_ebpf::abi::{Counter, DropRecord};

use super::{counters::count, time::boot_ns};

/// Bytes of the ring: about 9,000 records, some milliseconds of a flood.
const RING_BYTES: u32 = 1 << 22;
/// A wake-up costs more than the record it announces, so each CPU wakes the reader at most this often. The reader polls
/// on for longer than that after a wake-up, so that no record waits for the next one.
const WAKE_INTERVAL_NS: u64 = 1_000_000;

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map]
static LAST_WAKE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Hands over one record; `fill` writes it in place. A full ring counts. The time of the wake-up is taken last: a record
/// that took long must not rely on a wake-up from before it was there.
#[inline(always)]
pub fn emit(fill: impl FnOnce(*mut DropRecord)) {
    let Some(mut entry) = EVENTS.reserve::<DropRecord>(0) else {
        count(Counter::RingFull);
        return;
    };
    fill(entry.as_mut_ptr());
    entry.submit(wake_flag(boot_ns()));
}

#[inline(always)]
fn wake_flag(now_ns: u64) -> u64 {
    let Some(last) = LAST_WAKE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the pointer is to this CPU's slot.
    unsafe {
        if now_ns.wrapping_sub(*last) < WAKE_INTERVAL_NS {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        *last = now_ns;
    }
    u64::from(BPF_RB_FORCE_WAKEUP)
}

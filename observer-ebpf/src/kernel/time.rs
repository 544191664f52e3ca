//! Time.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns};

/// Nanoseconds of `CLOCK_BOOTTIME`, which goes on while the host sleeps.
#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: the helper only returns the time.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Milliseconds of `CLOCK_MONOTONIC`, by which TCP notes times; wraps around.
#[inline(always)]
pub fn monotonic_ms() -> u32 {
    // SAFETY: the helper only returns the time.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000) as u32
}

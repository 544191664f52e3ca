//! Time.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;

/// Nanoseconds of `CLOCK_BOOTTIME`, which goes on while the host sleeps.
#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: the helper only returns the time.
    unsafe { bpf_ktime_get_boot_ns() }
}

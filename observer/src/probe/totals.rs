//! The eBPF side's counters, and how many program runs the kernel skipped.

use std::os::fd::AsRawFd;

use aya::maps::{MapData, PerCpuArray};
use observer_ebpf::abi::Counter;

/// Sums over all CPUs since attach; in packets unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Outbound packets dropped by a decision on this host.
    pub seen: u64,
    /// Of these, left out by the filters in the kernel.
    pub filtered: u64,
    /// Of these, without room for their count.
    pub map: u64,
    /// Packets that interrupted the program for all, and that the one for those was run for.
    pub inner: u64,
    /// First packets of a key that were counted but not handed over.
    pub records_skipped: u64,
    /// Sockets whose owner could not be kept, in sockets.
    pub owner_map_full: u64,
    /// Process records lost because their ring was full, in records.
    pub process_ring_full: u64,
}

/// Reads the counters.
pub fn read(counters: &PerCpuArray<MapData, u64>) -> Result<Totals, aya::maps::MapError> {
    let sum = |counter: Counter| Ok::<u64, aya::maps::MapError>(counters.get(&(counter as u32), 0)?.iter().sum());
    Ok(Totals {
        seen: sum(Counter::Seen)?,
        filtered: sum(Counter::Filtered)?,
        map: sum(Counter::MapFull)?,
        inner: sum(Counter::Inner)?,
        records_skipped: sum(Counter::RecordSkipped)?,
        owner_map_full: sum(Counter::OwnerMapFull)?,
        process_ring_full: sum(Counter::ProcessRingFull)?,
    })
}

/// Runs of a program that the kernel skipped because the program was already running on that CPU; `None` where the
/// kernel does not say (before 5.12). Read from the descriptor's own page in /proc, as `bpftool` reads it by system call.
pub fn skipped_runs(program: &impl AsRawFd) -> Option<u64> {
    let page = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
    page.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

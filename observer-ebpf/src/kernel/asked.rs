//! What filters ask for, as the loader wrote it.

use aya_ebpf::Global;
use observer_ebpf::abi::{FILTER_VALUES, FILTER_WORDS};

/// Filled in by the loader and frozen, so that the verifier prunes what is not asked for.
#[unsafe(no_mangle)]
static FILTER: Global<[u32; FILTER_WORDS]> = Global::new([0; FILTER_WORDS]);

/// One word, by its place in [`KernelFilter`].
#[inline(always)]
pub fn word(offset: usize) -> u32 {
    // SAFETY: the offset is of a word of the static; the read is volatile because the loader replaces the value.
    unsafe { core::ptr::read_volatile((&raw const FILTER).byte_add(offset).cast()) }
}

/// One of the first `count` words at `offset` is `value`.
#[inline(always)]
pub fn listed(offset: usize, count: u32, value: u32) -> bool {
    let mut found = false;
    for index in 0..FILTER_VALUES {
        found |= (index as u32) < count && word(offset + index * size_of::<u32>()) == value;
    }
    found
}

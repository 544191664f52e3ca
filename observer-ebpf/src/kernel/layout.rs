//! The frozen global with the running kernel's offsets.

use aya_ebpf::Global;
use observer_ebpf::abi::Layout;

/// Filled in by the loader and frozen, so that the verifier folds every field to a constant and prunes what is absent.
#[unsafe(no_mangle)]
static LAYOUT: Global<Layout> = Global::new(Layout::EMPTY);

/// Reads one field. A field at a time: loading the whole struct would copy it onto the stack.
macro_rules! field {
    ($name:ident) => {
        $crate::kernel::layout::load(core::mem::offset_of!(observer_ebpf::abi::Layout, $name))
    };
}
pub(crate) use field;

/// The number at `offset` of the layout, for [`field!`].
#[inline(always)]
pub fn load(offset: usize) -> u32 {
    // SAFETY: the offset is of a `u32` field of the static; the read is volatile because the loader replaces the value.
    unsafe { core::ptr::read_volatile((&raw const LAYOUT).byte_add(offset).cast()) }
}

/// A kernel address from its two halves; 0 when it is not known.
#[inline(always)]
pub fn address(low: u32, high: u32) -> u64 {
    if high == observer_ebpf::abi::ABSENT && low == observer_ebpf::abi::ABSENT {
        return 0;
    }
    u64::from(high) << 32 | u64::from(low)
}

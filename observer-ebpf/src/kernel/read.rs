//! Two ways to read a field of a kernel object, chosen per program.
//!
//! A BTF tracepoint's arguments are typed pointers: the verifier lets the program load fields directly, one instruction
//! a field. A raw tracepoint's arguments are plain numbers, for which a helper does the same.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use observer_ebpf::abi::ABSENT;

/// Reads fields of objects that the verifier knows by type, or does not.
pub trait Reader {
    /// Field of type `T` at `object + offset`; `None` for a NULL object or an absent field.
    fn field<T: Copy + Default>(object: u64, offset: u32) -> Option<T>;
}

/// Direct loads, for what a BTF tracepoint hands out.
pub struct Direct;

/// Loads through the helper, for everything else.
pub struct Probe;

impl Reader for Direct {
    #[inline(always)]
    fn field<T: Copy + Default>(object: u64, offset: u32) -> Option<T> {
        if object == 0 || offset == ABSENT {
            return None;
        }
        // SAFETY: the verifier checks type, offset and width of the load against the kernel's BTF, and a stale pointer
        // faults into zero.
        Some(unsafe { core::ptr::read_volatile((object + u64::from(offset)) as *const T) })
    }
}

impl Reader for Probe {
    #[inline(always)]
    fn field<T: Copy + Default>(object: u64, offset: u32) -> Option<T> {
        if object == 0 || offset == ABSENT {
            return None;
        }
        // SAFETY: the helper checks the address and fails for one that is not mapped.
        unsafe { bpf_probe_read_kernel((object + u64::from(offset)) as *const T) }.ok()
    }
}

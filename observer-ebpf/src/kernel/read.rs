//! Two ways to read a field of a kernel object, chosen per program.
//!
//! A BTF tracepoint's arguments are typed pointers: the verifier lets the program load fields directly, one instruction
//! a field. A raw tracepoint's arguments are plain numbers, for which a helper does the same.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel as probe_read_kernel;
use observer_ebpf::abi::ABSENT;

/// Reads fields of objects that the verifier knows by type, or does not.
pub trait Reader {
    /// Field of type `T` at `object + offset`, zero where the memory cannot be read; `None` for an absent field. A NULL
    /// object gives `None` or zero.
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
        if offset == ABSENT {
            return None;
        }
        let mut value = T::default();
        // The status is not looked at: every branch on it would be one more way for the verifier to follow.
        // SAFETY: the helper checks the address, and writes zeros for one that is not the kernel's or not mapped.
        unsafe {
            probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<T>() as u32,
                object.wrapping_add(u64::from(offset)) as *const _,
            );
        }
        Some(value)
    }
}

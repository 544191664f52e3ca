//! Two ways to read a field of a kernel object, chosen per program.
//!
//! A BTF tracepoint's arguments are typed pointers: the verifier lets the program load fields directly, one instruction
//! a field. A raw tracepoint's arguments are plain numbers, for which a helper does the same.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel as probe_read_kernel;
use observer_ebpf::abi::{ABSENT, CAST};

use super::layout::field;

/// An address as one of an object of a type, by its number: then its fields are loaded directly.
#[inline(always)]
fn cast(address: u64, kind: u32) -> u64 {
    // SAFETY: the loader makes it a call of the kernel's function, which gives its first argument back. Where it does not, the verifier
    // never comes here.
    unsafe {
        let function: unsafe extern "C" fn(u64, u64) -> u64 = core::mem::transmute(CAST as usize);
        function(address, u64::from(kind))
    }
}

/// Reads fields of objects that the verifier knows by type, or does not.
pub trait Reader {
    /// There is room on the stack for a look at what is expected: Linux 6.1 counts a program's stack in steps of 32 bytes.
    const HAS_ROOM: bool;
    /// Field of type `T` at `object + offset`, zero where the memory cannot be read; `None` for an absent field. A NULL
    /// object gives `None` or zero.
    fn field<T: Copy + Default>(object: u64, offset: u32) -> Option<T>;

    /// The same, with zero for an absent field as well.
    fn or_zero<T: Copy + Default>(object: u64, offset: u32) -> T;
}

/// Direct loads, for what a BTF tracepoint hands out.
pub struct Direct;

/// For everything else: loads of a number by a cast, where the kernel has one, and through the helper.
pub struct Probe;

impl Probe {
    /// A number is one load here, and no call.
    #[inline(always)]
    pub fn is_direct() -> bool {
        field!(cast_words) != ABSENT
    }
}

impl Reader for Direct {
    const HAS_ROOM: bool = true;

    #[inline(always)]
    fn field<T: Copy + Default>(object: u64, offset: u32) -> Option<T> {
        if object == 0 || offset == ABSENT {
            return None;
        }
        // SAFETY: the verifier checks type, offset and width of the load against the kernel's BTF, and a stale pointer
        // faults into zero.
        Some(unsafe { core::ptr::read_volatile((object + u64::from(offset)) as *const T) })
    }

    #[inline(always)]
    fn or_zero<T: Copy + Default>(object: u64, offset: u32) -> T {
        Self::field(object, offset).unwrap_or_default()
    }
}

impl Reader for Probe {
    const HAS_ROOM: bool = false;

    #[inline(always)]
    fn field<T: Copy + Default>(object: u64, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        let kind = field!(cast_words);
        if const { size_of::<T>() == align_of::<T>() && size_of::<T>() <= 8 } && kind != ABSENT {
            let at = cast(object.wrapping_add(u64::from(offset)), kind);
            // SAFETY: the kernel makes it a load that gives zero where there is no memory of its own.
            return Some(unsafe { core::ptr::read_volatile(at as *const T) });
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

    /// By a zero that is written: the payload of a `None` would be whatever a register held before, and where that is a pointer the
    /// verifier lets nobody compute with it.
    #[inline(always)]
    fn or_zero<T: Copy + Default>(object: u64, offset: u32) -> T {
        if offset == ABSENT {
            return T::default();
        }
        Self::field(object, offset).unwrap_or_default()
    }
}

//! Rules that drop what asks for neighbours: whoever has sent waits then, and its packets die without any rule's doing.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use observer_ebpf::logic::packet::{ethertype, protocol};

use super::{
    layout::field,
    read::{Probe, Reader},
    scratch::{self, get, put},
    time::boot_ns,
};

/// Slot 0: when the last packet of neighbour discovery was dropped, nanoseconds of `CLOCK_BOOTTIME`; 0 for never.
#[btf_map]
static STOPPED: Array<u64, 1> = Array::new();

/// A neighbour is given up after three questions, a second apart unless that was set otherwise.
const WAIT_NS: u64 = 15_000_000_000;

/// Of a neighbour that did not answer it may be a rule's doing.
#[inline(always)]
pub fn are_stopped() -> bool {
    STOPPED.get(0).is_some_and(|last| *last != 0 && boot_ns().wrapping_sub(*last) < WAIT_NS)
}

/// Notes that the packet in the scratch space asks for a neighbour, or is the answer, if it is.
#[inline(always)]
pub fn note(ethertype: u16) {
    let Some(scratch) = scratch::packet() else { return };
    // SAFETY: the scratch space is this CPU's.
    let (number, kind, now): (u8, u8, u64) =
        unsafe { (get!(scratch.record.key.protocol), get!(scratch.record.key.detail), get!(scratch.record.time_ns)) };
    if ethertype == ethertype::ARP || number == protocol::ICMPV6 && (kind == 135 || kind == 136) {
        if let Some(last) = STOPPED.get_ptr_mut(0) {
            // SAFETY: the pointer is to a live map value; of two at the same time either is right.
            unsafe { last.write_volatile(now) };
        }
    }
}

/// Writes the gateway of the packet's route into the key, where it has one.
#[inline(always)]
pub fn next_hop(dst: u64, ethertype: u16) {
    neighbours_next_hop(dst, u32::from(ethertype));
}

/// See [`next_hop`]: a function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn neighbours_next_hop(dst: u64, kind: u32) -> u64 {
    /// `AF_INET`
    const IPV4: u8 = 2;
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        if kind == u32::from(ethertype::IPV6) {
            put!(scratch.record.key.translated.destination, Probe::field(dst, field!(rt6_gateway)).unwrap_or_default());
        } else if Probe::field(dst, field!(rt_gateway_family)) == Some(IPV4) {
            let gateway: [u8; 4] = Probe::field(dst, field!(rt_gateway)).unwrap_or_default();
            (&raw mut (*scratch).record.key.translated.destination)
                .cast::<u32>()
                .write_volatile(u32::from_ne_bytes(gateway));
        }
    }
    0
}

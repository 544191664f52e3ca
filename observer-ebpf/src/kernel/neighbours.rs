//! Rules that drop what asks for neighbours: whoever has sent waits then, and its packets die without any rule's doing.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use observer_ebpf::{
    abi::{Cause, NEIGHBOUR_WAIT_NS},
    logic::packet::{ethertype, protocol},
};

use super::{
    layout::field,
    read::{Probe, Reader},
    scratch::{self, get, put},
    time::boot_ns,
};

/// Slot 0: when the last packet of neighbour discovery was dropped, nanoseconds of `CLOCK_BOOTTIME`; 0 for never.
#[btf_map]
static STOPPED: Array<u64, 1> = Array::new();

/// A rule has dropped neighbour discovery a short time ago: a neighbour that does not answer may not have been asked.
#[inline(always)]
pub fn are_stopped() -> bool {
    STOPPED.get(0).is_some_and(|last| *last != 0 && boot_ns().wrapping_sub(*last) < NEIGHBOUR_WAIT_NS)
}

/// Notes that the packet in the scratch space asks for a neighbour, or is the answer, if it is; of one that has waited for a neighbour it
/// writes the gateway of its route into the key, in place of a rule.
#[inline(always)]
pub fn note(dst: u64, ethertype: u16) {
    neighbours_note(dst, u32::from(ethertype));
}

/// See [`note`]: a function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn neighbours_note(dst: u64, frame: u32) -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    let (cause, number, kind): (u8, u8, u8) =
        unsafe { (get!(scratch.record.key.cause), get!(scratch.record.key.protocol), get!(scratch.record.key.detail)) };
    if cause == Cause::Neighbour as u8 {
        let [first, second] = gateway(dst, frame);
        // SAFETY: as above.
        unsafe {
            put!(scratch.record.key.rule.table, first);
            put!(scratch.record.key.rule.chain, second);
        }
    } else if frame == u32::from(ethertype::ARP) || number == protocol::ICMPV6 && (kind == 135 || kind == 136) {
        if let Some(last) = STOPPED.get_ptr_mut(0) {
            // SAFETY: the pointer is to a live map value; of two at the same time either is right.
            unsafe { last.write_volatile(get!(scratch.record.time_ns)) };
        }
    }
    0
}

/// Bytes of the address of a route's gateway; zeros without one.
#[inline(always)]
fn gateway(dst: u64, frame: u32) -> [u64; 2] {
    /// `AF_INET`
    const IPV4: u8 = 2;
    if frame == u32::from(ethertype::IPV6) {
        return Probe::field(dst, field!(rt6_gateway)).unwrap_or_default();
    }
    if Probe::field(dst, field!(rt_gateway_family)) != Some(IPV4) {
        return [0; 2];
    }
    [u64::from(Probe::field::<u32>(dst, field!(rt_gateway)).unwrap_or(0)), 0]
}

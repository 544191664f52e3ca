//! Connections that have begun a moment ago: what comes from their other end is their answer, before connection tracking and the socket
//! have seen it. So it is in the `raw` table, at prerouting and at the ingress hooks.

use aya_ebpf::{
    btf_maps::{Array, LruHashMap},
    macros::btf_map,
};
use observer_ebpf::{
    abi::FlowRecord,
    logic::packet::{ethertype, protocol},
};

use super::{
    layout::field,
    read::{Probe, Reader},
    time::boot_ns,
};

/// Whose answer is expected; IPv4 addresses are mapped into IPv6, ports in host byte order. The namespace is its socket's: in another one
/// somebody else may have the same addresses, and may have taken them for that. One of another namespace than the host's is noted a second
/// time, under namespace 0: others forward its answers.
#[derive(Clone, Copy)]
#[repr(C)]
struct Connection {
    local: [u32; 4],
    remote: [u32; 4],
    netns: u32,
    local_port: u16,
    remote_port: u16,
}

/// When it began, nanoseconds of `CLOCK_BOOTTIME`. The oldest make room.
#[btf_map]
static EXPECTED: LruHashMap<Connection, u64, 4096> = LruHashMap::new();

/// Slot 0: when the last one began. While there are none, what is freed before it has a route costs no look at its addresses.
#[btf_map]
static EXPECTING: Array<u64, 1> = Array::new();

/// TCP gives up a connection after some two minutes (`tcp_syn_retries`).
const WAIT_NS: u64 = 130_000_000_000;

/// What makes an IPv4 address one of IPv6, as a word in memory.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An address of a socket: of IPv4 in the first word, or all of it.
#[inline(always)]
fn mapped(address: [u8; 16], v6: u8) -> [u32; 4] {
    let word = |at: usize| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
    if v6 == 0 { [0, 0, MAPPED, word(0)] } else { [word(0), word(4), word(8), word(12)] }
}

/// A connection begins.
#[inline(always)]
pub fn begin(flow: &FlowRecord) {
    let connection = Connection {
        local: mapped(flow.local, flow.v6),
        remote: mapped(flow.remote, flow.v6),
        netns: flow.netns,
        local_port: flow.local_port,
        remote_port: flow.remote_port,
    };
    // What stays on this host has its socket all the way, and would push out what does not.
    if connection.local == connection.remote {
        return;
    }
    let now = boot_ns();
    let _ = EXPECTED.insert(&connection, &now, 0);
    if flow.netns != field!(host_netns) {
        let _ = EXPECTED.insert(&Connection { netns: 0, ..connection }, &now, 0);
    }
    if let Some(last) = EXPECTING.get_ptr_mut(0) {
        // SAFETY: the pointer is to a live map value; of two at the same time either is right.
        unsafe { last.write_volatile(now) };
    }
}

/// A connection of the device's own namespace waits for it; one of another namespace does.
const HERE: u64 = 1;
/// See [`HERE`].
pub const ELSEWHERE: u64 = 2;

/// Whether a packet that came in by that device, and whose network header begins there, is what a connection waits for: 0, [`HERE`] or
/// [`ELSEWHERE`].
#[inline(always)]
pub fn is_expected(start: u64, kind: u16, device: u64) -> u64 {
    let is_any = EXPECTING.get(0).is_some_and(|last| *last != 0 && boot_ns().wrapping_sub(*last) < WAIT_NS);
    if is_any { expected_by(start, u32::from(kind), device) } else { 0 }
}

/// The flag of TCP that every answer has, and no first packet of a flood.
const ACK: u8 = 16;
/// Where TCP's flags are.
const FLAGS: u64 = 13;

/// See [`is_expected`]: a function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn expected_by(start: u64, kind: u32, device: u64) -> u64 {
    let mut connection = Connection { local: [0; 4], remote: [0; 4], netns: 0, local_port: 0, remote_port: 0 };
    let is_v4 = kind == u32::from(ethertype::IPV4);
    let (bytes, number): (u64, u8) = if is_v4 {
        let first: u8 = Probe::field(start, 0).unwrap_or(0);
        (u64::from(first & 15) * 4, Probe::field(start, 9).unwrap_or(0))
    } else if kind == u32::from(ethertype::IPV6) {
        (40, Probe::field(start, 6).unwrap_or(0))
    } else {
        return 0;
    };
    let transport = start.wrapping_add(bytes);
    if number != protocol::TCP || Probe::field::<u8>(transport.wrapping_add(FLAGS), 0).unwrap_or(0) & ACK == 0 {
        return 0;
    }
    if is_v4 {
        connection.remote = [0, 0, MAPPED, Probe::field(start, 12).unwrap_or(0)];
        connection.local = [0, 0, MAPPED, Probe::field(start, 16).unwrap_or(0)];
    } else {
        connection.remote = Probe::field(start, 8).unwrap_or_default();
        connection.local = Probe::field(start, 24).unwrap_or_default();
    }
    connection.remote_port = u16::from_be(Probe::field(transport, 0).unwrap_or(0));
    connection.local_port = u16::from_be(Probe::field(transport, 2).unwrap_or(0));
    let net: u64 = Probe::field(device, field!(dev_net)).unwrap_or(0);
    connection.netns = Probe::field(net, field!(net_inum)).unwrap_or(0);
    // SAFETY: a value that is replaced meanwhile is another one's time.
    let mut began = unsafe { EXPECTED.get(&connection) }.map_or(0, |began| *began);
    let mut whose = HERE;
    if began == 0 {
        connection.netns = 0;
        whose = ELSEWHERE;
        // SAFETY: likewise.
        began = unsafe { EXPECTED.get(&connection) }.map_or(0, |began| *began);
    }
    u64::from(began != 0 && boot_ns().wrapping_sub(began) < WAIT_NS) * whose
}

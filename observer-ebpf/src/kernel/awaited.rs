//! Destinations that were blocked: reports a connection to one of them that is established or given up, and a datagram that comes
//! from there.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use observer_ebpf::abi::{AwaitedKey, AwaitedValue, FlowRecord, MAX_AWAITED};

use super::{
    flow,
    layout::field,
    owner, process,
    read::{Probe, Reader},
    sock,
    time::boot_ns,
};

/// Written by user space.
#[btf_map]
static AWAITED: HashMap<AwaitedKey, AwaitedValue, MAX_AWAITED, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Slot 0: not 0 while there are any, so that a connection costs no look at its addresses on a host that blocks nothing.
#[btf_map]
static AWAITING: Array<u32, 1> = Array::new();

/// Of one destination and process it is reported so often: whoever talks with it all the time must not fill the ring.
const QUIET_NS: u64 = 100_000_000;

/// `::ffff:0:0`, which makes an IPv4 address one of IPv6.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Group with which a socket's file was opened; all ones where it has none.
#[inline(always)]
fn opened_by(sk: u64) -> u32 {
    let socket: u64 = Probe::field(sk, field!(sk_socket)).unwrap_or(0);
    let file: u64 = Probe::field(socket, field!(socket_file)).unwrap_or(0);
    let cred: u64 = Probe::field(file, field!(file_cred)).unwrap_or(0);
    if cred == 0 { u32::MAX } else { Probe::field(cred, field!(cred_fsgid)).unwrap_or(u32::MAX) }
}

/// Any destination is waited for.
#[inline(always)]
fn is_any() -> bool {
    AWAITING.get(0).is_some_and(|any| *any != 0)
}

/// The connection of this socket has its answer, or ends without one.
#[inline(always)]
pub fn decided(sk: u64, is_end: bool) {
    if is_any() {
        tell(sk, 0, is_end);
    }
}

/// A datagram has come in for this socket.
#[inline(always)]
pub fn answered(sk: u64, skb: u64) {
    if is_any() && skb != 0 {
        tell(sk, skb, false);
    }
}

/// A function of its own, as what else runs there: stacks lie one below the other. Without a packet the socket says where it is
/// connected to.
#[inline(never)]
fn tell(sk: u64, skb: u64, is_end: bool) {
    // A multipath connection's own number is beyond those of packets; its parts are TCP's.
    let Ok(protocol) = u8::try_from(Probe::field::<u16>(sk, field!(sk_protocol)).unwrap_or(0)) else { return };
    let mut flow = FlowRecord {
        since_ns: 0,
        local: [0; 16],
        remote: [0; 16],
        netns: sock::netns::<Probe>(sk),
        uid: Probe::field(sk, field!(sk_uid)).unwrap_or(0),
        local_port: 0,
        remote_port: 0,
        protocol,
        v6: 0,
        closed: u8::from(is_end),
        source: 0,
    };
    flow::addresses::<Probe>(&mut flow, sk);
    if skb != 0 {
        came_from(&mut flow, skb);
    }
    let mut key = AwaitedKey { remote: flow.remote, netns: flow.netns, port: flow.remote_port, protocol, reserved: 0 };
    if flow.v6 == 0 {
        key.remote[..12].copy_from_slice(&MAPPED);
        key.remote[12..].copy_from_slice(&flow.remote[..4]);
    }
    let Some(value) = AWAITED.get_ptr_mut(&key) else { return };
    let cookie = Probe::field(sk, field!(sk_cookie)).unwrap_or(0);
    // Several holders make no answer.
    let owner = owner::get(cookie).filter(|owner| owner.holders == 1);
    let pid = owner.map_or(0, |owner| owner.task.pid);
    let now = boot_ns();
    // SAFETY: the pointer is to a live map value; of two that write at the same time one is reported more.
    unsafe {
        let told = if is_end { (*value).ended_ns } else { (*value).told_ns };
        if told != 0 && (*value).pid == pid && now.wrapping_sub(told) < QUIET_NS {
            return;
        }
        if is_end {
            (*value).ended_ns = now;
        } else {
            (*value).told_ns = now;
        }
        (*value).pid = pid;
    }
    if let Some(owner) = owner {
        flow.since_ns = owner.bound_ns;
        flow.source = owner.source as u8;
    }
    process::emit_reached(owner.map(|owner| &owner.task), &flow, opened_by(sk));
}

/// Addresses of a packet that came in, and the port that it came from: a socket need not be connected to there.
#[inline(always)]
fn came_from(flow: &mut FlowRecord, skb: u64) {
    let head: u64 = Probe::field(skb, field!(skb_head)).unwrap_or(0);
    let network: u16 = Probe::field(skb, field!(skb_network_header)).unwrap_or(0);
    let transport: u16 = Probe::field(skb, field!(skb_transport_header)).unwrap_or(0);
    let at = |offset: u32| head + u64::from(network) + u64::from(offset);
    let version: u8 = Probe::field(at(0), 0).unwrap_or(0);
    flow.remote_port = u16::from_be(Probe::field(head + u64::from(transport), 0).unwrap_or(0));
    if version >> 4 == 4 {
        flow.v6 = 0;
        flow.remote = [0; 16];
        flow.local = [0; 16];
        flow.remote[..4].copy_from_slice(&Probe::field::<[u8; 4]>(at(12), 0).unwrap_or_default());
        flow.local[..4].copy_from_slice(&Probe::field::<[u8; 4]>(at(16), 0).unwrap_or_default());
    } else {
        flow.v6 = 1;
        flow.remote = Probe::field(at(8), 0).unwrap_or_default();
        flow.local = Probe::field(at(24), 0).unwrap_or_default();
    }
}

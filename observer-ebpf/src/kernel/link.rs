//! Fields of a `struct net_device`: what kind it is, and a veth's other end.

use super::{
    layout::field,
    read::{Probe, Reader},
};

/// Kinds that matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Veth,
    Bridge,
    Other,
}

/// Kind of a device, by the name under which `ip link` makes it.
#[inline(always)]
pub fn kind(device: u64) -> Link {
    match link_kind(device) {
        VETH => Link::Veth,
        BRIDGE => Link::Bridge,
        _ => Link::Other,
    }
}

const VETH: u64 = 1;
const BRIDGE: u64 = 2;

/// A function of its own to the verifier too: it is checked once, and not again for every way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn link_kind(device: u64) -> u64 {
    let operations: u64 = Probe::field(device, field!(dev_link_ops)).unwrap_or(0);
    let name: u64 = Probe::field(operations, field!(link_ops_kind)).unwrap_or(0);
    let name: [u8; 8] = Probe::field(name, 0).unwrap_or_default();
    match &name {
        [b'v', b'e', b't', b'h', 0, ..] => VETH,
        [b'b', b'r', b'i', b'd', b'g', b'e', 0, ..] => BRIDGE,
        _ => 0,
    }
}

/// Network namespace of a veth's other end: the peer is the first field of its private data.
#[inline(always)]
pub fn peer_net(device: u64) -> u64 {
    let peer: u64 = Probe::field(device, field!(dev_private)).unwrap_or(0);
    Probe::field(peer, field!(dev_net)).unwrap_or(0)
}

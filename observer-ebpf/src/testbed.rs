//! Programs for tests and measurements only: they block on purpose, or do nothing. Never part of the product.
#![no_std]
#![no_main]
#![cfg(target_arch = "bpf")]
#![allow(unsafe_code, reason = "entry points of BPF programs")]
#![allow(missing_docs, reason = "the macros do not pass documentation on")]

mod frame;

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier},
    programs::{BtfTracePointContext, SkBuffContext, SockAddrContext, SockContext, TcContext},
};

/// A cgroup that lets nothing out, as systemd's `IPAddressDeny=any` does.
#[cgroup_skb]
pub fn deny_egress(_context: SkBuffContext) -> i32 {
    0
}

/// A port of a socket's address, as its program sees it.
fn port(context: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid for the run; one load at a constant offset.
    u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*context.sock_addr).user_port) } as u16)
}

/// Nobody connects to port 443, whoever connects to 8443 comes to 444, and whoever connects to 8444 comes to this host itself.
#[cgroup_sock_addr(connect4)]
pub fn deny_connect4(context: SockAddrContext) -> i32 {
    if port(&context) == 8443 {
        // SAFETY: as above, one store.
        unsafe { core::ptr::write_volatile(&raw mut (*context.sock_addr).user_port, u32::from(444u16.to_be())) };
    }
    if port(&context) == 8444 {
        let here = u32::from_be_bytes([127, 0, 0, 1]).to_be();
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*context.sock_addr).user_ip4, here) };
    }
    i32::from(port(&context) != 443)
}

/// Nobody sends a datagram to port 53 without being connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn deny_send4(context: SockAddrContext) -> i32 {
    i32::from(port(&context) != 53)
}

/// Nobody makes an internet socket.
#[cgroup_sock(sock_create)]
pub fn deny_create(_context: SockContext) -> i32 {
    0
}

/// A traffic control action that drops.
#[classifier]
pub fn deny_tc(_context: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// The least that can be attached to `kfree_skb`: the limit that observer is measured against.
#[btf_tracepoint(function = "kfree_skb")]
pub fn empty_kfree_skb(_context: BtfTracePointContext) -> i32 {
    0
}

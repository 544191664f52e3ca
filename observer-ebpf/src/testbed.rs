//! Programs for tests and measurements only: they block on purpose, or do nothing. Never part of the product.
#![no_std]
#![no_main]
#![cfg(target_arch = "bpf")]
#![allow(unsafe_code, reason = "entry points of BPF programs")]
#![allow(missing_docs, reason = "the macros do not pass documentation on")]

mod frame;

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    macros::{btf_tracepoint, cgroup_skb, classifier},
    programs::{BtfTracePointContext, SkBuffContext, TcContext},
};

/// A cgroup that lets nothing out, as systemd's `IPAddressDeny=any` does.
#[cgroup_skb]
pub fn deny_egress(_context: SkBuffContext) -> i32 {
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

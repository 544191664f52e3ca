//! The eBPF side: program entry points ([`hooks`]) over typed kernel reads ([`kernel`]).
//!
//! Glue only. What can be decided without the kernel is decided in the library half, by functions that are tested on
//! the host.
#![no_std]
#![no_main]
#![cfg(target_arch = "bpf")]
#![allow(unsafe_code, reason = "the boundary to kernel memory; each block names what it relies on")]

mod frame;
mod hooks;
mod kernel;

/// Debug lines are the logger's.
pub(crate) use aya_log_ebpf::debug;

//! The half of the kernel side that both sides share.
//!
//! Owns the bytes that cross from kernel to user space ([`abi`]) and the decisions that can be pure functions
//! ([`logic`]). It has no dependency on BPF or on the host, so everything here is tested with plain `cargo test`.
//! The BPF programs themselves are the binary of this package (`main.rs`, built with the feature `bpf`).
#![no_std]

pub mod abi;
pub mod logic;

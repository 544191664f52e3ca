//! The same programs without a logger, for another loader: tests load this object with libbpf, which takes no map of the
//! logger's old kind. Whatever else aya would forgive and libbpf would not is found there. Never part of the product.
#![no_std]
#![no_main]
#![cfg(target_arch = "bpf")]
#![allow(unsafe_code, reason = "the boundary to kernel memory; each block names what it relies on")]

/// Debug lines go nowhere.
macro_rules! debug {
    ($context:expr, $text:literal $(, $argument:expr)*) => {
        let _ = ($context $(, $argument)*);
    };
}

mod frame;
mod hooks;
mod kernel;

pub(crate) use debug;

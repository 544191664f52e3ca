//! The BPF half: program entry points ([`hooks`]) over typed kernel reads ([`kernel`]).
//!
//! Glue only. What can be decided without the kernel is decided in the library half, by functions that are tested on
//! the host.
#![no_std]
#![no_main]
#![cfg(target_arch = "bpf")]
#![allow(unsafe_code, reason = "the boundary to kernel memory; each block names what it relies on")]

mod hooks;
mod kernel;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
#[used]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier accepts no program from which this is reachable.
    loop {}
}

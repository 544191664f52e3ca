//! `trace_inet_sock_set_state(sk, oldstate, newstate)`: a connection changes its state.
//!
//! What is established, or given up, may be what user space waits for.
//!
//! On the way to SYN_SENT the caller of connect is current and no packet has been sent yet, so the owner is bound before
//! the first drop. (The source port is still 0 there: it binds the owner and gives no flow.)

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use observer_ebpf::abi::OwnerSource;

use crate::kernel::{
    awaited,
    layout::field,
    owner,
    read::{Direct, Reader},
    sock, task,
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn own_sock_state(context: BtfTracePointContext) -> i32 {
    let sk: u64 = context.arg(0);
    let before: u64 = context.arg(1);
    let state: u64 = context.arg(2);
    let is_end = state as u32 == sock::CLOSE;
    // One call for both: the verifier walks through it at every place from which it is called.
    if before as u32 == sock::SYN_SENT && (is_end || state as u32 == sock::ESTABLISHED) {
        awaited::decided(sk, is_end);
    }
    match state as u32 {
        // What the kernel connects by a thread of its own is nobody's, or a part of somebody's that cannot be told here.
        sock::SYN_SENT if task::is_kernel_thread() => {}
        sock::SYN_SENT => {
            let netns = sock::netns::<Direct>(sk);
            connecting(sock::traced_cookie(sk as *mut u8), netns);
        }
        // After its end was reported: by its owner, who is forgotten here.
        sock::CLOSE => owner::retire(Direct::field(sk, field!(sk_cookie)).unwrap_or(0)),
        _ => {}
    }
    0
}

/// A function of its own: what is put together here must not lie on the stack where [`awaited::decided`] runs.
#[inline(never)]
fn connecting(cookie: u64, netns: u32) {
    owner::bind(cookie, task::current(), netns, OwnerSource::Connect);
}

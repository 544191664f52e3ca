//! cgroup programs at an inet socket's creation and release, on the root of the unified hierarchy.
//!
//! Creation binds what need not connect: UDP, raw and ping sockets. A TCP socket sends nothing before it connects, and
//! that binds it where it can be observed. Both run in the caller's context, once a socket, and never on the path of a
//! packet. Both always allow.

use core::hint::black_box;

use aya_ebpf::{EbpfContext, macros::cgroup_sock, programs::SockContext};
use observer_ebpf::{
    abi::{ABSENT, OwnerSource},
    logic::packet,
};

use crate::kernel::{
    flow,
    layout::field,
    netns, owner,
    read::{Probe, Reader},
    sock, task,
};

const ALLOW: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn own_sock_create(context: SockContext) -> i32 {
    let sk = context.as_ptr() as u64;
    let is_tcp = is_tcp(sk);
    if is_tcp && owner::bound_by_connect() {
        netns::have_cookie(&context, 0, false);
        // The connect's hook finds it where it cannot make one itself.
        if field!(makes_cookies) == ABSENT {
            sock::make_cookie(context.as_ptr());
        }
        return ALLOW;
    }
    let cookie = sock::make_cookie(context.as_ptr());
    netns::have_cookie(&context, cookie, !is_tcp);
    // A process creates sockets in its own namespace.
    owner::bind(cookie, task::current(), task::netns(), OwnerSource::Create);
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn own_sock_close(context: SockContext) -> i32 {
    let cookie = sock::make_cookie(context.as_ptr());
    // What the program type lets be read by name leaves the ports out; the context is the socket itself.
    let sk = context.as_ptr() as u64;
    let kind = u32::from(black_box(Probe::field::<u16>(sk, field!(sk_type)).unwrap_or(0)));
    if kind == sock::SOCK_DGRAM || kind == sock::SOCK_RAW {
        flow::emit(cookie, |flow| {
            flow.closed = 1;
            flow.protocol = black_box(Probe::field::<u16>(sk, field!(sk_protocol)).unwrap_or(0)) as u8;
            flow::addresses::<Probe>(flow, sk);
        });
    }
    // A connection goes on sending after the close: its last state retires it. One that never began has no such state.
    // Where states are not observed nothing else would.
    let state: u8 = black_box(Probe::field(sk, field!(sk_state)).unwrap_or(0));
    if !is_tcp(sk) || u32::from(state) == sock::CLOSE || !owner::bound_by_connect() {
        owner::retire(cookie);
    }
    ALLOW
}

/// A TCP socket, and not a raw one that sends such packets.
#[inline(always)]
fn is_tcp(sk: u64) -> bool {
    // As they stand: where they are absent, the compiler would work on what is left in a register, and the verifier refuses that.
    let protocol: u16 = black_box(Probe::field(sk, field!(sk_protocol)).unwrap_or(0));
    let kind: u16 = black_box(Probe::field(sk, field!(sk_type)).unwrap_or(0));
    protocol == u16::from(packet::protocol::TCP) && u32::from(kind) == sock::SOCK_STREAM
}

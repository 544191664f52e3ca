//! cgroup programs at an inet socket's creation and release, on the root of the unified hierarchy.
//!
//! Creation binds what never connects: UDP, raw and ping sockets. Both run in the caller's context, once a socket, and
//! never on the path of a packet. Both always allow.

use aya_ebpf::{EbpfContext, macros::cgroup_sock, programs::SockContext};
use observer_ebpf::abi::OwnerSource;

use crate::kernel::{
    flow,
    layout::field,
    owner,
    read::{Probe, Reader},
    sock, task,
};

const ALLOW: i32 = 1;
const AF_INET6: u16 = 10;

#[cgroup_sock(sock_create)]
pub fn own_sock_create(context: SockContext) -> i32 {
    // A process creates sockets in its own namespace.
    owner::bind(sock::make_cookie(context.as_ptr()), task::current(), task::netns(), OwnerSource::Create);
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn own_sock_close(context: SockContext) -> i32 {
    let cookie = sock::make_cookie(context.as_ptr());
    // What the program type lets be read by name leaves the ports out; the context is the socket itself.
    let sk = context.as_ptr() as u64;
    let kind = u32::from(Probe::field::<u16>(sk, field!(sk_type)).unwrap_or(0));
    if kind == sock::SOCK_DGRAM || kind == sock::SOCK_RAW {
        flow::emit(cookie, |flow| {
            flow.closed = 1;
            flow.protocol = Probe::field::<u16>(sk, field!(sk_protocol)).unwrap_or(0) as u8;
            flow.local_port = Probe::field(sk, field!(sk_num)).unwrap_or(0);
            flow.remote_port = u16::from_be(Probe::field(sk, field!(sk_dport)).unwrap_or(0));
            if Probe::field::<u16>(sk, field!(sk_family)) == Some(AF_INET6) {
                flow.v6 = 1;
                flow.local = Probe::field(sk, field!(sk_local_v6)).unwrap_or_default();
                flow.remote = Probe::field(sk, field!(sk_remote_v6)).unwrap_or_default();
            } else {
                let v4 = |offset: u32| Probe::field::<[u8; 4]>(sk, offset).unwrap_or_default();
                flow.local[..4].copy_from_slice(&v4(field!(sk_local_v4)));
                flow.remote[..4].copy_from_slice(&v4(field!(sk_remote_v4)));
            }
        });
    }
    owner::retire(cookie);
    ALLOW
}

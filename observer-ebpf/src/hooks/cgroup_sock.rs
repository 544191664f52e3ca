//! cgroup programs at an inet socket's creation and release, on the root of the unified hierarchy.
//!
//! Creation binds what never connects: UDP, raw and ping sockets. Both run in the caller's context, once a socket, and
//! never on the path of a packet. Both always allow.

use aya_ebpf::{EbpfContext, macros::cgroup_sock, programs::SockContext};
use observer_ebpf::abi::OwnerSource;

use crate::kernel::{owner, sock, task};

const ALLOW: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn own_sock_create(context: SockContext) -> i32 {
    owner::bind(sock::make_cookie(context.as_ptr()), task::current(), OwnerSource::Create);
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn own_sock_close(context: SockContext) -> i32 {
    owner::retire(sock::make_cookie(context.as_ptr()));
    ALLOW
}

//! Events of connections, on the root of the unified hierarchy. At the beginning of a connect the caller is current and the
//! source port is chosen: the only place where both are known. Every other event passes.

use aya_ebpf::{
    bindings::BPF_SOCK_OPS_TCP_CONNECT_CB, helpers::generated::bpf_get_socket_cookie, macros::sock_ops,
    programs::SockOpsContext,
};
use observer_ebpf::logic::packet::protocol;

use crate::kernel::flow;

const AF_INET6: u32 = 10;

/// Four words of the context as bytes.
macro_rules! words {
    ($context:ident, $field:ident) => {{
        let mut bytes = [0; 16];
        words!($context, $field, bytes, 0, 1, 2, 3);
        bytes
    }};
    ($context:ident, $field:ident, $bytes:ident, $($index:literal),*) => {
        $(
            // SAFETY: the context is valid for the run; the volatile read is one load at a constant offset.
            let word: u32 = unsafe { core::ptr::read_volatile(&raw const (*$context.ops).$field[$index]) };
            $bytes[$index * 4..$index * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        )*
    };
}

#[sock_ops]
pub fn flow_sock_ops(context: SockOpsContext) -> u32 {
    if context.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        // SAFETY: the helper takes the context of this program type.
        let cookie = unsafe { bpf_get_socket_cookie(context.ops.cast()) };
        flow::begin(cookie, |flow| {
            flow.protocol = protocol::TCP;
            flow.local_port = context.local_port() as u16;
            // The remote port is in network byte order, in the upper half on some kernels and the lower on others.
            let port = context.remote_port();
            flow.remote_port = u16::from_be(if port >> 16 != 0 { (port >> 16) as u16 } else { port as u16 });
            // One word at a time: the verifier takes no computed address into this context.
            if context.family() == AF_INET6 {
                flow.v6 = 1;
                flow.local = words!(context, local_ip6);
                flow.remote = words!(context, remote_ip6);
            } else {
                flow.local[..4].copy_from_slice(&context.local_ip4().to_ne_bytes());
                flow.remote[..4].copy_from_slice(&context.remote_ip4().to_ne_bytes());
            }
        });
    }
    1
}

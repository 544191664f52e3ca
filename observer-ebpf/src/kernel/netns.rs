//! Cookies of network namespaces, on kernels that make one only when a program asks for it and do not tell it to user space.

use aya_ebpf::{
    EbpfContext, btf_maps::LruHashMap, helpers::generated::bpf_get_netns_cookie, macros::btf_map, programs::SockContext,
};
use observer_ebpf::abi::ABSENT;

use super::layout::field;

/// By the socket's cookie. Whoever wants to know makes a socket and looks at once.
#[btf_map]
static NETNS_COOKIES: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Has the namespace of a socket that is being made get its cookie; where `is_asked`, it is reported.
#[inline(always)]
pub fn have_cookie(context: &SockContext, socket: u64, is_asked: bool) {
    if field!(tells_netns_cookies) == ABSENT {
        return;
    }
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    if is_asked {
        let _ = NETNS_COOKIES.insert(&socket, &cookie, 0);
    }
}

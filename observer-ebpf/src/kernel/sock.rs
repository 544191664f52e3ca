//! Fields of a `struct sock`.

use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use observer_ebpf::abi::{ABSENT, flag};

use super::{
    layout::field,
    read::{Probe, Reader},
    task,
};

/// `TCP_TIME_WAIT` and `TCP_NEW_SYN_RECV`: states of the smaller socket structs, which share only the first part with a
/// full one. Part of the kernel's ABI (`enum` in `uapi/linux/bpf.h`, `BPF_TCP_*`).
const TIME_WAIT: u8 = 6;
const NEW_SYN_RECV: u8 = 12;

/// `SOCK_DGRAM` and `SOCK_RAW` of `include/linux/net.h` (part of the system call ABI; another order on MIPS only).
pub const SOCK_DGRAM: u32 = 2;
/// See [`SOCK_DGRAM`].
pub const SOCK_RAW: u32 = 3;

/// `TCP_SYN_SENT` and `TCP_CLOSE`, likewise.
pub const SYN_SENT: u32 = 2;
/// See [`SYN_SENT`].
pub const CLOSE: u32 = 7;

/// Cookie of a socket that the verifier trusts, made if it has none yet.
#[inline(always)]
pub fn make_cookie<T>(sk: *mut T) -> u64 {
    // SAFETY: the verifier accepts only a live socket here.
    unsafe { bpf_get_socket_cookie(sk.cast()) }
}

/// Inode number of a socket's network namespace; 0 when unknown.
#[inline(always)]
pub fn netns<R: Reader>(sk: u64) -> u32 {
    let net: u64 = R::field(sk, field!(sk_net)).unwrap_or(0);
    Probe::field(net, field!(net_inum)).unwrap_or(0)
}

/// The `struct socket` of a full socket as a plain number, which is all that a function of its own takes; 0 without one.
#[inline(always)]
pub fn socket(sk: u64) -> u64 {
    Probe::field(sk, field!(sk_socket)).unwrap_or(0)
}

/// What a drop record takes from the packet's socket.
#[derive(Clone, Copy, Default)]
pub struct Facts {
    pub cookie: u64,
    pub inode: u64,
    pub cgroup: u64,
    pub net: u64,
    pub uid: u32,
    pub state: u8,
    pub flags: u8,
}

/// Reads a socket; everything zero for none.
#[inline(always)]
pub fn facts<R: Reader>(sk: u64) -> Facts {
    let mut facts = Facts::default();
    if sk == 0 {
        return facts;
    }
    let Some(state) = R::field::<u8>(sk, field!(sk_state)) else { return facts };
    facts.state = state;
    facts.flags = flag::SOCKET;
    facts.cookie = R::field(sk, field!(sk_cookie)).unwrap_or(0);
    facts.net = R::field(sk, field!(sk_net)).unwrap_or(0);
    if state == TIME_WAIT || state == NEW_SYN_RECV {
        return facts;
    }
    facts.flags |= flag::FULL_SOCKET;
    facts.uid = R::field(sk, field!(sk_uid)).unwrap_or(0);
    let socket: u64 = R::field(sk, field!(sk_socket)).unwrap_or(0);
    facts.inode = Probe::field(socket, field!(socket_inode)).unwrap_or(0);
    if socket != 0 && Probe::field::<u64>(socket, field!(socket_file)) == Some(0) {
        facts.flags |= flag::KERNEL;
    }
    let kind = u32::from(R::field::<u16>(sk, field!(sk_type)).unwrap_or(0));
    if kind == SOCK_DGRAM || kind == SOCK_RAW {
        facts.flags |= flag::DATAGRAM;
    }
    let cgroup: u64 = R::field(sk, field!(sk_cgroup)).unwrap_or(0);
    facts.cgroup = task::cgroup_id(cgroup);
    if R::field::<i32>(sk, field!(sk_lock_owned)).unwrap_or(0) != 0 {
        facts.flags |= flag::LOCKED;
    }
    let dead = field!(sk_flag_dead);
    if dead != ABSENT {
        let flags: u64 = R::field(sk, field!(sk_flags)).unwrap_or(0);
        if flags & (1 << (dead & 63)) != 0 {
            facts.flags |= flag::ORPHAN;
        }
    }
    facts
}

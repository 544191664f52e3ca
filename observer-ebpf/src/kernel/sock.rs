//! Fields of a `struct sock`.

use core::hint::black_box;

use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use observer_ebpf::{
    abi::{ABSENT, Direction, flag},
    logic::packet,
};

use super::{
    layout::field,
    read::{Probe, Reader},
    scratch::{self, Packet, get, put},
};

/// `TCP_TIME_WAIT` and `TCP_NEW_SYN_RECV`: states of the smaller socket structs, which share only the first part with a
/// full one. Part of the kernel's ABI (`enum` in `uapi/linux/bpf.h`, `BPF_TCP_*`).
const TIME_WAIT: u8 = 6;
const NEW_SYN_RECV: u8 = 12;

/// `SOCK_STREAM`, `SOCK_DGRAM` and `SOCK_RAW` of `include/linux/net.h` (part of the system call ABI; another order on MIPS only).
pub const SOCK_STREAM: u32 = 1;
/// See [`SOCK_STREAM`].
pub const SOCK_DGRAM: u32 = 2;
/// See [`SOCK_STREAM`].
pub const SOCK_RAW: u32 = 3;

/// `SHUTDOWN_MASK` of `include/net/sock.h`: `close` sets both ways before it sends the FIN.
const SHUTDOWN_MASK: u8 = 3;

/// `TCP_ESTABLISHED`, `TCP_SYN_SENT` and `TCP_CLOSE`, likewise.
pub const ESTABLISHED: u32 = 1;
/// See [`ESTABLISHED`].
pub const SYN_SENT: u32 = 2;
/// See [`ESTABLISHED`].
pub const CLOSE: u32 = 7;

/// The cookie for a tracing program. Where the kernel does not let it make one, it is the one that the socket's creation hook
/// made, or 0.
#[inline(always)]
pub fn traced_cookie<T>(sk: *mut T) -> u64 {
    if field!(makes_cookies) == ABSENT {
        return Probe::field(sk as u64, field!(sk_cookie)).unwrap_or(0);
    }
    make_cookie(sk)
}

/// Cookie of a socket that the verifier trusts, made if it has none yet.
#[inline(always)]
pub fn make_cookie<T>(sk: *mut T) -> u64 {
    // SAFETY: the verifier accepts only a live socket here.
    unsafe { bpf_get_socket_cookie(sk.cast()) }
}

/// It waits for what comes to it: a connection that was begun here and has no answer yet, or a connected datagram socket.
#[inline(always)]
pub fn waits(sk: u64) -> bool {
    if sk == 0 {
        return false;
    }
    let state: u8 = Probe::field(sk, field!(sk_state)).unwrap_or(0);
    if state == SYN_SENT as u8 {
        return true;
    }
    // The smaller structs are of other states.
    state == ESTABLISHED as u8 && Probe::field::<u16>(sk, field!(sk_protocol)) == Some(u16::from(packet::protocol::UDP))
}

/// Inode number of a socket's network namespace; 0 when unknown.
#[inline(always)]
pub fn netns<R: Reader>(sk: u64) -> u32 {
    let net: u64 = R::field(sk, field!(sk_net)).unwrap_or(0);
    Probe::field(net, field!(net_inum)).unwrap_or(0)
}

/// Inode number of the file of a `struct socket`; 0 without one.
#[inline(always)]
pub fn inode(socket: u64) -> u64 {
    Probe::field(socket, field!(socket_inode)).unwrap_or(0)
}

/// What the packet's socket says, written into the scratch record; its namespace as the one whose rules decided.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn describe<R: Reader>(sk: u64, scratch: *mut Packet) {
    // SAFETY: the caller's promise.
    unsafe {
        put!(scratch.sk, sk);
        let state: u8 = R::field(sk, field!(sk_state)).unwrap_or(0);
        put!(scratch.record.key.state, state);
        put!(scratch.record.cookie, R::field(sk, field!(sk_cookie)).unwrap_or(0));
        let net: u64 = R::field(sk, field!(sk_net)).unwrap_or(0);
        put!(scratch.record.key.netns, R::field(net, field!(net_inum)).unwrap_or(0));
        if state == TIME_WAIT || state == NEW_SYN_RECV {
            put!(scratch.record.key.flags, flag::SOCKET);
            return;
        }
        let mut flags = flag::SOCKET | flag::FULL_SOCKET;
        put!(scratch.record.key.uid, R::field(sk, field!(sk_uid)).unwrap_or(0));
        put!(scratch.protocol, R::field::<u16>(sk, field!(sk_protocol)).unwrap_or(0));
        let socket: u64 = R::field(sk, field!(sk_socket)).unwrap_or(0);
        put!(scratch.socket, black_box(socket));
        let file: u64 = R::field(socket, field!(socket_file)).unwrap_or(0);
        let mut kernel = u16::from(black_box(socket != 0 && file == 0));
        // A network file system's has a file, too.
        let place = field!(sk_kernel_bit);
        if place != ABSENT {
            let byte: u8 = R::field(sk, place / 8).unwrap_or(0);
            kernel |= u16::from(byte >> (place & 7) & 1);
        }
        let kind: u16 = R::field(sk, field!(sk_type)).unwrap_or(0);
        // A part of a multipath connection is made by the kernel, for whoever connects. The socket by which the kernel resets
        // is of TCP's number too, but raw: it ends before the field.
        let stream = u32::from(kind) == SOCK_STREAM;
        if stream && R::field::<u16>(sk, field!(sk_protocol)) == Some(u16::from(packet::protocol::TCP)) {
            kernel &= u16::from(Probe::field::<u8>(sk, field!(tcp_is_mptcp)).unwrap_or(0)) ^ 1;
        }
        flags |= (kernel & 1) * flag::KERNEL;
        // Of a raw socket the number is its protocol.
        if u32::from(kind) != SOCK_RAW {
            put!(scratch.port, R::field(sk, field!(sk_num)).unwrap_or(0));
        }
        flags |= bit(u32::from(kind) == SOCK_DGRAM || u32::from(kind) == SOCK_RAW, flag::DATAGRAM);
        let cgroup: u64 = R::field(sk, field!(sk_cgroup)).unwrap_or(0);
        let node: u64 = R::field(cgroup, field!(cgroup_kn)).unwrap_or(0);
        put!(scratch.record.key.cgroup, R::field(node, field!(kn_id)).unwrap_or(0));
        flags |= bit(R::field::<i32>(sk, field!(sk_lock_owned)).unwrap_or(0) != 0, flag::LOCKED);
        put!(scratch.shut, u32::from(R::field::<u8>(sk, field!(sk_shutdown)) == Some(SHUTDOWN_MASK)));
        let dead = field!(sk_flag_dead);
        if dead != ABSENT {
            let bits: u64 = R::field(sk, field!(sk_flags)).unwrap_or(0);
            flags |= ((bits >> (dead & 63)) as u16 & 1) * flag::ORPHAN;
        }
        put!(scratch.record.key.flags, flags);
    }
}

/// What only a single packet has: the interface that it came in by, and what its socket says beside.
#[inline(always)]
pub fn describe_one() {
    sock_one();
}

/// See [`describe_one`]: a function of its own to the verifier too, so that what it reads takes no room on the caller's stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sock_one() -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        let (skb, sk): (u64, u64) = (get!(scratch.skb), get!(scratch.sk));
        // Of an answer it is known already.
        if get!(scratch.record.key.direction) != Direction::Answer as u8 {
            put!(scratch.record.arrived_by, Probe::field(skb, field!(skb_iif)).unwrap_or(0));
        }
        let flags: u16 = get!(scratch.record.key.flags);
        if flags & flag::FULL_SOCKET == 0 {
            return 0;
        }
        put!(scratch.record.mark, Probe::field(sk, field!(sk_mark)).unwrap_or(0));
        let file: u64 = Probe::field(get!(scratch.socket), field!(socket_file)).unwrap_or(0);
        let cred: u64 = Probe::field(file, field!(file_cred)).unwrap_or(0);
        if cred != 0 {
            put!(scratch.record.file_uid, Probe::field(cred, field!(cred_fsuid)).unwrap_or(u32::MAX));
            put!(scratch.record.file_gid, Probe::field(cred, field!(cred_fsgid)).unwrap_or(u32::MAX));
        }
        // The socket by which the kernel resets is of TCP's number too, but raw.
        let is_tcp = get!(scratch.protocol) == u16::from(packet::protocol::TCP) && flags & flag::DATAGRAM == 0;
        // A part of a multipath connection is not the whole of it.
        if is_tcp && Probe::field::<u8>(sk, field!(tcp_is_mptcp)).unwrap_or(0) & 1 == 0 {
            put!(scratch.record.segments, Probe::field(sk, field!(tcp_segments)).unwrap_or(0));
        }
    }
    0
}

/// `flag` where the condition holds, without a branch that the verifier would follow.
#[inline(always)]
fn bit(condition: bool, flag: u16) -> u16 {
    black_box(u16::from(condition)) * flag
}

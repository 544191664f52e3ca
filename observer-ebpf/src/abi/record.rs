//! The drop record: one outbound packet that died on this host.

use super::task::Owner;

/// Bytes of packet that a record carries, from the network header on.
pub const PACKET_BYTES: usize = 256;

/// Which kind of decision freed the packet. Values are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A netfilter hook: nftables, iptables, and what hangs on the same hooks.
    Netfilter = 1,
    /// A cgroup egress BPF program, systemd's `IPAddressDeny=` included.
    Cgroup = 2,
    /// A traffic control action.
    Tc = 3,
    /// A full queue: nobody's decision.
    Queue = 4,
}

/// Bits of [`DropRecord::place`]: what the packet looked like, from which the hook follows.
pub mod place {
    /// `skb->dev` is set.
    pub const DEVICE: u8 = 1;
    /// `skb->dev` is the device of the route.
    pub const DEVICE_IS_ROUTES: u8 = 2;
    /// `skb->data` stands at the link header.
    pub const AT_LINK_HEADER: u8 = 4;
    /// The control block holds the incoming device.
    pub const PROTOCOL_REACHED: u8 = 8;
    /// The control block begins with zero.
    pub const CONTROL_EMPTY: u8 = 16;
    /// The route's device is the one that it came in by.
    pub const HAIRPIN: u8 = 32;
}

/// Where on its way out a packet died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Netfilter LOCAL_OUT.
    Output,
    /// Netfilter POST_ROUTING.
    Postrouting,
    /// On the device: netfilter's netdev egress hook, tc egress, or a cgroup egress program.
    Egress,
    /// Netfilter FORWARD.
    Forward,
    /// Netfilter PRE_ROUTING, of a packet that another namespace sent.
    Prerouting,
    /// On the device that received it from another namespace: netfilter's netdev ingress hook or tc ingress.
    Ingress,
}

/// How the kernel half knows the owner. Values are part of the ABI; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OwnerSource {
    /// The process called connect on the socket.
    Connect = 1,
    /// The process created the socket.
    Create = 2,
    /// The process held the socket when observer started.
    Seed = 3,
}

/// Which way the packet was going. Values are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// A socket of this namespace, or the kernel, sent it.
    Local = 1,
    /// This namespace forwards it.
    Forward = 2,
    /// It came from another namespace and has no route yet: forwarded unless its destination is an address of this one.
    Unrouted = 3,
}

/// Bytes of a `struct nf_conntrack_tuple`.
pub const TUPLE_BYTES: usize = 40;

/// Bits of [`DropRecord::flags`].
pub mod flag {
    /// The packet had a socket.
    pub const SOCKET: u8 = 1;
    /// That socket was a full one (not a connection request or in time-wait), so its inode, uid and cgroup are valid.
    pub const FULL_SOCKET: u8 = 2;
    /// The socket was locked by a process that is inside a call on it.
    pub const LOCKED: u8 = 4;
    /// The socket was closed by its process; the kernel finishes the connection on its own.
    pub const ORPHAN: u8 = 8;
    /// The packet's headers could not be read.
    pub const UNREADABLE: u8 = 16;
    /// The kernel made the socket for itself: no process has it open.
    pub const KERNEL: u8 = 32;
    /// Datagrams of this socket leave inside the call that sends them (UDP, raw, ping); a connection's may also leave by a
    /// timer or on an answer.
    pub const DATAGRAM: u8 = 64;
    /// The process on the CPU had the socket among its first open files, and was not the socket's owner.
    pub const HELD: u8 = 128;
}

/// One dropped packet. All integers are in the machine's byte order unless said otherwise.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DropRecord {
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Socket cookie; 0 when no binding hook made one.
    pub cookie: u64,
    /// Inode number of the socket file; 0 when there is none.
    pub inode: u64,
    /// cgroup id of the socket; 0 when unknown.
    pub cgroup: u64,
    /// Kernel address that freed the packet.
    pub location: u64,
    /// Owner found by cookie; `source` 0 when none was.
    pub owner: Owner,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Outgoing interface's index in that namespace; 0 when unknown.
    pub ifindex: u32,
    /// Drop reason, a value of the running kernel's `enum skb_drop_reason`.
    pub reason: u32,
    /// `skb->len`, bytes as nft's counters count them at that hook.
    pub length: u32,
    /// User id of the socket's creation, in the initial user namespace; valid with [`flag::FULL_SOCKET`].
    pub uid: u32,
    /// Process that was on the CPU: only ever a hint to be proven, never an answer.
    pub current_pid: u32,
    /// Inode number of the namespace that it came from, where that is another and known; else 0.
    pub origin_netns: u32,
    /// Ethertype of the packet, host byte order.
    pub ethertype: u16,
    /// Valid bytes in `packet`.
    pub captured: u16,
    /// A [`Cause`].
    pub cause: u8,
    /// Bits of [`place`].
    pub place: u8,
    /// `sk->sk_state`; valid with [`flag::SOCKET`].
    pub state: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// `enum ip_conntrack_info` of its connection; valid where `original` is not zero.
    pub conntrack_info: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// The connection's original `struct nf_conntrack_tuple`, as it was before any translation of addresses; zero without
    /// connection tracking.
    pub original: [u8; TUPLE_BYTES],
    /// Outgoing interface's name, zero-terminated; empty when unknown.
    pub interface: [u8; 16],
    /// The packet from its network header on.
    pub packet: [u8; PACKET_BYTES],
}

const _: () = assert!(size_of::<DropRecord>() == 5 * 8 + 80 + 7 * 4 + 2 * 2 + 8 + TUPLE_BYTES + 16 + PACKET_BYTES);
const _: () = assert!(size_of::<DropRecord>().is_multiple_of(8));

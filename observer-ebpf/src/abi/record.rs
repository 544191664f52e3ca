//! The drop record: one outbound packet that died on this host; and its key, under which the ones like it are counted.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::{rule::RuleAnswer, task::Owner};

/// Bytes of packet that a record carries, from the network header on.
pub const PACKET_BYTES: usize = 256;

/// Keys of which a generation keeps a count; fewer on hosts with very many CPUs.
pub const MAX_KEYS: u32 = 1 << 14;
/// Coarser keys of a generation, for what finds no room.
pub const MAX_COARSE_KEYS: u32 = 1 << 10;

/// Which kind of decision freed the packet. Values are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(TryFromBytes, Immutable, KnownLayout))]
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
    /// A program in user space that a rule asks (NFQUEUE), or the want of one.
    Nfqueue = 5,
    /// It waited for whoever is next on its way, who did not answer, while rules drop what asks for neighbours. No rule is seen then:
    /// `table` and `chain` of [`DropKey::rule`] are the bytes of the gateway's address, zeros where the packet's own destination is meant.
    Neighbour = 6,
}

/// Bits of [`DropKey::place`]: what the packet looked like, from which the hook follows.
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

/// A neighbour is given up after three questions, a second apart unless that was set otherwise: of one of whom nothing was dropped for so
/// many nanoseconds it is not a rule's doing.
pub const NEIGHBOUR_WAIT_NS: u64 = 15_000_000_000;

/// Bits of [`DropKey::answer`], of an answer.
pub mod answer {
    /// It is for this namespace itself.
    pub const LOCAL: u8 = 1;
    /// It has no route yet.
    pub const UNROUTED: u8 = 2;
    /// It is an ICMP error about a packet of the connection: type and code are its own, all else is the connection's.
    pub const ERROR: u8 = 4;
    /// The connection was begun in another namespace, as far as its addresses tell.
    pub const ELSEWHERE: u8 = 8;
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
    /// Netfilter PRE_ROUTING, of a packet that another namespace sent or of an answer.
    Prerouting,
    /// On the device that received it, from another namespace or as an answer: netfilter's netdev ingress hook or tc ingress.
    Ingress,
    /// Netfilter LOCAL_IN, of an answer.
    Input,
}

/// How the eBPF side knows the owner. Values are part of the ABI; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(TryFromBytes, Immutable, KnownLayout))]
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
#[cfg_attr(feature = "user", derive(TryFromBytes, Immutable, KnownLayout))]
#[repr(u8)]
pub enum Direction {
    /// A socket of this namespace, or the kernel, sent it.
    Local = 1,
    /// This namespace forwards it.
    Forward = 2,
    /// It came from another namespace and has no route yet: forwarded unless its destination is an address of this one.
    Unrouted = 3,
    /// The other way than the first packet of its connection, and not made here. Its addresses are those of the first packet. Who
    /// began it may be of this host, or somebody else who contacted it; user space tells.
    Answer = 4,
}

/// On whose account a packet is counted. Values are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(TryFromBytes, Immutable, KnownLayout))]
#[repr(u16)]
pub enum Account {
    /// A user: the owner of the outermost user namespace below the initial one, or who made the socket in the host's own network
    /// namespace.
    User = 1,
    /// Another network namespace of the host's, such as a container's, or what the host's own sends without a user, by its inode
    /// number.
    Netns = 2,
    /// Forwarded packets whose namespace is not known, as behind a bridge: by namespace and source address, which share a number.
    Source = 3,
}

/// Bits of [`DropKey::flags`].
pub mod flag {
    /// The packet had a socket.
    pub const SOCKET: u16 = 1;
    /// That socket was a full one (not a connection request or in time-wait), so its inode, uid and cgroup are valid.
    pub const FULL_SOCKET: u16 = 2;
    /// The socket was locked by a process that is inside a call on it.
    pub const LOCKED: u16 = 4;
    /// The socket was closed by its process; the kernel finishes the connection on its own.
    pub const ORPHAN: u16 = 8;
    /// The packet's headers could not be read.
    pub const UNREADABLE: u16 = 16;
    /// The kernel made the socket for itself.
    pub const KERNEL: u16 = 32;
    /// Datagrams of this socket leave inside the call that sends them (UDP, raw, ping); a connection's may also leave by a
    /// timer or on an answer.
    pub const DATAGRAM: u16 = 64;
    /// The process on the CPU had the socket among its first open files, and was not the socket's owner.
    pub const HELD: u16 = 128;
    /// A tunnel's packet: it carries another one, which is the socket's.
    pub const ENCAPSULATED: u16 = 256;
    /// IPv6 hop-by-hop options stand first, or it is IGMP.
    pub const HOP_BY_HOP: u16 = 512;
    /// The packet's addresses were translated: [`DropKey::sent`] is not what the packet says.
    pub const TRANSLATED: u16 = 1024;
    /// The owner's socket was held by several processes when it was seeded.
    pub const SHARED: u16 = 2048;
    /// Several destinations were counted together, for want of room.
    pub const COARSE: u16 = 4096;
    /// Ports, or type and code, are those of the packet.
    pub const TRANSPORT: u16 = 8192;
    /// The rule was also seen where it gave the verdict, and was the same.
    pub const CONFIRMED: u16 = 16_384;
    /// Another one was seen there: neither is reported.
    pub const DISPUTED: u16 = 32_768;
}

/// Addresses of a packet; IPv4 in the first four bytes, network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Tuple {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port in host byte order, or an echo request's identifier. 0 where it is not part of the key.
    pub source_port: u16,
    /// Destination port in host byte order.
    pub destination_port: u16,
}

/// Everything from which an event can be made: packets with an equal key are reported as one line. What differs from packet to
/// packet of one story (source port, thread, payload) is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct DropKey {
    /// Owner found by cookie: start of its process, nanoseconds of `CLOCK_BOOTTIME`; 0 when none was.
    pub owner_start_ns: u64,
    /// cgroup id of the socket; 0 when unknown.
    pub cgroup: u64,
    /// Socket cookie, where the owner is not certain; else 0.
    pub cookie: u64,
    /// Inode number of the socket file, where the owner is not certain; else 0.
    pub inode: u64,
    /// Addresses as they were sent, before any translation.
    pub sent: Tuple,
    /// Addresses of the packet where they were translated; else zero.
    pub translated: Tuple,
    /// The rule or policy that dropped it, or what else is known of who decided.
    pub rule: RuleAnswer,
    /// Outgoing interface's name, zero-terminated; empty when unknown.
    pub interface: [u8; 16],
    /// Owner's process id; 0 without one.
    pub owner_pid: u32,
    /// Process on the CPU, where that may be the sender and is not the owner: a hint to be proven, never an answer.
    pub current_pid: u32,
    /// Inode number of the network namespace whose rules decided.
    pub netns: u32,
    /// Inode number of the namespace that it came from, where that is another and known; else 0.
    pub origin_netns: u32,
    /// Drop reason, a value of the running kernel's `enum skb_drop_reason`.
    pub reason: u32,
    /// User id of the socket's creation, in the initial user namespace; valid with [`flag::FULL_SOCKET`].
    pub uid: u32,
    /// Ethertype of the packet, host byte order.
    pub ethertype: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// A [`Cause`].
    pub cause: u8,
    /// Bits of [`place`].
    pub place: u8,
    /// `sk->sk_state`; valid with [`flag::SOCKET`].
    pub state: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// IP protocol of the payload; valid unless [`flag::UNREADABLE`].
    pub protocol: u8,
    /// TCP's flags, or ICMP's type.
    pub detail: u8,
    /// ICMP's code.
    pub code: u8,
    /// An [`OwnerSource`]; 0 without an owner.
    pub owner_source: u8,
    /// Bits of [`answer`]; 0 of what is none.
    pub answer: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What is counted under a key, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Their bytes, as nft's counters count them at that hook.
    pub bytes: u64,
    /// The first one, nanoseconds of `CLOCK_BOOTTIME`.
    pub first_ns: u64,
    /// The last one.
    pub last_ns: u64,
}

/// The first packet of a key in a generation, with what only a single packet has. It is counted under its key like all
/// others. All integers are in the machine's byte order unless said otherwise.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct DropRecord {
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Socket cookie; 0 when no binding hook made one.
    pub cookie: u64,
    /// Inode number of the socket file; 0 when there is none.
    pub inode: u64,
    /// Kernel address that freed the packet.
    pub location: u64,
    /// Owner found by cookie; `source` 0 when none was.
    pub owner: Owner,
    /// What it is counted under.
    pub key: DropKey,
    /// Generation in which it is counted.
    pub epoch: u32,
    /// `skb->len`.
    pub length: u32,
    /// User and group with which its socket's file was opened (what rules compare), in the initial user namespace; `u32::MAX`
    /// for a packet without one.
    pub file_uid: u32,
    /// See [`Self::file_uid`].
    pub file_gid: u32,
    /// `sk->sk_mark`; 0 without a socket.
    pub mark: u32,
    /// `skb->skb_iif`: number of the interface that it came in by; 0 for one that was made here. Of an answer the one that it was to leave
    /// by, which is where its connection came in.
    pub arrived_by: u32,
    /// Segments that its TCP connection has sent so far, this one among them; 0 where there is none.
    pub segments: u32,
    /// On whose account it is counted: the number that belongs to `account_kind`.
    pub account: u32,
    /// Source port in host byte order; valid with [`flag::TRANSPORT`].
    pub source_port: u16,
    /// Source port after translation.
    pub translated_port: u16,
    /// Valid bytes in `packet`, which ends there.
    pub captured: u16,
    /// An [`Account`].
    pub account_kind: u16,
    /// The packet from its network header on.
    pub packet: [u8; PACKET_BYTES],
}

const _: () = assert!(size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<DropKey>() == 4 * 8 + 2 * 36 + size_of::<RuleAnswer>() + 16 + 6 * 4 + 2 * 2 + 8 + 4);
const _: () = assert!(size_of::<DropKey>().is_multiple_of(8));
const _: () = assert!(size_of::<DropRecord>() == 4 * 8 + size_of::<Owner>() + size_of::<DropKey>() + 40 + PACKET_BYTES);

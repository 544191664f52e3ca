//! A dropped packet: the drop record decoded, before anyone is named.

use std::net::IpAddr;

use bytes::Bytes;
use observer_ebpf::{
    abi::{Direction, OwnerSource, RuleAnswer, Task},
    logic::packet::protocol,
};

use super::{
    names::{Cause, Hook},
    packet_kind::PacketKind,
};

/// Addresses of the packet's IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Source port; `None` where there is none, and where several packets stand together.
    pub source_port: Option<u16>,
    /// Destination port; `None` where there is none, or the packet does not prove it.
    pub destination_port: Option<u16>,
}

/// The packet's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Never used twice by the kernel; `None` for a socket that no binding hook met.
    pub cookie: Option<u64>,
    /// Inode number of the socket file; `None` for a socket without one (a request, or closed).
    pub inode: Option<u64>,
    /// User id that created it; `None` when it is not a full socket.
    pub uid: Option<u32>,
    /// cgroup id.
    pub cgroup: Option<u64>,
    /// `sk->sk_state`, a `TCP_*` state for connection protocols.
    pub state: u8,
    /// A process is inside a call on it that holds its lock.
    pub locked: bool,
    /// No process has it open any more.
    pub orphan: bool,
    /// The kernel made it for itself.
    pub kernel: bool,
    /// The process that was on the CPU had it open.
    pub held: bool,
    /// A datagram, raw or ping socket: what it sends leaves inside the call.
    pub datagram: bool,
}

/// Owner that the eBPF side knew by cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The process as it was when it was bound.
    pub task: Task,
    /// When it was bound, nanoseconds of `CLOCK_BOOTTIME`; `None` where only the process is known, not how it was then.
    pub bound_ns: Option<u64>,
    /// How it is known.
    pub source: OwnerSource,
    /// More than one process held the socket when it was seeded.
    pub shared: bool,
}

/// Outbound packets that a decision on this host dropped: one, or several that differ in nothing that is reported.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// When, nanoseconds of `CLOCK_BOOTTIME`; of several the last.
    pub boot_ns: u64,
    /// When the first of them was dropped.
    pub first_ns: u64,
    /// How many.
    pub packets: u64,
    /// Addresses; `None` when the packet is not IP or its headers were unreadable.
    pub endpoints: Option<Endpoints>,
    /// IP protocol of the payload; `None` when it could not be read.
    pub protocol: Option<u8>,
    /// TCP's flags.
    pub tcp_flags: Option<u8>,
    /// ICMP's type and code.
    pub icmp: Option<(u8, u8)>,
    /// Identifier of an ICMP echo request: what a ping has for a port.
    pub icmp_identifier: Option<u16>,
    /// IPv6 hop-by-hop options stand first.
    pub hop_by_hop: bool,
    /// Packets to several destinations stand together, for want of room to count them one by one.
    pub coarse: bool,
    /// Ethertype.
    pub ethertype: u16,
    /// Which kind of decision.
    pub cause: Cause,
    /// Where on the way out; `None` when it cannot be reported.
    pub hook: Option<Hook>,
    /// Drop reason, a value of the running kernel's enum.
    pub reason: u32,
    /// Rule or policy that the eBPF side saw drop it; `None` when it saw none.
    pub rule: Option<RuleAnswer>,
    /// Whether the rule that was seen to give the verdict is the same; `None` where only one was seen.
    pub verdict_agrees: Option<bool>,
    /// It died because this neighbour, the next on its way, did not answer.
    pub waited_for: Option<IpAddr>,
    /// It answers a connection that was begun in another namespace, as far as its addresses tell.
    pub answers_another: bool,
    /// Bytes as the firewall's counters count them.
    pub bytes: u64,
    /// Inode number of the network namespace whose rules decided.
    pub netns: u32,
    /// Which way it was going.
    pub direction: Direction,
    /// Which packet of a conversation it is, where it is not an outbound one; its addresses are those of the conversation.
    pub packet: Option<PacketKind>,
    /// Inode number of the namespace that it came from, where that is another and known.
    pub origin_netns: Option<u32>,
    /// Addresses before any translation, where they differ from the packet's.
    pub original: Option<Endpoints>,
    /// It carries another packet, which is the socket's: a tunnel made it.
    pub encapsulated: bool,
    /// Outgoing interface.
    pub interface: Option<String>,
    /// Its socket.
    pub socket: Option<Socket>,
    /// Owner by cookie.
    pub owner: Option<Owner>,
    /// Process that was on the CPU; only a hint.
    pub current_pid: u32,
    /// What only a single packet has; `None` for packets that were counted.
    pub captured: Option<Captured>,
}

/// A single packet, and what decided about it beside what it says.
#[derive(Clone, Debug)]
pub struct Captured {
    /// From its network header on, as far as it was captured.
    pub bytes: Bytes,
    /// Bytes of the whole packet, as the hook saw it.
    pub length: u32,
    /// User and group with which its socket's file was opened; `None` without one.
    pub opened_by: Option<(u32, u32)>,
    /// The socket's mark.
    pub mark: u32,
    /// Number of the interface that it came in by, in the namespace whose rules decided; of an answer the one that its connection's first
    /// packet came in by.
    pub arrived_by: Option<u32>,
    /// Segments that its TCP connection had sent by then, this one among them.
    pub segments: Option<u32>,
}

impl Dropped {
    /// Bytes of the packet from its network header on; `None` where it was not captured.
    pub fn ip_length(&self) -> Option<usize> {
        let captured = self.captured.as_ref()?;
        let word = |at: usize| Some(usize::from(u16::from_be_bytes(captured.bytes.get(at..at + 2)?.try_into().ok()?)));
        let said = match captured.bytes.first()? >> 4 {
            4 => word(2)?,
            _ => word(4)? + 40,
        };
        // What the device cuts up is longer than a header can say.
        Some(if said == 0 || said == 40 && captured.length > 40 { captured.length as usize } else { said })
    }

    /// An answer as the packet that it is: from whoever answers, and to whoever began the connection.
    pub fn turned(self) -> Self {
        let turned = |of: Endpoints| Endpoints {
            source: of.destination,
            destination: of.source,
            source_port: of.destination_port,
            destination_port: of.source_port,
            ..of
        };
        let is_unrouted = matches!(self.hook, Some(Hook::Prerouting | Hook::Ingress));
        Self {
            endpoints: self.endpoints.map(turned),
            original: None,
            direction: if is_unrouted { Direction::Unrouted } else { Direction::Forward },
            packet: None,
            waited_for: None,
            answers_another: false,
            ..self
        }
    }

    /// The kernel made it itself: it sends on a socket of its own, or without any. Whatever a process sends still has its
    /// socket at these hooks.
    pub fn by_kernel(&self) -> bool {
        match self.socket {
            Some(socket) => socket.kernel,
            None => self.direction == Direction::Local && matches!(self.hook, Some(Hook::Output | Hook::Postrouting)),
        }
    }
}

/// The number of a protocol by [`transport_name`].
pub fn transport_number(name: &str) -> Option<u8> {
    (0..=u8::MAX).find(|number| transport_name(*number) == name)
}

/// ECS name of an IP protocol, or its number as text.
pub fn transport_name(number: u8) -> String {
    match number {
        protocol::ICMP => "icmp".to_owned(),
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::ICMPV6 => "ipv6-icmp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
impl Dropped {
    /// One packet of a local socket with cookie 1 and inode 7, stopped at the output hook a minute after boot.
    pub(crate) fn example() -> Self {
        Self {
            boot_ns: 60_000_000_000,
            first_ns: 60_000_000_000,
            packets: 1,
            endpoints: None,
            protocol: None,
            tcp_flags: None,
            icmp: None,
            icmp_identifier: None,
            hop_by_hop: false,
            coarse: false,
            ethertype: 0x0800,
            cause: Cause::Netfilter,
            hook: Some(Hook::Output),
            reason: 0,
            rule: None,
            verdict_agrees: None,
            bytes: 0,
            netns: 0,
            direction: Direction::Local,
            packet: None,
            waited_for: None,
            answers_another: false,
            origin_netns: None,
            original: None,
            encapsulated: false,
            interface: None,
            socket: Some(Socket {
                cookie: Some(1),
                inode: Some(7),
                uid: Some(0),
                cgroup: None,
                state: 1,
                locked: false,
                orphan: false,
                kernel: false,
                datagram: false,
                held: false,
            }),
            owner: None,
            current_pid: 0,
            captured: None,
        }
    }
}

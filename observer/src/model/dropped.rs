//! A dropped packet: the drop record decoded, before anyone is named.

use std::net::IpAddr;

use bytes::Bytes;
use observer_ebpf::{
    abi::{Cause, Direction, Hook, OwnerSource, Task},
    logic::packet::{Transport, protocol},
};

/// Addresses of the packet's IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Ports or ICMP type, as far as the packet proves them.
    pub transport: Transport,
}

impl Endpoints {
    /// Source and destination port.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Ports { source, destination, .. } => Some((source, destination)),
            Transport::Icmp { .. } | Transport::Opaque => None,
        }
    }
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

/// Owner that the kernel half knew by cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The process as it was when it was bound.
    pub task: Task,
    /// When it was bound, nanoseconds of `CLOCK_BOOTTIME`.
    pub bound_ns: u64,
    /// How it is known.
    pub source: OwnerSource,
    /// More than one process held the socket when it was seeded.
    pub shared: bool,
}

/// One outbound packet that a decision on this host dropped.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// Addresses; `None` when the packet is not IP or its headers were unreadable.
    pub endpoints: Option<Endpoints>,
    /// Ethertype.
    pub ethertype: u16,
    /// Which kind of decision.
    pub cause: Cause,
    /// Where on the way out; `None` when it cannot be told.
    pub hook: Option<Hook>,
    /// Drop reason, a value of the running kernel's enum.
    pub reason: u32,
    /// Bytes as the firewall's counters count them.
    pub bytes: u32,
    /// Inode number of the network namespace whose rules decided.
    pub netns: u32,
    /// Which way it was going.
    pub direction: Direction,
    /// Inode number of the namespace that it came from, where that is another and known.
    pub origin_netns: Option<u32>,
    /// Addresses before any translation, where they differ from the packet's.
    pub original: Option<Endpoints>,
    /// Outgoing interface.
    pub interface: Option<String>,
    /// Its socket.
    pub socket: Option<Socket>,
    /// Owner by cookie.
    pub owner: Option<Owner>,
    /// Process that was on the CPU; only a hint.
    pub current_pid: u32,
    /// The packet from its network header on, as far as it was captured.
    pub packet: Bytes,
}

impl Dropped {
    /// Identifier of an ICMP echo request: what a ping has for a port.
    pub fn icmp_identifier(&self) -> Option<u16> {
        let (header, request) = match self.endpoints?.protocol {
            protocol::ICMP => (usize::from(self.packet.first()? & 15) * 4, 8),
            protocol::ICMPV6 => (40, 128),
            _ => return None,
        };
        let message = self.packet.get(header..header + 8)?;
        (message[0] == request).then(|| u16::from_be_bytes([message[4], message[5]]))
    }
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

//! The bytes of a drop record, read in the order of its fields.

use std::net::IpAddr;

use bytes::{Buf, Bytes};
use observer_ebpf::{
    abi::{Cause, Direction, DropRecord, OwnerSource, PACKET_BYTES, TUPLE_BYTES, Task, flag},
    logic::{
        direction::{Place, hook},
        packet::{self, Addresses, Transport},
    },
};

use crate::model::{Dropped, Endpoints, Owner, Socket};

/// A record that this version cannot read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not as long as a record.
    #[error("a record of {0} bytes, expected {expected}", expected = size_of::<DropRecord>())]
    Length(usize),
    /// A cause that this version does not know.
    #[error("unknown cause {0}")]
    Cause(u8),
    /// A direction that this version does not know.
    #[error("unknown direction {0}")]
    Direction(u8),
    /// A process event that this version does not know.
    #[error("unknown process event {0}")]
    Event(u8),
}

/// Decodes one record.
pub fn decode(mut bytes: Bytes) -> Result<Dropped, DecodeError> {
    if bytes.len() != size_of::<DropRecord>() {
        return Err(DecodeError::Length(bytes.len()));
    }
    let boot_ns = bytes.get_u64_ne();
    let cookie = bytes.get_u64_ne();
    let inode = bytes.get_u64_ne();
    let cgroup = bytes.get_u64_ne();
    let _location = bytes.get_u64_ne();
    let owner = decode_owner(&mut bytes);
    let netns = bytes.get_u32_ne();
    let _ifindex = bytes.get_u32_ne();
    let reason = bytes.get_u32_ne();
    let length = bytes.get_u32_ne();
    let uid = bytes.get_u32_ne();
    let current_pid = bytes.get_u32_ne();
    let origin_netns = bytes.get_u32_ne();
    let ethertype = bytes.get_u16_ne();
    let captured = usize::from(bytes.get_u16_ne()).min(PACKET_BYTES);
    let cause = bytes.get_u8();
    let place = bytes.get_u8();
    let state = bytes.get_u8();
    let flags = bytes.get_u8();
    let direction = bytes.get_u8();
    let conntrack_info = bytes.get_u8();
    bytes.advance(2);
    let original = bytes.split_to(TUPLE_BYTES);
    let interface = bytes.split_to(16);
    let packet = bytes.split_to(captured);
    let full = flags & flag::FULL_SOCKET != 0;
    let cause = decode_cause(cause).ok_or(DecodeError::Cause(cause))?;
    let direction = decode_direction(direction).ok_or(DecodeError::Direction(direction))?;
    let endpoints = endpoints(&packet, ethertype);
    Ok(Dropped {
        boot_ns,
        endpoints,
        direction,
        origin_netns: (origin_netns != 0).then_some(origin_netns),
        original: endpoints.and_then(|seen| before_translation(&original, conntrack_info, seen)),
        ethertype,
        cause,
        hook: hook(cause, direction, Place::new(place, flags & flag::SOCKET != 0, ethertype, &packet)),
        reason,
        bytes: length,
        netns,
        interface: text(&interface),
        socket: (flags & flag::SOCKET != 0).then_some(Socket {
            cookie: nonzero(cookie),
            inode: nonzero(inode),
            uid: full.then_some(uid),
            cgroup: nonzero(cgroup),
            state,
            locked: flags & flag::LOCKED != 0,
            orphan: flags & flag::ORPHAN != 0,
            kernel: flags & flag::KERNEL != 0,
            datagram: flags & flag::DATAGRAM != 0,
            held: flags & flag::HELD != 0,
        }),
        owner,
        current_pid,
        packet,
    })
}

/// A task, in the order of its fields.
pub(super) fn decode_task(bytes: &mut Bytes) -> Task {
    Task {
        start_ns: bytes.get_u64_ne(),
        cgroup: bytes.get_u64_ne(),
        pid: bytes.get_u32_ne(),
        tid: bytes.get_u32_ne(),
        parent_pid: bytes.get_u32_ne(),
        uid: bytes.get_u32_ne(),
        euid: bytes.get_u32_ne(),
        gid: bytes.get_u32_ne(),
        comm: {
            let mut comm = [0; 16];
            bytes.copy_to_slice(&mut comm);
            comm
        },
    }
}

fn decode_owner(bytes: &mut Bytes) -> Option<Owner> {
    let task = decode_task(bytes);
    let bound_ns = bytes.get_u64_ne();
    let source = bytes.get_u32_ne();
    let holders = bytes.get_u32_ne();
    bytes.advance(2 * size_of::<u32>());
    let source = match source {
        1 => OwnerSource::Connect,
        2 => OwnerSource::Create,
        3 => OwnerSource::Seed,
        _ => return None,
    };
    Some(Owner { task, bound_ns, source, shared: holders > 1 })
}

fn decode_cause(value: u8) -> Option<Cause> {
    [Cause::Netfilter, Cause::Cgroup, Cause::Tc, Cause::Queue].into_iter().find(|cause| *cause as u8 == value)
}

fn decode_direction(value: u8) -> Option<Direction> {
    [Direction::Local, Direction::Forward, Direction::Unrouted].into_iter().find(|known| *known as u8 == value)
}

/// The addresses that the sender's socket used, by the connection's original `struct nf_conntrack_tuple`; `None` where they
/// are the packet's own, and for answers.
fn before_translation(tuple: &[u8], info: u8, seen: Endpoints) -> Option<Endpoints> {
    /// From here on the states of `enum ip_conntrack_info` are those of answers (`IP_CT_IS_REPLY`).
    const ANSWER: u8 = 3;
    let word = |at: usize| u16::from_be_bytes([tuple[at], tuple[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = &tuple[at..at + 16];
        match seen.source {
            IpAddr::V4(_) => Some(IpAddr::from(<[u8; 4]>::try_from(&bytes[..4]).ok()?)),
            IpAddr::V6(_) => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        }
    };
    let (source, destination, protocol) = (address(0)?, address(20)?, tuple[38]);
    if info >= ANSWER || protocol != seen.protocol || source.is_unspecified() && destination.is_unspecified() {
        return None;
    }
    let transport = match seen.transport {
        Transport::Ports { tcp_flags, .. } => Transport::Ports { source: word(16), destination: word(36), tcp_flags },
        other => other,
    };
    let original = Endpoints { source, destination, protocol, transport };
    (original != seen).then_some(original)
}

fn endpoints(bytes: &[u8], ethertype: u16) -> Option<Endpoints> {
    let parsed = packet::parse(bytes, ethertype)?;
    let (source, destination) = match parsed.addresses {
        Addresses::V4 { source, destination } => (IpAddr::from(source), IpAddr::from(destination)),
        Addresses::V6 { source, destination } => (IpAddr::from(source), IpAddr::from(destination)),
    };
    Some(Endpoints { source, destination, protocol: parsed.protocol, transport: parsed.transport })
}

/// A zero-terminated name of the kernel; `None` when empty.
pub fn text(bytes: &[u8]) -> Option<String> {
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

fn nonzero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_ebpf::abi::{Hook, place};
    use proptest::prelude::*;
    use std::mem::offset_of;

    /// Bytes of a record in which only the named fields are set.
    fn record(fields: &[(usize, &[u8])]) -> Bytes {
        let mut bytes = vec![0; size_of::<DropRecord>()];
        for (offset, value) in fields {
            bytes[*offset..offset + value.len()].copy_from_slice(value);
        }
        Bytes::from(bytes)
    }

    #[test]
    fn every_field_is_read_from_its_own_place() {
        let mut syn = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 203, 0, 113, 10];
        syn.extend([0xa0, 0x3e, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2]);
        let owner = offset_of!(DropRecord, owner);
        let mut tuple = [0; TUPLE_BYTES];
        tuple[..4].copy_from_slice(&[172, 17, 0, 2]);
        tuple[16..18].copy_from_slice(&0x1388u16.to_be_bytes());
        tuple[20..24].copy_from_slice(&[203, 0, 113, 10]);
        tuple[36..38].copy_from_slice(&443u16.to_be_bytes());
        tuple[38] = 6;
        let dropped = decode(record(&[
            (offset_of!(DropRecord, time_ns), &7u64.to_ne_bytes()),
            (offset_of!(DropRecord, cookie), &8u64.to_ne_bytes()),
            (offset_of!(DropRecord, inode), &9u64.to_ne_bytes()),
            (offset_of!(DropRecord, cgroup), &10u64.to_ne_bytes()),
            (owner + offset_of!(observer_ebpf::abi::Owner, task.start_ns), &11u64.to_ne_bytes()),
            (owner + offset_of!(observer_ebpf::abi::Owner, task.pid), &12u32.to_ne_bytes()),
            (owner + offset_of!(observer_ebpf::abi::Owner, task.parent_pid), &13u32.to_ne_bytes()),
            (owner + offset_of!(observer_ebpf::abi::Owner, task.euid), &14u32.to_ne_bytes()),
            (owner + offset_of!(observer_ebpf::abi::Owner, task.comm), b"curl"),
            (owner + offset_of!(observer_ebpf::abi::Owner, source), &1u32.to_ne_bytes()),
            (owner + offset_of!(observer_ebpf::abi::Owner, holders), &2u32.to_ne_bytes()),
            (offset_of!(DropRecord, netns), &15u32.to_ne_bytes()),
            (offset_of!(DropRecord, reason), &16u32.to_ne_bytes()),
            (offset_of!(DropRecord, length), &17u32.to_ne_bytes()),
            (offset_of!(DropRecord, uid), &18u32.to_ne_bytes()),
            (offset_of!(DropRecord, current_pid), &19u32.to_ne_bytes()),
            (offset_of!(DropRecord, ethertype), &0x0800u16.to_ne_bytes()),
            (offset_of!(DropRecord, captured), &(syn.len() as u16).to_ne_bytes()),
            (offset_of!(DropRecord, cause), &[1]),
            (offset_of!(DropRecord, place), &[place::DEVICE | place::DEVICE_IS_ROUTES]),
            (offset_of!(DropRecord, state), &[3]),
            (offset_of!(DropRecord, direction), &[2]),
            (offset_of!(DropRecord, conntrack_info), &[2]),
            (offset_of!(DropRecord, origin_netns), &20u32.to_ne_bytes()),
            (offset_of!(DropRecord, original), &tuple),
            (offset_of!(DropRecord, flags), &[flag::SOCKET | flag::FULL_SOCKET | flag::LOCKED]),
            (offset_of!(DropRecord, interface), b"eth0"),
            (offset_of!(DropRecord, packet), &syn),
        ]))
        .unwrap();
        assert_eq!((dropped.direction, dropped.origin_netns), (Direction::Forward, Some(20)));
        let original = dropped.original.unwrap();
        assert_eq!((original.source.to_string().as_str(), original.ports()), ("172.17.0.2", Some((5000, 443))));
        let socket = dropped.socket.unwrap();
        let owner = dropped.owner.unwrap();
        let endpoints = dropped.endpoints.unwrap();
        assert_eq!((dropped.boot_ns, socket.cookie, socket.inode, socket.cgroup), (7, Some(8), Some(9), Some(10)));
        assert_eq!((owner.task.start_ns, owner.task.pid, owner.task.parent_pid, owner.task.euid), (11, 12, 13, 14));
        assert_eq!(
            (text(&owner.task.comm).as_deref(), owner.source, owner.shared),
            (Some("curl"), OwnerSource::Connect, true)
        );
        assert_eq!(
            (dropped.netns, dropped.reason, dropped.bytes, socket.uid, dropped.current_pid),
            (15, 16, 17, Some(18), 19)
        );
        assert_eq!((dropped.cause, dropped.hook, socket.state), (Cause::Netfilter, Some(Hook::Postrouting), 3));
        assert_eq!((socket.locked, socket.orphan, dropped.interface.as_deref()), (true, false, Some("eth0")));
        assert_eq!(
            (endpoints.destination.to_string().as_str(), endpoints.ports()),
            ("203.0.113.10", Some((0xa03e, 443)))
        );
        assert_eq!(dropped.packet.len(), syn.len());
    }

    #[test]
    fn a_request_socket_has_no_user() {
        let dropped = decode(record(&[
            (offset_of!(DropRecord, cause), &[1]),
            (offset_of!(DropRecord, direction), &[1]),
            (offset_of!(DropRecord, flags), &[flag::SOCKET]),
        ]))
        .unwrap();
        assert_eq!(dropped.socket.unwrap().uid, None);
        assert_eq!(dropped.owner, None);
    }

    #[test]
    fn wrong_lengths_and_unknown_causes_are_errors() {
        assert_eq!(decode(Bytes::from_static(&[0; 9])).unwrap_err(), DecodeError::Length(9));
        assert_eq!(decode(record(&[(offset_of!(DropRecord, direction), &[1])])).unwrap_err(), DecodeError::Cause(0));
        assert_eq!(decode(record(&[(offset_of!(DropRecord, cause), &[1])])).unwrap_err(), DecodeError::Direction(0));
    }

    proptest! {
        #[test]
        fn any_bytes_of_the_right_length_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), size_of::<DropRecord>())) {
            let _ = decode(Bytes::from(bytes));
        }
    }
}

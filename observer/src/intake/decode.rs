//! The bytes of a drop record and of a key, read in the order of their fields.

use std::net::IpAddr;

use bytes::{Buf, Bytes};
use observer_ebpf::{
    abi::{Cause, Counted, Direction, DropKey, DropRecord, OwnerSource, PACKET_BYTES, RuleAnswer, Task, Tuple, flag},
    logic::{
        direction::{Place, hook},
        packet::{ethertype, protocol},
    },
};

use crate::model::{Captured, Dropped, Endpoints, Owner, Socket};

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

/// The first packet of a key.
#[derive(Clone, Debug)]
pub struct First {
    /// Generation in which it is counted.
    pub epoch: u32,
    /// What it is counted under.
    pub key: DropKey,
    /// The packet.
    pub dropped: Dropped,
}

/// Decodes one record.
pub fn decode(mut bytes: Bytes) -> Result<First, DecodeError> {
    const FIXED: usize = size_of::<DropRecord>() - PACKET_BYTES;
    let length = bytes.len();
    if !(FIXED..=size_of::<DropRecord>()).contains(&length) {
        return Err(DecodeError::Length(length));
    }
    let boot_ns = bytes.get_u64_ne();
    let cookie = bytes.get_u64_ne();
    let inode = bytes.get_u64_ne();
    let _location = bytes.get_u64_ne();
    let owner = decode_owner(&mut bytes);
    let key = decode_key(&mut bytes);
    let epoch = bytes.get_u32_ne();
    let skb_bytes = bytes.get_u32_ne();
    let opened_by = (bytes.get_u32_ne(), bytes.get_u32_ne());
    let mark = bytes.get_u32_ne();
    let arrived_by = bytes.get_u32_ne();
    let segments = bytes.get_u32_ne();
    bytes.advance(size_of::<u32>());
    let source_port = bytes.get_u16_ne();
    let translated_port = bytes.get_u16_ne();
    let captured = usize::from(bytes.get_u16_ne());
    bytes.advance(size_of::<u16>());
    if bytes.len() != captured {
        return Err(DecodeError::Length(length));
    }
    let counted = Counted { packets: 1, bytes: u64::from(skb_bytes), first_ns: boot_ns, last_ns: boot_ns };
    let mut whole = key;
    whole.cookie = cookie;
    whole.inode = inode;
    whole.sent.source_port = source_port;
    whole.translated.source_port = translated_port;
    let mut dropped = of_key(&whole, &counted)?;
    dropped.owner = owner.map(|owner| Owner { shared: owner.shared || key.flags & flag::SHARED != 0, ..owner });
    dropped.captured = Some(Captured {
        bytes,
        length: skb_bytes,
        opened_by: (opened_by.0 != u32::MAX).then_some(opened_by),
        mark,
        arrived_by: (arrived_by != 0).then_some(arrived_by),
        segments: (segments != 0).then_some(segments),
    });
    Ok(First { epoch, key, dropped })
}

/// What is known of packets that were only counted.
pub fn of_key(key: &DropKey, counted: &Counted) -> Result<Dropped, DecodeError> {
    let cause = decode_cause(key.cause).ok_or(DecodeError::Cause(key.cause))?;
    let direction = decode_direction(key.direction).ok_or(DecodeError::Direction(key.direction))?;
    let has = |flag: u16| key.flags & flag != 0;
    let full = has(flag::FULL_SOCKET);
    let sent = endpoints(&key.sent, key);
    let translated = sent.filter(|_| has(flag::TRANSLATED)).and_then(|_| endpoints(&key.translated, key));
    let is_tcp = key.protocol == protocol::TCP;
    Ok(Dropped {
        boot_ns: counted.last_ns,
        first_ns: counted.first_ns,
        packets: counted.packets,
        bytes: counted.bytes,
        endpoints: translated.or(sent),
        direction,
        origin_netns: (key.origin_netns != 0).then_some(key.origin_netns),
        original: sent.filter(|_| translated.is_some()),
        encapsulated: has(flag::ENCAPSULATED),
        coarse: has(flag::COARSE),
        hop_by_hop: has(flag::HOP_BY_HOP),
        protocol: (!has(flag::UNREADABLE)).then_some(key.protocol),
        tcp_flags: (is_tcp && has(flag::TRANSPORT) && key.detail != 0).then_some(key.detail),
        icmp: (is_icmp(key.protocol) && has(flag::TRANSPORT)).then_some((key.detail, key.code)),
        icmp_identifier: (is_icmp(key.protocol) && key.sent.source_port != 0).then_some(key.sent.source_port),
        ethertype: key.ethertype,
        cause,
        hook: hook(cause, direction, Place::new(key)),
        reason: key.reason,
        rule: (key.rule != RuleAnswer::default()).then_some(key.rule),
        verdict_agrees: match (has(flag::CONFIRMED), has(flag::DISPUTED)) {
            (false, false) => None,
            (_, disputed) => Some(!disputed),
        },
        netns: key.netns,
        interface: text(&key.interface),
        socket: has(flag::SOCKET).then_some(Socket {
            cookie: nonzero(key.cookie),
            inode: nonzero(key.inode),
            uid: full.then_some(key.uid),
            cgroup: nonzero(key.cgroup),
            state: key.state,
            locked: has(flag::LOCKED),
            orphan: has(flag::ORPHAN),
            kernel: has(flag::KERNEL),
            datagram: has(flag::DATAGRAM),
            held: has(flag::HELD),
        }),
        owner: decode_source(u32::from(key.owner_source)).map(|source| Owner {
            task: Task { pid: key.owner_pid, start_ns: key.owner_start_ns, ..Task::default() },
            bound_ns: None,
            source,
            shared: has(flag::SHARED),
        }),
        current_pid: key.current_pid,
        captured: None,
    })
}

/// A key, in the order of its fields. `bytes` must be long enough.
pub fn decode_key(bytes: &mut Bytes) -> DropKey {
    let key = DropKey {
        owner_start_ns: bytes.get_u64_ne(),
        cgroup: bytes.get_u64_ne(),
        cookie: bytes.get_u64_ne(),
        inode: bytes.get_u64_ne(),
        sent: decode_tuple(bytes),
        translated: decode_tuple(bytes),
        rule: RuleAnswer {
            netns_cookie: bytes.get_u64_ne(),
            function: bytes.get_u64_ne(),
            table: bytes.get_u64_ne(),
            chain: bytes.get_u64_ne(),
            rule: bytes.get_u64_ne(),
        },
        interface: array(bytes),
        owner_pid: bytes.get_u32_ne(),
        current_pid: bytes.get_u32_ne(),
        netns: bytes.get_u32_ne(),
        origin_netns: bytes.get_u32_ne(),
        reason: bytes.get_u32_ne(),
        uid: bytes.get_u32_ne(),
        ethertype: bytes.get_u16_ne(),
        flags: bytes.get_u16_ne(),
        cause: bytes.get_u8(),
        place: bytes.get_u8(),
        state: bytes.get_u8(),
        direction: bytes.get_u8(),
        protocol: bytes.get_u8(),
        detail: bytes.get_u8(),
        code: bytes.get_u8(),
        owner_source: bytes.get_u8(),
        reserved: [0; 4],
    };
    bytes.advance(key.reserved.len());
    key
}

fn decode_tuple(bytes: &mut Bytes) -> Tuple {
    Tuple {
        source: array(bytes),
        destination: array(bytes),
        source_port: bytes.get_u16_ne(),
        destination_port: bytes.get_u16_ne(),
    }
}

fn array<const N: usize>(bytes: &mut Bytes) -> [u8; N] {
    let mut array = [0; N];
    bytes.copy_to_slice(&mut array);
    array
}

/// A task, in the order of its fields.
pub(super) fn decode_task(bytes: &mut Bytes) -> Task {
    let task = Task {
        start_ns: bytes.get_u64_ne(),
        cgroup: bytes.get_u64_ne(),
        pid: bytes.get_u32_ne(),
        tid: bytes.get_u32_ne(),
        parent_pid: bytes.get_u32_ne(),
        uid: bytes.get_u32_ne(),
        euid: bytes.get_u32_ne(),
        gid: bytes.get_u32_ne(),
        execs: bytes.get_u32_ne(),
        reserved: bytes.get_u32_ne(),
        comm: array(bytes),
    };
    Task { reserved: 0, ..task }
}

fn decode_owner(bytes: &mut Bytes) -> Option<Owner> {
    let task = decode_task(bytes);
    let bound_ns = bytes.get_u64_ne();
    let source = bytes.get_u32_ne();
    let holders = bytes.get_u32_ne();
    bytes.advance(2 * size_of::<u32>());
    let source = decode_source(source)?;
    Some(Owner { task, bound_ns: Some(bound_ns), source, shared: holders > 1 })
}

pub(super) fn decode_source(value: u32) -> Option<OwnerSource> {
    [OwnerSource::Connect, OwnerSource::Create, OwnerSource::Seed].into_iter().find(|source| *source as u32 == value)
}

fn decode_cause(value: u8) -> Option<Cause> {
    [Cause::Netfilter, Cause::Cgroup, Cause::Tc, Cause::Queue, Cause::Nfqueue]
        .into_iter()
        .find(|cause| *cause as u8 == value)
}

fn decode_direction(value: u8) -> Option<Direction> {
    [Direction::Local, Direction::Forward, Direction::Unrouted].into_iter().find(|known| *known as u8 == value)
}

/// Addresses and ports, as far as the packet's headers could be read.
fn endpoints(tuple: &Tuple, key: &DropKey) -> Option<Endpoints> {
    if key.flags & (flag::UNREADABLE | flag::COARSE) != 0 {
        return None;
    }
    let v6 = key.ethertype == ethertype::IPV6 || key.ethertype != ethertype::IPV4 && is_v6(tuple);
    let address = |bytes: [u8; 16]| {
        if v6 { IpAddr::from(bytes) } else { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) }
    };
    let ports = key.flags & flag::TRANSPORT != 0 && !is_icmp(key.protocol);
    Some(Endpoints {
        source: address(tuple.source),
        destination: address(tuple.destination),
        protocol: key.protocol,
        source_port: (ports && tuple.source_port != 0).then_some(tuple.source_port),
        destination_port: ports.then_some(tuple.destination_port),
    })
}

/// Of a tagged frame the ethertype is the tag's: an IPv4 address leaves the rest of its field empty.
fn is_v6(tuple: &Tuple) -> bool {
    tuple.source[4..].iter().chain(&tuple.destination[4..]).any(|byte| *byte != 0)
}

fn is_icmp(number: u8) -> bool {
    number == protocol::ICMP || number == protocol::ICMPV6
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

    const FIXED: usize = size_of::<DropRecord>() - PACKET_BYTES;
    const KEY: usize = offset_of!(DropRecord, key);

    /// Bytes of a record in which only the named fields are set, and behind it a packet.
    fn record(fields: &[(usize, &[u8])], packet: &[u8]) -> Bytes {
        let mut bytes = vec![0; FIXED];
        let captured = (packet.len() as u16).to_ne_bytes();
        for (offset, value) in fields.iter().copied().chain([(offset_of!(DropRecord, captured), &captured[..])]) {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        }
        bytes.extend(packet);
        Bytes::from(bytes)
    }

    #[test]
    fn every_field_is_read_from_its_own_place() {
        let owner = offset_of!(DropRecord, owner);
        let sent = KEY + offset_of!(DropKey, sent);
        let translated = KEY + offset_of!(DropKey, translated);
        let flags = flag::SOCKET | flag::FULL_SOCKET | flag::LOCKED | flag::TRANSPORT | flag::TRANSLATED;
        let first = decode(record(
            &[
                (offset_of!(DropRecord, time_ns), &7u64.to_ne_bytes()),
                (offset_of!(DropRecord, cookie), &8u64.to_ne_bytes()),
                (offset_of!(DropRecord, inode), &9u64.to_ne_bytes()),
                (owner + offset_of!(observer_ebpf::abi::Owner, task.start_ns), &11u64.to_ne_bytes()),
                (owner + offset_of!(observer_ebpf::abi::Owner, task.pid), &12u32.to_ne_bytes()),
                (owner + offset_of!(observer_ebpf::abi::Owner, task.parent_pid), &13u32.to_ne_bytes()),
                (owner + offset_of!(observer_ebpf::abi::Owner, task.euid), &14u32.to_ne_bytes()),
                (owner + offset_of!(observer_ebpf::abi::Owner, task.comm), b"curl"),
                (owner + offset_of!(observer_ebpf::abi::Owner, source), &1u32.to_ne_bytes()),
                (owner + offset_of!(observer_ebpf::abi::Owner, holders), &2u32.to_ne_bytes()),
                (offset_of!(DropRecord, epoch), &21u32.to_ne_bytes()),
                (offset_of!(DropRecord, length), &17u32.to_ne_bytes()),
                (offset_of!(DropRecord, source_port), &5000u16.to_ne_bytes()),
                (offset_of!(DropRecord, translated_port), &0xa03eu16.to_ne_bytes()),
                (KEY + offset_of!(DropKey, cgroup), &10u64.to_ne_bytes()),
                (sent + offset_of!(Tuple, source), &[172, 17, 0, 2]),
                (sent + offset_of!(Tuple, destination), &[203, 0, 113, 10]),
                (sent + offset_of!(Tuple, destination_port), &443u16.to_ne_bytes()),
                (translated + offset_of!(Tuple, source), &[10, 0, 0, 1]),
                (translated + offset_of!(Tuple, destination), &[203, 0, 113, 10]),
                (translated + offset_of!(Tuple, destination_port), &443u16.to_ne_bytes()),
                (KEY + offset_of!(DropKey, interface), b"eth0"),
                (KEY + offset_of!(DropKey, current_pid), &19u32.to_ne_bytes()),
                (KEY + offset_of!(DropKey, netns), &15u32.to_ne_bytes()),
                (KEY + offset_of!(DropKey, origin_netns), &20u32.to_ne_bytes()),
                (KEY + offset_of!(DropKey, reason), &16u32.to_ne_bytes()),
                (KEY + offset_of!(DropKey, uid), &18u32.to_ne_bytes()),
                (KEY + offset_of!(DropKey, ethertype), &0x0800u16.to_ne_bytes()),
                (KEY + offset_of!(DropKey, flags), &flags.to_ne_bytes()),
                (KEY + offset_of!(DropKey, cause), &[1]),
                (KEY + offset_of!(DropKey, place), &[place::DEVICE | place::DEVICE_IS_ROUTES]),
                (KEY + offset_of!(DropKey, state), &[3]),
                (KEY + offset_of!(DropKey, direction), &[2]),
                (KEY + offset_of!(DropKey, protocol), &[6]),
                (KEY + offset_of!(DropKey, detail), &[2]),
            ],
            &[1, 2, 3],
        ))
        .unwrap();
        let dropped = first.dropped;
        assert_eq!((first.epoch, dropped.packets, dropped.bytes, dropped.boot_ns), (21, 1, 17, 7));
        assert_eq!((dropped.direction, dropped.origin_netns), (Direction::Forward, Some(20)));
        let original = dropped.original.unwrap();
        assert_eq!((original.source.to_string().as_str(), original.source_port), ("172.17.0.2", Some(5000)));
        let seen = dropped.endpoints.unwrap();
        assert_eq!((seen.source.to_string().as_str(), seen.source_port), ("10.0.0.1", Some(0xa03e)));
        assert_eq!((seen.destination_port, dropped.tcp_flags, dropped.icmp), (Some(443), Some(2), None));
        let socket = dropped.socket.unwrap();
        let owner = dropped.owner.unwrap();
        assert_eq!((socket.cookie, socket.inode, socket.cgroup), (Some(8), Some(9), Some(10)));
        assert_eq!((owner.task.start_ns, owner.task.pid, owner.task.parent_pid, owner.task.euid), (11, 12, 13, 14));
        assert_eq!(
            (text(&owner.task.comm).as_deref(), owner.source, owner.shared),
            (Some("curl"), OwnerSource::Connect, true)
        );
        assert_eq!((dropped.netns, dropped.reason, socket.uid, dropped.current_pid), (15, 16, Some(18), 19));
        assert_eq!((dropped.cause, dropped.hook, socket.state), (Cause::Netfilter, Some(Hook::Postrouting), 3));
        assert_eq!((socket.locked, socket.orphan, dropped.interface.as_deref()), (true, false, Some("eth0")));
        assert_eq!(&dropped.captured.as_ref().unwrap().bytes[..], [1, 2, 3]);
        // Of a key alone the source port is not known, since it stands for many.
        let counted = Counted { packets: 5, bytes: 50, first_ns: 1, last_ns: 9 };
        let more = of_key(&first.key, &counted).unwrap();
        assert_eq!((more.packets, more.bytes, more.first_ns, more.boot_ns), (5, 50, 1, 9));
        assert_eq!(more.original.unwrap().source_port, None);
        assert_eq!(more.socket.unwrap().cookie, None);
    }

    #[test]
    fn a_key_survives_its_bytes() {
        let bytes: Vec<u8> = (0..size_of::<DropKey>() - 4).map(|byte| byte as u8).chain([0; 4]).collect();
        let key = decode_key(&mut Bytes::from(bytes.clone()));
        assert_eq!(
            (key.owner_start_ns, key.owner_source),
            (0x0706_0504_0302_0100, bytes[offset_of!(DropKey, owner_source)])
        );
        assert_eq!(key.translated.destination_port, u16::from_ne_bytes([bytes[102], bytes[103]]));
    }

    #[test]
    fn a_request_socket_has_no_user() {
        let first = decode(record(
            &[
                (KEY + offset_of!(DropKey, cause), &[1]),
                (KEY + offset_of!(DropKey, direction), &[1]),
                (KEY + offset_of!(DropKey, flags), &flag::SOCKET.to_ne_bytes()),
            ],
            &[],
        ))
        .unwrap();
        assert_eq!(first.dropped.socket.unwrap().uid, None);
        assert_eq!(first.dropped.owner, None);
    }

    #[test]
    fn wrong_lengths_and_unknown_causes_are_errors() {
        let failure = |fields: &[(usize, &[u8])]| decode(record(fields, &[])).unwrap_err();
        assert_eq!(decode(Bytes::from_static(&[0; 9])).unwrap_err(), DecodeError::Length(9));
        assert_eq!(failure(&[(KEY + offset_of!(DropKey, direction), &[1])]), DecodeError::Cause(0));
        assert_eq!(failure(&[(KEY + offset_of!(DropKey, cause), &[1])]), DecodeError::Direction(0));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..size_of::<DropRecord>() + 9)) {
            let _ = decode(Bytes::from(bytes));
        }
    }
}

//! A drop record and a key, from bytes to what is known of the packet.

use std::{mem::offset_of, net::IpAddr};

use bytes::{Buf, Bytes};
use observer_ebpf::{
    abi::{
        self, Account, Cause, Counted, Direction, DropKey, DropRecord, OwnerSource, RuleAnswer, Task, Tuple, answer,
        flag,
    },
    logic::{
        direction::{Place, hook},
        packet::{ethertype, protocol},
    },
};
use zerocopy::{FromBytes, FromZeros, IntoBytes, try_transmute};

use crate::model::{Captured, Dropped, Endpoints, Hook, Owner, PacketKind, Share, Socket};

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

/// Generation and account of a record, which is not read further; `None` for one that this version cannot read.
pub fn peek(bytes: &[u8]) -> Option<(u32, Share)> {
    let (epoch, _) = u32::read_from_prefix(bytes.get(offset_of!(DropRecord, epoch)..)?).ok()?;
    let (account, _) = u32::read_from_prefix(bytes.get(offset_of!(DropRecord, account)..)?).ok()?;
    let (kind, _) = u16::read_from_prefix(bytes.get(offset_of!(DropRecord, account_kind)..)?).ok()?;
    let share = match try_transmute!(kind).ok()? {
        Account::User if account == 0 => Share::Host,
        Account::User => Share::User(account),
        Account::Netns => Share::Namespace(account),
        Account::Source => Share::Forwarded(account),
    };
    Some((epoch, share))
}

/// Decodes one record.
pub fn decode(mut bytes: Bytes) -> Result<First, DecodeError> {
    const FIXED: usize = offset_of!(DropRecord, packet);
    let length = bytes.len();
    if !(FIXED..=size_of::<DropRecord>()).contains(&length) {
        return Err(DecodeError::Length(length));
    }
    // A record ends where its packet does, which stays in the buffer that it came in.
    let mut record = DropRecord::new_zeroed();
    record.as_mut_bytes()[..FIXED].copy_from_slice(&bytes.split_to(FIXED));
    if bytes.len() != usize::from(record.captured) {
        return Err(DecodeError::Length(length));
    }
    let DropRecord { time_ns, key, .. } = record;
    let whole = DropKey {
        cookie: record.cookie,
        inode: record.inode,
        sent: Tuple { source_port: record.source_port, ..key.sent },
        translated: Tuple { source_port: record.translated_port, ..key.translated },
        ..key
    };
    let counted = Counted { packets: 1, bytes: record.length.into(), first_ns: time_ns, last_ns: time_ns };
    let mut dropped = of_key(&whole, &counted)?;
    dropped.owner = decode_owner(&record.owner, key.flags);
    dropped.captured = Some(Captured {
        bytes,
        length: record.length,
        opened_by: (record.file_uid != u32::MAX).then_some((record.file_uid, record.file_gid)),
        mark: record.mark,
        arrived_by: (record.arrived_by != 0).then_some(record.arrived_by),
        segments: (record.segments != 0).then_some(record.segments),
    });
    Ok(First { epoch: record.epoch, key, dropped })
}

/// What is known of packets that were only counted.
pub fn of_key(key: &DropKey, counted: &Counted) -> Result<Dropped, DecodeError> {
    let cause: Cause = try_transmute!(key.cause).map_err(|_| DecodeError::Cause(key.cause))?;
    let direction: Direction = try_transmute!(key.direction).map_err(|_| DecodeError::Direction(key.direction))?;
    let has = |flag: u16| key.flags & flag != 0;
    let full = has(flag::FULL_SOCKET);
    let sent = endpoints(&key.sent, key);
    let translated = sent.filter(|_| has(flag::TRANSLATED)).and_then(|_| endpoints(&key.translated, key));
    let is_tcp = key.protocol == protocol::TCP;
    let is_error = key.answer & answer::ERROR != 0;
    let waited_for = (cause == Cause::Neighbour).then(|| {
        let destination = sent.map_or(IpAddr::from([0; 4]), |sent| sent.destination);
        gateway(key, destination.is_ipv6()).unwrap_or(destination)
    });
    Ok(Dropped {
        boot_ns: counted.last_ns,
        first_ns: counted.first_ns,
        packets: counted.packets,
        bytes: counted.bytes,
        endpoints: translated.or(sent),
        direction,
        packet: packet_kind(key, direction),
        waited_for,
        answers_another: key.answer & answer::ELSEWHERE != 0,
        origin_netns: (key.origin_netns != 0).then_some(key.origin_netns),
        original: sent.filter(|_| translated.is_some()),
        encapsulated: has(flag::ENCAPSULATED),
        coarse: has(flag::COARSE),
        hop_by_hop: has(flag::HOP_BY_HOP),
        protocol: (!has(flag::UNREADABLE)).then_some(key.protocol),
        tcp_flags: (is_tcp && has(flag::TRANSPORT) && key.detail != 0 && !is_error).then_some(key.detail),
        icmp: ((is_icmp(key.protocol) || is_error) && has(flag::TRANSPORT)).then_some((key.detail, key.code)),
        icmp_identifier: (is_icmp(key.protocol) && key.sent.source_port != 0).then_some(key.sent.source_port),
        ethertype: key.ethertype,
        cause: cause.into(),
        hook: hook(cause, direction, Place::new(key)).map(Hook::from),
        reason: key.reason,
        rule: (key.rule != RuleAnswer::default() && waited_for.is_none()).then_some(key.rule),
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
        owner: decode_source(key.owner_source).map(|source| Owner {
            task: Task { pid: key.owner_pid, start_ns: key.owner_start_ns, ..Task::default() },
            bound_ns: None,
            source,
            shared: has(flag::SHARED),
        }),
        current_pid: key.current_pid,
        captured: None,
    })
}

/// Takes what `bytes` begin with; nothing where they are too few.
pub(super) fn take<T: FromBytes>(bytes: &mut Bytes) -> Option<T> {
    let (taken, _) = T::read_from_prefix(bytes).ok()?;
    bytes.advance(size_of::<T>());
    Some(taken)
}

fn decode_owner(owner: &abi::Owner, flags: u16) -> Option<Owner> {
    let source = u8::try_from(owner.source).ok().and_then(decode_source)?;
    let shared = owner.holders > 1 || flags & flag::SHARED != 0;
    Some(Owner { task: owner.task, bound_ns: Some(owner.bound_ns), source, shared })
}

pub(super) fn decode_source(value: u8) -> Option<OwnerSource> {
    try_transmute!(value).ok()
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

/// The gateway whom a packet has waited for; nothing where that is its destination.
fn gateway(key: &DropKey, v6: bool) -> Option<IpAddr> {
    let bytes: [u8; 16] = zerocopy::transmute!([key.rule.table, key.rule.chain]);
    let [a, b, c, d, ..] = bytes;
    let gateway = if v6 { IpAddr::from(bytes) } else { IpAddr::from([a, b, c, d]) };
    Some(gateway).filter(|gateway| !gateway.is_unspecified())
}

/// Which packet of a conversation it is, where it is not an outbound one of its own.
fn packet_kind(key: &DropKey, direction: Direction) -> Option<PacketKind> {
    match (key.ethertype, direction) {
        (ethertype::ARP, _) => Some(PacketKind::Arp),
        _ if key.protocol == protocol::ICMPV6 && matches!(key.detail, 135 | 136) => Some(PacketKind::Solicitation),
        _ if is_too_big(key) => Some(PacketKind::TooBig),
        (_, Direction::Answer) => Some(PacketKind::Answer),
        _ => None,
    }
}

/// It says which length fits the way.
fn is_too_big(key: &DropKey) -> bool {
    let v6 = key.ethertype == ethertype::IPV6;
    let is_error = key.answer & answer::ERROR != 0 || is_icmp(key.protocol) && key.flags & flag::TRANSPORT != 0;
    is_error && matches!((v6, key.detail, key.code), (false, 3, 4) | (true, 2, _))
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
    use observer_ebpf::abi::{PACKET_BYTES, place};
    use proptest::prelude::*;

    /// A record's bytes, which end with its packet.
    fn bytes(record: DropRecord, packet: &[u8]) -> Bytes {
        let mut record = DropRecord { captured: packet.len() as u16, ..record };
        record.packet[..packet.len()].copy_from_slice(packet);
        Bytes::copy_from_slice(&record.as_bytes()[..offset_of!(DropRecord, packet) + packet.len()])
    }

    fn record(key: DropKey) -> DropRecord {
        DropRecord { key, ..DropRecord::new_zeroed() }
    }

    fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
        let mut padded = [0; N];
        padded[..bytes.len()].copy_from_slice(bytes);
        padded
    }

    fn tuple(source: &[u8], destination: &[u8]) -> Tuple {
        Tuple { source: padded(source), destination: padded(destination), source_port: 0, destination_port: 443 }
    }

    #[test]
    fn every_field_is_told_as_what_it_is() {
        let key = DropKey {
            cgroup: 10,
            sent: tuple(&[172, 17, 0, 2], &[203, 0, 113, 10]),
            translated: tuple(&[10, 0, 0, 1], &[203, 0, 113, 10]),
            interface: padded(b"eth0"),
            current_pid: 19,
            netns: 15,
            origin_netns: 20,
            reason: 16,
            uid: 18,
            ethertype: ethertype::IPV4,
            flags: flag::SOCKET | flag::FULL_SOCKET | flag::LOCKED | flag::TRANSPORT | flag::TRANSLATED,
            cause: 1,
            place: place::DEVICE | place::DEVICE_IS_ROUTES,
            state: 3,
            direction: 2,
            protocol: protocol::TCP,
            detail: 2,
            ..DropKey::default()
        };
        let task = Task { start_ns: 11, pid: 12, parent_pid: 13, euid: 14, comm: padded(b"curl"), ..Task::default() };
        let record = DropRecord {
            time_ns: 7,
            cookie: 8,
            inode: 9,
            owner: abi::Owner { task, source: 1, holders: 2, ..abi::Owner::default() },
            epoch: 21,
            account: 1000,
            account_kind: Account::User as u16,
            length: 17,
            source_port: 5000,
            translated_port: 0xa03e,
            ..record(key)
        };
        assert_eq!(peek(&bytes(record, &[1, 2, 3])), Some((21, Share::User(1000))));
        let first = decode(bytes(record, &[1, 2, 3])).unwrap();
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
        assert_eq!((dropped.cause, dropped.hook, socket.state), (Cause::Netfilter.into(), Some(Hook::Postrouting), 3));
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
    fn a_request_socket_has_no_user() {
        let key = DropKey { cause: 1, direction: 1, flags: flag::SOCKET, ..DropKey::default() };
        let first = decode(bytes(record(key), &[])).unwrap();
        assert_eq!(first.dropped.socket.unwrap().uid, None);
        assert_eq!(first.dropped.owner, None);
    }

    #[test]
    fn an_owner_is_known_in_a_way_that_there_is() {
        let owned = |source| {
            let owner = abi::Owner { source, holders: 1, ..abi::Owner::default() };
            let key = DropKey { cause: 1, direction: 1, ..DropKey::default() };
            let owner = decode(bytes(DropRecord { owner, ..record(key) }, &[])).unwrap().dropped.owner;
            owner.map(|owner| (owner.source, owner.shared))
        };
        assert_eq!(owned(3), Some((OwnerSource::Seed, false)));
        assert_eq!([0, 4, 256 + 1].map(owned), [None; 3]);
    }

    #[test]
    fn wrong_lengths_and_unknown_causes_are_errors() {
        let failure = |bytes: Bytes| decode(bytes).unwrap_err();
        assert_eq!(failure(Bytes::from_static(&[0; 9])), DecodeError::Length(9));
        let whole = bytes(DropRecord::new_zeroed(), &[1; PACKET_BYTES]);
        assert_eq!(failure(whole.slice(1..)), DecodeError::Length(whole.len() - 1));
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(failure(Bytes::from(longer)), DecodeError::Length(whole.len() + 1));
        assert_eq!(failure(whole), DecodeError::Cause(0));
        let of_key = |cause, direction| bytes(record(DropKey { cause, direction, ..DropKey::default() }), &[]);
        assert_eq!(failure(of_key(0, 1)), DecodeError::Cause(0));
        assert_eq!(failure(of_key(9, 1)), DecodeError::Cause(9));
        assert_eq!(failure(of_key(1, 0)), DecodeError::Direction(0));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..size_of::<DropRecord>() + 9)) {
            let _ = decode(Bytes::from(bytes));
        }
    }
}

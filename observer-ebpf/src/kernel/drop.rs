//! A dropped packet while it is being looked at: its key and its record. So that the verifier need not follow every way to the
//! end, the larger steps are functions of their own.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel as probe_read_kernel};
use observer_ebpf::{
    abi::{Cause, Direction, DropKey, PACKET_BYTES, Tuple, answer, flag, place},
    logic::packet::{self, Addresses, Bytes, Transport, encapsulated, protocol},
};

use super::{
    connection,
    layout::field,
    owner,
    read::{Probe, Reader},
    scratch::{self, Packet, TUPLE_BYTES, get, put},
    skb::ANSWERS_ANOTHER,
    sock, task,
};

const _: () = assert!(core::mem::offset_of!(DropKey, sent.source).is_multiple_of(4));

/// The network namespace whose rules decided: the device's, or what is known already of a local packet without one.
///
/// A function of its own to the verifier too, like [`drop_origin`]: what it reads takes no room on the caller's stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_netns(direction: u32) -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    let net: u64 = Probe::field(unsafe { get!(scratch.pointer) }, field!(dev_net)).unwrap_or(0);
    let inum: u32 = Probe::field(net, field!(net_inum)).unwrap_or(0);
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        if inum != 0 || direction != Direction::Local as u32 {
            put!(scratch.record.key.netns, inum);
        }
        put!(scratch.net, net);
    }
    0
}

/// See [`drop_netns`].
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn decided_by(scratch: *mut Packet, device: u64, direction: u32) {
    // By way of memory: a pointer that was loaded directly is none that a function of its own takes.
    // SAFETY: the caller's promise.
    unsafe { put!(scratch.pointer, device) };
    drop_netns(direction);
}

/// The other network namespace that the packet came from, or [`ANSWERS_ANOTHER`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_origin(net: u64) -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        if net == ANSWERS_ANOTHER {
            put!(scratch.record.key.answer, answer::ELSEWHERE);
            return 0;
        }
        put!(scratch.origin, net);
        put!(scratch.record.key.origin_netns, Probe::field(net, field!(net_inum)).unwrap_or(0));
    }
    0
}

/// See [`drop_origin`].
#[inline(always)]
pub fn came_from(net: u64) {
    drop_origin(net);
}

/// Where an ARP packet has the address of who sends it, and the one that is asked for.
const ARP_SENDER: usize = 14;
/// See [`ARP_SENDER`].
const ARP_TARGET: usize = 24;

/// Packet bytes in the kernel's memory.
struct Linear {
    start: u64,
    bytes: u64,
}

impl Bytes for Linear {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at as u64 + N as u64 > self.bytes {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: the destination is as large as is read; the helper checks the source.
        unsafe { probe_read_kernel(bytes.as_mut_ptr().cast(), N as u32, (self.start + at as u64) as *const _) };
        Some(bytes)
    }
}

/// Reads the headers into the key: addresses, protocol, ports or type.
///
/// A function of its own to the verifier too, which takes plain numbers only.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_headers(start: u64, bytes: u64, ethertype: u32) -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        let Some(packet) = packet::parse(&Linear { start, bytes }, ethertype as u16) else {
            put!(scratch.record.key.flags, get!(scratch.record.key.flags) | flag::UNREADABLE);
            // What is about several neighbours is several keys.
            let is_reply = get!(scratch.record.key.direction) == Direction::Answer as u8;
            let about = if is_reply { ARP_SENDER } else { ARP_TARGET };
            if ethertype == u32::from(packet::ethertype::ARP)
                && let Some(asked) = (Linear { start, bytes }).read::<4>(about)
            {
                address(&raw mut (*scratch).record.key.sent.destination, 0, asked);
            }
            return 0;
        };
        match packet.addresses {
            Addresses::V4 { source, destination } => {
                // What lies behind them is zero already.
                address(&raw mut (*scratch).record.key.sent.source, 0, source);
                address(&raw mut (*scratch).record.key.sent.destination, 0, destination);
            }
            Addresses::V6 { source, destination } => {
                for word in 0..4 {
                    let part = |bytes: &[u8; 16]| {
                        [bytes[word * 4], bytes[word * 4 + 1], bytes[word * 4 + 2], bytes[word * 4 + 3]]
                    };
                    address(&raw mut (*scratch).record.key.sent.source, word, part(&source));
                    address(&raw mut (*scratch).record.key.sent.destination, word, part(&destination));
                }
            }
        }
        put!(scratch.record.key.protocol, packet.protocol);
        let mut flags = 0;
        if packet.hop_by_hop {
            flags |= flag::HOP_BY_HOP;
        }
        match packet.transport {
            Transport::Ports { source, destination, tcp_flags } => {
                flags |= flag::TRANSPORT;
                put!(scratch.record.source_port, source);
                put!(scratch.record.key.sent.destination_port, destination);
                put!(scratch.record.key.detail, tcp_flags.unwrap_or(0));
            }
            Transport::Icmp { kind, code, identifier } => {
                flags |= flag::TRANSPORT;
                put!(scratch.record.source_port, identifier.unwrap_or(0));
                put!(scratch.record.key.detail, kind);
                put!(scratch.record.key.code, code);
            }
            Transport::Opaque => {}
        }
        put!(scratch.record.key.flags, get!(scratch.record.key.flags) | flags);
    }
    0
}

/// Writes one word of an address, which stands at a whole word of the key.
///
/// # Safety
/// The address must be writable.
#[inline(always)]
unsafe fn address(into: *mut [u8; 16], word: usize, bytes: [u8; 4]) {
    // SAFETY: the caller's promise.
    unsafe { into.cast::<u32>().add(word).write_volatile(u32::from_ne_bytes(bytes)) };
}

/// Writes an answer's addresses the other way round, as those of the packet that it answers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_answer() -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    if unsafe { get!(scratch.record.key.direction) } != Direction::Answer as u8 {
        return 0;
    }
    // SAFETY: the scratch space is this CPU's; an address is four words.
    unsafe {
        let source = (&raw mut (*scratch).record.key.sent.source).cast::<u32>();
        let destination = (&raw mut (*scratch).record.key.sent.destination).cast::<u32>();
        for index in 0..4 {
            let was = source.add(index).read_volatile();
            source.add(index).write_volatile(destination.add(index).read_volatile());
            destination.add(index).write_volatile(was);
        }
        // What an ICMP message has for a port is no address of its.
        if get!(scratch.record.key.sent.destination_port) != 0 {
            let port: u16 = get!(scratch.record.source_port);
            put!(scratch.record.source_port, get!(scratch.record.key.sent.destination_port));
            put!(scratch.record.key.sent.destination_port, port);
        }
    }
    0
}

/// Addresses before any translation, by the connection's original tuple; what `drop_headers` read then is the translated
/// one. Packets that go the other way only if they are reported as answers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_original(nfct: u64) -> u64 {
    let offset = field!(conn_original);
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    let is_answer = unsafe { get!(scratch.record.key.direction) } == Direction::Answer as u8;
    let is_error = is_answer && connection::is_error(nfct);
    if connection::of(nfct) == 0 || !is_answer && connection::is_answer(nfct) || offset == observer_ebpf::abi::ABSENT {
        return 0;
    }
    // SAFETY: the scratch space is this CPU's; the helper checks its source.
    unsafe {
        let from = connection::of(nfct) + u64::from(offset);
        let status = probe_read_kernel((&raw mut (*scratch).tuple).cast(), TUPLE_BYTES as u32, from as *const _);
        if status != 0 || !is_error && byte(scratch, 38) != get!(scratch.record.key.protocol) || word(scratch, 0) == 0 {
            return 0;
        }
        // What an error is about is all of the connection.
        if is_error {
            put!(scratch.record.key.protocol, byte(scratch, 38));
            for index in 0..4 {
                (&raw mut (*scratch).record.key.sent.source)
                    .cast::<u32>()
                    .add(index)
                    .write_volatile(word(scratch, index));
                (&raw mut (*scratch).record.key.sent.destination)
                    .cast::<u32>()
                    .add(index)
                    .write_volatile(word(scratch, 5 + index));
            }
            put!(scratch.record.source_port, port(scratch, 16));
            put!(scratch.record.key.sent.destination_port, port(scratch, 36));
            return 0;
        }
        let sent = (&raw mut (*scratch).record.key.sent).cast::<u32>();
        let translated = (&raw mut (*scratch).record.key.translated).cast::<u32>();
        for index in 0..TUPLE_WORDS {
            translated.add(index).write_volatile(sent.add(index).read_volatile());
        }
        for index in 0..4 {
            sent.add(index).write_volatile(word(scratch, index));
            sent.add(4 + index).write_volatile(word(scratch, 5 + index));
        }
        let seen_port: u16 = get!(scratch.record.source_port);
        let mut sent_port = seen_port;
        // The destination of an ICMP message is its type, which is not translated.
        let number: u8 = get!(scratch.record.key.protocol);
        if is_answer && (number == protocol::ICMP || number == protocol::ICMPV6) {
            sent_port = port(scratch, 16);
        }
        if get!(scratch.record.key.sent.destination_port) != 0 {
            sent_port = port(scratch, 16);
            put!(scratch.record.key.sent.destination_port, port(scratch, 36));
        }
        let mut difference = u32::from(sent_port ^ seen_port);
        for index in 0..TUPLE_WORDS {
            difference |= sent.add(index).read_volatile() ^ translated.add(index).read_volatile();
        }
        if difference == 0 {
            for index in 0..TUPLE_WORDS {
                translated.add(index).write_volatile(0);
            }
            return 0;
        }
        put!(scratch.record.translated_port, seen_port);
        put!(scratch.record.source_port, sent_port);
        put!(scratch.record.key.flags, get!(scratch.record.key.flags) | flag::TRANSLATED);
    }
    0
}

/// Words of a [`Tuple`].
const TUPLE_WORDS: usize = size_of::<Tuple>() / size_of::<u32>();

/// Parts of the original tuple in the scratch space.
#[inline(always)]
unsafe fn byte(scratch: *mut Packet, at: usize) -> u8 {
    // SAFETY: the scratch space is this CPU's, and `at` is a constant inside the tuple; likewise below.
    unsafe { (&raw const (*scratch).tuple).cast::<u8>().add(at).read_volatile() }
}

#[inline(always)]
unsafe fn word(scratch: *mut Packet, index: usize) -> u32 {
    // SAFETY: see `byte`.
    unsafe { (&raw const (*scratch).tuple).cast::<u32>().add(index).read_volatile() }
}

#[inline(always)]
unsafe fn port(scratch: *mut Packet, at: usize) -> u16 {
    // SAFETY: see `byte`.
    unsafe { u16::from_be((&raw const (*scratch).tuple).cast::<u8>().add(at).cast::<u16>().read_volatile()) }
}

/// What the packet is, from its headers and its connection.
#[inline(always)]
pub fn headers(start: u64, bytes: u64, ethertype: u16, nfct: u64) {
    drop_headers(start, bytes, u32::from(ethertype));
    drop_answer();
    if nfct != 0 {
        drop_original(nfct);
        // What a translation made of the port is not known: it tells nothing of a tunnel.
        if connection::is_answer(nfct) || field!(conn_original) == observer_ebpf::abi::ABSENT {
            if let Some(scratch) = scratch::packet() {
                // SAFETY: the scratch space is this CPU's.
                unsafe { put!(scratch.port, 0) };
            }
        }
    }
}

/// Copies the packet into the record; returns the bytes copied.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn capture(scratch: *mut Packet, start: u64, bytes: u64) -> u16 {
    // SAFETY: the caller's promise; the verifier knows the bound, and the helper checks the source. The length goes through
    // memory, so that it is the very register that was compared which the helper gets: Linux 6.1 forgets what it knows of a
    // number that is kept on the stack.
    unsafe {
        put!(scratch.pointer, if bytes > PACKET_BYTES as u64 { PACKET_BYTES as u64 } else { bytes });
        let bytes: u64 = get!(scratch.pointer);
        if bytes == 0 || bytes > PACKET_BYTES as u64 {
            return 0;
        }
        let into = (&raw mut (*scratch).record.packet).cast();
        if probe_read_kernel(into, bytes as u32, start as *const _) == 0 { bytes as u16 } else { 0 }
    }
}

/// Name of a `struct net_device`, into the key.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn interface(scratch: *mut Packet, device: u64) {
    let name = device + u64::from(field!(dev_name));
    // SAFETY: the caller's promise; the helper checks its source, and writes zeros for one that it cannot read.
    unsafe {
        let into = (&raw mut (*scratch).record.key.interface).cast();
        probe_read_kernel(into, INTERFACE_BYTES, name as *const _);
    }
}

/// Length of the kernel's interface names (`IFNAMSIZ`).
const INTERFACE_BYTES: u32 = 16;

/// The FIN flag of TCP.
const FIN: u8 = 1;

/// The owner, and what the key must tell apart: a function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_owner() -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's; the helper only returns a number.
    unsafe {
        let cookie: u64 = get!(scratch.record.cookie);
        let mut flags: u16 = get!(scratch.record.key.flags);
        // `close` shuts both ways and sends the FIN before the socket is reported dead.
        let is_fin = get!(scratch.record.key.protocol) == protocol::TCP && get!(scratch.record.key.detail) & FIN != 0;
        if is_fin && get!(scratch.shut) != 0 {
            flags |= flag::ORPHAN;
        }
        let mut certain = false;
        let mut owner_pid = 0;
        if let Some(owner) = owner::get(cookie) {
            owner_pid = owner.task.pid;
            put!(scratch.record.key.owner_pid, owner_pid);
            put!(scratch.record.key.owner_start_ns, owner.task.start_ns);
            put!(scratch.record.key.owner_source, owner.source as u8);
            certain = owner.holders <= 1 && (&raw const owner.foreign).read_volatile() == 0;
            if owner.holders > 1 {
                flags |= flag::SHARED;
            }
        }
        // In a call on this very socket, somebody else may be the sender: a look at what that process has open will tell.
        let cause: u8 = get!(scratch.record.key.cause);
        let queued = get!(scratch.record.key.place) & place::AT_LINK_HEADER != 0 && cause != Cause::Cgroup as u8;
        let in_call = flags & (flag::LOCKED | flag::DATAGRAM) != 0 && flags & flag::KERNEL == 0;
        let local = get!(scratch.record.key.direction) == Direction::Local as u8;
        let stopped = cause == Cause::Netfilter as u8 || cause == Cause::Cgroup as u8;
        let current_pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let calling = in_call && local && stopped && !queued && current_pid != 0;
        if calling && current_pid != owner_pid {
            certain = false;
            if task::holds(get!(scratch.socket)) {
                flags |= flag::HELD;
            }
            owner::mark_foreign(cookie);
        }
        if !certain {
            if calling {
                put!(scratch.record.key.current_pid, current_pid);
            }
            put!(scratch.record.key.cookie, cookie);
            put!(scratch.record.key.inode, sock::inode(get!(scratch.socket)));
        }
        // Whose data a tunnel's packet carries is reported by its socket, which sends another protocol or from another port.
        if encapsulated(
            get!(scratch.record.key.protocol),
            get!(scratch.record.source_port),
            get!(scratch.protocol) as u8,
            get!(scratch.port),
        ) {
            flags |= flag::ENCAPSULATED;
        }
        // By its port alone the sender of a forwarded packet is found, and of an answer without a socket.
        let is_answer = get!(scratch.record.key.direction) == Direction::Answer as u8;
        if !local && !(is_answer && flags & flag::SOCKET != 0) {
            put!(scratch.record.key.sent.source_port, get!(scratch.record.source_port));
            put!(scratch.record.key.translated.source_port, get!(scratch.record.translated_port));
        }
        put!(scratch.record.key.flags, flags);
    }
    0
}

/// Everything that follows from what was read.
#[inline(always)]
pub fn finish() {
    drop_owner();
}

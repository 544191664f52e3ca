//! Memory of this CPU in which a packet, or a process record, is put together: too much for a stack.
//!
//! It is in maps: what the verifier knows of it is then the same whatever way led there, so that it need not follow every way to
//! the end.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use observer_ebpf::abi::{ARGS_BYTES, DropKey, DropRecord, NAME_BYTES, PATH_BYTES, ProcessRecord};

/// Bytes of a `struct nf_conntrack_tuple`.
pub const TUPLE_BYTES: usize = 40;

/// Packets of this CPU. While one is looked at, an interrupt may bring another: a timer's retransmit, or what is forwarded.
#[repr(C)]
struct Rooms {
    /// How many are looked at.
    depth: u32,
    reserved: u32,
    /// Address of the inner packet, where the outer one's program itself was run for it.
    inner: u64,
    rooms: [Packet; DEEPEST as usize],
}

/// Packets that are looked at on a CPU at once, at most.
const DEEPEST: u32 = 2;

/// Room for one packet.
#[repr(C)]
pub struct Packet {
    pub record: DropRecord,
    /// The connection's original tuple, as the kernel keeps it.
    pub tuple: [u8; TUPLE_BYTES],
    /// Address of the tracepoint's arguments: on the stack, below every frame that led to the drop.
    pub arguments: u64,
    /// `struct net` whose rules decided; 0 when unknown.
    pub net: u64,
    /// `struct net` that it came from, where that is another; else 0.
    pub origin: u64,
    /// On whose account it is counted, once that was looked up: see [`super::share`].
    pub account: u64,
    /// The `struct sk_buff`.
    pub skb: u64,
    /// Where the packet begins, and how many bytes of it are there in one piece.
    pub start: u64,
    pub bytes: u64,
    /// The `struct sock`, where there is one.
    pub sk: u64,
    /// Rule that gave the verdict to drop, as [`RuleProof::given`](observer_ebpf::abi::RuleProof::given) has it.
    pub given: u64,
    /// A pointer on its way to becoming a plain number.
    pub pointer: u64,
    /// `struct socket`, where there is one.
    pub socket: u64,
    /// `sk->sk_num` and `sk->sk_protocol` of a full socket.
    pub port: u16,
    pub protocol: u16,
    /// The socket is shut both ways.
    pub shut: u32,
}

#[btf_map]
static ROOMS: PerCpuArray<Rooms, 1> = PerCpuArray::new();

/// Writes one field of the scratch space: volatile, so that it is there and nowhere else.
macro_rules! put {
    ($scratch:ident.$($field:ident).+, $value:expr) => {
        (&raw mut (*$scratch).$($field).+).write_volatile($value)
    };
}
pub(crate) use put;

/// Reads one back: to the verifier it is any number.
macro_rules! get {
    ($scratch:ident.$($field:ident).+) => {
        (&raw const (*$scratch).$($field).+).read_volatile()
    };
}
pub(crate) use get;

/// Room of the packet that this CPU looks at; between [`enter`] and [`leave`].
#[inline(always)]
pub fn packet() -> Option<*mut Packet> {
    let rooms = ROOMS.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's slot, and the mask keeps it inside. Volatile: a branch for each room would have the verifier
    // walk everything twice.
    unsafe {
        let at = (&raw const (*rooms).depth).read_volatile().wrapping_sub(1) & (DEEPEST - 1);
        Some((&raw mut (*rooms).rooms).cast::<Packet>().add(at as usize))
    }
}

/// Takes room for a packet, in the program that looks at all of them: false where there is none. Since about Linux 6.1 the kernel does not run it for a packet that
/// interrupts it, and counts that; [`enter_inner`] is for those. Before, it does.
#[inline(always)]
pub fn enter(address: u64) -> bool {
    let Some(rooms) = ROOMS.get_ptr_mut(0) else { return false };
    // SAFETY: the pointer is to this CPU's slot, which nobody else writes but what interrupts this and puts everything back.
    unsafe {
        let depth = (&raw const (*rooms).depth).read_volatile();
        if depth >= DEEPEST {
            return false;
        }
        if depth > 0 {
            (*rooms).inner = address;
        }
        (&raw mut (*rooms).depth).write_volatile(depth + 1);
    }
    true
}

/// Takes room for a packet for which the first program was not run, because the packet interrupted it; false where it was run. In the
/// program that comes after it.
#[inline(always)]
pub fn enter_inner(address: u64) -> bool {
    let Some(rooms) = ROOMS.get_ptr_mut(0) else { return false };
    // SAFETY: as in `enter`.
    unsafe {
        let depth = (&raw const (*rooms).depth).read_volatile();
        if depth != 1 {
            return false;
        }
        if (*rooms).inner == address {
            (*rooms).inner = 0;
            return false;
        }
        (&raw mut (*rooms).depth).write_volatile(DEEPEST);
    }
    true
}

/// Gives the room back.
#[inline(always)]
pub fn leave() {
    let Some(rooms) = ROOMS.get_ptr_mut(0) else { return };
    // SAFETY: as in `enter`.
    unsafe {
        let depth = (&raw const (*rooms).depth).read_volatile();
        (&raw mut (*rooms).depth).write_volatile(depth.wrapping_sub(1));
    }
}

/// Begins with a new packet: the key is empty.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn begin(scratch: *mut Packet) {
    const WORDS: usize = size_of::<DropKey>() / size_of::<u64>();
    // SAFETY: the caller's promise; the key is whole words.
    unsafe {
        let words = (&raw mut (*scratch).record.key).cast::<u64>();
        for index in 0..WORDS {
            words.add(index).write_volatile(0);
        }
        put!(scratch.record.cookie, 0);
        put!(scratch.record.source_port, 0);
        put!(scratch.record.translated_port, 0);
        put!(scratch.record.file_uid, u32::MAX);
        put!(scratch.record.file_gid, u32::MAX);
        put!(scratch.record.mark, 0);
        put!(scratch.record.segments, 0);
        put!(scratch.origin, 0);
        put!(scratch.socket, 0);
        put!(scratch.given, 0);
        put!(scratch.port, 0);
        put!(scratch.protocol, 0);
        put!(scratch.shut, 0);
    }
}

/// Where a walk stands. It lives in a map and not on the stack: what the verifier knows about it is then the same after
/// every step, or it would follow every way through all steps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Walk {
    pub dentry: u64,
    pub mount: u64,
    pub at: u32,
    pub whole: u32,
}

/// Largest offset of the name, and of the arguments, in the data: what the verifier is told by masking.
pub const PATH_MASK: u64 = 2 * PATH_BYTES as u64 - 1;
/// See [`PATH_MASK`].
pub const NAME_MASK: u64 = 4 * PATH_BYTES as u64 - 1;

/// Room for a record with all its data; the masks keep every write inside.
pub const DATA_BYTES: usize = NAME_MASK as usize + 1 + ARGS_BYTES + 1;
const _: () = assert!(PATH_MASK as usize + NAME_BYTES < DATA_BYTES);

/// A record that is being put together.
#[repr(C)]
pub struct Process {
    pub record: ProcessRecord,
    pub data: [u8; DATA_BYTES],
    /// Not part of what is handed over.
    pub walk: Walk,
}

#[btf_map]
static SCRATCH: PerCpuArray<Process, 1> = PerCpuArray::new();

/// This CPU's room for one record.
#[inline(always)]
pub fn process() -> Option<*mut Process> {
    SCRATCH.get_ptr_mut(0)
}

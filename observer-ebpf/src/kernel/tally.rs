//! Counts packets by key, in two generations, and hands over the first of each.
//!
//! User space moves on to the next generation, waits until no program counts in the one before, and reads and clears that.
//! So nothing is read while it is written. The counts are the ledger: a record that finds no room in the ring costs the
//! bytes of one packet and no count.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::{Array, PerCpuArray, PerCpuHashMap, RingBuf},
    helpers::generated::bpf_ringbuf_output,
    macros::btf_map,
};
use observer_ebpf::abi::{Counted, Counter, DropKey, DropRecord, MAX_COARSE_KEYS, MAX_KEYS, PACKET_BYTES, flag};

use super::{
    counters::count,
    drop::capture,
    owner,
    scratch::{Packet, get, put},
    share::{self, HandOver},
    sock,
};

/// Bytes of the ring: several thousand records.
const RING_BYTES: usize = 1 << 22;
/// A wake-up costs more than the record it announces, so each CPU wakes the reader at most this often. The reader polls
/// on for longer than that after a wake-up, so that no record waits for the next one.
pub const WAKE_INTERVAL_NS: u64 = 1_000_000;
/// Records that a CPU hands over between two wake-ups; what comes beyond is counted.
pub const MAX_RECORDS: u32 = 128;

#[btf_map]
static EVENTS: RingBuf<(), RING_BYTES> = RingBuf::new();
#[btf_map]
static EPOCH: Array<u32, 1> = Array::new();
#[btf_map]
static KEYS_EVEN: PerCpuHashMap<DropKey, Counted, { MAX_KEYS as usize }> = PerCpuHashMap::new();
#[btf_map]
static KEYS_ODD: PerCpuHashMap<DropKey, Counted, { MAX_KEYS as usize }> = PerCpuHashMap::new();
#[btf_map]
static COARSE_EVEN: PerCpuHashMap<DropKey, Counted, { MAX_COARSE_KEYS as usize }> = PerCpuHashMap::new();
#[btf_map]
static COARSE_ODD: PerCpuHashMap<DropKey, Counted, { MAX_COARSE_KEYS as usize }> = PerCpuHashMap::new();

/// What a CPU handed over of late.
#[derive(Clone, Copy)]
#[repr(C)]
struct Pace {
    since_ns: u64,
    records: u32,
    reserved: u32,
}

#[btf_map]
static PACE: PerCpuArray<Pace, 1> = PerCpuArray::new();

/// What came of counting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tallied {
    First,
    Repeat,
    NoRoom,
}

/// Counts the packet in the scratch space, and hands it over if it is the first of its key.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
pub unsafe fn tally(scratch: *mut Packet) {
    let epoch = EPOCH.get(0).copied().unwrap_or(0);
    // SAFETY: the caller's promise.
    unsafe {
        put!(scratch.record.epoch, epoch);
        let tallied =
            if epoch & 1 == 0 { bump::<false, _>(&KEYS_EVEN, scratch) } else { bump::<false, _>(&KEYS_ODD, scratch) };
        match tallied {
            Tallied::Repeat => {}
            Tallied::First => hand_over(scratch),
            Tallied::NoRoom => {
                coarsen(scratch);
                let tallied = if epoch & 1 == 0 {
                    bump::<true, _>(&COARSE_EVEN, scratch)
                } else {
                    bump::<true, _>(&COARSE_ODD, scratch)
                };
                if tallied == Tallied::NoRoom {
                    count(Counter::MapFull);
                }
            }
        }
    }
}

/// Counts the packet under its key, for which its account must have room left.
#[inline(always)]
unsafe fn bump<const COARSE: bool, const KEYS: usize>(
    counts: &PerCpuHashMap<DropKey, Counted, KEYS>,
    scratch: *mut Packet,
) -> Tallied {
    // SAFETY: the caller's promise; a value is this CPU's own.
    unsafe {
        let key = &(*scratch).record.key;
        let (now, length) = (get!(scratch.record.time_ns), u64::from(get!(scratch.record.length)));
        if let Some(counted) = counts.get_ptr_mut(key) {
            if (*counted).packets == 0 {
                (*counted).first_ns = now;
            }
            (*counted).packets += 1;
            (*counted).bytes += length;
            (*counted).last_ns = now;
            return Tallied::Repeat;
        }
        if !share::may_have_a_key(COARSE) {
            return Tallied::NoRoom;
        }
        let first = Counted { packets: 1, bytes: length, first_ns: now, last_ns: now };
        if counts.insert(key, &first, u64::from(BPF_NOEXIST)).is_ok() {
            return Tallied::First;
        }
        // Another CPU was quicker, or there is no room.
        share::give_back(COARSE);
        let Some(counted) = counts.get_ptr_mut(key) else { return Tallied::NoRoom };
        if (*counted).packets == 0 {
            (*counted).first_ns = now;
        }
        (*counted).packets += 1;
        (*counted).bytes += length;
        (*counted).last_ns = now;
        Tallied::Repeat
    }
}

/// Leaves out where to: what remains is who, and of what kind.
#[inline(always)]
unsafe fn coarsen(scratch: *mut Packet) {
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        put!(scratch.record.key.sent.source, [0; 16]);
        put!(scratch.record.key.sent.destination, [0; 16]);
        put!(scratch.record.key.sent.source_port, 0);
        put!(scratch.record.key.sent.destination_port, 0);
        put!(scratch.record.key.translated.source, [0; 16]);
        put!(scratch.record.key.translated.destination, [0; 16]);
        put!(scratch.record.key.translated.source_port, 0);
        put!(scratch.record.key.translated.destination_port, 0);
        // Without its socket nobody can tell any more who of several it was.
        if get!(scratch.record.key.cookie) != 0 {
            put!(scratch.record.key.owner_pid, 0);
            put!(scratch.record.key.owner_start_ns, 0);
            put!(scratch.record.key.owner_source, 0);
        }
        put!(scratch.record.key.rule.netns_cookie, 0);
        put!(scratch.record.key.rule.function, 0);
        put!(scratch.record.key.rule.table, 0);
        put!(scratch.record.key.rule.chain, 0);
        put!(scratch.record.key.rule.rule, 0);
        put!(scratch.record.key.cookie, 0);
        put!(scratch.record.key.inode, 0);
        put!(scratch.record.key.current_pid, 0);
        let flags = get!(scratch.record.key.flags) & !(flag::TRANSLATED | flag::LOCKED | flag::HELD);
        put!(scratch.record.key.flags, flags | flag::COARSE);
    }
}

/// The first packet of a key, whole.
#[inline(always)]
unsafe fn hand_over(scratch: *mut Packet) {
    let Some(pace) = PACE.get_ptr_mut(0) else { return };
    // SAFETY: both pointers are to this CPU's slots.
    unsafe {
        // Before a wake-up is due: one without a record would leave the next ones waiting.
        let may = share::hand_over(scratch);
        if may == HandOver::No {
            count(Counter::RecordSkipped);
            return;
        }
        let now = get!(scratch.record.time_ns);
        let mut flags = BPF_RB_NO_WAKEUP;
        if now.wrapping_sub((*pace).since_ns) >= WAKE_INTERVAL_NS {
            (*pace).since_ns = now;
            (*pace).records = 0;
            flags = BPF_RB_FORCE_WAKEUP;
        }
        if (*pace).records >= MAX_RECORDS && may != HandOver::Yes {
            count(Counter::RecordSkipped);
            return;
        }
        (*pace).records += 1;
        sock::describe_one();
        put!(scratch.record.inode, sock::inode(get!(scratch.socket)));
        match owner::get(get!(scratch.record.cookie)) {
            Some(owner) => put!(scratch.record.owner, *owner),
            None => put!(scratch.record.owner.source, 0),
        }
        let captured = capture(scratch, get!(scratch.start), get!(scratch.bytes));
        put!(scratch.record.captured, captured);
        const FIXED: u64 = (size_of::<DropRecord>() - PACKET_BYTES) as u64;
        let mut length = FIXED + u64::from(captured);
        if length > size_of::<DropRecord>() as u64 {
            length = size_of::<DropRecord>() as u64;
        }
        let ring = (&raw const EVENTS).cast_mut().cast();
        let record = (&raw mut (*scratch).record).cast();
        if bpf_ringbuf_output(ring, record, length, u64::from(flags)) != 0 {
            count(Counter::RecordSkipped);
        }
    }
}

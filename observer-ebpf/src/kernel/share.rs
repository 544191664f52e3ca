//! On whose account a packet is counted, and how much room each account may take: one that sends to very many destinations leaves
//! room for the others.

use aya_ebpf::{
    Global,
    btf_maps::{Array, LruHashMap},
    macros::btf_map,
};
use observer_ebpf::abi::{Account, Direction, MAX_COARSE_KEYS, MAX_KEYS, flag};

use super::{
    layout::field,
    read::{Probe, Reader},
    scratch::{self, Packet, get, put},
    tally::WAKE_INTERVAL_NS,
};

/// One more than the deepest user namespace that the kernel allows.
const MAX_LEVELS: u32 = 34;
/// An account may have so many times as many keys as are free: a single one has three quarters at most.
const TIMES_WHAT_IS_FREE: u32 = 3;
/// A part of the room that is kept for accounts with few keys: one in so many keys.
const KEPT: u32 = 8;
/// Keys that are few, and coarser ones.
const FEW: u32 = 32;
const FEW_COARSE: u32 = 8;
const FEW_OF_A_SOURCE: u32 = 4;
/// Records that an account may hand over in a period: three quarters of what one CPU may. The first few are handed over whatever
/// others do.
const MAX_RECORDS: u64 = super::tally::MAX_RECORDS as u64 / 4 * 3;
const FEW_RECORDS: u64 = 4;
/// All sources of forwarded packets share the room of one account, three quarters of the whole: source addresses can be made up.
const ALL_SOURCES: u64 = (Account::Source as u64) << 32 | u32::MAX as u64;

/// What an account has taken. Several CPUs write it without a lock: a few more or fewer do not matter.
#[derive(Clone, Copy)]
#[repr(C)]
struct Part {
    /// Generation, keys in it, and coarser ones.
    epoch: u32,
    keys: u32,
    coarse: u32,
    reserved: u32,
    /// When the period began, and records in it.
    since_ns: u64,
    records: u64,
}

/// By account, as one number.
#[btf_map]
static PARTS: LruHashMap<u64, Part, 4096> = LruHashMap::new();

/// Keys that all accounts have in a generation, and coarser ones.
#[derive(Clone, Copy)]
#[repr(C)]
struct Taken {
    epoch: u32,
    keys: u32,
    coarse: u32,
}

#[btf_map]
static TAKEN: Array<Taken, 2> = Array::new();

/// Keys for which there is room in a generation, as the loader wrote it.
#[unsafe(no_mangle)]
static KEY_ROOM: Global<u32> = Global::new(MAX_KEYS);

#[inline(always)]
fn room() -> u32 {
    // SAFETY: the static is a `u32`; the read is volatile because the loader replaces the value.
    unsafe { core::ptr::read_volatile((&raw const KEY_ROOM).cast()) }
}

/// The account of the packet in the scratch space: of a user's own namespaces the user, of root's the namespace, in the host's own the
/// socket's user.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
unsafe fn account(scratch: *mut Packet) -> (Account, u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let flags: u16 = get!(scratch.record.key.flags);
        let net: u64 = if flags & flag::SOCKET != 0 {
            Probe::field(get!(scratch.sk), field!(sk_net)).unwrap_or(0)
        } else if get!(scratch.record.key.direction) != Direction::Local as u8 {
            if get!(scratch.origin) == 0 {
                return (Account::Source, source(scratch));
            }
            get!(scratch.origin)
        } else {
            get!(scratch.net)
        };
        let netns: u32 = Probe::field(net, field!(net_inum)).unwrap_or(0);
        let user_ns: u64 = Probe::field(net, field!(net_user_ns)).unwrap_or(0);
        let (level, owner) = maker(user_ns);
        let owner = owner.unwrap_or(0);
        if owner != 0 {
            return (Account::User, owner);
        }
        if level == 0 && netns == field!(host_netns) && flags & flag::FULL_SOCKET != 0 {
            return (Account::User, get!(scratch.record.key.uid));
        }
        (Account::Netns, netns)
    }
}

/// 0 for the initial user namespace and 1 for those below it; and who made the outermost one below the initial one. Whoever
/// made that has more users inside, who may make more.
#[inline(always)]
pub fn maker(user_namespace: u64) -> (u32, Option<u32>) {
    let level: u32 = Probe::field(user_namespace, field!(user_ns_level)).unwrap_or(0);
    if level == 0 {
        return (0, None);
    }
    let mut user_ns = user_namespace;
    // One reading a level: the verifier walks every turn in each program that starts a process record.
    for above in 1..MAX_LEVELS {
        if above >= level {
            break;
        }
        user_ns = Probe::field(user_ns, field!(user_ns_parent)).unwrap_or(0);
    }
    (1, Probe::field(user_ns, field!(user_ns_owner)))
}

/// Number of a source of forwarded packets. There are few of them, so that whoever makes source addresses up has few accounts.
///
/// # Safety
/// The scratch space must be this CPU's.
#[inline(always)]
unsafe fn source(scratch: *mut Packet) -> u32 {
    const SOURCES: u32 = 64;
    // SAFETY: the caller's promise; an address is four words.
    unsafe {
        let words = (&raw const (*scratch).record.key.sent.source).cast::<u32>();
        let mut sum = get!(scratch.record.key.netns);
        for index in 0..4 {
            sum ^= words.add(index).read_volatile();
        }
        (sum.wrapping_mul(0x9e37_79b1) >> 26) & (SOURCES - 1)
    }
}

/// Not 0 when an account may have one more key while so many are free, or while it has no more than `few`; it has it then.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn share_take(account: u64, epoch: u32, is_coarse: u32, free: u32, few: u32) -> u64 {
    if PARTS.get_ptr(&account).is_none() {
        let part = Part { epoch, keys: 0, coarse: 0, reserved: 0, since_ns: 0, records: 0 };
        let _ = PARTS.insert(&account, &part, 0);
    }
    let Some(part) = PARTS.get_ptr_mut(&account) else { return 1 };
    // SAFETY: the pointer is to a slot of a map.
    unsafe {
        if (*part).epoch != epoch {
            (*part).epoch = epoch;
            (*part).keys = 0;
            (*part).coarse = 0;
        }
        let most = free.saturating_mul(TIMES_WHAT_IS_FREE);
        if is_coarse != 0 {
            if (*part).coarse >= most && (*part).coarse >= few {
                return 0;
            }
            (*part).coarse += 1;
        } else {
            if (*part).keys >= most && (*part).keys >= few {
                return 0;
            }
            (*part).keys += 1;
        }
    }
    1
}

/// Keys that an account has in this generation.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn share_keys(account: u64, epoch: u32, is_coarse: u32) -> u64 {
    let Some(part) = PARTS.get_ptr(&account) else { return 0 };
    // SAFETY: the pointer is to a slot of a map.
    unsafe {
        match ((*part).epoch == epoch, is_coarse != 0) {
            (false, _) => 0,
            (true, true) => (*part).coarse.into(),
            (true, false) => (*part).keys.into(),
        }
    }
}

/// Gives back a key of an account that was not needed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn share_give_back(account: u64, is_coarse: u32) -> u64 {
    let Some(part) = PARTS.get_ptr_mut(&account) else { return 0 };
    // SAFETY: the pointer is to a slot of a map.
    unsafe {
        if is_coarse != 0 {
            (*part).coarse = (*part).coarse.saturating_sub(1);
        } else {
            (*part).keys = (*part).keys.saturating_sub(1);
        }
    }
    0
}

/// Not 0 when the packet in the scratch space may have a key of its own, for which room is taken then. Its account is noted.
///
/// A function of its own to the verifier too: it is walked once, whatever way led to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn share_of_keys(is_coarse: u32) -> u64 {
    let Some(scratch) = scratch::packet() else { return 1 };
    // SAFETY: the scratch space is this CPU's; the pointers are to slots of maps.
    unsafe {
        let (kind, id) = account(scratch);
        put!(scratch.record.account_kind, kind as u16);
        put!(scratch.record.account, id);
        let account = (kind as u64) << 32 | u64::from(id);
        put!(scratch.account, account);
        let epoch: u32 = get!(scratch.record.epoch);
        let Some(taken) = TAKEN.get_ptr_mut(epoch & 1) else { return 1 };
        if (*taken).epoch != epoch {
            (*taken).epoch = epoch;
            (*taken).keys = 0;
            (*taken).coarse = 0;
        }
        let (room, used) = if is_coarse != 0 { (MAX_COARSE_KEYS, (*taken).coarse) } else { (room(), (*taken).keys) };
        let shared = room - room / KEPT;
        let mut free = shared.saturating_sub(used);
        let mut few = if is_coarse != 0 { FEW_COARSE } else { FEW };
        let is_source = kind as u32 == Account::Source as u32;
        if is_source {
            let of_all = share_keys(ALL_SOURCES, epoch, is_coarse) as u32;
            free = free.min((shared / 4 * 3).saturating_sub(of_all));
            few = FEW_OF_A_SOURCE;
        }
        if share_take(account, epoch, is_coarse, free, few) == 0 {
            return 0;
        }
        if is_source {
            share_take(ALL_SOURCES, epoch, is_coarse, u32::MAX, 0);
        }
        if is_coarse != 0 {
            (*taken).coarse += 1;
        } else {
            (*taken).keys += 1;
        }
    }
    1
}

/// The packet in the scratch space, which has no key yet, may have one of its own: a coarse one, or one that tells everything.
#[inline(always)]
pub fn may_have_a_key(is_coarse: bool) -> bool {
    share_of_keys(u32::from(is_coarse)) != 0
}

/// Gives back the key that the packet in the scratch space took room for.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn share_return(is_coarse: u32) -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's; the pointer is to a slot of a map.
    unsafe {
        let account: u64 = get!(scratch.account);
        share_give_back(account, is_coarse);
        if account >> 32 == Account::Source as u64 {
            share_give_back(ALL_SOURCES, is_coarse);
        }
        let epoch: u32 = get!(scratch.record.epoch);
        let Some(taken) = TAKEN.get_ptr_mut(epoch & 1) else { return 0 };
        if is_coarse != 0 {
            (*taken).coarse = (*taken).coarse.saturating_sub(1);
        } else {
            (*taken).keys = (*taken).keys.saturating_sub(1);
        }
    }
    0
}

/// The key for which room was taken is not needed.
#[inline(always)]
pub fn give_back(is_coarse: bool) {
    share_return(u32::from(is_coarse));
}

/// Not 0 when an account may hand over one more record at this time, of `most` in a period; 2 when it has handed over few.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn share_of_records(account: u64, now: u64, most: u64) -> u64 {
    let Some(part) = PARTS.get_ptr_mut(&account) else { return 1 };
    // SAFETY: the pointer is to a slot of a map.
    unsafe {
        if now.saturating_sub((*part).since_ns) >= WAKE_INTERVAL_NS {
            (*part).since_ns = now;
            (*part).records = 0;
        }
        (*part).records += 1;
        let records = (*part).records;
        if records <= FEW_RECORDS {
            return 2;
        }
        u64::from(records <= most)
    }
}

/// Whether a packet may be handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HandOver {
    /// Its account has handed over too many just now.
    No,
    /// If the CPU has not handed over too many.
    Maybe,
    /// Its account has handed over few.
    Yes,
}

/// Whether the packet in the scratch space may be handed over.
///
/// # Safety
/// The scratch space must be this CPU's, and its account noted.
#[inline(always)]
pub unsafe fn hand_over(scratch: *mut Packet) -> HandOver {
    // SAFETY: the caller's promise.
    let (account, now): (u64, u64) = unsafe { (get!(scratch.account), get!(scratch.record.time_ns)) };
    let is_source = account >> 32 == Account::Source as u64;
    // One of them leaves room for the others.
    let most = if is_source { MAX_RECORDS / 4 * 3 } else { MAX_RECORDS };
    let own = share_of_records(account, now, most);
    if own != 0 && is_source && share_of_records(ALL_SOURCES, now, MAX_RECORDS) == 0 {
        return HandOver::No;
    }
    match own {
        0 => HandOver::No,
        2 if !is_source => HandOver::Yes,
        _ => HandOver::Maybe,
    }
}

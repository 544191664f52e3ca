//! Which rule gave the verdict to drop, where the walker of the rules is gone by the time the packet is freed: told by the
//! function that gave it, while something is being blocked.

use aya_ebpf::{
    btf_maps::{Array, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use observer_ebpf::abi::{FRAME_WORDS, FRAMES_OF_VERDICT, FrameWord, MAX_PROOFS, RuleConfig, UNKNOWN_RULE};

use super::{
    layout::field,
    proof::{PROOFS, RULES, is_proof, word},
    read::{Probe, Reader},
    time::boot_ns,
};

/// A verdict that is being given: where to look once it is. What it is, and of which packet, is read then and not before, so
/// that an end whose beginning was skipped finds nothing of an earlier one's.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pending {
    /// Where the verdict will be.
    into: u64,
    /// `struct nft_pktinfo`.
    packet: u64,
}

/// A verdict to drop that was given.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Given {
    rule: u64,
    chain: u64,
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    time_ns: u64,
}

/// By the stack pointer where it began: at one time there is only one such.
#[btf_map]
static PENDING: LruHashMap<u64, Pending, 1024> = LruHashMap::new();
/// By the packet.
#[btf_map]
static GIVEN: LruHashMap<u64, Given, 4096> = LruHashMap::new();
/// Stack pointer where the last one began.
#[btf_map]
static BEGAN: PerCpuArray<u64, 1> = PerCpuArray::new();
/// Address of the registers, on its way to becoming a plain number.
#[btf_map]
static REGISTERS: PerCpuArray<u64, 1> = PerCpuArray::new();
/// How much further it was where that one ended.
#[btf_map]
static DISTANCE: Array<u64, 1> = Array::new();

/// The packet is freed at once. One whose end was not seen must not be taken for the next that is at its address.
const FRESH_NS: u64 = 20_000_000;
/// A return takes the return address off the stack, and no more.
const MAX_DISTANCE: u64 = 16;
/// `NF_DROP`.
const DROP: u64 = 0;

/// Address of one word: of the registers, or of the stack.
#[inline(always)]
fn place(config: &RuleConfig, registers: u64, stack: u64, index: u64) -> u64 {
    let bytes = size_of::<u64>() as u64;
    if index < config.verdict.registers {
        registers.wrapping_add(index.wrapping_mul(bytes))
    } else {
        stack.wrapping_add((index - config.verdict.registers).wrapping_mul(bytes))
    }
}

/// A function that gives verdicts is called with these registers: for this packet, into that place.
///
/// A function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn verdict_started(registers: u64, into: u64, packet: u64) -> u64 {
    let Some(config) = RULES.get(0) else { return 0 };
    if config.verdict.handle_mask == 0 {
        return 0;
    }
    let skb = word(packet.wrapping_add(config.verdict.packet_skb));
    let stack = word(registers.wrapping_add(config.verdict.stack_pointer));
    if config.verdict_proven == 0 {
        let port = proof_port(skb);
        if port == 0 {
            return 0;
        }
        if let Some(began) = BEGAN.get_ptr_mut(0) {
            // SAFETY: it is this CPU's.
            unsafe { began.write_volatile(stack) };
        }
        if config.wants_frames == FRAMES_OF_VERDICT {
            for index in 0..FRAME_WORDS as u64 {
                verdict_word(place(config, registers, stack, index), port, index);
            }
        }
    }
    // An earlier one of a packet that was here before, or one that did not end its walk.
    let _ = GIVEN.remove(&skb);
    if config.verdict_site.learnt != 0 {
        let _ = PENDING.insert(&stack, &Pending { into, packet }, 0);
    }
    0
}

/// Destination port of a proof's packet; 0 for any other.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn proof_port(skb: u64) -> u64 {
    const PORT: u64 = 20 + 2;
    let sk: u64 = Probe::field(skb, field!(skb_sk)).unwrap_or(0);
    let net: u64 = Probe::field(sk, field!(sk_net)).unwrap_or(0);
    if sk == 0 || !is_proof(Probe::field(net, field!(net_inum)).unwrap_or(0)) {
        return 0;
    }
    let head: u64 = Probe::field(skb, field!(skb_head)).unwrap_or(0);
    let network: u16 = Probe::field(skb, field!(skb_network_header)).unwrap_or(0);
    let port = u16::from_be(Probe::field(head.wrapping_add(u64::from(network)).wrapping_add(PORT), 0).unwrap_or(0));
    if port as usize <= MAX_PROOFS { u64::from(port) } else { 0 }
}

/// One word of a proof's frame.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn verdict_word(at: u64, port: u64, index: u64) -> u64 {
    let (Some(config), Some(proof)) = (RULES.get(0), PROOFS.get_ptr_mut(port as u32)) else { return 0 };
    let index = index & (FRAME_WORDS as u64 - 1);
    let value = word(at);
    let table = word(value.wrapping_add(config.chain_table));
    // SAFETY: the index is masked, and only one packet of a proof is under way.
    unsafe {
        let into = (&raw mut (*proof).frame).cast::<FrameWord>().add(index as usize);
        (*into).value = word(word(value).wrapping_add(config.verdict.rule_head));
        (*into).target = word(value.wrapping_add(config.verdict.rule_head));
        (*into).chain_handle = word(value.wrapping_add(config.chain_handle));
        (*into).table_handle = word(table.wrapping_add(config.table_handle));
    }
    0
}

/// A function that gives verdicts is called.
#[inline(always)]
pub fn begin(registers: u64, into: u64, packet: u64) {
    verdict_started(plain(registers), into, packet);
}

/// The registers' address as a plain number, with which one may calculate; 0 when there is no room for it.
#[inline(always)]
fn plain(registers: u64) -> u64 {
    let Some(plain) = REGISTERS.get_ptr_mut(0) else { return 0 };
    // SAFETY: it is this CPU's, and such programs do not nest.
    unsafe {
        plain.write_volatile(registers);
        plain.read_volatile()
    }
}

/// It has returned: the walker has its registers back, and its stack is as it was.
#[inline(always)]
pub fn end(registers: u64) {
    verdict_ended(plain(registers));
}

/// See [`end`].
///
/// A function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn verdict_ended(registers: u64) -> u64 {
    let Some(config) = RULES.get(0) else { return 0 };
    let stack = word(registers.wrapping_add(config.verdict.stack_pointer));
    if config.verdict_proven == 0 {
        if let (Some(began), Some(distance)) = (BEGAN.get(0), DISTANCE.get_ptr_mut(0)) {
            let found = stack.wrapping_sub(*began);
            // Of other packets the end is anywhere.
            if *began != 0 && found <= MAX_DISTANCE {
                // SAFETY: a number that only a proof reads, whose packets come one by one.
                unsafe { distance.write_volatile(found) };
            }
        }
    }
    let site = &config.verdict_site;
    if site.learnt == 0 {
        return 0;
    }
    let began = stack.wrapping_sub(site.distance);
    let Some(pending) = PENDING.get_ptr(&began) else { return 0 };
    // SAFETY: the map's values stay readable.
    let pending = unsafe { *pending };
    let _ = PENDING.remove(&began);
    if word(pending.into) & 0xffff_ffff != DROP {
        return 0;
    }
    let mut rule = word(place(config, registers, began, site.rule_word));
    if site.indirect != 0 {
        rule = word(rule);
    }
    let head = word(rule.wrapping_add(config.verdict.rule_head));
    let given = Given {
        rule: (head >> config.verdict.handle_bit) & config.verdict.handle_mask,
        chain: word(place(config, registers, began, site.chain_word)),
        time_ns: boot_ns(),
    };
    let skb = word(pending.packet.wrapping_add(config.verdict.packet_skb));
    let _ = GIVEN.insert(&skb, &given, 0);
    0
}

/// Handle of the rule that gave the verdict to drop this packet, once: 0 for none, [`UNKNOWN_RULE`] where it is none of that
/// base chain.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn verdict_given(skb: u64, chain: u64) -> u64 {
    let Some(config) = RULES.get(0) else { return 0 };
    if config.verdict.handle_mask == 0 || config.verdict_site.learnt == 0 {
        return 0;
    }
    let Some(given) = GIVEN.get_ptr(&skb) else { return 0 };
    // SAFETY: the map's values stay readable.
    let given = unsafe { *given };
    let _ = GIVEN.remove(&skb);
    if boot_ns().wrapping_sub(given.time_ns) >= FRESH_NS {
        0
    } else if given.chain == chain && given.rule != 0 {
        given.rule
    } else {
        UNKNOWN_RULE
    }
}

/// See [`verdict_given`].
#[inline(always)]
pub fn given(skb: u64, chain: u64) -> u64 {
    verdict_given(skb, chain)
}

/// The packet is gone, and nobody asks which rule it was. Its address may be one that no function of its own takes.
#[inline(always)]
pub fn forget(skb: u64) {
    if RULES.get(0).is_some_and(|config| config.verdict_site.learnt != 0) {
        let _ = GIVEN.remove(&skb);
    }
}

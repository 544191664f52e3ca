//! Which rule dropped the packet: read from the frame of `nft_do_chain`, which is still on the stack when it frees a packet.
//! Nothing is searched for: at each place that frees, the frame lies at the same distance, and where in it the rule is was
//! learnt from packets that known rules drop. Other causes are named by the function on the hook, from the frame of
//! `nf_hook_slow`, likewise.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use observer_ebpf::abi::{
    Cause, Extent, FRAME_WORDS, FRAMES_OF_FREE, FROM_QUEUE, HookKind, MAX_FUNCTIONS, MAX_SITES, NO_WORD, UNKNOWN_RULE,
    UNTAKEN, flag,
};

use super::{
    layout::field,
    proof::{PROOFS, RULES, is_proof, word},
    read::{Probe, Reader},
    scratch::{self, get, put},
    verdict,
};

/// Bit of a rule's first word that marks the end of its chain.
const IS_LAST: u64 = 1;

/// Word of the stack, counted from the tracepoint's arguments on.
#[inline(always)]
fn stack(arguments: u64, index: u64) -> u64 {
    word(arguments.wrapping_add(index.wrapping_mul(size_of::<u64>() as u64)))
}

/// Writes into the key which rule of which table it was, if the place that freed the packet is known.
///
/// A function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_identify() -> u64 {
    let (Some(config), Some(scratch)) = (RULES.get(0), scratch::packet()) else { return 0 };
    // SAFETY: the scratch space is this CPU's.
    let (arguments, location) = unsafe { (get!(scratch.arguments), get!(scratch.record.location)) };
    // SAFETY: likewise.
    let cookie: u64 = Probe::field(unsafe { get!(scratch.net) }, field!(net_cookie)).unwrap_or(0);
    if cookie == 0 {
        return 0;
    }
    // SAFETY: likewise.
    let usable = if is_proof(unsafe { get!(scratch.record.key.netns) }) { MAX_SITES as u64 } else { config.proven };
    for index in 0..MAX_SITES {
        if index as u64 >= usable {
            return 0;
        }
        let site = &config.sites[index];
        if site.location == location && stack(arguments, site.return_word) == location {
            let chain = stack(arguments, site.chain_word);
            let table = word(word(chain.wrapping_add(config.chain_table)).wrapping_add(config.table_handle));
            let mut handle = 0;
            if site.rule_word != NO_WORD {
                let head = word(stack(arguments, site.rule_word));
                if head & IS_LAST == 0 {
                    handle = (head >> config.rule_handle_bit) & config.rule_handle_mask;
                }
                if handle == 0 && (head & IS_LAST == 0 || site.last_is_policy == 0) {
                    return 0;
                }
            }
            // SAFETY: the scratch space is this CPU's.
            let given = verdict::given(unsafe { get!(scratch.skb) }, chain);
            // SAFETY: likewise.
            unsafe {
                put!(scratch.given, given);
                // A policy gives no verdict.
                if given != 0 {
                    let opinion = if given == handle { flag::CONFIRMED } else { flag::DISPUTED };
                    put!(scratch.record.key.flags, get!(scratch.record.key.flags) | opinion);
                }
                put!(scratch.record.key.rule.netns_cookie, cookie);
                put!(scratch.record.key.rule.table, table);
                put!(scratch.record.key.rule.chain, word(chain.wrapping_add(config.chain_handle)));
                put!(scratch.record.key.rule.rule, handle);
            }
            return 1;
        }
    }
    0
}

/// Places in a hook's list that are believed.
const MAX_ENTRIES: u64 = 1024;

/// Writes into the key which function on the hook it was, if the place that freed the packet is known, and what is known of
/// what that function has to itself.
///
/// A function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_hook() -> u64 {
    let (Some(config), Some(scratch)) = (RULES.get(0), scratch::packet()) else { return 0 };
    let site = &config.hook_site;
    // SAFETY: the scratch space is this CPU's.
    let (arguments, location) = unsafe { (get!(scratch.arguments), get!(scratch.record.location)) };
    if site.location == 0 || site.location != location || stack(arguments, site.return_word) != location {
        return 0;
    }
    // SAFETY: likewise.
    if config.hook_proven == 0 && !is_proof(unsafe { get!(scratch.record.key.netns) }) {
        return 0;
    }
    let entries = stack(arguments, site.entries_word);
    let index = stack(arguments, site.index_word) & 0xffff_ffff;
    if index >= word(entries) & 0xffff || index >= MAX_ENTRIES {
        return 0;
    }
    let entry = entries.wrapping_add(config.entries_hooks).wrapping_add(index.wrapping_mul(config.entry_bytes));
    let function = word(entry);
    let private = word(entry.wrapping_add(config.entry_private));
    let mut kind = 0;
    for known in 0..MAX_FUNCTIONS {
        if config.functions[known].address == function {
            kind = config.functions[known].kind;
        }
    }
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        put!(scratch.record.key.rule.netns_cookie, Probe::field(get!(scratch.net), field!(net_cookie)).unwrap_or(0));
        put!(scratch.record.key.rule.function, function);
        if kind == HookKind::Nftables as u64 {
            let table = word(private.wrapping_add(config.chain_table));
            put!(scratch.record.key.rule.table, word(table.wrapping_add(config.table_handle)));
            put!(scratch.record.key.rule.chain, word(private.wrapping_add(config.chain_handle)));
            let given = verdict::given(get!(scratch.skb), private);
            put!(scratch.given, given);
            put!(scratch.record.key.rule.rule, if given == 0 { UNKNOWN_RULE } else { given });
        } else if kind == HookKind::Program as u64 {
            let aux = word(private.wrapping_add(config.program_aux));
            put!(scratch.record.key.rule.rule, word(aux.wrapping_add(config.aux_id)) & 0xffff_ffff);
        } else if kind == HookKind::Xtables as u64 {
            put!(scratch.record.key.rule.table, word(private.wrapping_add(config.xtable_name)));
        }
    }
    1
}

/// Looks which rule it was, or what else.
#[inline(always)]
pub fn identify() {
    let Some(scratch) = scratch::packet() else { return };
    // SAFETY: the scratch space is this CPU's.
    let cause = unsafe { get!(scratch.record.key.cause) };
    if cause == Cause::Netfilter as u8 && rule_identify() == 0 {
        rule_hook();
    } else if cause == Cause::Nfqueue as u8 {
        rule_refuser();
    }
}

/// In whose call a queue's packet was freed: whoever gives a queue's verdict is inside it, and so is whoever ends the queue.
///
/// A function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_refuser() -> u64 {
    let Some(scratch) = scratch::packet() else { return 0 };
    // SAFETY: the scratch space is this CPU's; the helper only returns a number.
    unsafe {
        if queued(get!(scratch.record.location)) == Some(Queued::Refused) {
            put!(scratch.record.key.rule.table, FROM_QUEUE);
            put!(scratch.record.key.rule.rule, bpf_get_current_pid_tgid() >> 32);
        } else {
            put!(scratch.record.key.rule.table, UNTAKEN);
        }
    }
    0
}

#[inline(always)]
fn holds(extent: &Extent, location: u64) -> bool {
    extent.start != 0 && location.wrapping_sub(extent.start) < extent.bytes
}

/// A queue's packet: whether it was refused, or taken by nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    Refused,
    Untaken,
}

/// Whether a queue's packet is freed there.
#[inline(always)]
pub fn queued(location: u64) -> Option<Queued> {
    let config = RULES.get(0)?;
    if holds(&config.refused, location) {
        Some(Queued::Refused)
    } else if holds(&config.untaken, location) {
        Some(Queued::Untaken)
    } else {
        None
    }
}

/// One word of a proof's frame.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_frame_word(arguments: u64, proof: u32, index: u64) -> u64 {
    let (Some(config), Some(proof)) = (RULES.get(0), PROOFS.get_ptr_mut(proof)) else { return 0 };
    // A mask is a bound that the verifier never loses.
    let index = index & (FRAME_WORDS as u64 - 1);
    let value = stack(arguments, index);
    let table = word(value.wrapping_add(config.chain_table));
    // SAFETY: the index is masked, and only one packet of a proof is under way.
    unsafe {
        let into = (&raw mut (*proof).frame).cast::<observer_ebpf::abi::FrameWord>().add(index as usize);
        (*into).value = value;
        (*into).target = word(value);
        (*into).chain_handle = word(value.wrapping_add(config.chain_handle));
        (*into).table_handle = word(table.wrapping_add(config.table_handle));
    }
    0
}

/// Tells what is known of a proof's packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_prove() -> u64 {
    let (Some(config), Some(scratch)) = (RULES.get(0), scratch::packet()) else { return 0 };
    // SAFETY: the scratch space is this CPU's, and only one packet of a proof is under way.
    unsafe {
        let arguments = get!(scratch.arguments);
        let index = u32::from(get!(scratch.record.key.sent.destination_port));
        let Some(proof) = PROOFS.get_ptr_mut(index) else { return 0 };
        (*proof).location = get!(scratch.record.location);
        (*proof).answer.netns_cookie = get!(scratch.record.key.rule.netns_cookie);
        (*proof).answer.function = get!(scratch.record.key.rule.function);
        (*proof).answer.table = get!(scratch.record.key.rule.table);
        (*proof).answer.chain = get!(scratch.record.key.rule.chain);
        (*proof).answer.rule = get!(scratch.record.key.rule.rule);
        (*proof).given = get!(scratch.given);
        if config.wants_frames == FRAMES_OF_FREE {
            for word in 0..FRAME_WORDS as u64 {
                rule_frame_word(arguments, index, word);
            }
        }
    }
    0
}

/// Tells what is known of a proof's packet.
#[inline(always)]
pub fn prove() {
    rule_prove();
}

//! `trace_kfree_skb(skb, location [, reason [, rx_sk]])`: a packet is freed without having been delivered.
//!
//! Three layouts: without a reason before 5.17, with it, and with the receiving socket since 6.11. The position of the
//! reason comes from the kernel's BTF; without it, the function that frees the packet tells what netfilter drops. Runs in
//! any context, most often in the sender's, for retransmits in a timer's.
//!
//! Filtered by reason, then by direction, before anything else is read: freed packets are common, drops are not.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use observer_ebpf::abi::{Cause, Counter, Direction, answer, flag};

use crate::kernel::{
    counters::count,
    drop, filter,
    layout::{address, field},
    neighbours, own,
    proof::is_proof,
    read::{Direct, Probe, Reader},
    rule,
    scratch::{self, get, put},
    skb::{DIRECTION_BITS, Skb},
    sock,
    tally::tally,
    time::boot_ns,
    verdict,
};

#[btf_tracepoint(function = "kfree_skb")]
pub fn drop_kfree_skb(context: BtfTracePointContext) -> i32 {
    // One constant position in each arm: the verifier takes no computed offset into the arguments.
    let reason: u64 = match field!(reason_arg) {
        2 => context.arg(2),
        _ => u64::from(NOT_NAMED),
    };
    // What is dropped most often where nothing of this host's is: before all else, and by loads alone.
    if reason as u32 == field!(reason_netfilter) && Skb::is_inbound::<Direct>(context.arg(0)) {
        // What is known of its verdict is taken away by the next packet at its address that gets one: most of what is freed comes here.
        count(Counter::NotEgress);
        return 0;
    }
    let location: u64 = context.arg(1);
    let cause = drop_cause(reason as u32, location);
    if cause != 0 {
        look_at::<Direct>(&context, context.arg(0), location, reason as u32, cause);
    }
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn rdrop_kfree_skb(context: RawTracePointContext) -> i32 {
    let reason: u64 = match field!(reason_arg) {
        2 => context.arg(2),
        _ => u64::from(NOT_NAMED),
    };
    let location: u64 = context.arg(1);
    let cause = drop_cause(reason as u32, location);
    if cause != 0 {
        look_at::<Probe>(&context, context.arg(0), location, reason as u32, cause);
    }
    0
}

/// Looks at packets that interrupt a run of the program above, which the kernel then does not run: what a timer sends again, and what
/// is forwarded, on a CPU on which much is dropped.
///
/// It is there always: a tracepoint with several programs calls them by way of a list, and the stack below a drop is always as deep.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn inner_kfree_skb(context: RawTracePointContext) -> i32 {
    let address: u64 = context.arg(0);
    if !scratch::enter_inner(address) {
        return 0;
    }
    count(Counter::Inner);
    let reason: u64 = match field!(reason_arg) {
        2 => context.arg(2),
        _ => u64::from(NOT_NAMED),
    };
    let location: u64 = context.arg(1);
    let cause = drop_cause(reason as u32, location);
    if cause != 0 {
        dropped::<Probe>(&context, address, location, reason as u32, cause);
    }
    scratch::leave();
    0
}

#[inline(always)]
fn look_at<R: Reader>(context: &impl EbpfContext, address: u64, location: u64, reason: u32, cause: u64) {
    if !scratch::enter(address) {
        count(Counter::Seen);
        count(Counter::MapFull);
        verdict::forget(address);
        return;
    }
    dropped::<R>(context, address, location, reason, cause);
    scratch::leave();
}

/// What stands for the reason on a kernel that gives none.
const NOT_NAMED: u32 = 0;

/// Whether a packet that is freed for this reason, or there, is one to look at: a [`Cause`], or 0.
///
/// A function of its own to the verifier too: whatever the cause, what follows is walked once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_cause(reason: u32, location: u64) -> u64 {
    let cause = if reason == field!(reason_netfilter) || freed_by_netfilter(location) {
        Cause::Netfilter
    } else if reason == field!(reason_cgroup_egress) {
        Cause::Cgroup
    } else if reason == field!(reason_tc_egress) || reason == field!(reason_tc_ingress) {
        Cause::Tc
    } else if reason == field!(reason_qdisc_drop)
        || reason == field!(reason_qdisc_overlimit)
        || reason == field!(reason_qdisc_congested)
    {
        Cause::Queue
    } else if reason == field!(reason_neigh_failed)
        || (reason == NOT_NAMED || reason == field!(reason_not_specified)) && is_unanswered(location)
    {
        Cause::Neighbour
    } else if (reason == NOT_NAMED || reason == field!(reason_not_specified)) && rule::queued(location).is_some() {
        Cause::Nfqueue
    } else {
        return 0;
    };
    cause as u64
}

/// Freed where a neighbour is given up. Most kernels give no reason there.
#[inline(always)]
fn is_unanswered(location: u64) -> bool {
    let is_in = |start: u64, bytes: u32| start != 0 && location.wrapping_sub(start) < u64::from(bytes);
    is_in(address(field!(neigh_invalidate_low), field!(neigh_invalidate_high)), field!(neigh_invalidate_bytes))
        || is_in(address(field!(arp_error_low), field!(arp_error_high)), field!(arp_error_bytes))
        || is_in(address(field!(ndisc_error_low), field!(ndisc_error_high)), field!(ndisc_error_bytes))
}

/// `nf_hook_slow` frees what a rule or a policy drops, and nothing else. Never true where the reason tells.
#[inline(always)]
fn freed_by_netfilter(location: u64) -> bool {
    let start = address(field!(netfilter_low), field!(netfilter_high));
    start != 0 && location.wrapping_sub(start) < u64::from(field!(netfilter_bytes))
}

/// The packet is no egress.
#[inline(always)]
fn is_none(address: u64) {
    count(Counter::NotEgress);
    verdict::forget(address);
}

#[inline(always)]
fn dropped<R: Reader>(context: &impl EbpfContext, address: u64, location: u64, reason: u32, cause: u64) {
    if cause == Cause::Neighbour as u64 && !neighbours::are_stopped() {
        return;
    }
    if Skb::is_inbound::<R>(address) {
        count(Counter::NotEgress);
        return;
    }
    let skb = Skb::read::<R>(address);
    let packed = skb.direction::<R>();
    let (direction, from) = ((packed & DIRECTION_BITS) as u32, packed & !DIRECTION_BITS);
    // Whoever waits for a neighbour to answer somebody with has not begun the connection.
    let is_answer = direction == Direction::Answer as u32;
    if direction == 0 || cause == Cause::Neighbour as u64 && is_answer {
        is_none(address);
        return;
    }
    let Some(scratch) = scratch::packet() else { return };
    // SAFETY: the scratch space is this CPU's, and nobody else's until `leave`.
    unsafe {
        scratch::begin(scratch);
        put!(scratch.record.time_ns, boot_ns());
        put!(scratch.record.location, location);
        put!(scratch.arguments, context.as_ptr() as u64);
        put!(scratch.skb, address);
        put!(scratch.record.length, skb.length::<R>());
        put!(scratch.record.key.reason, reason);
        put!(scratch.record.key.cause, cause as u8);
        put!(scratch.record.key.direction, direction as u8);
        if from != 0 {
            drop::came_from(from);
        }
        let route = skb.route_device();
        put!(scratch.record.key.place, skb.place::<R>(direction, route));
        let nfct = skb.connection::<R>();
        let (bits, leaves_by) = skb.answer::<R>(direction, nfct);
        let elsewhere: u8 = get!(scratch.record.key.answer);
        put!(scratch.record.key.answer, bits | elsewhere);
        put!(scratch.record.arrived_by, leaves_by);
        let ethertype = skb.ethertype::<R>();
        put!(scratch.record.key.ethertype, ethertype);
        // Until the protocol has begun with an answer, its socket is the one that it was sent from, where that is on this kernel.
        let sk = skb.sk & u64::from(bits / answer::UNROUTED & 1).wrapping_sub(1);
        if sk != 0 {
            sock::describe::<R>(sk, scratch);
        }
        // The namespace whose rules decided: the device's, which is the socket's own unless another one forwards for it, or a
        // tunnel was moved out of the namespace that its packets go through.
        // What is for this host leaves by no device; without a branch, behind which the verifier would walk everything twice.
        let leaves = u64::from(bits & answer::LOCAL).wrapping_sub(1);
        let device = skb.out_device::<R>(route & leaves);
        drop::interface(scratch, device);
        drop::decided_by(scratch, device, direction);
        if own::is_own(get!(scratch.record.key.netns)) {
            return;
        }
        let (start, bytes) = skb.linear::<R>(scratch);
        // For whoever takes the packet: what is kept on the stack meanwhile is too much for it.
        put!(scratch.start, start);
        put!(scratch.bytes, bytes);
        drop::headers(start, bytes, ethertype, nfct);
        drop::finish();
        rule::identify();
        neighbours::note(skb.dst, ethertype);
        if get!(scratch.record.key.flags) & flag::UNREADABLE != 0 {
            let location: u64 = get!(scratch.record.location);
            crate::debug!(context, "headers of a packet freed at {:x} are unreadable", location);
        }
        // Whether it is egress at all is not known of a packet without a route, and whose connection it is neither of an answer that is
        // forwarded: user space tells, and then filters.
        if is_proof(get!(scratch.record.key.netns)) {
            rule::prove();
        } else {
            count(Counter::Seen);
            if direction == Direction::Unrouted as u32 || is_answer || filter::passes() {
                tally(scratch);
            } else {
                count(Counter::Filtered);
            }
        }
    }
}

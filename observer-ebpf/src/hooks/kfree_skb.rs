//! `trace_kfree_skb(skb, location [, reason [, rx_sk]])`: a packet is freed without having been delivered.
//!
//! Three layouts: without a reason before 5.17, with it, and with the receiving socket since 6.11. The position of the
//! reason comes from the kernel's BTF. Runs in any context, most often in the sender's, for retransmits in a timer's.
//!
//! Filtered by reason, then by direction, before anything else is read: freed packets are common, drops are not.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::debug;
use observer_ebpf::abi::{Cause, Counter, Direction, DropRecord, Owner, TUPLE_BYTES, flag};

use crate::kernel::{
    counters::count,
    emit::emit,
    layout::field,
    owner,
    read::{Direct, Probe, Reader},
    skb::Skb,
    sock, task,
    time::boot_ns,
};

#[btf_tracepoint(function = "kfree_skb")]
pub fn drop_kfree_skb(context: BtfTracePointContext) -> i32 {
    // One constant position in each arm: the verifier takes no computed offset into the arguments.
    let reason: u64 = match field!(reason_arg) {
        2 => context.arg(2),
        _ => return 0,
    };
    if let Some(cause) = cause(reason as u32) {
        dropped::<Direct>(&context, context.arg(0), context.arg(1), reason as u32, cause);
    }
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn rdrop_kfree_skb(context: RawTracePointContext) -> i32 {
    let reason: u64 = match field!(reason_arg) {
        2 => context.arg(2),
        _ => return 0,
    };
    if let Some(cause) = cause(reason as u32) {
        dropped::<Probe>(&context, context.arg(0), context.arg(1), reason as u32, cause);
    }
    0
}

#[inline(always)]
fn cause(reason: u32) -> Option<Cause> {
    if reason == field!(reason_netfilter) {
        Some(Cause::Netfilter)
    } else if reason == field!(reason_cgroup_egress) {
        Some(Cause::Cgroup)
    } else if reason == field!(reason_tc_egress) || reason == field!(reason_tc_ingress) {
        Some(Cause::Tc)
    } else if reason == field!(reason_qdisc_drop)
        || reason == field!(reason_qdisc_overlimit)
        || reason == field!(reason_qdisc_congested)
    {
        Some(Cause::Queue)
    } else {
        None
    }
}

#[inline(always)]
fn dropped<R: Reader>(context: &impl EbpfContext, address: u64, location: u64, reason: u32, cause: Cause) {
    let skb = Skb::read::<R>(address);
    let Some((direction, from)) = skb.direction::<R>() else {
        count(Counter::NotEgress);
        return;
    };
    count(Counter::Seen);
    let time_ns = boot_ns();
    let socket = sock::facts::<R>(skb.sk);
    let device = skb.out_device::<R>();
    // The namespace whose rules decided: the socket's own, unless another one forwards for it.
    let net = if socket.net != 0 && direction == Direction::Local {
        socket.net
    } else {
        Probe::field(device, field!(dev_net)).unwrap_or(0)
    };
    emit(|record: *mut DropRecord| {
        // SAFETY: the ring's entry is writable and large enough; every field of it is written here, `packet` up to
        // `captured`.
        unsafe {
            let captured = skb.capture::<R>(&raw mut (*record).packet);
            let mut flags = socket.flags;
            if captured == 0 {
                flags |= flag::UNREADABLE;
                debug!(context, "headers of a dropped packet at {:x} are unreadable", address);
            }
            (*record).time_ns = time_ns;
            (*record).cookie = socket.cookie;
            (*record).inode = socket.inode;
            (*record).cgroup = socket.cgroup;
            (*record).location = location;
            let current_pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            (*record).current_pid = current_pid;
            (*record).owner = match owner::get(socket.cookie) {
                Some(owner) => *owner,
                None => Owner::default(),
            };
            // Somebody else may be inside a call on this socket: a look at what that process has open will tell.
            let in_call = flags & (flag::LOCKED | flag::DATAGRAM) != 0 && flags & flag::KERNEL == 0;
            if in_call
                && current_pid != 0
                && current_pid != (*record).owner.task.pid
                && task::holds(sock::socket(skb.sk))
            {
                flags |= flag::HELD;
            }
            (*record).netns = Probe::field(net, field!(net_inum)).unwrap_or(0);
            (*record).ifindex = Probe::field(device, field!(dev_ifindex)).unwrap_or(0);
            (*record).reason = reason;
            (*record).length = skb.length::<R>();
            (*record).uid = socket.uid;
            (*record).ethertype = skb.ethertype::<R>();
            (*record).captured = captured;
            (*record).cause = cause as u8;
            (*record).place = skb.place::<R>(direction);
            (*record).state = socket.state;
            (*record).flags = flags;
            (*record).direction = direction as u8;
            (*record).origin_netns = if from == 0 { 0 } else { Probe::field(from, field!(net_inum)).unwrap_or(0) };
            (*record).reserved = [0; 2];
            match skb.original::<R>(&raw mut (*record).original) {
                Some(info) => (*record).conntrack_info = info,
                None => (*record).original = [0; TUPLE_BYTES],
            }
            (*record).interface = Probe::field(device, field!(dev_name)).unwrap_or_default();
        }
    });
}

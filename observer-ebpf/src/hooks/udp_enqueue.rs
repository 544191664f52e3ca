//! `__udp_enqueue_schedule_skb(sk, skb)`: a datagram for a socket has come in. Run for every one of them: attached only while
//! datagrams are being blocked.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use crate::kernel::awaited;

#[kprobe]
pub fn udp_answered(context: ProbeContext) -> u32 {
    awaited::answered(context.arg(0).unwrap_or(0), context.arg(1).unwrap_or(0));
    0
}

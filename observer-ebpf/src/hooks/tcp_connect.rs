//! `tcp_connect(sk)`: a connection begins; the caller is current, addresses and source port are chosen. Where the unified
//! hierarchy takes no program.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use observer_ebpf::logic::packet::protocol;

use crate::kernel::{
    flow,
    layout::field,
    read::{Probe, Reader},
};

#[kprobe]
pub fn flow_connect(context: ProbeContext) -> u32 {
    let sk: u64 = context.arg(0).unwrap_or(0);
    flow::begin(Probe::field(sk, field!(sk_cookie)).unwrap_or(0), |flow| {
        flow::addresses::<Probe>(flow, sk);
        flow.protocol = protocol::TCP;
    });
    0
}

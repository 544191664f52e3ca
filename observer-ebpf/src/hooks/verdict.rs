//! `nft_immediate_eval(expr, regs, pkt)` and the other functions that give a rule's verdict, and their return: all have the
//! same arguments. Run for every packet that such a rule is evaluated for, passing ones too: attached only while something
//! is being blocked.

use aya_ebpf::{
    EbpfContext,
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use crate::kernel::verdict;

#[kprobe]
pub fn verdict_begin(context: ProbeContext) -> u32 {
    verdict::begin(context.as_ptr() as u64, context.arg(1).unwrap_or(0), context.arg(2).unwrap_or(0));
    0
}

#[kretprobe]
pub fn verdict_end(context: RetProbeContext) -> u32 {
    verdict::end(context.as_ptr() as u64);
    0
}

//! What was learnt of this kernel about rules, and the packets of known rules from which it is learnt.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_probe_read_kernel as probe_read_kernel, macros::btf_map};
use observer_ebpf::abi::{MAX_PROOFS, RuleConfig, RuleProof};

#[btf_map]
pub(super) static RULES: Array<RuleConfig, 1> = Array::new();
#[btf_map]
pub(super) static PROOFS: Array<RuleProof, { MAX_PROOFS + 1 }> = Array::new();

/// Whether a namespace's packets are a proof's.
#[inline(always)]
pub fn is_proof(netns: u32) -> bool {
    netns != 0 && RULES.get(0).is_some_and(|config| config.proof_netns == u64::from(netns))
}

/// Reads one word of kernel memory; 0 where there is none.
#[inline(always)]
pub(super) fn word(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address, and writes zeros for one that cannot be read.
    unsafe { probe_read_kernel((&raw mut value).cast(), size_of::<u64>() as u32, address as *const _) };
    value
}

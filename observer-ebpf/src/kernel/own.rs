//! Network namespaces of observer's own, in which packets are replayed: nothing of them is seen.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use observer_ebpf::abi::MAX_OWN;

/// Inode numbers. Written by the helper process before it sends anything there.
#[btf_map]
static OWN: HashMap<u32, u32, { MAX_OWN }> = HashMap::new();

/// Whether a namespace is one of them.
#[inline(always)]
pub fn is_own(netns: u32) -> bool {
    OWN.get_ptr(&netns).is_some()
}

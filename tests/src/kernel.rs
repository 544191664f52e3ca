//! What the running kernel can name, as scenarios must know it: from its BTF, not from the program under test.

use std::sync::OnceLock;

use serde_json::{Value, json};

/// Whether the kernel's types have an enumerator, struct or function of this name.
pub fn knows(name: &str) -> bool {
    static TYPES: OnceLock<Vec<u8>> = OnceLock::new();
    let types = TYPES.get_or_init(|| std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default());
    let needle = [b"\0", name.as_bytes(), b"\0"].concat();
    memchr::memmem::find(types, &needle).is_some()
}

/// Whether probes may use maps whose room is made as it is needed, without a warning of the kernel's.
pub fn probes_may_grow_maps() -> bool {
    knows("bpf_mem_alloc_init")
}

/// Whether the kernel's version is at least this one: for what its types do not tell.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Whether the kernel names drops for this reason.
pub fn names(reason: &str) -> bool {
    knows(&format!("SKB_DROP_REASON_{reason}"))
}

/// What an event's `egress.drop_reason` must be.
pub fn reason(reason: &str) -> Value {
    if names(reason) { json!(reason) } else { Value::Null }
}

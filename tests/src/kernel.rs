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

/// Whether the kernel names drops for this reason.
pub fn names(reason: &str) -> bool {
    knows(&format!("SKB_DROP_REASON_{reason}"))
}

/// What an event's `egress.drop_reason` must be.
pub fn reason(reason: &str) -> Value {
    if names(reason) { json!(reason) } else { Value::Null }
}

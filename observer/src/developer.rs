//! Environment variables for developers, `OBSERVER_…`. They are ignored where whoever sets them may be somebody else than whoever
//! runs observer: in a program with more privileges than its caller, and in a service.

/// The value of such a variable.
pub fn variable(name: &str) -> Option<String> {
    debug_assert!(name.starts_with("OBSERVER_"), "only those are for developers");
    let value = std::env::var(name).ok()?;
    if is_privileged_or_service() {
        log::info!(
            "{name} is ignored: it is for developers, and this is a service or a program with more privileges than its caller"
        );
        return None;
    }
    Some(value)
}

fn is_privileged_or_service() -> bool {
    // systemd sets it for all processes of a unit.
    crate::sys::has_more_privileges_than_its_caller() || std::env::var_os("INVOCATION_ID").is_some()
}

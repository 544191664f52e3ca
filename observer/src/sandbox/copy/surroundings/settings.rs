//! What the kernel is set to, below `/proc/sys/net`.

use std::fs;

use anyhow::{Context, Result};

/// Settings of the kernel below `/proc/sys/net`, of each address family as a whole.
pub(super) const SETTINGS: [&str; 15] = [
    "ipv4/ip_forward",
    "ipv4/ip_nonlocal_bind",
    "ipv6/ip_nonlocal_bind",
    "ipv4/ip_local_port_range",
    "ipv4/ip_default_ttl",
    "ipv4/ip_no_pmtu_disc",
    "ipv4/tcp_timestamps",
    "ipv4/tcp_sack",
    "ipv4/tcp_window_scaling",
    "ipv4/tcp_ecn",
    "ipv4/fib_multipath_hash_policy",
    "ipv6/fib_multipath_hash_policy",
    "ipv4/fib_multipath_use_neigh",
    "ipv4/fib_multipath_hash_seed",
    "netfilter/nf_conntrack_tcp_loose",
];
/// The same of interfaces.
pub(super) const SETTINGS_OF_LINKS: [(&str, &str); 8] = [
    ("ipv4", "forwarding"),
    ("ipv4", "rp_filter"),
    ("ipv4", "accept_local"),
    ("ipv4", "route_localnet"),
    ("ipv4", "src_valid_mark"),
    ("ipv6", "disable_ipv6"),
    ("ipv6", "forwarding"),
    ("ipv6", "hop_limit"),
];

/// A setting in the namespace of the calling thread; `None` where the kernel does not have it.
pub(in crate::sandbox::copy) fn setting(place: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/net/{place}")).ok()?.trim().to_owned())
}

/// Sets it, where it differs.
pub(in crate::sandbox::copy) fn set(place: &str, value: &str) -> Result<()> {
    if setting(place).is_some_and(|now| now != value) {
        fs::write(format!("/proc/sys/net/{place}"), value)
            .with_context(|| format!("cannot set {place} in the copy"))?;
    }
    Ok(())
}

//! What a profile's page says of iptables.

use crate::firewall::front_end::{Page, Port};

pub(super) const PAGE: Page = Page {
    name: "iptables",
    ground: "For the chain `OUTPUT` of both families. IPv6 has rules of its own.",
    allow,
    undo,
    lasts: "They last until the next start: `sudo netfilter-persistent save` keeps them where that is installed.",
    undone: None,
};

fn allow((port, transport): Port) -> Vec<String> {
    both(&format!("-I OUTPUT -p {transport} --dport {port} -j ACCEPT"))
}

fn undo((port, transport): Port) -> Vec<String> {
    both(&format!("-D OUTPUT -p {transport} --dport {port} -j ACCEPT"))
}

/// For both families.
fn both(rule: &str) -> Vec<String> {
    ["iptables", "ip6tables"].map(|program| format!("{program} {rule}")).to_vec()
}

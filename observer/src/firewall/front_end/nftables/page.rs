//! What a profile's page says of nftables: a table of the administrator's own.

use crate::firewall::front_end::{Page, Port};

pub(super) const PAGE: Page = Page {
    name: "nft",
    ground: "For a table `inet filter` with a chain `output`, as Debian's `/etc/nftables.conf` has it. An accept counts in its own \
             chain alone: where another one drops, `observer check` names it.",
    allow,
    undo,
    lasts: "They last until the firewall reloads or the host reboots: write them into `/etc/nftables.conf` too, in front of what drops.",
    undone: None,
};

fn allow((port, transport): Port) -> Vec<String> {
    vec![format!("nft insert rule inet filter output {transport} dport {port} accept")]
}

fn undo((port, transport): Port) -> Vec<String> {
    vec![format!(
        "nft delete rule inet filter output handle $(nft -a list chain inet filter output | \
         sed -n 's/.*{transport} dport {port} accept # handle //p')"
    )]
}

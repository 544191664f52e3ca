//! What a profile's page says of firewalld: a policy for what the host sends.

use crate::firewall::front_end::{Page, Port};

pub(super) const PAGE: Page = Page {
    name: "firewalld",
    ground: "Zones do not filter what a host sends: a policy from `HOST` to `ANY` does. `sudo firewall-cmd --list-all-policies` \
             names it; here it is `hostout`. A port that is added helps where the policy's target stops it; before a rich rule \
             that rejects, only a rich rule with a negative priority does, which `observer check` names.",
    allow,
    undo,
    lasts: "Both are changed, what is in force and what is kept: no reload, which would lose what is not kept.",
    undone: None,
};

fn allow((port, transport): Port) -> Vec<String> {
    both(&format!("--policy hostout --add-port {port}/{transport}"))
}

fn undo((port, transport): Port) -> Vec<String> {
    both(&format!("--policy hostout --remove-port {port}/{transport}"))
}

/// In force, and kept.
fn both(option: &str) -> Vec<String> {
    ["", "--permanent "].map(|kept| format!("firewall-cmd {kept}{option}")).to_vec()
}

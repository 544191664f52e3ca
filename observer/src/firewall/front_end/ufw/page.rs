//! What a profile's page says of ufw.

use crate::firewall::front_end::{Page, Port};

pub(super) const PAGE: Page = Page {
    name: "ufw",
    ground: "For a host on which `sudo ufw status verbose` says `deny (outgoing)`, or has a rule for one of these ports alone.",
    allow,
    undo,
    lasts: "ufw keeps them. A rule that denies one of these ports alone is changed where it stands; a wider one in front still \
            counts: `sudo ufw status numbered`, then `sudo ufw insert N allow out 443/tcp`. `ufw insert 1 allow out 443/tcp` does \
            nothing, without saying so, where `deny out 443/tcp` exists.",
    undone: Some("A rule that was changed in place comes back by its own words, `sudo ufw deny out 443/tcp`."),
};

fn allow((port, transport): Port) -> Vec<String> {
    vec![format!("ufw allow out {port}/{transport}")]
}

fn undo((port, transport): Port) -> Vec<String> {
    vec![format!("ufw delete allow out {port}/{transport}")]
}

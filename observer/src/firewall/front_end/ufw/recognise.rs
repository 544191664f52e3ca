//! ufw is recognised by its chains, or by its settings where it has none.

use super::{NAME, files::SETTINGS};
use crate::firewall::front_end::{Found, Seen};

pub(super) fn recognise(seen: &Seen<'_>) -> Option<Found> {
    if let Some(chain) = seen.chain("ufw-") {
        return Some(Found::active(NAME, format!("chain {}", chain.name)));
    }
    (seen.file)(SETTINGS).is_some_and(|text| is_enabled(&text)).then(|| Found {
        name: NAME.to_owned(),
        evidence: format!("enabled in {SETTINGS}, but none of its chains is there"),
        active: false,
    })
}

fn is_enabled(text: &str) -> bool {
    text.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ufw_configuration() {
        assert!(is_enabled("# x\nENABLED=yes\n"));
        assert!(!is_enabled("ENABLED=no\n"));
    }
}

//! Tailscale.

use super::FrontEnd;

pub(super) struct Tailscale;

impl FrontEnd for Tailscale {
    fn name(&self) -> &'static str {
        "tailscale"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["ts-"]
    }

    fn advice(&self) -> Option<&'static str> {
        Some("Tailscale made this rule: look at the exit node and the accepted routes, `tailscale status`")
    }
}

//! Tailscale.

use super::{FrontEnd, Target};
use crate::model::NamedRule;

pub(super) struct Tailscale;

impl FrontEnd for Tailscale {
    fn name(&self) -> &'static str {
        "tailscale"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["ts-"]
    }

    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        Some("Tailscale made this rule: look at the exit node and the accepted routes, `tailscale status`".to_owned())
    }
}

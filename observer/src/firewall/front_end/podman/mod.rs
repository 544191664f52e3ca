//! Podman's networks, made by netavark.

use super::{FrontEnd, Target};
use crate::model::NamedRule;

pub(super) struct Podman;

impl FrontEnd for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["NETAVARK"]
    }

    fn tables(&self) -> &'static [&'static str] {
        &["netavark"]
    }

    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        Some(
            "podman made this rule: `podman network inspect` shows the network's isolation and whether it is internal"
                .to_owned(),
        )
    }
}

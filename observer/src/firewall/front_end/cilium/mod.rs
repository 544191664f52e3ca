//! Cilium, a network of Kubernetes.

use super::{FrontEnd, Target};
use crate::model::NamedRule;

pub(super) struct Cilium;

impl FrontEnd for Cilium {
    fn name(&self) -> &'static str {
        "cilium"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["CILIUM_"]
    }

    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        Some("Cilium made this rule of a policy: `kubectl get ciliumnetworkpolicy -A`, and edit that".to_owned())
    }
}

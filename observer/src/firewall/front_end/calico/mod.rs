//! Calico, a network of Kubernetes.

use super::FrontEnd;

pub(super) struct Calico;

impl FrontEnd for Calico {
    fn name(&self) -> &'static str {
        "calico"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["cali-"]
    }

    fn advice(&self) -> Option<&'static str> {
        Some("Calico made this rule of a policy: `kubectl get networkpolicy,globalnetworkpolicy -A`, and edit that")
    }
}

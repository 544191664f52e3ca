//! Kubernetes: kube-proxy and network policies.

use super::FrontEnd;

pub(super) struct Kubernetes;

impl FrontEnd for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["KUBE-"]
    }

    fn advice(&self) -> Option<&'static str> {
        Some("a NetworkPolicy made this rule: `kubectl get networkpolicy -A`, and edit the one that selects the pod")
    }
}

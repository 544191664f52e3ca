//! Kubernetes: kube-proxy's Services, and network policies by kube-router. Both write their rules anew: what they were made of is in the
//! rules' comments and the chains' names.

use super::{FrontEnd, Target, line, plan::plain};
use crate::model::NamedRule;

/// kube-proxy's table in nftables.
const TABLE: &str = "kube-proxy";
/// Chains of kube-router: of a pod, and of a policy.
const POLICIES: [&str; 2] = ["KUBE-POD-FW-", "KUBE-NWPLCY-"];

pub(super) struct Kubernetes;

impl FrontEnd for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["KUBE-"]
    }

    fn tables(&self) -> &'static [&'static str] {
        &[TABLE]
    }

    fn statement(
        &self,
        place: &super::Place<'_>,
        _roots: &mut dyn FnMut() -> Vec<super::Root>,
    ) -> Option<super::Statement> {
        place.in_a_chain_of(self.name(), self.chain_prefixes()).or_else(|| place.in_a_table_of(self.name(), TABLE))
    }

    fn advice(&self, rule: &NamedRule, _target: &Target) -> Option<String> {
        let comment = rule.words().and_then(|words| line::comments(words).next()).unwrap_or_default();
        if POLICIES.iter().any(|prefix| rule.chain.starts_with(prefix)) {
            // kube-router: `rule to REJECT traffic destined for POD name:web-1 namespace: shop`
            let namespace = after(comment, "namespace: ").or_else(|| after(comment, "namespace:"));
            let of = namespace.map_or("-A".to_owned(), |namespace| format!("-n {namespace}"));
            return Some(format!(
                "a NetworkPolicy made this rule: `kubectl get networkpolicy {of}`, and add what is needed to the egress of the one that \
                 selects the sender, or to the ingress of the one that selects the destination"
            ));
        }
        if rule.chain == "KUBE-FIREWALL" {
            return Some(
                "the kubelet made this rule: it drops what it marked, and what is sent to 127.0.0.0/8 from outside"
                    .to_owned(),
            );
        }
        // kube-proxy: `default/web:http has no endpoints`
        let service = comment.split(' ').next().and_then(|word| word.split_once('/')).and_then(|(namespace, name)| {
            let name = name.split(':').next().unwrap_or(name);
            Some((plain(namespace)?, plain(name)?))
        });
        let is_without = comment.contains("has no");
        let is_rejecting = rule.table == TABLE && rule.chain == "reject-chain";
        Some(match service {
            Some((namespace, name)) if is_without => format!(
                "nothing is behind the Service {namespace}/{name}: `kubectl get endpointslices -n {namespace} -l \
                 kubernetes.io/service-name={name}`, and make its pods ready"
            ),
            Some((namespace, name)) => format!(
                "kube-proxy made this rule of the Service {namespace}/{name}: `kubectl describe service -n {namespace} {name}`"
            ),
            None if is_without || is_rejecting => {
                "nothing is behind the Service with this address: `kubectl get services,endpointslices -A` shows which it is".to_owned()
            }
            None => "kube-proxy made this rule, and makes it anew: `kubectl get services -A` shows of which Service it may be".to_owned(),
        })
    }
}

/// The word behind some words of a comment.
fn after<'a>(comment: &'a str, words: &str) -> Option<&'a str> {
    let rest = comment.split_once(words)?.1;
    plain(rest.split(' ').next()?)
}

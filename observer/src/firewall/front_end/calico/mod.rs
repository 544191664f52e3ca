//! Calico, a network of Kubernetes. Its agent writes its chains anew; the policy that a rule was made of is in its comment, and the
//! interface of the workload in the chain's name.

use super::{FrontEnd, Place, Root, Statement, Target, line, plan::plain};
use crate::model::NamedRule;

/// Its table in nftables.
const TABLE: &str = "calico";

pub(super) struct Calico;

impl FrontEnd for Calico {
    fn name(&self) -> &'static str {
        "calico"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["cali-"]
    }

    fn tables(&self) -> &'static [&'static str] {
        &[TABLE]
    }

    fn statement(&self, place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        place.in_a_chain_of(self.name(), self.chain_prefixes()).or_else(|| place.in_a_table_of(self.name(), TABLE))
    }

    fn advice(&self, rule: &NamedRule, _target: &Target) -> Option<String> {
        const SHOW: &str = "`kubectl get networkpolicy,globalnetworkpolicy -A`";
        let mut comments = line::comments(rule.words().unwrap_or_default());
        let policy = comments.find_map(|comment| plain(comment.split_once("Policy ")?.1.split(' ').next()?));
        if let Some(policy) = policy {
            // `default/knp.default.deny` is of Kubernetes' own kind.
            let name = policy.replace("knp.default.", "");
            return Some(format!("Calico's policy {name} made this rule: {SHOW}, and edit that one"));
        }
        let chains = rule.path.iter().chain([&rule.chain]);
        // From a workload, and to one.
        let workload = chains.into_iter().find_map(|chain| {
            let own = chain.trim_start_matches("filter-");
            let of = |prefix: &str, way| Some((plain(own.strip_prefix(prefix)?)?, way));
            of("cali-fw-", "egress").or_else(|| of("cali-tw-", "ingress"))
        });
        Some(match workload {
            Some((interface, way)) => format!(
                "no policy of the workload behind {interface} allows it: `ip route | grep {interface}` shows its address, and {SHOW} the \
                 policies; add an {way} rule to one that selects it"
            ),
            None => format!("Calico made this rule of a policy: {SHOW}, and edit that"),
        })
    }
}

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
        let comment = rule.words().and_then(line::comment).unwrap_or_default();
        let policy = comment.split_once("Policy ").and_then(|(_, rest)| plain(rest.split(' ').next()?));
        if let Some(policy) = policy {
            // `default/knp.default.deny` is of Kubernetes' own kind.
            let name = policy.replace("knp.default.", "");
            return Some(format!("Calico's policy {name} made this rule: {SHOW}, and edit that one"));
        }
        let chains = rule.path.iter().chain([&rule.chain]);
        let workload = chains.into_iter().find_map(|chain| {
            let rest = chain.split_once("fw-").or_else(|| chain.split_once("tw-"))?.1;
            plain(rest)
        });
        Some(match workload {
            Some(interface) => format!(
                "no policy of the workload behind {interface} allows it: `ip route | grep {interface}` shows its address, and {SHOW} the \
                 policies; add an egress rule to one that selects it"
            ),
            None => format!("Calico made this rule of a policy: {SHOW}, and edit that"),
        })
    }
}

//! Docker. It makes its rules by itself. In iptables it leaves a chain for the administrator's, `DOCKER-USER`; in nftables it has tables of
//! its own, which nobody else is to change.

use super::{FrontEnd, Known, Place, Plans, Root, Statement, Target, exception::Insertion, iptables};
use crate::model::NamedRule;

/// Its tables in nftables, of both families.
const TABLE: &str = "docker-bridges";

pub(super) struct Docker;

impl FrontEnd for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["DOCKER"]
    }

    fn tables(&self) -> &'static [&'static str] {
        &[TABLE]
    }

    fn statement(&self, place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        place.in_a_chain_of(self.name(), self.chain_prefixes()).or_else(|| place.in_a_table_of(self.name(), TABLE))
    }

    fn plans(&self, rule: &NamedRule, target: &Target, known: &Known) -> Plans {
        if rule.table == TABLE {
            return Err(None);
        }
        let Some(own) = Insertion::of(rule)? else { return Ok(Vec::new()) };
        // Its own chains it makes anew.
        let users = Insertion { chain: "DOCKER-USER", position: Some(1), ..own };
        Ok(iptables::exception(rule, users, target, known))
    }

    fn advice(&self, rule: &NamedRule, _target: &Target) -> Option<String> {
        (rule.table == TABLE).then(|| {
            "Docker makes this rule in a table of its own, and what it drops no rule of another table can accept: `docker network inspect` \
             shows whether the network is internal; else run dockerd with --bridge-accept-fwmark, and mark what is to pass"
                .to_owned()
        })
    }
}

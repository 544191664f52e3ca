//! Docker. It makes its rules by itself, and leaves a chain for the administrator's: `DOCKER-USER`.

use super::{FrontEnd, Known, Plans, Target, exception::Insertion, iptables};
use crate::model::NamedRule;

pub(super) struct Docker;

impl FrontEnd for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["DOCKER"]
    }

    fn plans(&self, rule: &NamedRule, target: &Target, known: &Known) -> Plans {
        let Some(own) = Insertion::of(rule)? else { return Ok(Vec::new()) };
        let users = Insertion { chain: "DOCKER-USER", position: Some(1), ..own };
        let exceptions = [users, own].map(|insertion| iptables::exception(rule, insertion, target, known));
        Ok(exceptions.into_iter().flatten().collect())
    }
}

//! fail2ban, which bans addresses.

use super::{FrontEnd, Target};
use crate::model::NamedRule;

pub(super) struct Fail2ban;

impl FrontEnd for Fail2ban {
    fn name(&self) -> &'static str {
        "fail2ban"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["f2b-"]
    }

    fn tables(&self) -> &'static [&'static str] {
        &["f2b-table"]
    }

    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        Some("a jail of fail2ban banned the address: `fail2ban-client status` shows which, `fail2ban-client set JAIL unbanip ADDRESS` lets it go".to_owned())
    }
}

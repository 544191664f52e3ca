//! wg-quick, the rule of whose manual lets nothing out beside its tunnel.

use std::sync::LazyLock;

use regex::Regex;

use super::{FrontEnd, Place, Target, words::plain};
use crate::model::NamedRule;
use crate::{firewall::files::Root, model::Statement};

const NAME: &str = "wg-quick";

/// What wg-quick's manual puts into `PostUp=`, as `iptables-save` and as `nft` write it.
static KILL_SWITCH: LazyLock<Option<[Regex; 2]>> = LazyLock::new(|| {
    Some([
        Regex::new(r"^! -o (\S+) -m mark ! --mark \S+ -m addrtype ! --dst-type LOCAL -j REJECT").ok()?,
        Regex::new(r#"^oifname != "?([^"\s]+)"? meta mark != \S+ fib daddr type != local .*\breject"#).ok()?,
    ])
});

pub(super) struct WgQuick;

impl FrontEnd for WgQuick {
    fn name(&self) -> &'static str {
        NAME
    }

    /// It has no chain of its own: a rule is recognised by its text.
    fn statement(&self, place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        let text = place.text()?;
        let interface = kill_switch(&text)?;
        let what = format!("the kill switch of wg-quick's interface {interface}, rule {}", place.named.position?);
        Some(plain(NAME, what, text))
    }

    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        Some("it lets nothing out beside the tunnel: bring that up, or take the rule from PostUp= of its file and `wg-quick down` \
             and `up` it".to_owned())
    }
}

/// The interface, where it is the rule that lets nothing out beside its tunnel.
fn kill_switch(text: &str) -> Option<&str> {
    let name = |pattern: &Regex| Some(pattern.captures(text)?.get(1)?.as_str());
    KILL_SWITCH.as_ref()?.iter().find_map(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_switch_is_told_by_its_rule() {
        for text in [
            r#"oifname != "wg0" meta mark != 0x0000ca6c fib daddr type != local counter packets 0 bytes 0 reject"#,
            "! -o wg0 -m mark ! --mark 0xca6c -m addrtype ! --dst-type LOCAL -j REJECT --reject-with icmp-port-unreachable",
        ] {
            assert_eq!(kill_switch(text), Some("wg0"), "{text}");
        }
        assert_eq!(kill_switch(r#"oifname != "wg0" reject"#), None);
        assert_eq!(kill_switch("-o wg0 -j REJECT"), None);
    }
}

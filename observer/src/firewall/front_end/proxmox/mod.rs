//! Proxmox's firewall. Its daemon writes its chains anew from files below `/etc/pve` every few seconds: a rule of iptables in them lasts
//! no longer. Reports name its rules in iptables' words.

use super::{Found, FrontEnd, Place, Root, Seen, Statement, Target, plan::plain};
use crate::model::NamedRule;

const NAME: &str = "proxmox";
/// How the chains of its daemon begin; it also has `GROUP-NAME-OUT`, and a chain each way for every guest's interface.
const CHAINS: &str = "PVEFW-";

pub(super) struct Proxmox;

impl FrontEnd for Proxmox {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recognise(&self, seen: &Seen<'_>) -> Option<Found> {
        let chain = seen.chain(CHAINS)?;
        Some(Found::active(NAME, format!("chain {}", chain.name)))
    }

    fn statement(&self, _place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        None
    }

    fn rewrites(&self, rule: &NamedRule) -> bool {
        let chains = rule.path.iter().chain([&rule.chain]);
        chains.into_iter().any(|chain| chain.starts_with(CHAINS))
    }

    fn advice(&self, rule: &NamedRule, target: &Target) -> Option<String> {
        let guest = rule.path.iter().chain([&rule.chain]).find_map(|chain| guest(chain));
        let file = match guest {
            Some(guest) => format!("/etc/pve/firewall/{guest}.fw"),
            None => "/etc/pve/local/host.fw".to_owned(),
        };
        let to: Vec<String> = target.addresses.iter().map(ToString::to_string).collect();
        Some(format!(
            "Proxmox's firewall writes its chains anew: add `OUT ACCEPT -dest {} -p {} -dport {}` below [RULES] in {file}",
            to.join(","),
            target.transport,
            target.port
        ))
    }
}

/// The guest whose interface a chain is about: `tap100i0-OUT`, `veth101i0-OUT`.
fn guest(chain: &str) -> Option<&str> {
    let of = chain.strip_suffix("-OUT")?;
    let rest = of.strip_prefix("tap").or_else(|| of.strip_prefix("veth"))?;
    let (number, _) = rest.split_once('i')?;
    plain(number).filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_in_the_names_of_their_chains() {
        assert_eq!(guest("tap100i0-OUT"), Some("100"));
        assert_eq!(guest("veth7i1-OUT"), Some("7"));
        for chain in ["PVEFW-HOST-OUT", "GROUP-web-OUT", "tapxi0-OUT", "tap100i0-IN"] {
            assert_eq!(guest(chain), None, "{chain}");
        }
    }
}

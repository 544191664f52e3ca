//! libvirt's virtual networks, by either of its back ends.

use super::{FrontEnd, Place, Root, Statement, Target, line, plan::plain};
use crate::model::NamedRule;

/// Its table in nftables, of both families.
const TABLE: &str = "libvirt_network";

pub(super) struct Libvirt;

impl FrontEnd for Libvirt {
    fn name(&self) -> &'static str {
        "libvirt"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["LIBVIRT_"]
    }

    fn tables(&self) -> &'static [&'static str] {
        &[TABLE]
    }

    fn statement(&self, place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        place.in_a_chain_of(self.name(), self.chain_prefixes()).or_else(|| place.in_a_table_of(self.name(), TABLE))
    }

    fn advice(&self, rule: &NamedRule, _target: &Target) -> Option<String> {
        let words = rule.words().unwrap_or_default();
        let bridge = ["-o", "-i", "oif", "iif", "oifname", "iifname"]
            .iter()
            .find_map(|option| plain(line::value(words, option)?.trim_matches('"')));
        let network =
            bridge.map_or("libvirt's network".to_owned(), |bridge| format!("libvirt's network behind {bridge}"));
        let what = match rule.chain.as_str() {
            "LIBVIRT_FWI" | "guest_input" => {
                "lets nobody outside begin a connection to its guests: a network of mode `route` or `open` does"
            }
            "LIBVIRT_FWO" | "guest_output" => {
                "lets out only what comes from its own addresses, and nothing where it is isolated (it has no `<forward>`)"
            }
            _ => "made this rule",
        };
        Some(format!("{network} {what}; libvirt writes its rules anew: `virsh net-list`, then `virsh net-edit` it"))
    }
}

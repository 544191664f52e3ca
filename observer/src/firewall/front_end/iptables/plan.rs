//! Commands of `iptables` for rules that it wrote, or that others wrote into its tables.

use crate::{
    firewall::front_end::{
        Known, Plan, Plans, Target,
        exception::{Insertion, both, of_family},
    },
    model::{Backend, NamedRule},
};

pub(super) fn plans(rule: &NamedRule, target: &Target, known: &Known) -> Plans {
    let insertion = Insertion::of(rule)?;
    Ok(insertion.map_or_else(Vec::new, |insertion| exception(rule, insertion, target, known)))
}

/// An exception from a rule, put where that says.
pub(in crate::firewall::front_end) fn exception(
    rule: &NamedRule,
    Insertion { table, chain, position, .. }: Insertion<'_>,
    target: &Target,
    known: &Known,
) -> Vec<Plan> {
    let v6 = rule.family == "ip6";
    let program = match (v6, known.iptables == Some(rule.backend), rule.backend) {
        (false, true, _) => "iptables",
        (true, true, _) => "ip6tables",
        (false, false, Backend::Nft) => "iptables-nft",
        (true, false, Backend::Nft) => "ip6tables-nft",
        (false, false, Backend::IptablesLegacy) => "iptables-legacy",
        (true, false, Backend::IptablesLegacy) => "ip6tables-legacy",
    };
    let of = if table == "filter" { program.to_owned() } else { format!("{program} -t {table}") };
    let new = position.map_or_else(|| format!("-A {chain}"), |position| format!("-I {chain} {position}"));
    let lines = |matches: &[String]| -> (Vec<String>, Vec<String>) {
        let all = matches.iter().rev();
        (
            all.clone().map(|matches| format!("{of} {new} {matches} -j ACCEPT")).collect(),
            all.map(|matches| format!("{of} -D {chain} {matches} -j ACCEPT")).collect(),
        )
    };
    let dport = format!("-p {} --dport {}", target.transport, target.port);
    let addresses = of_family(rule, target);
    let to: Vec<String> = addresses.iter().map(|address| format!("-d {address} {dport}")).collect();
    both(rule, target, &addresses, lines(&[dport]), lines(&to))
}

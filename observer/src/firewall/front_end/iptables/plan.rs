//! Commands of `iptables` for rules that it wrote, or that others wrote into its tables.

use super::files::FERM;
use crate::{
    firewall::front_end::{
        Known, Others, Plan, Plans, Target,
        exception::{Bound, Insertion, OPENS_NEIGHBOURS, Packets, also_bound, answers, both, needed, of_family},
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
    insertion: Insertion<'_>,
    target: &Target,
    known: &Known,
) -> Vec<Plan> {
    // Its rules have no mark, and may be somebody else's.
    let ferm = (!known.file(FERM).is_empty())
        .then(|| format!("where ferm writes these rules, it does so anew from {FERM}: what is to stay belongs there"));
    let noted = |plan: Plan| {
        let notes: Vec<String> = plan.note.into_iter().chain(ferm.clone()).collect();
        Plan { note: (!notes.is_empty()).then(|| notes.join("; ")), ..plan }
    };
    in_front(rule, insertion, target, known).into_iter().map(noted).collect()
}

/// Leaves out what only has this host's address, as by a masquerade.
fn untranslated(others: Others) -> &'static str {
    if others == Others::Translated { " -m conntrack ! --ctstate SNAT" } else { "" }
}

fn in_front(
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
    let addresses = of_family(rule, target);
    match Packets::of(rule) {
        None => return Vec::new(),
        Some(Packets::Sent) => {}
        Some(Packets::Answers) => {
            const BEGUN_HERE: &str = "-m conntrack --ctstate ESTABLISHED --ctdir REPLY";
            return also_bound(rule, target, |target, bound| {
                let own = match bound {
                    Bound::None => String::new(),
                    Bound::Host(others) => format!(" -m addrtype --dst-type LOCAL{}", untranslated(others)),
                    Bound::ComesBy(name) => format!(" -o {name}"),
                };
                let sport = format!("-p {} --sport {} {BEGUN_HERE}{own}", target.transport, target.port);
                let from: Vec<String> = addresses.iter().map(|address| format!("-s {address} {sport}")).collect();
                answers(target, &addresses, lines(&[sport]), lines(&from))
            });
        }
        Some(Packets::Neighbours) => {
            // Both ends ask, and both answer.
            let kinds = [("135", "neighbour-solicitation"), ("136", "neighbour-advertisement")]
                .map(|(number, kind)| (number, format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind}")));
            return needed(rule, OPENS_NEIGHBOURS, &kinds, lines);
        }
    }
    also_bound(rule, target, |target, bound| {
        let own = match bound {
            Bound::None => String::new(),
            Bound::Host(others) => format!(" -m addrtype --src-type LOCAL{}", untranslated(others)),
            Bound::ComesBy(name) => format!(" -i {name}"),
        };
        let dport = format!("-p {} --dport {}{own}", target.transport, target.port);
        let to: Vec<String> = addresses.iter().map(|address| format!("-d {address} {dport}")).collect();
        both(rule, target, &addresses, lines(&[dport]), lines(&to))
    })
}

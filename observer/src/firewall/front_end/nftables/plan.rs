//! Commands of `nft` for rules in tables that nobody known manages.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::{
    firewall::front_end::{
        MARK, Others, Plan, Plans, Target,
        exception::{Bound, Insertion, OPENS_NEIGHBOURS, Packets, also_bound, answers, both, needed, of_family},
    },
    model::{Lasts, NamedRule},
};

pub(super) fn plans(rule: &NamedRule, target: &Target) -> Plans {
    let Some(Insertion { table, chain, handle, .. }) = Insertion::of(rule)? else { return Ok(Vec::new()) };
    const FAMILIES: [&str; 4] = ["inet", "ip", "ip6", NETDEV];
    let Some(family) = FAMILIES.into_iter().find(|family| *family == rule.family) else { return Ok(Vec::new()) };
    let place = format!("{family} {table} {chain}");
    // A chain's policy comes behind its last rule.
    let new = match handle {
        Some(handle) => format!("nft insert rule {place} handle {handle}"),
        None => format!("nft add rule {place}"),
    };
    let lines = |matches: &[String]| -> (Vec<String>, Vec<String>) {
        matches
            .iter()
            .map(|matches| {
                let tag = tag(&place, matches);
                let line = format!("{new} {matches} accept comment {tag}");
                (line, deletion(&place, &tag))
            })
            .unzip()
    };
    let addresses = of_family(rule, target);
    match Packets::of(rule) {
        None => return Ok(Vec::new()),
        Some(Packets::Sent) => {}
        Some(Packets::Answers) => {
            // Such a table does not know connections.
            if family == NETDEV {
                return Ok(Vec::new());
            }
            return Ok(also_bound(rule, target, |target, bound| {
                let own = match bound {
                    Bound::None => String::new(),
                    Bound::Host(others) => format!("fib daddr type local {}", untranslated(others)),
                    Bound::ComesBy(name) => format!("oifname {name} "),
                };
                let sport =
                    format!("{own}{} sport {} ct state established ct direction reply", target.transport, target.port);
                let from = |address: &IpAddr| format!("{} saddr {address} {sport}", protocol(address));
                let from = lines(&addresses.iter().map(from).collect::<Vec<_>>());
                answers(target, &addresses, lines(std::slice::from_ref(&sport)), from)
            }));
        }
        Some(Packets::Neighbours) => {
            let kinds = ["nd-neighbor-solicit", "nd-neighbor-advert"].map(|kind| (kind, format!("icmpv6 type {kind}")));
            return Ok(needed(rule, OPENS_NEIGHBOURS, &kinds, lines));
        }
    }
    Ok(also_bound(rule, target, |target, bound| {
        let own = match bound {
            Bound::None => String::new(),
            // It has no routes either: only what is of this host has a socket there.
            Bound::Host(_) if family == NETDEV => "meta skuid 0-4294967294 ".to_owned(),
            Bound::Host(others) => format!("fib saddr type local {}", untranslated(others)),
            Bound::ComesBy(name) => format!("iifname {name} "),
        };
        let dport = format!("{own}{} dport {}", target.transport, target.port);
        let to = |address: &IpAddr| format!("{} daddr {address} {dport}", protocol(address));
        let destinations = lines(&addresses.iter().map(to).collect::<Vec<_>>());
        let mut plans = both(rule, target, &addresses, lines(std::slice::from_ref(&dport)), destinations);
        plans.extend(for_an_hour((family, table), (&new, &place), (target, &own), &addresses));
        plans
    }))
}

/// The family of tables at an interface.
const NETDEV: &str = "netdev";

/// Leaves out what only has this host's address, as by a masquerade.
fn untranslated(others: Others) -> &'static str {
    if others == Others::Translated { "ct status and snat == 0 " } else { "" }
}

/// A rule is deleted by its handle, which it gets when it is made.
fn deletion(place: &str, tag: &str) -> String {
    format!(
        "nft delete rule {place} handle $(nft -a list chain {place} | grep 'comment \"{tag}\" # handle' | grep -oE '[0-9]+$' | head -n 1)"
    )
}

/// Exceptions by sets whose elements end by themselves: of the addresses, or of the port where they may be others tomorrow.
fn for_an_hour(
    (family, table): (&str, &str),
    (new, place): (&str, &str),
    (target, whose): (&Target, &str),
    addresses: &[IpAddr],
) -> Option<Plan> {
    let Target { transport, port, is_by_name, .. } = target;
    let (mut commands, mut undo) = (Vec::new(), Vec::new());
    let mut add = |kind: &str, elements: &[String], before: &str, behind: &str| {
        let tag = tag(place, &format!("{kind} {} {before}{behind}", elements.join(",")));
        let elements: Vec<String> = elements.iter().map(|element| format!("{element} timeout 1h")).collect();
        let new = new.trim_start_matches("nft ");
        commands.push(format!(
            "nft 'add set {family} {table} {tag} {{ type {kind}; flags timeout; }}; \
             add element {family} {table} {tag} {{ {} }}; {new} {before} @{tag}{behind} accept comment \"{tag}\"'",
            elements.join(", ")
        ));
        undo.extend([format!("nft delete set {family} {table} {tag}"), deletion(place, &tag)]);
    };
    if *is_by_name {
        add("inet_service", &[port.to_string()], &format!("{whose}{transport} dport"), "");
    } else {
        for (kind, v6) in [("ipv4", false), ("ipv6", true)] {
            let own = addresses.iter().filter(|address| address.is_ipv6() == v6);
            let own: Vec<String> = own.map(ToString::to_string).collect();
            if !own.is_empty() {
                let before = format!("{whose}{} daddr", if v6 { "ip6" } else { "ip" });
                add(&format!("{kind}_addr"), &own, &before, &format!(" {transport} dport {port}"));
            }
        }
    }
    undo.reverse();
    let (scope, opens) = target.opens(family, addresses);
    let note = Some("the rule and its set stay, without effect, until they are deleted".to_owned());
    (!commands.is_empty()).then_some(Plan { commands, undo, scope, opens, lasts: Lasts::Hour, note })
}

fn protocol(address: &IpAddr) -> &'static str {
    if address.is_ipv6() { "ip6" } else { "ip" }
}

/// What marks a rule so that it is found again.
fn tag(place: &str, matches: &str) -> String {
    let hash = Sha256::digest(format!("{place}\0{matches}"));
    let digits: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{MARK}{digits}")
}

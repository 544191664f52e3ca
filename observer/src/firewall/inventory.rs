//! Which firewalls decide in a network namespace. Only reads, and loads no module: what is not loaded does
//! not decide.

use std::{fmt::Write, fs};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    denies,
    front_end::{self, Found, FrontEnd, IPTABLES, IPTABLES_LEGACY, NFTABLES, Seen, is_iptables},
    legacy,
    netfilter::{family, hook},
    nft::{self, Chain},
};

/// The firewalls of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// All that were found.
    pub front_ends: Vec<Found>,
    /// Where several have rules: the order in which they decide, by hook.
    pub order: Vec<String>,
    /// Base chains that can drop what comes in without connection tracking knowing it: `ip raw PREROUTING`. Not all answers
    /// are seen there. Else why that is not known.
    pub before_tracking: Result<Vec<String>, String>,
}

impl Inventory {
    /// Front ends with rules in force.
    pub fn active(&self) -> impl Iterator<Item = &Found> {
        self.front_ends.iter().filter(|front_end| front_end.active)
    }
}

/// Reads the namespace of the calling thread and the host's configuration files.
pub fn read() -> Result<Inventory> {
    let chains = if nftables_in_use() { nft::CHAINS.ask(0)? } else { Vec::new() };
    // Ending with none where they cannot be read: then nothing is known of their chains.
    let tables = legacy::tables().unwrap_or_default();
    let of_legacy: Vec<Chain> = tables.iter().filter_map(|table| Some(table.as_nft().ok()?.0)).flatten().collect();
    let found = recognise(&chains, &of_legacy, &legacy_tables(), &|path| fs::read_to_string(path).ok());
    let order = if found.iter().filter(|(_, found)| found.active).count() > 1 {
        ["output", "forward", "postrouting"]
            .into_iter()
            .filter_map(|hook| order(&chains, &of_legacy, &found, hook))
            .collect()
    } else {
        Vec::new()
    };
    let front_ends = found.into_iter().map(|(_, found)| found).collect();
    Ok(Inventory {
        front_ends,
        order,
        before_tracking: denies::before_tracking().map_err(|error| format!("{error:#}")),
    })
}

/// nftables is in this kernel, or its module is loaded. Asking for rules would load it.
pub fn nftables_in_use() -> bool {
    fs::read_to_string("/proc/modules").is_ok_and(|modules| modules.lines().any(|line| line.starts_with("nf_tables ")))
        || crate::kernel::btf::Btf::of_kernel().is_ok_and(|btf| btf.has_struct("nft_chain"))
}

/// What iptables-nft asks about is in this kernel, or loaded: asking would load it.
pub fn has_compat() -> bool {
    fs::read_to_string("/proc/modules").is_ok_and(|modules| modules.lines().any(|line| line.starts_with("nft_compat ")))
        || crate::kernel::btf::Btf::of_kernel().is_ok_and(|btf| btf.has_struct("nft_xt_match_priv"))
}

/// Names of the tables of iptables-legacy in the namespace of the calling thread.
fn legacy_tables() -> Vec<String> {
    let mut names: Vec<String> = legacy::names().into_iter().map(|(_, name)| name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Front ends that have rules there or are configured, each with how it was recognised. Pure, but for the files that `file` reads.
fn recognise(
    chains: &[Chain],
    legacy_chains: &[Chain],
    legacy_tables: &[String],
    file: &dyn Fn(&str) -> Option<String>,
) -> Vec<(&'static dyn FrontEnd, Found)> {
    let mut found: Vec<Found> = Vec::new();
    let mut all = Vec::new();
    for front_end in front_end::ALL {
        let seen = Seen { chains, legacy_chains, legacy_tables, file, found: &found };
        if let Some(one) = front_end.recognise(&seen) {
            found.push(one.clone());
            all.push((*front_end, one));
        }
    }
    all
}

/// Who decides at a hook, one after the other, where that is more than one chain: `output: ufw (ip, ip6 filter OUTPUT),
/// then nftables (inet t o)`.
fn order(
    chains: &[Chain],
    of_legacy: &[Chain],
    found: &[(&'static dyn FrontEnd, Found)],
    hook: &str,
) -> Option<String> {
    // Whoever is known by chains that iptables' own lead to.
    let by_iptables: Vec<&str> = found
        .iter()
        .filter(|(front_end, found)| found.active && front_end.fills_iptables())
        .map(|(_, found)| found.name.as_str())
        .collect();
    let owner = |table: &str| {
        let own = |front_end: &&&dyn FrontEnd| !front_end.fills_iptables() && front_end.tables().contains(&table);
        front_end::ALL.iter().find(own).map(|front_end| front_end.name().to_owned())
    };
    let is_here = |chain: &&Chain| chain.hook.and_then(|number| hook::name(chain.family, number)) == Some(hook);
    // Of equal priority the one that came later is asked first; they are listed as their tables came. When those of
    // iptables-legacy came, is not known.
    let nft = chains.iter().rev().filter(is_here).map(|chain| (chain, false));
    let mut here: Vec<(&Chain, bool)> =
        nft.chain(of_legacy.iter().filter(is_here).map(|chain| (chain, true))).collect();
    here.sort_by_key(|(chain, _)| chain.priority);
    let mut steps: Vec<(i32, String, String, Vec<&str>)> = Vec::new();
    for (chain, is_legacy) in here {
        let owner = owner(&chain.table).unwrap_or_else(|| match (is_legacy, is_iptables(chain)) {
            (true, _) => IPTABLES_LEGACY.to_owned(),
            (false, true) if by_iptables.is_empty() => IPTABLES.to_owned(),
            (false, true) => by_iptables.join(" and "),
            (false, false) => NFTABLES.to_owned(),
        });
        let place = format!("{} {}", chain.table, chain.name);
        let (priority, family) = (chain.priority.unwrap_or(0), family::name(chain.family));
        match steps.last_mut() {
            Some((of, by, at, families)) if (*of, &*by, &*at) == (priority, &owner, &place) => families.push(family),
            _ => steps.push((priority, owner, place, vec![family])),
        }
    }
    if steps.len() < 2 {
        return None;
    }
    let mut told = format!("{hook}: ");
    let mut before = None;
    for (priority, owner, place, mut families) in steps {
        let is_legacy = owner == IPTABLES_LEGACY;
        told.push_str(match before {
            None => "",
            // When which of them came, is not known.
            Some((of, was_legacy)) if of == priority && was_legacy != is_legacy => ", before or after that ",
            Some(_) => ", then ",
        });
        families.sort_unstable();
        let _ = write!(told, "{owner} ({} {place}, priority {priority})", families.join(", "));
        before = Some((priority, is_legacy));
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, base: bool) -> Chain {
        Chain {
            family: 2,
            table: table.to_owned(),
            name: name.to_owned(),
            handle: 1,
            hook: base.then_some(3),
            priority: base.then_some(0),
            policy: None,
        }
    }

    fn nothing(_: &str) -> Option<String> {
        None
    }

    /// ufw is configured.
    fn enabled(path: &str) -> Option<String> {
        (path == "/etc/ufw/ufw.conf").then(|| "ENABLED=yes\n".to_owned())
    }

    fn names<'a>(found: &'a [(&'static dyn FrontEnd, Found)]) -> Vec<(&'a str, bool)> {
        found.iter().map(|(_, found)| (found.name.as_str(), found.active)).collect()
    }

    #[test]
    fn front_ends_are_known_by_their_chains() {
        let chains = [
            chain("filter", "OUTPUT", true),
            chain("filter", "ufw-user-output", false),
            chain("filter", "DOCKER-USER", false),
        ];
        assert_eq!(names(&recognise(&chains, &[], &[], &enabled)), [("ufw", true), ("docker", true)]);
        assert_eq!(
            names(&recognise(&[chain("firewalld", "filter_OUTPUT", true)], &[], &[], &nothing)),
            [("firewalld", true)]
        );
        assert_eq!(names(&recognise(&[chain("t", "out", true)], &[], &[], &nothing)), [("nftables", true)]);
        assert_eq!(names(&recognise(&[chain("filter", "OUTPUT", true)], &[], &[], &nothing)), [("iptables-nft", true)]);
        let native = Chain { family: 1, ..chain("filter", "output", true) };
        assert_eq!(
            names(&recognise(&[native], &[], &[], &nothing)),
            [("nftables", true)],
            "Debian's stock nftables.conf"
        );
        assert_eq!(names(&recognise(&[], &[], &["filter".to_owned()], &nothing)), [("iptables-legacy", true)]);
        assert_eq!(names(&recognise(&[], &[], &[], &enabled)), [("ufw", false)]);
        assert!(recognise(&[], &[], &[], &nothing).is_empty());
        let by_legacy = [chain("filter", "OUTPUT", true), chain("filter", "ufw-user-output", false)];
        let tables = ["filter".to_owned()];
        assert_eq!(names(&recognise(&[], &by_legacy, &tables, &enabled)), [("ufw", true), ("iptables-legacy", true)]);
    }

    #[test]
    fn several_decide_by_priority() {
        let chains = [
            Chain { family: family::INET, priority: Some(10), ..chain("firewalld", "filter_OUTPUT", true) },
            chain("filter", "OUTPUT", true),
            Chain { family: family::IPV6, ..chain("filter", "OUTPUT", true) },
            chain("filter", "ufw-user-output", false),
        ];
        let found = recognise(&chains, &[], &[], &enabled);
        assert_eq!(
            order(&chains, &[], &found, "output").as_deref(),
            Some(
                "output: ufw (ip, ip6 filter OUTPUT, priority 0), then firewalld (inet firewalld filter_OUTPUT, priority 10)"
            )
        );
        assert_eq!(order(&chains[..1], &[], &found, "output"), None, "one decides alone");
        let legacy = [chain("filter", "OUTPUT", true)];
        let told = order(&chains[1..2], &legacy, &found, "output").unwrap();
        assert!(
            told.contains("ufw (ip filter OUTPUT, priority 0), before or after that iptables-legacy (ip filter"),
            "{told}"
        );
        assert_eq!(order(&chains, &[], &found, "forward"), None);
    }
}

//! /proc/kallsyms: where the kernel's functions are. It shows addresses to those who may see them.

use std::{collections::HashMap, fs};

use observer_ebpf::abi::{Extent, HookFunction, HookKind};
use serde::{Deserialize, Serialize};

const PATH: &str = "/proc/kallsyms";

/// Functions that nftables puts on hooks, one for each kind of chain.
const NFTABLES: [&str; 10] = [
    "nft_do_chain_ipv4",
    "nft_do_chain_ipv6",
    "nft_do_chain_inet",
    "nft_do_chain_inet_ingress",
    "nft_do_chain_arp",
    "nft_do_chain_bridge",
    "nft_do_chain_netdev",
    "nf_route_table_hook4",
    "nf_route_table_hook6",
    "nf_route_table_inet",
];
/// The function that runs BPF netfilter programs.
const PROGRAM: &str = "nf_hook_run_bpf";
/// Functions that walk a table of iptables-legacy. Before Linux 5.16 others are on the hooks, which call these.
const XTABLES: [&str; 2] = ["ipt_do_table", "ip6t_do_table"];
/// Functions that free what a queue's program has refused, in the core (until about 6.10) and in the queue's module.
const REFUSED: [&str; 2] = ["nf_reinject", "nfqnl_reinject"];
/// The function that frees what no program takes from a queue.
const UNTAKEN: &str = "nf_queue";

/// Modules that have some of these functions, or of those that are on hooks.
pub const MODULES: [&str; 8] =
    ["nf_tables", "nfnetlink_queue", "ip_tables", "ip6_tables", "arp_tables", "nf_conntrack", "nf_nat", "ip_vs"];
/// How functions that are on hooks begin, as far as is known: their names are kept, because looking one up takes long.
const ON_HOOKS: [&str; 16] = [
    "nf_hook_",
    "nf_route_table_",
    "nf_confirm",
    "nf_nat_",
    "nf_conntrack_in",
    "nft_do_chain",
    "ipv4_con",
    "ipv6_con",
    "ipv6_defrag",
    "ip_vs_",
    "selinux_ip",
    "smack_ip",
    "ipt_do_",
    "ip6t_do_",
    "iptable_",
    "ip6table_",
];

/// Functions by their addresses: name, and module.
pub type Names = HashMap<u64, (String, Option<String>)>;

/// Functions of this kernel that the eBPF side must know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Functions {
    /// On hooks: address, and the number of a [`HookKind`].
    hooks: Vec<(u64, u64)>,
    /// Address and bytes.
    refused: (u64, u64),
    /// Address and bytes.
    untaken: (u64, u64),
    /// Offset of `xt_table.name`, where the module is loaded.
    pub xtable_name: Option<u32>,
}

impl Functions {
    /// Reads them, and the names of what is on hooks; empty where addresses are not shown.
    pub fn read() -> (Self, Names) {
        let text = fs::read_to_string(PATH).unwrap_or_default();
        (Self::find(&text), on_hooks(&text))
    }

    fn find(text: &str) -> Self {
        let hooks = NFTABLES
            .into_iter()
            .map(|name| (name, HookKind::Nftables))
            .chain([(PROGRAM, HookKind::Program)])
            .chain(XTABLES.into_iter().map(|name| (name, HookKind::Xtables)));
        let kinds: HashMap<&str, HookKind> = hooks.collect();
        let names: Vec<&str> = kinds.keys().copied().chain(REFUSED).chain([UNTAKEN]).collect();
        let found = extents(text, &names);
        let extent = |names: &[&str]| names.iter().find_map(|name| found.get(name)).copied().unwrap_or_default();
        Self {
            hooks: kinds.iter().filter_map(|(name, kind)| Some((found.get(name)?.0, *kind as u64))).collect(),
            refused: extent(&REFUSED),
            untaken: extent(&[UNTAKEN]),
            xtable_name: None,
        }
    }

    /// There are tables of iptables-legacy.
    pub fn has_xtables(&self) -> bool {
        self.hooks.iter().any(|(_, kind)| *kind == HookKind::Xtables as u64)
    }

    /// Those on hooks.
    pub fn hooks(&self) -> impl Iterator<Item = HookFunction> {
        self.hooks.iter().map(|(address, kind)| HookFunction { address: *address, kind: *kind })
    }

    /// Whether there is such a function of that kind.
    pub fn has(&self, address: u64, kind: HookKind) -> bool {
        self.hooks.contains(&(address, kind as u64))
    }

    /// Where a queue's refused packets are freed, and where those that nobody takes.
    pub fn queues(&self) -> [Extent; 2] {
        [self.refused, self.untaken].map(|(start, bytes)| Extent { start, bytes })
    }
}

/// Address and bytes of a function: up to the next symbol.
pub(super) fn extent(function: &str) -> Option<(u64, u32)> {
    let text = fs::read_to_string(PATH).ok()?;
    let (start, bytes) = extents(&text, &[function]).remove(function)?;
    Some((start, u32::try_from(bytes).ok()?))
}

/// Name of the function that begins at an address, and the module that it is of.
pub fn name_of(address: u64) -> Option<(String, Option<String>)> {
    let text = fs::read_to_string(PATH).ok()?;
    named(&text, address)
}

/// A line: address, kind, name, and the module in brackets.
fn symbols(text: &str) -> impl Iterator<Item = (u64, &str, &str, Option<&str>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok().filter(|address| *address != 0)?;
        Some((address, words.next()?, words.next()?, words.next()))
    })
}

fn extents<'a>(text: &str, names: &[&'a str]) -> HashMap<&'a str, (u64, u64)> {
    let mut found: HashMap<&str, (u64, u64)> = HashMap::new();
    for (address, _, name, _) in symbols(text) {
        if let Some(name) = names.iter().find(|wanted| **wanted == name) {
            found.insert(name, (address, u64::MAX));
        }
    }
    // Modules' symbols are not in order.
    for (address, ..) in symbols(text) {
        for (start, bytes) in found.values_mut() {
            if address > *start {
                *bytes = (*bytes).min(address - *start);
            }
        }
    }
    found.retain(|_, (_, bytes)| *bytes != u64::MAX);
    found
}

fn on_hooks(text: &str) -> Names {
    symbols(text)
        .filter(|(_, kind, name, _)| is_code(kind) && ON_HOOKS.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(address, _, name, module)| (address, (name.to_owned(), module.map(bare))))
        .collect()
}

/// Data has names too.
fn is_code(kind: &str) -> bool {
    matches!(kind, "t" | "T" | "w" | "W")
}

/// A module's name without its brackets.
fn bare(module: &str) -> String {
    module.trim_matches(['[', ']']).to_owned()
}

fn named(text: &str, address: u64) -> Option<(String, Option<String>)> {
    // Padding in front of a function has a name of its own.
    let is_of_function =
        |kind: &str, name: &str| is_code(kind) && !name.starts_with("__pfx_") && !name.starts_with("__cfi_");
    let (_, _, name, module) =
        symbols(text).find(|(at, kind, name, _)| *at == address && is_of_function(kind, name))?;
    Some((name.to_owned(), module.map(bare)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _stext
ffffffff81000100 t nf_queue
ffffffff81000180 T nf_reinject
ffffffff81000200 T _etext
0000000000000000 T hidden
ffffffffc0000200 t nft_do_chain_inet\t[nf_tables]
ffffffffc0000300 t later\t[nf_tables]
ffffffffc0000100 d data\t[nf_tables]
ffffffffc0000100 t earlier\t[nf_tables]
";

    #[test]
    fn a_function_ends_where_the_next_symbol_is() {
        let found = extents(TEXT, &["nf_queue", "nft_do_chain_inet", "absent", "hidden"]);
        assert_eq!(found.get("nf_queue"), Some(&(0xffff_ffff_8100_0100, 0x80)));
        assert_eq!(found.get("nft_do_chain_inet"), Some(&(0xffff_ffff_c000_0200, 0x100)));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn an_address_has_a_name_and_a_module() {
        let name = |address| named(TEXT, address).unwrap();
        assert_eq!(name(0xffff_ffff_c000_0100), ("earlier".to_owned(), Some("nf_tables".to_owned())));
        assert_eq!(name(0xffff_ffff_8100_0100), ("nf_queue".to_owned(), None));
        assert_eq!(named(TEXT, 0xffff_ffff_8100_0101), None, "inside of a function");
    }

    #[test]
    fn what_is_on_hooks_is_kept_by_name() {
        let names = on_hooks(TEXT);
        assert_eq!(names.len(), 1);
        assert_eq!(names[&0xffff_ffff_c000_0200], ("nft_do_chain_inet".to_owned(), Some("nf_tables".to_owned())));
    }

    #[test]
    fn the_running_kernels_functions_are_found_where_addresses_are_shown() {
        let Some((start, bytes)) = extent("nf_hook_slow") else { return };
        assert!(bytes > 64);
        assert_eq!(name_of(start), Some(("nf_hook_slow".to_owned(), None)));
    }
}

//! What dropped a packet: a rule of the ruleset, or what else hangs on netfilter's hooks.

use std::{fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use observer_ebpf::abi::UNKNOWN_RULE;

use super::{netns, rulesets::Rulesets};
use crate::{
    firewall::{legacy, netfilter::family},
    kernel::{
        netns_cookie,
        symbols::{self, Names},
    },
    model::{Backend, BpfProgram, Connections, Decider, Decision, Entrance, NamedRule, Purpose, Share, WantedRule},
};

/// Functions by their addresses: those that are known to be on hooks, and others that were asked for.
#[derive(Clone, Default)]
pub(super) struct Deciders {
    names: Arc<Names>,
}

impl Deciders {
    /// Nobody has looked yet, or nobody may.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// nftables is there; whoever asks for its rules otherwise would load it.
    pub(super) fn know_nftables(&self) -> bool {
        self.names.values().any(|(name, _)| Purpose::of(name) == Purpose::Nftables)
    }

    /// Where functions are now: another module may have come to where one was.
    pub(super) fn learn(&mut self, names: Names) {
        self.names = Arc::new(names);
    }

    /// Who dropped it, if what the eBPF side saw is there and can have.
    pub(super) fn decision(
        &self,
        wanted: &WantedRule,
        (rulesets, share): (&Rulesets, Share),
    ) -> Result<Option<Decision>> {
        if wanted.function == 0 {
            let rule = rulesets.named(wanted, share)?;
            return Ok(rule.map(|rule| Decision { rule: Some(rule), decider: None }));
        }
        let (function, module) = match self.names.get(&wanted.function) {
            Some(named) => named.clone(),
            // Of a module that nobody hears of when it goes: the name is good for now.
            None => {
                symbols::name_of(wanted.function).context("/proc/kallsyms does not name the function on the hook")?
            }
        };
        let mut decision = Decision::default();
        let mut decider = Decider { module, ..Decider::default() };
        match Purpose::of(&function) {
            // Where the eBPF side does not know what chains are like, the function is all.
            Purpose::Nftables if wanted.chain == 0 => {}
            // Without a cookie nobody knows that it is still the same namespace.
            Purpose::Nftables if wanted.netns_cookie == 0 => {}
            Purpose::Nftables => match rulesets.named(wanted, share)? {
                None => return Ok(None),
                // Nothing more is to be said.
                rule if wanted.rule != UNKNOWN_RULE => return Ok(Some(Decision { rule, decider: None })),
                rule => decision.rule = rule,
            },
            // Which of them is not known.
            Purpose::Xtables if wanted.table == 0 && function.ends_with("_do_table") => {}
            Purpose::Xtables => match legacy_table(wanted, &function)? {
                None => return Ok(None),
                found => decision.rule = found,
            },
            Purpose::Program if wanted.rule != 0 => {
                decider.program = Some(BpfProgram { id: wanted.rule, name: program_name(wanted.rule) });
            }
            Purpose::Tracking | Purpose::Confirming => decider.connections = connections(wanted),
            _ => {}
        }
        decider.function = Some(function);
        decision.decider = Some(decider);
        Ok(Some(decision))
    }
}

/// The table of iptables-legacy, if the namespace has it; by its built-in chain, where the walk began.
fn legacy_table(wanted: &WantedRule, function: &str) -> Result<Option<NamedRule>> {
    let name = match wanted.table {
        // Before Linux 5.16 each table has a function of its own, such as `iptable_filter_hook`.
        0 => function.split('_').nth(1).unwrap_or_default().to_owned(),
        table => {
            let bytes = table.to_ne_bytes();
            String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
        }
    };
    let family = if function.starts_with("ip6") { family::IPV6 } else { family::IPV4 };
    let tables = inside(wanted, legacy::names)?;
    let Some(hook) = wanted.hook else { return Ok(None) };
    if !tables.iter().any(|(layout, table)| layout.family == family && *table == name) {
        return Ok(None);
    }
    let chain = hook.name().to_uppercase();
    Ok(Some(NamedRule {
        backend: Backend::IptablesLegacy,
        family: family::name(family).to_owned(),
        table: name,
        chain,
        handle: None,
        position: None,
        text: None,
        // The rule may be in one that it leads to.
        path: Vec::new(),
        verdict: None,
        ruleset_sha256: None,
        statement: None,
        translates: None,
        entrance: Entrance::Own,
        packet: None,
        leads_to: None,
        translated: None,
        sees_forwarded: false,
    }))
}

/// Looks into the namespace, if it still is the one: its number may be another one's by now. Kernels without cookies are
/// believed.
fn inside<T: Send + 'static>(wanted: &WantedRule, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let cookie = wanted.netns_cookie;
    netns::inside(Some(wanted.netns), move || {
        let is_same = netns_cookie().map_or(true, |here| cookie == 0 || here == cookie);
        ensure!(is_same, "the namespace is gone, and its number another one's");
        Ok(work())
    })?
}

pub(super) fn program_name(id: u64) -> Option<String> {
    aya::programs::loaded_programs()
        .flatten()
        .find(|program| u64::from(program.id()) == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
}

/// A counter of connection tracking in the namespace of the calling thread, over all CPUs.
fn counted(name: &str) -> Option<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").ok()?;
    let mut lines = table.lines();
    let column = lines.next()?.split_ascii_whitespace().position(|head| head == name)?;
    lines.map(|line| u64::from_str_radix(line.split_ascii_whitespace().nth(column)?, 16).ok()).sum()
}

/// How full the table of connections is.
fn connections(wanted: &WantedRule) -> Option<Connections> {
    let read =
        |name: &str| fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse::<u64>().ok();
    inside(wanted, move || {
        Some(Connections {
            entries: read("nf_conntrack_count")?,
            limit: read("nf_conntrack_max")?,
            insert_failed: counted("insert_failed"),
        })
    })
    .ok()
    .flatten()
}

//! Modules that would be loaded into the kernel by what is tried: then it is not tried. Nobody can keep the kernel from loading what
//! a rule asks for, so what rules are made of is read beforehand.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};

use crate::{
    firewall::front_end::{self, FrontEnd},
    model::ProposedChange,
};

/// What a front end's programs always use must be there, or not exist for this kernel.
pub(super) fn need(front_end: &dyn FrontEnd) -> Result<()> {
    are_there(front_end.needs().modules.iter().map(|name| (*name).to_owned()).collect())
}

/// Nothing that a proposed change asks for would be loaded.
pub fn loads_nothing(change: &ProposedChange) -> Result<()> {
    are_there(front_end::of_change(change).context("it is no front end's change")?.modules(change)?)
}

/// Nor by a command line that was planned.
pub(super) fn line_loads_nothing(line: &str) -> Result<()> {
    let words = line.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect();
    let change = ProposedChange::Command(words);
    match front_end::of_change(&change) {
        Some(front_end) => are_there(front_end.modules(&change)?),
        None => Ok(()),
    }
}

fn are_there(needed: BTreeSet<String>) -> Result<()> {
    if needed.is_empty() {
        return Ok(());
    }
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let known = fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    for name in needed {
        let is_loaded = loaded.lines().any(|line| line.split(' ').next() == Some(&name));
        ensure!(is_loaded || !is_module(&known, &name), "trying it would load the kernel's module {name}");
    }
    Ok(())
}

/// `kernel/net/netfilter/xt_recent.ko.xz: …` stands in the list.
fn is_module(known: &str, name: &str) -> bool {
    known.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        path.rsplit('/')
            .next()
            .and_then(|file| file.split(".ko").next())
            .is_some_and(|file| file.replace('-', "_") == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_in_the_list() {
        let known =
            "kernel/net/netfilter/xt_recent.ko.xz: kernel/net/netfilter/x_tables.ko.xz\nkernel/net/sched/act-x.ko:\n";
        assert!(is_module(known, "xt_recent") && is_module(known, "act_x"));
        assert!(!is_module(known, "x_tables") && !is_module(known, "xt_rec"));
    }
}

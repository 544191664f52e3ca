//! Modules that a front end's programs would have loaded into the kernel.

use std::fs;

use anyhow::{Result, ensure};

use super::plan::FrontEnd;

/// Nothing is loaded for a trial: what a front end's programs always use must be there, or not exist for this kernel.
pub(super) fn need(front_end: FrontEnd) -> Result<()> {
    // ufw tries what the kernel can, whenever it is run.
    let needed: &[&str] = match front_end {
        FrontEnd::Ufw => &["xt_recent"],
        FrontEnd::Firewalld | FrontEnd::Tables => &[],
    };
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let known = fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    for name in needed {
        let is_loaded = loaded.lines().any(|line| line.split(' ').next() == Some(name));
        ensure!(is_loaded || !is_module(&known, name), "trying it would load the kernel's module {name}");
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

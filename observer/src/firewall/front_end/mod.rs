//! The programs that manage firewall rules, one folder each: how their rules are recognised, what a rule is in their words, which
//! commands let a packet through, which files they keep.
//!
//! All that observer knows of one front end is in its folder, behind [`FrontEnd`]. Nobody else names one: callers go over
//! [`ALL`], or ask for the front end of a rule, a command or a proposed configuration. To add one, add a folder, its `mod` line and a
//! line in [`ALL`].
//!
//! A front end's files say what its rules were made of; they are believed only where they agree with the rules in force.

mod calico;
mod cilium;
mod csf;
mod docker;
mod fail2ban;
mod firewalld;
mod iptables;
mod iptables_legacy;
mod kubernetes;
mod libvirt;
mod nftables;
mod podman;
mod proxmox;
mod shorewall;
mod tailscale;
mod ufw;
mod wg_quick;

mod exception;
mod files;
mod line;
mod page;
mod plan;
mod recognise;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;

use anyhow::Result;

pub(crate) use self::exception::Packets;
pub use self::{
    files::{Load, Needs, Step, Unjudged},
    iptables::NAME as IPTABLES,
    iptables_legacy::NAME as IPTABLES_LEGACY,
    nftables::NAME as NFTABLES,
    page::{Page, Port},
    plan::{Known, MARK, Others, Plan, Plans, Target, plans},
    recognise::{Found, Seen, is_iptables},
    words::Place,
};
use crate::{
    firewall::files::Root,
    model::{Backend, NamedRule, ProposedChange, Statement},
};

/// All front ends. They are asked in this order, and the first that knows a rule or a configuration has it: those that fill tables
/// of iptables come before iptables itself, and nftables, which has all that is left, comes last.
pub static ALL: &[&dyn FrontEnd] = &[
    &ufw::Ufw,
    &firewalld::Firewalld,
    &wg_quick::WgQuick,
    &docker::Docker,
    &podman::Podman,
    &kubernetes::Kubernetes,
    &calico::Calico,
    &cilium::Cilium,
    &libvirt::Libvirt,
    &fail2ban::Fail2ban,
    &shorewall::Shorewall,
    &tailscale::Tailscale,
    &csf::Csf,
    &proxmox::Proxmox,
    &iptables_legacy::IptablesLegacy,
    &iptables::Iptables,
    &nftables::Nftables,
];

/// What observer asks of a front end. Nothing here changes the host: files are read below the root folders that are given, and
/// commands are returned as data, which a trial carries out in its private copy.
pub trait FrontEnd: Sync {
    /// Its name, as operators know it and as `rule.ruleset` has it.
    fn name(&self) -> &'static str;

    /// How the names of its own chains begin.
    fn chain_prefixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Tables of its own in nftables.
    fn tables(&self) -> &'static [&'static str] {
        &[]
    }

    /// Its rules are in the tables of iptables.
    fn fills_iptables(&self) -> bool {
        true
    }

    /// Whether it has rules in force, or is configured. By default it is known by the names of its chains.
    fn recognise(&self, seen: &Seen<'_>) -> Option<Found> {
        let chain = self.chain_prefixes().iter().find_map(|prefix| seen.chain(prefix))?;
        Some(Found::active(self.name(), format!("chain {}", chain.name)))
    }

    /// A rule or policy in its words, if it is one of its own. `roots` are the folders in which its files may be, the likeliest
    /// first. By default a rule in one of its chains.
    fn statement(&self, place: &Place<'_>, _roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        place.in_a_chain_of(self.name(), self.chain_prefixes())
    }

    /// The commands that might let the target through a rule of its, the best first; where none is known, what an administrator
    /// can do instead. By default there is none, and its [`advice`](Self::advice) is given.
    fn plans(&self, _rule: &NamedRule, _target: &Target, _known: &Known) -> Plans {
        Err(None)
    }

    /// What to do about a rule of its where no command is known: what the rule was made of, and how that is changed.
    fn advice(&self, _rule: &NamedRule, _target: &Target) -> Option<String> {
        None
    }

    /// The same where it was not an outbound packet that the rule has stopped, but what comes back, or what asks for a neighbour.
    fn advice_for_others(&self, _rule: &NamedRule) -> Option<String> {
        None
    }

    /// Its program writes the chains of this rule anew, although another front end has the words for the rule. So no command changes
    /// these chains.
    fn rewrites(&self, _rule: &NamedRule) -> bool {
        false
    }

    /// How a profile's ports are let out by it, for `check --steps`.
    fn page(&self) -> Option<&'static Page> {
        None
    }

    /// What a trial of its commands needs.
    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    /// Steps that have it load its rules from its files in a private copy. `rules` are in force on the host: some states are in
    /// no file.
    fn start(&self, _rules: &[&NamedRule]) -> Vec<Step> {
        Vec::new()
    }

    /// Programs whose commands `check --after` tries.
    fn commands(&self) -> &'static [&'static str] {
        &[]
    }

    /// One of its commands as it is run in a private copy, where nobody answers questions, and rules have other handles:
    /// `handle` gives the copy's for family, table and handle on the host.
    fn in_the_copy(&self, words: &[String], _handle: &dyn Fn(&str, &str, u64) -> Option<u64>) -> Result<Vec<String>> {
        Ok(words.to_vec())
    }

    /// A command said this and did nothing, though its exit status is that of success.
    fn has_refused(&self, _said: &str) -> bool {
        false
    }

    /// How it loads a proposed configuration, if the text is written for it; an error where it is one of its files that are not
    /// judged alone.
    fn load(&self, _text: &str) -> Result<Option<Load>, Unjudged> {
        Ok(None)
    }

    /// Kernel modules that a change by it may load; an error where that cannot be reported.
    fn modules(&self, _change: &ProposedChange) -> Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
    }

    /// It makes its rules of files of its own: a trial has it load them from copies of those.
    fn has_files(&self) -> bool {
        !self.needs().folders.is_empty()
    }
}

/// The front end whose words a rule is reported in; of a rule without such words the one whose tables these are.
pub fn of(rule: &NamedRule) -> &'static dyn FrontEnd {
    let named = |name: &str| ALL.iter().find(|front_end| front_end.name() == name);
    match (rule.statement.as_ref().and_then(|statement| named(&statement.ruleset)), rule.backend) {
        (Some(front_end), _) => *front_end,
        (None, Backend::Nft) => &nftables::Nftables,
        (None, Backend::IptablesLegacy) => &iptables_legacy::IptablesLegacy,
    }
}

/// The front end of a program whose commands can be tried.
pub fn of_command(program: &str) -> Option<&'static dyn FrontEnd> {
    ALL.iter().find(|front_end| front_end.commands().contains(&program)).copied()
}

/// The front end by which a proposed change is made.
pub fn of_change(change: &ProposedChange) -> Option<&'static dyn FrontEnd> {
    match change {
        ProposedChange::Command(words) => of_command(words.first()?),
        ProposedChange::Ruleset(text) => configuration(text).ok()?.map(|(front_end, _)| front_end),
    }
}

/// The front end for which a proposed configuration is written, and how it loads that.
pub fn configuration(text: &str) -> Result<Option<(&'static dyn FrontEnd, Load)>, Unjudged> {
    for front_end in ALL {
        if let Some(load) = front_end.load(text)? {
            return Ok(Some((*front_end, load)));
        }
    }
    Ok(None)
}

/// Pages for `check --steps`, each with its front end's name.
pub fn pages() -> impl Iterator<Item = (&'static str, &'static Page)> {
    ALL.iter().filter_map(|front_end| Some((front_end.name(), front_end.page()?)))
}

/// The statement of a rule or policy, if one of the front ends has words for it. `roots` are the folders in which their files
/// may be, the likeliest first.
pub fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    ALL.iter().find_map(|front_end| front_end.statement(place, &mut *roots))
}

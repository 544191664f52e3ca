//! Exceptions from a rule: a new rule in front of it, or behind all others where it is the chain's policy. They last until the rules
//! are loaded anew.

use std::net::IpAddr;

use super::{Others, Plan, Target, plan::plain};
use crate::model::{Entrance, Lasts, NamedRule, PacketKind, Scope};

/// Where a rule's exception is put.
#[derive(Clone, Copy)]
pub(super) struct Insertion<'a> {
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
    /// Handle of the rule in front of which it is put; `None` for behind all.
    pub(super) handle: Option<u64>,
    /// That rule's place in its chain, from 1 on.
    pub(super) position: Option<usize>,
}

impl<'a> Insertion<'a> {
    /// For a rule; `None` where a name has signs that a shell could take for something else, and an error where there is no place.
    pub(super) fn of(rule: &'a NamedRule) -> Result<Option<Self>, Option<String>> {
        let (chain, handle, position) = match &rule.entrance {
            Entrance::Own => (&rule.chain, rule.handle, rule.position),
            Entrance::Before(jump) => (&jump.chain, Some(jump.handle), Some(jump.position)),
            Entrance::Nowhere(why) => return Err(Some(why.clone())),
        };
        let names = plain(&rule.table).zip(plain(chain));
        Ok(names.map(|(table, chain)| Self { table, chain, handle, position }))
    }
}

/// The family's own addresses; all where a table has both.
pub(super) fn of_family(rule: &NamedRule, target: &Target) -> Vec<IpAddr> {
    match rule.family.as_str() {
        "ip" => target.of_family(false),
        "ip6" => target.of_family(true),
        _ => target.addresses.clone(),
    }
}

/// Which packets an exception is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packets {
    /// Those to the port.
    Sent,
    /// What comes back from there.
    Answers,
    /// By which IPv6 finds whoever is next on the way.
    Neighbours,
}

impl Packets {
    /// Of that kind a rule has stopped one; nothing where no exception is known for them.
    pub(crate) fn of(rule: &NamedRule) -> Option<Self> {
        match rule.packet {
            None | Some(PacketKind::Segment) => Some(Self::Sent),
            Some(PacketKind::Answer) => Some(Self::Answers),
            Some(PacketKind::Solicitation) => Some(Self::Neighbours),
            Some(PacketKind::Arp | PacketKind::TooBig) => None,
        }
    }
}

/// Exceptions without which nothing is reached, whatever it is for: for the kinds of message that the rule names, and for all. Both ends
/// ask again from time to time, so one kind alone is enough only if the others pass already.
pub(super) fn needed(
    rule: &NamedRule,
    opens: &str,
    all: &[(&str, String)],
    lines: impl Fn(&[String]) -> (Vec<String>, Vec<String>),
) -> Vec<Plan> {
    let words = rule.words().unwrap_or_default();
    let (named, matches): (Vec<_>, Vec<_>) =
        all.iter().map(|(name, matches)| (words.contains(name).then(|| matches.clone()), matches.clone())).unzip();
    let named: Vec<String> = named.into_iter().flatten().collect();
    let plan = |(commands, undo)| Plan {
        commands,
        undo,
        scope: Scope::Address,
        opens: opens.to_owned(),
        lasts: Lasts::Reload,
        note: None,
    };
    let is_some = (1..matches.len()).contains(&named.len());
    is_some.then_some(named).into_iter().chain([matches]).map(|matches| plan(lines(&matches))).collect()
}

/// What IPv6 is opened for then.
pub(super) const OPENS_NEIGHBOURS: &str =
    "IPv6 neighbour discovery, without which nobody was reached by IPv6: whatever other rules allow passes then";

/// The same for what comes back: from the port, and from the addresses alone.
pub(super) fn answers(
    target: &Target,
    addresses: &[IpAddr],
    port: (Vec<String>, Vec<String>),
    from: (Vec<String>, Vec<String>),
) -> Vec<Plan> {
    let plan = |(commands, undo): (Vec<String>, Vec<String>), scope, opens| Plan {
        commands,
        undo,
        scope,
        opens,
        lasts: Lasts::Reload,
        note: None,
    };
    let by_port = plan(port, Scope::Port, target.opens_answers(None));
    vec![by_port, plan(from, Scope::Address, target.opens_answers(Some(addresses)))]
}

/// Whose packets alone an exception is for.
#[derive(Clone, Copy)]
pub(super) enum Bound<'a> {
    /// Everybody's.
    None,
    /// This host's own; with what is to be left out where others' may have its address.
    Host(Others),
    /// What comes in by that interface.
    ComesBy(&'a str),
}

/// Where packets of others come by, exceptions for this host's own are the first: probes cannot show which forwarded packets an unbound
/// exception would admit. Elsewhere those for all are followed by them. What is forwarded comes by an interface, and those for that
/// one are the first.
pub(super) fn also_bound(
    rule: &NamedRule,
    target: &Target,
    made: impl Fn(&Target, Bound<'_>) -> Vec<Plan>,
) -> Vec<Plan> {
    let turns = |first: Vec<Plan>, second: Vec<Plan>| -> Vec<Plan> {
        let mut second = second.into_iter();
        let mut all: Vec<Plan> = first.into_iter().flat_map(|plan| [Some(plan), second.next()]).flatten().collect();
        all.extend(second);
        all
    };
    match target.comes_by.as_deref().and_then(plain) {
        _ if !target.is_forwarded => {
            let (all, own) = (made(target, Bound::None), made(target, Bound::Host(target.others)));
            if rule.sees_forwarded && target.others != Others::Nobody { turns(own, all) } else { turns(all, own) }
        }
        Some(name) => turns(made(target, Bound::ComesBy(name)), made(&target.by_any(), Bound::None)),
        None => made(&target.by_any(), Bound::None),
    }
}

/// For the port, and for the addresses alone.
pub(super) fn both(
    rule: &NamedRule,
    target: &Target,
    addresses: &[IpAddr],
    port: (Vec<String>, Vec<String>),
    to: (Vec<String>, Vec<String>),
) -> Vec<Plan> {
    let plan = |(commands, undo): (Vec<String>, Vec<String>), scope, opens, more: Option<String>| Plan {
        commands,
        undo,
        scope,
        opens,
        lasts: Lasts::Reload,
        note: more,
    };
    let by_port = plan(port, Scope::Port, target.opens_port_of(&rule.family), None);
    let by_address = plan(to, Scope::Address, target.opens_address(addresses), Some(target.of_addresses()));
    vec![by_port, by_address]
}

//! The ruleset in force: everything is taken as the kernel lists it. Text would lose what `nft` cannot write.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    marks::{self, Facts, Mark, Read, Reason},
    remake::{Slot, TRACER},
};
use crate::kernel::netlink::{Attributes, Body, Netlink};
use crate::{
    confinement::reader::Question,
    firewall::{
        netfilter::{family, hook},
        nft,
    },
    model::Replayed,
};

/// `NETLINK_NETFILTER`, `NFNL_SUBSYS_NFTABLES`, and a `struct nfgenmsg`.
pub(super) const PROTOCOL: isize = 12;
pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const FIXED: usize = 4;
/// `NFT_MSG_*`: what makes something is one less than what asks for it.
pub(super) const GETTABLE: u16 = 1;
pub(super) const GETCHAIN: u16 = 4;
pub(super) const GETRULE: u16 = 7;
pub(super) const GETSET: u16 = 10;
pub(super) const GETSETELEM: u16 = 13;
pub(super) const GETOBJ: u16 = 19;
pub(super) const GETFLOWTABLE: u16 = 23;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;
/// `NFNLGRP_NFTRACE`
pub(super) const TRACE_GROUP: u32 = 9;
/// `NFT_MSG_TRACE`
pub(super) const TRACE: u16 = SUBSYSTEM << 8 | 17;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`
pub(super) const TABLE: u16 = 1;
pub(super) const FLAGS_OF_TABLE: u16 = 2;
pub(super) const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
/// `NFTA_OBJ_NAME`
pub(super) const OBJECT_NAME: u16 = 2;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
/// `NFT_SET_ANONYMOUS`, `NFT_SET_INTERVAL`, and both without `NFT_SET_CONCAT`.
pub(super) const ANONYMOUS: u32 = 1;
const INTERVAL: u32 = 4;
const SPANS: u32 = ANONYMOUS | INTERVAL | 128;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`, `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_FLAGS`, `NFT_SET_ELEM_INTERVAL_END`
pub(super) const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const INTERVAL_END: u32 = 1;
/// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`
pub(super) const NAME: u16 = 1;
pub(super) const DATA: u16 = 2;

/// A rule's place: family, table, chain, and how many rules stand before it.
pub(super) type Place = (u8, String, String, usize);

/// Everything of a namespace, as the kernel listed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Number of the ruleset.
    pub(super) generation: u32,
    pub(super) tables: Vec<Body>,
    pub(super) chains: Vec<Body>,
    pub(super) sets: Vec<Body>,
    pub(super) elements: Vec<Body>,
    pub(super) objects: Vec<Body>,
    pub(super) flowtables: Vec<Body>,
    pub(super) rules: Vec<Body>,
    /// Something decides about frames in bridges, which are not in a copy.
    pub(super) has_bridges: bool,
}

/// Lists the namespace of the calling thread by a confined process, if that takes no more than so many bytes.
pub const LISTED: Question<Listed> = Question::new("listed", list);

fn list(limit: usize) -> Result<Listed> {
    let generation = nft::generation()?;
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    netlink.limit(limit);
    let all = Body::new(&[family::UNSPEC, 0, 0, 0]);
    // Frames of a bridge are none of this namespace's own packets.
    let families = [family::INET, family::IPV4, family::IPV6, family::ARP, family::NETDEV];
    let mut has_bridges = false;
    let mut dump = |kind: u16, body: &Body| {
        let mut all = netlink.dump(SUBSYSTEM << 8 | kind, body)?;
        let is_hooked = |body: &Body| body.attributes.get(CHAIN_HOOK).is_some();
        has_bridges |=
            kind == GETCHAIN && all.iter().any(|body| body.fixed.first() == Some(&family::BRIDGE) && is_hooked(body));
        all.retain(|body| {
            body.fixed.first().is_some_and(|family| families.contains(family))
                && body.attributes.text(TABLE).as_deref() != Some(TRACER)
        });
        anyhow::Ok(all)
    };
    let (tables, chains) = (dump(GETTABLE, &all)?, dump(GETCHAIN, &all)?);
    let (sets, objects, rules) = (dump(GETSET, &all)?, dump(GETOBJ, &all)?, dump(GETRULE, &all)?);
    let flowtables = dump(GETFLOWTABLE, &all)?;
    let mut elements = Vec::new();
    for set in &sets {
        let mut of_it = dump(GETSETELEM, &set.with(set.attributes.only(&[TABLE, SET_NAME])))?;
        if set.attributes.number(SET_FLAGS).is_some_and(|flags| flags & SPANS == (ANONYMOUS | INTERVAL)) {
            with_ends(&mut of_it)?;
        }
        elements.extend(of_it);
    }
    ensure!(nft::generation()? == generation, "the ruleset changed while it was read");
    Ok(Listed { generation, tables, chains, sets, elements, objects, flowtables, rules, has_bridges })
}

/// Writes down where each interval of an anonymous set ends: there the next one's beginning says so, which a plain set does not take.
fn with_ends(messages: &mut [Body]) -> Result<()> {
    let mut before: Option<Attributes> = None;
    for message in messages {
        let mut all = Vec::new();
        for element in message.attributes.list(ELEMENTS).lists() {
            // The kernel lists them from the last one to the first.
            let Some(next) = before.replace(element.clone()) else {
                all.push(element);
                continue;
            };
            let key = |of: &Attributes| of.list(ELEMENT_KEY).get(1).map(<[u8]>::to_vec);
            ensure!(key(&element) <= key(&next), "elements of an interval are listed in another order");
            if !is_end(&next) && !is_end(&element) {
                let mut end = next.only(&[ELEMENT_KEY]);
                end.set(ELEMENT_FLAGS, INTERVAL_END.to_be_bytes().to_vec());
                all.push(end);
            }
            all.push(element);
        }
        message.attributes.set_list(ELEMENTS, &Attributes::elements(&all));
    }
    Ok(())
}

/// An element is where an interval ends.
pub(super) fn is_end(element: &Attributes) -> bool {
    element.number(ELEMENT_FLAGS).is_some_and(|flags| flags & INTERVAL_END != 0)
}

impl Listed {
    /// Lets go of what is needed no more once it was made.
    pub(super) fn shrink(&mut self) {
        for list in [&mut self.sets, &mut self.elements, &mut self.objects, &mut self.flowtables, &mut self.rules] {
            *list = Vec::new();
        }
    }

    /// A rule has these bytes somewhere, in a comment for example.
    pub(super) fn mentions(&self, words: &str) -> bool {
        let mut all = self.rules.iter().chain(&self.sets);
        all.any(|part| memchr::memmem::find(&part.attributes.bytes(), words.as_bytes()).is_some())
    }

    /// A rule asks for the sender's cgroup.
    pub(super) fn asks_for_cgroups(&self) -> bool {
        let wanted = marks::Wanted { headers: false, states: false, facts: Facts::default() };
        self.rules.iter().any(|rule| {
            let expressions: Vec<_> = rule.attributes.list(RULE_EXPRESSIONS).lists().collect();
            let marks = marks::of_rule(rule, &expressions, (&marks::Filled::new(), Read::ALL), wanted);
            marks.iter().any(|mark| mark.reason == Reason::Cgroup)
        })
    }

    /// A chain hangs on one of these interfaces.
    pub(super) fn hangs_on(&self, names: &[String]) -> bool {
        let names: Vec<Vec<u8>> = names.iter().map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        // Those of family inet have an ingress hook, too.
        self.chains
            .iter()
            .map(|chain| chain.attributes.list(CHAIN_HOOK).bytes())
            .any(|hook| names.iter().any(|name| memchr::memmem::find(&hook, name).is_some()))
    }

    /// A chain hangs on what leaves an interface.
    pub(super) fn has_egress(&self) -> bool {
        self.chains.iter().any(|chain| {
            let number = chain.attributes.list(CHAIN_HOOK).number(1);
            chain.fixed.first() == Some(&family::NETDEV) && number == Some(hook::NETDEV_EGRESS)
        })
    }

    /// Rules by their handles.
    pub(super) fn places(&self) -> HashMap<(u8, String, u64), Place> {
        places(&self.rules)
    }

    /// An end of a packet's way, in handles.
    pub(super) fn replayed(&self, family: u8, table: &str, path: &[String], rule: u64) -> Result<Replayed> {
        let is_of =
            |body: &&Body| body.fixed.first() == Some(&family) && body.attributes.text(TABLE).as_deref() == Some(table);
        let handle = |body: &Body, number: u16| body.attributes.long(number);
        let base = path.first().context("a trace without a chain")?;
        let is_base = |body: &&Body| is_of(body) && body.attributes.text(CHAIN_NAME).as_ref() == Some(base);
        Ok(Replayed {
            table: self
                .tables
                .iter()
                .find(is_of)
                .and_then(|body| handle(body, 4))
                .context("a table that is not there")?,
            chain: self
                .chains
                .iter()
                .find(is_base)
                .and_then(|body| handle(body, 2))
                .context("a chain that is not there")?,
            rule,
            path: path.to_vec(),
        })
    }

    /// Handles by rules' places.
    pub(super) fn handles(&self) -> HashMap<Place, u64> {
        self.places().into_iter().map(|((_, _, handle), place)| (place, handle)).collect()
    }
}

fn places(rules: &[Body]) -> HashMap<(u8, String, u64), Place> {
    let mut before: HashMap<(u8, String, String), usize> = HashMap::new();
    let mut found = HashMap::new();
    for rule in rules {
        let family = rule.fixed.first().copied().unwrap_or(0);
        let of = &rule.attributes;
        let (Some(table), Some(chain), Some(handle)) = (of.text(TABLE), of.text(RULE_CHAIN), of.long(RULE_HANDLE))
        else {
            continue;
        };
        let index = before.entry((family, table.clone(), chain.clone())).or_default();
        found.insert((family, table.clone(), handle), (family, table, chain, *index));
        *index += 1;
    }
    found
}

/// Rules of a copy.
#[derive(Clone, Debug)]
pub(super) enum CopiedRule {
    /// This rule of the original.
    Of(Place),
    /// No rule of the original.
    Mark(Mark),
}

/// Rules of the copy in which the calling thread lives, by family, table and handle; `slots` says what stands in its chains.
pub(super) fn own_rules(
    slots: &HashMap<(u8, String, String), Vec<Slot>>,
) -> Result<HashMap<(u8, String, u64), CopiedRule>> {
    let all = Body::new(&[family::UNSPEC, 0, 0, 0]);
    let rules =
        Netlink::open(PROTOCOL, FIXED)?.dump(SUBSYSTEM << 8 | GETRULE, &all).context("the copy cannot be listed")?;
    let rule = |(own, (family, table, chain, at)): ((u8, String, u64), Place)| {
        let rule = match slots.get(&(family, table.clone(), chain.clone()))?.get(at)? {
            Slot::Rule(before) => CopiedRule::Of((family, table, chain, *before)),
            Slot::Mark(mark) => CopiedRule::Mark(mark.clone()),
        };
        Some((own, rule))
    };
    Ok(places(&rules).into_iter().filter_map(rule).collect())
}

/// A socket that hears traces of the calling thread's namespace.
pub(super) fn tracer(patience: std::time::Duration) -> Result<Netlink> {
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    netlink.listen(TRACE_GROUP, patience)?;
    Ok(netlink)
}

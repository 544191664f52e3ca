//! A copy of the ruleset in force: everything is taken as the kernel lists it, and given back in one batch. Text would lose
//! what `nft` cannot write.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use super::{
    depends::{Depends, depends},
    netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink},
};
use crate::{
    firewall::{netfilter::family, nft},
    model::Replayed,
};

/// `NETLINK_NETFILTER`, `NFNL_SUBSYS_NFTABLES`, and a `struct nfgenmsg`.
const PROTOCOL: isize = 12;
const SUBSYSTEM: u16 = 10;
const FIXED: usize = 4;
/// `NFT_MSG_*`: what makes something is one less than what asks for it.
const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSET: u16 = 10;
const GETSETELEM: u16 = 13;
const GETOBJ: u16 = 19;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNLGRP_NFTRACE`
pub(super) const TRACE_GROUP: u32 = 9;
/// `NFT_MSG_TRACE`
pub(super) const TRACE: u16 = SUBSYSTEM << 8 | 17;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`
pub(super) const TABLE: u16 = 1;
const FLAGS_OF_TABLE: u16 = 2;
pub(super) const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
const RULE_COMPAT: u16 = 5;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
const SET_ID: u16 = 10;
/// `NFT_SET_ANONYMOUS`
const ANONYMOUS: u32 = 1;
/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`
pub(super) const NAME: u16 = 1;
pub(super) const DATA: u16 = 2;

/// A rule's place: family, table, chain, and how many rules stand before it.
pub(super) type Place = (u8, String, String, usize);

/// Everything of a namespace, as the kernel listed it.
pub(super) struct Listed {
    /// Number of the ruleset.
    pub(super) generation: u32,
    tables: Vec<Body>,
    chains: Vec<Body>,
    sets: Vec<Body>,
    elements: Vec<Body>,
    objects: Vec<Body>,
    rules: Vec<Body>,
    /// What in it depends on more than a packet.
    pub(super) depends: Depends,
}

/// Lists the namespace of the calling thread.
pub(super) fn list() -> Result<Listed> {
    let generation = nft::generation()?;
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    let all = Body::new(&[family::UNSPEC, 0, 0, 0]);
    // Others have no part in what a process sends by TCP or UDP until it is at its interface.
    let families = [family::INET, family::IPV4, family::IPV6];
    let mut dump = |kind: u16, body: &Body| {
        let mut all = netlink.dump(SUBSYSTEM << 8 | kind, body)?;
        all.retain(|body| {
            body.fixed.first().is_some_and(|family| families.contains(family))
                && body.attributes.text(TABLE).as_deref() != Some(TRACER)
        });
        anyhow::Ok(all)
    };
    let (tables, chains) = (dump(GETTABLE, &all)?, dump(GETCHAIN, &all)?);
    let (sets, objects, rules) = (dump(GETSET, &all)?, dump(GETOBJ, &all)?, dump(GETRULE, &all)?);
    let mut elements = Vec::new();
    for set in &sets {
        elements.extend(dump(GETSETELEM, &set.with(set.attributes.only(&[TABLE, SET_NAME])))?);
    }
    ensure!(nft::generation()? == generation, "the ruleset changed while it was read");
    let depends = depends(&chains, &sets, &rules);
    Ok(Listed { generation, tables, chains, sets, elements, objects, rules, depends })
}

impl Listed {
    /// Makes the same in the namespace of the calling thread, and a table that has everything traced.
    pub(super) fn make(&self) -> Result<()> {
        let mut messages: Vec<(u16, u16, Body)> = Vec::new();
        let mut add = |kind: u16, flags: u16, body: Body| messages.push((SUBSYSTEM << 8 | (kind - 1), flags, body));
        for table in &self.tables {
            // A table that sleeps does so here too; whose it is does not matter.
            let mut attributes = table.attributes.only(&[TABLE]);
            let flags = table.attributes.number(FLAGS_OF_TABLE).unwrap_or(0) & DORMANT;
            attributes.set(FLAGS_OF_TABLE, flags.to_be_bytes().to_vec());
            add(GETTABLE, CREATE, table.with(attributes));
        }
        for chain in &self.chains {
            // Handle, uses, counters, padding, id, and what makes it a rule's own.
            add(GETCHAIN, CREATE, chain.with(chain.attributes.without(&[2, 6, 8, 9, 10, 11, 12])));
        }
        for (set, id) in self.sets.iter().zip(1u32..) {
            // What a request may have. One without a name of its own becomes a plain one: rules name it.
            let mut attributes = set.attributes.only(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18]);
            if let Some(flags) = attributes.number(SET_FLAGS) {
                attributes.set(SET_FLAGS, (flags & !ANONYMOUS).to_be_bytes().to_vec());
            }
            attributes.set(SET_ID, id.to_be_bytes().to_vec());
            add(GETSET, CREATE, set.with(attributes));
        }
        for object in &self.objects {
            add(GETOBJ, CREATE, object.with(object.attributes.without(&[5, 6, 7])));
        }
        for elements in &self.elements {
            add(GETSETELEM, CREATE, elements.with(elements.attributes.only(&[1, 2, 3])));
        }
        for rule in &self.rules {
            let mut attributes = rule.attributes.without(&[3, 6, 8, 9]);
            attributes.set_list(RULE_EXPRESSIONS, &Attributes::elements(&silent(&rule.attributes)));
            if let Some(compat) = compat(&rule.attributes) {
                attributes.set_list(RULE_COMPAT, &compat);
            }
            add(GETRULE, CREATE | APPEND, rule.with(attributes));
        }
        messages.extend(tracing());
        let envelope = Body::new(&[family::UNSPEC, 0, 0, SUBSYSTEM as u8]);
        let edge = |kind: u16| Message { kind, flags: 0, body: &envelope };
        let messages: Vec<Message<'_>> =
            messages.iter().map(|(kind, flags, body)| Message { kind: *kind, flags: *flags, body }).collect();
        Netlink::open(PROTOCOL, FIXED)?.batch(&edge(BATCH_BEGIN), &messages, &edge(BATCH_END))
    }

    /// Lets go of what is needed no more once it was made.
    pub(super) fn shrink(&mut self) {
        for list in [&mut self.sets, &mut self.elements, &mut self.objects, &mut self.rules] {
            *list = Vec::new();
        }
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

/// A rule with a match or target of iptables' wants the protocol that it is about, which a list leaves out: it is what is
/// compared after `meta l4proto` or the protocol field of IPv4.
fn compat(rule: &Attributes) -> Option<Attributes> {
    const META: u16 = 2;
    const L4PROTO: u32 = 16;
    let (mut by_xtables, mut protocol, mut wanted) = (false, None, false);
    for expression in rule.list(RULE_EXPRESSIONS).lists() {
        let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        by_xtables |= ["match", "target"].contains(&name.as_str());
        if wanted && name == "cmp" {
            protocol = protocol.or_else(|| data.list(3).get(1)?.first().copied());
        }
        wanted = name == "meta" && data.number(META) == Some(L4PROTO)
            || name == "payload" && (data.number(2), data.number(3)) == (Some(1), Some(9));
    }
    let protocol = protocol.filter(|_| by_xtables)?;
    let mut compat = Attributes::default();
    compat.set(1, u32::from(protocol).to_be_bytes().to_vec());
    compat.set(2, 0u32.to_be_bytes().to_vec());
    Some(compat)
}

/// A rule's expressions without those that would write to a log.
fn silent(rule: &Attributes) -> Vec<Attributes> {
    let logs = |expression: &Attributes| match expression.text(NAME).as_deref() {
        Some("log") => true,
        Some("target") => expression
            .list(DATA)
            .text(1)
            .is_some_and(|target| ["LOG", "NFLOG", "ULOG", "AUDIT"].contains(&target.as_str())),
        _ => false,
    };
    let mut all: Vec<Attributes> = rule.list(RULE_EXPRESSIONS).lists().filter(|expression| !logs(expression)).collect();
    for expression in &mut all {
        // What it was made with may be given, and not what has become of it.
        if expression.text(NAME).as_deref() == Some("quota") {
            let mut data = expression.list(DATA);
            let inverted = data.number(2).unwrap_or(0) & 1;
            data.set(2, inverted.to_be_bytes().to_vec());
            expression.set_list(DATA, &data);
        }
    }
    all
}

/// The table's name; whoever has one like it is not copied.
pub(super) const TRACER: &str = "observer_replay";

/// A chain before all others on the way out, that has every packet traced: `meta nftrace set 1`.
fn tracing() -> Vec<(u16, u16, Body)> {
    const NFTRACE: u32 = 12;
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let number = |number: u32| number.to_be_bytes().to_vec();
    let body = |attributes: Attributes| Body { fixed: vec![family::INET, 0, 0, 0], attributes };
    let mut table = Attributes::default();
    table.set(TABLE, text(TRACER));
    let mut hook = Attributes::default();
    // Local out, and before everybody else.
    hook.set(1, number(3));
    hook.set(2, i32::MIN.to_be_bytes().to_vec());
    let mut chain = Attributes::default();
    chain.set(TABLE, text(TRACER));
    chain.set(CHAIN_NAME, text("out"));
    chain.set_list(4, &hook);
    chain.set(7, text("filter"));
    let (mut value, mut data) = (Attributes::default(), Attributes::default());
    value.set(1, vec![1]);
    data.set(1, number(8));
    data.set_list(2, &value);
    let mut meta = Attributes::default();
    meta.set(2, number(NFTRACE));
    meta.set(3, number(8));
    let mut expressions = Vec::new();
    for (name, data) in [("immediate", &data), ("meta", &meta)] {
        let mut expression = Attributes::default();
        expression.set(NAME, text(name));
        expression.set_list(DATA, data);
        expressions.push(expression);
    }
    let mut rule = Attributes::default();
    rule.set(TABLE, text(TRACER));
    rule.set(RULE_CHAIN, text("out"));
    rule.set_list(RULE_EXPRESSIONS, &Attributes::elements(&expressions));
    let make = |kind: u16| SUBSYSTEM << 8 | (kind - 1);
    vec![
        (make(GETTABLE), CREATE, body(table)),
        (make(GETCHAIN), CREATE, body(chain)),
        (make(GETRULE), CREATE | APPEND, body(rule)),
    ]
}

/// Rules of the calling thread's namespace by their handles.
pub(super) fn own_places() -> Result<HashMap<(u8, String, u64), Place>> {
    let all = Body::new(&[family::UNSPEC, 0, 0, 0]);
    let rules =
        Netlink::open(PROTOCOL, FIXED)?.dump(SUBSYSTEM << 8 | GETRULE, &all).context("the copy cannot be listed")?;
    Ok(places(&rules))
}

/// A socket that hears traces of the calling thread's namespace.
pub(super) fn tracer(patience: std::time::Duration) -> Result<Netlink> {
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    netlink.listen(TRACE_GROUP, patience)?;
    Ok(netlink)
}

//! A copy of the ruleset in force: everything is taken as the kernel lists it, and given back in one batch. Text would lose
//! what `nft` cannot write.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    depends::{Passage, depends},
    doubts::Depends,
};
use crate::kernel::netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink};
use crate::{
    confinement::reader::Question,
    firewall::{
        netfilter::{DROP, family, hook},
        nft,
    },
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
const GETFLOWTABLE: u16 = 23;
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
pub(super) const CHAIN_HOOK: u16 = 4;
/// `NFTA_HOOK_DEV`, `NFTA_HOOK_DEVS`, `NFTA_FLOWTABLE_HOOK`, `NFTA_FLOWTABLE_HOOK_DEVS`, `NFTA_DEVICE_NAME`
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const FLOWTABLE_HOOK: u16 = 3;
const FLOWTABLE_DEVICES: u16 = 3;
const DEVICE_NAME: u16 = 1;
/// `NFTA_FLOWTABLE_FLAGS`, without `NFT_FLOWTABLE_HW_OFFLOAD`
const FLOWTABLE_FLAGS: u16 = 7;
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Number of the ruleset.
    pub(super) generation: u32,
    tables: Vec<Body>,
    pub(super) chains: Vec<Body>,
    pub(super) sets: Vec<Body>,
    pub(super) elements: Vec<Body>,
    objects: Vec<Body>,
    flowtables: Vec<Body>,
    pub(super) rules: Vec<Body>,
    /// What in it depends on more than a packet that is sent here.
    pub(super) out: Depends,
    /// The same of one that comes in and goes on.
    pub(super) through: Depends,
}

/// Lists the namespace of the calling thread by a confined process, if that takes no more than so many bytes.
pub const LISTED: Question<Listed> = Question::new("listed", list);

fn list(limit: usize) -> Result<Listed> {
    let generation = nft::generation()?;
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    netlink.limit(limit);
    let all = Body::new(&[family::UNSPEC, 0, 0, 0]);
    // Others have no part in outbound traffic by IP.
    let families = [family::INET, family::IPV4, family::IPV6, family::NETDEV];
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
    let flowtables = dump(GETFLOWTABLE, &all)?;
    let mut elements = Vec::new();
    for set in &sets {
        elements.extend(dump(GETSETELEM, &set.with(set.attributes.only(&[TABLE, SET_NAME])))?);
    }
    ensure!(nft::generation()? == generation, "the ruleset changed while it was read");
    let (out, through) =
        (depends(&chains, &sets, &rules, Passage::Out), depends(&chains, &sets, &rules, Passage::Through));
    Ok(Listed { generation, tables, chains, sets, elements, objects, flowtables, rules, out, through })
}

impl Listed {
    /// Makes the same in the namespace of the calling thread, and a table that has everything traced. What hangs on interfaces
    /// that are not there is left out.
    pub(super) fn make(&self, is_there: impl Fn(&str) -> bool) -> Result<()> {
        let mut messages: Vec<(u16, u16, Body)> = Vec::new();
        let mut add = |kind: u16, flags: u16, body: Body| messages.push((SUBSYSTEM << 8 | (kind - 1), flags, body));
        for table in &self.tables {
            // A table that sleeps does so here too; whose it is does not matter.
            let mut attributes = table.attributes.only(&[TABLE]);
            let flags = table.attributes.number(FLAGS_OF_TABLE).unwrap_or(0) & DORMANT;
            attributes.set(FLAGS_OF_TABLE, flags.to_be_bytes().to_vec());
            add(GETTABLE, CREATE, table.with(attributes));
        }
        let mut left_out: Vec<(Option<u8>, Option<String>, Option<String>)> = Vec::new();
        for chain in &self.chains {
            // Handle, uses, counters, padding, id, and what makes it a rule's own.
            let mut attributes = chain.attributes.without(&[2, 6, 8, 9, 10, 11, 12]);
            let mut hook = attributes.list(CHAIN_HOOK);
            let devices = hook.list(HOOK_DEVICES).names(DEVICE_NAME, &is_there);
            let is_bound = hook.get(HOOK_DEVICE).is_some() || hook.get(HOOK_DEVICES).is_some();
            if is_bound && devices.is_empty() && !hook.text(HOOK_DEVICE).is_some_and(|device| is_there(&device)) {
                let of = &chain.attributes;
                left_out.push((chain.fixed.first().copied(), of.text(TABLE), of.text(CHAIN_NAME)));
                continue;
            }
            if hook.get(HOOK_DEVICES).is_some() {
                hook.set_list(HOOK_DEVICES, &devices);
                attributes.set_list(CHAIN_HOOK, &hook);
            }
            add(GETCHAIN, CREATE, chain.with(attributes));
        }
        for flowtable in &self.flowtables {
            let mut attributes = flowtable.attributes.only(&[TABLE, 2, FLOWTABLE_HOOK]);
            let mut hook = attributes.list(FLOWTABLE_HOOK);
            hook.set_list(FLOWTABLE_DEVICES, &hook.list(FLOWTABLE_DEVICES).names(DEVICE_NAME, &is_there));
            attributes.set_list(FLOWTABLE_HOOK, &hook);
            attributes.set(FLOWTABLE_FLAGS, 0u32.to_be_bytes().to_vec());
            add(GETFLOWTABLE, CREATE, flowtable.with(attributes));
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
            let chain = (rule.fixed.first().copied(), rule.attributes.text(TABLE), rule.attributes.text(RULE_CHAIN));
            if left_out.contains(&chain) {
                continue;
            }
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
        for list in [&mut self.sets, &mut self.elements, &mut self.objects, &mut self.flowtables, &mut self.rules] {
            *list = Vec::new();
        }
    }

    /// A rule has these bytes somewhere, in a comment for example.
    pub(super) fn mentions(&self, words: &str) -> bool {
        self.rules.iter().any(|rule| memchr::memmem::find(&rule.attributes.bytes(), words.as_bytes()).is_some())
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

/// A rule's expressions without those that would write to a log, or do something to the host.
pub(super) fn silent(rule: &Attributes) -> Vec<Attributes> {
    let logs = |expression: &Attributes| match expression.text(NAME).as_deref() {
        Some("log") => true,
        Some("target") => expression
            .list(DATA)
            .text(1)
            .is_some_and(|target| ["LOG", "NFLOG", "ULOG", "AUDIT", "IDLETIMER", "LED"].contains(&target.as_str())),
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

/// The tracer's chain behind all others: whatever comes there was let pass.
pub(super) const PASSED: &str = "passed";

/// Chains before all others where a packet comes from, that have every packet traced (`meta nftrace set 1`); one behind all
/// others where it leaves; and one that drops what arrives.
fn tracing() -> Vec<(u16, u16, Body)> {
    const NFTRACE: u32 = 12;
    /// Before connections are looked up, and thus before all rules; and after all.
    const CHAINS: [(&str, u32, i32); 3] = [
        ("in", hook::PRE_ROUTING, i32::MIN),
        ("out", hook::LOCAL_OUT, i32::MIN),
        (PASSED, hook::POST_ROUTING, i32::MAX),
    ];
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let number = |number: u32| number.to_be_bytes().to_vec();
    let body = |attributes: Attributes| Body { fixed: vec![family::INET, 0, 0, 0], attributes };
    let make = |kind: u16| SUBSYSTEM << 8 | (kind - 1);
    let mut table = Attributes::default();
    table.set(TABLE, text(TRACER));
    let mut messages = vec![(make(GETTABLE), CREATE, body(table))];
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
    // What comes to this namespace itself is answered by nobody.
    let [mut hook, mut chain] = <[Attributes; 2]>::default();
    hook.set(1, number(hook::LOCAL_IN));
    hook.set(2, i32::MIN.to_be_bytes().to_vec());
    chain.set(TABLE, text(TRACER));
    chain.set(CHAIN_NAME, text("here"));
    chain.set_list(CHAIN_HOOK, &hook);
    chain.set(5, number(DROP));
    chain.set(7, text("filter"));
    messages.push((make(GETCHAIN), CREATE, body(chain)));
    for (name, on, priority) in CHAINS {
        let [mut hook, mut chain, mut rule] = <[Attributes; 3]>::default();
        hook.set(1, number(on));
        hook.set(2, priority.to_be_bytes().to_vec());
        chain.set(TABLE, text(TRACER));
        chain.set(CHAIN_NAME, text(name));
        chain.set_list(CHAIN_HOOK, &hook);
        chain.set(7, text("filter"));
        rule.set(TABLE, text(TRACER));
        rule.set(RULE_CHAIN, text(name));
        rule.set_list(RULE_EXPRESSIONS, &Attributes::elements(&expressions));
        messages.push((make(GETCHAIN), CREATE, body(chain)));
        messages.push((make(GETRULE), CREATE | APPEND, body(rule)));
    }
    messages
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

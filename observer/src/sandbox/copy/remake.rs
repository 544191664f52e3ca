//! Gives a ruleset back to the kernel as it was listed, in one batch. What the kernel does not take back costs only whoever meets
//! it: in its place stands a mark.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail};

use super::{
    choices::{Choices, RuleAt},
    marks::{self, Facts, Mark, Read, Reason},
    passage::Passage,
    ruleset::{
        self, ANONYMOUS, BATCH_BEGIN, BATCH_END, CHAIN_HOOK, CHAIN_NAME, DATA, ELEMENTS, FIXED, FLAGS_OF_TABLE,
        GETCHAIN, GETFLOWTABLE, GETOBJ, GETRULE, GETSET, GETSETELEM, GETTABLE, Listed, NAME, OBJECT_NAME, PROTOCOL,
        RULE_CHAIN, RULE_EXPRESSIONS, SET_FLAGS, SET_NAME, SUBSYSTEM, TABLE,
    },
};
use crate::firewall::netfilter::{DROP, family, hook};
use crate::kernel::netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink};

const RULE_COMPAT: u16 = 5;
/// `NFTA_HOOK_DEV`, `NFTA_HOOK_DEVS`, `NFTA_FLOWTABLE_HOOK`, `NFTA_FLOWTABLE_HOOK_DEVS`, `NFTA_DEVICE_NAME`
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const FLOWTABLE_HOOK: u16 = 3;
const FLOWTABLE_DEVICES: u16 = 3;
const DEVICE_NAME: u16 = 1;
/// `NFTA_FLOWTABLE_FLAGS`, without `NFT_FLOWTABLE_HW_OFFLOAD`
const FLOWTABLE_FLAGS: u16 = 7;
const SET_ID: u16 = 10;
/// `NFT_TABLE_F_DORMANT` and `NFT_TABLE_F_OWNER`
const DORMANT: u32 = 1;
const OWNER: u32 = 2;
/// `NFTA_SET_ELEM_*` that an end of an interval may not have: a timeout, what is left of it, a comment, expressions.
const NOT_AT_AN_END: [u16; 5] = [4, 5, 6, 7, 11];
/// `NFTA_DYNSET_TIMEOUT`
const DYNSET_TIMEOUT: u16 = 6;
/// `NFTA_EXTHDR_*`
const EXTHDR_DREG: u16 = 1;
const EXTHDR_OFFSET: u16 = 3;
const EXTHDR_LEN: u16 = 4;
const EXTHDR_FLAGS: u16 = 5;
const EXTHDR_SREG: u16 = 7;
/// What the kernel has refused is left out, and the rest is given again; no more often than so.
const ATTEMPTS: usize = 8;

/// What a copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// One packet is sent again as it was.
    Packet,
    /// A conversation is held.
    Conversation,
    /// The programs of front ends change it.
    Trial,
}

impl Purpose {
    /// The marks that stand in such a copy.
    fn wanted(self, facts: Facts) -> Option<marks::Wanted> {
        match self {
            Self::Packet => Some(marks::Wanted { headers: true, states: true, facts }),
            Self::Conversation => Some(marks::Wanted { headers: true, states: false, facts }),
            Self::Trial => None,
        }
    }
}

/// What stands at a place of a chain in a copy.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    /// The rule of the original's chain with so many before it.
    Rule(usize),
    /// A mark.
    Mark(Mark),
}

/// Family, table and name of a chain, set or object.
type Key = (u8, String, String);

/// A copy as it was made.
pub(super) struct Made {
    /// What stands in each chain.
    pub(super) slots: HashMap<Key, Vec<Slot>>,
    /// Base chains that could not be made, by the number of their hook, with the words for it.
    pub(super) missing: Vec<(u8, u32, String)>,
    /// Tables with an owner are gone with its socket.
    _owner: Netlink,
}

impl Made {
    /// Every rule and chain is there.
    pub(super) fn is_whole(&self) -> bool {
        self.missing.is_empty() && !self.slots.values().flatten().any(|slot| matches!(slot, Slot::Mark(_)))
    }

    /// Marks for base chains on a way that could not be made.
    pub(super) fn missing_on(&self, passage: Passage, family: u8) -> Vec<Mark> {
        let on_it = |(of, number, words): &(u8, u32, String)| {
            let is_of = *of != if family == family::IPV4 { family::IPV6 } else { family::IPV4 };
            let is_on = hook::name(*of, *number).is_some_and(|name| passage.hooks().contains(&name));
            (is_of && is_on).then(|| Mark { reason: Reason::Anything, words: words.clone(), rule: None })
        };
        self.missing.iter().filter_map(on_it).collect()
    }
}

/// What a message makes.
#[derive(Clone, Debug)]
enum Part {
    Table(String),
    Chain(Key, Option<u32>),
    Flowtable(Key),
    Set(Key),
    Object(Key),
    /// A rule by its place in the list.
    Rule(usize),
    /// A mark before it.
    Mark(usize),
    Own,
}

/// What is left out, since the kernel has refused it.
#[derive(Default)]
struct Refused {
    chains: HashMap<Key, Option<u32>>,
    sets: HashSet<Key>,
    objects: HashSet<Key>,
    flowtables: HashSet<Key>,
    /// Rules by their places in the list: without their rarer expressions first, then without any.
    rules: HashMap<usize, usize>,
    /// Rules whose marks then ask for nothing.
    marks: HashSet<usize>,
}

impl Listed {
    /// Makes the same in the namespace of the calling thread. What hangs on interfaces that are not there is left out.
    /// Rules of which a way was chosen go that way.
    pub(super) fn make(&self, purpose: Purpose, links: &[String], facts: Facts, choices: &Choices) -> Result<Made> {
        let chosen = self.chosen(choices, purpose, facts)?;
        let mut refused = Refused::default();
        let mut why = None;
        for _ in 0..ATTEMPTS {
            let (messages, slots) = self.messages(purpose, (links, facts), &refused, &chosen);
            let envelope = Body::new(&[family::UNSPEC, 0, 0, SUBSYSTEM as u8]);
            let edge = |kind: u16| Message { kind, flags: 0, body: &envelope };
            let all: Vec<Message<'_>> =
                messages.iter().map(|(_, kind, flags, body)| Message { kind: *kind, flags: *flags, body }).collect();
            let mut owner = Netlink::open(PROTOCOL, FIXED)?;
            let errors = owner.batch(&edge(BATCH_BEGIN), &all, &edge(BATCH_END))?;
            if errors.is_empty() {
                let missing = refused.chains.iter().filter_map(|(key, hook)| {
                    Some((key.0, (*hook)?, format!("chain {} of table {} could not be copied", key.2, key.1)))
                });
                return Ok(Made { slots, missing: missing.collect(), _owner: owner });
            }
            let mut rules: Vec<usize> = Vec::new();
            for (index, number) in errors {
                let (part, kind, ..) = messages.get(index).context("a message that was not sent")?;
                let error = std::io::Error::from_raw_os_error(number);
                log::debug!("the kernel refuses a message of the copy (type {kind}, {part:?}): {error}");
                why = Some(error);
                match part {
                    Part::Table(name) => bail!("the kernel refuses a copy of table {name}: {}", words(number)),
                    Part::Own => bail!("rules cannot be traced in a copy: {}", words(number)),
                    Part::Chain(key, hook) => drop(refused.chains.insert(key.clone(), *hook)),
                    Part::Flowtable(key) => drop(refused.flowtables.insert(key.clone())),
                    Part::Set(key) => drop(refused.sets.insert(key.clone())),
                    Part::Object(key) => drop(refused.objects.insert(key.clone())),
                    Part::Mark(index) => drop(refused.marks.insert(*index)),
                    Part::Rule(index) => rules.push(*index),
                }
            }
            rules.sort_unstable();
            rules.dedup();
            for index in rules {
                *refused.rules.entry(index).or_default() += 1;
            }
        }
        bail!("the kernel refuses a copy of the rules: {}", why.map_or_else(String::new, |why| why.to_string()))
    }

    /// Number of ways of a rule in a copy; `None` if they cannot be listed.
    pub(super) fn count_ways(&self, rule: usize, purpose: Purpose, facts: Facts) -> Option<usize> {
        let ways = self.ways(rule, &marks::filled(&self.sets, &self.rules), purpose.wanted(facts)?)?;
        Some(ways.len())
    }

    /// What rules become by the ways that were chosen.
    fn chosen(&self, choices: &Choices, purpose: Purpose, facts: Facts) -> Result<HashMap<usize, Vec<Attributes>>> {
        let Some(wanted) = purpose.wanted(facts).filter(|_| !choices.is_empty()) else {
            return Ok(HashMap::new());
        };
        let filled = marks::filled(&self.sets, &self.rules);
        let of_nft = |(rule, way): (&RuleAt, &usize)| match rule {
            RuleAt::Nft(rule) => Some((*rule, *way)),
            RuleAt::Legacy(..) => None,
        };
        let one = |(rule, way): (usize, usize)| {
            let ways = self.ways(rule, &filled, wanted);
            let way = ways.and_then(|ways| ways.into_iter().nth(way)).context("a way that the rule does not have")?;
            Ok((rule, way))
        };
        choices.iter().filter_map(of_nft).map(one).collect()
    }

    /// All messages, each with what it makes; and what stands in each chain then.
    #[allow(clippy::type_complexity)]
    fn messages(
        &self,
        purpose: Purpose,
        (links, facts): (&[String], Facts),
        refused: &Refused,
        choices: &HashMap<usize, Vec<Attributes>>,
    ) -> (Vec<(Part, u16, u16, Body)>, HashMap<Key, Vec<Slot>>) {
        let is_there = |name: &str| name == "lo" || links.iter().any(|link| link == name);
        let mut messages: Vec<(Part, u16, u16, Body)> = Vec::new();
        let mut add = |part: Part, kind: u16, flags: u16, body: Body| {
            messages.push((part, SUBSYSTEM << 8 | (kind - 1), flags, body));
        };
        let key = |body: &Body, name: u16| {
            let of = &body.attributes;
            let text = |number: u16| of.text(number).unwrap_or_default();
            (body.fixed.first().copied().unwrap_or(0), text(TABLE), text(name))
        };
        for table in &self.tables {
            // A table that sleeps does so here too; whose it is matters to whoever changes it.
            let kept = if purpose == Purpose::Trial { DORMANT | OWNER } else { DORMANT };
            let mut attributes = table.attributes.only(&[TABLE]);
            let flags = table.attributes.number(FLAGS_OF_TABLE).unwrap_or(0) & kept;
            attributes.set(FLAGS_OF_TABLE, flags.to_be_bytes().to_vec());
            let name = table.attributes.text(TABLE).unwrap_or_default();
            add(Part::Table(name), GETTABLE, CREATE, table.with(attributes));
        }
        let mut left_out: HashSet<Key> = refused.chains.keys().cloned().collect();
        for chain in &self.chains {
            let of = key(chain, CHAIN_NAME);
            if left_out.contains(&of) {
                continue;
            }
            // Handle, uses, counters, padding, id, and what makes it a rule's own.
            let mut attributes = chain.attributes.without(&[2, 6, 8, 9, 10, 11, 12]);
            let mut hook = attributes.list(CHAIN_HOOK);
            let devices = hook.list(HOOK_DEVICES).names(DEVICE_NAME, is_there);
            let is_bound = hook.get(HOOK_DEVICE).is_some() || hook.get(HOOK_DEVICES).is_some();
            let number = hook.number(1);
            if is_bound && devices.is_empty() && !hook.text(HOOK_DEVICE).is_some_and(|device| is_there(&device)) {
                left_out.insert(of);
                continue;
            }
            if hook.get(HOOK_DEVICES).is_some() {
                hook.set_list(HOOK_DEVICES, &devices);
                attributes.set_list(CHAIN_HOOK, &hook);
            }
            add(Part::Chain(of, number), GETCHAIN, CREATE, chain.with(attributes));
        }
        for flowtable in self.flowtables.iter().filter(|one| !refused.flowtables.contains(&key(one, 2))) {
            let mut attributes = flowtable.attributes.only(&[TABLE, 2, FLOWTABLE_HOOK]);
            let mut hook = attributes.list(FLOWTABLE_HOOK);
            hook.set_list(FLOWTABLE_DEVICES, &hook.list(FLOWTABLE_DEVICES).names(DEVICE_NAME, is_there));
            attributes.set_list(FLOWTABLE_HOOK, &hook);
            attributes.set(FLOWTABLE_FLAGS, 0u32.to_be_bytes().to_vec());
            add(Part::Flowtable(key(flowtable, 2)), GETFLOWTABLE, CREATE, flowtable.with(attributes));
        }
        let is_left = |body: &Body| refused.sets.contains(&key(body, SET_NAME));
        for (set, id) in self.sets.iter().zip(1u32..).filter(|(set, _)| !is_left(set)) {
            // What a request may have. One without a name of its own becomes a plain one: rules name it.
            let mut attributes = set.attributes.only(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18]);
            if let Some(flags) = attributes.number(SET_FLAGS) {
                attributes.set(SET_FLAGS, (flags & !ANONYMOUS).to_be_bytes().to_vec());
            }
            attributes.set(SET_ID, id.to_be_bytes().to_vec());
            add(Part::Set(key(set, SET_NAME)), GETSET, CREATE, set.with(attributes));
        }
        for object in self.objects.iter().filter(|one| !refused.objects.contains(&key(one, OBJECT_NAME))) {
            let of = key(object, OBJECT_NAME);
            add(Part::Object(of), GETOBJ, CREATE, object.with(object.attributes.without(&[5, 6, 7])));
        }
        for elements in self.elements.iter().filter(|one| !is_left(one)) {
            let mut attributes = elements.attributes.only(&[1, 2]);
            attributes.set_list(ELEMENTS, &given_elements(&elements.attributes.list(ELEMENTS)));
            add(Part::Set(key(elements, SET_NAME)), GETSETELEM, CREATE, elements.with(attributes));
        }
        let wanted = purpose.wanted(facts);
        let filled = marks::filled(&self.sets, &self.rules);
        let read = Read::by(&self.rules, facts);
        let mut slots: HashMap<Key, Vec<Slot>> = HashMap::new();
        let mut before: HashMap<Key, usize> = HashMap::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let chain = key(rule, RULE_CHAIN);
            if left_out.contains(&chain) {
                continue;
            }
            let place = before.entry(chain.clone()).or_default();
            let own = *place;
            *place += 1;
            let in_chain = slots.entry(chain.clone()).or_default();
            let mut given = |expressions: &[Attributes], compat: Option<Attributes>, slot: Slot, part: Part| {
                let mut attributes = rule.attributes.without(&[3, 5, 6, 8, 9]);
                attributes.set_list(RULE_EXPRESSIONS, &Attributes::elements(expressions));
                if let Some(compat) = compat {
                    attributes.set_list(RULE_COMPAT, &compat);
                }
                in_chain.push(slot);
                add(part, GETRULE, CREATE | APPEND, rule.with(attributes));
            };
            let expressions = given_expressions(&rule.attributes);
            let compat = compat(&rule.attributes);
            match refused.rules.get(&index).copied().unwrap_or(0) {
                0 => {
                    let chosen = choices.get(&index);
                    if let Some(wanted) = wanted {
                        for mark in marks::of_rule(rule, &expressions, (&filled, read), wanted) {
                            // With a set that is not whole more is uncertain than what a way decides.
                            let at = facts.has_whole_sets.then_some(RuleAt::Nft(index));
                            let mark = Mark { rule: at, ..mark };
                            if chosen.is_some() && mark.reason == Reason::Anything {
                                continue;
                            }
                            let beside = marks::beside(rule, &expressions, &filled, wanted, mark.reason);
                            let beside = if refused.marks.contains(&index) { Vec::new() } else { beside };
                            given(&beside, compat.clone(), Slot::Mark(mark), Part::Mark(index));
                        }
                    }
                    let expressions = chosen.unwrap_or(&expressions);
                    given(expressions, compat, Slot::Rule(own), Part::Rule(index));
                }
                times => {
                    let plain = if times == 1 { expressions.iter().take_while(|one| is_plain(one)).count() } else { 0 };
                    let words = format!("a rule in chain {} that cannot be copied", chain.2);
                    let mark = Mark { reason: Reason::Anything, words, rule: None };
                    given(&expressions[..plain], None, Slot::Mark(mark), Part::Rule(index));
                }
            }
        }
        if purpose != Purpose::Trial {
            let own = |(kind, flags, body)| (Part::Own, kind, flags, body);
            messages.extend(tracing(purpose, links).into_iter().map(own));
        }
        (messages, slots)
    }
}

/// An error of the kernel's in words.
fn words(number: i32) -> String {
    let words = std::io::Error::from_raw_os_error(number).to_string();
    words.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An expression that every kernel takes back as it was listed.
fn is_plain(expression: &Attributes) -> bool {
    let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
    match name.as_str() {
        "cmp" | "bitwise" | "range" | "byteorder" => true,
        "meta" => data.get(3).is_none(),
        "payload" => data.get(5).is_none(),
        _ => false,
    }
}

/// Elements as they may be given: an end of an interval has neither a timeout nor anything beside its key.
fn given_elements(elements: &Attributes) -> Attributes {
    let one = |element: Attributes| if ruleset::is_end(&element) { element.without(&NOT_AT_AN_END) } else { element };
    Attributes::elements(&elements.lists().map(one).collect::<Vec<_>>())
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

/// A rule's expressions as they may be given, without those that would write to a log, or do something to the host.
pub(super) fn given_expressions(rule: &Attributes) -> Vec<Attributes> {
    let logs = |expression: &Attributes| match expression.text(NAME).as_deref() {
        Some("log") => true,
        Some("target") => expression
            .list(DATA)
            .text(1)
            .is_some_and(|target| ["LOG", "NFLOG", "ULOG", "AUDIT", "IDLETIMER", "LED"].contains(&target.as_str())),
        _ => false,
    };
    // A rule that has packets traced, or no more traced, would hide what comes behind it.
    let traces = |expression: &Attributes| {
        let data = expression.list(DATA);
        expression.text(NAME).as_deref() == Some("meta") && data.get(3).is_some() && data.number(2) == Some(NFTRACE)
    };
    let mut all: Vec<Attributes> =
        rule.list(RULE_EXPRESSIONS).lists().filter(|expression| !logs(expression) && !traces(expression)).collect();
    for expression in &mut all {
        let data = expression.list(DATA);
        let given = match expression.text(NAME).as_deref() {
            // What it was made with may be given, and not what has become of it.
            Some("quota") => {
                let mut data = data;
                let inverted = data.number(2).unwrap_or(0) & 1;
                data.set(2, inverted.to_be_bytes().to_vec());
                Some(data)
            }
            // The kernel lists a timeout of 0, but accepts one only for a set with timeouts.
            Some("dynset") if data.long(DYNSET_TIMEOUT) == Some(0) => Some(data.without(&[DYNSET_TIMEOUT])),
            // A list has more than a request may have: of an option that is set, and of one that is taken off.
            Some("exthdr") if data.get(EXTHDR_SREG).is_some() => Some(data.without(&[EXTHDR_DREG, EXTHDR_FLAGS])),
            Some("exthdr") if data.get(EXTHDR_DREG).is_none() => {
                Some(data.without(&[EXTHDR_OFFSET, EXTHDR_LEN, EXTHDR_FLAGS]))
            }
            _ => None,
        };
        if let Some(data) = given {
            expression.set_list(DATA, &data);
        }
    }
    all
}

/// `NFT_META_NFTRACE`
const NFTRACE: u32 = 12;

/// The tables' name in which packets are traced; whoever has one like it is not copied.
pub(super) const TRACER: &str = "observer_replay";

/// The tracer's chain behind all others: whatever comes there was let pass.
pub(super) const PASSED: &str = "passed";
/// The chain where a packet comes in, and the one where a packet of this namespace's begins.
pub(super) const IN: &str = "in";
pub(super) const OUT: &str = "out";

/// Chains before all others where a packet comes from, that have every packet traced (`meta nftrace set 1`); one behind all
/// others where it leaves. A single packet is dropped where it arrives: nobody is to answer it.
fn tracing(purpose: Purpose, links: &[String]) -> Vec<(u16, u16, Body)> {
    /// Before connections are looked up, and thus before all rules; and after all.
    const CHAINS: [(&str, u32, i32); 3] =
        [(IN, hook::PRE_ROUTING, i32::MIN), (OUT, hook::LOCAL_OUT, i32::MIN), (PASSED, hook::POST_ROUTING, i32::MAX)];
    let mut messages = vec![table(family::INET)];
    if purpose == Purpose::Packet {
        messages.push(chain(family::INET, "here", (hook::LOCAL_IN, i32::MIN, None), Some(DROP)));
    }
    for (name, on, priority) in CHAINS {
        messages.push(chain(family::INET, name, (on, priority, None), None));
        messages.push(traced(family::INET, name));
    }
    if purpose == Purpose::Conversation {
        messages.push(table(family::ARP));
        for (name, on) in [(IN, hook::ARP_IN), (OUT, hook::ARP_OUT)] {
            messages.push(chain(family::ARP, name, (on, i32::MIN, None), None));
            messages.push(traced(family::ARP, name));
        }
        // Before what hangs on an interface itself.
        messages.push(table(family::NETDEV));
        for (number, link) in links.iter().enumerate() {
            let name = format!("{IN}{number}");
            messages.push(chain(family::NETDEV, &name, (hook::NETDEV_INGRESS, i32::MIN, Some(link)), None));
            messages.push(traced(family::NETDEV, &name));
        }
    }
    messages
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn number(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn table(of: u8) -> (u16, u16, Body) {
    let mut table = Attributes::default();
    table.set(TABLE, text(TRACER));
    (SUBSYSTEM << 8 | (GETTABLE - 1), CREATE, Body { fixed: vec![of, 0, 0, 0], attributes: table })
}

fn chain(
    of: u8,
    name: &str,
    (on, priority, device): (u32, i32, Option<&String>),
    policy: Option<u32>,
) -> (u16, u16, Body) {
    let [mut hook, mut chain] = <[Attributes; 2]>::default();
    hook.set(1, number(on));
    hook.set(2, priority.to_be_bytes().to_vec());
    if let Some(device) = device {
        hook.set(HOOK_DEVICE, text(device));
    }
    chain.set(TABLE, text(TRACER));
    chain.set(CHAIN_NAME, text(name));
    chain.set_list(CHAIN_HOOK, &hook);
    if let Some(policy) = policy {
        chain.set(5, number(policy));
    }
    chain.set(7, text("filter"));
    (SUBSYSTEM << 8 | (GETCHAIN - 1), CREATE, Body { fixed: vec![of, 0, 0, 0], attributes: chain })
}

/// A rule that has packets traced.
fn traced(of: u8, chain: &str) -> (u16, u16, Body) {
    let [mut value, mut data, mut meta, mut rule] = <[Attributes; 4]>::default();
    value.set(1, vec![1]);
    data.set(1, number(8));
    data.set_list(2, &value);
    meta.set(2, number(NFTRACE));
    meta.set(3, number(8));
    let mut expressions = Vec::new();
    for (name, data) in [("immediate", &data), ("meta", &meta)] {
        let mut expression = Attributes::default();
        expression.set(NAME, text(name));
        expression.set_list(DATA, data);
        expressions.push(expression);
    }
    rule.set(TABLE, text(TRACER));
    rule.set(RULE_CHAIN, text(chain));
    rule.set_list(RULE_EXPRESSIONS, &Attributes::elements(&expressions));
    (SUBSYSTEM << 8 | (GETRULE - 1), CREATE | APPEND, Body { fixed: vec![of, 0, 0, 0], attributes: rule })
}

//! Sets of `ipset`, which matches of iptables' name by their places among all: a copy has each at the same place.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::kernel::netlink::{Attributes, Body, Message, Netlink};
use crate::{confinement::reader::Question, kernel::btf::Btf};

/// `NETLINK_NETFILTER`, `NFNL_SUBSYS_IPSET`, and a `struct nfgenmsg`.
const PROTOCOL: isize = 12;
const SUBSYSTEM: u16 = 6;
const FIXED: usize = 4;
/// `IPSET_CMD_*`
const CREATE: u16 = 2;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
const ADD: u16 = 9;
/// `IPSET_ATTR_*` of a command.
const VERSION: u16 = 1;
const NAME: u16 = 2;
const TYPE: u16 = 3;
const REVISION: u16 = 4;
const FAMILY: u16 = 5;
const DATA: u16 = 7;
const ELEMENTS: u16 = 8;
const LINE: u16 = 9;
const INDEX: u16 = 11;
/// What a copy has by itself: how large its hash is, how it grows, how many elements and users it has, and its memory.
const TOLD: [u16; 5] = [18, 22, 24, 25, 26];
/// `IPSET_ATTR_MEMSIZE`
const MEMORY: u16 = 26;
/// The protocol that tells the places of sets; Linux 4.20.
const NEWEST: u8 = 7;
/// The type of sets whose elements are sets.
const OF_SETS: &str = "list:set";
/// Sets that are copied, and places up to which they may be.
const MAX_INDEX: u16 = 4096;
/// Places among them that nobody has.
const MAX_GAPS: usize = 64;

/// One set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Set {
    index: u16,
    kind: String,
    /// What makes it.
    create: Body,
    elements: Vec<Body>,
    /// What it takes of the kernel's memory, in bytes.
    memory: u32,
}

/// All sets of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSets(Vec<Set>);

/// Lists the namespace of the calling thread by a confined process, if that takes no more than so many bytes.
pub const IPSETS: Question<IpSets> = Question::new("ipsets", list);

/// The same; none where the kernel could not be asked without loading something into it.
pub(super) fn of_here(limit: usize) -> Result<IpSets> {
    // Whoever is confined does not see what is loaded.
    if is_there() { IPSETS.ask(limit) } else { Ok(IpSets::default()) }
}

fn is_there() -> bool {
    Path::new("/sys/module/ip_set").exists() || Btf::of_kernel().is_ok_and(|btf| btf.has_struct("ip_set_type"))
}

fn body(name: Option<&str>) -> Body {
    let mut body = Body::new(&[libc::AF_INET as u8, 0, 0, 0]);
    body.attributes.set(VERSION, vec![NEWEST]);
    if let Some(name) = name {
        body.attributes.set(NAME, [name.as_bytes(), b"\0"].concat());
    }
    body
}

fn list(limit: usize) -> Result<IpSets> {
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    netlink.limit(limit);
    let mut sets: Vec<Set> = Vec::new();
    for told in netlink.dump(SUBSYSTEM << 8 | LIST, &body(None)).context("sets of ipset cannot be listed")? {
        let of = &told.attributes;
        let name = of.text(NAME).context("a set without a name")?;
        if let Some(data) = of.get(DATA).map(Attributes::parse) {
            let index = of.get(INDEX).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
            let index = index.context("this kernel does not tell the places of ipset's sets")?;
            let mut attributes = of.only(&[VERSION, NAME, TYPE, REVISION, FAMILY]);
            attributes.set_list(DATA, &given(&data.without(&TOLD)));
            let kind = of.text(TYPE).unwrap_or_default();
            let memory = data.number(MEMORY).unwrap_or(0);
            sets.push(Set { index, kind, create: told.with(attributes), elements: Vec::new(), memory });
        }
        let elements = of.only(&[VERSION, NAME, ELEMENTS]);
        if of.get(ELEMENTS).is_some_and(|bytes| !bytes.is_empty()) {
            let set = sets.iter_mut().find(|set| set.create.attributes.text(NAME).as_ref() == Some(&name));
            let all: Vec<Attributes> = elements.list(ELEMENTS).lists().map(|element| given(&element)).collect();
            let mut elements = elements;
            elements.set_list(ELEMENTS, &Attributes::lists_of(DATA, &all));
            elements.set(LINE, 0u32.to_be_bytes().to_vec());
            set.context("elements of a set that is not there")?.elements.push(told.with(elements));
        }
    }
    sets.sort_by_key(|set| set.index);
    Ok(IpSets(sets))
}

/// A list as it may be given: addresses are wanted with the mark of their byte order, which a list does not have.
fn given(list: &Attributes) -> Attributes {
    /// `IPSET_ATTR_IP`, `IPSET_ATTR_IP_TO`, `IPSET_ATTR_IP2`, `IPSET_ATTR_IP2_TO`
    const ADDRESSES: [u16; 4] = [1, 2, 20, 22];
    let mut given = list.clone();
    for number in ADDRESSES.into_iter().filter(|number| list.is_list(*number)) {
        given.put_list(number, &list.list(number).in_network_order());
    }
    given
}

/// Places that nobody has in the original, or whose set could not be made, and that were filled until the rules are there.
pub(super) struct Gaps {
    names: Vec<String>,
    /// Every set is there with all of its elements.
    pub(super) is_whole: bool,
}

impl IpSets {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|set| set.create.attributes.text(NAME).as_deref() == Some(name))
    }

    /// What all of them take of the kernel's memory, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.0.iter().map(|set| u64::from(set.memory)).sum()
    }

    /// There is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes the same in the namespace of the calling thread.
    pub(super) fn make(&self) -> Result<Gaps> {
        let mut gaps = Gaps { names: Vec::new(), is_whole: true };
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return Ok(gaps) };
        ensure!(last.index <= MAX_INDEX, "there are too many sets of ipset");
        let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
        let mut refused = |command: u16, body: &Body| {
            let made = one(&mut netlink, command, body);
            made.inspect_err(|error| log::debug!("{error:#}")).is_err()
        };
        // Of a type that is there: another one might be loaded for it.
        let mut filling = first.create.clone();
        for index in 0..=last.index {
            let own = self.0.iter().find(|set| set.index == index);
            if let Some(set) = own.filter(|set| !refused(CREATE, &set.create)) {
                filling = set.create.clone();
                continue;
            }
            gaps.is_whole &= own.is_none();
            // A set takes the first place that is free.
            let name = format!("observer-{index}");
            ensure!(gaps.names.len() < MAX_GAPS && !self.has(&name), "there are too many gaps between sets of ipset");
            filling.attributes.set(NAME, [name.as_bytes(), b"\0"].concat());
            ensure!(!refused(CREATE, &filling), "a set of ipset cannot be copied");
            gaps.names.push(name);
        }
        // A set of sets wants those to be there.
        for is_of_sets in [false, true] {
            for set in self.0.iter().filter(|set| (set.kind == OF_SETS) == is_of_sets) {
                for elements in &set.elements {
                    gaps.is_whole &= !refused(ADD, elements);
                }
            }
        }
        Ok(gaps)
    }
}

impl Gaps {
    /// Takes away what nobody has. What a rule names instead of a set that could not be made stays.
    pub(super) fn close(self) -> Result<()> {
        let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
        for name in &self.names {
            let closed = one(&mut netlink, DESTROY, &body(Some(name)));
            closed.or_else(|error| if self.is_whole { Err(error) } else { Ok(()) })?;
        }
        Ok(())
    }
}

fn one(netlink: &mut Netlink, command: u16, body: &Body) -> Result<()> {
    let refused = netlink.each([Message { kind: SUBSYSTEM << 8 | command, flags: 0, body }])?;
    if let Some((_, number)) = refused.first() {
        let name = body.attributes.text(NAME).unwrap_or_default();
        // Numbers from 4096 on are ipset's own.
        bail!("set {name} of ipset cannot be copied (error {number})");
    }
    Ok(())
}

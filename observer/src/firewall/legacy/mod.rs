//! Tables of iptables-legacy, as the kernel keeps them: one block of rules behind each other, in which chains are places.

mod words;

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    netfilter::{self, family},
    nft::{Chain, Rule, RuleVerdict},
};
use crate::{confinement::reader::Question, sys};

pub use words::{ChainText, Saved, Spot};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; of IPv6 they are the same.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Bytes of a `struct ipt_getinfo`, and of a `struct ipt_get_entries` before the entries.
const INFO_BYTES: usize = 84;
const ENTRIES_AT: usize = 40;
/// Longest name of a table, with its end.
pub const NAME_BYTES: usize = 32;
/// Names of matches and targets; behind name and revision comes what they are about.
const EXTENSION_NAME: usize = 29;
const EXTENSION_BYTES: usize = 32;
/// More than that is not read.
const MAX_BYTES: usize = 32 << 20;
/// Built-in chains by their hooks' numbers.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// The match by which chance decides.
pub const CHANCE: &str = "statistic";
/// Verdicts of a standard target, which are negative; else it is where a jump leads.
const DROP: i32 = -1;
const RETURN: i32 = -5;

/// A family's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `NFPROTO_*`
    pub family: u8,
    /// Level of its socket options.
    pub level: i32,
    /// Where an entry has its flags, of which one makes a goto of a jump.
    flags: usize,
    goto: u8,
    /// Where an entry has the offset of its target, behind which stands that of the next entry.
    target_offset: usize,
    /// Where it has its two counters.
    counters: usize,
    /// Its bytes before the first match.
    entry: usize,
}

/// Both families'.
pub const LAYOUTS: [Layout; 2] = [
    Layout {
        family: family::IPV4,
        level: libc::IPPROTO_IP,
        flags: 82,
        goto: 2,
        target_offset: 88,
        counters: 96,
        entry: 112,
    },
    Layout {
        family: family::IPV6,
        level: libc::IPPROTO_IPV6,
        flags: 131,
        goto: 4,
        target_offset: 140,
        counters: 152,
        entry: 168,
    },
];

/// What the kernel says of a table beside its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Bits of the hooks that it hangs on.
    pub valid_hooks: u32,
    /// Where the chain of each hook begins, and where its policy stands.
    pub hook_entry: [u32; 5],
    /// See [`Self::hook_entry`].
    pub underflow: [u32; 5],
    /// Entries in it.
    pub entries: u32,
    /// Bytes of them.
    pub bytes: u32,
}

/// A table of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its family's numbers.
    pub layout: Layout,
    /// Its name.
    pub name: String,
    /// What the kernel tells beside.
    pub info: Info,
    /// Its entries as they are.
    pub block: Vec<u8>,
}

/// What an entry does with a packet that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// Accepts, or gives it to a queue: this table lets it pass.
    Accepts,
    /// Drops.
    Drops,
    /// Back to where its chain was entered from.
    Returns,
    /// On to the entry at this offset.
    Leads(usize),
    /// To a chain, from which there is no way back here.
    GoesTo(usize),
    /// Something of an extension, by name.
    Extension(String),
    /// It is no rule: a chain of this name begins behind it.
    Begins(String),
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyEntry {
    /// Where it begins.
    pub at: usize,
    /// Where the next one does.
    pub next: usize,
    /// Where its target begins.
    pub target: usize,
    /// Names of its matches.
    pub matches: Vec<String>,
    /// What it does.
    pub does: Does,
    /// Packets that it has matched.
    pub packets: u64,
}

/// A chain's entries: indexes into those of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyChain {
    /// Its name.
    pub name: String,
    /// Its hook, where it is a built-in one.
    pub hook: Option<usize>,
    /// Its rules; what follows the last is its policy, or the way back.
    pub rules: std::ops::Range<usize>,
}

/// Names of the tables of the calling thread's namespace, with their families' numbers. None is loaded for it.
pub fn names() -> Vec<(Layout, String)> {
    // Of the thread: `/proc/net` is the namespace of the process.
    let of = |layout: Layout| {
        let file = if layout.family == family::IPV4 { "ip_tables_names" } else { "ip6_tables_names" };
        let names = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        names.lines().map(|name| (layout, name.to_owned())).collect::<Vec<_>>()
    };
    LAYOUTS.into_iter().flat_map(of).collect()
}

/// The tables of the calling thread's namespace, read by a confined process.
pub const TABLES: Question<Vec<Table>> =
    Question::new("legacy-tables", |_| names().into_iter().map(|(layout, name)| Table::read(layout, &name)).collect());

/// All tables of the calling thread's namespace.
pub fn tables() -> Result<Vec<Table>> {
    // Most have none.
    if names().is_empty() { Ok(Vec::new()) } else { TABLES.ask(0) }
}

/// A socket whose options are the tables of the calling thread's namespace.
pub fn socket(layout: Layout) -> Result<UdpSocket> {
    let address = if layout.family == family::IPV4 { "0.0.0.0:0" } else { "[::]:0" };
    UdpSocket::bind(address).context("cannot make a socket")
}

impl Table {
    /// Reads one.
    pub fn read(layout: Layout, name: &str) -> Result<Self> {
        const ATTEMPTS: usize = 4;
        ensure!(name.len() < NAME_BYTES, "a table's name is too long");
        let socket = socket(layout)?;
        for _ in 0..ATTEMPTS {
            let mut question = [0; INFO_BYTES];
            question[..name.len()].copy_from_slice(name.as_bytes());
            sys::socket_option(socket.as_fd(), layout.level, GET_INFO, &mut question)
                .with_context(|| format!("the kernel does not tell of table {name} of iptables-legacy"))?;
            let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| question[at + byte]));
            let words = |at: usize| [0, 1, 2, 3, 4].map(|index| word(at + 4 * index));
            let info = Info {
                valid_hooks: word(32),
                hook_entry: words(36),
                underflow: words(56),
                entries: word(76),
                bytes: word(80),
            };
            ensure!(info.bytes as usize <= MAX_BYTES, "table {name} of iptables-legacy is too long");
            let mut block = vec![0; ENTRIES_AT + info.bytes as usize];
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&info.bytes.to_ne_bytes());
            match sys::socket_option(socket.as_fd(), layout.level, GET_ENTRIES, &mut block) {
                Ok(_) => {
                    block.drain(..ENTRIES_AT);
                    return Ok(Self { layout, name: name.to_owned(), info, block });
                }
                // It has changed in between.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read table {name} of iptables-legacy"));
                }
            }
        }
        anyhow::bail!("table {name} of iptables-legacy changes all the time")
    }

    /// Its entries, in order.
    pub fn entries(&self) -> Result<Vec<LegacyEntry>> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < self.block.len() {
            let entry = self.entry(at).context("a table of iptables-legacy is not as expected")?;
            at = entry.next;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn entry(&self, at: usize) -> Option<LegacyEntry> {
        let layout = self.layout;
        let half = |at: usize| Some(usize::from(u16::from_ne_bytes(self.block.get(at..at + 2)?.try_into().ok()?)));
        let target = at + half(at + layout.target_offset)?;
        let next = at + half(at + layout.target_offset + 2)?;
        if !(at + layout.entry..next).contains(&target) || next > self.block.len() {
            return None;
        }
        let mut matches = Vec::new();
        let mut one = at + layout.entry;
        while one < target {
            let bytes = half(one)?;
            if bytes < EXTENSION_BYTES {
                return None;
            }
            matches.push(self.extension(one)?);
            one += bytes;
        }
        let goes = self.block.get(at + layout.flags)? & layout.goto != 0;
        let data = target + EXTENSION_BYTES;
        let does = match self.extension(target)?.as_str() {
            "" => match i32::from_ne_bytes(self.block.get(data..data + 4)?.try_into().ok()?) {
                DROP => Does::Drops,
                RETURN => Does::Returns,
                to if to >= 0 && goes => Does::GoesTo(to as usize),
                to if to >= 0 => Does::Leads(to as usize),
                _ => Does::Accepts,
            },
            "ERROR" => Does::Begins(text(self.block.get(data..data + EXTENSION_NAME)?)),
            name => Does::Extension(name.to_owned()),
        };
        let packets =
            u64::from_ne_bytes(self.block.get(at + layout.counters..at + layout.counters + 8)?.try_into().ok()?);
        Some(LegacyEntry { at, next, target, matches, does, packets })
    }

    /// False where an entry is about other addresses or ports, or another protocol. An address of all zeros may be any, and so may
    /// port 0.
    pub fn may_match(&self, entry: &LegacyEntry, source: SocketAddr, destination: SocketAddr, protocol: u8) -> bool {
        /// `IPT_INV_SRCIP`, `IPT_INV_DSTIP`, `IPT_INV_PROTO`; of IPv6 they are the same.
        const NOT_SOURCE: u8 = 8;
        const NOT_DESTINATION: u8 = 16;
        const NOT_PROTOCOL: u8 = 64;
        let head = self.block.get(entry.at..entry.at + self.layout.entry).unwrap_or_default();
        let length = if self.layout.family == family::IPV4 { 4 } else { 16 };
        // Both addresses, both masks, two interfaces with their masks; then the protocol.
        let of_protocol = 4 * length + 64;
        let inverse = head.get(self.layout.flags + 1).copied().unwrap_or(0);
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let is_in = |address: IpAddr, at: usize| {
            let (wanted, mask) = (head.get(at..at + length), head.get(at + 2 * length..at + 3 * length));
            let (Some(wanted), Some(mask)) = (wanted, mask) else { return true };
            bytes(address).iter().zip(wanted).zip(mask).all(|((own, wanted), mask)| own & mask == *wanted)
        };
        let fits = |address: IpAddr, at: usize, flag: u8| {
            address.is_unspecified() || is_in(address, at) != (inverse & flag != 0)
        };
        let wanted = head.get(of_protocol..of_protocol + 2).and_then(|bytes| bytes.try_into().ok());
        let wanted = wanted.map_or(0, u16::from_ne_bytes);
        let is_it = wanted == 0 || (wanted == u16::from(protocol)) != (inverse & NOT_PROTOCOL != 0);
        is_it
            && fits(source.ip(), 0, NOT_SOURCE)
            && fits(destination.ip(), length, NOT_DESTINATION)
            && self.may_have_ports(entry, source.port(), destination.port())
    }

    /// The same table, with an entry of which chance decides made to match always, or never; nothing where that is not so.
    pub fn without_chance(&self, entry: &LegacyEntry, matches: bool) -> Option<Self> {
        /// `XT_STATISTIC_MODE_RANDOM` without a flag, and the smallest probability that is certain.
        const RANDOM: [u8; 4] = [0; 4];
        const CERTAIN: u32 = 1 << 31;
        let mut table = self.clone();
        let mut one = entry.at + self.layout.entry;
        let mut is_found = false;
        for name in &entry.matches {
            let bytes = usize::from(u16::from_ne_bytes(self.block.get(one..one + 2)?.try_into().ok()?));
            if name == CHANCE {
                let data = one + EXTENSION_BYTES;
                table.block.get_mut(data..data + 4)?.copy_from_slice(&RANDOM);
                let probability = if matches { CERTAIN } else { 0 };
                table.block.get_mut(data + 4..data + 8)?.copy_from_slice(&probability.to_ne_bytes());
                is_found = true;
            }
            one += bytes;
        }
        is_found.then_some(table)
    }

    /// The same by the matches of TCP and UDP alone.
    fn may_have_ports(&self, entry: &LegacyEntry, source: u16, destination: u16) -> bool {
        /// `XT_TCP_INV_SRCPT` and `XT_TCP_INV_DSTPT`; of UDP they are the same, at another place.
        const NOT_SOURCE: u8 = 1;
        const NOT_DESTINATION: u8 = 2;
        let mut one = entry.at + self.layout.entry;
        for name in &entry.matches {
            let half = |at: usize| Some(u16::from_ne_bytes(self.block.get(at..at + 2)?.try_into().ok()?));
            let (Some(bytes), data) = (half(one), one + EXTENSION_BYTES) else { return true };
            let inverse = match name.as_str() {
                "tcp" => self.block.get(data + 11),
                "udp" => self.block.get(data + 8),
                _ => None,
            };
            let ports = [half(data), half(data + 2), half(data + 4), half(data + 6)];
            if let (Some(inverse), [Some(from), Some(to), Some(low), Some(high)]) = (inverse, ports) {
                let fits = |port: u16, range: std::ops::RangeInclusive<u16>, flag: u8| {
                    port == 0 || range.contains(&port) != (inverse & flag != 0)
                };
                if !fits(source, from..=to, NOT_SOURCE) || !fits(destination, low..=high, NOT_DESTINATION) {
                    return false;
                }
            }
            one += usize::from(bytes);
        }
        true
    }

    /// Name of a match or target.
    fn extension(&self, at: usize) -> Option<String> {
        Some(text(self.block.get(at + 2..at + 2 + EXTENSION_NAME)?))
    }

    /// Its chains, as they stand there.
    pub fn chains(&self, entries: &[LegacyEntry]) -> Vec<LegacyChain> {
        let index = |offset: u32| entries.binary_search_by_key(&(offset as usize), |entry| entry.at).ok();
        let built_in = BUILT_IN.iter().enumerate().filter_map(|(hook, name)| {
            let rules = (self.info.valid_hooks >> hook & 1 != 0)
                .then(|| Some(index(self.info.hook_entry[hook])?..index(self.info.underflow[hook])?))??;
            Some(LegacyChain { name: (*name).to_owned(), hook: Some(hook), rules })
        });
        let mut chains: Vec<LegacyChain> = built_in.collect();
        let begins: Vec<usize> =
            (0..entries.len()).filter(|index| matches!(entries[*index].does, Does::Begins(_))).collect();
        // The last one ends the table.
        for pair in begins.windows(2) {
            if let Does::Begins(name) = &entries[pair[0]].does {
                // Before the next one there is the way back.
                chains.push(LegacyChain {
                    name: name.clone(),
                    hook: None,
                    rules: pair[0] + 1..(pair[1] - 1).max(pair[0] + 1),
                });
            }
        }
        chains
    }

    /// What it says but for its counters: equal for two that do the same.
    pub fn rules(&self) -> Result<Vec<u8>> {
        let mut rules = self.block.clone();
        for entry in self.entries()? {
            let at = entry.at + self.layout.counters;
            rules[at..at + 16].fill(0);
        }
        Ok(rules)
    }

    /// A rule has connection tracking look at packets: its extensions' names are in it.
    pub fn tracks(&self) -> Result<bool> {
        const NAMES: [&[u8]; 7] =
            [b"conntrack\0", b"state\0", b"connmark\0", b"connbytes\0", b"connlimit\0", b"connlabel\0", b"helper\0"];
        let rules = self.rules()?;
        let has = |name: &&[u8]| memchr::memmem::find(&rules, name).is_some();
        Ok(NAMES.iter().any(has) || self.name == "nat" && !self.as_nft()?.1.is_empty())
    }

    /// The same as chains and rules of nftables', for whoever knows those; a rule's place in its chain stands for its handle.
    pub fn as_nft(&self) -> Result<(Vec<Chain>, Vec<Rule>)> {
        let entries = self.entries()?;
        let legacy = self.chains(&entries);
        let policy = |chain: &LegacyChain| match entries.get(chain.rules.end).map(|entry| &entry.does) {
            Some(Does::Drops) => netfilter::DROP,
            _ => netfilter::ACCEPT,
        };
        let chains = legacy.iter().map(|chain| Chain {
            family: self.layout.family,
            table: self.name.clone(),
            name: chain.name.clone(),
            handle: 0,
            hook: chain.hook.and_then(|hook| u32::try_from(hook).ok()),
            priority: chain.hook.and(priority(&self.name)),
            policy: chain.hook.map(|_| policy(chain)),
        });
        let starts: HashMap<usize, &str> = legacy
            .iter()
            .filter(|chain| chain.hook.is_none())
            .map(|chain| (chain.rules.start, chain.name.as_str()))
            .collect();
        let name_at = |offset: usize| {
            let first = entries.binary_search_by_key(&offset, |entry| entry.at).ok()?;
            starts.get(&first).map(|name| (*name).to_owned())
        };
        let rules = legacy.iter().flat_map(|chain| {
            entries[chain.rules.clone()].iter().zip(1..).map(|(entry, place)| Rule {
                family: self.layout.family,
                table: self.name.clone(),
                chain: chain.name.clone(),
                handle: place,
                verdicts: match &entry.does {
                    Does::Drops => vec![RuleVerdict::Drop],
                    Does::Extension(name) if name == REJECT => vec![RuleVerdict::Reject],
                    Does::Leads(to) | Does::GoesTo(to) => name_at(*to).map(RuleVerdict::Chain).into_iter().collect(),
                    _ => Vec::new(),
                },
                packets: Some(entry.packets),
            })
        });
        Ok((chains.collect(), rules.collect()))
    }
}

/// When a table is asked at its hooks.
fn priority(table: &str) -> Option<i32> {
    [("raw", -300), ("mangle", -150), ("nat", -100), ("filter", 0), ("security", 50)]
        .into_iter()
        .find_map(|(name, priority)| (name == table).then_some(priority))
}

/// The target that tells the sender.
pub const REJECT: &str = "REJECT";

impl Table {
    /// The same with every REJECT made a DROP: nobody is to get an answer. Both targets are equally long.
    pub fn silent(&self) -> Result<Vec<u8>> {
        let mut block = self.rules()?;
        for entry in self.entries()? {
            if entry.does == Does::Extension(REJECT.to_owned()) {
                let data = entry.target + EXTENSION_BYTES;
                block[entry.target + 2..data].fill(0);
                block[data..data + 4].copy_from_slice(&DROP.to_ne_bytes());
                block[data + 4..entry.next].fill(0);
            }
        }
        Ok(block)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

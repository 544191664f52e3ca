//! What is in a namespace that packets depend on: read there, and made again in another one.

use std::{
    collections::HashMap,
    fs::{self, File},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use sha2::{Digest, Sha256};

use super::{
    choices::{Choices, RuleAt},
    conntrack::{self, Connection},
    ipsec,
    ipset::{self, IpSets},
    legacy,
    marks::{self, Facts},
    packet::Whole,
    remake::{Made, Purpose},
    ruleset::{self, CopiedRule, LISTED, Listed},
    shape::Shape,
    surroundings::{Peers, SURROUNDINGS, Surroundings, WITH_POLICIES, WITHOUT_POLICIES},
};
use crate::{
    firewall::{
        legacy::{ChainText, Does, LegacyEntry, Saved, Table, tables},
        netfilter::{DROP, family},
        nft,
    },
    model::Packet,
};

/// Bytes of the tables of iptables-legacy that are copied.
const MAX_LEGACY: usize = 16 << 20;
/// Texts of iptables-legacy's rules are waited for so long.
const SAVED: Duration = Duration::from_secs(10);
/// What is in a namespace that packets depend on.
pub struct Copied {
    pub(super) rules: Listed,
    pub(super) legacy: Vec<Table>,
    /// The text of the tables of iptables-legacy.
    pub(super) saved: Saved,
    pub(super) sets: Arc<IpSets>,
    pub(super) around: Arc<Surroundings>,
}

/// Which rules are in force: different ones have different numbers, or bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    generation: u32,
    /// SHA-256 of each table of iptables-legacy.
    legacy: Vec<[u8; 32]>,
}

/// What is to be known before a packet is sent again.
pub struct Asked {
    /// The rules that are in force now.
    pub version: Version,
    /// What the packet's connection is.
    pub connection: Connection,
}

/// The rules that are in force in the namespace of the calling thread.
pub fn version() -> Result<Version> {
    Ok(Version { generation: nft::generation()?, legacy: rules_of(&tables()?)? })
}

/// Looks into the namespace of the calling thread.
pub fn ask(packet: &Packet) -> Result<Asked> {
    let whole = Whole::of(packet)?;
    Ok(Asked { version: version()?, connection: conntrack::of(&whole) })
}

fn rules_of(tables: &[Table]) -> Result<Vec<[u8; 32]>> {
    tables.iter().map(|table| Ok(Sha256::digest(table.rules()?).into())).collect()
}

/// What is around the rules of the namespace of the calling thread: interfaces, addresses, routes, settings. Reads no rules, which
/// could load what reads them.
pub fn around() -> Result<Around> {
    SURROUNDINGS.ask(WITHOUT_POLICIES).map(Around)
}

/// See [`around`].
pub struct Around(Surroundings);

impl Around {
    /// Makes the same in the namespace of the calling thread.
    pub fn make(&self) -> Result<()> {
        self.0.make(Peers::Here).map(drop)
    }
}

/// Reads the namespace of the calling thread; a ruleset of more than so many bytes is not read.
pub fn take(limit: usize) -> Result<Copied> {
    let rules = LISTED.ask(limit)?;
    let legacy = tables()?;
    let bytes: usize = legacy.iter().map(|table| table.block.len()).sum();
    ensure!(bytes <= limit.min(MAX_LEGACY), "it is too long to be copied");
    let saved = Saved::begin(&legacy);
    let sets = Arc::new(ipset::of_here(limit)?);
    // Whoever is confined does not see what is loaded.
    let asked = if ipsec::is_there() { WITH_POLICIES } else { WITHOUT_POLICIES };
    let around = Arc::new(SURROUNDINGS.ask(asked)?);
    Ok(Copied { rules, legacy, saved, sets, around })
}

/// Whether what a rule logs in a copy would be logged; asked where observer itself lives.
pub fn logs_everywhere() -> bool {
    const SWITCH: &str = "/proc/sys/net/netfilter/nf_log_all_netns";
    // Only the first network namespace has the switch: where this is another one, the first process may live there, and the kernel's
    // own threads, of which the first follows it, do.
    let of_the_first = || {
        let namespace = ["1", "2"].iter().find_map(|process| File::open(format!("/proc/{process}/ns/net")).ok())?;
        let read = thread::Builder::new().spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).ok()?;
            fs::read_to_string(SWITCH).ok()
        });
        read.ok()?.join().ok().flatten()
    };
    // Where it is not to be seen it may be on.
    fs::read_to_string(SWITCH).ok().or_else(of_the_first).is_none_or(|on| on.trim() != "0")
}

impl Copied {
    /// Makes the same in the namespace of the calling thread. The inner error says what could not be set.
    pub(super) fn make(
        &self,
        purpose: Purpose,
        peers: Peers<'_>,
        logs: bool,
        choices: &Choices,
    ) -> Result<(Made, Result<()>)> {
        let set = self.around.make(peers)?;
        // Rules and tables name sets by their places among all.
        let gaps = self.sets.make()?;
        let facts = Facts { has_whole_sets: gaps.is_whole, ..self.facts() };
        let made = self.rules.make(purpose, &self.around.names(), facts, choices)?;
        let asks_for_sets = |entry: &LegacyEntry| entry.matches.iter().any(|name| name == "set");
        ensure!(
            gaps.is_whole || !self.legacy.iter().flat_map(Table::entries).flatten().any(|entry| asks_for_sets(&entry)),
            "a set of ipset cannot be copied, and rules of iptables-legacy ask for sets"
        );
        legacy::make(&self.legacy, choices, logs)?;
        gaps.close()?;
        Ok((made, set))
    }

    /// Makes the same for whoever changes it; rules of the copy by family, table and handle, and their handles in the original.
    pub fn make_anew(&self, logs: bool) -> Result<(Kept, Handles)> {
        let (made, set) = self.make(Purpose::Trial, Peers::Here, logs, &Choices::new())?;
        set?;
        // What is left out here would be missing in whatever is made of it.
        ensure!(made.is_whole(), "rules of it cannot be copied, and nothing is tried without them");
        let originals = self.rules.handles();
        let rules = ruleset::own_rules(&made.slots)?.into_iter();
        let named = |(own, rule): ((u8, String, u64), CopiedRule)| {
            let CopiedRule::Of(place) = rule else { return None };
            Some(((family::name(own.0).to_owned(), own.1, own.2), *originals.get(&place)?))
        };
        let handles = rules.filter_map(named).collect();
        Ok((Kept { _made: made }, handles))
    }

    /// What the rules do, whatever they are numbered.
    pub fn shape(&mut self) -> Result<Shape> {
        let mut shape = Shape::of(&self.rules);
        let saved = self.saved.all(Instant::now() + SAVED).context("iptables-legacy-save does not answer")?;
        for table in &self.legacy {
            let of = table.layout.family;
            for chain in table.as_nft()?.0 {
                let is_it =
                    |text: &&ChainText| (text.family, &text.table, &text.chain) == (of, &table.name, &chain.name);
                let rules = saved.iter().find(is_it).map(|text| text.rules.as_slice()).unwrap_or_default();
                let hook = chain.hook.map(|number| (number, chain.policy == Some(DROP)));
                shape.add_legacy((of, &table.name, &chain.name), hook, rules);
            }
        }
        Ok(shape)
    }

    /// The rules that are in force now in a copy of it, in which the calling thread lives, with what is around them there.
    pub fn again(&self) -> Result<Self> {
        let (rules, legacy) = (LISTED.ask(usize::MAX)?, tables()?);
        let saved = Saved::begin(&legacy);
        // Another program may have changed them, too.
        let sets = if self.sets.is_empty() { Arc::clone(&self.sets) } else { Arc::new(ipset::of_here(usize::MAX)?) };
        Ok(Self { rules, legacy, saved, sets, around: Arc::clone(&self.around) })
    }

    /// A rule has these bytes somewhere, in a comment for example.
    pub fn mentions(&self, words: &str) -> bool {
        let in_legacy = |table: &Table| memchr::memmem::find(&table.block, words.as_bytes()).is_some();
        self.rules.mentions(words) || self.legacy.iter().any(in_legacy)
    }

    /// The namespace forwards packets.
    pub fn forwards(&self) -> bool {
        self.around.forwards(false) || self.around.forwards(true)
    }

    /// Something in it asks for the sender's cgroup.
    pub(super) fn asks_for_cgroups(&self) -> bool {
        let has_cgroup = |entry: &LegacyEntry| entry.matches.iter().any(|name| name == "cgroup");
        self.rules.asks_for_cgroups()
            || self.legacy.iter().flat_map(Table::entries).flatten().any(|entry| has_cgroup(&entry))
    }

    /// What a copy of it takes of the kernel's memory, in bytes and about.
    pub(super) fn weight(&self) -> u64 {
        let elements = self.rules.elements.iter().map(|list| 4 * list.attributes.bytes().len() as u64).sum::<u64>();
        elements + self.sets.memory()
    }

    /// Rules set marks of packets.
    pub(super) fn sets_marks(&self) -> bool {
        !self.legacy.is_empty() || marks::set_marks(&self.rules.rules)
    }

    /// What decides about marks. Where rules of iptables-legacy ask for sets of ipset, those are whole: otherwise nothing is copied.
    pub(super) fn facts(&self) -> Facts {
        let facts = self.around.facts();
        let fills = |entry: &LegacyEntry| matches!(&entry.does, Does::Extension(name) if name == marks::FILLING);
        // Whether sets are whole is known once they are made. Rules of iptables-legacy may ask for whatever others have set.
        Facts {
            routes_by_mark: facts.routes_by_mark || !self.legacy.is_empty(),
            fills_ipsets: marks::fill_ipsets(&self.rules.rules)
                || self.legacy.iter().flat_map(Table::entries).flatten().any(|entry| fills(&entry)),
            ..facts
        }
    }

    /// Number of ways of a rule in a copy for conversations; `None` if they cannot be listed.
    pub(super) fn count_ways(&self, rule: RuleAt) -> Option<usize> {
        match rule {
            RuleAt::Nft(rule) => self.rules.count_ways(rule, Purpose::Conversation, self.facts()),
            RuleAt::Legacy(..) => Some(legacy::WAYS.len()),
        }
    }

    /// Which rules were copied.
    pub fn version(&self) -> Result<Version> {
        Ok(Version { generation: self.rules.generation, legacy: rules_of(&self.legacy)? })
    }
}

/// Handles in the original by family, table and handle in a copy.
pub type Handles = HashMap<(String, String, u64), u64>;

/// What a copy needs as long as it is used.
pub struct Kept {
    _made: Made,
}

//! A copy of iptables-legacy's tables: given back to the kernel as it gave them out, and a packet's way through them, by their
//! counters.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    choices::{Choices, RuleAt},
    lab::Following,
    marks::{self, Facts, Mark},
    packet::Whole,
    passage::Passage,
};
use crate::{
    firewall::{
        legacy::{self, Does, LegacyChain, LegacyEntry, NAME_BYTES, REJECT, Spot, Table},
        netfilter::family,
    },
    model::Verdict,
    sys,
};

/// `IPT_SO_SET_REPLACE`; of IPv6 it is the same.
const SET_REPLACE: i32 = 64;
/// Where a `struct ipt_replace` has the pointer to counters, and its entries.
const COUNTERS_AT: usize = 88;
const ENTRIES_AT: usize = 96;
/// Tables in the order in which a hook asks them.
const ORDER: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];
/// Targets that do something to the whole host, wherever they are: an audit log, a timer, a light.
const OF_THE_HOST: [&str; 3] = ["AUDIT", "IDLETIMER", "LED"];

/// Why nothing is reported, this time.
#[derive(Debug, thiserror::Error)]
#[error("other packets went through the copy, too")]
pub(super) struct Crossed;

/// Where a packet's way ended: in which table, by its place among those that were copied.
pub(super) type Ended = (usize, Spot);

/// The ways of an entry by which chance decides: it matches, or it does not.
pub(super) const WAYS: [bool; 2] = [true, false];

/// Makes the tables in the namespace of the calling thread, in which entries go the ways that were chosen. `logs`: a log's target would
/// write there too.
pub(super) fn make(tables: &[Table], choices: &Choices, logs: bool) -> Result<()> {
    let has = |names: &[&str]| -> Result<bool> {
        let is_one =
            |entry: &LegacyEntry| matches!(&entry.does, Does::Extension(name) if names.contains(&name.as_str()));
        let all: Vec<Vec<LegacyEntry>> = tables.iter().map(Table::entries).collect::<Result<_>>()?;
        Ok(all.iter().flatten().any(is_one))
    };
    ensure!(
        !has(&OF_THE_HOST)?,
        "a rule of iptables-legacy writes to the audit log, or sets a timer or light of the host's"
    );
    ensure!(
        !(logs && has(&["LOG"])?),
        "a replay could write to the kernel log (net.netfilter.nf_log_all_netns is on, or not visible here)"
    );
    tables.iter().enumerate().try_for_each(|(number, table)| {
        let mut table = Cow::Borrowed(table);
        for (rule, way) in choices {
            if let RuleAt::Legacy(of, index) = rule
                && *of == number
            {
                let entries = table.entries()?;
                let entry = entries.get(*index).context("an entry that is not there")?;
                let way = WAYS.get(*way).context("a way that the rule does not have")?;
                table = Cow::Owned(table.without_chance(entry, *way).context("a way that the rule does not have")?);
            }
        }
        replace(&table)
    })
}

fn replace(table: &Table) -> Result<()> {
    let socket = legacy::socket(table.layout)?;
    // The kernel makes an empty one when it is asked.
    let own = Table::read(table.layout, &table.name)?;
    let mut block = vec![0; ENTRIES_AT];
    block[..table.name.len()].copy_from_slice(table.name.as_bytes());
    let info = &table.info;
    let words = [info.valid_hooks, info.entries, info.bytes];
    let words = words.into_iter().chain(info.hook_entry).chain(info.underflow).chain([own.info.entries]);
    for (word, into) in words.zip(block[NAME_BYTES..COUNTERS_AT].as_chunks_mut::<4>().0) {
        *into = word.to_ne_bytes();
    }
    block.extend(table.silent()?);
    let mut old = vec![[0; 2]; own.info.entries as usize];
    sys::replace_xtable(socket.as_fd(), table.layout.level, SET_REPLACE, &mut block, COUNTERS_AT, &mut old)
        .with_context(|| format!("the kernel refuses a copy of table {} of iptables-legacy", table.name))
}

/// What the counters of a copy say.
pub(super) struct Counted(Vec<Vec<u64>>);

/// Reads the counters in the namespace of the calling thread.
pub(super) fn count(tables: &[Table]) -> Result<Counted> {
    let of = |table: &Table| {
        let entries = Table::read(table.layout, &table.name)?.entries()?;
        anyhow::Ok(entries.iter().map(|entry| entry.packets).collect())
    };
    Ok(Counted(tables.iter().map(of).collect::<Result<_>>()?))
}

impl Counted {
    /// Where the one packet that was counted since ended, and the marks on its way; `None` when every table let it pass.
    pub(super) fn ended(
        &self,
        now: &Self,
        (tables, facts): (&[Table], Facts),
        whole: &Whole,
        passage: Passage,
    ) -> Result<(Option<Ended>, Vec<Mark>)> {
        let mut asked: Vec<Mark> = Vec::new();
        let mut ways = self.walks(now, tables, whole.family())?;
        let mut ended = None;
        for hook in passage.hooks() {
            for way in &mut ways {
                if ended.is_none() {
                    let (end, entries) = way.through(&hook.to_uppercase())?;
                    ended = end;
                    for index in entries {
                        let entry = &way.entries[index];
                        // One that has matched was asked for everything, and one whose addresses are others' for nothing.
                        let may = |from, to| way.table.may_match(entry, from, to, whole.protocol);
                        if way.matched.get(index) != Some(&0) || may(whole.from(), whole.to()) {
                            asked.extend(marks::of_legacy(&way.table.name, entry, facts));
                        }
                    }
                }
            }
        }
        // Somebody else's packet may have matched where this one did not.
        let alone = ways.iter().all(|way| way.matched.iter().sum::<u64>() == way.visited);
        ensure!(alone, Crossed);
        Ok((ended, asked))
    }

    fn walks<'a>(&self, now: &Self, tables: &'a [Table], family: u8) -> Result<Vec<TableWalk<'a>>> {
        let mut ways = Vec::new();
        for (index, table) in tables.iter().enumerate().filter(|(_, table)| table.layout.family == family) {
            let (before, after) = self.0.get(index).zip(now.0.get(index)).context("a table was not counted")?;
            let matched = after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before)).collect();
            let entries = table.entries()?;
            ways.push(TableWalk { index, table, chains: table.chains(&entries), entries, matched, visited: 0 });
        }
        ways.sort_by_key(|way| ORDER.iter().position(|name| *name == way.table.name));
        Ok(ways)
    }

    /// Where a packet of a conversation was dropped since, and on which way: several packets were counted.
    pub(super) fn stopped(&self, now: &Self, tables: &[Table], v6: bool) -> Result<Option<(usize, Spot, Passage)>> {
        let family = if v6 { family::IPV6 } else { family::IPV4 };
        for way in self.walks(now, tables, family)? {
            let drops = |(index, entry): &(usize, &LegacyEntry)| {
                let is_reject = matches!(&entry.does, Does::Extension(name) if name == REJECT);
                (entry.does == Does::Drops || is_reject) && way.matched.get(*index).is_some_and(|times| *times > 0)
            };
            let Some((index, entry)) = way.entries.iter().enumerate().find(drops) else { continue };
            let verdict = if entry.does == Does::Drops { Verdict::Drop } else { Verdict::Reject };
            let chain = way.chain_of(index).context("a rule of no chain")?;
            let position = chain.rules.contains(&index).then(|| index - chain.rules.start + 1);
            let path = way.path_to(chain)?;
            let passage = match path.first().map(String::as_str) {
                Some("OUTPUT" | "POSTROUTING") => Passage::Out,
                Some("INPUT" | "PREROUTING") => Passage::In,
                _ => Passage::Through,
            };
            return Ok(Some((way.index, Spot { chain: chain.name.clone(), position, path, verdict }, passage)));
        }
        Ok(None)
    }

    /// The marks that packets of a conversation may have met: in every chain that they came to, up to the last rule that matched one
    /// of them.
    pub(super) fn met(
        &self,
        now: &Self,
        (tables, facts): (&[Table], Facts),
        following: &Following<'_>,
    ) -> Result<Vec<Mark>> {
        let (talk, own_port) = (following.talk, following.own_port);
        let family = if talk.to.is_ipv6() { family::IPV6 } else { family::IPV4 };
        let mut met = Vec::new();
        for way in self.walks(now, tables, family)? {
            let matched = |index: usize| way.matched.get(index).is_some_and(|times| *times > 0);
            for chain in way.chains.iter() {
                let range = chain.rules.start..=chain.rules.end;
                let Some(last) = range.clone().rev().find(|index| matched(*index)) else { continue };
                for index in chain.rules.start..=last {
                    let Some(entry) = way.entries.get(index) else { continue };
                    let any: IpAddr = if talk.to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                    let (any, to) = (SocketAddr::new(any, own_port), talk.to);
                    // Where rules have sent it.
                    let beyond = following.exit.to;
                    let may = |from, to| way.table.may_match(entry, from, to, talk.protocol());
                    // Its own address is whatever rules make of it: only the other end's is known.
                    if matched(index) || may(any, to) || may(to, any) || may(any, beyond) || may(beyond, any) {
                        let rule = marks::is_by_chance(entry, facts).then_some(RuleAt::Legacy(way.index, index));
                        met.extend(
                            marks::of_legacy(&way.table.name, entry, facts)
                                .into_iter()
                                .map(|mark| Mark { rule, ..mark }),
                        );
                    }
                }
            }
        }
        Ok(met)
    }
}

/// A table, and what matched in it.
struct TableWalk<'a> {
    index: usize,
    table: &'a Table,
    entries: Vec<LegacyEntry>,
    chains: Vec<LegacyChain>,
    matched: Vec<u64>,
    /// Matches that were followed.
    visited: u64,
}

impl TableWalk<'_> {
    /// Follows what matched from a built-in chain on: where it ended, `None` where it was let pass, or never came there; and the
    /// rules that were asked.
    fn through(&mut self, hook: &str) -> Result<(Option<Ended>, Vec<usize>)> {
        let mut asked = Vec::new();
        let Some(base) = self.chains.iter().find(|chain| chain.hook.is_some() && chain.name == hook).cloned() else {
            return Ok((None, asked));
        };
        // Where to go on behind a jump, and how long the path was then.
        let mut back: Vec<(usize, usize)> = Vec::new();
        let mut path = vec![base.name.clone()];
        let mut index = base.rules.start;
        loop {
            let (Some(entry), Some(times)) = (self.entries.get(index), self.matched.get(index)) else {
                bail!("a chain has no end");
            };
            ensure!(*times <= 1, Crossed);
            asked.push(index);
            ensure!(asked.len() <= 2 * self.entries.len(), "rules lead in circles");
            if *times == 0 {
                // Nothing passes a chain's end unmatched.
                if index == base.rules.end || matches!(entry.does, Does::Begins(_)) {
                    return Ok((None, asked));
                }
                index += 1;
                continue;
            }
            self.visited += 1;
            let ended = |verdict: Verdict| {
                let chain = self.chain_of(index)?;
                let position = chain.rules.contains(&index).then(|| index - chain.rules.start + 1);
                let spot = Spot { chain: chain.name.clone(), position, path: path.clone(), verdict };
                Some((self.index, spot))
            };
            index = match &entry.does {
                Does::Accepts => return Ok((None, asked)),
                Does::Drops => return Ok((ended(Verdict::Drop), asked)),
                Does::Extension(name) if name == REJECT => return Ok((ended(Verdict::Reject), asked)),
                Does::Extension(_) => index + 1,
                Does::Returns => {
                    // Out of a built-in chain it leads to its policy.
                    let (to, length) = back.pop().unwrap_or((base.rules.end, 1));
                    path.truncate(length);
                    to
                }
                Does::Leads(to) | Does::GoesTo(to) => {
                    let to = self.entries.iter().position(|entry| entry.at == *to).context("a jump leads nowhere")?;
                    // A rule without a target leads to the next one.
                    if to != index + 1 {
                        if matches!(entry.does, Does::Leads(_)) {
                            back.push((index + 1, path.len()));
                        }
                        let chain = self.chains.iter().find(|chain| chain.rules.start == to);
                        path.push(chain.context("a jump leads into a chain")?.name.clone());
                    }
                    to
                }
                Does::Begins(_) => bail!("a chain has no end"),
            };
        }
    }

    /// Chains by which packets came to one, from a built-in one on.
    fn path_to(&self, chain: &LegacyChain) -> Result<Vec<String>> {
        let mut path = vec![chain.clone()];
        while let Some(first) = path.first().filter(|first| first.hook.is_none()).cloned() {
            ensure!(path.len() <= self.chains.len(), "rules lead in circles");
            let start = self.entries.get(first.rules.start).context("a chain has no end")?.at;
            let leads = |(index, entry): &(usize, &LegacyEntry)| {
                matches!(entry.does, Does::Leads(to) | Does::GoesTo(to) if to == start)
                    && self.matched.get(*index).is_some_and(|times| *times > 0)
            };
            let (index, _) = self.entries.iter().enumerate().find(leads).context("nothing leads to a chain")?;
            path.insert(0, self.chain_of(index).context("a rule of no chain")?.clone());
        }
        Ok(path.into_iter().map(|chain| chain.name).collect())
    }

    /// The chain whose rule, or policy, it is.
    fn chain_of(&self, index: usize) -> Option<&LegacyChain> {
        self.chains
            .iter()
            .find(|chain| chain.rules.contains(&index) || chain.hook.is_some() && chain.rules.end == index)
    }
}

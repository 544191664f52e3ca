//! A copy of iptables-legacy's tables: given back to the kernel as it gave them out, and a packet's way through them, by their
//! counters.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};

use super::{depends, doubts::Depends};
use crate::{
    firewall::legacy::{self, Does, LegacyChain, LegacyEntry, NAME_BYTES, REJECT, Spot, Table},
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

/// Makes the tables in the namespace of the calling thread. `logs`: a log's target would write there too.
pub(super) fn make(tables: &[Table], logs: bool) -> Result<()> {
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
    tables.iter().try_for_each(replace)
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
    /// Where the one packet of that family that was counted since ended, and what decides there by more than the packet; `None`
    /// when every table let it pass.
    pub(super) fn ended(
        &self,
        now: &Self,
        tables: &[Table],
        family: u8,
        way_out: depends::Passage,
    ) -> Result<(Option<Ended>, Depends)> {
        let mut asked = Depends::on(tables.iter().filter(|table| table.layout.family == family).count());
        let mut ways = Vec::new();
        for (index, table) in tables.iter().enumerate().filter(|(_, table)| table.layout.family == family) {
            let (before, after) = self.0.get(index).zip(now.0.get(index)).context("a table was not counted")?;
            let matched = after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before)).collect();
            let entries = table.entries()?;
            ways.push(TableWalk { index, table, chains: table.chains(&entries), entries, matched, visited: 0 });
        }
        ways.sort_by_key(|way| ORDER.iter().position(|name| *name == way.table.name));
        let mut ended = None;
        for hook in way_out.hooks() {
            for way in &mut ways {
                if ended.is_none() {
                    let (end, entries) = way.through(&hook.to_uppercase())?;
                    ended = end;
                    entries
                        .into_iter()
                        .for_each(|index| asked.add_legacy(&way.table.name, &way.entries[index], way_out));
                }
            }
        }
        // Somebody else's packet may have matched where this one did not.
        let alone = ways.iter().all(|way| way.matched.iter().sum::<u64>() == way.visited);
        ensure!(alone, Crossed);
        Ok((ended, asked))
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

    /// The chain whose rule, or policy, it is.
    fn chain_of(&self, index: usize) -> Option<&LegacyChain> {
        self.chains
            .iter()
            .find(|chain| chain.rules.contains(&index) || chain.hook.is_some() && chain.rules.end == index)
    }
}

//! nftables over netlink: tables, chains and rules, listed. No program is run for it.

use std::{ffi::CStr, io};

use anyhow::{Context, Result, bail, ensure};
use netlink_bindings::nftables::{
    self, ExprListAttrs, ExprOps, IterableVerdictAttrs, Nfgenmsg, RuleAttrs, TableFlags, VerdictCode,
};
use netlink_socket2::NetlinkSocket;
use serde::{Deserialize, Serialize};

use super::netfilter::family;
use crate::{
    confinement::reader::Question,
    kernel::netlink::{Body, Netlink},
    model::Translation,
};

/// `NFNL_SUBSYS_NFTABLES`, which a batch names.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NETLINK_NETFILTER`, `NFT_MSG_GETRULE`, and bytes of a `struct nfgenmsg`.
const NETFILTER: isize = 12;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const FAMILY_HEADER: usize = 4;
/// Targets of iptables that translate addresses.
const TRANSLATING: [(&CStr, Translation); 5] = [
    (c"MASQUERADE", Translation::Interfaces),
    (c"REDIRECT", Translation::Interfaces),
    (c"SNAT", Translation::Named),
    (c"DNAT", Translation::Named),
    (c"NETMAP", Translation::Named),
];
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;

/// A table of the namespace that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Address family, an `NFPROTO_*`.
    pub family: u8,
    /// Name, unique in its family.
    pub name: String,
    /// Handle, unique in its network namespace.
    pub handle: u64,
    /// It belongs to a program, which alone can change it.
    pub is_owned: bool,
}

/// A chain of the namespace that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Address family of its table, an `NFPROTO_*`.
    pub family: u8,
    /// Table.
    pub table: String,
    /// Name.
    pub name: String,
    /// Handle, unique in its table.
    pub handle: u64,
    /// Number of the hook that it hangs on; `None` for one that only rules lead to.
    pub hook: Option<u32>,
    /// Its priority there: the lowest comes first.
    pub priority: Option<i32>,
    /// Its policy, `NF_DROP` or `NF_ACCEPT`.
    pub policy: Option<u32>,
}

/// What a rule does with a packet that it matches, as far as it ends or leads elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleVerdict {
    /// Drops.
    Drop,
    /// Rejects.
    Reject,
    /// Jumps or goes to another chain of its table.
    Chain(String),
    /// Looks a verdict up.
    Map,
    /// Translates addresses, and drops where it cannot.
    Translate(Translation),
}

/// A rule of the namespace that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Address family of its table.
    pub family: u8,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Handle, unique in its table.
    pub handle: u64,
    /// What it does.
    pub verdicts: Vec<RuleVerdict>,
    /// Packets that its counter counted; `None` without one.
    pub packets: Option<u64>,
}

/// Everything that is read of a ruleset at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Number of the ruleset, which was in force all the while.
    pub generation: u32,
    /// All tables.
    pub tables: Vec<Table>,
    /// All chains.
    pub chains: Vec<Chain>,
    /// All rules, each chain's in order.
    pub rules: Vec<Rule>,
    /// A rule has connection tracking look at packets.
    pub tracks: bool,
}

/// The ruleset of the calling thread's namespace, read by a confined process.
pub const RULESET: Question<Snapshot> = Question::new("ruleset", |_| ruleset());

/// The chains of the calling thread's namespace, read by a confined process.
pub const CHAINS: Question<Vec<Chain>> = Question::new("chains", |_| chains());

/// Times that a ruleset is read again which changed meanwhile.
const ATTEMPTS: usize = 4;

fn ruleset() -> Result<Snapshot> {
    let mut before = generation()?;
    for _ in 0..ATTEMPTS {
        let read = tables().and_then(|tables| Ok((tables, chains()?, listed()?)));
        let after = generation()?;
        match read {
            Ok((tables, chains, (rules, tracks))) if after == before => {
                return Ok(Snapshot { generation: before, tables, chains, rules, tracks });
            }
            // A listing that a change interrupts fails.
            Err(error) if after == before => return Err(error),
            _ => before = after,
        }
    }
    bail!("the ruleset changes faster than it can be read")
}

/// Number of the ruleset in this thread's network namespace: every change raises it.
pub fn generation() -> Result<u32> {
    let mut socket = NetlinkSocket::new();
    let request = nftables::Request::new().op_getgen_do(&header(family::UNSPEC));
    let mut replies = socket.request(&request).context("cannot ask for nftables' generation")?;
    let reply = replies.recv().context("nftables does not tell its generation")?;
    let (_, generation) = reply.map_err(io::Error::from).context("cannot read nftables' generation")?;
    generation.get_id().context("nftables does not tell its generation")
}

/// Rules of a namespace that are read at most: whoever has more blocks by something else than rules.
const MAX_RULES: usize = 200_000;

/// All tables of all families in this thread's network namespace.
pub fn tables() -> Result<Vec<Table>> {
    let mut socket = NetlinkSocket::new();
    let request = nftables::Request::new().op_gettable_dump(&header(family::UNSPEC));
    let mut replies = socket.request(&request).context("cannot ask for nftables tables")?;
    let mut tables = Vec::new();
    while let Some(reply) = replies.recv() {
        let (header, table) = reply.map_err(io::Error::from).context("cannot list nftables tables")?;
        let (Ok(name), Ok(handle)) = (table.get_name(), table.get_handle()) else { continue };
        // In the byte order of the network, as nftables has all numbers.
        let is_owned = table.get_flags().is_ok_and(|flags| flags & TableFlags::Owner as u32 != 0);
        let name = name.to_string_lossy().into_owned();
        tables.push(Table { family: header.nfgen_family, name, handle, is_owned });
    }
    Ok(tables)
}

/// All chains of all families in this thread's network namespace.
pub fn chains() -> Result<Vec<Chain>> {
    let mut socket = NetlinkSocket::new();
    let request = nftables::Request::new().op_getchain_dump(&header(family::UNSPEC));
    let mut replies = socket.request(&request).context("cannot ask for nftables chains")?;
    let mut chains = Vec::new();
    while let Some(reply) = replies.recv() {
        let (header, chain) = reply.map_err(io::Error::from).context("cannot list nftables chains")?;
        let (Ok(table), Ok(name), Ok(handle)) = (chain.get_table(), chain.get_name(), chain.get_handle()) else {
            continue;
        };
        chains.push(Chain {
            handle,
            family: header.nfgen_family,
            table: table.to_string_lossy().into_owned(),
            name: name.to_string_lossy().into_owned(),
            hook: chain.get_hook().and_then(|hook| hook.get_num()).ok(),
            priority: chain.get_hook().and_then(|hook| hook.get_priority()).ok(),
            policy: chain.get_policy().ok(),
        });
    }
    Ok(chains)
}

/// All rules of all families in this thread's network namespace, each chain's in order.
pub fn rules() -> Result<Vec<Rule>> {
    Ok(listed()?.0)
}

/// Expressions that have connection tracking look at packets, and what iptables has for them.
const TRACKING: [&CStr; 7] = [c"ct", c"connlimit", c"nat", c"masq", c"redir", c"synproxy", c"flow_offload"];
const TRACKING_MATCHES: [&CStr; 7] =
    [c"conntrack", c"state", c"connmark", c"connbytes", c"connlimit", c"connlabel", c"helper"];

/// The same, and whether a rule has connection tracking look at packets.
fn listed() -> Result<(Vec<Rule>, bool)> {
    // The kernel looks for where it stood in each part of a long list: in parts as small as the library's the list of a chain of a
    // hundred thousand rules takes about three times as long.
    let mut netlink = Netlink::open(NETFILTER, FAMILY_HEADER)?;
    let (mut rules, mut tracks) = (Vec::new(), false);
    let listed = netlink.dump_each(GET_RULE, &Body::new(&[family::UNSPEC, 0, 0, 0]), |message| {
        ensure!(rules.len() < MAX_RULES, "the namespace has more than {MAX_RULES} rules");
        let Some((header, attributes)) = message.split_at_checked(FAMILY_HEADER) else { return Ok(()) };
        let rule = RuleAttrs::new(attributes);
        let (Ok(table), Ok(chain), Ok(handle)) = (rule.get_table(), rule.get_chain(), rule.get_handle()) else {
            return Ok(());
        };
        let (mut verdicts, mut packets) = (Vec::new(), None);
        // An expression that the library does not know decides nothing that is looked for here.
        for expression in rule.get_expressions().into_iter().flatten().flatten() {
            let ExprListAttrs::Elem(expression) = expression;
            tracks |= expression.get_name().is_ok_and(|name| TRACKING.contains(&name));
            match expression.get_data() {
                Ok(ExprOps::Immediate(immediate)) => {
                    verdicts.extend(immediate.get_data().and_then(|data| data.get_verdict()).ok().and_then(verdict));
                }
                Ok(ExprOps::Match(asked)) => {
                    tracks |= asked.get_name().is_ok_and(|name| TRACKING_MATCHES.contains(&name));
                }
                Ok(ExprOps::Reject(_)) => verdicts.push(RuleVerdict::Reject),
                Ok(ExprOps::Target(target)) if target.get_name() == Ok(c"REJECT") => verdicts.push(RuleVerdict::Reject),
                Ok(ExprOps::Target(target)) => {
                    tracks |= target.get_name().is_ok_and(|name| name == c"CONNMARK");
                    let how = TRANSLATING.iter().find(|(name, _)| target.get_name() == Ok(*name));
                    tracks |= how.is_some();
                    verdicts.extend(how.map(|(_, how)| RuleVerdict::Translate(*how)));
                }
                Ok(ExprOps::Nat(_)) => verdicts.push(RuleVerdict::Translate(Translation::Named)),
                // What netlink-bindings 0.3.5 calls the source register is the destination's: its numbers of a lookup's
                // attributes differ from those of `uapi/linux/netfilter/nf_tables.h` (a set's id is 4 there).
                Ok(ExprOps::Lookup(lookup)) if lookup.get_sreg().ok() == Some(VERDICT_REGISTER) => {
                    verdicts.push(RuleVerdict::Map);
                }
                Ok(ExprOps::Counter(counter)) => packets = counter.get_packets().ok(),
                // The library does not know what is in these.
                _ if [Ok(c"masq"), Ok(c"redir")].contains(&expression.get_name()) => {
                    verdicts.push(RuleVerdict::Translate(Translation::Interfaces));
                }
                _ => {}
            }
        }
        rules.push(Rule {
            family: header[0],
            table: table.to_string_lossy().into_owned(),
            chain: chain.to_string_lossy().into_owned(),
            handle,
            verdicts,
            packets,
        });
        Ok(())
    });
    listed.context("cannot list nftables rules")?;
    Ok((rules, tracks))
}

fn verdict(verdict: IterableVerdictAttrs<'_>) -> Option<RuleVerdict> {
    let code = verdict.get_code().ok()?;
    if code == VerdictCode::Drop as u32 {
        Some(RuleVerdict::Drop)
    } else if code == VerdictCode::Jump as u32 || code == VerdictCode::Goto as u32 {
        Some(RuleVerdict::Chain(verdict.get_chain().ok()?.to_string_lossy().into_owned()))
    } else {
        None
    }
}

fn header(family: u8) -> Nfgenmsg {
    Nfgenmsg { nfgen_family: family, ..Nfgenmsg::new() }
}

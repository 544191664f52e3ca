//! What nftables tells of packets' ways through a copy.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result};

use super::{
    marks::Mark,
    remake::{IN, Made, OUT, PASSED, TRACER},
    ruleset::{self, CHAIN_NAME, CopiedRule, Listed, Place, TABLE, TRACE},
};
use crate::{
    firewall::netfilter::{ACCEPT, DROP, family},
    kernel::netlink::{Body, Netlink},
    model::Replayed,
};

/// `NFTA_TRACE_*`
const HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const INCOMING: u16 = 10;
const OUTGOING: u16 = 12;
const OF_POLICY: u16 = 16;
/// `NFT_TRACETYPE_POLICY` and `NFT_TRACETYPE_RULE`
const POLICY: u32 = 1;
const RULE: u32 = 3;
/// Codes of verdicts: `NFT_JUMP`, `NFT_GOTO`.
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;

/// A socket that hears traces of the namespace in which it was made, and what its rules are in the original.
pub(super) struct Tracer {
    pub(super) socket: Netlink,
    rules: HashMap<(u8, String, u64), CopiedRule>,
    handles: HashMap<Place, u64>,
}

/// Where a packet's way came to, and the marks on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// The rule or policy that dropped it, in handles of the original.
    pub(super) end: Option<Replayed>,
    /// The last rule of its way that accepted it in a chain that translates addresses, likewise.
    pub(super) translated_by: Option<Replayed>,
    pub(super) marks: Vec<Mark>,
}

impl Tracer {
    /// Of the namespace in which the calling thread lives, where that copy was made.
    pub(super) fn new(listed: &Listed, made: &Made, patience: Duration) -> Result<Self> {
        let (socket, rules) = (ruleset::tracer(patience)?, ruleset::own_rules(&made.slots)?);
        Ok(Self { socket, rules, handles: listed.handles() })
    }

    /// Follows the trace of one packet.
    pub(super) fn follow<'a>(&self, listed: &Listed, told: impl IntoIterator<Item = &'a Body>) -> Result<Way> {
        let mut way = Way::default();
        // Chains that are being walked, the base chain first, and whose they are.
        let mut walked: Vec<String> = Vec::new();
        let mut of_table = (0, String::new());
        for body in told {
            let (family, of) = (body.fixed.first().copied().unwrap_or(0), &body.attributes);
            let (Some(table), Some(chain)) = (of.text(1), of.text(2)) else { continue };
            if table == TRACER {
                continue;
            }
            if of_table != (family, table.clone()) {
                walked.clear();
                of_table = (family, table.clone());
            }
            match walked.iter().position(|walked| *walked == chain) {
                Some(index) => walked.truncate(index + 1),
                None => walked = vec![chain.clone()],
            }
            let verdict = of.list(VERDICT);
            let rule = || -> Result<&CopiedRule> {
                let handle = of.long(HANDLE).context("a trace without a rule")?;
                self.rules.get(&(family, table.clone(), handle)).context("a rule that the copy does not have")
            };
            let original = |place: &Place| -> Result<Replayed> {
                let handle = self.handles.get(place).context("a rule that the original does not have")?;
                listed.replayed(family, &table, &walked, *handle)
            };
            match (of.number(TYPE), verdict.number(1)) {
                (Some(RULE), Some(DROP)) => {
                    let CopiedRule::Of(place) = rule()? else { continue };
                    way.end = Some(original(place)?);
                    return Ok(way);
                }
                // The end of a chain has an entry like a rule's, without a handle.
                (Some(RULE), Some(code)) if of.long(HANDLE).is_some() => {
                    match rule()? {
                        CopiedRule::Mark(mark) if !way.marks.contains(mark) => way.marks.push(mark.clone()),
                        CopiedRule::Of(place) if code == ACCEPT && listed.translates(family, &table, &walked) => {
                            way.translated_by = Some(original(place)?);
                        }
                        _ => {}
                    }
                    if [JUMP, GOTO].contains(&code) {
                        walked.extend(verdict.text(2));
                    }
                }
                (Some(POLICY), _) if of.number(OF_POLICY) == Some(DROP) => {
                    way.end = Some(listed.replayed(family, &table, &walked[..1], 0)?);
                    return Ok(way);
                }
                _ => {}
            }
        }
        Ok(way)
    }
}

/// Number of the packet that a message is about; the same one may be another packet's later.
pub(super) fn id(body: &Body) -> Option<u32> {
    body.attributes.number(ID)
}

/// The packet was dropped.
pub(super) fn drops(body: &Body) -> bool {
    let of = &body.attributes;
    match of.number(TYPE) {
        Some(RULE) => of.list(VERDICT).number(1) == Some(DROP),
        Some(POLICY) => of.number(OF_POLICY) == Some(DROP),
        _ => false,
    }
}

/// It is a message of a trace.
pub(super) fn is_trace(kind: u16) -> bool {
    kind == TRACE
}

fn is_tracers(body: &Body, chain: impl Fn(&str) -> bool) -> bool {
    body.attributes.text(1).as_deref() == Some(TRACER) && body.attributes.text(2).is_some_and(|name| chain(&name))
}

/// It came to the end of all rules.
pub(super) fn passed(body: &Body) -> bool {
    is_tracers(body, |chain| chain == PASSED)
}

/// Headers of a packet, as far as they are shown: from its network header on, and from that of what it carries on.
pub(super) fn headers(body: &Body) -> Option<(&[u8], &[u8])> {
    Some((body.attributes.get(NETWORK_HEADER)?, body.attributes.get(TRANSPORT_HEADER).unwrap_or_default()))
}

/// Number of the interface by which it leaves.
pub(super) fn leaves_by(body: &Body) -> Option<u32> {
    body.attributes.number(OUTGOING)
}

/// Number of the interface by which it came.
pub(super) fn came_by(body: &Body) -> Option<u32> {
    body.attributes.number(INCOMING)
}

/// A packet's trace begins, where it comes in or where this namespace makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// It comes in.
    In,
    /// This namespace sends it.
    Out,
}

/// Whether a packet's trace begins.
pub(super) fn begins(body: &Body) -> Option<Begins> {
    headers(body)?;
    if is_tracers(body, |chain| chain == OUT) {
        return Some(Begins::Out);
    }
    is_tracers(body, |chain| chain.starts_with(IN)).then_some(Begins::In)
}

/// It is about ARP.
pub(super) fn is_arp(body: &Body) -> bool {
    body.fixed.first() == Some(&family::ARP)
}

impl Listed {
    /// A base chain translates addresses.
    fn translates(&self, family: u8, table: &str, walked: &[String]) -> bool {
        const CHAIN_TYPE: u16 = 7;
        let is_it = |body: &&Body| {
            body.fixed.first() == Some(&family)
                && body.attributes.text(TABLE).as_deref() == Some(table)
                && body.attributes.text(CHAIN_NAME).as_ref() == walked.first()
        };
        self.chains.iter().find(is_it).is_some_and(|body| body.attributes.text(CHAIN_TYPE).as_deref() == Some("nat"))
    }
}

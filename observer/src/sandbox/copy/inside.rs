//! What the thread in a copy does: makes it, sends a packet there, and follows it to its end.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    conntrack,
    depends::Passage,
    doubts::Depends,
    legacy,
    packet::Whole,
    ruleset::{self, PASSED, Place, TRACE, TRACER},
    send::{self, SocketOwner},
    stage::{Copied, Order},
};
use crate::kernel::netlink::{Body, Netlink};
use crate::model::{End, Origin, Replayed};

/// Nothing more is heard of a packet that was sent so long ago.
const QUIET: Duration = Duration::from_millis(20);
/// `NFT_TRACETYPE_POLICY` and `NFT_TRACETYPE_RULE`
const POLICY: u32 = 1;
const RULE: u32 = 3;
/// Codes of verdicts: `NF_DROP`, `NFT_JUMP`, `NFT_GOTO`.
const DROP: u32 = 0;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;
/// Times that a packet is sent whose way somebody else's packets crossed.
const ATTEMPTS: usize = 3;
/// The text of a rule of iptables-legacy is waited for so long.
const PATIENCE: Duration = Duration::from_millis(60);

/// Where a packet's way ended, and what decided by more than the packet in tables of iptables-legacy.
pub(super) type Ended = (Option<End>, Depends);

/// What the thread in the namespace has.
pub(super) struct Inside {
    /// Everything is set as in the original, or what is not.
    set: Result<(), String>,
    trace: Netlink,
    /// The copy's rules by their handles.
    places: HashMap<(u8, String, u64), Place>,
    handles: HashMap<Place, u64>,
    /// Something hangs on an interface, behind everything else.
    at_interfaces: bool,
}

impl Inside {
    /// `logs`: what a rule of iptables-legacy logs here would be logged.
    pub(super) fn new(copied: &Copied, logs: bool) -> Result<Self> {
        let set = copied.make(logs)?.map_err(|error| format!("{error:#}"));
        Ok(Self {
            set,
            trace: ruleset::tracer(QUIET)?,
            places: ruleset::own_places()?,
            handles: copied.rules.handles(),
            at_interfaces: copied.rules.has_egress(),
        })
    }

    /// Sends one packet, and follows it.
    pub(super) fn send(&self, copied: &mut Copied, order: &Order) -> Result<Ended> {
        let whole = Whole::of(&order.packet)?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.walk(copied, order, &whole) {
                Ok(end) => return Ok(end),
                Err(error) if error.downcast_ref::<legacy::Crossed>().is_some() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("it was not sent")?)
    }

    fn walk(&self, copied: &mut Copied, order: &Order, whole: &Whole) -> Result<Ended> {
        let Order { packet, connection, .. } = order;
        let counted = legacy::count(&copied.legacy)?;
        let leaves = match packet.interface.as_deref() {
            // One that is new, or cannot be copied: then its route is not either.
            Some(name) => Some((name, copied.around.index(name).context("the copy does not have its interface")?)),
            None => None,
        };
        conntrack::enter(whole, connection)?;
        let mut heard = self.sent(copied, order, whole, None)?;
        if !self.left_by(&heard, leaves) && matches!(packet.origin, Origin::Socket { .. }) {
            // Its socket is bound to the interface, or the route was chosen by more than the address.
            ensure!(copied.legacy.is_empty(), "the packet leaves by another interface in the copy");
            conntrack::enter(whole, connection)?;
            heard = self.sent(copied, order, whole, leaves)?;
        }
        ensure!(self.left_by(&heard, leaves), "the packet leaves by another interface in the copy");
        let nft = self.end(copied, &heard)?;
        let way = match packet.origin {
            Origin::Socket { .. } => Passage::Out,
            Origin::Interface { .. } => Passage::Through,
        };
        let now = legacy::count(&copied.legacy)?;
        let ended = counted.ended(&now, &copied.legacy, whole.family(), way);
        if let Some(end) = nft {
            // What the end says to its sender crosses tables of iptables-legacy, too; whether they mark packets by more than these is
            // not known then.
            let asked = ended.map_or_else(|_| Depends::unknown("tables of iptables-legacy"), |(_, asked)| asked);
            return Ok((Some(End::Nft(end)), asked));
        }
        let (ended, asked) = ended?;
        if let Some((table, spot)) = ended {
            let deadline = Instant::now() + PATIENCE;
            let table = copied.legacy.get(table).context("a table that is not there")?;
            let named = copied.saved.named(table, spot, deadline)?;
            return Ok((Some(End::Legacy(Box::new(named))), asked));
        }
        ensure!(heard.iter().any(passed), "the packet got lost in the copy");
        Ok((None, asked))
    }

    /// Sends it, and listens to what is traced of it.
    fn sent(&self, copied: &Copied, order: &Order, whole: &Whole, through: Option<(&str, u32)>) -> Result<Vec<Body>> {
        // Of an earlier one.
        self.trace.drain();
        // The socket stays open until the packet is followed to its end.
        let _socket = match order.packet.origin {
            Origin::Socket { uid, gid, mark, .. } => {
                let socket = send::socket(whole, SocketOwner { uid, gid, mark }, order.cgroup.as_ref())?;
                send::by_socket(whole, &socket, through)?;
                Some(socket)
            }
            Origin::Interface { index } => {
                // Without them nothing is forwarded.
                self.set.clone().map_err(anyhow::Error::msg)?;
                let entrance =
                    copied.around.entrance(index).context("the interface by which it came is not in the copy")?;
                send::to_interface(whole, entrance)?;
                None
            }
        };
        let mut own = None;
        let heard = self.trace.heard(|all| {
            own = own.or_else(|| all.iter().find_map(|(_, body)| id_of(body, whole)));
            let Some((_, last)) = all.last().filter(|(_, body)| own.is_some() && id(body) == own) else { return false };
            drops(last) || !self.at_interfaces && passed(last)
        })?;
        let own = own.or_else(|| heard.iter().find_map(|(_, body)| id_of(body, whole)));
        let own = own.context("the packet was not seen in the copy")?;
        let is_own = |(kind, body): &(u16, Body)| *kind == TRACE && id(body) == Some(own);
        Ok(heard.into_iter().filter(is_own).map(|(_, body)| body).collect())
    }

    /// The interface by which it was to leave is the one that is wanted, where that is known.
    fn left_by(&self, way: &[Body], wanted: Option<(&str, u32)>) -> bool {
        // Where it came from has no way out yet; what is reported last is where it was led to.
        let seen = way.iter().rev().find_map(|body| body.attributes.number(12));
        match (wanted, seen) {
            (Some((_, index)), Some(seen)) => index == seen,
            _ => true,
        }
    }

    /// The rule or policy at which it ended, in handles of the original.
    fn end(&self, copied: &Copied, way: &[Body]) -> Result<Option<Replayed>> {
        // Chains that are being walked, the base chain first, and whose they are.
        let mut walked: Vec<String> = Vec::new();
        let mut of_table = (0, String::new());
        for body in way {
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
            let verdict = of.list(5);
            match (of.number(4), verdict.number(1)) {
                (Some(RULE), Some(JUMP | GOTO)) => walked.extend(verdict.text(2)),
                (Some(RULE), Some(DROP)) => {
                    let handle = of.long(3).context("a trace without a rule")?;
                    let place = self
                        .places
                        .get(&(family, table.clone(), handle))
                        .context("a rule that the copy does not have")?;
                    let rule = self.handles.get(place).context("a rule that the original does not have")?;
                    return copied.rules.replayed(family, &table, &walked, *rule).map(Some);
                }
                (Some(POLICY), _) if of.number(16) == Some(DROP) => {
                    return copied.rules.replayed(family, &table, &walked[..1], 0).map(Some);
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

fn id(body: &Body) -> Option<u32> {
    body.attributes.number(6)
}

fn drops(body: &Body) -> bool {
    let of = &body.attributes;
    match of.number(4) {
        Some(RULE) => of.list(5).number(1) == Some(DROP),
        Some(POLICY) => of.number(16) == Some(DROP),
        _ => false,
    }
}

/// It came to the end of all rules.
fn passed(body: &Body) -> bool {
    body.attributes.text(1).as_deref() == Some(TRACER) && body.attributes.text(2).as_deref() == Some(PASSED)
}

/// The trace's number, when this is the beginning of this very packet's.
fn id_of(body: &Body, whole: &Whole) -> Option<u32> {
    let (network, transport) = (body.attributes.get(8)?, body.attributes.get(9)?);
    whole.is(network, transport).then(|| id(body)).flatten()
}

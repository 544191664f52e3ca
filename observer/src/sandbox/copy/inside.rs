//! What the thread in a copy does with one packet: sends it there, and follows it to its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    choices::Choices,
    conntrack,
    copied::Copied,
    legacy,
    marks::{Mark, Reason},
    packet::Whole,
    passage::Passage,
    remake::{Made, Purpose},
    send::{self, SocketOwner},
    stage::Order,
    surroundings::Peers,
    trace::{self, Tracer},
};
use crate::kernel::netlink::Body;
use crate::model::{End, Origin};

/// Nothing more is heard of a packet that was sent so long ago.
const QUIET: Duration = Duration::from_millis(20);
/// Times that a packet is sent whose way somebody else's packets crossed.
const ATTEMPTS: usize = 3;
/// The text of a rule of iptables-legacy is waited for so long.
pub(super) const PATIENCE: Duration = Duration::from_millis(60);

/// Where a packet's way ended, and the marks on it.
pub(super) type Ended = (Option<End>, Vec<Mark>);

/// What the thread in the namespace has.
pub(super) struct Inside {
    /// Everything is set as in the original, or what is not.
    set: Result<(), String>,
    tracer: Tracer,
    made: Made,
    /// Something hangs on an interface, behind everything else.
    at_interfaces: bool,
}

impl Inside {
    /// `logs`: what a rule of iptables-legacy logs here would be logged.
    pub(super) fn new(copied: &Copied, logs: bool) -> Result<Self> {
        let (made, set) = copied.make(Purpose::Packet, Peers::Here, logs, &Choices::new())?;
        let tracer = Tracer::new(&copied.rules, &made, QUIET)?;
        let set = set.map_err(|error| format!("{error:#}"));
        Ok(Self { set, tracer, made, at_interfaces: copied.rules.has_egress() })
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
        let way = self.tracer.follow(&copied.rules, &heard)?;
        let passage = Passage::of(&packet.origin);
        let mut marks = way.marks;
        marks.extend(self.made.missing_on(passage, whole.family()));
        let now = legacy::count(&copied.legacy)?;
        let ended = counted.ended(&now, (&copied.legacy, copied.facts()), whole, passage);
        if let Some(end) = way.end {
            // What the end says to its sender crosses tables of iptables-legacy, too; whether they decide by more than the packet is
            // not known then.
            let unknown =
                || vec![Mark { reason: Reason::Anything, words: "tables of iptables-legacy".to_owned(), rule: None }];
            marks.extend(ended.map_or_else(|_| unknown(), |(_, asked)| asked));
            return Ok((Some(End::Nft(end)), marks));
        }
        let (ended, asked) = ended?;
        marks.extend(asked);
        if let Some((table, spot)) = ended {
            let deadline = Instant::now() + PATIENCE;
            let table = copied.legacy.get(table).context("a table that is not there")?;
            let named = copied.saved.named(table, spot, deadline)?;
            return Ok((Some(End::Legacy(Box::new(named))), marks));
        }
        ensure!(heard.iter().any(trace::passed), "the packet got lost in the copy");
        Ok((None, marks))
    }

    /// Sends it, and listens to what is traced of it.
    fn sent(&self, copied: &Copied, order: &Order, whole: &Whole, through: Option<(&str, u32)>) -> Result<Vec<Body>> {
        // Of an earlier one.
        self.tracer.socket.drain();
        // The socket stays open until the packet is followed to its end.
        let _socket = match &order.packet.origin {
            Origin::Socket { uid, gid, groups, mark, .. } => {
                let owner = SocketOwner { uid: *uid, gid: *gid, groups, mark: *mark };
                let socket = send::socket(whole, owner, order.cgroup.as_ref())?;
                send::by_socket(whole, &socket, through)?;
                Some(socket)
            }
            Origin::Interface { index } => {
                // Without them nothing is forwarded.
                self.set.clone().map_err(anyhow::Error::msg)?;
                let entrance =
                    copied.around.entrance(*index).context("the interface by which it came is not in the copy")?;
                send::to_interface(whole, entrance)?;
                None
            }
        };
        let mut own = None;
        let heard = self.tracer.socket.heard(|all| {
            own = own.or_else(|| all.iter().find_map(|(_, body)| id_of(body, whole)));
            let of_it = all.last().filter(|(_, body)| own.is_some() && trace::id(body) == own);
            let Some((_, last)) = of_it else { return false };
            trace::drops(last) || !self.at_interfaces && trace::passed(last)
        })?;
        let own = own.or_else(|| heard.iter().find_map(|(_, body)| id_of(body, whole)));
        let own = own.context("the packet was not seen in the copy")?;
        let is_own = |(kind, body): &(u16, Body)| trace::is_trace(*kind) && trace::id(body) == Some(own);
        Ok(heard.into_iter().filter(is_own).map(|(_, body)| body).collect())
    }

    /// The interface by which it was to leave is the one that is wanted, where that is known.
    fn left_by(&self, way: &[Body], wanted: Option<(&str, u32)>) -> bool {
        // Where it came from has no way out yet; what is reported last is where it was led to.
        let seen = way.iter().rev().find_map(trace::leaves_by);
        match (wanted, seen) {
            (Some((_, index)), Some(seen)) => index == seen,
            _ => true,
        }
    }
}

/// The trace's number, when this is the beginning of this very packet's.
fn id_of(body: &Body, whole: &Whole) -> Option<u32> {
    let (network, transport) = trace::headers(body)?;
    whole.is(network, transport).then(|| trace::id(body)).flatten()
}

//! A line that is being made of a packet: its sender is found, filters are asked, and what stopped it is looked up.

use std::task::{Poll, ready};

use observer_ebpf::abi::DropKey;

use super::events::Rooms;
use crate::{
    attribute::Search,
    explain::Begun,
    model::{Dropped, Filter, Share},
    privilege::HostQueries,
};

/// How far it is.
pub(super) enum Stage {
    /// Its sender is looked for.
    Sender(Box<Dropped>, Search),
    /// What stopped it is looked up.
    Explained(Box<Begun>),
    /// It is no egress, or nobody's block: of so many packets.
    Inbound(u64),
    /// It is filtered.
    Filtered(u64),
}

/// The line.
pub(super) struct Making {
    pub(super) stage: Stage,
    /// It is the first of this key, in this generation, with so many bytes.
    pub(super) first: Option<(DropKey, u32, u64)>,
    /// On whose account it is made.
    pub(super) share: Share,
}

impl Making {
    /// Of a packet of which nothing was looked up.
    pub(super) fn new(dropped: Dropped, first: Option<(DropKey, u32, u64)>, share: Share) -> Self {
        Self { stage: Stage::Sender(Box::new(dropped), Search::default()), first, share }
    }

    /// Its sender is still looked for.
    pub(super) fn is_searching(&self) -> bool {
        matches!(self.stage, Stage::Sender(..))
    }

    /// Packets that it is of.
    pub(super) fn packets(&self) -> u64 {
        match &self.stage {
            Stage::Sender(dropped, _) => dropped.packets,
            Stage::Explained(begun) => begun.attempt.packets,
            Stage::Inbound(packets) | Stage::Filtered(packets) => *packets,
        }
    }

    /// Looks as far as can be known now, with `is_last` for the last time: whether it is to be reported, once that is known.
    pub(super) fn look<E: HostQueries>(&mut self, rooms: &mut Rooms<E>, filter: &Filter, is_last: bool) -> Poll<bool> {
        if let Stage::Sender(dropped, search) = &mut self.stage {
            let is_stopped = rooms.explainer.look_at_neighbours(dropped, self.share);
            let attempt = ready!(rooms.attribution.attempt(dropped, search, is_last));
            self.stage = match attempt {
                None => Stage::Inbound(dropped.packets),
                // It waited for a neighbour who is dead by itself.
                Some(_) if !is_stopped => Stage::Filtered(dropped.packets),
                // What is filtered costs no look-up.
                Some((attempt, _)) if !filter.concerns(&attempt) => Stage::Filtered(dropped.packets),
                Some((attempt, share)) => {
                    let begun = Begun::new(attempt, (**dropped).clone(), share);
                    if begun.is_by_rules() {
                        let (netns, share) = begun.netns();
                        rooms.changes.adopt(netns, share, rooms.attribution.queries());
                    }
                    Stage::Explained(Box::new(begun))
                }
            };
        }
        match &mut self.stage {
            Stage::Explained(begun) => {
                let is_told = ready!(rooms.explainer.explain(begun, &mut rooms.attribution, is_last));
                if !is_told {
                    self.stage = Stage::Inbound(begun.attempt.packets);
                }
                Poll::Ready(is_told)
            }
            _ => Poll::Ready(false),
        }
    }
}

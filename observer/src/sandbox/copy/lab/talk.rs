//! A conversation, who begins it, and what came of it.

use std::{fs::File, net::SocketAddr};

use anyhow::Result;
use etherparse::IpNumber;

use super::super::{listeners::Transport, passage::Passage};
use crate::model::{End, PacketKind};

/// What is said, by whom, to whom.
pub struct Talk {
    /// By which protocol.
    pub(crate) transport: Transport,
    /// Where to, as its sender asks for it.
    pub(crate) to: SocketAddr,
    /// Who begins it.
    pub(crate) from: Caller,
    /// What a datagram carries.
    pub(crate) payload: Vec<u8>,
    /// The port from which a socket of this namespace sends, where not whichever the kernel gives.
    pub(crate) own_port: Option<u16>,
    /// It is one of many probes, which get less time.
    pub(crate) is_probe: bool,
}

/// Who begins a conversation.
pub(crate) enum Caller {
    /// A socket of the copied namespace.
    Here {
        /// User and group with which its file was opened, and the user's other groups.
        uid: u32,
        /// See `uid`.
        gid: u32,
        /// See `uid`.
        groups: Vec<u32>,
        /// Its mark.
        mark: u32,
        /// The open `cgroup.procs` of its cgroup, where that matters.
        cgroup: Option<File>,
        /// Its own address and port, where they are given.
        source: Option<SocketAddr>,
    },
    /// Somebody behind an interface, who sends by this namespace or to it.
    Behind {
        /// Number of the interface.
        index: u32,
        /// Its address and port; port 0 for any.
        source: SocketAddr,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Everything was said and heard.
    Completed,
    /// So it was, because the neighbour by which it leaves is known now: otherwise this stops what asks for that.
    ByKnown(Box<Stop>),
    /// A packet of it was stopped.
    Stopped(Box<Stop>),
}

impl Held {
    /// Everything was said and heard.
    pub(crate) fn is_completed(&self) -> bool {
        matches!(self, Self::Completed | Self::ByKnown(_))
    }
}

/// A packet that was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    /// What stopped it.
    pub(crate) end: End,
    /// Which packet it was, where it was not the first.
    pub(crate) packet: Option<PacketKind>,
    /// It was sent there, to this host itself, where nobody listens.
    pub(crate) leads_to: Option<SocketAddr>,
    /// Where it went as the rule saw it, where that is another address or port.
    pub(crate) translated: Option<SocketAddr>,
}

impl Talk {
    pub(super) fn passage(&self) -> Passage {
        match self.from {
            Caller::Here { .. } => Passage::Out,
            Caller::Behind { .. } => Passage::Through,
        }
    }

    /// The same once more.
    pub(crate) fn again(&self) -> Result<Self> {
        let from = match &self.from {
            Caller::Here { uid, gid, groups, mark, cgroup, source } => Caller::Here {
                uid: *uid,
                gid: *gid,
                groups: groups.clone(),
                mark: *mark,
                cgroup: cgroup.as_ref().map(File::try_clone).transpose()?,
                source: *source,
            },
            Caller::Behind { index, source } => Caller::Behind { index: *index, source: *source },
        };
        Ok(Self { from, payload: self.payload.clone(), ..*self })
    }

    /// Its sender's socket has a mark.
    pub(super) fn is_marked(&self) -> bool {
        matches!(self.from, Caller::Here { mark, .. } if mark != 0)
    }

    pub(crate) fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp => IpNumber::TCP.0,
            Transport::Udp => IpNumber::UDP.0,
        }
    }
}

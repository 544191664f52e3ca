//! Which way a packet goes.

use crate::model::Origin;

/// A way through a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// A socket of this namespace sends it.
    Out,
    /// It came in, and goes on.
    Through,
    /// It came in, and is for this namespace.
    In,
}

impl Passage {
    /// A packet's of that origin.
    pub(super) fn of(origin: &Origin) -> Self {
        match origin {
            Origin::Socket { .. } => Self::Out,
            Origin::Interface { .. } => Self::Through,
        }
    }

    /// Hooks on it.
    pub(super) fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Out => &["output", "postrouting", "egress"],
            Self::Through => &["ingress", "prerouting", "forward", "postrouting", "egress"],
            Self::In => &["ingress", "prerouting", "input"],
        }
    }

    /// The way back of what answers it.
    pub(super) fn back(self) -> Self {
        match self {
            Self::Out => Self::In,
            Self::Through => Self::Through,
            Self::In => Self::Out,
        }
    }
}

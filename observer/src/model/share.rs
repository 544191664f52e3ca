//! On whose account something is looked up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whoever can make the helper work. Each has a share of the helper's time and memory, whatever others ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Share {
    /// Root in observer's own network namespace, and observer itself.
    Host,
    /// A user, in all of its namespaces: the owner of the outermost user namespace below the initial one, where the network
    /// namespace belongs to such a one.
    User(u32),
    /// Root in another network namespace of the host's, such as a container's, by its inode number.
    Namespace(u32),
    /// Senders of forwarded packets whose namespace is not known, as behind a bridge: several source addresses share a number.
    Forwarded(u32),
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => formatter.write_str("root"),
            Self::User(uid) => write!(formatter, "user {uid}"),
            Self::Namespace(netns) => write!(formatter, "network namespace {netns}"),
            Self::Forwarded(_) => formatter.write_str("a source of forwarded packets"),
        }
    }
}

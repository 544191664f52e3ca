//! Where something is.

use serde::{Deserialize, Serialize};

/// A network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsPlace {
    /// Words that go before a command so that it is run in it (`ip netns exec NAME`, `nsenter -t PID -n`); `None` for observer's
    /// own, and where none are known.
    pub entering: Option<String>,
    /// It is not observer's own.
    pub is_other: bool,
    /// Another observer made it, for a copy of rules or a self-test.
    pub is_an_observers: bool,
    /// It is gone, and another observer runs, whose copies do not last longer.
    pub may_be_an_observers: bool,
    /// User id of whoever made the outermost user namespace below the initial one to which it belongs; root's where it belongs to
    /// the initial one, `None` where that is not known.
    pub owner: Option<u32>,
}

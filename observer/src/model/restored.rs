//! A blocked destination that works again.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::span;

/// By what it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum RestoredBy {
    /// A connection was established.
    Connection,
    /// A datagram came from there.
    Answer,
}

/// `egress.restored`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Restored {
    /// Milliseconds from the first packet that was blocked to the connection.
    pub after_ms: u64,
    /// By what it is known.
    pub by: RestoredBy,
    /// The last packet that was blocked.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub last_blocked: Timestamp,
    /// The last change of rules that was heard between that packet and the connection: what came before, and not what is proven
    /// to be the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Preceding>,
}

/// A change of rules that came before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Preceding {
    /// Id of its line, [`Action::RulesetChanged`](super::Action::RulesetChanged).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::some_uuid()"))]
    pub id: Option<Uuid>,
    /// When it was heard.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub at: Timestamp,
    /// Milliseconds from then to the connection.
    pub before_ms: u64,
    /// What was done, in a sentence.
    pub reason: String,
}

impl Restored {
    /// What happened, in a sentence.
    pub fn sentence(&self) -> String {
        let after = span(Duration::from_millis(self.after_ms));
        let before = match &self.change {
            Some(change) => {
                format!("; {} before, {}", span(Duration::from_millis(change.before_ms)), change.reason)
            }
            // No change was received, and one may have been missed.
            None => String::new(),
        };
        let what = match self.by {
            RestoredBy::Connection => "a connection was established",
            RestoredBy::Answer => "an answer came",
        };
        format!("{what} {after} after the first packet was blocked{before}")
    }
}

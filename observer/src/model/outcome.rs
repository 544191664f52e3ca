//! What the application saw of a connection that was blocked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::span;

/// `egress.outcome`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Outcome {
    /// Milliseconds from its beginning to its end; `None` where it began before observer did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
}

impl Outcome {
    /// `gave up after 2m14s`
    pub fn sentence(self) -> String {
        match self.waited_ms {
            Some(waited) => format!("gave up after {}", span(Duration::from_millis(waited))),
            None => "gave up".to_owned(),
        }
    }
}

//! The end of a command that was run.

use std::{fmt, time::Duration};

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its own status, or 128 and the signal's number.
    pub code: u8,
    /// Name of the signal that ended it.
    pub signal: Option<String>,
    /// After how long.
    pub after: Duration,
}

impl fmt::Display for Finished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.signal {
            Some(signal) => write!(formatter, "was ended by {signal}"),
            None => write!(formatter, "exited {}", self.code),
        }
    }
}

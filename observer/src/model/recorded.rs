//! What is known of an incident from the store.

use jiff::Timestamp;

use super::attempt::Attempt;

/// An incident of one user, unit or container, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its last line.
    pub attempt: Attempt,
    /// Packets of all its lines.
    pub packets: u64,
    /// The first packet.
    pub first: Timestamp,
    /// The last packet.
    pub last: Timestamp,
}

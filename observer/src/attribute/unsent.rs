//! Connections of which no packet has left this host: every segment that the kernel counted as sent was seen to be dropped.

use std::collections::HashMap;

use crate::model::{Direction, Dropped, Endpoints};

/// Connections that are remembered; beyond, nothing is said of the elder ones.
const MAX_CONNECTIONS: usize = 8192;

/// A connection: a socket may have several one after the other.
type UnsentKey = (u64, Option<Endpoints>);

/// Segments that were dropped.
#[derive(Default)]
pub(super) struct Unsent(HashMap<UnsentKey, u32>);

impl Unsent {
    /// Takes in a dropped packet; true when its connection has sent none that was not dropped.
    pub(super) fn nothing_left(&mut self, dropped: &Dropped) -> bool {
        if dropped.direction != Direction::Local {
            return false;
        }
        let Some(cookie) = dropped.socket.and_then(|socket| socket.cookie) else { return false };
        // Of packets that were counted together nobody knows whose they are: too few are counted, and nothing is said.
        let Some(segments) = dropped.captured.as_ref().and_then(|captured| captured.segments) else { return false };
        let key = (cookie, dropped.original.or(dropped.endpoints));
        if self.0.len() >= MAX_CONNECTIONS && !self.0.contains_key(&key) {
            self.0.clear();
        }
        // One that is not known has dropped before, or is new: its own count tells.
        let seen = self.0.entry(key).or_default();
        *seen += 1;
        *seen == segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Captured;

    fn segment(number: u32) -> Dropped {
        let captured = Captured {
            bytes: bytes::Bytes::new(),
            length: 60,
            opened_by: None,
            mark: 0,
            arrived_by: None,
            segments: Some(number),
        };
        Dropped { captured: Some(captured), ..Dropped::example() }
    }

    #[test]
    fn all_of_them_were_dropped_or_nothing_is_said() {
        let mut unsent = Unsent::default();
        assert!(unsent.nothing_left(&segment(1)) && unsent.nothing_left(&segment(2)));
        assert!(!unsent.nothing_left(&segment(4)), "the third one left");
        assert!(!unsent.nothing_left(&segment(5)));
        assert!(!Unsent::default().nothing_left(&segment(2)), "what was before is not known");
        assert!(!unsent.nothing_left(&Dropped { captured: None, ..Dropped::example() }));
    }
}

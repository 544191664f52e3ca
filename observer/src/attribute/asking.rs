//! Questions about a network namespace, on one account, for something that is to be reported soon.

use std::task::Poll;

use crate::{
    model::Share,
    privilege::{HostQueries, protocol::Polled},
};

/// Asks without waiting.
pub(crate) struct Asking<'a, E> {
    pub(crate) queries: &'a mut E,
    /// On whose account.
    pub(crate) share: Share,
    /// It is reported now, whatever is known.
    pub(crate) is_last: bool,
}

impl<E: HostQueries> Asking<'_, E> {
    /// The answer, if it is there.
    pub(crate) fn poll<Q: Polled>(&mut self, question: Q) -> Poll<Q::Answer> {
        self.queries.poll(self.share, question)
    }
}

//! Questions about a network namespace, on one account, for something that is to be told soon.

use std::task::Poll;

use crate::{
    model::Share,
    privilege::{Eyes, protocol::Polled},
};

/// Asks without waiting.
pub(crate) struct Asking<'a, E> {
    pub(crate) eyes: &'a mut E,
    /// On whose account.
    pub(crate) share: Share,
    /// It is told now, whatever is known.
    pub(crate) is_last: bool,
}

impl<E: Eyes> Asking<'_, E> {
    /// The answer, if it is there.
    pub(crate) fn poll<Q: Polled>(&mut self, question: Q) -> Poll<Q::Answer> {
        self.eyes.poll(self.share, question)
    }
}

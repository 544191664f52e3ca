//! What attribution needs of the host, asked of the helper or, in tests, of a table.

use std::task::Poll;

use super::{
    HelperError, Listening, Wake,
    protocol::{Polled, Question},
};
use crate::{model::Share, probe::rules::Proving};

/// Whoever sees what this process may not.
pub trait HostQueries: Proving {
    /// Asks, and waits for the answer: for what is known at once.
    fn ask<Q: Question>(&mut self, question: Q) -> Result<Q::Answer, HelperError>;

    /// The answer if it has come; the question is sent when it was not yet, on this account. Asked again after the answer was taken,
    /// it is sent anew.
    fn poll<Q: Polled>(&mut self, share: Share, question: Q) -> Poll<Q::Answer>;

    /// The same for what listening to a namespace's rules takes.
    fn poll_listen(&mut self, share: Share, netns: u32) -> Poll<Result<Listening, String>>;

    /// From now on asynchronous questions are sent; `wake` is called when an answer has come.
    fn begin_polling(&mut self, wake: Wake) -> Result<(), HelperError>;

    /// Takes in answers that have come; true when there are any.
    fn take_answers(&mut self) -> bool;

    /// Whose questions were too many, and how many of each were not asked.
    fn used_up(&self) -> Vec<(Share, u64)>;

    /// Why questions were not answered, where they were not.
    fn failure(&self) -> Option<String>;
}

//! A helper for tests: a function answers.

use std::{os::fd::OwnedFd, task::Poll, time::Duration};

use super::{
    HelperError, HostQueries, Listening, Wake,
    protocol::{Polled, Question, Request},
};
use crate::{
    kernel::symbols::Functions,
    model::Share,
    probe::{
        calibrate::proof::{Prepared, Unproven},
        rules::Proving,
    },
};

/// What answers, in bytes.
type Answers = Box<dyn FnMut(&Request) -> Option<Vec<u8>>>;

/// Answers as [`encode`](super::protocol::encode) writes them; `None` for what has not come yet.
pub(crate) struct Fake(pub(crate) Answers);

impl Fake {
    fn answer<Q: Question>(&mut self, question: Q) -> Option<Q::Answer> {
        let answer = (self.0)(&question.into())?;
        Some(postcard::from_bytes(&answer).expect("an answer of another type"))
    }
}

impl HostQueries for Fake {
    fn ask<Q: Question>(&mut self, question: Q) -> Result<Q::Answer, HelperError> {
        Ok(self.answer(question).expect("nobody asks that"))
    }

    fn poll<Q: Polled>(&mut self, _share: Share, question: Q) -> Poll<Q::Answer> {
        self.answer(question).map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_listen(&mut self, _share: Share, _netns: u32) -> Poll<Result<Listening, String>> {
        Poll::Pending
    }

    fn begin_polling(&mut self, _wake: Wake) -> Result<(), HelperError> {
        Ok(())
    }

    fn take_answers(&mut self) -> bool {
        false
    }

    fn used_up(&self) -> Vec<(Share, u64)> {
        Vec::new()
    }

    fn failure(&self) -> Option<String> {
        None
    }
}

impl Proving for Fake {
    fn functions(&mut self, _changes: u64) -> Result<Functions, String> {
        Err("nothing is shown".to_owned())
    }

    fn keep_netns_cookies(&mut self, _map: OwnedFd) -> Result<(), String> {
        Ok(())
    }

    fn keep_verdict_programs(&mut self, _programs: &[OwnedFd; 2]) -> Result<(), String> {
        Ok(())
    }

    fn arm_verdicts(&mut self, _time: Duration, _is_proof: bool) -> Result<(), String> {
        Ok(())
    }

    fn prepare_proof(&mut self, _changes: u64) -> Result<Prepared, Unproven> {
        Err(Unproven::NotLoaded)
    }

    fn send_proof(&mut self) -> Result<(), Unproven> {
        Err(Unproven::NotLoaded)
    }

    fn end_proof(&mut self) {}
}

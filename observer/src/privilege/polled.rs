//! Asynchronous questions to the helper: each is sent once, and its answer is there the next time it is asked for after it
//! has come.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, channel},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::socket::MsgFlags;

use super::{
    channel::{receive, send},
    protocol::{Question, Request, decode, encode_message, number},
};
use crate::model::Share;

/// Questions of a share that are out at the same time, for what is read and for what is tried: what is asked beyond has no answer.
const MAX_OUT: usize = 24;
/// The same of root's.
const MAX_OUT_OF_ROOT: usize = 256;
/// An answer that was not taken for so long is asked for anew.
const TAKEN: Duration = Duration::from_secs(1);
/// Answers that nobody has asked for in this time are forgotten, and questions whose answer did not come are asked anew.
const FRESH: Duration = Duration::from_secs(10);
/// The same for questions whose answers do not come at all.
const OVERDUE: Duration = Duration::from_secs(30);
/// Shares whose questions were too many are named, up to so many.
const MAX_NAMED: usize = 64;
/// Questions that were not asked, up to so many, are counted.
const MAX_REFUSED: usize = 65_536;

/// Called when an answer has come.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// An answer as it came.
type Come = (Vec<u8>, Vec<OwnedFd>);

/// A question that was sent.
struct Out {
    share: Share,
    is_trial: bool,
    since: Instant,
    come: Option<(Instant, Come)>,
}

/// Everything that was asked so.
#[derive(Default)]
pub(super) struct Polled {
    pub(super) wake: Option<Wake>,
    connection: Option<(Arc<OwnedFd>, Receiver<Come>)>,
    /// The other end of it has died.
    pub(super) is_gone: bool,
    /// Number of the last question.
    asked: u64,
    /// By what is asked.
    out: HashMap<Vec<u8>, (u64, Out)>,
    by_id: HashMap<u64, Vec<u8>>,
    /// Questions that were not asked, by whose they were.
    used_up: HashMap<Share, u64>,
    /// Hashes of these questions: each is counted once, however often it is asked.
    refused: HashSet<u64>,
    /// What came with the answer that was taken last.
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Polled {
    /// It was opened once.
    pub(super) fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Takes this connection in place of the one before. What was asked by that one is asked anew.
    pub(super) fn open(&mut self, socket: OwnedFd) -> Result<()> {
        self.out.clear();
        self.by_id.clear();
        let socket = Arc::new(socket);
        let (come, answers) = channel();
        let (reader, wake) = (Arc::clone(&socket), self.wake.clone());
        thread::Builder::new().name("answers".to_owned()).spawn(move || {
            while let Ok(Some(answer)) = receive(&reader, MsgFlags::empty()) {
                if come.send(answer).is_err() {
                    break;
                }
                if let Some(wake) = &wake {
                    wake();
                }
            }
            drop(come);
            if let Some(wake) = &wake {
                wake();
            }
        })?;
        self.is_gone = false;
        self.connection = Some((socket, answers));
        Ok(())
    }

    /// Takes in what has come; true when that is anything.
    pub(super) fn take_answers(&mut self) -> bool {
        let Some((_, answers)) = &self.connection else { return false };
        let mut any = false;
        loop {
            let (bytes, descriptors) = match answers.try_recv() {
                Ok(answer) => answer,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.is_gone = true;
                    break;
                }
            };
            let key = number(&bytes).and_then(|id| self.by_id.remove(&id));
            if let Some((_, out)) = key.and_then(|key| self.out.get_mut(&key)) {
                out.come = Some((Instant::now(), (bytes, descriptors)));
                any = true;
            }
        }
        any
    }

    /// The answer, once it has come; the question is sent when it was not yet.
    pub(super) fn poll<Q: Question>(&mut self, share: Share, request: &Request) -> Poll<Q::Answer> {
        let Ok(key) = postcard::to_stdvec(request) else { return Poll::Pending };
        if let Some((_, out)) = self.out.get_mut(&key) {
            let Some((come, (bytes, descriptors))) = out.come.take() else { return Poll::Pending };
            self.out.remove(&key);
            if come.elapsed() > TAKEN {
                // Whoever asked for it has given up, and what it says may have changed since.
                return self.poll::<Q>(share, request);
            }
            self.descriptors = descriptors;
            return match decode::<Q>(&bytes) {
                Ok((_, Ok(answer))) => Poll::Ready(answer),
                Ok((_, Err(error))) | Err(error) => {
                    log::debug!("an answer of the helper cannot be read: {error:#}");
                    Poll::Pending
                }
            };
        }
        self.forget();
        let is_trial = request.is_trial();
        let alike = |out: &&(u64, Out)| out.1.share == share && out.1.is_trial == is_trial && out.1.come.is_none();
        let most = if share == Share::Host { MAX_OUT_OF_ROOT } else { MAX_OUT };
        if self.out.values().filter(alike).count() >= most {
            let is_new = self.refused.len() < MAX_REFUSED && self.refused.insert(hash(&key));
            if is_new && (self.used_up.len() < MAX_NAMED || self.used_up.contains_key(&share)) {
                *self.used_up.entry(share).or_default() += 1;
            }
            return Poll::Pending;
        }
        let Some((socket, _)) = &self.connection else { return Poll::Pending };
        self.asked += 1;
        let sent = encode_message(self.asked, share, request).and_then(|message| send(socket, &message, &[]));
        if let Err(error) = sent {
            log::debug!("the helper cannot be asked: {error:#}");
            return Poll::Pending;
        }
        self.by_id.insert(self.asked, key.clone());
        self.out.insert(key, (self.asked, Out { share, is_trial, since: Instant::now(), come: None }));
        Poll::Pending
    }

    fn forget(&mut self) {
        let by_id = &mut self.by_id;
        self.out.retain(|_, (id, out)| {
            let is_good = match &out.come {
                Some((when, _)) => when.elapsed() < FRESH,
                None => out.since.elapsed() < OVERDUE,
            };
            if !is_good {
                by_id.remove(id);
            }
            is_good
        });
    }

    /// Shares that asked for more than there is for one, and how many questions were not asked for each.
    pub(super) fn used_up(&self) -> Vec<(Share, u64)> {
        let mut all: Vec<(Share, u64)> = self.used_up.iter().map(|(share, count)| (*share, *count)).collect();
        all.sort_unstable();
        all
    }
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privilege::{
        channel::pair,
        protocol::{IsAHelper, decode_message, encode, reply},
    };

    /// Both ends; the other one answers when it is told to.
    fn opened() -> (Polled, OwnedFd) {
        let (ours, theirs) = pair().unwrap();
        let mut polled = Polled::default();
        polled.open(ours).unwrap();
        (polled, theirs)
    }

    fn poll(polled: &mut Polled, share: Share, pid: u32) -> Poll<bool> {
        polled.poll::<IsAHelper>(share, &IsAHelper { pid }.into())
    }

    /// Answers the next question; which process it was about.
    fn answer(theirs: &OwnedFd, is: bool) -> u32 {
        let (bytes, _) = receive(theirs, MsgFlags::empty()).unwrap().unwrap();
        let message = decode_message(&bytes).unwrap();
        let Request::IsAHelper(asked) = message.request else { panic!("another question") };
        send(theirs, &reply(message.id, &encode::<IsAHelper>(&is)), &[]).unwrap();
        asked.pid
    }

    fn taken(polled: &mut Polled) {
        while !polled.take_answers() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_question_is_sent_once_and_its_answer_taken_once() {
        let (mut polled, theirs) = opened();
        assert_eq!(poll(&mut polled, Share::Host, 1), Poll::Pending);
        assert_eq!(poll(&mut polled, Share::Host, 1), Poll::Pending, "it is out");
        assert_eq!(answer(&theirs, true), 1);
        taken(&mut polled);
        assert_eq!(poll(&mut polled, Share::Host, 1), Poll::Ready(true));
        // Asked again it is sent anew.
        assert_eq!(poll(&mut polled, Share::Host, 1), Poll::Pending);
        assert_eq!(answer(&theirs, false), 1);
        taken(&mut polled);
        assert_eq!(poll(&mut polled, Share::Host, 1), Poll::Ready(false));
    }

    #[test]
    fn whoever_asks_for_too_much_is_named_and_holds_up_nobody() {
        let (mut polled, theirs) = opened();
        let greedy = Share::User(7);
        for pid in 0..=u32::try_from(MAX_OUT).unwrap() {
            assert_eq!(poll(&mut polled, greedy, pid), Poll::Pending);
            assert_eq!(poll(&mut polled, greedy, pid), Poll::Pending, "asked again it is not counted again");
        }
        assert_eq!(polled.used_up(), [(greedy, 1)]);
        assert_eq!(poll(&mut polled, Share::Host, 1000), Poll::Pending);
        for pid in (0..u32::try_from(MAX_OUT).unwrap()).chain([1000]) {
            assert_eq!(answer(&theirs, true), pid);
        }
        while poll(&mut polled, Share::Host, 1000).is_pending() {
            polled.take_answers();
        }
    }

    #[test]
    fn an_end_that_is_gone_is_told() {
        let (mut polled, theirs) = opened();
        drop(theirs);
        while !polled.is_gone {
            polled.take_answers();
        }
    }
}

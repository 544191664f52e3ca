//! Asynchronous questions, answered by a few threads: each share has one of them at a time for what is read and one for what
//! is tried, in turn, so that whoever asks for much waits for itself alone.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use anyhow::Result;
use nix::sys::socket::MsgFlags;

use super::{
    channel::{receive, send},
    protocol::{Message, decode_message, reply},
    shared::{Shared, lock},
};
use crate::model::Share;

/// Threads that answer: most of what they do is to wait for the kernel, or for a process.
const THREADS: usize = 8;
/// So many of them answer root's questions alone.
const FOR_ROOT: usize = 2;

/// Whose a question is, and whether something is tried for it: a copy of rules takes longer than to read them.
type Lane = (Share, bool);

fn lane(message: &Message) -> Lane {
    (message.share, message.request.is_trial())
}

/// Questions by lane.
#[derive(Default)]
struct Waiting {
    by_lane: HashMap<Lane, VecDeque<Message>>,
    /// Lanes that have any and are not at work, in their turn.
    turns: VecDeque<Lane>,
    at_work: HashSet<Lane>,
    /// The other end is gone.
    is_over: bool,
}

impl Waiting {
    fn add(&mut self, message: Message) {
        let lane = lane(&message);
        let queue = self.by_lane.entry(lane).or_default();
        queue.push_back(message);
        if queue.len() == 1 && !self.at_work.contains(&lane) {
            self.turns.push_back(lane);
        }
    }

    /// The next question; its lane has none other at work until [`Self::done`]. Some threads are kept for root.
    fn next(&mut self) -> Option<(Lane, Message)> {
        let others = self.at_work.iter().filter(|(share, _)| *share != Share::Host).count();
        let may_go = |(share, _): &Lane| *share == Share::Host || others < THREADS - FOR_ROOT;
        let at = self.turns.iter().position(may_go)?;
        let lane = self.turns.remove(at)?;
        let message = self.by_lane.get_mut(&lane)?.pop_front()?;
        self.at_work.insert(lane);
        Some((lane, message))
    }

    fn done(&mut self, lane: Lane) {
        self.at_work.remove(&lane);
        match self.by_lane.get(&lane).map(VecDeque::is_empty) {
            Some(false) => self.turns.push_back(lane),
            _ => drop(self.by_lane.remove(&lane)),
        }
    }
}

/// Reads questions from a connection until the other end is gone, by a thread of its own; others answer them.
pub(super) fn open(socket: OwnedFd, shared: &Arc<Shared>) -> Result<()> {
    let socket = Arc::new(socket);
    let lanes = Arc::new((Mutex::new(Waiting::default()), Condvar::new()));
    for _ in 0..THREADS {
        let (socket, lanes, shared) = (Arc::clone(&socket), Arc::clone(&lanes), Arc::clone(shared));
        thread::Builder::new().name("answers".to_owned()).spawn(move || answer(&socket, &lanes, &shared))?;
    }
    thread::Builder::new().name("questions".to_owned()).spawn(move || {
        let (waiting, more) = &*lanes;
        while let Ok(Some((bytes, _))) = receive(&socket, MsgFlags::empty()) {
            let Ok(message) = decode_message(&bytes) else { break };
            lock(waiting).add(message);
            more.notify_one();
        }
        lock(waiting).is_over = true;
        more.notify_all();
    })?;
    Ok(())
}

fn answer(socket: &OwnedFd, (waiting, more): &(Mutex<Waiting>, Condvar), shared: &Shared) {
    let mut held = lock(waiting);
    loop {
        let Some((lane, message)) = held.next() else {
            if held.is_over {
                return;
            }
            held = more.wait(held).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(held);
        let Message { id, share, request } = message;
        // Another helper is better than one that does not answer somebody for good.
        let answer = catch_unwind(AssertUnwindSafe(|| shared.answer(&request, share)));
        let Ok(answer) = answer else { std::process::exit(1) };
        if let Some((bytes, descriptors)) = answer {
            // The other end may be gone: then this one is soon.
            let _ = send(socket, &reply(id, &bytes), &descriptors);
        }
        held = lock(waiting);
        held.done(lane);
        if !held.turns.is_empty() {
            more.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privilege::protocol::{Place, Request};

    fn message(id: u64, share: Share) -> Message {
        Message { id, share, request: Request::from(Place { netns: 1, cookie: 0 }) }
    }

    #[test]
    fn whoever_asks_for_much_waits_for_itself() {
        let (greedy, other) = (Share::User(1), Share::Host);
        let mut waiting = Waiting::default();
        (0..10).for_each(|id| waiting.add(message(id, greedy)));
        waiting.add(message(10, other));
        let (first, second) = (waiting.next().unwrap(), waiting.next().unwrap());
        // The greedy one is at work, and has no second thread.
        assert!(waiting.next().is_none());
        let mut ids = vec![first.1.id, second.1.id];
        waiting.done(first.0);
        waiting.done(second.0);
        while let Some((lane, message)) = waiting.next() {
            ids.push(message.id);
            waiting.done(lane);
        }
        assert_eq!(ids, [0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(waiting.by_lane.is_empty() && waiting.at_work.is_empty());
    }
}

//! The slower half: makes events and writes them, on a thread of its own, since asking and writing may wait.

use std::{
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    enrich::{assemble::Assembler, attribute::Eyes},
    intake::{decode::decode, ring::Item},
    model::{Degraded, Filter},
    output::Output,
};

/// Output that has something left to tell is asked this often.
const IDLE: Duration = Duration::from_millis(250);

/// What the slower half did.
pub(super) struct Consumed {
    pub(super) reported: u64,
    pub(super) filtered: u64,
    pub(super) decode: u64,
    /// Packets that turned out to be no egress.
    pub(super) inbound: u64,
    /// Given up at the end, because the output did not take them in time.
    pub(super) abandoned: u64,
    pub(super) told: u64,
    pub(super) output: Box<dyn Output>,
    pub(super) degraded: Vec<Degraded>,
    pub(super) error: Option<io::Error>,
}

/// The slower half: until the queue is closed and empty. After an error or the last event that was asked for, it counts
/// on and writes no more; in a hurry it only counts.
pub(super) fn consume<E: Eyes>(
    queue: &Receiver<Item>,
    mut assembler: Assembler<E>,
    output: Box<dyn Output>,
    filter: &Filter,
    count: Option<u64>,
    stop: oneshot::Sender<()>,
    hurry: &AtomicBool,
) -> Consumed {
    let mut consumed = Consumed {
        reported: 0,
        filtered: 0,
        decode: 0,
        inbound: 0,
        abandoned: 0,
        told: 0,
        output,
        degraded: Vec::new(),
        error: None,
    };
    let mut stop = Some(stop);
    let mut told = Instant::now();
    loop {
        let item = match queue.try_recv() {
            Ok(item) => Some(item),
            Err(_) => {
                let waiting = consumed.pause();
                told = Instant::now();
                // An idle host costs nothing: without anything to tell there is nothing to wake up for.
                let next = if waiting { queue.recv_timeout(IDLE) } else { queue.recv().map_err(Into::into) };
                match next {
                    Ok(item) => Some(item),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => {
                        consumed.degraded = assembler.degraded();
                        return consumed;
                    }
                }
            }
        };
        if told.elapsed() > IDLE {
            consumed.pause();
            told = Instant::now();
        }
        match item {
            Some(Item::Drop(_)) if hurry.load(Ordering::Relaxed) => consumed.abandoned += 1,
            Some(Item::Drop(bytes)) => consumed.take(bytes, &mut assembler, filter, count),
            Some(Item::Processes) => assembler.catch_up(),
            None => {}
        }
        if (consumed.error.is_some() || count.is_some_and(|count| consumed.told >= count))
            && let Some(stop) = stop.take()
        {
            // The other end is gone only when everything is stopping already.
            let _ = stop.send(());
        }
    }
}

impl Consumed {
    /// True when the output has something left to tell.
    fn pause(&mut self) -> bool {
        if self.error.is_some() {
            return false;
        }
        self.output.idle().unwrap_or_else(|error| {
            self.error = Some(error);
            false
        })
    }

    fn take<E: Eyes>(
        &mut self,
        bytes: bytes::Bytes,
        assembler: &mut Assembler<E>,
        filter: &Filter,
        count: Option<u64>,
    ) {
        let dropped = match decode(bytes) {
            Ok(dropped) => dropped,
            Err(error) => {
                log::warn!("{error}");
                self.decode += 1;
                return;
            }
        };
        if self.error.is_some() || count.is_some_and(|count| self.told >= count) {
            self.filtered += 1;
            return;
        }
        if !assembler.is_egress(&dropped) {
            self.inbound += 1;
            return;
        }
        let mut event = assembler.assemble(&dropped);
        if !filter.matches(&event) {
            self.filtered += 1;
            return;
        }
        self.reported += 1;
        event.event.sequence = Some(self.reported);
        match self.output.event(&event) {
            Ok(shown) => self.told += u64::from(shown),
            Err(error) => self.error = Some(error),
        }
    }
}

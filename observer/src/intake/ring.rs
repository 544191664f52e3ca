//! Reads the ring without losing the tail.
//!
//! The kernel half wakes the reader at most once a millisecond and CPU. After a wake-up the reader therefore looks again
//! every [`POLL`] until it found the ring empty once, and only then waits for the next wake-up: whatever came without one
//! is found by then.

use std::{
    sync::mpsc::{SyncSender, TrySendError},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use tokio::io::unix::AsyncFd;

use crate::sys::watch_readable;

/// Longer than the interval at which the kernel half wakes the reader.
const POLL: Duration = Duration::from_millis(5);
/// Records taken in one go before other tasks have their turn.
const BATCH: usize = 1024;

/// What is queued for the slower half.
#[derive(Debug)]
pub enum Item {
    /// A drop record.
    Drop(Bytes),
    /// Process records wait in their ring, which fills up.
    Processes,
}

/// The reading end of the ring.
pub struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    queue: SyncSender<Item>,
    /// Records taken out of the ring.
    pub taken: u64,
    /// Of these, records that did not fit into the queue.
    pub overflow: u64,
    closed: bool,
}

impl Reader {
    /// Reads `ring` into `queue`. Must be called inside the runtime.
    pub fn new(ring: RingBuf<MapData>, queue: SyncSender<Item>) -> std::io::Result<Self> {
        Ok(Self { ring: watch_readable(ring)?, queue, taken: 0, overflow: 0, closed: false })
    }

    /// Reads until it is cancelled or the other end of the queue is gone. Cancel-safe: no record is held over an await.
    pub async fn run(&mut self) -> std::io::Result<()> {
        while !self.closed {
            // The readiness is cleared before the ring is emptied: a wake-up in between is not lost.
            self.ring.readable_mut().await?.clear_ready();
            loop {
                match self.drain(BATCH) {
                    0 => break,
                    BATCH => tokio::task::yield_now().await,
                    _ => tokio::time::sleep(POLL).await,
                }
            }
        }
        Ok(())
    }

    /// Takes at most `limit` records out of the ring, without waiting; returns how many.
    pub fn drain(&mut self, limit: usize) -> usize {
        let ring = self.ring.get_mut();
        let mut taken = 0;
        while taken < limit
            && let Some(item) = ring.next()
        {
            taken += 1;
            match self.queue.try_send(Item::Drop(Bytes::copy_from_slice(&item))) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => self.overflow += 1,
                Err(TrySendError::Disconnected(_)) => {
                    self.overflow += 1;
                    self.closed = true;
                }
            }
        }
        self.taken += taken as u64;
        taken
    }
}

//! Reads the ring without losing the tail, and has the counts swept.
//!
//! The eBPF side wakes the reader at most once a millisecond and CPU. After a wake-up the reader therefore looks again
//! every [`POLL`] until it found the ring empty once, and only then waits for the next wake-up: whatever came without one
//! is found by then.
//!
//! Once something came, the generation in which is counted ends after [`SWEEP`]; then everything that belongs to it is in
//! the ring, is taken out, and a request to sweep it is queued behind. So on a host on which nothing is dropped nothing is
//! ever swept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use tokio::{io::unix::AsyncFd, time::Instant};

use super::counts::{Epoch, settle};
use crate::{model::Commit, sys::watch_readable};

/// Longer than the interval at which the eBPF side wakes the reader.
const POLL: Duration = Duration::from_millis(5);
/// Records taken in one go before other tasks have their turn.
const BATCH: usize = 1024;
/// How long a generation counts.
const SWEEP: Duration = Duration::from_millis(500);

/// What is queued for the slower half.
#[derive(Debug)]
pub enum Item {
    /// The helper has answered something.
    Answers,
    /// A drop record.
    Drop(Bytes),
    /// Process records wait in their ring, which fills up.
    Processes,
    /// Modules of the kernel have come or gone.
    Modules,
    /// Rules were changed, in this order.
    Commits(Vec<Commit>),
    /// A namespace's changes are not heard any more.
    Deaf(u32),
    /// This generation is over, and every record of it is queued before this.
    Sweep(u32),
}

/// How far the slower half is with sweeping.
#[derive(Debug, Default)]
pub struct Sweeping {
    /// A request is queued or worked on.
    pub busy: AtomicBool,
    /// Keys that the last sweep found.
    pub found: AtomicU64,
    /// Records that found no room in the queue.
    pub crowded_out: AtomicU64,
    /// The kernel did not say when a generation was over.
    pub uncertain: AtomicBool,
}

/// The reading end of the ring.
pub struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    queue: SyncSender<Item>,
    epoch: Epoch,
    sweeping: Arc<Sweeping>,
    /// When the generation ends, once there is something in it.
    due: Option<Instant>,
    /// Records were taken since the last sweep.
    fresh: bool,
    closed: bool,
}

impl Reader {
    /// Reads `ring` into `queue`. Must be called inside the runtime.
    pub fn new(
        ring: RingBuf<MapData>,
        epoch: Epoch,
        queue: SyncSender<Item>,
        sweeping: Arc<Sweeping>,
    ) -> std::io::Result<Self> {
        Ok(Self { ring: watch_readable(ring)?, queue, epoch, sweeping, due: None, fresh: false, closed: false })
    }

    /// Reads until it is cancelled or the other end of the queue is gone. Cancel-safe: no record is held over an await.
    pub async fn run(&mut self) -> Result<()> {
        while !self.closed {
            let due = self.due.unwrap_or_else(Instant::now);
            tokio::select! {
                guard = self.ring.readable_mut() => guard.context("cannot wait for the ring")?.clear_ready(),
                () = tokio::time::sleep_until(due), if self.due.is_some() => {}
            }
            // The readiness is cleared before the ring is emptied: a wake-up in between is not lost.
            loop {
                self.sweep_if_due().await?;
                match self.drain(BATCH) {
                    0 => break,
                    BATCH => tokio::task::yield_now().await,
                    _ => tokio::time::sleep(POLL).await,
                }
            }
        }
        Ok(())
    }

    async fn sweep_if_due(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.due.is_none_or(|due| now < due) {
            return Ok(());
        }
        self.due = Some(now + SWEEP);
        if self.sweeping.busy.load(Ordering::Acquire) {
            // The last one is not done yet; meanwhile the kernel counts on.
            return Ok(());
        }
        if !self.fresh && self.sweeping.found.load(Ordering::Acquire) == 0 {
            self.due = None;
            return Ok(());
        }
        self.fresh = false;
        let over = self.epoch.advance()?;
        if !tokio::task::spawn_blocking(settle).await.context("waiting for the generation's end failed")? {
            self.sweeping.uncertain.store(true, Ordering::Relaxed);
        }
        while self.drain(usize::MAX) > 0 {}
        self.sweeping.busy.store(true, Ordering::Release);
        while let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Sweep(over)) {
            tokio::time::sleep(POLL).await;
            self.drain(BATCH);
        }
        Ok(())
    }

    /// Takes at most `limit` records out of the ring, without waiting; returns how many. One that does not fit into the
    /// queue costs its details: it is counted already.
    pub fn drain(&mut self, limit: usize) -> usize {
        let ring = self.ring.get_mut();
        let mut taken = 0;
        while taken < limit
            && let Some(item) = ring.next()
        {
            taken += 1;
            match self.queue.try_send(Item::Drop(Bytes::copy_from_slice(&item))) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    self.sweeping.crowded_out.fetch_add(1, Ordering::Relaxed);
                }
                Err(TrySendError::Disconnected(_)) => self.closed = true,
            }
        }
        if taken > 0 {
            self.fresh = true;
            self.due.get_or_insert_with(|| Instant::now() + SWEEP);
        }
        taken
    }
}

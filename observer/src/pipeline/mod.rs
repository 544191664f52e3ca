//! Wires the rooms: ring → decode → attribute → filter → output, and owns start and shutdown.
//!
//! The runtime's only thread empties the ring into a bounded queue; one more thread takes from the queue and does
//! everything that may wait (asking the helper, writing). Whatever does not fit is counted. The end is always the same:
//! detach, empty the ring until the numbers add up, let the queue run dry, write the account.

mod consume;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use self::consume::consume;
use crate::{
    enrich::{assemble::Assembler, attribute::Eyes, host::Identity},
    intake::ring::{Item, Reader},
    model::{Account, Action, Degraded, ECS_VERSION, Ecs, EventMeta, Filter, Kind, Lost, Summary},
    output::Output,
    probe::{Probes, Totals},
    sys::watch_readable,
};

/// Records that may wait for the slower half: some seconds of a storm, at most 30 MB.
const QUEUE: usize = 65_536;
/// How long the end waits for programs that were still running when they were detached.
const SETTLE: Duration = Duration::from_millis(500);

/// How long what waits in the queue is told after the end, and how long the output may then take to notice.
const DRAIN: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_secs(2);

/// When to stop without being told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After this long.
    pub duration: Option<Duration>,
    /// After this many events.
    pub count: Option<u64>,
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// By a signal or a limit; the account was written.
    Clean(Account),
    /// The reader of the output is gone.
    ClosedPipe,
    /// The output takes nothing and was given up; there is no account.
    Stuck,
}

/// Everything a run needs.
pub struct Run<E> {
    /// Attached.
    pub probes: Probes,
    /// Readable when the ring of process records is filling up.
    pub filling: OwnedFd,
    /// Makes events.
    pub assembler: Assembler<E>,
    /// Where they go.
    pub output: Box<dyn Output>,
    /// Which are told.
    pub filter: Filter,
    /// When to stop.
    pub limits: Limits,
    /// What is known to work worse than it could.
    pub degraded: Vec<Degraded>,
}

impl<E: Eyes + Send + 'static> Run<E> {
    /// Runs until a signal, a limit or the end of the output. `ready` is called once everything is being observed.
    /// Must not be called inside a runtime.
    pub fn run(self, ready: impl FnOnce()) -> Result<Ended>
    where
        Assembler<E>: Send,
    {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(self.observe(ready))
    }

    async fn observe(mut self, ready: impl FnOnce()) -> Result<Ended> {
        let start = Timestamp::now();
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        let (sender, receiver) = sync_channel(QUEUE);
        let filling = watch_readable(self.filling).context("cannot watch the ring of processes")?;
        let nudge = tokio::spawn(nudge(filling, sender.clone()));
        let mut reader = Reader::new(self.probes.take_ring()?, sender).context("cannot watch the ring")?;
        let log = self.probes.take_log().filter(|_| log::log_enabled!(log::Level::Warn)).map(kernel_log);
        let (stop, mut stopped) = oneshot::channel();
        let (assembler, output, filter, count) = (self.assembler, self.output, self.filter, self.limits.count);
        let identity = assembler.identity().clone();
        let hurry = Arc::new(AtomicBool::new(false));
        let (finished, mut done) = oneshot::channel();
        let consumer = {
            let hurry = Arc::clone(&hurry);
            move || {
                // The other end is gone only when the program is.
                let _ = finished.send(consume(&receiver, assembler, output, &filter, count, stop, &hurry));
            }
        };
        thread::Builder::new().name("events".to_owned()).spawn(consumer).context("cannot start a thread")?;
        ready();

        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = after(self.limits.duration) => {}
            _ = &mut stopped => {}
            result = reader.run() => result.context("cannot read the ring")?,
        }

        self.probes.detach();
        let settled = Instant::now();
        let totals = loop {
            while reader.drain(usize::MAX) > 0 {}
            let totals = self.probes.totals().context("cannot read the counters")?;
            if totals.seen == reader.taken + totals.ring || settled.elapsed() > SETTLE {
                break totals;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let missed_max = self.probes.missed_max();
        let (taken, overflow) = (reader.taken, reader.overflow);
        // The queue closes with its last sender.
        drop(reader);
        nudge.abort();
        let _ = nudge.await;
        if let Some(log) = log {
            log.abort();
        }

        // What waits in the queue is still told, but not for ever: a second signal, or an output that takes nothing, ends
        // that too.
        let mut consumed = None;
        for patience in [DRAIN, GIVE_UP] {
            tokio::select! {
                result = &mut done => {
                    consumed = Some(result.context("the thread that makes events failed")?);
                    break;
                }
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = tokio::time::sleep(patience) => {}
            }
            hurry.store(true, Ordering::Relaxed);
        }
        let Some(consumed) = consumed else { return Ok(Ended::Stuck) };

        if let Some(error) = consumed.error {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Ok(Ended::ClosedPipe);
            }
            return Err(error).context("cannot write the output");
        }
        self.degraded.extend(consumed.degraded);
        self.degraded.extend(shortages(&totals, missed_max));
        let account = Account {
            seen: totals.seen.saturating_sub(consumed.inbound),
            reported: consumed.reported,
            filtered: consumed.filtered,
            lost: Lost {
                // What was detached in the middle of its work never reached the ring.
                ring: totals.seen.saturating_sub(taken),
                decode: consumed.decode,
                queue: overflow + consumed.abandoned,
                ..Lost::default()
            },
            missed_max: missed_max.unwrap_or(0),
            degraded: self.degraded,
        };
        let summary = summary(&identity, start, account);
        let mut output = consumed.output;
        match output.finish(&summary) {
            Ok(()) => Ok(Ended::Clean(summary.egress)),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Ended::ClosedPipe),
            Err(error) => Err(error).context("cannot write the output"),
        }
    }
}

/// What ran short in the kernel.
fn shortages(totals: &Totals, missed_max: Option<u64>) -> Vec<Degraded> {
    let shortage = |what: &str, why: String, consequence: &str| Degraded {
        what: what.to_owned(),
        why,
        consequence: consequence.to_owned(),
    };
    let mut shortages = Vec::new();
    if totals.process_ring_full > 0 {
        shortages.push(shortage(
            "processes",
            format!("the ring of process records was full for {} of them", totals.process_ring_full),
            "some short-lived processes have no executable, arguments or parents",
        ));
    }
    if totals.owner_map_full > 0 {
        shortages.push(shortage(
            "owners",
            format!("the owner map was full for {} sockets", totals.owner_map_full),
            "their packets are named by other means or not at all",
        ));
    }
    if missed_max.is_none() {
        shortages.push(shortage(
            "missed",
            "this kernel does not tell how many program runs it skipped".to_owned(),
            "every count may be too low by an unknown number",
        ));
    }
    shortages
}

/// Waits, or for ever.
async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Has the slower half take in process records before their ring is full. A full queue is no matter: it does so at every
/// drop anyway.
async fn nudge(mut filling: AsyncFd<OwnedFd>, queue: SyncSender<Item>) {
    while let Ok(mut guard) = filling.readable_mut().await {
        guard.clear_ready();
        let _ = queue.try_send(Item::Processes);
    }
}

/// Passes on what the BPF half says.
fn kernel_log(log: aya_log::EbpfLogger<&'static dyn log::Log>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let Ok(mut log) = watch_readable(log) else { return };
        pass_on(&mut log).await;
    })
}

async fn pass_on(log: &mut AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>) {
    while let Ok(mut guard) = log.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

fn summary(identity: &Identity, start: Timestamp, account: Account) -> Summary {
    let end = Timestamp::now();
    Summary {
        timestamp: end,
        ecs: Ecs { version: ECS_VERSION },
        agent: identity.agent.clone(),
        host: identity.host.clone(),
        event: EventMeta {
            kind: Kind::Metric,
            dataset: "observer.egress",
            module: "observer",
            id: None,
            category: &[],
            r#type: &[],
            action: Action::Summary,
            outcome: None,
            sequence: None,
            start,
            end,
            reason: None,
        },
        egress: account,
    }
}

//! Wires the rooms: ring and counts → decode → attribute → filter → output, and owns start and shutdown.
//!
//! The runtime's only thread empties the ring into a bounded queue and has the counts swept; one more thread takes from
//! the queue and does everything that may wait (asking the helper, sweeping, writing). The counts are the ledger: what
//! does not fit into ring or queue is told by its count. The end is always the same: detach, wait for running programs,
//! empty the ring, let the queue run dry, sweep what is left, write the account.

mod changes;
mod consume;
pub mod modules;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{SyncSender, sync_channel},
    },
    task::Poll,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc::UnboundedReceiver, oneshot},
};

use self::consume::{Consumer, Flags};
use crate::{
    enrich::{assemble::Assembler, attribute::Eyes, changes::Listening, host::Identity},
    intake::{
        counts::{Counts, Epoch, settle},
        ring::{Item, Reader},
    },
    model::{Account, Action, Degraded, ECS_VERSION, Ecs, EventMeta, Filter, Hanging, Kind, Lost, Summary},
    output::Output,
    probe::{Probes, Totals},
    sys::watch_readable,
};

/// Records that may wait for the slower half: some seconds of a storm, at most 30 MB.
const QUEUE: usize = 65_536;
/// How long what waits in the queue is told after the end, and how long the output may then take to notice.
const DRAIN: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_secs(2);

/// When to stop without being told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After this many events.
    pub count: Option<u64>,
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// By a signal or a limit; the account was written.
    Clean(Box<Account>),
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
    /// Hears of the kernel's modules, since before its functions were looked up.
    pub modules: io::Result<OwnedFd>,
    /// Namespaces whose rules are listened to, as they are found.
    pub listening: UnboundedReceiver<Listening>,
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
    /// Connections that hang already, to be told first.
    pub hanging: Vec<Hanging>,
}

impl<E: Eyes + Send + 'static> Run<E> {
    /// Runs until `until` is done, a limit is reached or the output is gone. `ready` is called once everything is being
    /// observed; `until` is polled inside the runtime. Must not be called inside a runtime.
    pub fn run(self, ready: impl FnOnce() -> Result<()>, until: impl Future<Output = Result<()>>) -> Result<Ended>
    where
        Assembler<E>: Send,
    {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(self.observe(ready, until))
    }

    async fn observe(
        mut self,
        ready: impl FnOnce() -> Result<()>,
        until: impl Future<Output = Result<()>>,
    ) -> Result<Ended> {
        let start = Timestamp::now();
        let (sender, receiver) = sync_channel(QUEUE);
        let filling = watch_readable(self.filling).context("cannot watch the ring of processes")?;
        let flags = Arc::new(Flags::default());
        let nudge = tokio::spawn(nudge(filling, sender.clone(), Arc::clone(&flags)));
        let modules = tokio::spawn(modules::watch(self.modules, sender.clone(), Arc::clone(&flags)));
        let changes = tokio::spawn(changes::watch(self.listening, sender.clone()));
        let sweeping = Arc::clone(&flags.sweeping);
        let mut reader = Reader::new(self.probes.take_ring()?, Epoch::new(self.probes.take_epoch()?), sender, sweeping)
            .context("cannot watch the ring")?;
        let counts = Counts::new(self.probes.take_counts()?);
        let log = self.probes.take_log().filter(|_| log::log_enabled!(log::Level::Warn)).map(kernel_log);
        let (stop, mut stopped) = oneshot::channel();
        let identity = self.assembler.identity().clone();
        let consumer = Consumer::new(self.assembler, counts, self.output, self.filter, self.limits.count, stop);
        let (finished, mut done) = oneshot::channel();
        let consumer = {
            let hanging = std::mem::take(&mut self.hanging);
            let flags = Arc::clone(&flags);
            move || {
                // The other end is gone only when the program is.
                let _ = finished.send(consumer.run(&hanging, &receiver, &flags));
            }
        };
        thread::Builder::new().name("events".to_owned()).spawn(consumer).context("cannot start a thread")?;
        tokio::pin!(until);
        // Once, so that it listens for signals before anybody can know that observing has begun.
        let early = std::future::poll_fn(|context| Poll::Ready(until.as_mut().poll(context))).await;
        ready()?;

        tokio::select! {
            result = until, if early.is_pending() => result?,
            _ = &mut stopped => {}
            result = reader.run() => result?,
        }

        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        self.probes.detach();
        tokio::task::spawn_blocking(settle).await.context("waiting for the programs' end failed")?;
        while reader.drain(usize::MAX) > 0 {}
        let totals = self.probes.totals().context("cannot read the counters")?;
        let (missed_max, untold) = (self.probes.missed_max(), self.probes.untold_processes());
        // The queue closes with its last sender.
        drop(reader);
        for task in [nudge, modules, changes] {
            task.abort();
            let _ = task.await;
        }
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
            flags.hurry.store(true, Ordering::Relaxed);
        }
        let Some(consumed) = consumed else { return Ok(Ended::Stuck) };

        if let Some(error) = consumed.error {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Ok(Ended::ClosedPipe);
            }
            return Err(error).context("cannot write the output");
        }
        self.degraded.extend(consumed.degraded);
        let crowded_out = flags.sweeping.crowded_out.load(Ordering::Relaxed);
        self.degraded.extend(shortages(
            &Totals { records_skipped: totals.records_skipped + crowded_out, ..totals },
            missed_max,
            untold.unwrap_or(0),
        ));
        if flags.sweeping.uncertain.load(Ordering::Relaxed) {
            self.degraded.push(Degraded {
                what: "counts".to_owned(),
                why: "this kernel does not say when a program has ended (no membarrier)".to_owned(),
                consequence: "a packet that was being counted for more than 50 ms may be missing from the sum"
                    .to_owned(),
            });
        }
        let account = Account {
            seen: totals.seen.saturating_sub(consumed.inbound),
            reported: consumed.reported,
            filtered: consumed.filtered + totals.filtered,
            lost: Lost {
                map: totals.map + consumed.undecided,
                decode: consumed.decode,
                queue: consumed.abandoned,
                ..Lost::default()
            },
            missed_max: missed_max.unwrap_or(0),
            rules: consumed.rules,
            degraded: self.degraded,
        };
        let summary = summary(&identity, start, account);
        let mut output = consumed.output;
        match output.finish(&summary) {
            Ok(()) => Ok(Ended::Clean(Box::new(summary.egress))),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Ended::ClosedPipe),
            Err(error) => Err(error).context("cannot write the output"),
        }
    }
}

/// What ran short in the kernel.
fn shortages(totals: &Totals, missed_max: Option<u64>, untold_processes: u64) -> Vec<Degraded> {
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
    if untold_processes > 0 {
        shortages.push(shortage(
            "processes",
            format!("the kernel skipped {untold_processes} runs of the programs that tell of new processes"),
            "as many processes may be without executable, arguments or parents",
        ));
    }
    if totals.records_skipped > 0 {
        shortages.push(shortage(
            "details",
            format!("{} new flows came faster than their first packets could be handed over", totals.records_skipped),
            "they are counted exactly, but their lines have no source port and some no process",
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

/// Has the slower half take in process records before their ring is full. A full queue is no matter: it does so at every
/// drop anyway.
async fn nudge(mut filling: AsyncFd<OwnedFd>, queue: SyncSender<Item>, flags: Arc<Flags>) {
    while let Ok(mut guard) = filling.readable_mut().await {
        guard.clear_ready();
        // One is enough: it must not take a drop's place in the queue.
        if !flags.nudged.swap(true, Ordering::Relaxed) && queue.try_send(Item::Processes).is_err() {
            flags.nudged.store(false, Ordering::Relaxed);
        }
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

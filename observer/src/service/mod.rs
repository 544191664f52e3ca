//! Wires the rooms: ring and counts → decode → attribute → filter → explain → incident → sinks, and owns start and shutdown.
//!
//! The runtime's only thread empties the ring into a bounded queue and has the counts swept; one more thread ([`events`]) takes from the
//! queue and does everything that may wait but writing, for which each sink has a thread. The counts are the ledger: what
//! does not fit into ring or queue is reported by its count. The end is always the same: detach, wait for running programs,
//! empty the ring, let the queue run dry, sweep what is left, write the account.

mod backlog;
mod documents;
mod epochs;
mod events;
mod held;
mod ledger;
mod listen;
mod lookups;
mod making;
pub mod manager;
pub mod modules;
mod writer;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
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
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc::UnboundedReceiver, oneshot},
};

pub use self::events::Rooms;
use self::{
    documents::Documents,
    events::{Consumed, Consumer},
    ledger::{Flags, Ledger},
    manager::Manager,
    writer::LineWriter,
};
use crate::{
    intake::{
        counts::{Counts, Epoch, settle},
        ring::{Item, Reader},
    },
    model::{Account, Coverage, Degraded, Filter, Hanging, Kind, Line, Lost},
    privilege::{HostQueries, Listening, Wake},
    probe::{Probes, Totals},
    sink::{
        fan::{Failed, Fan, Outlet, Progress},
        notice::{self, say_within},
    },
    sys::watch_readable,
};

/// Records that may wait for the slower half, in the queue and behind it: some seconds of a storm, at most 30 MB together. The counts
/// of one generation wait behind them, 8 MB at most.
const QUEUE: usize = 32_768;
const BACKLOG: usize = 32_768;
/// At the end the queue is still reported: for at most [`MAX_DRAINS`] periods of this length, each of which must make progress. Then
/// the output has [`GIVE_UP`] to notice.
const DRAIN: Duration = Duration::from_secs(5);
const MAX_DRAINS: u32 = 12;
const GIVE_UP: Duration = Duration::from_secs(2);

/// When to stop without being told.
#[derive(Clone, Copy)]
pub struct Limits {
    /// After this many lines.
    pub count: Option<u64>,
    /// Which lines count.
    pub counts: fn(&Line) -> bool,
    /// How long rules that are being read are waited for at the end.
    pub late: Duration,
}

/// The usual time for [`Limits::late`].
pub const LATE: Duration = Duration::from_secs(2);

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// By a signal or a limit; the account was written. Sinks that have failed, of those that are not needed, and why.
    Clean(Box<Account>, Vec<Failed>),
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
    /// Makes lines.
    pub rooms: Rooms<E>,
    /// Where they go.
    pub outlets: Vec<Outlet>,
    /// Set while news of what was reported may still come.
    pub news: Arc<AtomicBool>,
    /// Set while a change of rules is to be reported yet.
    pub changing: Arc<AtomicBool>,
    /// Which are reported.
    pub filter: Filter,
    /// When to stop.
    pub limits: Limits,
    /// What is known to work worse than it could.
    pub degraded: Vec<Degraded>,
    /// Connections that hang already, to be reported first.
    pub hanging: Vec<Hanging>,
    /// Hears that observing goes on.
    pub manager: Manager,
    /// The output is recorded: start and end get lines, and the sinks get texts that lines refer to.
    pub is_recorded: bool,
}

impl<E: HostQueries + Send + 'static> Run<E> {
    /// Runs until `until` is done, a limit is reached or the output is gone. `ready` is called once everything is being
    /// observed; `until` is polled inside the runtime. Must not be called inside a runtime.
    pub fn run(self, ready: impl FnOnce() -> Result<()>, until: impl Future<Output = Result<()>>) -> Result<Ended>
    where
        Rooms<E>: Send,
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
        let waker = Arc::new(Mutex::new(Some(sender.clone())));
        let of_answers = Arc::clone(&waker);
        let wake = move || {
            // A full queue needs no waking, and a closed one has nobody to wake.
            if let Ok(Some(queue)) = of_answers.lock().as_deref() {
                let _ = queue.try_send(Item::Answers);
            }
        };
        let wake: Wake = Arc::new(wake);
        if let Err(error) = self.rooms.attribution.queries().begin_polling(Arc::clone(&wake)) {
            log::error!("{error}");
        }
        let filling = watch_readable(self.filling).context("cannot watch the ring of processes")?;
        let flags = Arc::new(Flags::default());
        let nudge = tokio::spawn(nudge(filling, sender.clone(), Arc::clone(&flags)));
        let modules = tokio::spawn(modules::watch(self.modules, sender.clone(), Arc::clone(&flags)));
        let changes = tokio::spawn(listen::watch(self.listening, sender.clone()));
        let alive = tokio::spawn(alive(self.manager, wake.clone(), Arc::clone(&flags)));
        let sweeping = Arc::clone(&flags.sweeping);
        let mut reader = Reader::new(self.probes.take_ring()?, Epoch::new(self.probes.take_epoch()?), sender, sweeping)
            .context("cannot watch the ring")?;
        let counts = Counts::new(self.probes.take_counts()?);
        let log = self.probes.take_log().filter(|_| log::log_enabled!(log::Level::Warn)).map(kernel_log);
        let (stop, mut stopped) = oneshot::channel();
        let fan = Fan::start(self.outlets, &wake).context("cannot start a thread")?;
        let progress = fan.progress();
        let run = self.rooms.attribution.identity().run_id();
        let writer = LineWriter::new(fan, self.filter, self.limits, run, stop);
        let documents = Documents::new(self.is_recorded);
        let consumer =
            Consumer::new(self.rooms, counts, (writer, self.limits.late), (self.news, self.changing), documents);
        let (finished, done) = oneshot::channel();
        let consumer = {
            let hanging = std::mem::take(&mut self.hanging);
            let begun = self.is_recorded.then(|| self.degraded.clone());
            let flags = Arc::clone(&flags);
            move || {
                // The other end is gone only when the program is.
                let _ = finished.send(consumer.run(begun, &hanging, &receiver, &flags));
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

        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        self.probes.detach();
        tokio::task::spawn_blocking(settle).await.context("waiting for the programs' end failed")?;
        while reader.drain(usize::MAX) > 0 {}
        let totals = self.probes.totals().context("cannot read the counters")?;
        let (missed_max, untold) = (self.probes.missed_max(), self.probes.untold_processes());
        // The queue closes with its last sender.
        drop(reader);
        if let Ok(mut waker) = waker.lock() {
            waker.take();
        }
        for task in [nudge, modules, changes, alive] {
            task.abort();
            let _ = task.await;
        }
        if let Some(log) = log {
            log.abort();
        }

        // What waits in the queues is still told, but not for ever: a second signal, or an output that takes nothing, ends
        // that too.
        let mut patience = Patience { interrupt, terminate, flags: Arc::clone(&flags), progress, idle: 1 };
        let Some(consumed) = patience.wait(done).await else { return Ok(Ended::Stuck) };
        let Consumed { ledger, fan, degraded, rules, error } =
            consumed.context("the thread that makes lines failed")?;
        if let Some(error) = error {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Ok(Ended::ClosedPipe);
            }
            return Err(error).context("cannot write the output");
        }
        self.degraded.extend(degraded);
        self.degraded.extend(shortages(&totals, &ledger, &flags, missed_max, untold.unwrap_or(0)));
        let Ledger { reported, filtered, decode, inbound, abandoned, undecided } = ledger;
        let account = Account {
            seen: totals.seen.saturating_sub(inbound),
            reported,
            filtered: filtered + totals.filtered,
            lost: Lost { map: totals.map + undecided, decode, queue: abandoned, ..Lost::default() },
            missed_max: missed_max.unwrap_or(0),
            rules,
            degraded: self.degraded,
        };
        let coverage = Coverage { start, end: Timestamp::now(), account: account.clone() };
        let line = Line { id: None, sequence: None, at: coverage.end, kind: Kind::Summary(Box::new(coverage.clone())) };
        let (finished, done) = oneshot::channel();
        let finish = move || {
            // The other end is gone only when the program is.
            let _ = finished.send(fan.finish(line, coverage));
        };
        thread::Builder::new().name("end".to_owned()).spawn(finish).context("cannot start a thread")?;
        if self.is_recorded {
            // Somebody else may hold the store's lock: its end takes no more than that.
            patience.idle = MAX_DRAINS / 2;
        }
        let Some(failed) = patience.wait(done).await else { return Ok(Ended::Stuck) };
        let (needed, others): (Vec<_>, Vec<_>) =
            failed.context("the threads that write failed")?.into_iter().partition(|failed| failed.is_needed);
        match needed.into_iter().next() {
            None => Ok(Ended::Clean(Box::new(account), others)),
            Some(Failed { error, .. }) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Ended::ClosedPipe),
            Some(Failed { error, .. }) => Err(error).context("cannot write the output"),
        }
    }
}

/// How long the end is waited for.
struct Patience {
    interrupt: Signal,
    terminate: Signal,
    flags: Arc<Flags>,
    progress: Progress,
    /// So many periods may go by without progress.
    idle: u32,
}

impl Patience {
    fn taken(&self) -> u64 {
        self.flags.taken.load(Ordering::Relaxed) + self.progress.taken()
    }

    /// Waits for what comes at the end, as long as that makes progress; `None` when it is given up.
    async fn wait<T>(&mut self, mut done: oneshot::Receiver<T>) -> Option<Result<T, oneshot::error::RecvError>> {
        let (mut before, mut drains, mut idle) = (self.taken(), 0, 0);
        loop {
            let in_hurry = self.flags.hurry.load(Ordering::Relaxed);
            let is_over = tokio::select! {
                result = &mut done => return Some(result),
                _ = self.interrupt.recv() => true,
                _ = self.terminate.recv() => true,
                () = tokio::time::sleep(if in_hurry { GIVE_UP } else { DRAIN }) => {
                    drains += 1;
                    let now = self.taken();
                    idle = if std::mem::replace(&mut before, now) == now { idle + 1 } else { 0 };
                    idle >= self.idle || drains >= MAX_DRAINS
                }
            };
            match (in_hurry, is_over) {
                (true, true) => return None,
                // What stands in the queues of sinks was reported: it is written as long as that goes on.
                (true, false) => {}
                (false, true) => self.flags.hurry.store(true, Ordering::Relaxed),
                (false, false) if drains == 1 => {
                    // Signals are to be heard meanwhile.
                    if !notice::is_quiet() {
                        say_within("observer: reporting what was queued; a second signal stops that", Duration::ZERO);
                    }
                }
                (false, false) => {}
            }
        }
    }
}

/// What ran short, in the kernel and here.
fn shortages(
    totals: &Totals,
    ledger: &Ledger,
    flags: &Flags,
    missed_max: Option<u64>,
    untold_processes: u64,
) -> Vec<Degraded> {
    let shortage = |what: &str, why: String, consequence: &str| Degraded {
        what: what.to_owned(),
        why,
        consequence: consequence.to_owned(),
    };
    let mut shortages = Vec::new();
    if ledger.abandoned > 0 {
        shortages.push(shortage(
            "backlog",
            format!("{} packets were still queued when observer stopped", ledger.abandoned),
            "they are in the counts but have no line",
        ));
    }
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
    let skipped = totals.records_skipped + flags.sweeping.crowded_out.load(Ordering::Relaxed);
    if skipped > 0 {
        shortages.push(shortage(
            "details",
            format!("{skipped} new flows came faster than their first packets could be handed over"),
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
    if flags.sweeping.uncertain.load(Ordering::Relaxed) {
        shortages.push(shortage(
            "counts",
            "this kernel does not say when a program has ended (no membarrier)".to_owned(),
            "a packet that was being counted for more than 50 ms may be missing from the sum",
        ));
    }
    shortages
}

/// Tells the service manager that observing goes on, as long as the slower half takes from its queue: a sink that takes nothing stops that
/// too, once its queue is full.
async fn alive(manager: Manager, wake: Wake, flags: Arc<Flags>) {
    let Some(every) = manager.watchdog() else { return };
    loop {
        let before = flags.taken.load(Ordering::Relaxed);
        wake();
        tokio::time::sleep(every).await;
        if flags.taken.load(Ordering::Relaxed) != before {
            manager.tell("WATCHDOG=1");
        }
    }
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

/// Passes on what the eBPF side says.
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

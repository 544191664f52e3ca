//! Hands every line to all sinks. Each sink has a thread of its own behind a bounded queue, so that a slow one delays
//! nothing until its queue is full; then the sender waits, since no line may be lost.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Sink;
use crate::{
    incident::Snapshot,
    model::{Coverage, Document, Line},
};

/// Lines that may wait for a sink.
const QUEUE: usize = 1024;
/// Delay before a flush, in which more lines may come.
const GATHER: Duration = Duration::from_millis(2);
/// Interval of ticks under load.
const TICK: Duration = Duration::from_millis(250);

/// Called when a sink that is needed has failed.
pub type Alarm = Arc<dyn Fn() + Send + Sync>;

/// A sink that is to be started.
pub struct Outlet {
    /// What it is, for a sentence: `the output`, `the file of the events`.
    pub name: &'static str,
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// When it fails, observing ends.
    pub is_needed: bool,
}

/// A sink that has failed.
#[derive(Debug)]
pub struct Failed {
    /// See [`Outlet::name`].
    pub name: &'static str,
    /// See [`Outlet::is_needed`].
    pub is_needed: bool,
    /// Why.
    pub error: io::Error,
}

enum Message {
    Line(Arc<Line>, Option<Snapshot>),
    Document(Arc<Document>),
    Finish(Arc<Line>, Arc<Coverage>),
}

struct Running {
    name: &'static str,
    is_needed: bool,
    queue: SyncSender<Message>,
    state: Arc<State>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Its error, until somebody takes it.
    error: Mutex<Option<io::Error>>,
    /// Lines that it has taken.
    taken: AtomicU64,
}

/// All sinks, running.
pub struct Fan(Vec<Running>);

/// How far all sinks are.
#[derive(Clone)]
pub struct Progress(Vec<Arc<State>>);

impl Progress {
    /// Lines that were taken, by all of them together.
    pub fn taken(&self) -> u64 {
        self.0.iter().map(|state| state.taken.load(Ordering::Relaxed)).sum()
    }
}

impl Fan {
    /// Starts their threads. `alarm` is called when one that is needed has failed.
    pub fn start(outlets: Vec<Outlet>, alarm: &Alarm) -> io::Result<Self> {
        let start = |Outlet { name, sink, is_needed }: Outlet| {
            let (queue, lines) = sync_channel(QUEUE);
            let state = Arc::new(State::default());
            let (of_the_thread, alarm) = (Arc::clone(&state), Arc::clone(alarm));
            let run = move || {
                let served = catch_unwind(AssertUnwindSafe(|| serve(sink, &lines, &of_the_thread)));
                // The message of a panic is on stderr already.
                if let Err(error) = served.unwrap_or_else(|_| Err(io::Error::other("its thread has failed"))) {
                    *of_the_thread.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    if is_needed {
                        alarm();
                    }
                }
            };
            let thread = thread::Builder::new().name("sink".to_owned()).spawn(run)?;
            Ok(Running { name, is_needed, queue, state, thread })
        };
        outlets.into_iter().map(start).collect::<io::Result<_>>().map(Self)
    }

    /// How far they are, for somebody else.
    pub fn progress(&self) -> Progress {
        Progress(self.0.iter().map(|running| Arc::clone(&running.state)).collect())
    }

    /// Hands over a line, and the story that it belongs to.
    pub fn take(&self, line: Line, story: Option<Snapshot>) {
        let line = Arc::new(line);
        for running in &self.0 {
            // A sink that has failed takes nothing more.
            let _ = running.queue.send(Message::Line(Arc::clone(&line), story));
        }
    }

    /// Hands over what lines refer to.
    pub fn document(&self, document: Document) {
        let document = Arc::new(document);
        for running in &self.0 {
            let _ = running.queue.send(Message::Document(Arc::clone(&document)));
        }
    }

    /// Takes the error of a sink that is needed: later calls do not see it.
    pub fn failure(&self) -> Option<io::Error> {
        self.0.iter().filter(|running| running.is_needed).find_map(|running| running.state.take_error())
    }

    /// Hands over the account and waits for all of them. Those that have failed, and why.
    pub fn finish(self, line: Line, coverage: Coverage) -> Vec<Failed> {
        let (line, coverage) = (Arc::new(line), Arc::new(coverage));
        for running in &self.0 {
            let _ = running.queue.send(Message::Finish(Arc::clone(&line), Arc::clone(&coverage)));
        }
        let mut failed = Vec::new();
        for Running { name, is_needed, queue, state, thread } in self.0 {
            drop(queue);
            // It has caught its own panic.
            let _ = thread.join();
            failed.extend(state.take_error().map(|error| Failed { name, is_needed, error }));
        }
        failed
    }
}

impl State {
    fn take_error(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One sink's thread: until the account or the first error. Lines that come later are discarded.
fn serve(mut sink: Box<dyn Sink>, lines: &Receiver<Message>, state: &State) -> io::Result<()> {
    let mut ticked = Instant::now();
    loop {
        // What comes within a moment is written together.
        let mut next = lines.recv_timeout(GATHER);
        if matches!(next, Err(RecvTimeoutError::Timeout)) {
            let again = sink.tick()?;
            ticked = Instant::now();
            // An idle host costs nothing: without anything to tell there is nothing to wake up for.
            next = match again {
                Some(time) => lines.recv_timeout(time),
                None => lines.recv().map_err(Into::into),
            };
        }
        match next {
            Ok(Message::Line(line, story)) => {
                sink.take(&line, story)?;
                state.taken.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Message::Document(document)) => sink.document(&document)?,
            Ok(Message::Finish(line, coverage)) => return sink.finish(&line, &coverage),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if ticked.elapsed() > TICK {
            sink.tick()?;
            ticked = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::model::{Account, Attempt, Kind};

    /// Tells what it is given, and fails at a line when it is told to.
    struct Told(Sender<&'static str>, bool);

    impl Sink for Told {
        fn take(&mut self, _: &Line, _: Option<Snapshot>) -> io::Result<()> {
            let _ = self.0.send("line");
            if self.1 { Err(io::Error::other("full")) } else { Ok(()) }
        }

        fn tick(&mut self) -> io::Result<Option<Duration>> {
            Ok(None)
        }

        fn finish(&mut self, _: &Line, _: &Coverage) -> io::Result<()> {
            let _ = self.0.send("end");
            Ok(())
        }
    }

    fn line() -> Line {
        let kind = Kind::Blocked(Box::new(Attempt::example()));
        Line { id: None, sequence: Some(1), at: jiff::Timestamp::UNIX_EPOCH, kind }
    }

    fn end() -> (Line, Coverage) {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let coverage = Coverage { start: at, end: at, account: Account::default() };
        (Line { kind: Kind::Summary(Box::new(coverage.clone())), ..line() }, coverage)
    }

    /// Starts sinks, and tells when one that is needed has failed.
    fn start(outlets: Vec<Outlet>) -> (Fan, Receiver<()>) {
        let (woken, wakes) = channel();
        let alarm: Alarm = Arc::new(move || {
            let _ = woken.send(());
        });
        (Fan::start(outlets, &alarm).unwrap(), wakes)
    }

    fn outlet(name: &'static str, sink: Told, is_needed: bool) -> Outlet {
        Outlet { name, sink: Box::new(sink), is_needed }
    }

    #[test]
    fn every_sink_takes_every_line_in_order() {
        let ((one, ones), (other, others)) = (channel(), channel());
        let outlets = vec![outlet("one", Told(one, false), true), outlet("other", Told(other, false), false)];
        let (fan, _wakes) = start(outlets);
        let progress = fan.progress();
        fan.take(line(), None);
        fan.take(line(), None);
        let (line, coverage) = end();
        assert!(fan.finish(line, coverage).is_empty());
        assert_eq!(ones.iter().collect::<Vec<_>>(), ["line", "line", "end"]);
        assert_eq!(others.iter().collect::<Vec<_>>(), ["line", "line", "end"]);
        assert_eq!(progress.taken(), 4);
    }

    #[test]
    fn one_that_fails_does_not_stop_the_others() {
        let ((one, ones), (other, others)) = (channel(), channel());
        let outlets = vec![outlet("one", Told(one, true), false), outlet("other", Told(other, false), true)];
        let (fan, wakes) = start(outlets);
        fan.take(line(), None);
        assert_eq!(ones.iter().count(), 1, "its thread has ended");
        fan.take(line(), None);
        assert!(fan.failure().is_none() && wakes.try_recv().is_err(), "it is not needed");
        let (line, coverage) = end();
        let failed: Vec<&str> = fan.finish(line, coverage).into_iter().map(|failed| failed.name).collect();
        assert_eq!(failed, ["one"]);
        assert_eq!(others.iter().count(), 3);
    }

    #[test]
    fn one_that_is_needed_is_told_of() {
        let (one, _ones) = channel();
        let (fan, wakes) = start(vec![outlet("one", Told(one, true), true)]);
        fan.take(line(), None);
        wakes.recv().unwrap();
        assert_eq!(fan.failure().unwrap().to_string(), "full");
    }

    #[test]
    fn a_panic_is_a_failure() {
        struct Panics;
        impl Sink for Panics {
            fn take(&mut self, _: &Line, _: Option<Snapshot>) -> io::Result<()> {
                panic!("as the test wants it");
            }

            fn tick(&mut self) -> io::Result<Option<Duration>> {
                Ok(None)
            }

            fn finish(&mut self, _: &Line, _: &Coverage) -> io::Result<()> {
                Ok(())
            }
        }
        let (fan, wakes) = start(vec![Outlet { name: "one", sink: Box::new(Panics), is_needed: true }]);
        fan.take(line(), None);
        wakes.recv().unwrap();
        assert_eq!(fan.failure().unwrap().to_string(), "its thread has failed");
    }

    #[test]
    fn a_slow_one_takes_everything_in_the_end() {
        struct Slow(usize);
        impl Sink for Slow {
            fn take(&mut self, _: &Line, _: Option<Snapshot>) -> io::Result<()> {
                thread::sleep(Duration::from_micros(100));
                self.0 += 1;
                Ok(())
            }

            fn tick(&mut self) -> io::Result<Option<Duration>> {
                Ok(None)
            }

            fn finish(&mut self, _: &Line, _: &Coverage) -> io::Result<()> {
                assert_eq!(self.0, 2 * QUEUE, "lines are missing");
                Ok(())
            }
        }
        let (fan, _wakes) = start(vec![Outlet { name: "one", sink: Box::new(Slow(0)), is_needed: true }]);
        for _ in 0..2 * QUEUE {
            fan.take(line(), None);
        }
        let (line, coverage) = end();
        assert!(fan.finish(line, coverage).is_empty());
    }
}

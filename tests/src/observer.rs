//! The program under test.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{namespace::Namespace, patience, slowness, wait_for};

/// Path of the program, from the environment variable `OBSERVER`.
pub fn program() -> PathBuf {
    std::env::var_os("OBSERVER").map_or_else(|| PathBuf::from("target/release/observer"), PathBuf::from)
}

/// The program in a command line; on an emulated machine it is more patient, and not so much that it is late for what ends soon.
pub fn command() -> Command {
    let mut command = Command::new(program());
    command.env("OBSERVER_PATIENCE", slowness().div_ceil(2).to_string());
    // This machine's own proxies are no part of a scenario.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

/// A running observer that is ready.
pub struct Observer {
    /// Its process.
    pub child: Child,
    /// Its ready line.
    pub ready: String,
    stdout: Option<JoinHandle<()>>,
    /// What it has written to stdout.
    output: Arc<Mutex<Vec<u8>>>,
    /// Lines that it has written to stdout.
    lines: Arc<AtomicUsize>,
    stderr: Option<JoinHandle<String>>,
}

/// A scenario that fails leaves no observer behind.
impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an observer that ended had told.
#[derive(Debug)]
pub struct Report {
    /// Events, in order.
    pub events: Vec<Value>,
    /// Changes of rules, in order: of no packet.
    pub changes: Vec<Value>,
    /// Rules that were told later than what they dropped, likewise.
    pub late: Vec<Value>,
    /// What would let something through, likewise.
    pub fixes: Vec<Value>,
    /// That something works again, likewise.
    pub restored: Vec<Value>,
    /// The account.
    pub account: Value,
}

/// What tells lines that are of no packet from events.
const NEWS: [&[u8]; 4] = [
    b"\"action\":\"ruleset-changed\"",
    b"\"action\":\"egress-rule\"",
    b"\"action\":\"egress-fix\"",
    b"\"action\":\"egress-restored\"",
];

impl Observer {
    /// `observer watch -o json` on one namespace, once it is ready; it looks for no fix, which would take time from other scenarios.
    pub fn watch(namespace: &Namespace) -> Result<Self> {
        let path = namespace.path();
        Self::start(
            ["watch", "--no-fix", "-o", "json", "--netns"].map(AsRef::as_ref).into_iter().chain([path.as_os_str()]),
        )
    }

    /// Any command line that announces itself, once it is ready.
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::start_command(command().args(args))
    }

    /// The same for a prepared command.
    pub fn start_command(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start observer")?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        let lines = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&lines);
        let output = Arc::new(Mutex::new(Vec::new()));
        let so_far = Arc::clone(&output);
        let stdout = thread::spawn(move || {
            let (mut part, mut counted) = ([0; 4096], 0);
            while let Ok(read @ 1..) = stdout.read(&mut part) {
                let mut bytes = so_far.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(&part[..read]);
                while let Some(end) = memchr::memchr(b'\n', &bytes[counted..]) {
                    let line = &bytes[counted..counted + end];
                    let is_news = NEWS.iter().any(|action| memchr::memmem::find(line, action).is_some());
                    written.fetch_add(usize::from(!is_news), Ordering::Release);
                    counted += end + 1;
                }
            }
        });
        let (send, receive) = mpsc::channel();
        let said = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            for line in said.map_while(Result::ok) {
                if line.starts_with("observer: ready") {
                    let _ = send.send(line.clone());
                }
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        match receive.recv_timeout(patience()) {
            Ok(ready) => Ok(Self { child, ready, stdout: Some(stdout), output, lines, stderr: Some(stderr) }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("observer was not ready: {}", stderr.join().unwrap_or_default())
            }
        }
    }

    /// Events that were told so far, changes of rules and late rules left aside.
    pub fn told(&self) -> usize {
        self.lines.load(Ordering::Acquire)
    }

    /// What it has written to stdout so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Does something, and waits until something of it is told.
    pub fn tells<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.lines.load(Ordering::Acquire);
        let done = what()?;
        let deadline = Instant::now() + patience();
        while self.lines.load(Ordering::Acquire) == before {
            ensure!(Instant::now() < deadline, "nothing was told");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(done)
    }

    /// Does something until a line that satisfies is told; the newest such.
    pub fn tells_until(
        &self,
        what: &str,
        send: impl Fn() -> Result<()>,
        satisfies: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait_for(what, || {
            self.tells(&send)?;
            // The last line may not be there wholly.
            let told = self.so_far();
            let mut lines = told.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            Ok(lines.find(&satisfies))
        })
    }

    /// Ends it with a signal; returns its status, stdout and stderr.
    pub fn end(mut self, signal: Signal) -> Result<(ExitStatus, Vec<u8>, String)> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        // It may have ended by itself already.
        let _ = kill(pid, signal);
        let status = self.child.wait()?;
        self.stdout.take().and_then(|reader| reader.join().ok()).context("reading stdout failed")?;
        let stdout = std::mem::take(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner));
        let stderr = self.stderr.take().and_then(|reader| reader.join().ok()).context("reading stderr failed")?;
        Ok((status, stdout, stderr))
    }

    /// Ends a JSON stream as Ctrl-C does, and checks what holds for every stream: status 0, one ready line, the account
    /// as last line, and its sum.
    pub fn stop(self) -> Result<Report> {
        let (status, stdout, stderr) = self.end(Signal::SIGINT)?;
        ensure!(status.success(), "observer ended with {status}: {stderr}");
        ensure!(stderr.matches("observer: ready").count() == 1, "not one ready line: {stderr}");
        Report::parse(&stdout)
    }
}

impl Report {
    /// Reads a JSON stream and checks its account.
    pub fn parse(stdout: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(stdout)?;
        let mut events: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect::<Result<_>>()?;
        let summary = events.pop().context("an empty stream")?;
        ensure!(summary["event"]["action"] == "summary", "the last line is no account: {summary}");
        let account = summary["egress"].clone();
        let number = |value: &Value| value.as_u64().with_context(|| format!("a number is missing in {summary}"));
        let lost: u64 = account["lost"].as_object().context("lost")?.values().map(number).sum::<Result<u64>>()?;
        let (seen, reported, filtered) =
            (number(&account["seen"])?, number(&account["reported"])?, number(&account["filtered"])?);
        ensure!(seen == reported + filtered + lost, "the account does not add up: {summary}");
        let told: u64 = events.iter().map(|event| event["egress"]["count"].as_u64().unwrap_or(0)).sum();
        ensure!(told == reported, "{told} packets in the lines, {reported} in the account");
        let is = |action: &'static str| move |event: &Value| event["event"]["action"] == action;
        let (changes, events) = events.into_iter().partition::<Vec<_>, _>(is("ruleset-changed"));
        let (late, events) = events.into_iter().partition::<Vec<_>, _>(is("egress-rule"));
        let (fixes, events) = events.into_iter().partition::<Vec<_>, _>(is("egress-fix"));
        let (restored, events) = events.into_iter().partition(is("egress-restored"));
        Ok(Self { events, changes, late, fixes, restored, account })
    }

    /// Events that somebody waits for.
    pub fn foreground(&self) -> Vec<&Value> {
        self.events.iter().filter(|event| event["egress"]["background"].is_null()).collect()
    }

    /// Number under a JSON pointer of the account.
    pub fn number(&self, pointer: &str) -> u64 {
        self.account.pointer(pointer).and_then(Value::as_u64).unwrap_or(u64::MAX)
    }
}

/// Fails unless the event has these values, each under a JSON pointer.
pub fn expect(event: &Value, wanted: &[(&str, Value)]) -> Result<()> {
    for (pointer, value) in wanted {
        let found = event.pointer(pointer).unwrap_or(&Value::Null);
        ensure!(found == value, "{pointer} is {found}, expected {value}, in {:.3000}", event.to_string());
    }
    Ok(())
}

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

use crate::{namespace::Namespace, patience, record, slowness, wait_for};

/// Path of the program, from the environment variable `OBSERVER`.
pub fn program() -> PathBuf {
    std::env::var_os("OBSERVER").map_or_else(|| PathBuf::from("target/release/observer"), PathBuf::from)
}

/// The program in a command line; on an emulated machine it is more patient, and not so much that it is late for what ends soon.
pub fn command() -> Command {
    prepared(Command::new(program()))
}

/// The same in the mount namespace of a scenario's host: that host's programs are its own there.
pub fn command_among_mounts_of(host: &Namespace) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", host.pid())).arg(program());
    prepared(command)
}

/// The program in the network namespace of a scenario's host, which is then its own.
pub fn command_in_network_of(host: &Namespace) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", host.path().display())).arg(program());
    prepared(command)
}

/// The program in a mount namespace of its own, in which a script has been run as root first. The host's own programs are those
/// that it finds there.
pub fn command_after(script: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("set -e\n{script}\nexec \"$0\" \"$@\"");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", &script]).arg(program());
    prepared(command)
}

fn prepared(mut command: Command) -> Command {
    command.env("OBSERVER_PATIENCE", slowness().div_ceil(2).to_string());
    // In a service it would not listen to what is for developers.
    command.env_remove("INVOCATION_ID");
    // This machine's own proxies are no part of a scenario.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

/// The processes of a running observer beside itself: the one that starts helpers, and the helper.
pub fn helpers(pid: u32) -> Result<[u32; 2]> {
    let only_child = |pid: u32| -> Result<u32> {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        children.trim().parse().with_context(|| format!("process {pid} has not one child, but {children:?}"))
    };
    let spare = only_child(pid)?;
    Ok([spare, only_child(spare)?])
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
    /// Rules that were reported later than what they dropped, likewise.
    pub late: Vec<Value>,
    /// What would let something through, likewise.
    pub fixes: Vec<Value>,
    /// That a connection ended without an answer, likewise.
    pub outcomes: Vec<Value>,
    /// That something works again, likewise.
    pub restored: Vec<Value>,
    /// The account.
    pub account: Value,
}

/// What tells lines that are of no packet from events.
const NEWS: [&[u8]; 5] = [
    b"\"action\":\"ruleset-changed\"",
    b"\"action\":\"egress-rule\"",
    b"\"action\":\"egress-fix\"",
    b"\"action\":\"egress-outcome\"",
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

    /// The same with fixes.
    pub fn watch_with_fixes(namespace: &Namespace) -> Result<Self> {
        Self::start(
            ["watch", "-o", "json", "--netns"]
                .map(str::to_owned)
                .into_iter()
                .chain([namespace.path().display().to_string()]),
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
            let (mut part, mut counted) = (vec![0; 1 << 16], 0);
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

    /// Events that were reported so far, changes of rules and late rules left aside.
    pub fn told(&self) -> usize {
        self.lines.load(Ordering::Acquire)
    }

    /// What it has written to stdout so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The whole lines that it has written to stdout since so many bytes, which are raised by theirs.
    pub fn lines_since(&self, bytes: &mut usize) -> String {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let new = output.get(*bytes..).unwrap_or_default();
        let whole = memchr::memrchr(b'\n', new).map_or(0, |end| end + 1);
        *bytes += whole;
        String::from_utf8_lossy(&new[..whole]).into_owned()
    }

    /// Does something, and waits until something of it is reported.
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

    /// Does something until a line that satisfies is reported; the newest such.
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
        record::keep(&stdout);
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
        record::keep(stdout);
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
        let (outcomes, events) = events.into_iter().partition::<Vec<_>, _>(is("egress-outcome"));
        let (restored, events) = events.into_iter().partition(is("egress-restored"));
        Ok(Self { events, changes, late, fixes, outcomes, restored, account })
    }

    /// Events that somebody waits for.
    pub fn foreground(&self) -> Vec<&Value> {
        self.events.iter().filter(|event| event["egress"]["background"].is_null()).collect()
    }

    /// An event with what decided: where that was not known in time, which is so on slow machines, as the line of its own says it.
    pub fn explained<'a>(&'a self, event: &'a Value) -> &'a Value {
        let egress = &event["egress"];
        if !egress["rule"].is_null() || !egress["decided_by"].is_null() {
            return event;
        }
        self.late.iter().find(|late| late["egress"]["incident"] == egress["incident"]).unwrap_or(event)
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

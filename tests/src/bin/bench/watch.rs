//! What watches during a run: nothing, the least that can be attached, or observer.

use std::{
    fs,
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, loaded_programs},
};
use harness::{observer, testbed};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;

/// What is attached to `kfree_skb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Watcher {
    /// Nothing: the host as it is.
    Nobody,
    /// A program that returns at once.
    Empty,
    /// `observer watch -o json`, written to nowhere.
    Observer,
    /// The same with what gives verdicts probed, once something was blocked.
    Probing,
}

impl Watcher {
    /// Those that every load is under, in the order of the table.
    pub(crate) const ALL: [Self; 3] = [Self::Nobody, Self::Empty, Self::Observer];

    /// Name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "unobserved",
            Self::Empty => "empty program",
            Self::Observer => "observer",
            Self::Probing => "observer, verdicts probed",
        }
    }

    /// The name of its program, as the kernel cuts it.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Nobody => None,
            Self::Empty => Some("empty_kfree_skb"),
            Self::Observer | Self::Probing => Some("drop_kfree_skb"),
        }
    }

    /// Attaches; until the result is dropped.
    pub(crate) fn start(self) -> Result<Running> {
        Ok(match self {
            Self::Nobody => Running { _ebpf: None, observer: None },
            Self::Empty => {
                let mut ebpf = testbed::load()?;
                let program: &mut BtfTracePoint =
                    ebpf.program_mut("empty_kfree_skb").context("empty_kfree_skb")?.try_into()?;
                program.load("kfree_skb", &Btf::from_sys_fs()?)?;
                program.attach()?;
                Running { _ebpf: Some(ebpf), observer: None }
            }
            Self::Observer => Running { _ebpf: None, observer: Some(Watching::start(None)?) },
            Self::Probing => Running { _ebpf: None, observer: Some(Watching::start(Some("verdicts"))?) },
        })
    }

    /// Nanoseconds in its program so far and runs of it.
    pub(crate) fn program_time(self) -> Result<(u64, u64)> {
        self.program().map_or(Ok((0, 0)), program_time)
    }
}

/// Nanoseconds in a program so far and runs of it, as the kernel counts them while its statistics are on.
pub(crate) fn program_time(name: &str) -> Result<(u64, u64)> {
    for program in loaded_programs() {
        let program = program?;
        if program.name_as_str() == Some(name) {
            let descriptor = program.fd()?;
            let page =
                fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsFd::as_fd(&descriptor).as_raw_fd()))?;
            let field = |name: &str| {
                page.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                    .with_context(|| format!("the kernel does not tell {name}"))
            };
            return Ok((field("run_time_ns:")?, field("run_cnt:")?));
        }
    }
    anyhow::bail!("no program {name} is loaded")
}

/// Something attached.
pub(crate) struct Running {
    _ebpf: Option<Ebpf>,
    observer: Option<Watching>,
}

impl Running {
    /// The observer, if it is one.
    pub(crate) fn observer(&self) -> Option<&Watching> {
        self.observer.as_ref()
    }
}

/// A running observer.
pub(crate) struct Watching {
    child: Child,
    /// From its start to its ready line.
    pub(crate) ready_after: Duration,
}

impl Watching {
    fn start(compares: Option<&str>) -> Result<Self> {
        let started = Instant::now();
        let mut command: Command = observer::command();
        command.envs(compares.map(|what| ("OBSERVER_COMPARE", what)));
        command
            .args(["watch", "--no-fix", "-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start observer")?;
        let mut stderr = std::io::BufReader::new(child.stderr.take().context("no stderr")?);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stderr, &mut line)?;
        let ready_after = started.elapsed();
        ensure!(line.starts_with("observer: ready"), "observer said `{}`", line.trim());
        Ok(Self { child, ready_after })
    }

    /// Its processes: itself, its helper and the one that starts helpers.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let pid = self.child.id();
        Ok(std::iter::once(pid).chain(observer::helpers(pid)?).collect())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Ok(pid) = self.child.id().try_into() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.child.wait();
    }
}

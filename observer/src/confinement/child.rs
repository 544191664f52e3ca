//! A program that reads what a stranger on the host can write: rules, names, files of a front end.
//!
//! It runs in the network namespace of the thread that starts it and has `CAP_NET_ADMIN` and `CAP_NET_RAW` there. It has mounts,
//! process numbers and System V IPC of its own, a root folder that is made for it, an empty environment, limits of memory and
//! processor time, no capability else, and a filter of system calls. With it everything ends that it started: when it ends, at
//! the deadline, or when the thread ends that waits for it.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use caps::{CapSet, Capability};
use landlock::{
    AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    path_beneath_rules,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use seccompiler::BpfProgram;

use super::{
    programs,
    root::{self, Shared},
    syscalls,
};
use crate::sys::jail::{self, Jail, Program, WORDS};

/// Capabilities that it keeps: rules are read and made by them.
const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];
/// Memory that it may have, in bytes.
const MEMORY: u64 = 1 << 30;
/// Files that it may have open, and the largest that it may write.
const FILES: u64 = 256;
const FILE_BYTES: u64 = 64 << 20;
/// Beneath these folders programs may be executed, where the kernel has Landlock.
const EXECUTABLE: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libexec"];
/// The same for observer's own program, which is a dynamic one in a debug build.
const INTERPRETERS: [&str; 3] = ["/usr/lib", "/lib", "/lib64"];
/// What stands for observer's own program until it is executed.
const OWN: &str = "observer";
/// It may take so many times longer than it may use a processor: others use it too.
const WAITS: u32 = 4;
/// A command that has written all ends at once: it is looked at so often.
const SOON: Duration = Duration::from_micros(500);

/// The same for all programs that list rules, and for all trials.
static FILTERS: LazyLock<[Result<Vec<BpfProgram>, String>; 2]> = LazyLock::new(|| {
    [false, true].map(|is_trial| syscalls::of_a_child(is_trial).map_err(|error| format!("{error:#}")))
});

/// A program of the host's that is to be run so.
pub struct Confined {
    command: Command,
    /// How often trials had been ended when this one began, where it belongs to one.
    trial: Option<u64>,
    /// Time after which it is killed.
    limit: Duration,
}

impl Confined {
    /// `trial`: folders that it may write, and how often trials had been ended when its own began; without, it can write nothing.
    /// `processor`: it may use so much of a processor, and is killed after [`WAITS`] times as long.
    pub fn new(program: &str, trial: Option<(&Shared, u64)>, processor: Duration) -> Result<Self> {
        Self::of(programs::command(program)?, None, trial, processor)
    }

    /// observer's own program: the very file that runs, whatever has come to its path since. The first word is its name.
    pub(super) fn of_our_own(words: [&str; WORDS], processor: Duration) -> Result<Self> {
        let file = File::open("/proc/self/exe").context("cannot open observer's own program")?.into();
        let words = words.map(CString::new);
        let words = words.into_iter().collect::<Result<Vec<_>, _>>()?.try_into().expect("as many as there were");
        Self::of(Command::new(OWN), Some(Program { file, words }), None, processor)
    }

    fn of(
        mut command: Command,
        program: Option<Program>,
        trial: Option<(&Shared, u64)>,
        processor: Duration,
    ) -> Result<Self> {
        let (root, steps) = root::plan(trial.map(|(shared, _)| shared))?;
        let permitted = caps::read(None, CapSet::Permitted).context("cannot read own capabilities")?;
        let kept = KEPT.into_iter().filter(|capability| permitted.contains(capability));
        let jail = Jail {
            steps,
            root,
            capabilities: kept.fold(0, |all, capability| all | capability.bitmask()),
            limits: vec![
                (libc::RLIMIT_AS, MEMORY),
                (libc::RLIMIT_CPU, processor.as_secs() + 1),
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_NOFILE, FILES),
                (libc::RLIMIT_FSIZE, FILE_BYTES),
                (libc::RLIMIT_MEMLOCK, 0),
                (libc::RLIMIT_MSGQUEUE, 0),
            ],
            landlock: may_execute(program.as_ref().map(|program| program.file.as_fd()))?,
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            filters: FILTERS[usize::from(trial.is_some())].clone().map_err(anyhow::Error::msg)?,
            program,
        };
        command.process_group(0);
        jail::confine(&mut command, Arc::new(jail));
        Ok(Self { command, trial: trial.map(|(_, began)| began), limit: processor * WAITS })
    }

    /// Its arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end, and reads at most so many bytes of what it writes.
    pub fn run(mut self, with_errors: bool, most: u64) -> Result<Ended> {
        let (reader, writer) = std::io::pipe()?;
        self.command.stderr(if with_errors { writer.try_clone()?.into() } else { Stdio::null() }).stdout(writer);
        let limit = self.limit;
        let (mut child, group) = self.spawn()?;
        let (send, said) = channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = reader.take(most).read_to_end(&mut bytes);
            let _ = send.send(bytes);
        });
        let deadline = Instant::now() + limit;
        let said = said.recv_timeout(limit);
        // It is not reaped before its group is killed: its number stays its own until then.
        let leader = WaitId::Pid(rustix::process::Pid::from_child(&child));
        let has_ended =
            || waitid(leader.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
        while said.is_ok() && has_ended()?.is_none() && Instant::now() < deadline {
            thread::sleep(SOON);
        }
        let is_late = said.is_err() || has_ended()?.is_none();
        // Whatever it has left behind ends too.
        drop(group);
        if is_late {
            // One that waits for a file system in the kernel does not die at once: whoever asked does not wait for that.
            thread::spawn(move || child.wait());
            bail!("it took longer than {} s", limit.as_secs());
        }
        let status = child.wait()?;
        Ok(Ended { said: said.unwrap_or_default(), status })
    }

    /// Starts it; it goes on by itself until its group is dropped.
    pub fn start(mut self) -> Result<(Child, Group)> {
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        self.spawn()
    }

    /// The command is dropped with this: the child alone has the ends that are written to.
    fn spawn(mut self) -> Result<(Child, Group)> {
        let is_trial = self.trial.is_some();
        // Under the lock: a trial that is ended now is killed, or starts nothing more.
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(self.trial.is_none_or(|began| began == trials()), "it was skipped");
        let child = self.command.spawn();
        let child = child.with_context(|| format!("cannot run {}", self.command.get_program().display()))?;
        let id = i32::try_from(child.id())?;
        groups.insert(id, is_trial);
        Ok((child, Group(id)))
    }
}

/// A ruleset by which only the system's programs may be executed, or this one alone, with its interpreter; `None` where the kernel
/// has no Landlock.
fn may_execute(program: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
    let ruleset =
        Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::Execute)?.create()?;
    let folders = if program.is_some() { &INTERPRETERS[..] } else { &EXECUTABLE[..] };
    let folders = folders.iter().filter(|folder| Path::new(folder).exists());
    let ruleset = ruleset.add_rules(path_beneath_rules(folders, AccessFs::Execute))?;
    let own = program.map(|program| PathBeneath::new(program, AccessFs::Execute));
    Ok(ruleset.add_rules(own.map(Ok::<_, RulesetError>))?.into())
}

/// What a program wrote, and how it ended.
pub struct Ended {
    /// What it wrote to its standard output, or to that and its standard error.
    pub said: Vec<u8>,
    /// How it ended.
    pub status: ExitStatus,
}

/// Processes of a command, by their group: killed with this.
pub struct Group(i32);

/// Those that live, and whether they run over copies of files that they may write: a trial.
static GROUPS: Mutex<BTreeMap<i32, bool>> = Mutex::new(BTreeMap::new());

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0), Signal::SIGKILL);
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Kills every program that runs: whoever waits for one ends too.
pub fn end_all() {
    end(&GROUPS.lock().unwrap_or_else(PoisonError::into_inner), |_| true);
}

/// The same for trials alone.
pub fn end_trials() {
    let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    TRIALS.fetch_add(1, Ordering::AcqRel);
    end(&groups, |is_trial| is_trial);
}

/// How often trials were ended: one that began before the last time starts nothing any more.
pub fn trials() -> u64 {
    TRIALS.load(Ordering::Acquire)
}

static TRIALS: AtomicU64 = AtomicU64::new(0);

fn end(groups: &BTreeMap<i32, bool>, which: impl Fn(bool) -> bool) {
    for (id, _) in groups.iter().filter(|(_, is_trial)| which(**is_trial)) {
        let _ = killpg(Pid::from_raw(*id), Signal::SIGKILL);
    }
}

//! Starts the command of `observer run`, passes signals on to it, and waits for its end.
//!
//! The process is forked before observer has threads or gives up privileges, and held back until everything is observed:
//! then it becomes the command, with the caller's streams, privileges and terminal. Nothing of it is observer's.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use crate::{confinement::programs, model::Finished};
use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Gid, Pid, Uid, getpgid, getpgrp, pipe2, setgroups, setresgid, setresuid, tcgetpgrp},
};
use rustix::process::WaitOptions;
use tokio::signal::unix::{SignalKind, signal};

/// Status of a command that could not be started because observer failed first.
pub const NOT_OBSERVED: u8 = 125;
/// Status of a command that was found and could not be run, as `env` has it.
const NOT_EXECUTABLE: u8 = 126;
/// Status of a command that was not found, as `env` has it.
const NOT_FOUND: u8 = 127;
/// How long a process that was told to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is looked who is left.
const LOOK: Duration = Duration::from_millis(50);

/// A user to run as.
#[derive(Clone, Debug)]
pub struct User {
    name: String,
    id: Uid,
    group: Gid,
    groups: Vec<Gid>,
    home: String,
}

impl User {
    /// Its number.
    pub fn uid(&self) -> u32 {
        self.id.as_raw()
    }

    /// Number of its group.
    pub fn gid(&self) -> u32 {
        self.group.as_raw()
    }

    /// Numbers of all its groups.
    pub fn groups(&self) -> Vec<u32> {
        self.groups.iter().map(|group| group.as_raw()).collect()
    }

    /// By name or number; `None` when there is none. Asks `getent` and `id`, which know users of directories too: the C
    /// library's own look-up wants shared libraries, which a static program does not have.
    pub fn find(text: &str) -> Result<Option<Self>> {
        let ask = |program: &str, args: &[&str]| -> Result<String> {
            let output = programs::command(program)?.args(args).output();
            let output = output.with_context(|| format!("cannot run {program}"))?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        // name:password:id:group:comment:home:shell
        let entry = ask("getent", &["passwd", "--", text])?;
        let fields: Vec<&str> = entry.split(':').collect();
        let [name, _, id, group, _, home, _] = fields[..] else { return Ok(None) };
        let groups = ask("id", &["-G", "--", name])?;
        Ok(Some(Self {
            name: name.to_owned(),
            id: Uid::from_raw(id.parse().context("getent's answer")?),
            group: Gid::from_raw(group.parse().context("getent's answer")?),
            groups: groups
                .split(' ')
                .map(|id| id.parse().map(Gid::from_raw))
                .collect::<Result<_, _>>()
                .context("id's answer")?,
            home: home.to_owned(),
        }))
    }

    fn become_it(&self) -> Result<(), Errno> {
        setgroups(&self.groups)?;
        setresgid(self.group, self.group, self.group)?;
        setresuid(self.id, self.id, self.id)
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Program and arguments; at least one word.
    pub words: Vec<OsString>,
    /// Variables beside the caller's own.
    pub variables: Vec<(OsString, OsString)>,
    /// Another user than the caller.
    pub user: Option<User>,
}

/// The command could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct NotStarted {
    program: String,
    error: io::Error,
}

impl NotStarted {
    /// As a shell says it.
    fn sentence(&self) -> String {
        let program = &self.program;
        match self.error.kind() {
            io::ErrorKind::NotFound if program.contains('/') => format!("`{program}`: no such file"),
            io::ErrorKind::NotFound => format!("`{program}`: command not found"),
            io::ErrorKind::PermissionDenied => format!("`{program}`: not executable, or permission denied"),
            _ => format!("cannot run `{program}`: {}", self.error),
        }
    }

    /// 126 or 127, as with `env`.
    pub fn status(&self) -> u8 {
        if self.error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
    }
}

/// A process that waits to become the command.
pub struct Launcher {
    pid: Pid,
    go: OwnedFd,
    failed: OwnedFd,
    program: String,
    terminal: Option<fs::File>,
}

impl Launcher {
    /// Forks it. Must be called before any thread is started.
    pub fn prepare(plan: &Plan) -> Result<Self> {
        let flags = nix::fcntl::OFlag::O_CLOEXEC;
        let (wait, go) = pipe2(flags).context("cannot make a pipe")?;
        let (failed, fail) = pipe2(flags).context("cannot make a pipe")?;
        match crate::sys::fork_single_threaded().context("cannot start the command's process")? {
            ForkResult::Parent { child } => {
                let program = plan.words[0].to_string_lossy().into_owned();
                Ok(Self { pid: child, go, failed, program, terminal: fs::File::open("/dev/tty").ok() })
            }
            ForkResult::Child => {
                drop((go, failed));
                let mut word = [0];
                if !matches!(fs::File::from(wait).read(&mut word), Ok(1)) {
                    std::process::exit(i32::from(NOT_OBSERVED));
                }
                let error = become_command(plan);
                let number = error.raw_os_error().unwrap_or(0);
                let _ = fs::File::from(fail).write_all(&number.to_ne_bytes());
                std::process::exit(i32::from(NOT_EXECUTABLE));
            }
        }
    }

    /// Its process id, which the command will have.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Lets it become the command.
    pub fn start(self) -> Result<Running, NotStarted> {
        let failure = |error| NotStarted { program: self.program.clone(), error };
        fs::File::from(self.go).write_all(&[1]).map_err(failure)?;
        let mut number = [0; 4];
        // Closed without a word as soon as it is the command.
        match fs::File::from(self.failed).read_exact(&mut number) {
            Err(_) => Ok(Running { pid: self.pid, terminal: self.terminal, began: Instant::now() }),
            Ok(()) => Err(failure(io::Error::from_raw_os_error(i32::from_ne_bytes(number)))),
        }
    }
}

fn become_command(plan: &Plan) -> io::Error {
    let mut command = Command::new(&plan.words[0]);
    command.args(&plan.words[1..]);
    if let Some(user) = &plan.user {
        if let Err(error) = user.become_it() {
            return error.into();
        }
        command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    // What was typed goes before what follows from the user.
    command.envs(plan.variables.iter().map(|(name, value)| (name, value)));
    command.exec()
}

/// Signals that are passed on to the command, and the one that reports its end.
pub struct Signals {
    child: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on they do not end observer. Must be called inside the runtime.
    pub fn listen() -> Result<Self> {
        let listen = |kind: SignalKind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            child: listen(SignalKind::child())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            user1: listen(SignalKind::user_defined1())?,
            user2: listen(SignalKind::user_defined2())?,
        })
    }
}

/// The command while it runs.
pub struct Running {
    pid: Pid,
    /// The terminal that it was started from.
    terminal: Option<fs::File>,
    began: Instant,
}

impl Running {
    /// Waits for its end. Signals are passed on, but those that a shared terminal sends to both.
    pub async fn finished(&self, signals: Signals) -> Result<Finished> {
        let Signals { mut child, mut interrupt, mut quit, mut terminate, mut hangup, mut user1, mut user2 } = signals;
        loop {
            if let Some(finished) = self.reap(WaitOptions::NOHANG)? {
                return Ok(finished);
            }
            tokio::select! {
                _ = child.recv() => {}
                _ = interrupt.recv() => self.pass_on_unless_shared(Signal::SIGINT),
                _ = quit.recv() => self.pass_on_unless_shared(Signal::SIGQUIT),
                _ = terminate.recv() => self.pass_on(Signal::SIGTERM),
                _ = hangup.recv() => self.pass_on_unless_shared(Signal::SIGHUP),
                _ = user1.recv() => self.pass_on(Signal::SIGUSR1),
                _ = user2.recv() => self.pass_on(Signal::SIGUSR2),
            }
        }
    }

    /// Waits for its end and does nothing else: observing has failed.
    pub fn wait(&self) -> Result<Finished> {
        loop {
            if let Some(finished) = self.reap(WaitOptions::empty())? {
                return Ok(finished);
            }
        }
    }

    /// How it ended, if it has.
    fn reap(&self, options: WaitOptions) -> Result<Option<Finished>> {
        let pid = rustix::process::Pid::from_raw(self.pid.as_raw());
        let status = match rustix::process::waitpid(pid, options) {
            Ok(Some((_, status))) => status,
            Ok(None) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error).context("cannot wait for the command"),
        };
        let after = self.began.elapsed();
        let code = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
        if let Some(number) = status.terminating_signal() {
            let name = Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |known| known.to_string());
            return Ok(Some(Finished { code: code(128 + number), signal: Some(name), after }));
        }
        Ok(status.exit_status().map(|status| Finished { code: code(status), signal: None, after }))
    }

    /// A terminal sends its signals to the group in front: to both of us, or to one.
    fn pass_on_unless_shared(&self, signal: Signal) {
        let front = self.terminal.as_ref().and_then(|terminal| tcgetpgrp(terminal).ok());
        let both = front == Some(getpgrp()) && getpgid(Some(self.pid)).ok() == front;
        if !both {
            self.pass_on(signal);
        }
    }

    fn pass_on(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill(self.pid, signal);
    }
}

/// Ends every process that `members` names, until it names none: told first, killed once they had time.
pub async fn end_all(members: impl Fn() -> Vec<u32>) {
    let deadline = Instant::now() + GRACE;
    let mut told = HashSet::new();
    loop {
        let left = members();
        let late = Instant::now() > deadline;
        if left.is_empty() || Instant::now() > deadline + GRACE {
            return;
        }
        for pid in left {
            if late || told.insert(pid) {
                let signal = if late { Signal::SIGKILL } else { Signal::SIGTERM };
                let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Looks whether a program can be found and executed, as the kernel will; so that nothing is prepared for one that cannot.
pub fn check(plan: &Plan) -> Result<(), NotStarted> {
    let program = &plan.words[0];
    let failure = |kind: io::ErrorKind| NotStarted {
        program: program.to_string_lossy().into_owned(),
        error: io::Error::from(kind),
    };
    let path = plan.variables.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let path = path.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| "/bin:/usr/bin".into());
    let candidates: Vec<PathBuf> = if program.as_bytes().contains(&b'/') {
        vec![program.into()]
    } else {
        std::env::split_paths(&path).map(|folder| folder.join(program)).collect()
    };
    let found: Vec<fs::Metadata> = candidates.iter().filter_map(|candidate| fs::metadata(candidate).ok()).collect();
    match found.iter().any(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0) {
        true => Ok(()),
        false if found.is_empty() => Err(failure(io::ErrorKind::NotFound)),
        false => Err(failure(io::ErrorKind::PermissionDenied)),
    }
}

/// Leading `NAME=VALUE` words are variables, as with `env`; the rest is the command.
pub fn split_variables(words: Vec<OsString>) -> (Vec<(OsString, OsString)>, Vec<OsString>) {
    let mut variables = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some((name, value)) = words.peek().and_then(assignment) {
        variables.push((name, value));
        words.next();
    }
    (variables, words.collect())
}

fn assignment(word: &OsString) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    let at = memchr::memchr(b'=', bytes).filter(|at| *at > 0)?;
    let name = &bytes[..at];
    let is_name = !name[0].is_ascii_digit() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let part = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    is_name.then(|| (part(name), part(&bytes[at + 1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_assignments_are_variables() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let (variables, rest) = split_variables(words(&["A=1", "_B=x=y", "C=", "./a=b", "D=4"]));
        assert_eq!(variables, [("A", "1"), ("_B", "x=y"), ("C", "")].map(|(a, b)| (a.into(), b.into())));
        assert_eq!(rest, words(&["./a=b", "D=4"]));
        assert_eq!(split_variables(words(&["=x", "A=1"])).1.len(), 2);
        assert_eq!(split_variables(words(&["1A=x"])).1.len(), 1);
    }
}

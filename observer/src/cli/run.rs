//! `observer run`

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::BufWriter,
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, fchown},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use caps::Capability;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{
    Exit, LAST_WORDS,
    exit::UsageError,
    filters,
    session::{Session, is_own_netns},
    watch::anything_lost,
};
use crate::{
    attribute::{CommandLines, redact},
    explain::rules::Allowed,
    launch::{self, Launcher, NOT_OBSERVED, NotStarted, Plan, Running, Signals, User, split_variables},
    model::Filter,
    privilege::{Helper, proc},
    probe::Tree,
    service::{Ended, LATE, Limits},
    sink::{
        fan::{Failed, Outlet},
        jsonl::JsonLines,
        notice::{self, note, say, say_within},
        run::{Findings, Form, Subject, VerdictSink},
    },
};

/// What is denied to daemons that the command woke comes late.
const SETTLE: &str = "500ms";
/// What lets through what was blocked is waited for so long after that, and looked at so often.
const FIXED: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Exit with status 1 if the command was blocked
    #[arg(long)]
    fail_on_block: bool,
    /// End the command at the first block, with status 1
    #[arg(long)]
    stop_on_block: bool,
    /// Keep watching this long after the command exits
    #[arg(long, value_name = "T", default_value = SETTLE, value_parser = super::duration)]
    settle: Duration,
    /// Run the command as this user
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// Write events to FILE as JSON lines (never overwrites)
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Write a report to FILE, .md or .json (never overwrites)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Watch one network namespace, by path or name
    ///
    /// The command itself runs in the namespace of the caller: use `ip netns exec NAME observer run` to run it in another.
    #[arg(long, default_value = "all", value_name = "all|PATH|NAME")]
    netns: String,
    /// Exit with status 4 if anything was lost
    #[arg(long)]
    strict: bool,
    /// Show command lines with the secrets in them
    #[arg(long)]
    no_redact: bool,
    /// Never let a child process join the sender's cgroup
    ///
    /// Replaying a rule about cgroups takes such a child for a moment. Without it, rules about cgroups are reported from eBPF
    /// records only.
    #[arg(long)]
    no_cgroup_replay: bool,
    /// Make no private copy of the ruleset (implies --no-fix)
    ///
    /// Rules are then reported from eBPF records only.
    #[arg(long)]
    no_replay: bool,
    /// Do not look for a fix
    ///
    /// No command is then tried in a private copy of the ruleset.
    #[arg(long)]
    no_fix: bool,
    /// Run LINE with `sh -c`
    #[arg(short = 'c', value_name = "LINE", conflicts_with = "command")]
    line: Option<OsString>,
    /// The command; leading NAME=VALUE words set variables
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args, verbose: u8) -> Result<Exit> {
    match observed(args, verbose) {
        // Whatever hinders observer itself before the command runs has its own status, as with `env`.
        Err(error) if !error.is::<UsageError>() => {
            let status = error.downcast_ref::<NotStarted>().map_or(NOT_OBSERVED, NotStarted::status);
            say(&format!("observer: {error:#}"));
            Ok(Exit::Of(status))
        }
        other => other,
    }
}

fn observed(args: &Args, verbose: u8) -> Result<Exit> {
    let plan = plan(args)?;
    if let Some(path) = [&args.events, &args.report].into_iter().flatten().find(|path| path.as_os_str() == "-") {
        let sentence = format!("`{}` is not a file: stdout belongs to the command", path.display());
        return Err(usage(&sentence, "name a new file"));
    }
    let form = args.report.as_deref().map(form).transpose()?;
    launch::check(&plan)?;
    anyhow::ensure!(
        proc::sees_initial_pids(),
        "the command cannot be followed in a pid namespace of its own\nhint: run observer on the host, or its container \
         with `--pid=host`; `observer watch` works here"
    );
    // Both are forked, and that takes a process with one thread.
    let launcher = Launcher::prepare(&plan)?;
    let helper = Helper::start()?;
    let words: Vec<String> = plan.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let command = if args.no_redact { words } else { redact::redact(&words) };
    let netns = filters::namespace(&args.netns)?;
    let filter = Filter { netns, follow: Some(launcher.pid()), ..Filter::default() };
    let allowed = Allowed {
        replays: !args.no_replay,
        enters_cgroups: !args.no_cgroup_replay,
        finds_fixes: !args.no_fix && !args.no_replay,
        first: Some(launcher.pid()),
    };
    if netns.is_some() && !is_own_netns(netns) {
        note("observer: --netns limits what is watched; the command itself starts in this network namespace");
    }
    let mut session = Session::attach(helper, filter, allowed, verbose)?;
    let ready = session.ready_line();
    let tree = session.tree()?;
    // Where nothing can be observed no file is left behind.
    let events = args.events.as_deref().map(create).transpose()?.map(BufWriter::new);
    let report = args.report.as_deref().map(create).transpose();
    if let (Err(_), Some(path)) = (&report, &args.events) {
        let _ = fs::remove_file(path);
    }
    let report = form.zip(report?.map(BufWriter::new));
    let findings = Arc::new(Findings::default());
    let reporter = session.reporter().clone();
    let mut outlets = Vec::new();
    // A full disk must not end what watches a command: it is said at the end.
    outlets.extend(events.map(|file| Outlet {
        name: "the events file",
        sink: Box::new(JsonLines::new(file, reporter.clone())),
        is_needed: false,
    }));
    let unwatched = session.unwatched();
    let subject = Subject { pid: launcher.pid(), command, only_netns: netns.is_some(), unwatched, report, reporter };
    let verdict = VerdictSink::new(notice::stderr(), subject, Arc::clone(&findings));
    outlets.push(Outlet { name: "the verdict", sink: Box::new(verdict), is_needed: false });
    let limits = Limits { count: None, counts: |_| false, late: LATE };
    // The command may be another user's, and signals are passed on to it.
    let mut run = session.confined(outlets, limits, CommandLines::of(args.no_redact), &[Capability::CAP_KILL]);
    let news = Arc::clone(&run.news);
    // Nothing of the command can hang yet.
    run.hanging.clear();
    let running = Arc::new(OnceLock::new());
    let started = Notify::new();
    let until = until(args, &findings, &news, &running, &started, &tree);
    let ended = run.run(
        || {
            note(&ready);
            let _ = running.set(launcher.start()?);
            started.notify_one();
            Ok(())
        },
        until,
    );
    let account = match (ended, running.get()) {
        (Ok(Ended::Clean(account, failed)), _) => {
            for Failed { name, error, .. } in failed {
                say_within(&format!("observer: {name} is incomplete: {error}"), LAST_WORDS);
            }
            Some(*account)
        }
        (Ok(Ended::ClosedPipe | Ended::Stuck), _) => {
            say_within("observer: stderr is blocked; the end of the report was not written", LAST_WORDS);
            None
        }
        (Err(error), None) => return Err(error),
        // What failed is observer's own business: the command goes on, and its status counts.
        (Err(error), Some(running)) => {
            say(&format!("observer: observing failed; the command continues unobserved: {error:#}"));
            if findings.ended.get().is_none() {
                let _ = findings.ended.set(running.wait()?);
            }
            None
        }
    };
    let blocked = findings.blocked.load(Ordering::Acquire);
    if blocked && (args.fail_on_block || args.stop_on_block) {
        return Ok(Exit::Finding);
    }
    if args.strict && account.as_ref().is_none_or(anything_lost) {
        return Ok(Exit::Lost);
    }
    Ok(findings.ended.get().map_or(Exit::Of(NOT_OBSERVED), |ended| Exit::Of(ended.code)))
}

/// Until the command has ended and time has been left for what comes late. At a block everything of it is ended, if that was
/// asked for, whenever it comes.
async fn until(
    args: &Args,
    findings: &Findings,
    news: &AtomicBool,
    running: &OnceLock<Running>,
    started: &Notify,
    tree: &Tree,
) -> Result<()> {
    let signals = Signals::listen()?;
    started.notified().await;
    let Some(running) = running.get() else { return Ok(()) };
    let blocked = async {
        if !args.stop_on_block {
            std::future::pending::<()>().await;
        }
        findings.first.notified().await;
    };
    tokio::pin!(blocked);
    let command = running.finished(signals);
    tokio::pin!(command);
    let (ended, stopped) = tokio::select! {
        ended = &mut command => (ended?, false),
        () = &mut blocked => (tokio::join!(command, launch::end_all(|| tree.members())).0?, true),
    };
    let _ = findings.ended.set(ended);
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    tokio::select! {
        () = tokio::time::sleep(args.settle) => {}
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
        () = blocked, if !stopped => launch::end_all(|| tree.members()).await,
    }
    // A fix that is being tried is worth a moment more.
    let known = async {
        while news.load(Ordering::Acquire) {
            tokio::time::sleep(STEP).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(FIXED, known) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn plan(args: &Args) -> Result<Plan> {
    let (variables, words) = match &args.line {
        Some(line) if line.to_string_lossy().trim().is_empty() => {
            return Err(usage(
                "there is nothing to run: the script after `-c` is empty",
                "in double quotes the caller's own shell runs `$(curl …)` first, before observer; write -c 'LINE' in single quotes",
            ));
        }
        Some(line) => (Vec::new(), ["sh".into(), "-c".into(), line.clone()].into()),
        None => split_variables(args.command.clone()),
    };
    if let Some(option) = words.first().filter(|word| word.as_bytes().starts_with(b"-")) {
        return Err(usage(
            &format!("there is no option `{}`", option.display()),
            "`observer run --help` lists them; a command that begins so is written with its path",
        ));
    }
    if words.is_empty() {
        let sentence =
            if variables.is_empty() { "there is no command to run" } else { "there is no command after the variables" };
        return Err(usage(sentence, "write `observer run -- CMD…`, or `observer run -c 'LINE'` for a line of shell"));
    }
    Ok(Plan { words, variables, user: args.user.as_deref().map(user).transpose()? })
}

fn user(text: &str) -> Result<User> {
    User::find(text)?.ok_or_else(|| usage(&format!("there is no user `{text}`"), "`getent passwd` lists them"))
}

fn usage(sentence: &str, hint: &str) -> anyhow::Error {
    UsageError { sentence: sentence.to_owned(), hint: hint.to_owned() }.into()
}

/// By the ending of its name.
fn form(path: &Path) -> Result<Form> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("md") => Ok(Form::Markdown),
        Some("json") => Ok(Form::Json),
        _ => Err(usage(
            &format!("cannot tell the report's format from the name {}", path.display()),
            "choose a name that ends with .md or .json",
        )),
    }
}

/// A new file that only its owner reads: the person behind sudo, if there is one.
pub(super) fn create(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        usage(
            &format!("cannot create {}: {error}", path.display()),
            "name a file that does not exist yet, in a folder that does",
        )
    })?;
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if let (Some(user), group) = (number("SUDO_UID"), number("SUDO_GID")) {
        fchown(&file, Some(user), group).with_context(|| format!("cannot give {} to its owner", path.display()))?;
    }
    Ok(file)
}

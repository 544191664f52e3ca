//! `observer run`

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::BufWriter,
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use caps::Capability;

use super::{Exit, exit::UsageError, filters, session::Session, watch::anything_lost};
use crate::{
    enrich::redact,
    launch::{Launcher, NOT_OBSERVED, NotStarted, Plan, Running, Signals, User, split_variables},
    model::Filter,
    output::{
        notice::{self, say},
        verdict::{Findings, Form, Subject, Verdict},
    },
    pipeline::{Ended, Limits},
    privilege::Helper,
};

/// What is denied to daemons that the command woke comes late.
const SETTLE: &str = "500ms";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Exit with status 1 when something that the command sent was blocked.
    #[arg(long)]
    fail_on_block: bool,
    /// End the command and all that it started at the first block, with status 1.
    #[arg(long)]
    stop_on_block: bool,
    /// Observe on for this long after the command's end.
    #[arg(long, value_name = "T", default_value = SETTLE, value_parser = super::duration)]
    settle: Duration,
    /// Run the command as this user.
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// Write every event to this new file, as JSON, one object a line.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Write what came of it to this new file: Markdown (.md) or JSON (.json).
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Network namespace: all, the path of one, or a name that `ip netns` knows.
    #[arg(long, default_value = "all", value_name = "all|PATH|NAME")]
    netns: String,
    /// Exit with status 4 when anything was lost.
    #[arg(long)]
    strict: bool,
    /// Show command lines as they are, with the passwords and keys in them.
    #[arg(long)]
    no_redact: bool,
    /// Run this line with `sh -c`.
    #[arg(short = 'c', value_name = "LINE", conflicts_with = "command", required_unless_present = "command")]
    line: Option<OsString>,
    /// The command; leading NAME=VALUE words are variables, as with `env`.
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
    // Both are forked, and that takes a process with one thread.
    let launcher = Launcher::prepare(&plan)?;
    let helper = Helper::start()?;
    let form = args.report.as_deref().map(form).transpose()?;
    let words: Vec<String> = plan.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let command = if args.no_redact { words } else { redact::redact(&words) };
    let filter = Filter { netns: filters::namespace(&args.netns)?, ..Filter::default() };
    let session = Session::attach(helper, filter, verbose)?;
    let ready = session.ready_line();
    // Where nothing can be observed no file is left behind.
    let events = args.events.as_deref().map(create).transpose()?.map(BufWriter::new);
    let report = args.report.as_deref().map(create).transpose()?.map(BufWriter::new);
    let findings = Arc::new(Findings::default());
    let subject = Subject { pid: launcher.pid(), command, events, report: form.zip(report) };
    let output = Verdict::new(notice::stderr(), subject, Arc::clone(&findings));
    // The command may be another user's, and signals are passed on to it.
    let mut run = session.confined(Box::new(output), Limits::default(), !args.no_redact, &[Capability::CAP_KILL]);
    // Nothing of the command can hang yet.
    run.hanging.clear();
    let (send, receive) = tokio::sync::oneshot::channel::<Running>();
    let until = {
        let findings = Arc::clone(&findings);
        async move {
            let signals = Signals::listen()?;
            let Ok(running) = receive.await else { return Ok(()) };
            let never = tokio::sync::Notify::new();
            let ended = running.finished(signals, if args.stop_on_block { &findings.first } else { &never }).await?;
            let _ = findings.ended.set(ended);
            tokio::time::sleep(args.settle).await;
            Ok(())
        }
    };
    let ended = run.run(
        || {
            say(&ready);
            let running = launcher.start()?;
            let _ = send.send(running);
            Ok(())
        },
        until,
    );
    let ended = match (ended, findings.ended.get()) {
        (Ok(ended), _) => ended,
        // What failed then is observer's own business; the command has run.
        (Err(error), Some(_)) => {
            say(&format!("observer: {error:#}"));
            Ended::Stuck
        }
        (Err(error), None) => return Err(error),
    };
    let blocked = findings.blocked.load(Ordering::Acquire);
    Ok(match ended {
        _ if blocked && (args.fail_on_block || args.stop_on_block) => Exit::Finding,
        Ended::Clean(account) if args.strict && anything_lost(&account) => Exit::Lost,
        _ => findings.ended.get().map_or(Exit::Of(NOT_OBSERVED), |ended| Exit::Of(ended.code)),
    })
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
    if words.is_empty() {
        return Err(usage("there is no command after the variables", "write observer run -- NAME=VALUE CMD…"));
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
            &format!("{} says neither Markdown nor JSON", path.display()),
            "let the report's name end with .md or .json",
        )),
    }
}

/// A new file that only its owner reads: the person behind sudo, if there is one.
fn create(path: &Path) -> Result<File> {
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

//! The command line: statuses, limits, filters, and ends of every kind.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    copy_program,
    lab::{FAR_V4, Lab},
    observer::{self, Observer, Report},
    traffic,
};
use nix::sys::signal::Signal;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("not_root_is_one_sentence_and_status_3", not_root),
    ("bad_usage_is_status_2", bad_usage),
    ("help_is_status_0", help),
    ("closed_pipe_is_status_0_without_a_message", closed_pipe),
    ("full_disk_is_one_sentence_and_status_3", full_disk),
    ("signals_end_with_the_account", signals),
    ("stops_after_a_time", for_duration),
    ("stops_after_a_number_of_events", count),
    ("filters", filters),
    ("second_observer_sees_the_same", second_observer),
    ("nothing_stays_after_a_kill", killed),
    ("strict_without_loss_is_status_0", strict),
];

const DROP_443: &str = "table inet t { chain out { type filter hook output priority 0; th dport 443 counter drop; } }";

fn ends(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().context("cannot run observer")
}

/// One sentence and at most a hint, on stderr; nothing on stdout.
fn sentence(output: &Output, status: i32) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(status), "ended with {}, expected {status}: {said}", output.status);
    ensure!(output.stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&output.stdout));
    let lines: Vec<&str> = said.lines().collect();
    ensure!(!lines.is_empty() && lines.len() <= 2, "not one sentence: {said}");
    ensure!(lines.get(1).is_none_or(|line| line.starts_with("hint: ")), "{said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

fn not_root() -> Result<Outcome> {
    // A copy that everybody may reach.
    let folder = tempfile::TempDir::new()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let program = folder.path().join("observer");
    copy_program(observer::program(), &program)?;
    let nobody = |args: &[&str]| {
        ends(
            Command::new("setpriv")
                .args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all"])
                .arg(&program)
                .args(args),
        )
    };
    let said = sentence(&nobody(&["watch"])?, 3)?;
    ensure!(said.contains("root") && said.contains("sudo"), "{said}");
    let doctor = nobody(&["doctor"])?;
    ensure!(doctor.status.code() == Some(3), "doctor ended with {}", doctor.status);
    let text = String::from_utf8_lossy(&doctor.stdout);
    ensure!(text.contains("not observable") && text.contains("sudo") && text.contains("kernel"), "{text}");
    Ok(Outcome::Passed)
}

fn bad_usage() -> Result<Outcome> {
    let cases: [&[&str]; 10] = [
        &["watch", "--colour", "red"],
        &["watch", "--proto", "tpc"],
        &["watch", "--cause", "weather"],
        &["watch", "--dst", "203.0.113.0/33"],
        &["watch", "--port", "70000"],
        &["watch", "--port", "htps"],
        &["watch", "--for", "soon"],
        &["watch", "--count", "0"],
        &["watch", "--netns", "no-such-namespace"],
        &["blame"],
    ];
    for args in cases {
        let output = ends(observer::command().args(args))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{args:?} ended with {}: {said}", output.status);
        ensure!(!said.is_empty() && output.stdout.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
        // It names what was wrong.
        let wrong = args.last().copied().unwrap_or_default();
        ensure!(said.contains(wrong) || said.contains(args[args.len().saturating_sub(2)]), "{args:?}: {said}");
    }
    Ok(Outcome::Passed)
}

fn help() -> Result<Outcome> {
    for args in [&["--help"][..], &["help"], &["help", "check"], &["watch", "--help"], &["--version"], &["man"], &[]] {
        let output = ends(observer::command().args(args))?;
        ensure!(
            output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}: {output:?}"
        );
    }
    Ok(Outcome::Passed)
}

fn closed_pipe() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    for format in ["json", "human"] {
        let mut child = observer::command()
            .args(["watch", "-o", format, "--netns"])
            .arg(lab.client.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut ready = String::new();
        stderr.read_line(&mut ready)?;
        // Like `| head -0`: the reader goes away while the stream is young.
        drop(child.stdout.take());
        traffic::run(&lab.client, &["udp", FAR_V4, "443", "2"])?;
        let status = child.wait()?;
        let mut rest = String::new();
        stderr.read_to_string(&mut rest)?;
        ensure!(status.code() == Some(0) && rest.is_empty(), "{format}: {status}, said {rest:?}");
    }
    Ok(Outcome::Passed)
}

fn full_disk() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let mut child = observer::command()
        .args(["watch", "-o", "json", "--netns"])
        .arg(lab.client.path())
        .stdin(Stdio::null())
        .stdout(std::fs::File::options().write(true).open("/dev/full")?)
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut ready = String::new();
    stderr.read_line(&mut ready)?;
    traffic::run(&lab.client, &["udp", FAR_V4, "443", "2"])?;
    let status = child.wait()?;
    let mut rest = String::new();
    stderr.read_to_string(&mut rest)?;
    ensure!(status.code() == Some(3), "ended with {status}: {rest}");
    ensure!(rest.lines().count() == 1 && rest.contains("No space left"), "said {rest:?}");
    Ok(Outcome::Passed)
}

fn signals() -> Result<Outcome> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let observer = Observer::start(["watch", "--no-fix", "-o", "json"])?;
        let (status, stdout, _) = observer.end(signal)?;
        ensure!(status.code() == Some(0), "{signal}: {status}");
        Report::parse(&stdout)?;
    }
    Ok(Outcome::Passed)
}

fn for_duration() -> Result<Outcome> {
    let output = ends(observer::command().args(["watch", "-o", "json", "--for", "300ms"]))?;
    ensure!(output.status.success(), "{}", output.status);
    Report::parse(&output.stdout)?;
    Ok(Outcome::Passed)
}

fn count() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let path = lab.client.path();
    let mut observer =
        Observer::start(["watch", "-o", "json", "--count", "2", "--netns", &path.display().to_string()])?;
    traffic::run(&lab.client, &["udp", FAR_V4, "443", "5"])?;
    let status = observer.child.wait()?;
    ensure!(status.success(), "{status}");
    let report = observer.stop()?;
    ensure!(report.events.len() == 2, "{} events", report.events.len());
    Ok(Outcome::Passed)
}

fn filters() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; policy drop; } }")?;
    let netns = lab.client.path().display().to_string();
    let far = format!("{FAR_V4}/32");
    let ten: Vec<String> = (0..10).flat_map(|port| ["--port".to_owned(), (435 + port).to_string()]).collect();
    let ten: Vec<&str> = ten.iter().map(String::as_str).collect();
    let cases: [(&[&str], usize); 14] = [
        (&ten, 2),
        (&["--proto", "tcp", "--dst", "203.0.0.0/8", "--dst", "fd00::/8"], 1),
        (&["--port", "443"], 2),
        (&["--port", "53", "--port", "443"], 3),
        (&["--proto", "tcp"], 1),
        (&["--proto", "17"], 2),
        (&["--port", "443", "--proto", "udp"], 1),
        (&["--dst", &far], 3),
        (&["--dst", "2001:db8::/32"], 0),
        (&["--dst", "localhost"], 0),
        (&["--user", "root"], 3),
        (&["--user", "nobody"], 0),
        (&["--cause", "netfilter", "--action", "egress-blocked"], 3),
        (&["--unit", "none.service"], 0),
    ];
    for (filter, wanted) in cases {
        let observer = Observer::start(["watch", "-o", "json", "--netns", &netns].iter().chain(filter))?;
        traffic::run(&lab.client, &["tcp", FAR_V4, "443", "0.2"])?;
        traffic::run(&lab.client, &["udp", FAR_V4, "443"])?;
        traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
        let report = observer.stop()?;
        let told = report.foreground().len();
        ensure!(told == wanted, "{filter:?}: {told} events, expected {wanted}");
        ensure!(report.number("/filtered") >= (3 - wanted) as u64, "{filter:?}: {}", report.account);
    }
    // A tree's packets among those of others, whose process lives and is left out in the kernel: a child that is made
    // later, its child, and one that outlives its parent belong to it.
    let mut root = lab.client.command("sh");
    let client = std::env::current_exe()?.with_file_name("client").display().to_string();
    let line = format!(
        "read go; {client} flood {FAR_V4} 53 7 1; (sh -c '{client} flood {FAR_V4} 53 7 1; true'); \
         (setsid sh -c 'sleep 0.2; exec {client} flood {FAR_V4} 53 7 1' &); sleep 0.6"
    );
    let mut root = root.args(["-c", &line]).stdin(Stdio::piped()).spawn()?;
    let pid = root.id().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns, "--pid", &pid])?;
    lab.client.run(&client, &["flood", FAR_V4, "53", "1000", "1"])?;
    std::io::Write::write_all(&mut root.stdin.take().context("stdin")?, b"go\n")?;
    root.wait()?;
    let report = observer.stop()?;
    ensure!(report.number("/reported") == 21 && report.number("/filtered") >= 1000, "{}", report.account);
    ensure!(report.events.iter().all(|event| event["process"]["name"] == "client"), "{:?}", report.events);
    // By process: the client's own number, its parent's, and its name.
    let me = std::process::id().to_string();
    for (filter, wanted) in [(["--pid", me.as_str()], 1), (["--comm", "curl"], 0), (["--pid", "1"], 1)] {
        let observer = Observer::start(["watch", "-o", "json", "--netns", &netns].iter().chain(&filter))?;
        traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
        let told = observer.stop()?.foreground().len();
        ensure!(told == wanted, "{filter:?}: {told} events, expected {wanted}");
    }
    Ok(Outcome::Passed)
}

fn second_observer() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let (first, second) = (Observer::watch(&lab.client)?, Observer::watch(&lab.client)?);
    let client = traffic::run(&lab.client, &["udp", FAR_V4, "443", "3"])?;
    for observer in [first, second] {
        let report = observer.stop()?;
        ensure!(report.number("/reported") == 3, "{}", report.account);
        ensure!(report.events.iter().all(|event| event["process"]["pid"] == client.pid), "{:?}", report.events);
    }
    Ok(Outcome::Passed)
}

/// Killed without a chance to clean up: programs, maps and the helper are gone with it.
fn killed() -> Result<Outcome> {
    let observer = Observer::start(["watch"])?;
    let pid = observer.child.id();
    let helpers = observer::helpers(pid)?;
    ensure!(!loaded_by(pid)?.is_empty(), "no program is held by the running observer");
    observer.end(Signal::SIGKILL)?;
    harness::wait_for("the helpers' end", || {
        let is_there = |pid: &u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        Ok((!helpers.iter().any(is_there)).then_some(()))
    })?;
    Ok(Outcome::Passed)
}

/// Descriptors of BPF programs and links that a process holds.
fn loaded_by(pid: u32) -> Result<Vec<String>> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .filter(|target| target.contains("bpf"))
        .collect())
}

fn strict() -> Result<Outcome> {
    let output = ends(observer::command().args(["watch", "-o", "json", "--strict", "--for", "200ms"]))?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(Outcome::Passed)
}

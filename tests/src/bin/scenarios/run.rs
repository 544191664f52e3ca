//! `observer run`: a command, what it was denied, and its own status.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use harness::{
    copy_program,
    lab::{FAR_V4, FAR_V6, Lab},
    observer::{Report, expect, program},
    slowness, traffic,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{Outcome, Scenario, without_trials};

pub(crate) const ALL: &[Scenario] = &[
    ("streams_are_the_commands_own", streams),
    ("statuses_are_the_commands_own", statuses),
    ("a_block_is_announced_while_the_command_hangs", announced),
    ("children_that_became_daemons", daemonised),
    ("somebody_else_at_the_same_time", outside),
    ("a_block_that_begins_later", later),
    ("fails_or_stops_on_a_block", on_block),
    ("it_observes_on_until_it_is_told_to_end", settle),
    ("not_in_a_pid_namespace_of_its_own", pid_namespace),
    ("its_own_fix_waits_for_nobody_elses", first),
    ("signals_are_passed_on", signals),
    ("as_another_user_with_variables", another_user),
    ("events_go_to_a_new_file", events),
    ("a_full_disk_does_not_end_it", full_disk),
    ("a_report_for_a_ticket_or_a_program", report),
    ("a_block_after_a_minute", after_a_minute),
    ("under_sudos_environment", sudo),
    ("the_readmes_examples", readme),
    ("mistakes_are_one_sentence", mistakes),
];

const RULES: &str = "table inet t { chain out { type filter hook output priority 0; meta l4proto { tcp, udp } th dport { 443, 53 } counter drop; } }";

/// `observer run ARGS` inside a namespace.
fn run(lab: &Lab, args: &[&str]) -> Command {
    // A scenario that fails leaves no observer behind.
    let mut command = lab.client.command("setpriv");
    // Other scenarios run at the same time, in namespaces of their own.
    command
        .args(["--pdeathsig", "KILL"])
        .arg(program())
        .args(["run", "--netns", "/proc/self/ns/net"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn finish(command: &mut Command) -> Result<(Option<i32>, String, String)> {
    let Output { status, stdout, stderr } = command.output().context("cannot start observer")?;
    Ok((status.code(), String::from_utf8(stdout)?, String::from_utf8(stderr)?))
}

fn blocked() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    Ok(lab)
}

fn streams() -> Result<Outcome> {
    let lab = blocked()?;
    let mut command =
        run(&lab, &["--", "sh", "-c", "cat; printf '\\0bytes'; echo own >&2; exec 1>&- 2>&-; sleep 0.2; exit 3"]);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("stdin")?, b"typed")?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.stdout == b"typed\0bytes", "stdout: {:?}", output.stdout);
    ensure!(output.status.code() == Some(3), "{}", output.status);
    let own: Vec<&str> =
        said.lines().filter(|line| !line.starts_with("observer: ") && !line.starts_with("  ")).collect();
    ensure!(own == ["own"] && said.contains("The command exited 3"), "{said}");
    // Other scenarios may keep the kernel from seeing everything.
    ensure!(said.contains("VERDICT nothing was blocked") || said.contains("VERDICT no block was seen"), "{said}");
    ensure!(said.matches("observer: ready").count() == 1 && said.starts_with("observer: ready"), "{said}");
    Ok(Outcome::Passed)
}

fn statuses() -> Result<Outcome> {
    let lab = blocked()?;
    let cases: [(&[&str], i32); 7] = [
        (&["--", "true"], 0),
        (&["--", "sh", "-c", "exit 42"], 42),
        (&["-c", "kill -KILL $$"], 137),
        (&["-c", "kill -34 $$"], 162),
        (&["--", "/nonexistent/command"], 127),
        (&["--", "/etc/passwd"], 126),
        (&["--fail-on-block", "--", "sh", "-c", "exit 5"], 5),
    ];
    for (args, wanted) in cases {
        let (status, _, said) = finish(&mut run(&lab, args))?;
        ensure!(status == Some(wanted), "{args:?}: {status:?}, expected {wanted}: {said}");
    }
    let folder = TempDir::new()?;
    let events = folder.path().join("events").display().to_string();
    let (status, _, said) = finish(&mut run(&lab, &["--events", &events, "--", "no-such-command"]))?;
    ensure!(status == Some(127) && !fs::exists(&events)?, "{status:?}, a file is left: {said}");
    // Without privilege nothing is observed, and the command does not run.
    let folder = TempDir::new()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let mark = folder.path().join("ran");
    // Where nobody may reach it.
    let copy = folder.path().join("observer");
    copy_program(program(), &copy)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups"]).arg(&copy).args(["run", "--", "touch"]).arg(&mark);
    let (status, _, said) = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    ensure!(status == Some(125) && said.contains("sudo") && !mark.exists(), "{status:?}: {said}");
    Ok(Outcome::Passed)
}

fn announced() -> Result<Outcome> {
    let lab = blocked()?;
    let mut child = run(&lab, &["--", "curl", "-sS", "-m", "4", &format!("https://{FAR_V4}/")]).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("stderr")?).lines();
    let line =
        lines.by_ref().map_while(Result::ok).find(|line| line.contains("BLOCKED")).context("nothing announced")?;
    ensure!(child.try_wait()?.is_none(), "the command has ended before: {line}");
    ensure!(line.contains("curl[") && line.contains(&format!("{FAR_V4}:443/tcp")), "{line}");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait()?;
    ensure!(status.code() == Some(28), "curl's own status for a timeout, not {status}");
    let rest = rest.join("\n");
    ensure!(rest.matches("BLOCKED").count() == 0, "announced again: {rest}");
    ensure!(rest.contains("VERDICT blocked on this host. The command exited 28 after"), "{rest}");
    ensure!(rest.contains("blocked    curl[") && rest.contains("lost 0"), "{rest}");
    Ok(Outcome::Passed)
}

fn daemonised() -> Result<Outcome> {
    let lab = blocked()?;
    let script = format!("(setsid sh -c 'sleep 0.5; exec curl -sS -m 1 https://{FAR_V4}/' >/dev/null 2>&1 &) ; exit 0");
    let (status, _, said) = finish(&mut run(&lab, &["--settle", "2s", "-c", &script]))?;
    ensure!(status == Some(0), "{status:?}");
    ensure!(said.contains("VERDICT blocked") && said.contains("curl["), "{said}");
    ensure!(!said.contains("other processes blocked meanwhile:"), "{said}");
    Ok(Outcome::Passed)
}

fn outside() -> Result<Outcome> {
    let lab = blocked()?;
    let mut child = run(&lab, &["--", "sh", "-c", "echo there; read end"]).stdin(Stdio::piped()).spawn()?;
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut String::new())?;
    traffic::run(&lab.client, &["udp", FAR_V6, "53", "3"])?;
    std::io::Write::write_all(&mut child.stdin.take().context("stdin")?, b"\n")?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(0), "{}: {said}", output.status);
    ensure!(said.contains("VERDICT nothing that the command sent was blocked, but something else"), "{said}");
    ensure!(said.contains("other processes blocked meanwhile:") && said.contains("python3["), "{said}");
    ensure!(said.contains(&format!("[{FAR_V6}]:53/udp ×3")), "{said}");
    ensure!(!said.contains("observer: BLOCKED"), "{said}");
    Ok(Outcome::Passed)
}

fn later() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    let script = format!("for i in 1 2 3 4; do curl -sS -m 0.5 http://{FAR_V4}:443/ >/dev/null 2>&1; sleep 0.4; done");
    let child = run(&lab, &["-c", &script]).spawn()?;
    std::thread::sleep(Duration::from_millis(900));
    lab.client.nft(RULES)?;
    let said = String::from_utf8(child.wait_with_output()?.stderr)?;
    ensure!(said.contains("observer: BLOCKED curl[") && said.contains("VERDICT blocked"), "{said}");
    Ok(Outcome::Passed)
}

fn on_block() -> Result<Outcome> {
    let lab = blocked()?;
    let (status, _, said) =
        finish(&mut run(&lab, &["--fail-on-block", "--", "curl", "-m", "1", &format!("https://{FAR_V4}/")]))?;
    ensure!(status == Some(1), "{status:?}: {said}");
    // The command would wait for minutes, and what it started for an hour.
    // A daemon and a child that ignores signals belong to that. The shell must not end before its own signal comes.
    let marker = format!("marker-{}", lab.client.pid());
    let deaf = format!("trap : TERM; for i in $(seq 400); do sleep 0.2; done; : {marker}");
    let script = format!(
        "(setsid sh -c '{deaf}' >/dev/null 2>&1 &); sh -c '{deaf}' & sleep 0.2; curl -sS https://{FAR_V4}/; sleep 20; exit 0"
    );
    let (status, _, said) = finish(&mut run(&lab, &["--stop-on-block", "-c", &script]))?;
    ensure!(status == Some(1) && said.contains("was ended by SIGTERM"), "{status:?}: {said}");
    // What was killed may take a moment to go.
    harness::wait_for("the end of all of it", || Ok((running(&marker)? == 0).then_some(())))?;
    // A block that comes when the command has ended already.
    let script =
        format!("(setsid sh -c 'sleep 0.5; curl -sS https://{FAR_V4}/; : {marker}' >/dev/null 2>&1 &); exit 0");
    let (status, _, said) = finish(&mut run(&lab, &["--stop-on-block", "--settle", "20s", "-c", &script]))?;
    ensure!(status == Some(1) && said.contains("VERDICT blocked"), "{status:?}: {said}");
    harness::wait_for("the daemon's end", || Ok((running(&marker)? == 0).then_some(())))?;
    Ok(Outcome::Passed)
}

/// Processes whose command line has this word.
fn running(word: &str) -> Result<usize> {
    let lines = fs::read_dir("/proc")?.flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    Ok(lines.filter(|line| String::from_utf8_lossy(line).contains(word)).count())
}

/// Ctrl-C while it only observes on: the verdict, and the command's status.
fn settle() -> Result<Outcome> {
    let lab = blocked()?;
    let mut child = run(&lab, &["--settle", "10m", "--", "sh", "-c", "echo over; exit 6"]).spawn()?;
    let mut out = BufReader::new(child.stdout.take().context("stdout")?);
    out.read_line(&mut String::new())?;
    // Until the command is reaped a signal would be passed on to it.
    let pid = child.id();
    harness::wait_for("the command's end", || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok((children.split_whitespace().count() == 1).then_some(()))
    })?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(6) && said.contains("VERDICT"), "{}: {said}", output.status);
    Ok(Outcome::Passed)
}

/// There the kernel's numbers are others than those that observer has of its command.
fn pid_namespace() -> Result<Outcome> {
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(program().canonicalize()?)
        .args(["run", "--", "touch", "/nonexistent/mark"])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(125) && said.contains("--pid=host"), "{}: {said}", output.status);
    Ok(Outcome::Passed)
}

fn signals() -> Result<Outcome> {
    let lab = blocked()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        let script = format!(
            "trap 'echo caught; exit 9' {}; echo there; for i in $(seq 400); do sleep 0.05; done",
            signal.as_str().trim_start_matches("SIG")
        );
        let mut child = run(&lab, &["-c", &script]).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        ensure!(lines.next().transpose()?.as_deref() == Some("there"), "the command did not start");
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        ensure!(lines.next().transpose()?.as_deref() == Some("caught"), "{signal} was not passed on");
        let status = child.wait()?;
        ensure!(status.code() == Some(9), "{signal}: {status}");
    }
    Ok(Outcome::Passed)
}

fn another_user() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = TempDir::new()?;
    let file = folder.path().join("events");
    let path = file.display().to_string();
    let script = format!("echo $GREETING $(id -un) $USER; curl -sS -m 0.5 https://{FAR_V4}/");
    let args = ["--as", "nobody", "--events", &path, "--", "GREETING=hello", "sh", "-c", &script];
    let (status, out, said) = finish(&mut run(&lab, &args))?;
    ensure!(status == Some(28) && out == "hello nobody nobody\n", "{status:?}: {out} {said}");
    let report = Report::parse(&fs::read(&file)?)?;
    for event in report.foreground() {
        expect(event, &[("/user/name", json!("nobody")), ("/process/name", json!("curl"))])?;
    }
    ensure!(!report.foreground().is_empty(), "{:?}", report.events);
    Ok(Outcome::Passed)
}

fn events() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = TempDir::new()?;
    let file = folder.path().join("events.json");
    let path = file.display().to_string();
    let url = format!("https://{FAR_V4}/");
    let args = ["--events", path.as_str(), "--", "curl", "-sS", "-m", "0.5", &url];
    let (status, ..) = finish(&mut run(&lab, &args))?;
    ensure!(status == Some(28), "{status:?}");
    let report = Report::parse(&fs::read(&file)?)?;
    ensure!(report.foreground().len() as u64 == lab.client.counted()?, "{:?}", report.events);
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    let (status, _, said) = finish(&mut run(&lab, &args))?;
    ensure!(status == Some(2) && said.contains("cannot create"), "{status:?}: {said}");
    Ok(Outcome::Passed)
}

/// The events' file cannot take them: the command goes on, and it is said.
fn full_disk() -> Result<Outcome> {
    let mut lab = blocked()?;
    lab.client.private_files()?;
    lab.client.run("sh", &["-c", "mkdir /run/full && mount -t tmpfs -o size=4k full /run/full"])?;
    let client = std::env::current_exe()?.with_file_name("client").display().to_string();
    let script = format!("{client} scan 198.18.0.1 443 200; sleep 0.7; echo done; exit 4");
    let (status, out, said) = finish(&mut run(&lab, &["--events", "/run/full/events", "-c", &script]))?;
    ensure!(status == Some(4) && out == "done\n", "{status:?}: {out} {said}");
    ensure!(said.contains("the events file is incomplete: ") && said.contains("VERDICT blocked"), "{said}");
    Ok(Outcome::Passed)
}

fn report() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = TempDir::new()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (markdown, json) = (path("report.md"), path("report.json"));
    let url = format!("https://user:hidden@{FAR_V4}/");
    for file in [&markdown, &json] {
        let (status, _, said) = finish(&mut run(&lab, &["--report", file, "--", "curl", "-sS", "-m", "0.5", &url]))?;
        ensure!(status == Some(28), "{status:?}: {said}");
        ensure!(fs::metadata(file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    }
    let text = fs::read_to_string(&markdown)?;
    ensure!(text.starts_with("# `curl[") && text.contains("blocked on this host"), "{text}");
    ensure!(text.contains(&format!("| {FAR_V4}:443/tcp | 1 |")) && text.contains("The command exited 28"), "{text}");
    ensure!(text.contains("## Other processes blocked meanwhile\n\nNothing.") && text.contains("lost 0"), "{text}");
    let value: serde_json::Value = serde_json::from_slice(&fs::read(&json)?)?;
    expect(
        &value,
        &[
            ("/egress/judgement", json!("blocked")),
            ("/egress/blocked/0/to", json!(format!("{FAR_V4}:443/tcp"))),
            ("/egress/blocked/0/packets", json!(1)),
            ("/egress/blocked_outside", json!([])),
            ("/egress/account/lost/map", json!(0)),
            ("/process/exit_code", json!(28)),
            ("/process/args/0", json!("curl")),
        ],
    )?;
    for text in [text, value.to_string()] {
        ensure!(!text.contains("hidden"), "a password: {text}");
    }
    let (status, _, said) = finish(&mut run(&lab, &["--report", &path("report.txt"), "--", "true"]))?;
    ensure!(status == Some(2) && said.contains("cannot tell the report"), "{status:?}: {said}");
    Ok(Outcome::Passed)
}

/// Nothing for a minute, then a block: announced at once, while the command hangs on.
fn after_a_minute() -> Result<Outcome> {
    let lab = blocked()?;
    let script = format!("sleep 61; exec curl -sS -m 3 https://{FAR_V4}/");
    let started = std::time::Instant::now();
    let mut child = run(&lab, &["-c", &script]).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("stderr")?).lines();
    lines.by_ref().map_while(Result::ok).find(|line| line.contains("BLOCKED")).context("nothing announced")?;
    let after = started.elapsed().as_secs_f64();
    ensure!(child.try_wait()?.is_none() && after > 61.0, "announced after {after} s");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    ensure!(child.wait()?.code() == Some(28), "{rest:?}");
    ensure!(rest.join("\n").contains("VERDICT blocked on this host. The command exited 28 after 1m0"), "{rest:?}");
    Ok(Outcome::Passed)
}

/// As they stand there, on a host that lets nothing out: each is blocked, and says so.
fn readme() -> Result<Outcome> {
    const PAGE: &str = include_str!("../../../../docs/using.md");
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    lab.client.run("sh", &["-c", "echo nameserver 10.9.0.2 > /etc/resolv.conf; mount -t tmpfs tmp /var/lib/apt/lists; mkdir /var/lib/apt/lists/partial"])?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; policy drop; oif lo accept; } }")?;
    let examples: Vec<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("sudo observer run ")).collect();
    ensure!(examples.len() >= 4, "only {} examples", examples.len());
    let folder = TempDir::new()?;
    for example in examples {
        // Not for minutes: the first block ends it.
        let line = format!(
            "cd {} && exec {} run --stop-on-block --netns /proc/self/ns/net {example}",
            folder.path().display(),
            program().canonicalize()?.display()
        );
        let mut command = lab.client.command("timeout");
        command.args(["60", "sh", "-c", &line]).stdin(Stdio::null());
        let (status, _, said) = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        ensure!(status == Some(1), "{example}: {status:?}: {said}");
        ensure!(said.contains("observer: BLOCKED"), "{example}: {said}");
        ensure!(said.contains("VERDICT blocked on this host"), "{example}: {said}");
    }
    Ok(Outcome::Passed)
}

/// The file belongs to the person behind sudo.
fn sudo() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = TempDir::new()?;
    let file = folder.path().join("events.json");
    let path = file.display().to_string();
    let mut command = run(&lab, &["--events", &path, "--", "env"]);
    command.env_clear().envs([
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SUDO_UID", "61001"),
        ("SUDO_GID", "61002"),
        ("SUDO_USER", "deploy"),
    ]);
    let (status, out, said) = finish(&mut command)?;
    ensure!(status == Some(0) && out.contains("SUDO_USER=deploy"), "{status:?}: {out} {said}");
    let meta = fs::metadata(&file)?;
    use std::os::unix::fs::MetadataExt;
    ensure!((meta.uid(), meta.gid()) == (61001, 61002), "it belongs to {}:{}", meta.uid(), meta.gid());
    Ok(Outcome::Passed)
}

/// Somebody else's blocks by twelve rules, each with a fix to be tried, all the time: the verdict on the command comes soon after
/// the command's end.
fn first() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let others: String = (9001..9013).map(|port| format!("udp dport {port} drop; ")).collect();
    lab.client.nft(&format!(
        "table inet t {{ chain out {{ type filter hook output priority 0; {others} tcp dport 443 counter drop; }} }}"
    ))?;
    let send = "while :; do for port in $(seq 9001 9012); do echo > /dev/udp/192.0.2.1/$port; done; sleep 0.05; done";
    let mut stranger = lab.client.command("bash");
    let mut stranger = stranger.args(["-c", send]).stderr(Stdio::null()).spawn()?;
    let took = || -> Result<(Duration, String)> {
        let script = format!("sleep 1; timeout 1 bash -c 'echo > /dev/tcp/{FAR_V4}/443'; date +%s%N >&2");
        let (_, _, said) = finish(&mut run(&lab, &["--", "sh", "-c", &script]))?;
        let ended = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let number = said.lines().find_map(|line| line.trim().parse::<u64>().ok()).with_context(|| said.clone())?;
        Ok((ended.saturating_sub(Duration::from_nanos(number)), said))
    };
    let result = took();
    stranger.kill()?;
    stranger.wait()?;
    let (took, said) = result?;
    ensure!(said.contains("fix      nft insert rule inet t out handle 14"), "{said}");
    // Trying one fix takes some tenths of a second; all of them took 15 s.
    let limit = Duration::from_secs(3) * slowness();
    ensure!(took < limit, "the verdict came {took:?} after the command's end");
    Ok(Outcome::Passed)
}

fn mistakes() -> Result<Outcome> {
    let lab = blocked()?;
    let cases: [(&[&str], &str); 6] = [
        (&["-c", ""], "the script after `-c` is empty"),
        (&["-c", "  \n"], "the script after `-c` is empty"),
        (&["--", "A=1"], "no command after the variables"),
        (&["--as", "nobody-of-that-name", "--", "true"], "there is no user"),
        (&["--fail-on-blok", "--", "true"], "there is no option `--fail-on-blok`"),
        (&["--settle", "soon", "--", "true"], "90s"),
    ];
    for (args, wanted) in cases {
        let (status, out, said) = finish(&mut run(&lab, args))?;
        ensure!(status == Some(2) && out.is_empty() && said.contains(wanted), "{args:?}: {status:?}: {said}");
    }
    let (status, _, _) = finish(&mut run(&lab, &[]))?;
    ensure!(status == Some(2), "{status:?}");
    Ok(Outcome::Passed)
}

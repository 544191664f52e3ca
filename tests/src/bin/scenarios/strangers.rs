//! What a stranger on the host can put in observer's way: programs, files and namespaces of its own. Nothing of it is executed, and
//! nothing is left behind.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    observer::{self, Observer},
    traffic, wait_for,
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::{Outcome, Scenario, fixes, without_trials};

pub(crate) const ALL: &[Scenario] = &[
    ("programs_of_another_mount_namespace", other_programs),
    ("a_user_namespace_behind_the_look", raced),
    ("programs_on_the_callers_path", on_the_path),
    ("a_program_that_hangs", hangs),
    ("rules_that_name_a_program", named_programs),
    ("a_second_observer_is_nobodys_block", second),
    ("a_comment_that_poses_as_observers_own", posing),
];

const DROP: &str = "table inet t { chain o { type filter hook output priority 0; tcp dport 443 drop } }";

/// A script that leaves a mark when it is run by anybody.
fn trap(folder: &Path) -> Result<String> {
    let (script, mark) = (folder.join("trap"), folder.join("mark"));
    fs::write(&script, format!("#!/bin/sh\nid > {}\nexec /usr/sbin/nft.real \"$@\"\n", mark.display()))?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    fs::set_permissions(folder, PermissionsExt::from_mode(0o777))?;
    Ok(script.display().to_string())
}

/// Whoever lives in the namespace has programs of its own over the host's: nothing is tried with them, and they are not run.
fn other_programs() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let folder = tempfile::tempdir()?;
    let script = trap(folder.path())?;
    lab.client.run("mount", &["--bind", &script, "/usr/sbin/nft"])?;
    let netns = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns])?;
    let event = fixes::told(&observer, &lab.client, ("tcp", FAR_V4, 443))?;
    observer.stop()?;
    ensure!(event["egress"]["rule"]["text"] == "tcp dport 443 drop", "the host's own nft lists it: {event}");
    let why = event["egress"]["fix"]["unverified"].as_str().unwrap_or_default();
    ensure!(why.contains("programs of their own (nft is not the host's)"), "{event}");
    ensure!(!folder.path().join("mark").exists(), "a stranger's program was run");
    Ok(Outcome::Passed)
}

/// A process of nobody's, in the namespace, that all the time makes a user namespace with mounts of its own and starts anew: between
/// any look at it and any use it may have another one.
fn raced() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let folder = tempfile::tempdir()?;
    let script = trap(folder.path())?;
    let inner = format!("mount --bind {script} /usr/sbin/nft && sleep 0.05");
    let script =
        format!("while :; do sleep 0.0$((RANDOM % 9)); unshare --user --map-root-user --mount sh -c '{inner}'; done");
    let mut stranger = lab.client.command("setpriv");
    stranger.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "bash", "-c", &script]);
    stranger.stderr(Stdio::null()).process_group(0);
    let mut stranger = stranger.spawn()?;
    let netns = lab.client.path().display().to_string();
    let mut told = Vec::new();
    for _ in 0..4 {
        let observer = Observer::start(["watch", "-o", "json", "--netns", &netns])?;
        told.push(fixes::told(&observer, &lab.client, ("tcp", FAR_V4, 443))?);
        observer.stop()?;
    }
    let group = i32::try_from(stranger.id())?;
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL)?;
    stranger.wait()?;
    ensure!(!folder.path().join("mark").exists(), "a stranger's program was run: {told:?}");
    Ok(Outcome::Passed)
}

/// Neither the rule's text nor a user's number is asked of a program on the caller's `PATH`.
fn on_the_path() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let folder = tempfile::tempdir()?;
    let script = trap(folder.path())?;
    for name in ["nft", "iptables", "iptables-nft-save", "getent", "id", "systemctl", "sh"] {
        fs::copy(&script, folder.path().join(name))?;
    }
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let mut command = observer::command();
    command.args(["watch", "-o", "json", "--netns"]).arg(lab.client.path()).env("PATH", &path);
    let observer = Observer::start_command(&mut command)?;
    let event = fixes::told(&observer, &lab.client, ("tcp", FAR_V4, 443))?;
    observer.stop()?;
    ensure!(event["egress"]["rule"]["text"] == "tcp dport 443 drop", "{event}");
    let mut run = observer::command();
    let status =
        run.args(["run", "--as", "nobody", "--", "/bin/true"]).env("PATH", &path).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "{status}");
    ensure!(!folder.path().join("mark").exists(), "a program on PATH was run");
    Ok(Outcome::Passed)
}

/// Nothing that a program started is left when observer is killed, whatever it does to go on.
fn hangs() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    // A number that nobody else sleeps for.
    let sleep = format!("{}.25", 40_000 + std::process::id() % 20_000);
    let script = format!(
        "mount -t tmpfs -o mode=755 none /usr/local/sbin
         printf '#!/bin/sh\\ntrap \"\" TERM HUP INT\\nsetsid sh -c \"sleep {sleep} & sleep {sleep}\" &\\nsleep {sleep}\\n' > /usr/local/sbin/nft
         chmod 755 /usr/local/sbin/nft
         mount --bind /usr/local/sbin/nft /usr/sbin/nft"
    );
    let mut command = observer::command_after(&script);
    command.args(["watch", "--no-fix", "-o", "json", "--netns"]).arg(lab.client.path());
    let mut observer = Observer::start_command(&mut command)?;
    let sleepers = || -> Result<usize> {
        Ok(fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| String::from_utf8_lossy(line).contains(&sleep))
            .count())
    };
    wait_for("the program that hangs", || {
        traffic::run(&lab.client, &["tcp", FAR_V4, "443", "0.2"])?;
        Ok((sleepers()? >= 3).then_some(()))
    })?;
    kill(nix::unistd::Pid::from_raw(i32::try_from(observer.child.id())?), Signal::SIGKILL)?;
    observer.child.wait()?;
    wait_for("the end of all that it started", || Ok((sleepers()? == 0).then_some(())))?;
    Ok(Outcome::Passed)
}

/// A rule of iptables can name a program to run: such a file is not tried, and a command neither.
fn named_programs() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    crate::front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    let folder = tempfile::tempdir()?;
    let script = trap(folder.path())?;
    let line = format!("-A ufw-before-output -p udp --dport 7000 --mod={script} -j DROP");
    lab.client.run("sed", &["-i", &format!("s#^COMMIT#{line}\\nCOMMIT#"), "/etc/ufw/before.rules"])?;
    let netns = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns])?;
    let event = fixes::told(&observer, &lab.client, ("tcp", FAR_V4, 443))?;
    observer.stop()?;
    let why = event["egress"]["fix"]["unverified"].as_str().unwrap_or_default();
    ensure!(why.contains("names a program to run"), "{event}");
    let after = format!("iptables -I OUTPUT --modprobe {script} -p tcp --dport 443 -j ACCEPT");
    let mut check = Command::new(observer::program());
    let output =
        check.args(["check", "--netns", &netns, "203.0.113.10:443", "--after", &after, "-o", "json"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("names a program to run"), "{said}");
    let first: Value = serde_json::from_slice(output.stdout.split(|byte| *byte == b'\n').next().context("nothing")?)
        .unwrap_or(Value::Null);
    ensure!(first["event"]["action"] != "egress-allowed", "{first}");
    ensure!(!folder.path().join("mark").exists(), "a program that a rule names was run");
    Ok(Outcome::Passed)
}

/// Two observers replay and try fixes at the same time, and neither reports what the other one sends in its copies.
fn second() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    // Without a filter: copies are namespaces of their own.
    let everything = || Observer::start(["watch", "--all", "-o", "json"]);
    let (first, other) = (everything()?, everything()?);
    let netns = lab.client.inode()?;
    for observer in [&first, &other] {
        let of_the_lab = |line: &Value| line["egress"]["netns"] == netns && line["egress"]["rule"]["text"].is_string();
        observer.tells_until("a rule", || traffic::run(&lab.client, &["tcp", FAR_V4, "443"]).map(drop), of_the_lab)?;
    }
    wait_for("a fix by each", || {
        let has = |observer: &Observer| observer.so_far().contains("\"action\":\"egress-fix\"");
        Ok((has(&first) && has(&other)).then_some(()))
    })?;
    for observer in [first, other] {
        let (status, stdout, _) = observer.end(Signal::SIGINT)?;
        ensure!(status.success(), "{status}");
        let told = String::from_utf8(stdout)?;
        // What each sends to see that it observes is its own, and marked; other scenarios' observers are none of these.
        let by_a_helper = told.lines().filter(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let name = line["process"]["name"].as_str().unwrap_or_default();
            name.starts_with("observer-") && line["egress"]["background"].is_null()
        });
        let lines: Vec<&str> = by_a_helper.collect();
        ensure!(lines.is_empty(), "{lines:?}");
    }
    Ok(Outcome::Passed)
}

/// A rule with the mark by which observer's own exception would be found again: the undo would take that one away.
fn posing() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let netns = lab.client.path().display().to_string();
    let fix = || -> Result<Value> {
        let observer = Observer::start(["watch", "-o", "json", "--netns", &netns])?;
        let event = fixes::told(&observer, &lab.client, ("tcp", FAR_V4, 443))?;
        observer.stop()?;
        Ok(event["egress"]["fix"].clone())
    };
    let before = fix()?;
    let command = before["commands"][0].as_str().context("no command")?;
    let mark = command.split([' ', '"']).find(|word| word.starts_with("observer-")).context("no mark")?.to_owned();
    ensure!(before["verified"] == true, "{before}");
    lab.client.nft(&format!("insert rule inet t o udp dport 22 drop comment \"{mark}\"\n"))?;
    let after = fix()?;
    let why = after["unverified"].as_str().unwrap_or_default();
    ensure!(why.contains(&mark) && after["commands"].is_null(), "{after}");
    Ok(Outcome::Passed)
}

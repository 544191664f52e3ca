//! The demo, as a newcomer runs it, and what it leaves behind: nothing.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::observer;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("deny_443_names_curl", || play("deny-443", "curl[", "203.0.113.10:443/tcp")),
    ("default_deny_names_the_look_up_of_apt", || play("default-deny", "http[", "10.9.0.2:53/udp")),
    ("interrupted_it_leaves_nothing", interrupted),
];

/// It lies beside the scenarios. Its temporary files have a folder of their own.
fn demo(variant: &str, temporary: &TempDir) -> Result<Command> {
    let path = std::env::current_exe()?.with_file_name("demo");
    let mut command = Command::new(path);
    command.arg(variant).env("OBSERVER", observer::program()).env("TMPDIR", temporary.path()).stdin(Stdio::null());
    Ok(command)
}

/// What of the host the demo could have changed.
fn host(temporary: &TempDir) -> Result<String> {
    let left = std::fs::read_dir(temporary.path())?.count();
    ensure!(left == 0, "{left} temporary files are left");
    let shell =
        "cat /etc/resolv.conf /etc/apt/sources.list /etc/ufw/*.rules /etc/ufw/ufw.conf /etc/default/ufw 2>/dev/null
         ls -la /etc/ufw /etc/datadog-agent /etc/demo-dependency /etc/apt/sources.list.d 2>&1
         sha256sum /etc/ssl/certs/ca-certificates.crt /var/lib/dpkg/status 2>&1
         nft list ruleset 2>&1; ip -o link 2>&1";
    let output = Command::new("sh").args(["-c", shell]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn play(variant: &str, who: &str, destination: &str) -> Result<Outcome> {
    let temporary = TempDir::new()?;
    let before = host(&temporary)?;
    let output = demo(variant, &temporary)?.output().context("cannot run the demo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the demo ended with {}: {text}", output.status);
    // Named while the installer still waited, and the installer got through once the rule was gone.
    let position = |wanted: &str| text.find(wanted).with_context(|| format!("`{wanted}` is missing in:\n{text}"));
    let ready = position("observer: ready")?;
    ensure!(text[ready..].lines().next().is_some_and(|line| line.contains("firewalls: ufw")), "{text}");
    let blocked = position("BLOCKED")?;
    ensure!(text[blocked..].lines().next().is_some_and(|line| line.contains(who)), "{who} is not named in:\n{text}");
    ensure!(text[blocked..].lines().nth(1).is_some_and(|line| line.contains(destination)), "{text}");
    ensure!(blocked < position("the operator types")?, "told too late:\n{text}");
    ensure!(position("the operator types")? < position("datadog-agent 7.50.3 is installed")?, "{text}");
    let after = host(&temporary)?;
    ensure!(before == after, "the host changed:\n{before}\n---\n{after}");
    Ok(Outcome::Passed)
}

/// Ctrl-C while the installer hangs.
fn interrupted() -> Result<Outcome> {
    let temporary = TempDir::new()?;
    let before = host(&temporary)?;
    let mut child = demo("deny-443", &temporary)?.stdout(Stdio::piped()).spawn().context("cannot start the demo")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let blocked = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("BLOCKED")));
    ensure!(blocked.is_some(), "the demo ended before anything was blocked");
    let pid = child.id();
    kill(Pid::from_raw(pid.try_into()?), Signal::SIGINT)?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait()?;
    ensure!(status.success(), "the demo ended with {status}: {rest:?}");
    ensure!(rest.iter().any(|line| line.contains("interrupted; everything is cleaned up")), "{rest:?}");
    let after = host(&temporary)?;
    ensure!(before == after, "the host changed:\n{before}\n---\n{after}");
    Ok(Outcome::Passed)
}

//! `observer` alone: the answer screen.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use harness::{
    copy_program,
    lab::{FAR_V4, Lab},
    observer::{self, Observer, program},
    traffic, wait_for,
};
use nix::sys::signal::Signal;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("denies_and_what_hangs", denies),
    ("a_host_that_denies_nothing", nothing),
    ("ufw_and_iptables_legacy", front_ends),
    ("help_for_an_ordinary_user", ordinary),
    ("incidents_of_the_store", recorded),
];

fn screen(lab: &Lab) -> Result<String> {
    let output = lab.client.command(program()).stdin(Stdio::null()).output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn denies() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t {
             chain sub { tcp dport 443 counter drop; tcp dport 80 accept; }
             chain lonely { udp dport 99 drop; }
             chain out { type filter hook output priority 0; policy drop; oif lo accept; meta l4proto tcp jump sub; udp dport 53 counter reject; udp dport vmap { 1 : drop }; }
             chain in { type filter hook input priority 0; udp dport 77 drop; } }",
    )?;
    let mut hangs = traffic::command(&lab.client, &["tcp", FAR_V4, "443", "20"])?.spawn()?;
    traffic::until_sent_again(&lab.client, 1)?;
    let text = screen(&lab);
    hangs.kill()?;
    hangs.wait()?;
    let text = text?;
    for wanted in [
        "firewalls  nftables (tables of no known front end: t)",
        "outbound   default deny (inet), 2 rules block",
        "inet t out: policy drop",
        "inet t sub: `tcp dport 443 counter drop` # handle",
        "inet t out: `udp dport 53 counter reject` # handle",
        "×0 so far",
        "1 verdict map may block too",
        &format!("HANGING NOW  python3[{}] → {FAR_V4}:443/tcp since ", hangs.id()),
        "next       observer watch",
    ] {
        ensure!(text.contains(wanted), "`{wanted}` is missing: {text}");
    }
    ensure!(text.contains("×2 so far") || text.contains("×3 so far"), "{text}");
    ensure!(!text.contains("udp dport 77") && !text.contains("udp dport 99"), "not on the way out: {text}");
    Ok(Outcome::Passed)
}

fn nothing() -> Result<Outcome> {
    let lab = Lab::new()?;
    let text = screen(&lab)?;
    for wanted in ["firewalls  no rules in this network namespace", "outbound   default allow, no rule blocks"] {
        ensure!(text.contains(wanted), "`{wanted}` is missing: {text}");
    }
    Ok(Outcome::Passed)
}

fn front_ends() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    lab.client.run("iptables-legacy", &["-A", "OUTPUT", "-p", "udp", "--dport", "99", "-j", "DROP"])?;
    lab.client.run("sh", &["-c", "ufw --force enable && ufw deny out 443/tcp"])?;
    let text = screen(&lab)?;
    for wanted in [
        "ufw (chain ufw-",
        "iptables-legacy (tables filter)",
        "ufw rule 1 `deny out 443/tcp`: drop",
        "ufw rule 2 `deny out 443/tcp`: drop",
        "iptables-legacy rule 1 of OUTPUT `-p udp -m udp --dport 99 -j DROP`: drop",
        "before or after that iptables-legacy",
    ] {
        ensure!(text.contains(wanted), "`{wanted}` is missing: {text}");
    }
    Ok(Outcome::Passed)
}

fn ordinary() -> Result<Outcome> {
    let folder = tempfile::TempDir::new()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    // Where nobody may reach it.
    let copy = folder.path().join("observer");
    copy_program(program(), &copy)?;
    let mut command = Command::new("setpriv");
    let output = command.args(["--reuid", "65534", "--clear-groups"]).arg(&copy).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(3) && text.contains("Usage: observer"), "{}: {text}", output.status);
    ensure!(said.contains("root") && said.contains("sudo"), "{said}");
    Ok(Outcome::Passed)
}

/// What was recorded is shown, of each user in turn, and not what is background.
fn recorded() -> Result<Outcome> {
    const STRANGER: &str = "54321";
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain out { type filter hook output priority 0; udp dport { 53, 5353, 100-200 } drop; } }",
    )?;
    let folder = tempfile::tempdir()?;
    let bound = format!("mkdir -p /var/lib/observer\nmount --bind {} /var/lib/observer", folder.path().display());
    let inside = |command: &str| {
        let mut observer = observer::command_after(&format!(
            "{bound}\nexec nsenter --net={} {} {command}",
            lab.client.path().display(),
            program().display()
        ));
        observer.stdin(Stdio::null());
        observer
    };
    let recorder = Observer::start_command(&mut inside("record -o json --reserve 0 --netns /proc/self/ns/net"))?;
    wait_for("a beginning", || Ok((recorder.told() > 0).then_some(())))?;
    recorder.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "53"]))?;
    recorder.tells(|| traffic::run(&lab.client, &["udp", "224.0.0.251", "5353"]))?;
    for port in 100..105 {
        let words = ["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", "bash", "-c"];
        let send = format!("echo x > /dev/udp/{FAR_V4}/{port}; true");
        recorder.tells(|| lab.client.run("setpriv", &[&words[..], &[&send]].concat()))?;
    }
    let output = inside("").output()?;
    recorder.end(Signal::SIGTERM)?;
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<&str> = text.lines().filter(|row| row.contains(" last ")).collect();
    ensure!(rows.len() == 4 && rows[0].starts_with("recorded "), "{text}");
    ensure!(rows.iter().filter(|row| row.contains("bash[")).count() == 3, "one user has all of it: {text}");
    ensure!(rows.iter().any(|row| row.contains(&format!("→ {FAR_V4}:53/udp  ×1"))), "{text}");
    ensure!(!text.contains(":5353/udp  ×"), "{text}");
    let status = inside("-o json").output()?;
    let first = status.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first: serde_json::Value = serde_json::from_slice(first)?;
    ensure!(first["egress"]["recorded"].as_array().is_some_and(|incidents| incidents.len() == 4), "{first:#}");
    Ok(Outcome::Passed)
}

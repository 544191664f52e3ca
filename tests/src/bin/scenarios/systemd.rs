//! Units of a real systemd: services, sockets, scopes, its own address filter, and observer as a service.
//!
//! They make units, and one of them rules in the first network namespace: only in a virtual machine that ends afterwards.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{FAR_V4, Lab},
    observer::{self, Observer, Report, expect},
    wait_for,
};
use serde_json::json;

use crate::{Outcome, Scenario, without_a_machine};

pub(crate) const ALL: &[Scenario] = &[
    ("a_service", || in_a_machine(service)),
    ("a_scope", || in_a_machine(scope)),
    ("a_service_behind_a_socket_unit", || in_a_machine(socket)),
    ("systemds_own_address_filter", || in_a_machine(address_filter)),
    ("observer_as_a_service", || in_a_machine(as_a_service)),
];

pub(crate) fn in_a_machine(scenario: fn() -> Result<Outcome>) -> Result<Outcome> {
    if let Some(skipped) = without_a_machine() {
        return Ok(skipped);
    }
    if !Path::new("/run/systemd/system").exists() || fs::read_to_string("/proc/1/comm")?.trim() != "systemd" {
        return Ok(Outcome::Skipped("this machine's first program is not systemd".to_owned()));
    }
    scenario()
}

/// A name that no other unit has.
fn unit() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("observer-test-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Waits for a unit's start; for one that is `oneshot`, for its end.
fn systemd_run(args: &[&str]) -> Result<()> {
    let output = Command::new("systemd-run").args(args).stdin(Stdio::null()).output().context("systemd-run")?;
    ensure!(output.status.success(), "systemd-run {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn client() -> Result<String> {
    Ok(std::env::current_exe()?.with_file_name("client").display().to_string())
}

const DROP_DNS: &str = "table inet t { chain c { type filter hook output priority 0; udp dport 53 counter drop; } }";

/// The one event of a unit.
fn one_of(report: &Report, unit: &str, cause: &str) -> Result<()> {
    let events = report.foreground();
    ensure!(events.len() == 1, "{events:?}");
    expect(
        events[0],
        &[
            ("/egress/unit", json!(unit)),
            ("/egress/cgroup", json!(format!("/system.slice/{unit}"))),
            ("/egress/cause", json!(cause)),
            ("/process/name", json!("client")),
        ],
    )
}

fn service() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_DNS)?;
    let observer = Observer::watch(&lab.client)?;
    let (unit, namespace) = (unit(), format!("NetworkNamespacePath={}", lab.client.path().display()));
    systemd_run(&[
        "-p",
        "Type=oneshot",
        "--unit",
        &unit,
        "-p",
        &namespace,
        &client()?,
        "datagrams",
        FAR_V4,
        "53",
        "1",
    ])?;
    let report = observer.stop()?;
    one_of(&report, &format!("{unit}.service"), "netfilter")?;
    let parent = &report.foreground()[0]["egress"]["ancestry"][1];
    ensure!(parent["pid"] == 1 && parent["name"] == "systemd", "{parent}");
    Ok(Outcome::Passed)
}

fn scope() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_DNS)?;
    let observer = Observer::watch(&lab.client)?;
    let unit = unit();
    let mut run = Command::new("systemd-run");
    run.args([
        "--scope",
        "--quiet",
        "--unit",
        &unit,
        "nsenter",
        "--target",
        &lab.client.pid().to_string(),
        "--net",
        "--",
    ]);
    let output = run.args([&client()?, "datagrams", FAR_V4, "53", "1"]).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    one_of(&observer.stop()?, &format!("{unit}.scope"), "netfilter").map(|()| Outcome::Passed)
}

/// systemd makes the socket, and the service that inherits it answers by it: the answer is the service's.
fn socket() -> Result<Outcome> {
    const PORT: u16 = 5353;
    let unit = unit();
    let rules = format!(
        "table inet {} {{ chain c {{ type filter hook output priority 0; udp sport {PORT} counter drop; }} }}\n",
        unit.replace('-', "_")
    );
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), rules.replace("} }", "}\n}"))?;
    let status = Command::new("nft").arg("-f").arg(file.path()).status()?;
    ensure!(status.success(), "nft: {status}");
    let listen = format!("--socket-property=ListenDatagram=127.0.0.1:{PORT}");
    let answered = format!("/run/{unit}.answered");
    systemd_run(&["--unit", &unit, &listen, &client()?, "answer", &answered])?;
    let observer = Observer::start(["watch", "-o", "json", "--netns", "/proc/1/ns/net"])?;
    let asker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    asker.send_to(b"?", (Ipv4Addr::LOCALHOST, PORT))?;
    wait_for("the service's answer", || Ok(Path::new(&answered).exists().then_some(())))?;
    let report = observer.stop()?;
    let _ = Command::new("systemctl").args(["stop", &format!("{unit}.socket")]).status();
    let _ = Command::new("nft").args(["delete", "table", "inet", &unit.replace('-', "_")]).status();
    let events: Vec<_> = report.foreground().into_iter().filter(|event| event["source"]["port"] == PORT).collect();
    ensure!(events.len() == 1, "{:?}", report.events);
    expect(events[0], &[("/egress/unit", json!(format!("{unit}.service"))), ("/process/name", json!("client"))])?;
    Ok(Outcome::Passed)
}

fn address_filter() -> Result<Outcome> {
    if !kernel::names("BPF_CGROUP_EGRESS") {
        return Ok(Outcome::Skipped("this kernel does not name drops by cgroup programs".to_owned()));
    }
    let lab = Lab::new()?;
    let observer = Observer::watch(&lab.client)?;
    let (unit, namespace) = (unit(), format!("NetworkNamespacePath={}", lab.client.path().display()));
    let deny = ["-p", "IPAddressDeny=any"];
    let mut args = vec!["-p", "Type=oneshot", "--unit", &unit, "-p", &namespace, deny[0], deny[1]];
    let client = client()?;
    args.extend([client.as_str(), "datagrams", FAR_V4, "53", "1"]);
    systemd_run(&args)?;
    one_of(&observer.stop()?, &format!("{unit}.service"), "cgroup").map(|()| Outcome::Passed)
}

/// As an administrator would run it by a unit: ready, told to end, and everything it saw is in its file.
fn as_a_service() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_DNS)?;
    let unit = unit();
    let (events, errors) = (format!("/run/{unit}.json"), format!("/run/{unit}.log"));
    let (program, namespace) = (observer::program().display().to_string(), lab.client.path().display().to_string());
    systemd_run(&[
        "--unit",
        &unit,
        "-p",
        &format!("StandardOutput=file:{events}"),
        "-p",
        &format!("StandardError=file:{errors}"),
        &program,
        "watch",
        "-o",
        "json",
        "--netns",
        &namespace,
    ])?;
    wait_for("observer", || {
        Ok(fs::read_to_string(&errors).unwrap_or_default().contains("observer: ready").then_some(()))
    })?;
    lab.client.run(&client()?, &["datagrams", FAR_V4, "53", "3"])?;
    let output = Command::new("systemctl").args(["stop", &unit]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let failed = Command::new("systemctl").args(["is-failed", "--quiet", &unit]).status()?;
    ensure!(!failed.success(), "systemd calls the unit failed");
    let report = Report::parse(&fs::read(&events)?)?;
    ensure!(report.number("/reported") == 3, "{}", report.account);
    Ok(Outcome::Passed)
}

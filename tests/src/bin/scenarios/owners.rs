//! The process that owns the socket, never the one that happened to run.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    copy_program, kernel,
    lab::{CLIENT_V4, FAR_V4, FAR_V6, Lab},
    observer::{Observer, expect},
    traffic,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("blocked_connect_under_load", blocked_connect_under_load),
    ("udp_socket_older_than_observer", || older("udp", FAR_V4)),
    ("udp_socket_older_than_observer_over_ipv6", || older("udp", FAR_V6)),
    ("accepted_connection_answers", accepted),
    ("child_that_inherited_the_socket", inherited),
    ("processes_that_live_for_one_call", brief),
    ("setuid_program", setuid),
    ("another_user", another_user),
    ("two_processes_to_one_destination", two_processes),
    ("calls_made_through_io_uring", uring),
    ("multipath_tcp", multipath),
];

const DROP_443: &str = "table inet t { chain out { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 443 counter drop; } }";

/// Starts a client and reads the first line that it prints.
fn start(lab: &Lab, args: &[&str]) -> Result<(Child, BufReader<std::process::ChildStdout>, String)> {
    let mut child = traffic::command(&lab.client, args)?.spawn().context("cannot start the client")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    Ok((child, lines, first.trim().to_owned()))
}

/// Eight seconds of retransmits, fired by timers while other processes are on both CPUs.
fn blocked_connect_under_load() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let mut load: Vec<Child> = (0..3)
        .map(|_| traffic::command(&lab.client, &["burn", "10"])?.spawn().context("cannot start the load"))
        .collect::<Result<_>>()?;
    let observer = Observer::watch(&lab.client)?;
    let v6 = traffic::command(&lab.client, &["tcp", FAR_V6, "443", "8"])?.spawn()?;
    let v4 = traffic::run(&lab.client, &["tcp", FAR_V4, "443", "8"])?;
    let v6 = traffic::finish(v6)?;
    let report = observer.stop()?;
    for child in &mut load {
        let _ = child.kill();
        let _ = child.wait();
    }
    ensure!(v4.said == "timeout" && v6.said == "timeout", "said {} and {}", v4.said, v6.said);
    let events = report.foreground();
    ensure!(events.len() as u64 == lab.client.counted()?, "{} events, {} counted", events.len(), lab.client.counted()?);
    for (client, address) in [(&v4, FAR_V4), (&v6, FAR_V6)] {
        let to: Vec<_> = events.iter().filter(|event| event["destination"]["ip"] == address).collect();
        // The first, and those after 1, 2, 3, 4 and so on seconds; before Linux 6.5 after 1, 3 and 7.
        let least = if kernel::knows("sysctl_tcp_syn_linear_timeouts") { 5 } else { 4 };
        ensure!(to.len() >= least, "only {} packets to {address} in 8 s", to.len());
        for event in to {
            expect(event, &[("/process/pid", json!(client.pid)), ("/egress/owner", json!("socket"))])?;
        }
    }
    Ok(Outcome::Passed)
}

/// The socket is made, then observer starts, then the socket sends.
fn older(kind: &str, address: &str) -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let folder = TempDir::new()?;
    let go = folder.path().join("go");
    ensure!(kind == "udp");
    let (mut child, _lines, first) = start(&lab, &["old", address, "443", &go.display().to_string()])?;
    ensure!(first == "made", "the client said {first}");
    let observer = Observer::watch(&lab.client)?;
    fs::write(&go, "")?;
    child.wait()?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 1, "{:?}", report.events);
    // Found by a walk over all open files at start where the kernel offers one, else by the call. A list of sockets, which some
    // kernels need for that, has none without a port: there the walk finds the socket only if another observer knew it already.
    let doctor = harness::observer::command().arg("doctor").output()?;
    let by_list = String::from_utf8_lossy(&doctor.stdout).contains("iter+diag");
    let known_by: &[&str] = match kernel::knows("bpf_sock_from_file") {
        true if by_list => &["socket", "syscall"],
        true => &["socket"],
        false => &["syscall"],
    };
    expect(&report.events[0], &[("/process/pid", json!(child.id()))])?;
    let owner = report.events[0]["egress"]["owner"].as_str();
    ensure!(
        owner.is_some_and(|owner| known_by.contains(&owner)),
        "the owner is known by {owner:?}, not by {known_by:?}"
    );
    Ok(Outcome::Passed)
}

/// A connection that came in before observer knew it; its answers are dropped.
fn accepted() -> Result<Outcome> {
    let lab = Lab::new()?;
    let folder = TempDir::new()?;
    let go = folder.path().join("go");
    let observer = Observer::watch(&lab.client)?;
    let (mut child, mut lines, first) = start(&lab, &["accepted", "7000", &go.display().to_string()])?;
    ensure!(first == "listening", "the server said {first}");
    let mut peer = traffic::command(&lab.server, &["tcp", CLIENT_V4, "7000", "5"])?.spawn()?;
    let mut second = String::new();
    lines.read_line(&mut second)?;
    ensure!(second.trim() == "accepted", "the server said {second}");
    lab.client
        .nft("table inet t { chain out { type filter hook output priority 0; tcp sport 7000 counter drop; } }")?;
    fs::write(&go, "")?;
    child.wait()?;
    let _ = peer.wait();
    let report = observer.stop()?;
    let named: Vec<_> = report.events.iter().filter(|event| !event["process"].is_null()).collect();
    ensure!(!named.is_empty(), "nobody was named: {:?}", report.events);
    for (index, event) in named.into_iter().enumerate() {
        expect(event, &[("/process/pid", json!(child.id()))])?;
        // Of what is sent again, and told by its count, the source port is not told.
        if index == 0 {
            expect(event, &[("/source/port", json!(7000))])?;
        }
    }
    Ok(Outcome::Passed)
}

fn inherited() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let observer = Observer::watch(&lab.client)?;
    let (mut parent, _lines, child) = start(&lab, &["inherited", FAR_V4, "443"])?;
    parent.wait()?;
    let report = observer.stop()?;
    let child: u64 = child.parse()?;
    ensure!(report.number("/reported") == 20, "{}", report.account);
    for event in &report.events {
        expect(event, &[("/process/pid", json!(child)), ("/process/parent/pid", json!(parent.id()))])?;
    }
    Ok(Outcome::Passed)
}

/// Gone before anybody can look: pid, name, user and the living parents are still right.
fn brief() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, &["brief", FAR_V4, "443", "200"])?;
    let report = observer.stop()?;
    let pids: Vec<u64> = client.said.lines().map(str::parse).collect::<Result<_, _>>()?;
    let events = report.foreground();
    ensure!(events.len() == pids.len(), "{} processes, {} events", pids.len(), events.len());
    for (event, pid) in events.iter().zip(pids) {
        expect(
            event,
            &[("/process/pid", json!(pid)), ("/process/parent/pid", json!(client.pid)), ("/user/id", json!("0"))],
        )?;
        ensure!(event["process"]["name"].as_str().is_some_and(|name| name.starts_with("python")), "{event}");
    }
    Ok(Outcome::Passed)
}

/// A program that changes its user by its file's bit: the socket's user is that user.
fn setuid() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let folder = TempDir::new()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let program = folder.path().join("curl");
    copy_program(which("curl")?, &program)?;
    std::os::unix::fs::chown(&program, Some(61_001), None)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    let observer = Observer::watch(&lab.client)?;
    let mut child = lab
        .client
        .command("setpriv")
        .args(["--reuid", "61002", "--clear-groups"])
        .arg(&program)
        .args(["-sS", "-m", "0.4", &format!("https://{FAR_V4}/")])
        .stderr(Stdio::null())
        .spawn()?;
    child.wait()?;
    let report = observer.stop()?;
    ensure!(!report.events.is_empty(), "nothing was told");
    for event in &report.events {
        expect(event, &[("/user/id", json!("61001")), ("/process/pid", json!(child.id()))])?;
    }
    Ok(Outcome::Passed)
}

fn another_user() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let observer = Observer::watch(&lab.client)?;
    let mut child = lab
        .client
        .command("setpriv")
        .args(["--reuid", "61002", "--clear-groups", "curl", "-sS", "-m", "0.4", &format!("https://{FAR_V4}/")])
        .stderr(Stdio::null())
        .spawn()?;
    child.wait()?;
    let report = observer.stop()?;
    ensure!(!report.events.is_empty(), "nothing was told");
    for event in &report.events {
        expect(
            event,
            &[("/user/id", json!("61002")), ("/user/effective", Value::Null), ("/process/name", json!("curl"))],
        )?;
    }
    Ok(Outcome::Passed)
}

/// At the same time to the same place: each packet to its own process.
fn two_processes() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let observer = Observer::watch(&lab.client)?;
    let first = traffic::command(&lab.client, &["tcp", FAR_V4, "443", "2.5"])?.spawn()?;
    let second = traffic::command(&lab.client, &["tcp", FAR_V4, "443", "2.5"])?.spawn()?;
    let (first, second) = (traffic::finish(first)?, traffic::finish(second)?);
    let report = observer.stop()?;
    let mut by_port = std::collections::BTreeMap::new();
    for event in report.foreground() {
        let pid = event["process"]["pid"].as_u64().context("nobody was named")?;
        let known = by_port.entry(event["source"]["port"].to_string()).or_insert(pid);
        ensure!(*known == pid, "one connection, two processes");
    }
    let mut pids: Vec<u64> = by_port.into_values().collect();
    pids.sort_unstable();
    let mut wanted = vec![u64::from(first.pid), u64::from(second.pid)];
    wanted.sort_unstable();
    ensure!(pids == wanted, "{pids:?}, expected {wanted:?}");
    Ok(Outcome::Passed)
}

/// The kernel connects by a socket that it makes itself, for the process that asked.
fn multipath() -> Result<Outcome> {
    if fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|value| value.trim() == "1") {
        let lab = Lab::new()?;
        lab.client.nft(DROP_443)?;
        let observer = Observer::watch(&lab.client)?;
        let mut pids = Vec::new();
        for address in [FAR_V4, FAR_V6] {
            pids.push(traffic::run(&lab.client, &["multipath", address, "443", "1.4"])?.pid);
        }
        let report = observer.stop()?;
        let events = report.foreground();
        ensure!(events.len() as u64 == lab.client.counted()? && events.len() >= 4, "{events:?}");
        for event in events {
            let pid = pids[usize::from(event["network"]["type"] == "ipv6")];
            expect(event, &[("/process/pid", json!(pid)), ("/process/name", json!("python3"))])?;
        }
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Skipped("multipath TCP is switched off here".to_owned()))
}

/// The kernel's worker threads make the calls; they are threads of the process.
fn uring() -> Result<Outcome> {
    if fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value.trim() == "2") {
        return Ok(Outcome::Skipped("io_uring is switched off here".to_owned()));
    }
    let lab = Lab::new()?;
    lab.client.nft(DROP_443)?;
    let observer = Observer::watch(&lab.client)?;
    let program = std::env::current_exe()?.with_file_name("client");
    let mut pids = Vec::new();
    for address in [FAR_V4, FAR_V6] {
        let mut command = lab.client.command(&program);
        command.args(["uring", address, "443"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let client = traffic::finish(command.spawn()?)?;
        if client.said.contains("EINVAL") {
            return Ok(Outcome::Skipped("this kernel's io_uring sends no datagrams to an address".to_owned()));
        }
        ensure!(client.said.contains("EPERM"), "the datagram was not denied: {}", client.said);
        pids.push((client.pid, address));
    }
    let report = observer.stop()?;
    let events = report.foreground();
    ensure!(events.len() == 4, "{} events: {events:?}", events.len());
    for (pair, (pid, address)) in events.chunks(2).zip(pids) {
        // Two threads of the kernel: either may be first.
        for transport in ["tcp", "udp"] {
            let event =
                pair.iter().find(|event| event["network"]["transport"] == transport).context("one is missing")?;
            expect(
                event,
                &[
                    ("/process/pid", json!(pid)),
                    ("/process/name", json!("client")),
                    ("/destination/ip", json!(address)),
                ],
            )?;
        }
    }
    Ok(Outcome::Passed)
}

fn which(name: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var("PATH")?;
    path.split(':')
        .map(|folder| std::path::Path::new(folder).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed"))
}

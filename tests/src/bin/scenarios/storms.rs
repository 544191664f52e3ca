//! Floods: what is reported sums up to what the firewall counted, to the packet.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    observer::{self, Observer, Report, expect},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("ten_million_packets_on_one_cpu", || flood(FAR_V4, 10_000_000, 1)),
    ("ten_million_packets_on_two_cpus", || flood(FAR_V6, 5_000_000, 2)),
    ("what_a_timer_sends_beside_a_flood", timers),
    ("fifty_thousand_connects", connects),
    ("ten_thousand_destinations", destinations),
    ("more_destinations_than_there_is_room_for", too_many_destinations),
    ("too_many_flows_that_have_no_route_yet", unrouted),
    ("too_many_destinations_under_a_filter", too_many_under_a_filter),
    ("five_hundred_processes_to_one_destination", processes),
    ("a_reader_that_stands_still", stopped),
    ("stopped_in_a_hurry_it_says_what_has_no_line", hurried),
    ("what_filters_leave_out_in_the_kernel_takes_no_room", filtered),
    ("repeats_have_the_words_of_the_first", words),
];

const RULES: &str = "table inet t { chain c { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 443 counter drop; } }";

/// The client inside a namespace, to its end; returns its process id.
fn client(lab: &Lab, words: &[&str]) -> Result<u32> {
    let program = std::env::current_exe()?.with_file_name("client");
    let mut child = lab.client.command(program).args(words).stdin(Stdio::null()).spawn().context("client")?;
    let pid = child.id();
    ensure!(child.wait()?.success(), "the client failed");
    Ok(pid)
}

/// Everything is reported, and the sum is the firewall's.
fn exact(lab: &Lab, report: &Report, at_least: u64) -> Result<()> {
    let counted = lab.client.counted()?;
    ensure!(counted >= at_least, "only {counted} were dropped");
    let reported = report.number("/reported");
    ensure!(
        report.number("/lost/map") == 0 && report.number("/lost/decode") == 0 && report.number("/lost/queue") == 0,
        "something was lost: {}",
        report.account
    );
    // What the kernel skipped is said, and is no more than that.
    let short = counted.checked_sub(reported).context("more is told than was counted")?;
    ensure!(short <= report.number("/missed_max"), "{counted} counted: {}", report.account);
    Ok(())
}

/// A flood keeps every CPU in the program that looks at drops, and timers send again meanwhile: what interrupts that program is seen too.
fn timers() -> Result<Outcome> {
    const CONNECTIONS: u64 = 600;
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let observer = Observer::watch(&lab.client)?;
    let start = |words: &[&str]| -> Result<Child> {
        let program = std::env::current_exe()?.with_file_name("client");
        lab.client.command(program).args(words).stdin(Stdio::null()).spawn().context("client")
    };
    let threads = thread::available_parallelism()?.get().to_string();
    let mut flood = start(&["flood", FAR_V4, "443", "1000000000", &threads])?;
    let mut waiting = start(&["waits", FAR_V6, "443", &CONNECTIONS.to_string(), "8"])?;
    let is_well = waiting.wait()?.success();
    flood.kill()?;
    flood.wait()?;
    ensure!(is_well, "the client failed");
    let report = observer.stop()?;
    let counted = lab.client.counted()?;
    let (reported, unseen) = (report.number("/reported") + report.number("/lost/map"), report.number("/missed_max"));
    let again: u64 = report
        .events
        .iter()
        .filter(|event| event["destination"]["ip"] == FAR_V6)
        .filter_map(|event| event["egress"]["count"].as_u64())
        .sum();
    ensure!(again > 2 * CONNECTIONS, "{again} packets of {CONNECTIONS} connections were seen");
    // Each of them may have interrupted the program; the few that do so at its first instructions are not seen, and said.
    ensure!(unseen <= again / 10, "{unseen} of {again} were skipped: {}", report.account);
    // A kernel may run no program at all while a process of the host's own is interrupted.
    ensure!(counted - reported <= unseen + again / 50, "{counted} were counted: {}", report.account);
    Ok(Outcome::Passed)
}

fn flood(address: &str, count: u64, threads: u64) -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let observer = Observer::watch(&lab.client)?;
    let pid = client(&lab, &["flood", address, "443", &count.to_string(), &threads.to_string()])?;
    let report = observer.stop()?;
    exact(&lab, &report, count * threads)?;
    ensure!(report.events.len() < 1000, "{} lines", report.events.len());
    let mut bytes = 0;
    for event in &report.events {
        expect(event, &[("/process/pid", json!(pid)), ("/destination/ip", json!(address))])?;
        bytes += event["egress"]["bytes"].as_u64().context("bytes")?;
    }
    let header = if address.contains(':') { 49 } else { 29 };
    ensure!(bytes == report.number("/reported") * header, "{bytes} bytes");
    Ok(Outcome::Passed)
}

/// Each from another port, which is no story of its own.
fn connects() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    lab.client.set("ipv4/ip_local_port_range", "1024 65535")?;
    let observer = Observer::watch(&lab.client)?;
    let pid = client(&lab, &["connects", FAR_V4, "443", "50000"])?;
    let report = observer.stop()?;
    exact(&lab, &report, 50_000)?;
    ensure!(report.events.len() < 1000, "{} lines", report.events.len());
    for event in &report.events {
        expect(event, &[("/process/pid", json!(pid)), ("/destination/port", json!(443))])?;
    }
    Ok(Outcome::Passed)
}

fn destinations() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let observer = Observer::watch(&lab.client)?;
    let pid = client(&lab, &["scan", "198.18.0.1", "443", "10000"])?;
    let report = observer.stop()?;
    exact(&lab, &report, 10_000)?;
    let mut addresses: Vec<_> = report.events.iter().map(|event| event["destination"]["ip"].to_string()).collect();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == 10_000, "{} different destinations are told", addresses.len());
    ensure!(report.events.iter().all(|event| event["process"]["pid"] == pid), "another process is named");
    Ok(Outcome::Passed)
}

/// The rest is counted together, under its process, and said to be.
fn too_many_destinations() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let observer = Observer::watch(&lab.client)?;
    let pid = client(&lab, &["scan", "198.18.0.1", "443", "100000"])?;
    let report = observer.stop()?;
    exact(&lab, &report, 100_000)?;
    let coarse: Vec<_> = report.events.iter().filter(|event| event["egress"]["coarse"] == true).collect();
    ensure!(!coarse.is_empty(), "there was room for everything");
    for event in coarse {
        expect(
            event,
            &[("/process/pid", json!(pid)), ("/destination", json!(null)), ("/network/transport", json!("udp"))],
        )?;
    }
    Ok(Outcome::Passed)
}

/// A container's packets, stopped before it is known whether they go on: what is counted together is lost by name.
fn unrouted() -> Result<Outcome> {
    let lab = Containers::new(Plug::Veth)?;
    lab.host
        .nft("table inet t { chain c { type filter hook prerouting priority -300; udp dport 443 counter drop; } }")?;
    let observer = Observer::watch(&lab.host)?;
    let program = std::env::current_exe()?.with_file_name("client");
    let program = program.to_str().context("path")?;
    lab.containers[0].run(program, &["scan", "198.18.0.1", "443", "40000"])?;
    let report = observer.stop()?;
    let (counted, reported, lost) = (lab.host.counted()?, report.number("/reported"), report.number("/lost/map"));
    ensure!(lost > 0 && reported + lost == counted, "{counted} counted: {}", report.account);
    Ok(Outcome::Passed)
}

/// What was asked for is reported, also where it was counted together.
fn too_many_under_a_filter() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let netns = lab.client.path().display().to_string();
    let arguments = ["watch", "-o", "json", "--netns", &netns, "--port", "443", "--dst", "198.0.0.0/8"];
    let observer = Observer::start(arguments)?;
    client(&lab, &["scan", "198.18.0.1", "443", "60000"])?;
    let report = observer.stop()?;
    ensure!(report.events.iter().any(|event| event["egress"]["coarse"] == true), "there was room for everything");
    ensure!(report.number("/reported") == lab.client.counted()?, "{}", report.account);
    Ok(Outcome::Passed)
}

fn processes() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let observer = Observer::watch(&lab.client)?;
    client(&lab, &["many", "500", FAR_V4, "443"])?;
    let report = observer.stop()?;
    exact(&lab, &report, 500)?;
    let mut words: Vec<_> = report.events.iter().map(|event| event["process"]["args"][4].to_string()).collect();
    words.sort();
    words.dedup();
    ensure!(words.len() == 500, "{} different processes are named", words.len());
    Ok(Outcome::Passed)
}

/// Nobody reads while more flows begin than the ring holds: they are counted all the same.
fn stopped() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let mut command = observer::command();
    command.args(["watch", "--no-fix", "-o", "json", "--netns"]).arg(lab.client.path());
    let observer = Observer::start_command(&mut command)?;
    let process = Pid::from_raw(i32::try_from(observer.child.id())?);
    kill(process, Signal::SIGSTOP)?;
    let pid = client(&lab, &["scan", "198.18.0.1", "443", "12000"])?;
    client(&lab, &["flood", FAR_V4, "443", "100000", "1"])?;
    kill(process, Signal::SIGCONT)?;
    thread::sleep(Duration::from_millis(300));
    let report = observer.stop()?;
    exact(&lab, &report, 112_000)?;
    let scanned: u64 = report
        .events
        .iter()
        .filter(|event| event["process"]["pid"] == pid)
        .filter_map(|event| event["egress"]["count"].as_u64())
        .sum();
    ensure!(scanned == 12_000, "{scanned} packets of the scan are named");
    Ok(Outcome::Passed)
}

/// What it writes is read slowly, and it is told to end twice: what has no line then is in the account, by number.
fn hurried() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = observer::command();
    command.args(["watch", "--no-fix", "--no-replay", "-o", "json", "--netns"]).arg(lab.client.path());
    let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn()?;
    drop(command);
    let mut said = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    while !said.next().context("observer ended")??.starts_with("observer: ready") {}
    client(&lab, &["scan", "198.18.0.1", "443", "12000"])?;
    let process = Pid::from_raw(i32::try_from(child.id())?);
    let slow = AtomicBool::new(true);
    let written = thread::scope(|scope| -> Result<Vec<u8>> {
        let read = scope.spawn(|| -> std::io::Result<Vec<u8>> {
            let (mut bytes, mut part) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                match reader.read(&mut part)? {
                    0 => return Ok(bytes),
                    read => bytes.extend_from_slice(&part[..read]),
                }
                if slow.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        let mut stopped = || -> Result<()> {
            kill(process, Signal::SIGINT)?;
            while !said.next().context("observer ended")??.contains("reporting what was queued") {}
            Ok(kill(process, Signal::SIGINT)?)
        };
        let stopped = stopped();
        slow.store(false, Ordering::Relaxed);
        let status = child.wait()?;
        let bytes = read.join().map_err(|_| anyhow::anyhow!("the reader failed"))??;
        stopped?;
        ensure!(status.success(), "it ended with {status}");
        Ok(bytes)
    })?;
    let report = Report::parse(&written)?;
    let (counted, reported, queued) = (lab.client.counted()?, report.number("/reported"), report.number("/lost/queue"));
    ensure!(queued > 0 && reported + queued == counted, "{counted} counted: {}", report.account);
    let degraded = report.account["degraded"].to_string();
    ensure!(degraded.contains(&format!("{queued} packets were still queued when observer stopped")), "{degraded}");
    Ok(Outcome::Passed)
}

/// More flows than there is room for, by a process outside the tree that is asked for.
fn filtered() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let mut tree = lab.client.command("sleep").arg("60").spawn()?;
    let netns = lab.client.path().display().to_string();
    let pid = tree.id().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns, "--pid", &pid])?;
    ensure!(observer.ready.contains(&format!("only process tree {pid}")), "{}", observer.ready);
    client(&lab, &["scan", "198.18.0.1", "443", "100000"])?;
    let report = observer.stop()?;
    tree.kill()?;
    tree.wait()?;
    ensure!(report.number("/reported") == 0 && report.events.is_empty(), "{}", report.account);
    ensure!(report.number("/filtered") >= 100_000, "{}", report.account);
    // Nothing ran short, as it would if user space had to leave them out.
    ensure!(report.account["degraded"] == json!([]), "{}", report.account);
    Ok(Outcome::Passed)
}

/// What is reported of repeats is what the first said, without what only that had.
fn words() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(RULES)?;
    let observer = Observer::watch(&lab.client)?;
    client(&lab, &["datagrams", FAR_V4, "443", "50"])?;
    let report = observer.stop()?;
    exact(&lab, &report, 50)?;
    let [first, again] = report.events.as_slice() else { anyhow::bail!("{} lines", report.events.len()) };
    expect(first, &[("/egress/count", json!(1)), ("/event/sequence", json!(1))])?;
    expect(
        again,
        &[
            ("/egress/count", json!(49)),
            ("/egress/bytes", json!(49 * 29)),
            ("/event/sequence", json!(2)),
            ("/egress/incident", first["egress"]["incident"].clone()),
            ("/process", first["process"].clone()),
            ("/destination", first["destination"].clone()),
            ("/source/ip", first["source"]["ip"].clone()),
            ("/source/port", json!(null)),
        ],
    )?;
    ensure!(first["source"]["port"].is_u64() && first["event"]["id"] != again["event"]["id"], "{first} {again}");
    Ok(Outcome::Passed)
}

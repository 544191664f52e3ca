//! Everyone gets their name: processes that live some milliseconds, scripts, threads, namespaces, passed sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use harness::{
    copy_program,
    lab::{CLIENT_V4, Containers, FAR_V4, FAR_V6, Lab, Plug},
    observer::{Observer, Report, expect},
    traffic,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("a_thousand_that_live_some_milliseconds", thousand),
    ("ten_thousand_packets_under_load_and_no_wrong_name", mixed),
    ("memory_stays_within_bounds_while_processes_come_and_go", churn),
    ("the_same_number_twice", reused),
    ("script_and_interpreter", script),
    ("long_arguments_are_marked", long_arguments),
    ("a_deep_path_is_marked", deep_path),
    ("pid_and_user_namespaces_are_said", namespaces),
    ("parents_that_are_gone", orphaned),
    ("socket_passed_to_a_stranger", passed),
    ("thread_that_is_not_the_first", threaded),
    ("socket_left_to_a_child", daemon),
    ("the_kernel_itself", kernel),
];

const DROP: &str = "table inet t { chain out { type filter hook output priority 0; udp dport 443 counter drop; tcp dport 443 counter drop; } }";

/// The client that lives for one call lies beside the scenarios.
fn client() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("client"))
}

fn number(event: &Value, pointer: &str) -> u64 {
    event.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// Every one of them has everything: arguments, executable, parents up to the first process, user.
fn thousand() -> Result<Outcome> {
    const COUNT: usize = 1000;
    const USER: &str = "54321";
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    let parent = lab
        .client
        .command("setpriv")
        .args(["--reuid", USER, "--clear-groups"])
        .arg(client()?)
        .args(["many", &COUNT.to_string(), FAR_V4, "443"])
        .spawn()?;
    let pid = parent.id();
    ensure!(parent.wait_with_output()?.status.success(), "the client failed");
    let report = observer.stop()?;
    let mut numbers = BTreeSet::new();
    // Where the kernel may run another process in the middle of a program, it skips runs, and says so.
    let untold = report.account["degraded"].to_string().contains("skipped");
    let mut without = 0;
    for event in &report.events {
        if untold && event["process"]["args"].is_null() {
            without += 1;
            expect(event, &[("/process/name", json!("exe")), ("/process/executable", Value::Null)])?;
            continue;
        }
        let complete = event["process"]["args"][4].as_str().is_some_and(|number| numbers.insert(number.to_owned()));
        ensure!(complete, "arguments are missing, or the same twice, in {event}");
        expect(
            event,
            &[
                ("/process/name", json!("exe")),
                ("/process/args/1", json!("once")),
                ("/process/parent/pid", json!(pid)),
                ("/process/parent/name", json!("client")),
                ("/user/id", json!(USER)),
            ],
        )?;
        let executable = event["process"]["executable"].as_str();
        ensure!(executable == client()?.to_str(), "{executable:?}");
        let ancestry = event["egress"]["ancestry"].as_array().context("no ancestry")?;
        ensure!(ancestry.last().is_some_and(|last| last["pid"] == 1), "parents end early in {event}");
        ensure!(event["process"]["pid"] != pid);
    }
    let (told, missed) = (numbers.len() + without, usize::try_from(report.number("/missed_max"))?);
    ensure!((told..=told + missed).contains(&COUNT), "{told} of {COUNT} were told, {missed} missed at most");
    ensure!(without <= COUNT / 100, "{without} of {COUNT} are without arguments");
    let (counted, reported) = (lab.client.counted()?, report.number("/reported"));
    ensure!(
        (reported..=reported + report.number("/missed_max")).contains(&counted),
        "the firewall counted {counted}: {}",
        report.account
    );
    Ok(Outcome::Passed)
}

/// Every process sends to a port of its own, which its arguments name: an event is right when they agree.
fn mixed() -> Result<Outcome> {
    const COUNT: u64 = 4000;
    let inside = Containers::new(Plug::Bridge)?;
    let ruleset = |hook: &str| {
        format!(
            "table inet t {{ chain c {{ type filter hook {hook} priority 0; meta l4proto {{ tcp, udp }} th dport 10000-19999 counter drop; }} }}"
        )
    };
    let lab = Lab::new()?;
    lab.client.nft(&ruleset("output"))?;
    inside.host.nft(&ruleset("forward"))?;
    let mut load: Vec<_> = (0..2)
        .map(|_| traffic::command(&lab.client, &["burn", "60"])?.spawn().context("load"))
        .collect::<Result<_>>()?;
    let observer = Observer::start(["watch", "--no-fix", "-o", "json"])?;
    let program = client()?;
    let start = |namespace: &harness::namespace::Namespace, count: u64| {
        namespace.command(&program).args(["mixed", &count.to_string(), FAR_V4, FAR_V6]).spawn().context("client")
    };
    let running = [start(&lab.client, COUNT)?, start(&inside.containers[0], COUNT / 10)?];
    for child in running {
        ensure!(child.wait_with_output()?.status.success(), "the client failed");
    }
    for child in &mut load {
        child.kill()?;
        child.wait()?;
    }
    let report = observer.stop()?;
    for (namespace, count) in [(&lab.client, COUNT), (&inside.host, COUNT / 10)] {
        let netns = namespace.inode()?;
        let events: Vec<_> = report.events.iter().filter(|event| number(event, "/egress/netns") == netns).collect();
        let events: Vec<_> = events.iter().filter(|event| event["destination"]["port"].is_u64()).collect();
        let packets = |event: &Value| number(event, "/egress/count");
        let told: u64 = events.iter().map(|event| packets(event)).sum();
        ensure!(told == namespace.counted()?, "{told} told, {} counted", namespace.counted()?);
        let expected = count / 4 * 8 + count - count / 4;
        ensure!(told == expected, "{told} told, {expected} sent: {}", report.account);
        let (mut wrong, mut nameless) = (0, 0);
        for event in &events {
            match event["process"]["args"][3].as_str() {
                None => nameless += packets(event),
                Some(port) if event["destination"]["port"] != port.parse::<u64>()? => wrong += packets(event),
                Some(_) => {}
            }
        }
        ensure!(wrong == 0, "{wrong} of {told} are named wrong");
        // The sender of a forwarded datagram may be gone before it could be looked for often enough: then it has no name.
        let excused = if count == COUNT { 0 } else { expected / 25 };
        ensure!(nameless <= excused, "{nameless} of {told} have no name");
    }
    Ok(Outcome::Passed)
}

/// What ended is forgotten; what comes afterwards is named as before.
fn churn() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    let memory = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", observer.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let before = memory()?;
    lab.client.run(client()?.to_str().context("path")?, &["forks", "4000"])?;
    let one = traffic::run(&lab.client, &["udp", FAR_V4, "443"])?;
    let after = memory()?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 1 && report.events[0]["process"]["pid"] == one.pid, "{:?}", report.events);
    ensure!(after < before + 16 * 1024, "from {before} kB to {after} kB after 4,000 processes");
    ensure!(report.account["degraded"].as_array().is_some_and(Vec::is_empty), "{}", report.account);
    Ok(Outcome::Passed)
}

/// The process id is the same; nothing else is.
fn reused() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    let program = client()?;
    let output = traffic::run(&lab.client, &["reused", program.to_str().context("path")?, FAR_V4, "443"])?;
    let pid: u64 = output.said.parse().with_context(|| format!("the client said {}", output.said))?;
    let report = observer.stop()?;
    let mut words = BTreeMap::new();
    for event in &report.events {
        ensure!(number(event, "/process/pid") == pid, "{event}");
        words.insert(event["process"]["entity_id"].to_string(), event["process"]["args"][4].clone());
    }
    ensure!(words.len() == 2, "one number, {} processes", words.len());
    ensure!(words.values().any(|word| word == "first") && words.values().any(|word| word == "second"), "{words:?}");
    Ok(Outcome::Passed)
}

/// One event after running a command in the client.
fn one(lab: &Lab, run: impl FnOnce() -> Result<()>) -> Result<Value> {
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    run()?;
    let Report { mut events, .. } = observer.stop()?;
    ensure!(events.len() == 1, "{} events: {events:?}", events.len());
    events.pop().context("no event")
}

fn script() -> Result<Outcome> {
    let lab = Lab::new()?;
    let folder = TempDir::new()?;
    let path = folder.path().join("install.sh");
    fs::write(&path, "#!/bin/bash\nprintf x > /dev/udp/203.0.113.10/443\ntrue\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let name = path.to_str().context("path")?;
    let event = one(&lab, || lab.client.run(name, &["--now"]).map(drop))?;
    expect(
        &event,
        &[
            ("/process/name", json!("install.sh")),
            ("/egress/script", json!(name)),
            ("/process/args", json!(["/bin/bash", name, "--now"])),
        ],
    )?;
    ensure!(event["process"]["executable"].as_str().is_some_and(|path| path.ends_with("/bin/bash")), "{event}");
    Ok(Outcome::Passed)
}

fn long_arguments() -> Result<Outcome> {
    let lab = Lab::new()?;
    let long = "x".repeat(6000);
    let event =
        one(&lab, || lab.client.run(client()?.to_str().context("path")?, &["once", FAR_V4, "443", &long]).map(drop))?;
    expect(&event, &[("/egress/truncated", json!(["process.args"])), ("/process/args/1", json!("once"))])?;
    let kept = event["process"]["args"][4].as_str().context("no argument")?;
    ensure!(kept.len() > 3900 && kept.len() < 4095, "{} bytes are kept", kept.len());
    Ok(Outcome::Passed)
}

fn deep_path() -> Result<Outcome> {
    let lab = Lab::new()?;
    let folder = TempDir::new()?;
    let deep = (0..8).fold(folder.path().to_owned(), |path, _| path.join("d".repeat(200)));
    fs::create_dir_all(&deep)?;
    let program = deep.join("client");
    copy_program(client()?, &program)?;
    let event =
        one(&lab, || lab.client.run(program.to_str().context("path")?, &["once", FAR_V4, "443", "x"]).map(drop))?;
    expect(&event, &[("/egress/truncated", json!(["process.executable"]))])?;
    let path = event["process"]["executable"].as_str().context("no executable")?;
    ensure!(path.starts_with("…/") && path.ends_with("d/client"), "{path}");
    Ok(Outcome::Passed)
}

fn namespaces() -> Result<Outcome> {
    let lab = Lab::new()?;
    let program = client()?;
    let event = one(&lab, || {
        let args = ["--user", "--map-root-user", "--pid", "--fork", program.to_str().context("path")?];
        lab.client.run("unshare", &[&args[..], &["once", FAR_V6, "443", "x"]].concat()).map(drop)
    })?;
    expect(
        &event,
        &[("/egress/namespaces/inner_pid", json!(1)), ("/user/id", json!("0")), ("/user/name", json!("root"))],
    )?;
    ensure!(number(&event, "/egress/namespaces/pid") > 0 && number(&event, "/egress/namespaces/user") > 0, "{event}");
    ensure!(number(&event, "/process/pid") > 1, "{event}");
    Ok(Outcome::Passed)
}

/// The parents of a process whose parents had ended before it sent.
fn orphaned() -> Result<Outcome> {
    let lab = Lab::new()?;
    let program = client()?;
    let inner = format!("(sleep 0.3; {} once {FAR_V4} 443 orphan) & exit 0", program.display());
    let wait = 0.8 * f64::from(harness::slowness());
    let event = one(&lab, || {
        lab.client.run("bash", &["-c", &format!("bash -c '{inner}' > /dev/null 2>&1; sleep {wait}; true")]).map(drop)
    })?;
    let names: Vec<&str> = event["egress"]["ancestry"]
        .as_array()
        .context("ancestry")?
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    ensure!(names[..4] == ["client", "bash", "bash", "scenarios"], "{names:?}");
    Ok(Outcome::Passed)
}

fn passed() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    let said = traffic::run(&lab.client, &["passed", FAR_V4, "443"])?.said;
    let (sender, _maker) = said.split_once(' ').context("no pids")?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 1, "{:?}", report.events);
    let sender: u64 = sender.parse()?;
    expect(
        &report.events[0],
        &[("/process/pid", json!(sender)), ("/egress/owner", json!("syscall")), ("/egress/owner_by", json!("send"))],
    )?;
    Ok(Outcome::Passed)
}

fn threaded() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, &["threaded", FAR_V4, "443"])?;
    let thread: u64 = client.said.lines().next().context("no thread")?.parse()?;
    let report = observer.stop()?;
    ensure!(!report.events.is_empty(), "nothing was told");
    for event in &report.events {
        expect(event, &[("/process/pid", json!(client.pid)), ("/process/thread/id", json!(thread))])?;
    }
    Ok(Outcome::Passed)
}

/// The first packet is the parent's; what the kernel sends again after its end is the child's, who alone has the socket.
fn daemon() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    let observer = Observer::watch(&lab.client)?;
    let parent = traffic::run(&lab.client, &["daemon", FAR_V4, "443", "4"])?;
    let child: u64 = parent.said.parse()?;
    // Before Linux 6.5 there are no more than these in four seconds.
    harness::wait_for("retransmits", || Ok((lab.client.counted()? >= 3).then_some(())))?;
    let report = observer.stop()?;
    let mut events = report.events.iter();
    expect(
        events.next().context("no event")?,
        &[("/process/pid", json!(parent.pid)), ("/egress/owner_by", json!("connect"))],
    )?;
    for event in events {
        expect(event, &[("/process/pid", json!(child)), ("/egress/owner_by", json!("holder"))])?;
    }
    Ok(Outcome::Passed)
}

/// The reset that answers a knock on a closed port goes out by a socket of the kernel's.
fn kernel() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; tcp flags rst counter drop; } }")?;
    let observer = Observer::watch(&lab.client)?;
    traffic::run(&lab.server, &["tcp", CLIENT_V4, "9", "0.3"])?;
    let report = observer.stop()?;
    ensure!(!report.events.is_empty(), "nothing was told");
    for event in &report.events {
        expect(
            event,
            &[
                ("/egress/owner", json!("kernel")),
                ("/egress/background", json!("invalid-state")),
                ("/process", Value::Null),
                ("/user", Value::Null),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

//! Every place on the way out where a packet can be stopped.

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{CLIENT_INTERFACE, FAR_V4, FAR_V6, Lab},
    observer::{self, Observer, Report, expect},
    testbed::{self, DenyingCgroup},
    traffic,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Outcome, Scenario, unnamed, without_egress_hook};

pub(crate) const ALL: &[Scenario] = &[
    ("output", || netfilter("type filter hook output priority 0;", "inet", "output")),
    ("output_before_conntrack", || netfilter("type filter hook output priority -300;", "inet", "output")),
    ("postrouting", || netfilter("type filter hook postrouting priority 0;", "inet", "postrouting")),
    ("netdev_egress", netdev_egress),
    ("without_typed_tracepoints", without_typed_tracepoints),
    ("cgroup_egress", cgroup),
    ("tc_egress", tc),
    ("a_full_queue_is_not_a_block", full_queue),
    ("neighbour_discovery_is_background", neighbour_discovery),
];

fn netfilter(hook: &str, family: &str, name: &str) -> Result<Outcome> {
    let lab = Lab::new()?;
    // netdev chains see frames: the protocol must be said.
    let rules = "meta l4proto udp counter drop\nmeta l4proto tcp counter drop";
    lab.client.nft(&format!("table {family} t {{ chain c {{ {hook}\n{rules}\n}} }}"))?;
    let report = all_kinds(&lab, "netfilter", name, "NETFILTER_DROP")?;
    ensure!(
        report.foreground().len() as u64 == lab.client.counted()?,
        "the firewall counted {}",
        lab.client.counted()?
    );
    Ok(Outcome::Passed)
}

fn netdev_egress() -> Result<Outcome> {
    if let Some(skipped) = without_egress_hook() {
        return Ok(skipped);
    }
    netfilter(&format!("type filter hook egress device {CLIENT_INTERFACE} priority 0;"), "netdev", "egress")
}

/// TCP and UDP in both families, each by its own process.
fn all_kinds(lab: &Lab, cause: &str, hook: &str, reason: &str) -> Result<Report> {
    knock_with_everything(lab, Observer::watch(&lab.client)?, cause, hook, reason)
}

/// Every event as it should be, and no other.
fn knock_with_everything(lab: &Lab, observer: Observer, cause: &str, hook: &str, reason: &str) -> Result<Report> {
    let mut clients = Vec::new();
    for address in [FAR_V4, FAR_V6] {
        clients.push((traffic::run(&lab.client, &["tcp", address, "443", "0.3"])?.pid, address, "tcp"));
        clients.push((traffic::run(&lab.client, &["udp", address, "443"])?.pid, address, "udp"));
    }
    let report = observer.stop()?;
    let events = report.foreground();
    ensure!(events.len() == clients.len(), "{} packets, {} events: {events:?}", clients.len(), events.len());
    for (event, (pid, address, transport)) in events.iter().zip(clients) {
        expect(
            event,
            &[
                ("/process/pid", json!(pid)),
                ("/destination/ip", json!(address)),
                ("/destination/port", json!(443)),
                ("/network/transport", json!(transport)),
                ("/egress/cause", json!(cause)),
                ("/egress/hook", json!(hook)),
                ("/egress/drop_reason", kernel::reason(reason)),
            ],
        )?;
    }
    Ok(report)
}

/// As on a kernel that refuses them: raw tracepoints see the same, owners are bound at the socket's creation, and it is
/// said.
fn without_typed_tracepoints() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain c { type filter hook output priority 0; udp dport 443 counter drop; tcp dport 443 counter drop; } }")?;
    let mut command = observer::command();
    command.args(["watch", "-o", "json", "--netns"]).arg(lab.client.path()).env("OBSERVER_AVOID", "tp_btf");
    let observer = Observer::start_command(&mut command)?;
    ensure!(observer.ready.contains("fork, exec, exit, cgroups, connect"), "{}", observer.ready);
    let report = knock_with_everything(&lab, observer, "netfilter", "output", "NETFILTER_DROP")?;
    ensure!(report.foreground().len() as u64 == lab.client.counted()?, "not what the firewall counted");
    ensure!(report.account["degraded"].to_string().contains("connect"), "{}", report.account);
    Ok(Outcome::Passed)
}

fn cgroup() -> Result<Outcome> {
    if let Some(skipped) = unnamed("BPF_CGROUP_EGRESS") {
        return Ok(skipped);
    }
    let Some(root) = testbed::cgroup_root()? else {
        return Ok(Outcome::Skipped("the unified cgroup hierarchy is not mounted".to_owned()));
    };
    let lab = Lab::new()?;
    let name = format!("observer-test-{}.service", std::process::id());
    let group = DenyingCgroup::new(&root, &name)?;
    let observer = Observer::watch(&lab.client)?;
    let enter = format!("echo $$ > {} && exec python3 -IS - \"$@\"", group.processes().display());
    let child = lab
        .client
        .command("sh")
        .args(["-c", &enter, "sh", "udp", FAR_V4, "53"])
        .stdin(traffic::script()?)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .context("cannot start the client")?;
    let client = traffic::finish(child)?;
    let report = observer.stop()?;
    ensure!(client.said == "EPERM", "the client was told {}", client.said);
    ensure!(report.events.len() == 1, "{:?}", report.events);
    expect(
        &report.events[0],
        &[
            ("/egress/cause", json!("cgroup")),
            ("/egress/hook", json!("egress")),
            ("/egress/drop_reason", json!("BPF_CGROUP_EGRESS")),
            ("/process/pid", json!(client.pid)),
            ("/destination/port", json!(53)),
            ("/egress/cgroup", json!(format!("/{name}"))),
            ("/egress/unit", json!(name)),
        ],
    )?;
    Ok(Outcome::Passed)
}

fn tc() -> Result<Outcome> {
    if let Some(skipped) = unnamed("TC_EGRESS") {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let _program = testbed::deny_tc(&lab.client, CLIENT_INTERFACE)?;
    all_kinds(&lab, "tc", "egress", "TC_EGRESS")?;
    Ok(Outcome::Passed)
}

/// More than a slow link takes: lost, by nobody's decision.
fn full_queue() -> Result<Outcome> {
    if let Some(skipped) = unnamed("QDISC_DROP") {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client
        .run("tc", &"qdisc add dev eth0 root tbf rate 8kbit burst 1600 limit 3000".split(' ').collect::<Vec<_>>())?;
    let observer = Observer::watch(&lab.client)?;
    let netns = lab.client.path().display().to_string();
    let screen = Observer::start(["watch", "--netns", &netns])?;
    let client = traffic::run(&lab.client, &["big", FAR_V4, "53", "1000"])?;
    let flood = traffic::command(&lab.client, &["flood", FAR_V4, "53", "200"])?.spawn()?;
    let flooder = flood.id();
    traffic::finish(flood)?;
    // What the kernel says for itself may be dropped meanwhile.
    let dropped = || -> Result<u64> {
        let statistics = lab.client.run("tc", &["-s", "qdisc", "show", "dev", "eth0"])?;
        let number = statistics.split_once("dropped ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
        number.with_context(|| format!("no count in {statistics}"))
    };
    let least = dropped()?;
    let report = observer.stop()?;
    let (_, text, _) = screen.end(Signal::SIGINT)?;
    let most = dropped()?;
    let text = String::from_utf8(text)?;
    ensure!(client.said == "ok", "the client was told {}", client.said);
    ensure!(least > 50, "only {least} were dropped");
    let reported = report.number("/reported");
    ensure!((least..=most).contains(&reported), "the queue counted {least} to {most}: {}", report.account);
    let mut floods = 0;
    for event in &report.events {
        expect(
            event,
            &[
                ("/event/action", json!("egress-dropped")),
                ("/event/outcome", json!("failure")),
                ("/egress/cause", json!("queue")),
            ],
        )?;
        if event["egress"]["owner"] == "kernel" {
            ensure!(event["network"]["transport"] == "ipv6-icmp" && event["process"].is_null(), "{event}");
        } else {
            expect(event, &[("/process/pid", json!(flooder))])?;
            floods += event["egress"]["count"].as_u64().context("count")?;
        }
    }
    ensure!(floods > 50, "only {floods} of the flood: {:?}", report.events);
    let told = text.split_once("full queues lost ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    ensure!(!text.contains("BLOCKED") && told.is_some_and(|told: u64| (least..=most).contains(&told)), "{text}");
    ensure!(text.contains("0 packets blocked, 0 incidents"), "{text}");
    Ok(Outcome::Passed)
}

/// The kernel's own questions to its neighbours: told, as background, and of no process.
fn neighbour_discovery() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; icmpv6 type nd-neighbor-solicit counter drop; } }")?;
    let observer = Observer::watch(&lab.client)?;
    traffic::run(&lab.client, &["udp", "fd00:9::77", "53"])?;
    harness::wait_for("a neighbour solicitation", || Ok((lab.client.counted()? > 0).then_some(())))?;
    let report = observer.stop()?;
    // Once discovery has failed, after three seconds, the packet that waited for it is a block of its own: not background.
    let (background, others): (Vec<_>, Vec<_>) =
        report.events.iter().partition(|event| event["egress"].get("background").is_some());
    ensure!(!background.is_empty(), "{:?}", report.events);
    for event in others {
        expect(event, &[("/destination/ip", json!("fd00:9::77")), ("/egress/packet", json!("solicitation"))])?;
    }
    for event in background {
        expect(
            event,
            &[
                ("/egress/background", json!("discovery")),
                ("/network/transport", json!("ipv6-icmp")),
                ("/process", Value::Null),
                ("/egress/hook", Value::Null),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

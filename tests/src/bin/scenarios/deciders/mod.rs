//! What drops on netfilter's hooks and is no rule that is known: iptables-legacy, BPF programs, queues, connection tracking.

mod modules;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    kernel,
    lab::{CLIENT_V4, FAR_V4, FAR_V6, Lab, Server},
    observer::{Observer, Report, expect},
    traffic, wait_for,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario, without_a_machine};

pub(crate) const ALL: &[Scenario] = &[
    ("iptables_legacy", legacy),
    ("a_bpf_netfilter_program", program),
    ("a_queues_program_that_refuses", refused),
    ("a_queue_that_nobody_listens_to", untaken),
    ("a_connection_that_cannot_be_entered", not_entered),
    ("a_full_table_of_connections", full),
    ("a_chain_whose_rules_are_not_seen", chain),
    ("a_fragment_that_ends_too_far", modules::fragment),
    ("a_masquerade_without_an_address", modules::masquerade),
    ("a_balanced_service_without_a_server", modules::ipvs),
    ("selinux_forbids_to_send", modules::selinux),
];

/// Functions on hooks are reported where nftables leaves it to the hooks' walker to free a packet, or where a BPF netfilter
/// program can be had for the proof.
fn not_told(report: &Report) -> Result<Option<Outcome>> {
    let rules = &report.account["rules"];
    if rules["hooks"] == true {
        return Ok(None);
    }
    // Where nftables frees what it drops itself, and a BPF program cannot be had or its frame does not show it.
    let excused = rules["live"] == true && !(kernel::is_at_least(6, 12) && kernel::knows("nf_hook_run_bpf"));
    ensure!(excused, "hooks' functions are not told: {rules}");
    Ok(Some(Outcome::Skipped("this kernel's functions on hooks are not told".to_owned())))
}

/// Waits until a line says what decided, which comes after the first line on a slow machine; not every kernel says it.
fn await_decider(observer: &Observer) {
    let until = Instant::now() + Duration::from_millis(500) * harness::slowness();
    while !observer.so_far().contains("\"decided_by\"") && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
}

/// The only event of a client that was dropped, and of the right one.
fn only(report: &Report) -> Result<&Value> {
    match report.foreground().as_slice() {
        [event] => Ok(report.explained(event)),
        other => bail!("one event: {other:?}"),
    }
}

/// Table and chain of each of iptables-legacy's drops, in both families.
fn legacy() -> Result<Outcome> {
    let lab = Lab::new()?;
    let cases = [
        ("iptables-legacy", "ip", FAR_V4, "filter", "OUTPUT", "DROP", 9001),
        ("iptables-legacy", "ip", FAR_V4, "filter", "OUTPUT", "REJECT", 9002),
        ("iptables-legacy", "ip", FAR_V4, "mangle", "POSTROUTING", "DROP", 9003),
        ("iptables-legacy", "ip", FAR_V4, "raw", "OUTPUT", "DROP", 9004),
        ("ip6tables-legacy", "ip6", FAR_V6, "filter", "OUTPUT", "DROP", 9005),
    ];
    for (program, _, _, table, chain, target, port) in cases {
        let port = port.to_string();
        let rule = ["-w", "-t", table, "-A", chain, "-p", "udp", "--dport", &port, "-j", target];
        lab.client.run(program, &rule)?;
    }
    // The proof needs nftables, as every host has it that something else than iptables-legacy was ever used on.
    lab.client.nft("table inet t {}")?;
    let observer = Observer::watch(&lab.client)?;
    for (_, _, address, .., port) in cases {
        observer.tells(|| traffic::run(&lab.client, &["udp", address, &port.to_string()]))?;
    }
    let report = observer.stop()?;
    for (_, family, _, table, chain, _, port) in cases {
        let event = report.events.iter().find(|event| event["destination"]["port"] == port);
        let event = report.explained(event.with_context(|| format!("no event to port {port}"))?);
        expect(event, &[("/egress/cause", json!("netfilter")), ("/egress/hook", json!(chain.to_lowercase()))])?;
        if report.account["rules"]["hooks"] == true {
            expect(
                event,
                &[
                    ("/egress/rule/backend", json!("iptables-legacy")),
                    ("/egress/rule/family", json!(family)),
                    ("/egress/rule/table", json!(table)),
                    ("/egress/rule/chain", json!(chain)),
                    ("/egress/rule/handle", Value::Null),
                ],
            )?;
            // Which rule it was, a copy of the tables may tell.
            let is_named = event["egress"]["rule"]["source"] == "replay";
            ensure!(is_named != event["rule"].is_null() && is_named != event["egress"]["verdict"].is_null(), "{event}");
        } else {
            ensure!(event["egress"]["rule"].is_null(), "{event}");
        }
    }
    Ok(not_told(&report)?.unwrap_or(Outcome::Passed))
}

fn program() -> Result<Outcome> {
    if !kernel::knows("nf_hook_run_bpf") {
        return Ok(Outcome::Skipped("this kernel has no BPF netfilter programs".to_owned()));
    }
    let lab = Lab::new()?;
    // In front of the program and behind it, so that its place is not the first.
    lab.client.nft(
        "table inet t { chain a { type filter hook output priority -5; }\nchain b { type filter hook output priority 50; } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, &["refused_by_program", FAR_V4, "9001", "refuse_all"])?;
    ensure!(client.said == "EPERM", "{}", client.said);
    let report = observer.stop()?;
    let event = only(&report)?;
    expect(event, &[("/process/pid", json!(client.pid)), ("/egress/hook", json!("output"))])?;
    if let Some(skipped) = not_told(&report)? {
        expect(event, &[("/egress/cause", json!("netfilter")), ("/egress/decided_by", Value::Null)])?;
        return Ok(skipped);
    }
    expect(
        event,
        &[
            ("/egress/cause", json!("netfilter-bpf")),
            ("/egress/verdict", json!("drop")),
            ("/egress/decided_by/function", json!("nf_hook_run_bpf")),
            ("/egress/rule", Value::Null),
        ],
    )
    .with_context(|| report.account.to_string())?;
    ensure!(event["egress"]["decided_by"]["program"]["id"].as_u64().is_some_and(|id| id > 0), "{event}");
    Ok(Outcome::Passed)
}

/// A rule that gives datagrams to a queue.
fn queueing(lab: &Lab) -> Result<()> {
    lab.client.run("iptables", &["-A", "OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "7"]).map(drop)
}

/// The program that refuses is named, and the sender is who sent. It is started after observer, and so is what it needs of the
/// kernel where that is a module.
fn refused() -> Result<Outcome> {
    let lab = Lab::new()?;
    let observer = Observer::watch(&lab.client)?;
    queueing(&lab)?;
    let program = std::env::current_exe()?.with_file_name("client");
    let mut program = lab.client.command(program);
    let mut program = Server(program.args(["refuse", "7"]).stdout(Stdio::piped()).spawn().context("client")?);
    let mut said = String::new();
    BufReader::new(program.0.stdout.take().context("no output")?).read_line(&mut said)?;
    ensure!(said == "listening\n", "it said {said:?}");
    // A module's functions are looked up once it is there, which takes a moment.
    let mut clients = Vec::new();
    wait_for("a packet that is refused", || {
        let client = traffic::run(&lab.client, &["udp", FAR_V4, "9001"])?;
        ensure!(client.said == "ok", "the caller is not told: {}", client.said);
        clients.push(client.pid);
        Ok((observer.told() > 0).then_some(()))
    })?;
    let report = observer.stop()?;
    let event = report.explained(report.events.first().context("no event")?);
    ensure!(clients.iter().any(|pid| event["process"]["pid"] == *pid), "not one of {clients:?}: {event}");
    expect(
        event,
        &[
            ("/egress/cause", json!("nfqueue")),
            ("/egress/verdict", json!("drop")),
            ("/egress/hook", json!("output")),
            ("/egress/decided_by/process/pid", json!(program.0.id())),
            ("/egress/decided_by/process/name", json!("client")),
            ("/destination/port", json!(9001)),
            ("/egress/rule", Value::Null),
        ],
    )?;
    Ok(Outcome::Passed)
}

fn untaken() -> Result<Outcome> {
    let lab = Lab::new()?;
    queueing(&lab)?;
    let observer = Observer::watch(&lab.client)?;
    let client = observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "9001"]))?;
    let report = observer.stop()?;
    let event = only(&report)?;
    expect(
        event,
        &[
            ("/egress/cause", json!("nfqueue")),
            ("/egress/decided_by", json!({"untaken": true})),
            ("/process/pid", json!(client.pid)),
        ],
    )?;
    ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("none took it")), "{event}");
    Ok(Outcome::Passed)
}

/// Two connections of which a translation makes the same.
fn not_entered() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(&format!(
        "table ip t {{ chain p {{ type nat hook postrouting priority 100; ip protocol tcp snat to {CLIENT_V4}:7777 }} }}"
    ))?;
    lab.client.set("ipv4/tcp_syn_retries", "1")?;
    // Answers would end the first one.
    lab.server.nft("table ip t { chain i { type filter hook input priority 0; tcp dport 9001 drop } }")?;
    let observer = Observer::watch(&lab.client)?;
    traffic::run(&lab.client, &["tcp", FAR_V4, "9001", "0.1"])?;
    let second = observer.tells(|| traffic::run(&lab.client, &["tcp", FAR_V4, "9001", "0.1"]))?;
    await_decider(&observer);
    let report = observer.stop()?;
    let event = report.events.iter().find(|event| event["process"]["pid"] == second.pid);
    let event = report.explained(event.context("no event")?);
    expect(event, &[("/egress/hook", json!("postrouting"))])?;
    if let Some(skipped) = not_told(&report)? {
        expect(event, &[("/egress/cause", json!("netfilter")), ("/egress/decided_by", Value::Null)])?;
        return Ok(skipped);
    }
    expect(event, &[("/egress/cause", json!("conntrack")), ("/egress/verdict", json!("drop"))])
        .with_context(|| report.account["rules"].to_string())?;
    // Not every kernel has its counters in /proc.
    let counted = lab.client.table("stat/nf_conntrack").is_ok();
    let told = event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("insert_failed"));
    ensure!(told == counted, "{event}");
    ensure!(event["egress"]["decided_by"]["connections"]["insert_failed"].is_u64() == counted, "{event}");
    Ok(Outcome::Passed)
}

/// The limit is one for all namespaces: one that other scenarios do not reach.
fn full() -> Result<Outcome> {
    if let Some(skipped) = without_a_machine() {
        return Ok(skipped);
    }
    const FEW: u32 = 200;
    const MORE: u32 = 20;
    const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let lab = Lab::new()?;
    lab.client.nft("table ip t { chain o { type filter hook output priority 0; ct state new accept } }")?;
    let usual = std::fs::read_to_string(LIMIT)?;
    std::fs::write(LIMIT, FEW.to_string())?;
    let fill = || -> Result<_> {
        let scan = |first, count: u32| {
            let program = std::env::current_exe()?.with_file_name("client");
            let words = ["scan", first, "9001", &count.to_string()];
            let mut client = lab.client.command(program).args(words).spawn()?;
            let (pid, status) = (client.id(), client.wait()?);
            ensure!(status.success(), "the client failed: {status}");
            Ok(pid)
        };
        scan("198.51.100.1", FEW)?;
        let observer = Observer::watch(&lab.client)?;
        // For a new connection an old one is given up that was never answered, if one is found at once: not for all of them.
        let client = observer.tells(|| scan("203.0.113.50", MORE))?;
        await_decider(&observer);
        Ok((observer.stop()?, client))
    };
    let told = fill();
    std::fs::write(LIMIT, usual)?;
    let (report, client) = told?;
    // With so many events, not each of them says what decided.
    let mut events = report.events.iter().map(|event| report.explained(event));
    let decided = events.clone().find(|event| !event["egress"]["decided_by"].is_null());
    let event = decided.or_else(|| events.next()).context("no event")?;
    expect(event, &[("/process/pid", json!(client)), ("/egress/hook", json!("output"))])?;
    if let Some(skipped) = not_told(&report)? {
        expect(event, &[("/egress/cause", json!("netfilter")), ("/egress/decided_by", Value::Null)])?;
        return Ok(skipped);
    }
    expect(
        event,
        &[
            ("/egress/cause", json!("conntrack")),
            ("/egress/decided_by/function", json!("ipv4_conntrack_local")),
            ("/egress/decided_by/connections/entries", json!(FEW)),
            ("/egress/decided_by/connections/limit", json!(FEW)),
        ],
    )
    .with_context(|| report.account["rules"].to_string())?;
    ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("table is full")), "{event}");
    Ok(Outcome::Passed)
}

/// Where only the hook's function is seen, its base chain is reported, and of several the right one.
fn chain() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain a { type filter hook output priority -5; udp dport 9001 drop }\n\
         chain b { type filter hook output priority 5; udp dport 9002 reject } }\n\
         table ip6 u { chain c { type filter hook output priority 0; policy drop; meta l4proto ipv6-icmp accept } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let cases = [(FAR_V4, 9001, "inet", "a"), (FAR_V4, 9002, "inet", "b"), (FAR_V6, 9003, "ip6", "c")];
    for (address, port, ..) in cases {
        observer.tells(|| traffic::run(&lab.client, &["udp", address, &port.to_string()]))?;
    }
    let report = observer.stop()?;
    let rules = &report.account["rules"];
    if rules["live"] == true || rules["verdicts"] == true {
        return Ok(Outcome::Skipped("rules are seen".to_owned()));
    }
    if let Some(skipped) = not_told(&report)? {
        return Ok(skipped);
    }
    for (_, port, family, chain) in cases {
        let event = report.events.iter().find(|event| event["destination"]["port"] == port);
        let event = report.explained(event.context("no event")?);
        expect(
            event,
            &[
                ("/egress/rule/chain", json!(chain)),
                ("/egress/rule/family", json!(family)),
                ("/egress/rule/handle", Value::Null),
                ("/egress/rule/text", Value::Null),
                ("/egress/verdict", Value::Null),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

//! The rule, seen live: each shape of rule drops a packet, and the event must name exactly that rule of that chain.

mod shapes;

use std::{
    fmt::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    kernel,
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    namespace::Namespace,
    observer::{self, Observer, Report},
    slowness, traffic, wait_for,
};
use serde_json::{Value, json};

use self::shapes::{
    HOOKS, IPTABLES, Iptables, MATCHES, Nft, OUT, Packet, SETS, Shape, Tcp4, Tcp6, Udp4, Udp6, VERDICTS, WAYS,
};
use crate::{Outcome, Scenario, without_egress_hook};

pub(crate) const ALL: &[Scenario] = &[
    ("matches", || named(&MATCHES)),
    ("sets_and_maps", || named(&SETS)),
    ("ways_through_chains", || named(&WAYS)),
    ("hooks_and_families", || named(&HOOKS)),
    ("rejects_and_policies", || named(&VERDICTS)),
    ("iptables_nft", || named(&IPTABLES)),
    ("three_thousand_rules", long_chain),
    ("forwarded_for_a_container", forwarded),
    ("a_flood_over_several_rules", flood),
    ("a_ruleset_replaced_a_hundred_times", replaced),
    ("a_rule_that_is_gone_is_still_named", gone),
    ("namespaces_with_the_same_handles", twins),
    ("a_text_that_comes_late", late),
    ("a_ruleset_that_takes_long_to_read", long_ruleset),
];

/// Rules are seen live where nftables frees what it drops itself: since Linux 6.7, and where that was taken over. Which
/// kernels are like that is for the program to find out; those that are by their version must be.
fn not_live() -> Result<Option<Outcome>> {
    let output = observer::command().args(["doctor", "-o", "json"]).stdin(Stdio::null()).output()?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let checks = answer["egress"]["checks"].as_array().context("no checks")?;
    let rules = checks.iter().find(|check| check["name"] == "rules").context("no check of rules")?;
    if rules["status"] == "ok" {
        return Ok(None);
    }
    ensure!(!kernel::is_at_least(6, 7), "{rules}");
    Ok(Some(Outcome::Skipped(format!("rules are {}", rules["detail"].as_str().unwrap_or_default()))))
}

/// How rules are told on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Where the packet is freed: each and every one.
    Freed,
    /// Where the verdict is given, which is looked at once something was blocked. A policy gives none: of what it drops the
    /// chain is told.
    Given,
}

/// Port of the packet that was blocked first.
const FIRST: u16 = 9;

/// Learns how rules are told, and has something blocked first where that takes it.
fn primed(observer: &Observer, namespace: &Namespace) -> Result<How> {
    if !observer.ready.contains("second packet") {
        return Ok(How::Freed);
    }
    namespace.nft(&format!("table inet first {{ chain o {{ {OUT}\nudp dport {FIRST} drop\n}} }}"))?;
    wait_for("a rule that is told", || {
        observer.tells(|| send(namespace, Udp4, FIRST))?;
        Ok(observer.so_far().contains("\"handle\":").then_some(()))
    })?;
    namespace.run("nft", &["delete", "table", "inet", "first"])?;
    Ok(How::Given)
}

/// Ends it; what was blocked first is left out.
fn stop(observer: Observer) -> Result<Report> {
    let mut report = observer.stop()?;
    report.events.retain(|event| event["destination"]["port"] != FIRST);
    Ok(report)
}

/// First port that is sent to; every shape has its own.
const FIRST_PORT: u16 = 9100;

/// Under each shape one packet is dropped; its event must name the rule.
fn named(shapes: &[Shape]) -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    // A dropped SYN is not to be sent again under another shape's rules.
    lab.client.set("ipv4/tcp_syn_retries", "1")?;
    let observer = Observer::watch(&lab.client)?;
    let how = primed(&observer, &lab.client)?;
    let mut wanted = Vec::new();
    for (shape, port) in shapes.iter().zip(FIRST_PORT..) {
        lab.client.run("nft", &["flush", "ruleset"])?;
        let hit = match shape.rules {
            Nft(text) if text.contains("netdev") && without_egress_hook().is_some() => continue,
            Nft(text) => {
                lab.client.nft(&text.replace("OUT", OUT).replace("PORT", &port.to_string()))?;
                marked(&lab.client)?
            }
            Iptables(program, lines, chain, at) => {
                for line in lines {
                    let line = line.replace("PORT", &port.to_string());
                    lab.client.run(program, &line.split(' ').collect::<Vec<_>>())?;
                }
                at_position(&lab.client, chain, at)?
            }
        };
        // Told before the next shape's rules replace these.
        observer.tells(|| send(&lab.client, shape.send, port))?;
        // What a ruleset needs is probed once something was blocked under it.
        for _ in 0..AGAIN {
            if how == How::Freed || hit.handle.is_null() || is_named(&observer, port) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1100));
            observer.tells(|| send(&lab.client, shape.send, port))?;
        }
        wanted.push((port, hit, shape.verdict));
    }
    let report = stop(observer)?;
    let mut absent = 0;
    for (port, hit, verdict) in &wanted {
        let event = report
            .events
            .iter()
            .rfind(|event| event["destination"]["port"] == *port)
            .with_context(|| format!("no event to port {port}: {:?}", report.events))?;
        if slowness() > 1 && event["egress"]["rule"].is_null() {
            absent += 1;
            continue;
        }
        check(event, hit, verdict, how).with_context(|| format!("{}", report.account["rules"]))?;
    }
    confirmed(&report)?;
    // An emulated ruleset may take too long to read: what is not confirmed is not told, and counted.
    let unread = report.number("/rules/probe/unread") + report.number("/rules/verdict/unread");
    ensure!(absent <= unread, "{absent} rules are absent: {}", report.account["rules"]);
    Ok(Outcome::Passed)
}

/// Times that a packet is sent again where its rule was not seen.
const AGAIN: usize = 3;

/// Whether the last line about a port has a rule with a handle.
fn is_named(observer: &Observer, port: u16) -> bool {
    let told = observer.so_far();
    // The last line may not be there wholly.
    let mut lines = told.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let last = lines.find(|event| event["destination"]["port"] == port);
    last.is_some_and(|event| event["egress"]["rule"]["handle"].is_u64())
}

/// Sends one packet, which is dropped.
fn send(namespace: &Namespace, send: Packet, port: u16) -> Result<()> {
    let address = match send {
        Udp4 | Tcp4 => FAR_V4,
        Udp6 | Tcp6 => FAR_V6,
    };
    let to = SocketAddr::new(address.parse()?, port);
    namespace.inside(|| {
        match send {
            Udp4 | Udp6 => {
                let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                // Some hooks drop without telling the caller.
                let _ = socket.send_to(b"x", to);
            }
            Tcp4 | Tcp6 => ensure!(TcpStream::connect_timeout(&to, Duration::from_millis(50)).is_err(), "not dropped"),
        }
        Ok(())
    })
}

/// Where a rule is, as an event must tell it.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    family: Value,
    table: Value,
    chain: Value,
    /// Null for a policy.
    handle: Value,
    position: Value,
    /// It has the comment `hit`, at the end of its text.
    marked: bool,
}

fn listed(namespace: &Namespace) -> Result<Vec<Value>> {
    let listing: Value = serde_json::from_str(&namespace.run("nft", &["--json", "list", "ruleset"])?)?;
    Ok(listing["nftables"].as_array().context("nft's listing")?.clone())
}

/// All rules in their order, each with its place.
fn places(namespace: &Namespace) -> Result<Vec<(Value, Place)>> {
    let mut found: Vec<(Value, Place)> = Vec::new();
    for item in listed(namespace)? {
        let rule = &item["rule"];
        if rule.is_null() {
            continue;
        }
        let of = |key: &str| rule[key].clone();
        let before = found
            .iter()
            .filter(|(_, place)| {
                (&place.family, &place.table, &place.chain) == (&of("family"), &of("table"), &of("chain"))
            })
            .count();
        let place = Place {
            family: of("family"),
            table: of("table"),
            chain: of("chain"),
            handle: of("handle"),
            position: json!(before + 1),
            marked: rule["comment"] == "hit",
        };
        found.push((rule.clone(), place));
    }
    Ok(found)
}

/// The rule with the comment `hit`, else the policy of the chain of that name.
fn marked(namespace: &Namespace) -> Result<Place> {
    let rule = places(namespace)?.into_iter().find(|(rule, _)| rule["comment"] == "hit");
    match rule {
        Some((_, place)) => Ok(place),
        None => policy(namespace, "hit"),
    }
}

fn policy(namespace: &Namespace, chain: &str) -> Result<Place> {
    let chains = listed(namespace)?;
    let chain = chains.iter().map(|item| &item["chain"]).find(|item| item["name"] == chain).context("no such chain")?;
    let of = |key: &str| chain[key].clone();
    Ok(Place {
        family: of("family"),
        table: of("table"),
        chain: of("name"),
        handle: Value::Null,
        position: Value::Null,
        marked: false,
    })
}

fn at_position(namespace: &Namespace, chain: &str, at: usize) -> Result<Place> {
    if at == 0 {
        return policy(namespace, chain);
    }
    let place = places(namespace)?.into_iter().find(|(_, place)| place.chain == chain && place.position == at);
    Ok(place.context("no such rule")?.1)
}

fn check(event: &Value, hit: &Place, verdict: &str, how: How) -> Result<()> {
    let rule = &event["egress"]["rule"];
    let of = |key: &str| rule[key].clone();
    let told = Place {
        family: of("family"),
        table: of("table"),
        chain: of("chain"),
        handle: of("handle"),
        position: of("position"),
        marked: hit.marked,
    };
    ensure!(told == *hit, "{told:?} is told, {hit:?} it was: {event}");
    ensure!(rule["source"] == "probe" && rule["backend"] == "nft", "{event}");
    if how == How::Given && hit.handle.is_null() {
        ensure!(event["egress"]["verdict"].is_null() && rule["text"].is_null(), "{event}");
        return Ok(());
    }
    ensure!(event["egress"]["verdict"] == verdict, "not a {verdict}: {event}");
    // An emulated `nft` is not waited for long enough.
    if slowness() == 1 {
        let text = rule["text"].as_str().with_context(|| format!("no text: {event}"))?;
        ensure!(event["rule"]["name"] == text && event["rule"]["id"].is_string(), "{event}");
        ensure!(!hit.marked || text.ends_with("comment \"hit\""), "the text is another rule's: {event}");
        ensure!(rule["ruleset_sha256"].as_str().is_some_and(|hash| hash.len() == 64), "no hash: {event}");
        ensure!(!hit.handle.is_null() || text == "policy drop", "{event}");
    }
    ensure!(
        event["event"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains(&hit.chain.to_string().replace('"', "")))
    );
    Ok(())
}

/// Everything that was named was found in the ruleset.
fn confirmed(report: &Report) -> Result<()> {
    for way in ["probe", "verdict"] {
        let seen = &report.account["rules"][way];
        let number = |name: &str| seen[name].as_u64().unwrap_or(u64::MAX);
        let unread = if slowness() > 1 { number("unread") } else { 0 };
        ensure!(number("answered") == number("confirmed") + unread && number("discarded") == 0, "{way}: {seen}");
    }
    Ok(())
}

/// Position does not matter: nothing is walked through.
fn long_chain() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let rules: Vec<String> = (10_000..13_000).map(|port| format!("udp dport {port} drop")).collect();
    lab.client.nft(&format!("table inet t {{ chain o {{ {OUT}\n{}\n}} }}", rules.join("\n")))?;
    let places = places(&lab.client)?;
    let observer = Observer::watch(&lab.client)?;
    primed(&observer, &lab.client)?;
    let ports = [10_000, 10_001, 11_500, 12_998, 12_999];
    for port in ports {
        send(&lab.client, Udp4, port)?;
    }
    // An emulated ruleset of this length may take too long for the first line: then a second one names the rule.
    wait_for("every rule to be told", || {
        Ok(ports.iter().all(|port| is_named(&observer, *port)).then_some(()))
    })?;
    let report = stop(observer)?;
    for port in ports {
        let mut all = report.events.iter().chain(&report.late);
        let is_told = |event: &&Value| event["destination"]["port"] == port && !event["egress"]["rule"].is_null();
        let event = all.find(is_told).context("no event")?;
        let (_, place) = &places[usize::from(port) - 10_000];
        ensure!(event["egress"]["rule"]["handle"] == place.handle, "{event}, not {place:?}");
        ensure!(event["egress"]["rule"]["position"] == place.position, "{event}, not {place:?}");
    }
    confirmed(&report)?;
    Ok(Outcome::Passed)
}

/// The host's rules, for a packet of another namespace.
fn forwarded() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft(
        "table inet t { chain x { udp dport 443 counter drop comment \"hit\" }\n\
         chain f { type filter hook forward priority 0; policy accept; ct state established accept\njump x } }",
    )?;
    let hit = marked(&lab.host)?;
    let observer = Observer::watch(&lab.host)?;
    let how = primed(&observer, &lab.host)?;
    send(&lab.containers[0], Udp4, 443)?;
    let report = stop(observer)?;
    let [event] = report.events.as_slice() else { bail!("one packet: {:?}", report.events) };
    check(event, &hit, "drop", how)?;
    ensure!(event["egress"]["rule"]["path"] == json!(["f", "x"]), "{event}");
    Ok(Outcome::Passed)
}

/// Many packets over several rules at once: each line's rule is its own, and its counter says how many.
fn flood() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!(
        "table inet t {{ chain x {{ udp dport 9002 counter drop }}\n\
         chain o {{ {OUT}\nudp dport 9001 counter drop\njump x\nudp dport 9003 counter drop\n\
         udp dport 9004 counter reject\nmeta l4proto udp counter drop\n}} }}"
    ))?;
    let observer = Observer::watch(&lab.client)?;
    let how = primed(&observer, &lab.client)?;
    let floods = ["9001", "9002", "9003", "9004", "9005"].map(|port| {
        traffic::command(&lab.client, &["flood", FAR_V4, port, "4000"]).and_then(|mut flood| Ok(flood.spawn()?))
    });
    for flood in floods {
        traffic::finish(flood?)?;
    }
    let report = stop(observer)?;
    let of_port = |port: u64| report.events.iter().filter(move |event| event["destination"]["port"] == port);
    let counters: Vec<(Value, Place)> = places(&lab.client)?;
    for (port, chain, position) in [(9001, "o", 1), (9002, "x", 1), (9003, "o", 3), (9004, "o", 4), (9005, "o", 5)] {
        let (rule, place) =
            counters.iter().find(|(_, place)| place.chain == chain && place.position == position).context("no rule")?;
        let counted = rule["expr"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|expression| expression["counter"]["packets"].as_u64())
            .context("no counter")?;
        for event in of_port(port) {
            let handle = &event["egress"]["rule"]["handle"];
            let unknown = how == How::Given && handle.is_null();
            ensure!(unknown || *handle == place.handle, "{event}, not {place:?}");
        }
        let told: u64 = of_port(port).filter_map(|event| event["egress"]["count"].as_u64()).sum();
        let missed = report.number("/missed_max");
        ensure!(told <= counted && told + missed >= counted, "{told} told of {counted} to port {port}");
    }
    confirmed(&report)?;
    Ok(Outcome::Passed)
}

/// While packets are dropped the ruleset is replaced again and again, each time with other handles and another order: a rule
/// that is told is the one that dropped, or none is.
fn replaced() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let observer = Observer::watch(&lab.client)?;
    let how = primed(&observer, &lab.client)?;
    let ruleset = |turn: usize| {
        let (first, second) = if turn.is_multiple_of(2) { (9001, 9002) } else { (9002, 9001) };
        format!(
            "table inet t\ndelete table inet t\ntable inet t {{ chain o{turn} {{ {OUT}\n\
             udp dport {first} drop comment \"to {first}\"\nudp dport {second} drop comment \"to {second}\"\n}} }}"
        )
    };
    lab.client.nft(&ruleset(0))?;
    let mut floods = Vec::new();
    for port in ["9001", "9002"] {
        floods.push(traffic::command(&lab.client, &["flood", FAR_V4, port, "100000"])?.spawn()?);
    }
    for turn in 1..=100 {
        lab.client.nft(&ruleset(turn))?;
    }
    for mut flood in floods {
        flood.kill()?;
        flood.wait()?;
    }
    let report = stop(observer)?;
    let mut texts = 0;
    for event in &report.events {
        let port = event["destination"]["port"].as_u64().context("no port")?;
        let rule = &event["egress"]["rule"];
        if rule.is_null() || how == How::Given && rule["handle"].is_null() {
            continue;
        }
        // In even turns the rule for the first port is the first one, and the chain's name has the turn.
        let turn: u64 =
            rule["chain"].as_str().and_then(|chain| chain.strip_prefix('o')?.parse().ok()).context("chain")?;
        let first = turn.is_multiple_of(2) == (port == 9001);
        ensure!(rule["position"] == if first { 1 } else { 2 }, "to port {port}: {event}");
        if let Some(text) = rule["text"].as_str() {
            texts += 1;
            ensure!(text.contains(&format!("\"to {port}\"")), "to port {port}: {event}");
        }
    }
    ensure!(texts > 0 || slowness() > 1, "no text in {} lines: {}", report.events.len(), report.account["rules"]);
    Ok(Outcome::Passed)
}

/// Two namespaces whose rules have the same handles, the second often with the first one's inode number: nobody's packet is
/// told under the other's rule.
fn twins() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    // All namespaces are watched: the port is nobody else's.
    let observer = Observer::start(["watch", "-o", "json", "--proto", "udp", "--port", "9777", "--port", "9"])?;
    let mut numbers = Vec::new();
    for turn in 0..4 {
        let lab = Lab::new()?;
        lab.client
            .nft(&format!("table inet t {{ chain o {{ {OUT}\nudp dport 9777 drop comment \"turn {turn}\"\n}} }}"))?;
        if turn == 0 {
            primed(&observer, &lab.client)?;
        }
        observer.tells(|| send(&lab.client, Udp4, 9777))?;
        numbers.push(lab.client.inode()?);
    }
    let report = stop(observer)?;
    ensure!(report.events.len() == 4, "{:?}", report.events);
    for (turn, (event, number)) in report.events.iter().zip(numbers).enumerate() {
        ensure!(event["egress"]["netns"] == number, "{event}");
        ensure!(event["egress"]["rule"]["handle"].is_u64(), "{event}");
        if slowness() == 1 {
            let text = event["egress"]["rule"]["text"].as_str().with_context(|| format!("no text: {event}"))?;
            ensure!(text.ends_with(&format!("\"turn {turn}\"")), "{event}");
        }
    }
    Ok(Outcome::Passed)
}

/// Known once, it is known for what comes later of it.
fn gone() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!("table inet t {{ chain o {{ {OUT}\nudp dport 9001 drop comment \"hit\"\n}} }}"))?;
    let hit = marked(&lab.client)?;
    let observer = Observer::watch(&lab.client)?;
    let how = primed(&observer, &lab.client)?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    traffic::run(&lab.client, &["flood", FAR_V4, "9001", "50"])?;
    lab.client.run("nft", &["flush", "ruleset"])?;
    let report = stop(observer)?;
    ensure!(!report.events.is_empty(), "nothing was told");
    for event in &report.events {
        check(event, &hit, "drop", how).with_context(|| format!("{}", report.account["rules"]))?;
    }
    let told: u64 = report.events.iter().filter_map(|event| event["egress"]["count"].as_u64()).sum();
    ensure!(told == 51, "{told} of 51 packets");
    Ok(Outcome::Passed)
}

/// Where `nft` takes its time, place and handle are told at once, and the text in a line of its own: of the same incident.
fn late() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!("table inet t {{ chain o {{ {OUT}\nudp dport 9001 drop comment \"hit\"\n}} }}"))?;
    let hit = marked(&lab.client)?;
    // The same `nft`, half a second later.
    let slow = tempfile::tempdir()?;
    let path = std::env::var("PATH").context("no PATH")?;
    let script = slow.path().join("nft");
    std::fs::write(&script, format!("#!/bin/sh\nsleep 0.5\nPATH='{path}' exec nft \"$@\"\n"))?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    let netns = lab.client.path();
    let mut command = observer::command();
    command.args(["watch", "-o", "json", "--netns"]).arg(netns);
    let observer = Observer::start_command(command.env("PATH", format!("{}:{path}", slow.path().display())))?;
    let how = primed(&observer, &lab.client)?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    wait_for("the text", || Ok(observer.so_far().contains("comment \\\"hit").then_some(())))?;
    let report = stop(observer)?;
    let [event] = report.events.as_slice() else { bail!("one packet: {:?}", report.events) };
    let late = report.late.iter().find(|late| late["destination"]["port"] == 9001);
    let late = late.with_context(|| format!("no late line: {report:?}"))?;
    ensure!(event["egress"]["rule"]["handle"] == hit.handle && event["egress"]["rule"]["text"].is_null(), "{event}");
    ensure!(event["egress"]["incident"] == late["egress"]["incident"], "{late}");
    ensure!(late["egress"]["count"] == 0 && late["egress"]["bytes"] == 0, "{late}");
    ensure!(late["process"]["pid"] == event["process"]["pid"], "{late}");
    check(late, &hit, "drop", how)?;
    Ok(Outcome::Passed)
}

/// What is blocked is told without waiting for it, and its rule in a line of its own: of the same incident, under which what
/// comes later is told too.
fn long_ruleset() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    if slowness() > 1 {
        return Ok(Outcome::Skipped("an emulated machine takes minutes to load it".to_owned()));
    }
    let lab = Lab::new()?;
    let mut rules = String::new();
    for number in 0..100_000 {
        writeln!(rules, "ip daddr 10.{}.{}.{} drop", number >> 16, number >> 8 & 255, number & 255)?;
    }
    lab.client.nft(&format!(
        "table inet t {{ chain o {{ {OUT}\n{rules}jump last\n}}\nchain last {{ udp dport 9001 drop comment \"hit\"\n}} }}"
    ))?;
    let listed: Value = serde_json::from_str(&lab.client.run("nft", &["--json", "list", "chain", "inet", "t", "last"])?)?;
    let handle = &listed["nftables"][2]["rule"]["handle"];
    let observer = Observer::watch(&lab.client)?;
    let how = primed(&observer, &lab.client)?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    wait_for("the rule", || Ok(is_named(&observer, 9001).then_some(())))?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    let report = stop(observer)?;
    let [first, second] = report.events.as_slice() else { bail!("two packets: {:?}", report.events) };
    ensure!(how == How::Given || first["egress"]["rule"].is_null(), "it took long to read: {first}");
    let named = report.late.iter().find(|late| !late["egress"]["rule"]["handle"].is_null()).context("no late line")?;
    for line in [named, second] {
        ensure!(line["egress"]["rule"]["handle"] == *handle && line["egress"]["rule"]["chain"] == "last", "{line}");
        ensure!(line["egress"]["incident"] == first["egress"]["incident"], "{line}");
    }
    ensure!(named["egress"]["count"] == 0 && named["egress"]["verdict"] == "drop", "{named}");
    Ok(Outcome::Passed)
}

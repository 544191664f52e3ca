//! Rules while time goes by: many packets, rulesets that are replaced, gone, or take long.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    observer::{self, Observer},
    slowness, traffic, wait_for,
};
use serde_json::{Value, json};

use super::{
    Asked, How, Place, check, confirmed, impossible, is_told, marked, not_live, places, primed, send,
    shapes::{OUT, Udp4},
    stop, watch,
};
use crate::Outcome;

/// Many packets over several rules at once: each line's rule is its own, and its counter says how many.
pub(super) fn flood(asked: Asked) -> Result<Outcome> {
    if let Some(skipped) = impossible(asked)? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!(
        "table inet t {{ chain x {{ udp dport 9002 counter drop }}\n\
         chain o {{ {OUT}\nudp dport 9001 counter drop\njump x\nudp dport 9003 counter drop\n\
         udp dport 9004 counter reject\nmeta l4proto udp counter drop\n}} }}"
    ))?;
    let (observer, how) = watch(&lab.client, asked)?;
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
            // Not seen, or not read in time on a busy machine: then a later line has it.
            let told_later = || {
                let mut later = of_port(port).chain([report.explained(event)]);
                later.any(|other| other["egress"]["rule"]["handle"] == place.handle)
            };
            let unknown = handle.is_null() && (how == How::Given || slowness() > 1 || told_later());
            ensure!(unknown || *handle == place.handle, "{event}, not {place:?}");
        }
        let told: u64 = of_port(port).filter_map(|event| event["egress"]["count"].as_u64()).sum();
        let missed = report.number("/missed_max");
        ensure!(told <= counted && told + missed >= counted, "{told} told of {counted} to port {port}");
    }
    confirmed(&report, how)?;
    Ok(Outcome::Passed)
}

/// While packets are dropped the ruleset is replaced again and again, each time with other handles and another order: a rule
/// that is reported is the one that dropped, or none is.
pub(super) fn replaced(asked: Asked) -> Result<Outcome> {
    if let Some(skipped) = impossible(asked)? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let (observer, how) = watch(&lab.client, asked)?;
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
        floods.push(traffic::command(&lab.client, &["flood", FAR_V4, port, "10000000"])?.spawn()?);
    }
    for turn in 1..=100 {
        lab.client.nft(&ruleset(turn))?;
    }
    // Some rulesets are gone before `nft` has listed them; the last one stays, and packets still meet it.
    if slowness() == 1 {
        wait_for("a rule's text", || Ok(observer.so_far().contains(r#""text":"udp dport"#).then_some(())))?;
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
    let disagreed = &report.account["rules"]["compared"]["disagreed"];
    ensure!(*disagreed == if how == How::Both { json!(0) } else { Value::Null }, "{}", report.account["rules"]);
    Ok(Outcome::Passed)
}

/// Two namespaces whose rules have the same handles, the second often with the first one's inode number: nobody's packet is
/// told under the other's rule.
pub(super) fn twins() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    // All namespaces are watched: the port is nobody else's.
    let observer =
        Observer::start(["watch", "--no-fix", "-o", "json", "--proto", "udp", "--port", "9777", "--port", "9"])?;
    let mut numbers = Vec::new();
    for turn in 0..4 {
        let lab = Lab::new()?;
        lab.client
            .nft(&format!("table inet t {{ chain o {{ {OUT}\nudp dport 9777 drop comment \"turn {turn}\"\n}} }}"))?;
        if turn == 0 {
            primed(&observer, &lab.client, Asked::AsUsual)?;
        }
        // An earlier turn's namespace may have had the same number.
        let before = observer.so_far().lines().count();
        observer.tells(|| send(&lab.client, Udp4, 9777))?;
        let number = lab.client.inode()?;
        // At once, or in a line of its own.
        wait_for("the rule", || {
            let is_named = |line: &str| line.contains(&format!("\"netns\":{number},")) && line.contains("\"handle\":");
            Ok(observer.so_far().lines().skip(before).any(is_named).then_some(()))
        })?;
        numbers.push(number);
    }
    let report = stop(observer)?;
    ensure!(report.events.len() == 4, "{:?}", report.events);
    for (turn, (event, number)) in report.events.iter().zip(numbers).enumerate() {
        ensure!(event["egress"]["netns"] == number, "{event}");
        // Namespaces' numbers are used again: what comes before the next turn's event is this turn's.
        let sequence = |event: &Value| event["event"]["sequence"].as_u64().unwrap_or(u64::MAX);
        let next = report.events.get(turn + 1).map_or(u64::MAX, sequence);
        // Another scenario's rule may have been told late, too.
        let of_turn =
            |late: &&Value| late["destination"]["port"] == 9777 && (sequence(event)..next).contains(&sequence(late));
        let lines = report.late.iter().filter(of_turn).chain([event]);
        let named: Vec<&Value> = lines.filter(|line| line["egress"]["rule"]["handle"].is_u64()).collect();
        ensure!(!named.is_empty(), "{event}");
        let mut texts = named.iter().filter_map(|line| line["egress"]["rule"]["text"].as_str()).peekable();
        ensure!(texts.peek().is_some() || slowness() > 1, "no text: {named:?}");
        ensure!(texts.all(|text| text.ends_with(&format!("\"turn {turn}\""))), "{named:?}");
    }
    Ok(Outcome::Passed)
}

/// Known once, it is known for what comes later of it.
pub(super) fn gone() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!("table inet t {{ chain o {{ {OUT}\nudp dport 9001 drop comment \"hit\"\n}} }}"))?;
    let hit = marked(&lab.client)?;
    let (observer, how) = watch(&lab.client, Asked::AsUsual)?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    traffic::run(&lab.client, &["flood", FAR_V4, "9001", "50"])?;
    lab.client.run("nft", &["flush", "ruleset"])?;
    let report = stop(observer)?;
    ensure!(!report.events.is_empty(), "nothing was told");
    for event in &report.events {
        if slowness() > 1 && event["egress"]["rule"].is_null() {
            continue;
        }
        // On a busy machine the rule is not read in time for the first line: a later one has it.
        let event = report.explained(event);
        check(event, &hit, "drop", how).with_context(|| format!("{}", report.account["rules"]))?;
    }
    let told: u64 = report.events.iter().filter_map(|event| event["egress"]["count"].as_u64()).sum();
    ensure!(told == 51, "{told} of 51 packets");
    Ok(Outcome::Passed)
}

/// Where `nft` takes its time, place and handle are reported at once, and the text in a line of its own: of the same incident.
pub(super) fn late() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!("table inet t {{ chain o {{ {OUT}\nudp dport 9001 drop comment \"hit\"\n}} }}"))?;
    let hit = marked(&lab.client)?;
    // The same `nft`, half a second later: on this machine.
    let slow = format!(
        "mount -t tmpfs -o mode=755 none /usr/local/sbin
         cp /usr/sbin/nft /usr/local/sbin/
         printf '#!/bin/sh\\nsleep {}\\nexec /usr/local/sbin/nft \"$@\"\\n' > /usr/local/sbin/slow
         chmod 755 /usr/local/sbin/slow
         mount --bind /usr/local/sbin/slow /usr/sbin/nft",
        0.5 * f64::from(slowness())
    );
    let netns = lab.client.path();
    let mut command = observer::command_after(&slow);
    // However slow this machine is.
    command.args(["watch", "--no-fix", "-o", "json", "--netns"]).arg(netns).env("OBSERVER_PATIENCE", "1");
    let observer = Observer::start_command(&mut command)?;
    let how = primed(&observer, &lab.client, Asked::AsUsual)?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    wait_for("the text", || Ok(observer.so_far().contains("comment \\\"hit").then_some(())))?;
    let report = stop(observer)?;
    let [event] = report.events.as_slice() else { bail!("one packet: {:?}", report.events) };
    let late = report.late.iter().find(|late| late["destination"]["port"] == 9001);
    let late = late.with_context(|| format!("no late line: {report:?}"))?;
    let rule = &event["egress"]["rule"];
    // An emulated ruleset takes longer to read, too.
    ensure!(rule["handle"] == hit.handle || slowness() > 1 && rule.is_null(), "{event}");
    ensure!(rule["text"].is_null(), "{event}");
    ensure!(event["egress"]["incident"] == late["egress"]["incident"], "{late}");
    ensure!(late["egress"]["count"] == 0 && late["egress"]["bytes"] == 0, "{late}");
    ensure!(late["process"]["pid"] == event["process"]["pid"], "{late}");
    check(late, &hit, "drop", how)?;
    Ok(Outcome::Passed)
}

/// What is blocked is reported without waiting for it, and its rule in a line of its own: of the same incident, under which what
/// comes later is told too.
pub(super) fn long_ruleset() -> Result<Outcome> {
    if let Some(skipped) = not_live()? {
        return Ok(skipped);
    }
    if slowness() > 1 {
        return Ok(Outcome::Skipped("an emulated machine takes minutes to load it".to_owned()));
    }
    let lab = Lab::new()?;
    let mut rules = String::new();
    for number in 0..50_000 {
        writeln!(rules, "ip daddr 10.{}.{}.{} drop", number >> 16, number >> 8 & 255, number & 255)?;
    }
    lab.client.nft(&format!(
        "table inet t {{ chain o {{ {OUT}\n{rules}jump last\n}}\nchain last {{ udp dport 9001 drop comment \"hit\"\n}} }}"
    ))?;
    let listed: Value =
        serde_json::from_str(&lab.client.run("nft", &["--json", "list", "chain", "inet", "t", "last"])?)?;
    let handle = &listed["nftables"][2]["rule"]["handle"];
    let (observer, how) = watch(&lab.client, Asked::AsUsual)?;
    observer.tells(|| send(&lab.client, Udp4, 9001))?;
    wait_for("the rule", || Ok(is_told(&observer, 9001, how).then_some(())))?;
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

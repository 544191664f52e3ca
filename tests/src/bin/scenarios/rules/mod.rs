//! The rule, seen live: each shape of rule drops a packet, and the event must name exactly that rule of that chain.

mod over_time;
pub(crate) mod shapes;

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    namespace::Namespace,
    observer::{self, Observer, Report},
    sample, slowness, wait_for,
};
use serde_json::{Value, json};

use self::shapes::{
    HOOKS, IPTABLES, Iptables, MATCHES, Nft, OUT, Packet, SETS, Shape, Tcp4, Tcp6, Udp4, Udp6, VERDICTS, WAYS,
};
use crate::{Outcome, Scenario, without_egress_hook};

pub(crate) const ALL: &[Scenario] = &[
    ("matches", || named(&MATCHES, Asked::AsUsual)),
    ("sets_and_maps", || named(&SETS, Asked::AsUsual)),
    ("ways_through_chains", || named(&WAYS, Asked::AsUsual)),
    ("hooks_and_families", || named(&HOOKS, Asked::AsUsual)),
    ("rejects_and_policies", || named(&VERDICTS, Asked::AsUsual)),
    ("iptables_nft", || named(&IPTABLES, Asked::AsUsual)),
    ("two_ways_of_telling_agree", || {
        named(&[&MATCHES[..], &SETS, &WAYS, &HOOKS, &VERDICTS, &IPTABLES].concat(), Asked::Both)
    }),
    ("three_thousand_rules", long_chain),
    ("forwarded_for_a_container", forwarded),
    ("a_flood_over_several_rules", || over_time::flood(Asked::AsUsual)),
    ("two_ways_agree_in_a_flood", || over_time::flood(Asked::Both)),
    ("a_ruleset_replaced_a_hundred_times", || over_time::replaced(Asked::AsUsual)),
    ("two_ways_agree_while_it_is_replaced", || over_time::replaced(Asked::Both)),
    ("a_rule_that_is_gone_is_still_named", over_time::gone),
    ("namespaces_with_the_same_handles", over_time::twins),
    ("a_text_that_comes_late", over_time::late),
    ("a_ruleset_that_takes_long_to_read", over_time::long_ruleset),
];

/// Rules are seen live where nftables frees what it drops itself: since Linux 6.7, and where that was taken over. Which
/// kernels are like that is for the program to find out; those that are by their version must be.
fn not_live() -> Result<Option<Outcome>> {
    let rules = doctors_word()?;
    if rules["status"] == "ok" {
        return Ok(None);
    }
    ensure!(!kernel::is_at_least(6, 7), "{rules}");
    Ok(Some(Outcome::Skipped(format!("rules are {}", rules["detail"].as_str().unwrap_or_default()))))
}

/// What `doctor` says of seeing rules live.
fn doctors_word() -> Result<Value> {
    let output = observer::command().args(["doctor", "-o", "json"]).stdin(Stdio::null()).output()?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let checks = answer["egress"]["checks"].as_array().context("no checks")?;
    checks.iter().find(|check| check["name"] == "rules").cloned().context("no check of rules")
}

/// How rules are to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// As this kernel allows.
    AsUsual,
    /// In both ways, and compared.
    Both,
}

/// How rules are reported on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Where the packet is freed: each and every one.
    Freed,
    /// Where the verdict is given, which is looked at once something was blocked. A policy gives none: of what it drops the
    /// chain is reported.
    Given,
    /// Where the packet is freed, and once something was blocked also where the verdict is given.
    Both,
}

/// Port of the packet that was blocked first.
const FIRST: u16 = 9;

/// Why it cannot be reported so here.
fn impossible(asked: Asked) -> Result<Option<Outcome>> {
    if asked == Asked::AsUsual {
        return not_live();
    }
    if !Path::new("/sys/bus/event_source/devices/kprobe/type").exists() {
        return Ok(Some(Outcome::Skipped(
            "this kernel has no kprobes, by which they would be told a second time".to_owned(),
        )));
    }
    let rules = doctors_word()?;
    if rules["detail"].as_str().is_some_and(|detail| detail.contains("second packet")) {
        return Ok(Some(Outcome::Skipped("this kernel tells them in one way only".to_owned())));
    }
    not_live()
}

/// An observer of a namespace. Where it takes that, something has been blocked there.
fn watch(namespace: &Namespace, asked: Asked) -> Result<(Observer, How)> {
    let mut command = observer::command();
    if asked == Asked::Both {
        command.env("OBSERVER_COMPARE", "verdicts");
    }
    let observer =
        Observer::start_command(command.args(["watch", "--no-fix", "-o", "json", "--netns"]).arg(namespace.path()))?;
    let how = primed(&observer, namespace, asked)?;
    Ok((observer, how))
}

/// Learns how rules are reported, and has something blocked first where that takes it.
fn primed(observer: &Observer, namespace: &Namespace, asked: Asked) -> Result<How> {
    let how = match (observer.ready.contains("second packet"), asked) {
        (true, _) => How::Given,
        (false, Asked::AsUsual) => return Ok(How::Freed),
        (false, Asked::Both) => How::Both,
    };
    namespace.nft(&format!("table inet first {{ chain o {{ {OUT}\nudp dport {FIRST} drop\n}} }}"))?;
    wait_for("a rule that is told", || {
        observer.tells(|| send(namespace, Udp4, FIRST))?;
        Ok(is_told(observer, FIRST, how).then_some(()))
    })?;
    namespace.run("nft", &["delete", "table", "inet", "first"])?;
    Ok(how)
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
fn named(shapes: &[Shape], asked: Asked) -> Result<Outcome> {
    if let Some(skipped) = impossible(asked)? {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    // A dropped SYN is not to be sent again under another shape's rules.
    lab.client.set("ipv4/tcp_syn_retries", "1")?;
    let (observer, how) = watch(&lab.client, asked)?;
    let mut wanted = Vec::new();
    for (shape, port) in shapes.iter().step_by(sample()).zip(FIRST_PORT..) {
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
        // In a line of its own, where the ruleset took long to read.
        wait_for("the rule", || {
            Ok(last(&observer, port).is_some_and(|event| !event["egress"]["rule"].is_null()).then_some(()))
        })
        .with_context(|| format!("{hit:?}: {:?}", last(&observer, port)))?;
        // What a ruleset needs is probed once something was blocked under it.
        for _ in 0..AGAIN {
            if how == How::Freed || hit.handle.is_null() || is_told(&observer, port, how) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1100));
            observer.tells(|| send(&lab.client, shape.send, port))?;
        }
        // The same packet through a copy of the rules: made anew for each shape.
        let opinion = match asked {
            // Of an emulated machine's time a sample is enough.
            Asked::AsUsual if slowness() == 1 || port % 16 == 0 => {
                Some(opinion(&observer, &lab.client, shape.send, port)?)
            }
            _ => None,
        };
        wanted.push((port, hit, shape, opinion));
    }
    let report = stop(observer)?;
    for (port, hit, shape, opinion) in &wanted {
        let event = of_port(&report, *port)?;
        check(event, hit, shape.verdict, how).with_context(|| format!("{}", report.account["rules"]))?;
        if let Some(event) = opinion {
            check(event, hit, shape.verdict, how)?;
            let rule = &event["egress"]["rule"];
            ensure!(rule["path"].as_array().is_some_and(|path| path.last() == Some(&hit.chain)), "{event}");
        }
    }
    ensure!(report.number("/rules/replay/disagreed") == 0, "{}", report.account["rules"]);
    confirmed(&report, how)?;
    Ok(Outcome::Passed)
}

/// A line of a port that the copy confirms, or names; sent anew until there is one.
fn opinion(observer: &Observer, client: &Namespace, packet: Packet, port: u16) -> Result<Value> {
    let is_told = |event: &Value| {
        let rule = &event["egress"]["rule"];
        event["destination"]["port"] == port && (rule["confirmed_by"] == "replay" || rule["source"] == "replay")
    };
    observer.tells_until("the copy's opinion", || send(client, packet, port), is_told)
}

/// Times that a packet is sent again where its rule was not seen.
const AGAIN: usize = 3;

/// The last event of a port, or the line that names its rule later.
fn of_port(report: &Report, port: u16) -> Result<&Value> {
    let of_port = |event: &&Value| event["destination"]["port"] == port;
    let event = report.events.iter().rfind(of_port).with_context(|| format!("no event to port {port}"))?;
    let rule = &event["egress"]["rule"];
    // Of an emulated machine the text is not asked for.
    let is_late = rule.is_null() || rule["text"].is_null() && slowness() == 1;
    let late = report.late.iter().filter(|_| is_late).rfind(of_port);
    Ok(late.unwrap_or(event))
}

/// The last line about a port so far.
fn last(observer: &Observer, port: u16) -> Option<Value> {
    let told = observer.so_far();
    // The last line may not be there wholly.
    let mut lines = told.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|event| event["destination"]["port"] == port)
}

/// Whether the last line about a port has a rule with a handle, told in as many ways as there are.
fn is_told(observer: &Observer, port: u16, how: How) -> bool {
    last(observer, port).is_some_and(|event| {
        let rule = &event["egress"]["rule"];
        rule["handle"].is_u64() && (how != How::Both || rule["confirmed_by"] == "verdict")
    })
}

/// Sends one packet, which is dropped.
pub(crate) fn send(namespace: &Namespace, send: Packet, port: u16) -> Result<()> {
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
    ensure!(rule["backend"] == "nft", "{event}");
    // Of what no rule was seen, a copy of the rules may tell it.
    let by_copy = how == How::Given && rule["source"] == "replay";
    ensure!(rule["source"] == "probe" || by_copy, "{event}");
    if how == How::Given && hit.handle.is_null() && !by_copy {
        ensure!(event["egress"]["verdict"].is_null() && rule["text"].is_null(), "{event}");
        return Ok(());
    }
    ensure!(event["egress"]["verdict"] == verdict, "not a {verdict}: {event}");
    let twice = how == How::Both && !hit.handle.is_null();
    let replayed = rule["confirmed_by"].is_null() || rule["confirmed_by"] == "replay";
    ensure!(if twice { rule["confirmed_by"] == "verdict" } else { replayed }, "{event}");
    let reason = event["event"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(hit.chain.as_str().unwrap_or_default()), "{event}");
    // An emulated `nft` is not waited for long enough.
    if slowness() > 1 && rule["text"].is_null() {
        return Ok(());
    }
    let text = rule["text"].as_str().with_context(|| format!("no text: {event}"))?;
    ensure!(event["rule"]["id"].is_string(), "{event}");
    // Whatever iptables wrote is reported in its own words.
    match event["rule"]["ruleset"].as_str() {
        Some("iptables") => ensure!(hit.chain != "hit" && event["rule"]["name"].is_string(), "{event}"),
        _ => ensure!(event["rule"]["ruleset"] == "nftables" && event["rule"]["name"] == text, "{event}"),
    }
    ensure!(!hit.marked || text.ends_with("comment \"hit\""), "the text is another rule's: {event}");
    let hashed = rule["ruleset_sha256"].as_str().is_some_and(|hash| hash.len() == 64);
    ensure!(hashed || slowness() > 1 && rule["ruleset_sha256"].is_null(), "no hash: {event}");
    ensure!(!hit.handle.is_null() || text == "policy drop", "{event}");
    Ok(())
}

/// Everything that was named was found in the ruleset, and was the same however it was seen.
fn confirmed(report: &Report, how: How) -> Result<()> {
    let rules = &report.account["rules"];
    for way in ["probe", "verdict"] {
        let number = |name: &str| rules[way][name].as_u64().unwrap_or(u64::MAX);
        // What was not read in time came in a line of its own, which is looked at like any other.
        let known = number("confirmed") + number("unread");
        ensure!(number("answered") == known && number("discarded") == 0, "{way}: {rules}");
    }
    let compared = &rules["compared"];
    if how == How::Both {
        let agreed = compared["agreed"].as_u64().is_some_and(|agreed| agreed > 0);
        ensure!(agreed && compared["disagreed"] == 0, "{rules}");
    } else {
        ensure!(compared.is_null(), "{rules}");
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
    let (observer, how) = watch(&lab.client, Asked::AsUsual)?;
    let ports = [10_000, 10_001, 11_500, 12_998, 12_999];
    for port in ports {
        send(&lab.client, Udp4, port)?;
    }
    // A ruleset of this length may take too long for the first line: then a second one names the rule.
    wait_for("every rule to be told", || Ok(ports.iter().all(|port| is_told(&observer, *port, how)).then_some(())))?;
    let report = stop(observer)?;
    for port in ports {
        let mut all = report.events.iter().chain(&report.late);
        let is_named = |event: &&Value| event["destination"]["port"] == port && !event["egress"]["rule"].is_null();
        let event = all.find(is_named).context("no event")?;
        let (_, place) = &places[usize::from(port) - 10_000];
        ensure!(event["egress"]["rule"]["handle"] == place.handle, "{event}, not {place:?}");
        ensure!(event["egress"]["rule"]["position"] == place.position, "{event}, not {place:?}");
    }
    ensure!(report.number("/rules/probe/discarded") == 0 && report.number("/rules/verdict/discarded") == 0);
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
    let (observer, how) = watch(&lab.host, Asked::AsUsual)?;
    send(&lab.containers[0], Udp4, 443)?;
    wait_for("the rule", || {
        Ok(last(&observer, 443).is_some_and(|event| !event["egress"]["rule"].is_null()).then_some(()))
    })?;
    let report = stop(observer)?;
    ensure!(report.events.len() == 1, "one packet: {:?}", report.events);
    let event = of_port(&report, 443)?;
    check(event, &hit, "drop", how)?;
    ensure!(event["egress"]["rule"]["path"] == json!(["f", "x"]), "{event}");
    Ok(Outcome::Passed)
}

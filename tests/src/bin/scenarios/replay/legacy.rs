//! Rules of iptables-legacy, which nothing but the copy's counters name.

use anyhow::{Context, Result, ensure};
use harness::{lab::Lab, namespace::Namespace, observer::Observer, sample};
use serde_json::{Value, json};

use crate::{
    Outcome,
    rules::{
        send,
        shapes::{Packet, Tcp4, Tcp6, Udp4, Udp6},
    },
};

/// A way to drop a packet to port `PORT`.
struct Shape {
    send: Packet,
    lines: &'static [&'static str],
    table: &'static str,
    /// From the built-in chain to the rule's own.
    path: &'static [&'static str],
    /// Place in it; 0 for the policy.
    position: u64,
    verdict: &'static str,
}

const fn out(send: Packet, lines: &'static [&'static str], position: u64, verdict: &'static str) -> Shape {
    Shape { send, lines, table: "filter", path: &["OUTPUT"], position, verdict }
}

/// Lines for iptables-legacy, or of IPv6.
const SHAPES: [Shape; 20] = [
    out(Udp4, &["-A OUTPUT -p udp --dport PORT -j DROP"], 1, "drop"),
    out(Tcp4, &["-A OUTPUT -p udp -j DROP", "-A OUTPUT -p tcp --dport PORT -j DROP", "-A OUTPUT -j DROP"], 2, "drop"),
    out(Udp4, &["-A OUTPUT -p udp --dport 9 -j DROP", "-A OUTPUT -p udp --dport PORT -j REJECT"], 2, "reject"),
    out(Tcp4, &["-A OUTPUT -p tcp --dport PORT -j REJECT --reject-with tcp-reset"], 1, "reject"),
    out(Udp4, &["-A OUTPUT -p tcp -j ACCEPT", "-P OUTPUT DROP"], 0, "drop"),
    Shape {
        send: Udp4,
        lines: &["-N x", "-A x -p tcp -j DROP", "-A x -p udp --dport PORT -j DROP", "-A OUTPUT -j x"],
        table: "filter",
        path: &["OUTPUT", "x"],
        position: 2,
        verdict: "drop",
    },
    Shape {
        send: Tcp4,
        lines: &["-N y", "-N x", "-A y -p tcp --dport PORT -j REJECT", "-A x -g y", "-A x -j DROP", "-A OUTPUT -j x"],
        table: "filter",
        path: &["OUTPUT", "x", "y"],
        position: 1,
        verdict: "reject",
    },
    out(Udp4, &["-N x", "-A x -p udp -j RETURN", "-A x -j DROP", "-A OUTPUT -j x", "-A OUTPUT -j DROP"], 2, "drop"),
    out(
        Udp4,
        &["-N y", "-N x", "-A y -p tcp -j DROP", "-A x -g y", "-A x -j DROP", "-A OUTPUT -j x", "-P OUTPUT DROP"],
        0,
        "drop",
    ),
    out(
        Udp4,
        &[
            "-A OUTPUT -m comment --comment counted",
            "-A OUTPUT -p udp --dport PORT -j LOG",
            "-A OUTPUT -p udp --dport PORT -j DROP",
        ],
        3,
        "drop",
    ),
    out(Udp4, &["-A OUTPUT -p udp -m multiport --dports 9,PORT -m comment --comment two -j DROP"], 1, "drop"),
    out(
        Udp4,
        &["-A OUTPUT -m owner --uid-owner 65534 -j DROP", "-A OUTPUT -m owner --uid-owner 0 -p udp -j DROP"],
        2,
        "drop",
    ),
    out(
        Tcp4,
        &[
            "-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "-A OUTPUT -m conntrack --ctstate NEW -p tcp --dport PORT -j DROP",
        ],
        2,
        "drop",
    ),
    out(Udp4, &["-A OUTPUT -o lo -j DROP", "-A OUTPUT ! -d 10.0.0.0/8 -o eth+ -j DROP"], 2, "drop"),
    Shape {
        send: Udp4,
        lines: &["-t mangle -A POSTROUTING -p udp --dport PORT -j DROP"],
        table: "mangle",
        path: &["POSTROUTING"],
        position: 1,
        verdict: "drop",
    },
    Shape {
        send: Udp4,
        lines: &["-t raw -A OUTPUT -p tcp -j DROP", "-t raw -A OUTPUT -p udp --dport PORT -j DROP"],
        table: "raw",
        path: &["OUTPUT"],
        position: 2,
        verdict: "drop",
    },
    out(
        Udp4,
        &[
            "-t mangle -A OUTPUT -p udp --dport PORT -j MARK --set-mark 5",
            "-A OUTPUT -m mark --mark 4 -j DROP",
            "-A OUTPUT -m mark --mark 5 -j DROP",
        ],
        2,
        "drop",
    ),
    out(Udp6, &["-A OUTPUT -p tcp -j DROP", "-A OUTPUT -p udp --dport PORT -j DROP"], 2, "drop"),
    out(Tcp6, &["-A OUTPUT -p tcp --dport PORT -j REJECT --reject-with icmp6-adm-prohibited"], 1, "reject"),
    Shape {
        send: Udp6,
        lines: &["-N x", "-A x -d 2001:db8::/32 -p udp -j DROP", "-A OUTPUT -p udp -j x"],
        table: "filter",
        path: &["OUTPUT", "x"],
        position: 1,
        verdict: "drop",
    },
];

const FIRST_PORT: u16 = 9300;

fn family(packet: Packet) -> (&'static str, &'static str) {
    match packet {
        Udp4 | Tcp4 => ("iptables-legacy", "ip"),
        Udp6 | Tcp6 => ("ip6tables-legacy", "ip6"),
    }
}

/// The rule as its program writes it.
fn saved(namespace: &Namespace, shape: &Shape) -> Result<String> {
    let chain = shape.path.last().context("no chain")?;
    let Some(index) = shape.position.checked_sub(1) else { return Ok(format!("-P {chain} DROP")) };
    let save = format!("{}-save", family(shape.send).0);
    let text = namespace.run(&save, &["-t", shape.table])?;
    let prefix = format!("-A {chain} ");
    let mut rules = text.lines().filter_map(|line| line.strip_prefix(prefix.as_str()));
    Ok(rules.nth(usize::try_from(index)?).context("no such rule")?.to_owned())
}

/// Sends until the copy has named the rule: it may not be there for the first packet. `None` where the kernel does not even say
/// that it was iptables-legacy.
fn until_named(observer: &Observer, client: &Namespace, packet: Packet, port: u16) -> Result<Option<Value>> {
    let is_told = |event: &Value| {
        let rule = &event["egress"]["rule"];
        event["destination"]["port"] == port && (rule.is_null() || rule["source"] == "replay")
    };
    let told = observer.tells_until("the rule's name", || send(client, packet, port), is_told)?;
    Ok(Some(told).filter(|event| !event["egress"]["rule"].is_null()))
}

/// Why nothing is named.
fn unseen() -> Outcome {
    Outcome::Skipped("what is on netfilter's hooks is not seen here".to_owned())
}

/// Under each shape packets are dropped until the copy names the rule: exactly that one, in iptables' words.
pub(super) fn shapes() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.set("ipv4/tcp_syn_retries", "1")?;
    // The proof needs nftables, as every host has it that something else than iptables-legacy was ever used on.
    lab.client.nft("table inet t {}")?;
    let observer = Observer::watch(&lab.client)?;
    let mut wanted = Vec::new();
    // An emulated machine takes seconds for each.
    for (shape, port) in SHAPES.iter().step_by(sample()).zip(FIRST_PORT..) {
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            for table in ["raw", "mangle", "filter"] {
                lab.client.run(program, &["-t", table, "-F"])?;
                lab.client.run(program, &["-t", table, "-X"])?;
            }
            lab.client.run(program, &["-P", "OUTPUT", "ACCEPT"])?;
        }
        for line in shape.lines {
            let line = line.replace("PORT", &port.to_string());
            lab.client.run(family(shape.send).0, &line.split(' ').collect::<Vec<_>>())?;
        }
        let Some(event) = until_named(&observer, &lab.client, shape.send, port)? else { return Ok(unseen()) };
        wanted.push((shape, saved(&lab.client, shape)?, event));
    }
    let report = observer.stop()?;
    for (shape, text, event) in wanted {
        let rule = &event["egress"]["rule"];
        let position = if shape.position == 0 { Value::Null } else { json!(shape.position) };
        ensure!(rule["backend"] == "iptables-legacy" && rule["family"] == family(shape.send).1, "{event}");
        ensure!(rule["table"] == shape.table && rule["chain"] == *shape.path.last().context("no chain")?, "{event}");
        ensure!(rule["position"] == position && rule["path"] == json!(shape.path), "{event}");
        ensure!(event["egress"]["verdict"] == shape.verdict, "{event}");
        ensure!(event["rule"]["ruleset"] == "iptables" && event["rule"]["name"] == text, "{text}: {event}");
    }
    ensure!(report.number("/rules/replay/disagreed") == 0, "{}", report.account["rules"]);
    Ok(Outcome::Passed)
}

/// A rate is no proof, and neither is what was reported of another ruleset.
pub(super) fn by_rate() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t {}")?;
    lab.client.run(
        "iptables-legacy",
        &["-A", "OUTPUT", "-m", "limit", "--limit", "1/hour", "--limit-burst", "1", "-j", "ACCEPT"],
    )?;
    lab.client.run("iptables-legacy", &["-A", "OUTPUT", "-p", "udp", "--dport", "9001", "-j", "DROP"])?;
    send(&lab.client, Udp4, 9001)?;
    let observer = Observer::watch(&lab.client)?;
    let is_told = |event: &Value| {
        let rule = &event["egress"]["rule"];
        let says = |said: &str| said.contains("`-m limit` in table filter");
        event["destination"]["port"] == 9001 && (rule.is_null() || rule["replay"].as_str().is_some_and(says))
    };
    let told = observer.tells_until("an opinion", || send(&lab.client, Udp4, 9001), is_told)?;
    let report = observer.stop()?;
    if told["egress"]["rule"].is_null() {
        return Ok(unseen());
    }
    ensure!(report.events.iter().all(|event| event["egress"]["rule"]["position"].is_null()), "{:?}", report.events);
    Ok(Outcome::Passed)
}

/// Neither `iptables-legacy-save` nor anything else is there to be asked: the place is reported, and no text.
pub(super) fn without_programs() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t {}")?;
    lab.client.run("iptables-legacy", &["-A", "OUTPUT", "-p", "tcp", "-j", "DROP"])?;
    lab.client.run("iptables-legacy", &["-A", "OUTPUT", "-p", "udp", "--dport", "9001", "-j", "DROP"])?;
    let observer = super::without_programs(&lab.client)?;
    let Some(event) = until_named(&observer, &lab.client, Udp4, 9001)? else { return Ok(unseen()) };
    observer.stop()?;
    let rule = &event["egress"]["rule"];
    ensure!(rule["position"] == 2 && rule["chain"] == "OUTPUT" && rule["text"].is_null(), "{event}");
    ensure!(
        event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("at place 2 of ip filter OUTPUT")),
        "{event}"
    );
    Ok(Outcome::Passed)
}

//! Proven fixes: run by a shell a client holds a conversation, and what they open is what they say.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    namespace::Namespace,
    observer::Observer,
    traffic, wait_for,
};
use serde_json::Value;

use super::{To, lines};
use crate::{
    Outcome,
    check::{
        check,
        conversations::{echo, found, seconds},
        lines as told, word,
    },
    front_ends, without_trials,
};

/// Other destinations outside.
const OUTSIDE: [&str; 2] = ["198.51.100.77/32", "2001:db8:ffff::4d/128"];
const PORTS: [&str; 6] = ["53", "54", "80", "81", "443", "444"];

/// How rules are loaded.
enum By {
    Nft(&'static str),
    /// Both families by `iptables-restore` of that kind.
    Iptables(&'static str, &'static str),
    Ufw(&'static [&'static str]),
}

/// What a real client finds at a probe.
fn probed(lab: &Lab, probe: &Value) -> Result<bool> {
    let text = |name: &str| probe[name].as_str().with_context(|| format!("no {name}: {probe}"));
    let port = probe["port"].to_string();
    let seconds = seconds(0.7);
    let args = ["converse", &seconds, text("protocol")?, text("address")?, &port];
    let client = match text("direction")? {
        "ingress" => traffic::command(&lab.server, &args)?,
        "egress" => as_user(&lab.client, text("user")?, &args)?,
        other => anyhow::bail!("no lab for {other}"),
    };
    let mut client = client;
    Ok(traffic::finish(client.spawn()?)?.said == "ok")
}

/// The client as another user, without any groups.
fn as_user(namespace: &Namespace, user: &str, args: &[&str]) -> Result<std::process::Command> {
    let mut command = namespace.command("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "/usr/bin/python3", "-IS", "-"]).args(args);
    command.stdin(traffic::script()?).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Ok(command)
}

/// A client that cannot hold these conversations can once the fix was run, and cannot once it was taken back; and what else is open
/// meanwhile is what the fix says.
fn proves(by: &By, all: &[To<'_>]) -> Result<Value> {
    let mut lab = Lab::new()?;
    for address in OUTSIDE.iter().chain(&["203.0.113.77/32"]) {
        lab.server.ip(&[&format!("addr add {address} dev lo")])?;
    }
    let _servers = [echo(&lab.server, &PORTS)?, echo(&lab.client, &PORTS)?];
    match by {
        By::Nft(ruleset) => lab.client.nft(ruleset)?,
        By::Iptables(kind, ruleset) => {
            lab.client.nft("table inet t {\n}\n")?;
            for program in ["iptables", "ip6tables"] {
                lab.client.feed(&format!("{program}-{kind}-restore"), &["--noflush"], ruleset)?;
            }
        }
        By::Ufw(statements) => front_ends::with_ufw(&mut lab.client, statements)?,
    }
    let before = found(&lab.client, all)?;
    let words: Vec<String> = all.iter().map(|to| word(*to)).collect();
    let args: Vec<&str> = ["-o", "json"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let answer = told(&check(&lab.client, &args)?)?;
    for (found, event) in before.iter().zip(&answer) {
        let wanted = if found == "ok" { "egress-allowed" } else { "egress-blocked" };
        ensure!(event["event"]["action"] == wanted, "the client finds {found}: {event}");
    }
    let event = answer.iter().find(|event| event["egress"]["fix"].is_object()).context("no fix")?.clone();
    let fix = &event["egress"]["fix"];
    ensure!(fix["verified"] == true && fix["undo_verified"] == true, "{event}");
    let probes = fix["probes"].as_array().context("no probes")?.clone();
    let closed: Vec<bool> = probes.iter().map(|probe| probed(&lab, probe)).collect::<Result<_>>()?;
    for line in lines(&event, "commands") {
        lab.client.run("sh", &["-c", &line])?;
    }
    let after = found(&lab.client, all)?;
    ensure!(after.iter().all(|found| found == "ok"), "{fix}: the client finds {after:?}");
    let open: Vec<bool> = probes.iter().map(|probe| probed(&lab, probe)).collect::<Result<_>>()?;
    let is_opened = |(closed, open): (&bool, &bool)| !*closed && *open;
    let opened: Vec<&Value> = probes
        .iter()
        .zip(closed.iter().zip(&open))
        .filter(|(_, both)| is_opened(*both))
        .map(|(probe, _)| probe)
        .collect();
    let said = fix["opened"].as_array().context("no list of what it opens")?.iter();
    // A client finds whole conversations.
    let said: Vec<&Value> = said.filter(|probe| probe["one_way"] != true).collect();
    ensure!(opened == said, "real clients found opened {opened:?}: {fix}");
    for line in lines(&event, "undo") {
        lab.client.run("sh", &["-c", &line])?;
    }
    let again = found(&lab.client, all)?;
    ensure!(again == before, "after the undo the client finds {again:?}, and found {before:?}: {fix}");
    Ok(event)
}

/// Chains that both directions lead to, in which no exception belongs.
const DROPLOG: &str = "*filter\n:droplog -\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j \
    ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -i eth0 -j droplog\n-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -p tcp \
    -m tcp --dport 80 -j ACCEPT\n-A OUTPUT -o eth0 -j droplog\n-A droplog -m limit --limit 10/min -j LOG\n-A droplog -j \
    DROP\nCOMMIT\n";
/// Nothing but SSH in both directions: what comes back needs a rule, too.
const LOCKED: &str = "*filter\n:INPUT DROP\n:OUTPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A OUTPUT -o lo -j ACCEPT\n-A INPUT -p tcp --dport \
    22 -j ACCEPT\n-A OUTPUT -p tcp --sport 22 -j ACCEPT\nCOMMIT\n";

pub(super) fn of_both_directions() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    for kind in ["nft", "legacy"] {
        for (ruleset, all) in
            [(DROPLOG, &[("tcp", FAR_V4, 443)][..]), (LOCKED, &[("tcp", FAR_V4, 443), ("tcp", FAR_V6, 443)])]
        {
            proves(&By::Iptables(kind, ruleset), all).with_context(|| format!("{kind}: {all:?}: {ruleset}"))?;
        }
    }
    for (ruleset, to) in [
        (
            "table inet t {\n chain both {\n counter drop\n }\n chain i {\n type filter hook input priority 0; iif lo accept; ct state \
             established accept; jump both\n }\n chain o {\n type filter hook output priority 0; oif lo accept; tcp dport 80 accept; \
             jump both\n }\n}\n",
            ("tcp", FAR_V4, 443),
        ),
        (
            "table inet t {\n chain i {\n type filter hook input priority 0; policy drop; iif lo accept\n }\n chain o {\n type filter \
             hook output priority 0; policy drop; oif lo accept\n }\n}\n",
            ("tcp", FAR_V6, 443),
        ),
    ] {
        proves(&By::Nft(ruleset), &[to]).with_context(|| format!("{to:?}: {ruleset}"))?;
    }
    Ok(Outcome::Passed)
}

/// What was allowed already is not opened once more, and what is for one user not for all.
pub(super) fn no_more_than_asked() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let event = proves(
        &By::Nft(
            "table ip t {\n chain o {\n type filter hook output priority 0; ip daddr { 203.0.113.10, 203.0.113.12 } drop\n }\n}\n",
        ),
        &[("tcp", FAR_V4, 443), ("tcp", "203.0.113.77", 443)],
    )?;
    let commands = lines(&event, "commands");
    ensure!(!commands.iter().any(|line| line.contains("203.0.113.77")), "{commands:?}");
    let opens = event["egress"]["fix"]["opens"].as_str().unwrap_or_default();
    ensure!(opens.contains("443/tcp"), "{event}");
    // A rule that is about its user alone: others are where they were.
    let event = proves(
        &By::Nft(
            "table ip t {\n chain o {\n type filter hook output priority 0; meta skuid 0 ip daddr 203.0.113.10 drop\n }\n}\n",
        ),
        &[("tcp", FAR_V4, 443)],
    )?;
    let opens = event["egress"]["fix"]["opens"].as_str().unwrap_or_default();
    ensure!(opens == "443/tcp to 203.0.113.10 alone; none of the 4 probes listed opened", "{event}");
    proves(&By::Ufw(&["default deny outgoing", "allow out 53"]), &[("tcp", FAR_V4, 443), ("tcp", FAR_V6, 80)])?;
    Ok(Outcome::Passed)
}

/// What rules send elsewhere is opened there.
pub(super) fn where_it_is_sent() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let event = proves(
        &By::Nft(
            "table ip n {\n chain o {\n type nat hook output priority -100; ip daddr 203.0.113.77 tcp dport 443 dnat to \
             203.0.113.10:80\n }\n}\ntable inet t {\n chain o {\n type filter hook output priority 0; tcp dport 80 drop\n }\n}\n",
        ),
        &[("tcp", "203.0.113.77", 443)],
    )?;
    let commands = lines(&event, "commands");
    ensure!(commands.len() == 1 && commands[0].contains("ip daddr 203.0.113.10 tcp dport 80 accept"), "{commands:?}");
    Ok(Outcome::Passed)
}

/// What IPv6 asks its neighbours is opened as far as it is stopped.
pub(super) fn of_neighbours() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let output = |rule: &str| format!("table inet t {{ chain o {{ type filter hook output priority 0; {rule} }} }}");
    let input =
        "table inet t { chain i { type filter hook input priority 0; policy drop; ct state established accept } }";
    let all = "policy drop; tcp dport 443 accept; ct state established accept";
    for (ruleset, commands) in
        [(output("icmpv6 type nd-neighbor-solicit drop"), 1), (output(all), 2), (input.to_owned(), 2)]
    {
        let lab = Lab::new()?;
        let _server = lab.web_server(443)?;
        for (namespace, neighbour) in [(&lab.client, "fd00:9::2"), (&lab.server, "fd00:9::1")] {
            namespace.ip(&[&format!("neigh del {neighbour} dev eth0")])?;
        }
        lab.client.nft(&ruleset)?;
        let tries = || -> Result<String> { Ok(traffic::run(&lab.client, &["tcp", FAR_V6, "443", "3.5"])?.said) };
        let before = tries()?;
        let answer = told(&check(&lab.client, &["-o", "json", &format!("[{FAR_V6}]:443")])?)?;
        let event = answer.iter().find(|event| event["egress"]["fix"].is_object());
        let event = event.with_context(|| format!("{ruleset}: the client finds {before}, no fix: {answer:?}"))?;
        let fix = &event["egress"]["fix"];
        ensure!(fix["verified"] == true && fix["undo_verified"] == true, "{ruleset}: {event}");
        ensure!(event["egress"]["packet"] == "solicitation", "{ruleset}: {event}");
        ensure!(lines(event, "commands").len() == commands, "{ruleset}: {fix}");
        for line in lines(event, "commands") {
            lab.client.run("sh", &["-c", &line])?;
        }
        let after = tries()?;
        ensure!(before != "ok" && after == "ok", "{ruleset}: the client finds {before}, and then {after}: {fix}");
    }
    // A neighbour that is known now will be asked for again.
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    lab.client.ip(&["neigh del fd00:9::2 dev eth0"])?;
    lab.client.run("ping", &["-c1", "-W3", FAR_V6])?;
    lab.client.nft(&output("policy drop; ct state established accept"))?;
    let answer = told(&check(&lab.client, &["-o", "json", &format!("[{FAR_V6}]:443")])?)?;
    ensure!(answer[0]["egress"]["fix"]["verified"] == true, "{}", answer[0]);
    for line in lines(&answer[0], "commands") {
        lab.client.run("sh", &["-c", &line])?;
    }
    lab.client.ip(&["neigh del fd00:9::2 dev eth0"])?;
    let after = traffic::run(&lab.client, &["tcp", FAR_V6, "443", "3.5"])?.said;
    ensure!(after == "ok", "the client finds {after}: {}", answer[0]["egress"]["fix"]);
    // What discovery alone has kept closed for others is open with it: no later command is to blame for that.
    let lab = Containers::new(Plug::Bridge)?;
    let _server = echo(&lab.server, &["443"])?;
    lab.host.ip(&["neigh del fd00:9::2 dev eth0"])?;
    let chain = |hook: &str| format!(" chain {hook} {{\n type filter hook {hook} priority 0; policy drop\n }}\n");
    lab.host.nft(&format!("table inet t {{\n{}{}}}\n", chain("output"), chain("input")))?;
    let answer = told(&check(&lab.host, &["-o", "json", &format!("[{FAR_V6}]:443")])?)?;
    let fix = &answer[0]["egress"]["fix"];
    ensure!(fix["verified"] == true, "{}", answer[0]);
    ensure!(fix["opens"].as_str().is_some_and(|opens| opens.contains("also forwarded 443/tcp")), "{fix}");
    for line in lines(&answer[0], "commands") {
        lab.host.run("sh", &["-c", &line])?;
    }
    let after = found(&lab.host, &[("tcp", FAR_V6, 443)])?;
    ensure!(after == ["ok"], "the client finds {after:?}: {fix}");
    Ok(Outcome::Passed)
}

/// A rule about later packets of a connection: its fix is tested by a whole one.
pub(super) fn of_later_packets() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    for rule in ["tcp flags psh tcp dport 80 drop", "tcp dport 80 meta length > 100 drop"] {
        let mut lab = Lab::new()?;
        let _server = lab.web_server(80)?;
        lab.client.nft(&format!("table inet t {{ chain o {{ type filter hook output priority 0; {rule} }} }}"))?;
        lab.client.private_files()?;
        let observer = super::among_mounts_of(&lab.client)?;
        let ask = format!("http://{FAR_V4}/{}", "x".repeat(100));
        let _ = lab.client.command("curl").args(["-s", "-o", "/dev/null", "-m", "1", &ask]).status()?;
        let event = super::told(&observer, &lab.client, ("tcp", FAR_V4, 80)).context(rule)?;
        observer.stop()?;
        super::expect(&event, &[("/egress/fix/verified", serde_json::json!(true))]).context(rule)?;
    }
    Ok(Outcome::Passed)
}

/// Where what is forwarded comes by, too, nothing is opened for it.
pub(super) fn beside_containers() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    for (load, rule, own) in [
        (
            "nft",
            "table inet f { chain o { type filter hook postrouting priority 0; oifname eth0 tcp dport 443 drop } }",
            "fib",
        ),
        (
            "nft",
            "table inet f { chain p { type filter hook prerouting priority -150; iifname eth0 tcp sport 443 drop } }",
            "fib",
        ),
        // It is asked for a port of the sender's first, of which there are many.
        (
            "nft",
            "table inet f { chain o { type filter hook postrouting priority 0; tcp sport { 22, 80 } accept; oifname eth0 tcp dport 443 drop } }",
            "fib",
        ),
        ("iptables", "*mangle\n-A POSTROUTING -o eth0 -p tcp --dport 443 -j DROP\nCOMMIT\n", "LOCAL"),
        // What is opened for everybody would leave one way: its answers are stopped.
        (
            "nft",
            "table ip f {\n chain o {\n type filter hook postrouting priority 0; oifname eth0 tcp dport 443 drop\n }\n chain p {\n type \
             filter hook prerouting priority 0; iifname eth0 tcp sport 443 drop\n }\n}\n",
            "fib",
        ),
        (
            "iptables",
            "*mangle\n-A POSTROUTING -o eth0 -p tcp --dport 443 -j DROP\n-A PREROUTING -i eth0 -p tcp --sport 443 -j DROP\nCOMMIT\n",
            "LOCAL",
        ),
        // Only this container is let through, or has the host's address then: no made-up one tells.
        (
            "nft",
            "table ip f {\n chain w {\n type filter hook forward priority 0; policy drop; ct state established accept\n ip saddr CONTAINER \
             accept\n }\n chain o {\n type filter hook postrouting priority 0; oifname eth0 tcp dport 443 drop\n }\n}\n",
            "fib",
        ),
        (
            "nft",
            "table ip n {\n chain p {\n type nat hook postrouting priority 100; ip saddr CONTAINER masquerade\n }\n}\ntable ip f {\n chain \
             p {\n type filter hook prerouting priority -150; iifname eth0 tcp sport 443 drop\n }\n}\n",
            "snat == 0",
        ),
        (
            "iptables",
            "*mangle\n-A POSTROUTING -o eth0 -p tcp --dport 443 -j DROP\nCOMMIT\n*filter\n:FORWARD DROP\n-A FORWARD -m conntrack \
             --ctstate ESTABLISHED -j ACCEPT\n-A FORWARD -s CONTAINER -j ACCEPT\nCOMMIT\n*nat\n-A POSTROUTING -o eth0 -j \
             MASQUERADE\nCOMMIT\n",
            "! --ctstate SNAT",
        ),
    ] {
        let lab = Containers::new(Plug::Bridge)?;
        let _server = echo(&lab.server, &["443"])?;
        let rule = &rule.replace("CONTAINER", &lab.addresses[0]);
        match load {
            "nft" => lab.host.nft(rule)?,
            _ => lab.host.feed("iptables-nft-restore", &["--noflush"], rule).map(drop)?,
        }
        let to = [("tcp", FAR_V4, 443)];
        let both = || -> Result<[bool; 2]> {
            Ok([found(&lab.host, &to)? == ["ok"], found(&lab.containers[0], &to)? == ["ok"]])
        };
        ensure!(both()? == [false, false], "{rule}: nothing is blocked");
        let answer = told(&check(&lab.host, &["-o", "json", "203.0.113.10:443"])?)?;
        let fix = &answer[0]["egress"]["fix"];
        ensure!(fix["verified"] == true, "{rule}: {}", answer[0]);
        ensure!(lines(&answer[0], "commands")[0].contains(own), "{rule}: {fix}");
        for line in lines(&answer[0], "commands") {
            lab.host.run("sh", &["-c", &line])?;
        }
        ensure!(both()? == [true, false], "{rule}: for the host and the container {:?}: {fix}", both()?);
    }
    Ok(Outcome::Passed)
}

/// What comes back to a container is let through for those that come in where it is.
pub(super) fn answers_to_a_container() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    for plug in [Plug::Bridge, Plug::Veth] {
        for to in [("tcp", FAR_V4, 443), ("tcp", FAR_V6, 443), ("udp", FAR_V4, 53)] {
            let mut lab = Containers::new(plug)?;
            let _server = echo(&lab.server, &["53", "443"])?;
            lab.host.nft(
                "table inet f {\n chain f {\n type filter hook forward priority 0; iifname eth0 meta l4proto { tcp, udp } th sport { 53, 443 \
                 } drop\n }\n chain k {\n type filter hook prerouting priority -150; ct state new\n }\n}\n",
            )?;
            lab.host.private_files()?;
            // A fix is looked for once, and that may come to nothing on a busy machine: then another observer looks for it.
            let mut fixed = None;
            for _ in 0..4 {
                let observer = super::among_mounts_of(&lab.host)?;
                let told = wait_for("a fix", || {
                    found(&lab.containers[0], &[to])?;
                    let told = observer.so_far();
                    let events = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                    Ok(events.into_iter().find(|event| event["egress"]["fix"].is_object()))
                });
                observer.stop()?;
                fixed = told.ok().filter(|event| event["egress"]["fix"]["verified"] == true);
                if fixed.is_some() {
                    break;
                }
            }
            let event = fixed.with_context(|| format!("{to:?}: no tested fix"))?;
            let fix = &event["egress"]["fix"];
            ensure!(event["egress"]["packet"] == "answer", "{to:?}: {event}");
            for line in lines(&event, "commands") {
                lab.host.run("sh", &["-c", &line])?;
            }
            wait_for("the container's conversation after the fix", || {
                Ok((found(&lab.containers[0], &[to])? == ["ok"]).then_some(()))
            })
            .with_context(|| format!("{to:?}: {fix}"))?;
        }
    }
    Ok(Outcome::Passed)
}

/// A connection's first packet passes, its answer is dropped, and what is sent again then is dropped by another rule: the fix for either
/// is for both.
pub(super) fn seen_later() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let _server = echo(&lab.server, &["80"])?;
    lab.client.nft(
        "table inet f {\n chain i {\n type filter hook input priority 0; policy drop; iif lo accept\n }\n chain o {\n type filter hook \
         output priority 0; policy drop; tcp dport 80 ct state new accept\n }\n}\n",
    )?;
    let observer = Observer::watch_with_fixes(&lab.client)?;
    // A trial may come to no end on a busy machine, and the next one does.
    let fixes = |told: &str| -> BTreeMap<String, Value> {
        let events = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let tested = events.filter(|event| event["egress"]["fix"]["verified"] == true);
        tested.map(|event| (event["egress"]["rule"]["chain"].to_string(), event["egress"]["fix"].clone())).collect()
    };
    let all = wait_for("a tested fix for each rule", || {
        traffic::run(&lab.client, &["tcp", FAR_V4, "80", "3"])?;
        let told = fixes(&observer.so_far());
        Ok((told.len() >= 2).then_some(told))
    })?;
    observer.stop()?;
    for fix in all.values() {
        ensure!(fix["commands"].as_array().is_some_and(|all| all.len() == 2), "{fix}");
    }
    Ok(Outcome::Passed)
}

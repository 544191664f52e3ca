//! Changes of rules: who made them, and what changed since.

use std::{collections::HashSet, process::Command};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{CLIENT_INTERFACE, FAR_V4, Lab},
    namespace::Namespace,
    observer::{Observer, Report, expect},
    slowness, traffic, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("who_changed_what", who_and_what),
    ("every_commit_is_told", every_commit),
    ("in_words", in_words),
    ("by_action", by_action),
    ("a_namespace_is_let_go", let_go),
    ("a_namespace_with_a_name", named),
];

const BEFORE: &str = "table inet t { chain o { type filter hook output priority 0; udp dport 77 drop\n} }";
const AFTER: &str = "add rule inet t o udp dport 78 drop\nadd chain inet t o { policy drop; }\n";

/// So many changes were reported, and no other.
fn told(report: &Report, count: usize) -> Result<()> {
    ensure!(report.changes.len() == count, "{count} changes: {:?}", report.changes);
    Ok(())
}

/// The second change is compared with what was in force at the drop.
fn who_and_what() -> Result<Outcome> {
    for _ in 0..3 {
        if changed()? {
            return Ok(Outcome::Passed);
        }
    }
    anyhow::bail!("three times it was not told what is otherwise")
}

/// False where the rules were not read in time, as on a busy machine: what changed is not told then.
fn changed() -> Result<bool> {
    let lab = Lab::new()?;
    let observer = Observer::watch(&lab.client)?;
    lab.client.nft(BEFORE)?;
    observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "77"]))?;
    // The ruleset has been read then, however busy the machine is.
    wait_for("the rule's text", || Ok(observer.so_far().contains("udp dport 77 drop").then_some(())))?;
    lab.client.nft(AFTER)?;
    heard(&observer, &lab.client, 2)?;
    lab.client.run("iptables", &["-A", "OUTPUT", "-p", "tcp", "--dport", "79", "-j", "DROP"])?;
    heard(&observer, &lab.client, 3)?;
    let report = observer.stop()?;
    told(&report, 3)?;
    let [first, second, third] = &report.changes[..] else { unreachable!("three") };
    for (change, name) in [(first, "nft"), (second, "nft"), (third, "iptables")] {
        expect(
            change,
            &[
                ("/event/category", json!(["configuration"])),
                ("/event/type", json!(["change"])),
                ("/process/name", json!(name)),
                ("/process/pid", change["egress"]["ruleset"]["changed_by"]["pid"].clone()),
                ("/egress/ruleset/changed_by/name", json!(name)),
                ("/egress/netns", json!(lab.client.inode()?)),
            ],
        )?;
        let parents = change["egress"]["ancestry"].as_array().context("no ancestry")?;
        ensure!(parents.iter().any(|parent| parent["pid"] == std::process::id()), "not by this test: {change}");
    }
    ensure!(first["egress"]["ruleset"]["difference"].is_null(), "nobody had asked for the rules before: {first}");
    let difference = &second["egress"]["ruleset"]["difference"];
    if difference.is_null() {
        return Ok(false);
    }
    ensure!(difference["rules_added"] == 1 && difference["rules_removed"] == 0, "{second}");
    ensure!(difference["policies"] == json!(["inet t o: accept → drop"]), "{second}");
    // An emulated `nft` is not waited for long enough.
    if slowness() == 1 {
        ensure!(difference["added"] == json!(["inet t o: udp dport 78 drop"]), "{second}");
    }
    if let Some(added) = third["egress"]["ruleset"]["difference"]["added"][0].as_str() {
        ensure!(added.starts_with("ip filter OUTPUT: "), "{third}");
    }
    let generations: Vec<Option<u64>> =
        report.changes.iter().map(|change| change["egress"]["ruleset"]["generation"].as_u64()).collect();
    ensure!(generations.iter().all(Option::is_some) && generations.is_sorted(), "{generations:?}");
    Ok(true)
}

/// Waits until so many changes in a namespace were reported: what is heard is reported some milliseconds later, with what follows at
/// once.
fn heard(observer: &Observer, namespace: &Namespace, count: usize) -> Result<()> {
    let netns = format!("\"netns\":{}", namespace.inode()?);
    wait_for("a change of rules", || {
        let told = observer.so_far();
        let changes = told.lines().filter(|line| line.contains("\"ruleset-changed\"") && line.contains(&netns));
        Ok((changes.count() >= count).then_some(()))
    })
}

fn every_commit() -> Result<Outcome> {
    const COMMITS: usize = 100;
    let lab = Lab::new()?;
    let observer = Observer::watch(&lab.client)?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; } }")?;
    for port in 0..COMMITS {
        lab.client.nft(&format!("add rule inet t o udp dport {} accept", 1000 + port))?;
    }
    heard(&observer, &lab.client, COMMITS + 1)?;
    let report = observer.stop()?;
    told(&report, COMMITS + 1)?;
    let generations: HashSet<Option<u64>> =
        report.changes.iter().map(|change| change["egress"]["ruleset"]["generation"].as_u64()).collect();
    ensure!(generations.len() == COMMITS + 1 && !generations.contains(&None), "{generations:?}");
    Ok(Outcome::Passed)
}

fn in_words() -> Result<Outcome> {
    let lab = Lab::new()?;
    let path = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "--netns", &path])?;
    lab.client.nft(BEFORE)?;
    wait_for("the line", || Ok(observer.so_far().contains("CHANGED").then_some(())))?;
    let (status, stdout, stderr) = observer.end(Signal::SIGINT)?;
    ensure!(status.success(), "{status}: {stderr}");
    let text = String::from_utf8(stdout)?;
    let line = text.lines().find(|line| line.contains("CHANGED")).with_context(|| format!("not told: {text}"))?;
    let scope = format!("firewall rules in network namespace {} of pid ", lab.client.inode()?);
    ensure!(line.contains(&scope) && line.contains(", by nft[") && line.contains("] ← scenarios ← "), "{line}");
    Ok(Outcome::Passed)
}

fn by_action() -> Result<Outcome> {
    for (action, changes, events) in [("ruleset-changed", 1, 0), ("egress-blocked", 0, 1)] {
        let lab = Lab::new()?;
        let path = lab.client.path().display().to_string();
        let observer = Observer::start(["watch", "-o", "json", "--netns", &path, "--action", action])?;
        lab.client.nft(BEFORE)?;
        traffic::run(&lab.client, &["udp", FAR_V4, "77"])?;
        heard(&observer, &lab.client, changes)?;
        wait_for("the block", || Ok((observer.told() >= events).then_some(())))?;
        let report = observer.stop()?;
        ensure!(report.changes.len() == changes && report.events.len() == events, "{action}: {report:?}");
    }
    Ok(Outcome::Passed)
}

/// A namespace in which something was blocked is listened to, and goes nevertheless when its last process does: so does the
/// other end of its cable.
fn let_go() -> Result<Outcome> {
    let Lab { client, server } = Lab::new()?;
    client.nft(BEFORE)?;
    let observer = Observer::start(["watch", "--no-fix", "-o", "json"])?;
    let netns = client.inode()?;
    let of_it = |event: &Value| event["egress"]["netns"] == netns && event["event"]["action"] == "egress-blocked";
    // Others are blocked meanwhile: from its own block on it is listened to.
    observer.tells_until("the block", || traffic::run(&client, &["udp", FAR_V4, "77"]).map(drop), of_it)?;
    client.nft(AFTER)?;
    heard(&observer, &client, 1)?;
    drop(client);
    wait_for("the namespace's end", || {
        let links = server.run("ip", &["-json", "link"])?;
        let links: Value = serde_json::from_str(&links)?;
        let is_left = links.as_array().into_iter().flatten().any(|link| link["ifname"] == CLIENT_INTERFACE);
        Ok((!is_left).then_some(()))
    })?;
    let report = observer.stop()?;
    ensure!(report.changes.iter().any(|change| change["egress"]["netns"] == netns), "not heard: {report:?}");
    Ok(Outcome::Passed)
}

/// A namespace that `ip netns` has made.
struct Named(String);

impl Named {
    fn make(suffix: &str) -> Result<Self> {
        let named = Self(format!("observer-test-{}-{suffix}", std::process::id()));
        named.ip("add")?;
        Ok(named)
    }

    fn ip(&self, what: &str) -> Result<()> {
        let status = Command::new("ip").args(["netns", what, &self.0]).status()?;
        ensure!(status.success(), "ip netns {what} {}: {status}", self.0);
        Ok(())
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let status = Command::new("ip").args(["netns", "exec", &self.0, "nft", rules]).status()?;
        ensure!(status.success(), "nft {rules}: {status}");
        Ok(())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.ip("delete");
    }
}

/// Nobody lives there: it is listened to by its path, also after another namespace was removed beside it, and does not outlive its name.
fn named() -> Result<Outcome> {
    let named = Named::make("a")?;
    let other = Named::make("b")?;
    named.nft("add table inet one; add chain inet one c { type filter hook output priority 0; }")?;
    let observer = Observer::start(["watch", "--no-fix", "-o", "json", "--netns", &named.0])?;
    let told = || observer.so_far().matches("ruleset-changed").count();
    named.nft("add rule inet one c udp dport 9 drop")?;
    wait_for("a change", || Ok((told() > 0).then_some(())))?;
    let beside = told();
    drop(other);
    // It is listened to anew in a moment; what is changed meanwhile may not be heard.
    wait_for("a change after that", || {
        named.nft("add rule inet one c udp dport 10 drop")?;
        Ok((told() > beside).then_some(()))
    })?;
    let pid = observer.child.id();
    let watched = || -> Result<usize> {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let targets = files.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        Ok(targets.filter(|target| target.to_string_lossy().contains("inotify")).count())
    };
    ensure!(watched()? == 1, "{} folders are watched", watched()?);
    drop(named);
    wait_for("the end of listening", || Ok((watched()? == 0).then_some(())))?;
    observer.stop()?;
    Ok(Outcome::Passed)
}

//! What else hangs on netfilter's hooks: fragments, address translation, IPVS, SELinux.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{CLIENT_INTERFACE, CLIENT_V4, FAR_V4, FAR_V6, Lab},
    observer::{Observer, Report, expect},
    traffic, wait_for,
};
use serde_json::{Value, json};

use super::{not_told, only};
use crate::{Outcome, without_a_machine};

/// A function on a hook dropped the only packet: by its name, the cause and what the reason must speak of; or skipped, where
/// this kernel's are not told.
fn told_by(report: &Report, pid: u32, cause: &str, function: &str, words: &str) -> Result<Outcome> {
    let event = only(report)?;
    expect(event, &[("/process/pid", json!(pid)), ("/egress/rule", Value::Null)])?;
    if let Some(skipped) = not_told(report)? {
        expect(event, &[("/egress/cause", json!("netfilter")), ("/egress/decided_by", Value::Null)])?;
        return Ok(skipped);
    }
    expect(event, &[("/egress/cause", json!(cause)), ("/egress/verdict", json!("drop"))])?;
    let told = event["egress"]["decided_by"]["function"].as_str().unwrap_or_default();
    ensure!(told.starts_with(function), "not {function}: {event}");
    ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.contains(words)), "{event}");
    Ok(Outcome::Passed)
}

/// IPv6's fragments are put together where connections are tracked: there one is refused that ends further than any packet may.
pub(super) fn fragment() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; ct state established accept } }")?;
    let observer = Observer::watch(&lab.client)?;
    let client = observer.tells(|| traffic::run(&lab.client, &["fragment", FAR_V6, "9001"]))?;
    let report = observer.stop()?;
    expect(only(&report)?, &[("/destination/ip", json!(FAR_V6)), ("/egress/hook", json!("output"))])?;
    told_by(&report, client.pid, "netfilter", "ipv6_defrag", "fragments")
}

/// The interface has no address that a masquerade could give: the rule is named, and that nothing but an address helps.
pub(super) fn masquerade() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.ip(&[
        &format!("addr del {CLIENT_V4}/24 dev {CLIENT_INTERFACE}"),
        &format!("addr add {CLIENT_V4}/24 dev {CLIENT_INTERFACE} scope link"),
        &format!("route add default via 10.9.0.2 src {CLIENT_V4}"),
    ])?;
    lab.client.nft(
        "table ip t { chain p { type nat hook postrouting priority 100; udp dport 9001 counter\nudp dport 9001 masquerade } }",
    )?;
    lab.client
        .run("iptables-nft", &["-t", "nat", "-A", "POSTROUTING", "-p", "udp", "--dport", "9002", "-j", "MASQUERADE"])?;
    let observer = Observer::watch(&lab.client)?;
    for port in ["9001", "9002"] {
        let client = observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, port]))?;
        ensure!(client.said == "EPERM", "{}", client.said);
    }
    if observer.ready.contains("rules: live") && !observer.ready.contains("second packet") {
        // At once, or in a line of its own.
        wait_for("both rules", || {
            let told = observer.so_far();
            let is_named = |port: &str| {
                let of_port = format!("\"port\":{port}}}");
                told.lines().any(|line| line.contains(&of_port) && line.contains("could not translate"))
            };
            Ok(["9001", "9002"].into_iter().all(is_named).then_some(()))
        })?;
    }
    let report = observer.stop()?;
    let mut all_seen = true;
    for (port, table, chain, position) in [(9001, "t", "p", 2), (9002, "nat", "POSTROUTING", 1)] {
        let mut lines = report.late.iter().chain(&report.events);
        let event = lines.find(|event| event["destination"]["port"] == port).context("no event")?;
        expect(event, &[("/egress/hook", json!("postrouting"))])?;
        if report.account["rules"]["live"] != true {
            // The rule's expression is none of those that are probed.
            ensure!(event["egress"]["cause"] == "netfilter" && event["egress"]["rule"]["handle"].is_null(), "{event}");
            all_seen = false;
            continue;
        }
        expect(
            event,
            &[
                ("/egress/cause", json!("nat")),
                ("/egress/verdict", json!("drop")),
                ("/egress/rule/table", json!(table)),
                ("/egress/rule/chain", json!(chain)),
                ("/egress/rule/position", json!(position)),
            ],
        )?;
        ensure!(event["egress"]["rule"]["handle"].is_u64(), "{event}");
        ensure!(
            event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("could not translate")),
            "{event}"
        );
    }
    ensure!(report.account["rules"]["probe"]["discarded"] == 0, "{}", report.account["rules"]);
    if all_seen {
        Ok(Outcome::Passed)
    } else {
        Ok(Outcome::Skipped("this kernel does not show what rules drop".to_owned()))
    }
}

/// A balanced service without a server behind it.
pub(super) fn ipvs() -> Result<Outcome> {
    if let Some(skipped) = without_a_machine() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    if lab.client.run("ipvsadm", &["--version"]).is_err() {
        return Ok(Outcome::Skipped("ipvsadm is not installed, or this kernel has no IPVS".to_owned()));
    }
    lab.client.run("ipvsadm", &["-A", "-u", &format!("{FAR_V4}:9001"), "-s", "rr"])?;
    lab.client.nft("table inet t {}")?;
    let observer = Observer::watch(&lab.client)?;
    let client = observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "9001"]))?;
    told_by(&observer.stop()?, client.pid, "netfilter", "ip_vs_", "IPVS")
}

/// A policy that allows everything but to send what a rule marks.
const POLICY: &str = include_str!("../../../../fixtures/selinux.cil");

pub(super) fn selinux() -> Result<Outcome> {
    if let Some(skipped) = without_a_machine() {
        return Ok(skipped);
    }
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !modules.split(',').any(|module| module == "selinux") {
        return Ok(Outcome::Skipped("SELinux is not on in this machine".to_owned()));
    }
    let lab = Lab::new()?;
    let folder = tempfile::tempdir()?;
    let (source, policy, files) =
        (folder.path().join("policy.cil"), folder.path().join("policy"), Path::new("/sys/fs/selinux"));
    fs::write(&source, POLICY)?;
    let (source, compiled) = (source.display().to_string(), policy.display().to_string());
    if Command::new("secilc").arg("--help").output().is_err() {
        return Ok(Outcome::Skipped("secilc is not installed".to_owned()));
    }
    lab.client.run("secilc", &["-c", "31", "-o", &compiled, "-f", "/dev/null", &source])?;
    let mounted = folder.path().join("selinuxfs");
    let files = if files.join("load").exists() {
        files.to_owned()
    } else {
        fs::DirBuilder::new().mode(0o700).create(&mounted)?;
        nix::mount::mount(Some("selinuxfs"), &mounted, Some("selinuxfs"), nix::mount::MsFlags::empty(), None::<&str>)?;
        mounted
    };
    fs::write(files.join("load"), fs::read(&policy)?).context("the policy is not taken")?;
    lab.client.nft(
        "table inet t { secmark blocked { \"u:r:blocked:s0\" }\n\
         chain o { type filter hook output priority -225; udp dport 9001 meta secmark set \"blocked\" } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let enforces = |value| fs::write(files.join("enforce"), value).context("enforcing");
    enforces("1")?;
    let client = observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "9001"]));
    enforces("0")?;
    let client = client?;
    let outcome = told_by(&observer.stop()?, client.pid, "lsm", "selinux_", "SELinux");
    ensure!(client.said == "ECONNREFUSED", "{}", client.said);
    outcome
}

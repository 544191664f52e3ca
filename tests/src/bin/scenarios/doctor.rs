//! `observer doctor` tells the truth about this kernel.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::{namespace::Namespace, observer};
use serde_json::Value;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("observable_with_a_self_test", observable),
    ("markdown_for_a_ticket", markdown),
    ("knows_the_firewalls", firewalls),
    ("in_a_pid_namespace_of_its_own", pid_namespace),
];

fn json(command: &mut std::process::Command) -> Result<Value> {
    let output = command.args(["doctor", "-o", "json"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.lines().count() == 1, "{text} {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_str(&text)?)
}

fn check<'a>(answer: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = answer["egress"]["checks"].as_array().context("no checks")?;
    checks.iter().find(|check| check["name"] == name).with_context(|| format!("no check `{name}` in {answer}"))
}

fn observable() -> Result<Outcome> {
    let answer = json(&mut observer::command())?;
    ensure!(answer["egress"]["observable"] == true, "{answer}");
    for name in ["kernel", "btf", "lockdown", "privilege", "cgroup2", "drops", "reasons", "forwarding", "self-test"] {
        check(&answer, name)?;
    }
    ensure!(check(&answer, "self-test")?["status"] == "ok", "{answer}");
    for check in answer["egress"]["checks"].as_array().context("no checks")? {
        let complete = check["status"] == "ok" || check["consequence"].is_string() && check["remedy"].is_string();
        ensure!(complete, "a shortcoming without consequence or remedy: {check}");
    }
    Ok(Outcome::Passed)
}

fn markdown() -> Result<Outcome> {
    let output = observer::command().args(["doctor", "-o", "markdown"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && text.contains("| self-test | ok |"), "{text}");
    Ok(Outcome::Passed)
}

/// Inside a namespace with rules of two kinds.
fn firewalls() -> Result<Outcome> {
    let namespace = Namespace::new()?;
    let inside = || {
        let mut command = namespace.command(observer::program());
        json(&mut command)
    };
    ensure!(
        check(&inside()?, "firewalls")?["detail"].as_str().is_some_and(|detail| detail.starts_with("none")),
        "not none"
    );
    namespace.nft("table inet mine { chain out { type filter hook output priority 0; } }")?;
    let detail = check(&inside()?, "firewalls")?["detail"].to_string();
    ensure!(detail.contains("nftables") && detail.contains("mine"), "{detail}");
    namespace.run("iptables-legacy", &["-A", "OUTPUT", "-j", "ACCEPT"])?;
    let answer = inside()?;
    let found = check(&answer, "firewalls")?;
    ensure!(found["status"] == "note" && found["detail"].to_string().contains("iptables-legacy"), "{found}");
    Ok(Outcome::Passed)
}

/// Where the kernel's process numbers mean somebody else: said, and nobody is named wrongly.
fn pid_namespace() -> Result<Outcome> {
    let mut command = std::process::Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--"]).arg(observer::program());
    let answer = json(&mut command)?;
    ensure!(check(&answer, "container")?["status"] == "degraded", "{answer}");
    ensure!(answer["egress"]["observable"] == true, "{answer}");
    Ok(Outcome::Passed)
}

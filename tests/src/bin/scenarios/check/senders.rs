//! Who would send: programs of its cgroup, rules that ask for that, units of systemd.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab},
    observer::{command_after, expect, program},
    testbed::{DenyingCgroup, cgroup_root},
    traffic,
};
use serde_json::{Value, json};

use super::{
    check,
    conversations::{echo, seconds},
    lines, word,
};
use crate::{Outcome, without_a_machine, without_trials};

/// Why there is no cgroup in which something could be tried.
fn without_cgroups() -> Outcome {
    Outcome::Skipped("the unified cgroup hierarchy is not mounted here".to_owned())
}

/// What a client in a cgroup says.
fn tries(lab: &Lab, procs: &Path, args: &[&str]) -> Result<String> {
    let mut client = lab.client.command("sh");
    client.args(["-c", "echo $$ > \"$1\" && shift && exec python3 -IS - \"$@\"", "sh"]).arg(procs).args(args);
    client.stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(traffic::finish(client.spawn()?)?.said)
}

/// Programs at every hook, beside a rule and without any: what is said is what a client in that cgroup finds.
pub(super) fn programs() -> Result<Outcome> {
    let Some(root) = cgroup_root()? else { return Ok(without_cgroups()) };
    let destinations = [("tcp", FAR_V4, 443), ("tcp", FAR_V6, 443), ("udp", FAR_V4, 53), ("tcp", FAR_V4, 80)];
    let words: Vec<String> = destinations.iter().map(|to| word(*to)).collect();
    for (program, hook) in
        [("deny_egress", "egress"), ("deny_connect4", "connect"), ("deny_send4", "sendmsg"), ("deny_create", "socket")]
    {
        let lab = Lab::new()?;
        let _servers = [lab.web_server(443)?, lab.web_server(80)?];
        lab.client.nft("table inet t { chain o { type filter hook output priority 0; tcp dport 80 drop\n} }")?;
        let name = format!("observer-check-{program}-{}", std::process::id());
        let cgroup = DenyingCgroup::with(&root, &name, program)?;
        let path = format!("/{name}");
        let mut args = vec!["--no-fix", "-o", "json", "--as-unit", &path];
        args.extend(words.iter().map(String::as_str));
        let told = lines(&check(&lab.client, &args)?)?;
        let free = lines(&check(
            &lab.client,
            &words.iter().map(String::as_str).chain(["-o", "json", "--no-fix"]).collect::<Vec<_>>(),
        )?)?;
        for (((transport, address, port), event), outside) in destinations.iter().zip(&told).zip(&free) {
            let port = port.to_string();
            let args: &[&str] =
                if *transport == "tcp" { &["tcp", address, &port, "1.5"] } else { &["udp", address, &port] };
            // A client that cannot make a socket does not get so far as to say so.
            let said = tries(&lab, &cgroup.processes(), args).unwrap_or_else(|_| "no socket".to_owned());
            let action = if said == "ok" { "egress-allowed" } else { "egress-blocked" };
            let wanted = [("/event/action", json!(action)), ("/egress/cgroup", json!(path))];
            expect(event, &wanted)
                .with_context(|| format!("{program}: {transport} {address}: the client says {said}"))?;
            let is_ruled = port == "80";
            if said != "ok" && !(is_ruled && event["egress"]["cause"] == "netfilter") {
                expect(event, &[("/egress/cause", json!("cgroup")), ("/egress/hook", json!(hook))])?;
                let reason = event["event"]["reason"].as_str().unwrap_or_default();
                ensure!(reason == format!("BPF program `{program}` of cgroup {path}"), "{reason}");
            }
            // Whoever is in another cgroup is not denied it.
            let is_out = outside["event"]["action"] == "egress-allowed";
            ensure!(is_out != is_ruled && outside["egress"]["cgroup"].is_null(), "{outside}");
        }
    }
    Ok(Outcome::Passed)
}

/// A rule for a cgroup, with its fix; and a program that sends elsewhere.
pub(super) fn rules() -> Result<Outcome> {
    let Some(root) = cgroup_root()? else { return Ok(without_cgroups()) };
    let lab = Lab::new()?;
    let name = format!("observer-check-rules-{}", std::process::id());
    let cgroup = DenyingCgroup::with(&root, &name, "deny_connect4")?;
    let rule = format!("socket cgroupv2 level 1 \"{name}\" tcp dport 80 drop");
    let rules = format!("table inet t {{ chain o {{ type filter hook output priority 0; {rule}\n}}\n}}");
    // Where `nft` looks for it.
    let mounted = format!("mount --bind {} /sys/fs/cgroup && exec nft -f -", root.display());
    if let Err(error) = lab.client.feed("unshare", &["-m", "sh", "-c", &mounted], &rules) {
        return Ok(Outcome::Skipped(format!("this kernel or nft knows no cgroups in rules: {error:#}")));
    }
    let _server = lab.web_server(80)?;
    let (path, to) = (format!("/{name}"), word(("tcp", FAR_V4, 80)));
    let output = check(&lab.client, &["-o", "json", "--as-unit", &path, &to])?;
    let told = lines(&output)?;
    let said = tries(&lab, &cgroup.processes(), &["tcp", FAR_V4, "80", "0.6"])?;
    ensure!(
        said == "timeout" && output.status.code() == Some(1),
        "the client says {said}, observer ends with {}",
        output.status
    );
    expect(&told[0], &[("/event/action", json!("egress-blocked")), ("/egress/cause", json!("netfilter"))])?;
    expect(&told[0], &[("/egress/fix/verified", json!(true)), ("/egress/verdict", json!("drop"))])?;
    let outside = lines(&check(&lab.client, &["-o", "json", "--as-unit", "/", &to])?)?;
    expect(&outside[0], &[("/event/action", json!("egress-allowed"))])?;
    let moved = lines(&check(&lab.client, &["-o", "json", "--as-unit", &path, &word(("tcp", FAR_V4, 8443))])?)?;
    expect(&moved[0], &[("/event/action", json!("egress-unknown"))])?;
    let why = moved[0]["egress"]["check"]["why"].as_str().unwrap_or_default();
    ensure!(why.contains(&format!("sends it to {FAR_V4}:444 instead")), "{why}");
    let here = lines(&check(&lab.client, &["-o", "json", "--as-unit", &path, &word(("tcp", FAR_V4, 8444))])?)?;
    expect(&here[0], &[("/event/action", json!("egress-unknown"))])?;
    let why = here[0]["egress"]["check"]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("127.0.0.1:8444") || why.contains("to this host itself"), "{why}");
    // Whoever asks is in there himself.
    let mut inside = std::process::Command::new("sh");
    inside.args(["-c", "echo $$ > \"$1\" && shift && exec \"$@\"", "sh"]).arg(cgroup.processes()).arg(program());
    inside.args(["check", "--no-fix", "-o", "json", "--netns"]).arg(lab.client.path()).arg(word(("tcp", FAR_V4, 443)));
    let told = lines(&inside.stdin(Stdio::null()).output()?)?;
    expect(&told[0], &[("/event/action", json!("egress-blocked")), ("/egress/cause", json!("cgroup"))])?;
    Ok(Outcome::Passed)
}

/// A group that no file of the host names.
const GROUP: &str = "61999";

/// A rule for whoever is in a group besides its own: a user is asked for as `/etc/group` has it, and its fix lets
/// that user through.
pub(super) fn supplementary_groups() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), fs::read_to_string("/etc/group")? + &format!("\nnonet:x:{GROUP}:nobody\n"))?;
    let as_seen_there = format!("mount --bind {} /etc/group", file.path().display());
    for kind in ["nft", "legacy"] {
        for (program, address) in [("iptables", FAR_V4), ("ip6tables", FAR_V6)] {
            let lab = Lab::new()?;
            let _server = echo(&lab.server, &["443"])?;
            lab.client.nft("table inet t {\n}\n")?;
            let rules = format!("*filter\n-A OUTPUT -m owner --gid-owner {GROUP} --suppl-groups -j REJECT\nCOMMIT\n");
            lab.client.feed(&format!("{program}-{kind}-restore"), &["--noflush"], &rules)?;
            let holds_as = |groups: &str| -> Result<bool> {
                let mut client = lab.client.command("setpriv");
                client.args(["--reuid", "65534", "--regid", "65534", groups, "/usr/bin/python3", "-IS", "-"]);
                client.args(["converse", &seconds(1.0), "tcp", address, "443"]).stdin(traffic::script()?);
                client.stdout(Stdio::piped()).stderr(Stdio::piped());
                Ok(traffic::finish(client.spawn()?)?.said == "ok")
            };
            let member = format!("--groups={GROUP}");
            ensure!(!holds_as(&member)? && holds_as("--clear-groups")?, "{kind}: {program}: the lab's rules");
            let mut asked = command_after(&as_seen_there);
            asked.args(["check", "-o", "json", "--as", "nobody", "--netns"]).arg(lab.client.path());
            let told = lines(&asked.arg(word(("tcp", address, 443))).stdin(Stdio::null()).output()?)?;
            expect(&told[0], &[("/event/action", json!("egress-blocked")), ("/egress/fix/verified", json!(true))])
                .with_context(|| format!("{kind}: {program}"))?;
            for command in told[0]["egress"]["fix"]["commands"].as_array().context("no commands")? {
                lab.client.run("sh", &["-c", command.as_str().context("a command")?])?;
            }
            ensure!(holds_as(&member)?, "{kind}: {program}: {}", told[0]);
            for command in told[0]["egress"]["fix"]["undo"].as_array().context("no undo")? {
                lab.client.run("sh", &["-c", command.as_str().context("a command")?])?;
            }
            ensure!(!holds_as(&member)?, "{kind}: {program}: the undo of {}", told[0]);
        }
    }
    Ok(Outcome::Passed)
}

const UNIT: &str = "[Service]\nExecStart=/bin/sleep 600\nUser=nobody\nIPAddressDeny=any\nIPAddressAllow=2001:db8:1::/48\n\
                    NetworkNamespacePath=";

/// A unit as its manager reports it, before it runs and while it does.
pub(super) fn units() -> Result<Outcome> {
    if let Some(skipped) = without_a_machine() {
        return Ok(skipped);
    }
    if fs::read_to_string("/proc/1/comm")?.trim() != "systemd" {
        return Ok(Outcome::Skipped("this machine's first program is not systemd".to_owned()));
    }
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain o { type filter hook output priority 0; meta skuid 65534 tcp dport 80 drop\n} }")?;
    let unit = "observer-test-check.service";
    let file = Path::new("/run/systemd/system").join(unit);
    fs::create_dir_all(file.parent().context("a folder")?)?;
    fs::write(&file, format!("{UNIT}{}\n", lab.client.path().display()))?;
    let systemctl = |args: &[&str]| -> Result<()> {
        let status = std::process::Command::new("systemctl").args(args).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "systemctl {args:?}: {status}");
        Ok(())
    };
    systemctl(&["daemon-reload"])?;
    let ask = || -> Result<Vec<Value>> {
        let mut command = harness::observer::command();
        command.args(["check", "--no-fix", "-o", "json", "--as-unit", unit]);
        for to in [("udp", FAR_V4, 53), ("udp", FAR_V6, 53), ("tcp", FAR_V6, 80)] {
            command.arg(word(to));
        }
        lines(&command.stdin(Stdio::null()).output()?)
    };
    for is_running in [false, true] {
        if is_running {
            systemctl(&["start", unit])?;
        }
        let told = ask()?;
        let [denied, passes, ruled] = told.as_slice() else { anyhow::bail!("{told:?}") };
        expect(denied, &[("/event/action", json!("egress-blocked")), ("/egress/cause", json!("cgroup"))])?;
        expect(denied, &[("/egress/unit", json!(unit)), ("/egress/hook", json!("egress"))])?;
        ensure!(denied["event"]["reason"].as_str().is_some_and(|reason| reason.contains("IPAddressDeny=")), "{denied}");
        expect(passes, &[("/event/action", json!("egress-allowed"))])?;
        expect(ruled, &[("/event/action", json!("egress-blocked")), ("/egress/cause", json!("netfilter"))])?;
    }
    systemctl(&["stop", unit])?;
    fs::remove_file(&file)?;
    systemctl(&["daemon-reload"])?;
    Ok(Outcome::Passed)
}

pub(super) fn mistakes() -> Result<Outcome> {
    let lab = Lab::new()?;
    for (unit, says) in [("/no/such/cgroup", "no cgroup /no/such/cgroup"), ("/../etc", "is no path of a cgroup")] {
        let output = check(&lab.client, &["--as-unit", unit, &word(("tcp", FAR_V4, 443))])?;
        let said = String::from_utf8_lossy(&output.stderr);
        let is_mounted = cgroup_root()?.is_some();
        ensure!(!output.status.success() && (said.contains(says) || !is_mounted), "{unit}: {}: {said}", output.status);
    }
    Ok(Outcome::Passed)
}

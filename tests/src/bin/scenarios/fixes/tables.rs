//! Rules as they are, by nft and by both kinds of iptables.

use std::{io::Write, process::Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    observer::{Observer, command_among_mounts_of, program},
};
use serde_json::{Value, json};

use super::{To, expect, lines, server, told, works};
use crate::{Outcome, without_egress_hook, without_trials};

/// Who starts observer by `ip netns exec` types what is printed in a shell of the host's.
pub(super) fn in_a_named_namespace() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    lab.client.run("sh", &["-c", "touch /run/netns/blue && mount --bind /proc/self/ns/net /run/netns/blue"])?;
    lab.client
        .nft("table inet t {\n chain o {\n type filter hook output priority 0; ip daddr 203.0.113.10 drop\n }\n}\n")?;
    let mut observer = command_among_mounts_of(&lab.client);
    let netns = lab.client.path();
    observer.args(["check", "--netns"]).arg(netns).args(["-o", "json", "203.0.113.10:443"]);
    let by_number = observer.stdin(Stdio::null()).output()?;
    let mut observer = lab.client.command(program());
    let inside = observer.args(["check", "-o", "json", "203.0.113.10:443"]).stdin(Stdio::null()).output()?;
    for (output, place) in [(by_number, json!("ip netns exec blue")), (inside, Value::Null)] {
        let told = crate::check::lines(&output)?;
        let event = told.first().context("no line")?;
        let (commands, undo) = (lines(event, "commands"), lines(event, "undo"));
        ensure!(event["egress"]["where"] == place && event["egress"]["fix"]["verified"] == true, "{event}");
        let is_placed = |line: &String| line.starts_with("ip netns exec blue nft ");
        ensure!(!commands.is_empty() && commands.iter().chain(&undo).all(is_placed), "{event}");
        for line in commands.iter().chain(&undo) {
            lab.client.run("sh", &["-c", line])?;
        }
    }
    Ok(Outcome::Passed)
}

/// Tables that nobody manages.
pub(super) fn nft() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let base = |rules: &str| {
        format!(
            "table inet t {{ set s {{ type ipv4_addr; elements = {{ 203.0.113.10 }} }}\nchain sub {{ udp dport 7002 drop }}\nchain o {{ type filter hook output priority 0; {rules} }} }}"
        )
    };
    let mut rulesets: Vec<(String, To<'_>)> = vec![
        (base("udp dport 1 accept; tcp dport 443 counter drop"), ("tcp", FAR_V4, 443)),
        (base("tcp dport 443 reject with tcp reset"), ("tcp", FAR_V6, 443)),
        (base("policy drop; udp dport 1 accept"), ("udp", FAR_V4, 53)),
        (base("ip daddr @s drop"), ("udp", FAR_V4, 53)),
        (base("udp dport vmap { 7001 : drop, 7002 : jump sub }"), ("udp", FAR_V6, 7001)),
        (base("jump sub"), ("udp", FAR_V4, 7002)),
        // Two chains, one behind the other.
        (
            format!(
                "{}\ntable ip u {{ chain p {{ type filter hook postrouting priority 0; udp dport 53 drop }} }}",
                base("udp dport 53 drop")
            ),
            ("udp", FAR_V4, 53),
        ),
    ];
    if without_egress_hook().is_none() {
        let egress = "table netdev n { chain e { type filter hook egress device eth0 priority 0; udp dport 53 drop } }";
        rulesets.push((egress.to_owned(), ("udp", FAR_V4, 53)));
    }
    for (ruleset, to) in rulesets {
        let lab = Lab::new()?;
        lab.client.nft(&ruleset)?;
        let _server = server(&lab, to)?;
        let is_egress = ruleset.contains("netdev");
        let result = if is_egress {
            counted(&lab, to)
        } else {
            works(&lab.client, &lab.client, to, &[]).and_then(|event| has_all_forms(&event))
        };
        result.map_err(|error| error.context(ruleset))?;
    }
    Ok(Outcome::Passed)
}

/// The fix has the narrow or the broad form beside it, and one that ends by itself.
pub(super) fn has_all_forms(event: &Value) -> Result<()> {
    let fix = &event["egress"]["fix"];
    let other = if fix["scope"] == "address" { "broad" } else { "narrow" };
    ensure!([other, "temporary"].iter().all(|form| fix[form]["commands"].is_array()), "{fix}");
    Ok(())
}

/// What is dropped behind the sender's back is known by what arrives.
fn counted(lab: &Lab, to: To<'_>) -> Result<()> {
    lab.server.nft("table inet c { chain i { type filter hook input priority 0; udp dport 53 counter } }")?;
    let netns = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns].map(str::to_owned))?;
    let event = told(&observer, &lab.client, to)?;
    observer.stop()?;
    expect(&event, &[("/egress/fix/verified", json!(true)), ("/egress/fix/undo_verified", json!(true))])?;
    for (which, arrive) in [("commands", 1), ("undo", 0)] {
        for line in lines(&event, which) {
            lab.client.run("sh", &["-c", &line])?;
        }
        let before = lab.server.counted()?;
        super::tries(&lab.client, to)?;
        let arrived = lab.server.counted()? - before;
        ensure!(arrived == arrive, "after the {which} {arrived} packets arrive: {event}");
    }
    Ok(())
}

/// iptables' own words, by whichever kind made the rule.
pub(super) fn iptables(by_legacy: bool) -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let kind = if by_legacy { "legacy" } else { "nft" };
    for (rules, to) in [
        (&["-A OUTPUT -p udp --dport 1 -j ACCEPT", "-A OUTPUT -p tcp --dport 443 -j DROP"][..], ("tcp", FAR_V4, 443)),
        (&["-P OUTPUT DROP"], ("udp", FAR_V6, 53)),
        (&["-N blk", "-A OUTPUT -j blk", "-A blk -d 203.0.113.0/24 -j REJECT"], ("udp", FAR_V4, 53)),
        (&["-t mangle -A POSTROUTING -p udp --dport 53 -j DROP"], ("udp", FAR_V4, 53)),
    ] {
        let lab = Lab::new()?;
        if by_legacy {
            lab.client.nft("table inet t {}")?;
        }
        for rule in rules {
            for program in [format!("iptables-{kind}"), format!("ip6tables-{kind}")] {
                if rule.contains("203.0.113") && program.starts_with("ip6") {
                    continue;
                }
                lab.client.run(&program, &rule.split(' ').collect::<Vec<_>>())?;
            }
        }
        let _server = server(&lab, to)?;
        works(&lab.client, &lab.client, to, &[]).map_err(|error| error.context(format!("{rules:?}")))?;
    }
    Ok(Outcome::Passed)
}

/// Docker's own chain for the administrator's rules.
pub(super) fn docker() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let lab = Containers::new(Plug::Bridge)?;
    for rule in [
        "-N DOCKER-USER",
        "-N DOCKER-ISOLATION-STAGE-1",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-A DOCKER-ISOLATION-STAGE-1 -i docker0 -p udp --dport 7000 -j DROP",
    ] {
        lab.host.run("iptables-nft", &rule.split(' ').collect::<Vec<_>>())?;
    }
    let netns = lab.host.path().display().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns].map(str::to_owned))?;
    let event = told(&observer, &lab.containers[0], ("udp", FAR_V4, 7000))?;
    observer.stop()?;
    expect(&event, &[("/egress/fix/verified", json!(true)), ("/egress/fix/undo_verified", json!(true))])?;
    let commands = lines(&event, "commands");
    ensure!(
        matches!(commands.as_slice(), [line] if line.ends_with("-I DOCKER-USER 1 -p udp --dport 7000 -i docker0 -j ACCEPT")),
        "{commands:?}"
    );
    ensure!(event["egress"]["fix"]["opens"].as_str().is_some_and(|opens| opens.contains("docker0")), "{event}");
    Ok(Outcome::Passed)
}

/// Names that a shell would take for something else are in no command, and nothing of them is run.
pub(super) fn hostile() -> Result<Outcome> {
    let lab = Lab::new()?;
    // iptables takes any chain's name, nft any comment.
    for rule in [
        &["-N", "a;touch$IFS/tmp/ob-hostile"][..],
        &["-A", "OUTPUT", "-j", "a;touch$IFS/tmp/ob-hostile"],
        &["-A", "a;touch$IFS/tmp/ob-hostile", "-p", "udp", "--dport", "7000", "-j", "DROP"],
        &[
            "-A",
            "OUTPUT",
            "-p",
            "udp",
            "--dport",
            "7001",
            "-m",
            "comment",
            "--comment",
            "'; touch /tmp/ob-hostile; '",
            "-j",
            "DROP",
        ],
    ] {
        lab.client.run("iptables-nft", rule)?;
    }
    works(&lab.client, &lab.client, ("udp", FAR_V4, 7001), &[])?;
    let netns = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "-o", "json", "--netns", &netns].map(str::to_owned))?;
    observer.tells(|| super::tries(&lab.client, ("udp", FAR_V4, 7000)))?;
    // What is looked for later is reported later.
    told(&observer, &lab.client, ("udp", FAR_V4, 7001))?;
    let report = observer.stop()?;
    for event in &report.fixes {
        let commands = event["egress"]["fix"]["commands"].to_string();
        ensure!(!commands.contains("hostile"), "{commands}");
    }
    ensure!(!std::path::Path::new("/tmp/ob-hostile").exists(), "a name was run");
    Ok(Outcome::Passed)
}

/// A chain that INPUT and OUTPUT lead to: what lets a packet out must let none in. And chains and tables that no command can change.
pub(super) fn shared() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    for rule in [
        "-N droplog",
        "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A INPUT -i eth0 -j droplog",
        "-A OUTPUT -p udp -j ACCEPT",
        "-A OUTPUT -j droplog",
        "-A droplog -j DROP",
    ] {
        lab.client.run("iptables-nft", &rule.split(' ').collect::<Vec<_>>())?;
    }
    let command = "iptables -I OUTPUT 2 -d 203.0.113.10 -p tcp --dport 443 -j ACCEPT";
    let to = ("tcp", FAR_V4, 443);
    let netns = lab.client.path().display().to_string();
    let fix = |to: To<'_>| -> Result<Value> {
        let observer = Observer::start(["watch", "-o", "json", "--netns", &netns].map(str::to_owned))?;
        let event = told(&observer, &lab.client, to)?;
        observer.stop()?;
        Ok(event)
    };
    let event = fix(to)?;
    expect(&event, &[("/egress/fix/verified", json!(true)), ("/egress/fix/undo_verified", json!(true))])?;
    let commands = super::without_place(&event, "commands")?;
    ensure!(commands.len() == 1 && commands[0].ends_with(&command["iptables".len()..]), "{commands:?}");
    // From outside the port stays closed.
    lab.client.run("sh", &["-c", &lines(&event, "commands")[0]])?;
    let listing = lab.client.run("iptables-nft", &["-S", "droplog"])?;
    ensure!(!listing.contains("443"), "{listing}");
    lab.client.run("iptables-nft", &["-F"])?;
    // The same in nft's words.
    lab.client.nft(
        "table inet t { chain droplog { counter drop }\nchain i { type filter hook input priority 0; ct state established accept; iif eth0 jump droplog }\n\
         chain o { type filter hook output priority 0; udp dport 1 drop\ntcp dport 443 jump droplog } }",
    )?;
    let event = fix(to)?;
    let commands = super::without_place(&event, "commands")?;
    ensure!(commands.len() == 1 && commands[0].starts_with("nft insert rule inet t o handle "), "{event}");
    expect(&event, &[("/egress/fix/verified", json!(true)), ("/egress/fix/undo_verified", json!(true))])?;
    lab.client.run("nft", &["flush", "ruleset"])?;
    // A map of verdicts elsewhere says nothing of a base chain.
    lab.client.nft(
        "table inet t { chain i { type filter hook input priority 0; ct state vmap { established : accept, invalid : drop } }\n\
         chain o { type filter hook output priority 0; tcp dport 443 drop } }",
    )?;
    let event = fix(to)?;
    expect(&event, &[("/egress/fix/verified", json!(true))])?;
    lab.client.run("nft", &["flush", "ruleset"])?;
    // Whoever made it holds it open.
    let mut owner = lab.client.command("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let stdin = owner.stdin.as_mut().context("no input")?;
    stdin.write_all(b"add table inet t { flags owner; }\nadd chain inet t o { type filter hook output priority 0; }\nadd rule inet t o tcp dport 443 drop\n")?;
    let is_there = || lab.client.run("nft", &["list", "table", "inet", "t"]).is_ok_and(|text| text.contains("443"));
    harness::wait_for("the table", || Ok(is_there().then_some(())))?;
    let event = fix(to)?;
    owner.kill()?;
    owner.wait()?;
    ensure!(lines(&event, "commands").is_empty(), "{event}");
    let note = event["egress"]["fix"]["note"].as_str().unwrap_or_default();
    ensure!(note.contains("belongs to the program that made it"), "{event}");
    Ok(Outcome::Passed)
}

/// `run` says it while the command hangs, and again at its end.
pub(super) fn by_run() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    crate::front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let netns = lab.client.path().display().to_string();
    let mut observer = command_among_mounts_of(&lab.client);
    observer.args(["run", "--netns", &netns, "--report"]).arg(&report).args(["--", "sh", "-c"]);
    // Longer than the search for a fix takes, also on a machine with more to do.
    let hangs = 20 * harness::slowness();
    let client = format!("nsenter --net={netns} timeout {hangs} bash -c 'exec 3<>/dev/tcp/{FAR_V4}/443'");
    let output = observer.arg(client).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Nobody typed sudo.
    let place = format!("nsenter -t {} -n", lab.client.pid());
    ensure!(said.contains(&format!("observer: fix (tested): {place} ufw allow out 443/tcp\n")), "{said}");
    ensure!(said.contains(&format!("    fix      {place} ufw allow out 443/tcp\n")), "{said}");
    ensure!(said.contains(&format!("    undo     {place} ufw deny out 443/tcp\n")), "{said}");
    let scope = format!("in network namespace {} of pid {}", lab.client.inode()?, lab.client.pid());
    ensure!(said.contains(&scope), "{said}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    let story = report["egress"]["blocked"].get(0).context("nothing was blocked")?;
    ensure!(
        story["fix"]["verified"] == true
            && story["fix"]["commands"] == json!([format!("{place} ufw allow out 443/tcp")]),
        "{story}"
    );
    Ok(Outcome::Passed)
}

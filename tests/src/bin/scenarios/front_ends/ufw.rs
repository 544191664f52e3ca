//! ufw, by both kinds of iptables.

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug, Server},
    observer::{Observer, expect},
    traffic,
};
use serde_json::{Value, json};

use super::{event, hear, knock, knock_until_named, one_by_one, shell_words, with_iptables_legacy, with_ufw};
use crate::Outcome;

/// A statement, what it stops, and how it stands in `ufw status numbered`.
struct Case {
    statement: &'static str,
    /// As `ufw show added` has it.
    words: &'static str,
    packets: &'static [(&'static str, &'static str, u16)],
    /// In the list of numbers; behind it ` (v6)` for the other family.
    listed: &'static str,
}

const CASES: [Case; 12] = [
    Case {
        statement: "deny out 443/tcp comment 'hardening 2023'",
        words: "deny out 443/tcp",
        packets: &[("tcp", FAR_V4, 443), ("tcp", FAR_V6, 443)],
        listed: "443/tcp",
    },
    Case {
        statement: "deny out 53",
        words: "deny out 53",
        packets: &[("udp", FAR_V4, 53), ("tcp", FAR_V6, 53)],
        listed: "53",
    },
    Case { statement: "allow in 22/tcp", words: "allow 22/tcp", packets: &[], listed: "22/tcp" },
    Case {
        statement: "reject out to 203.0.113.0/24 port 80 proto tcp",
        words: "reject out to 203.0.113.0/24 port 80 proto tcp",
        packets: &[("tcp", FAR_V4, 80)],
        listed: "203.0.113.0/24 80/tcp",
    },
    Case {
        statement: "deny out on eth0 to any port 25 proto tcp",
        words: "deny out on eth0 to any port 25 proto tcp",
        packets: &[("tcp", FAR_V4, 25), ("tcp", FAR_V6, 25)],
        listed: "25/tcp",
    },
    Case {
        statement: "deny out log 8000/tcp",
        words: "deny out log 8000/tcp",
        packets: &[("tcp", FAR_V4, 8000)],
        listed: "8000/tcp",
    },
    Case {
        statement: "deny out 1000:1010,2000/udp",
        words: "deny out 1000:1010,2000/udp",
        packets: &[("udp", FAR_V4, 1005), ("udp", FAR_V6, 2000)],
        listed: "1000:1010,2000/udp",
    },
    Case {
        statement: "deny out 'My App'",
        words: "deny out 'My App'",
        packets: &[("tcp", FAR_V4, 8080), ("udp", FAR_V4, 9091), ("udp", FAR_V6, 9095)],
        listed: "My App",
    },
    Case {
        statement: "route deny in on eth0 out on eth1 to 203.0.113.9",
        words: "route deny in on eth0 out on eth1 to 203.0.113.9",
        packets: &[],
        listed: "203.0.113.9 on eth1",
    },
    Case {
        statement: "deny out from 10.9.0.1 to 203.0.113.10 port 7000 proto udp",
        words: "deny out from 10.9.0.1 to 203.0.113.10 port 7000 proto udp",
        packets: &[("udp", FAR_V4, 7000)],
        listed: "203.0.113.10 7000/udp",
    },
    Case {
        statement: "reject out proto udp to any port 123",
        words: "reject out 123/udp",
        packets: &[("udp", FAR_V4, 123), ("udp", FAR_V6, 123)],
        listed: "123/udp",
    },
    Case {
        statement: "deny out to 2001:db8:1::10",
        words: "deny out to 2001:db8:1::10",
        packets: &[("udp", FAR_V6, 7777)],
        listed: "2001:db8:1::10",
    },
];

/// Each statement is reported as ufw writes it, under the number that ufw gives it; whatever ufw's iptables is.
pub(super) fn rules(by_legacy: bool) -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    lab.client.set("ipv4/tcp_syn_retries", "1")?;
    lab.client.private_files()?;
    if by_legacy {
        with_iptables_legacy(&lab.client)?;
        // The proof needs nftables.
        lab.client.nft("table inet t {}")?;
    }
    lab.client.feed(
        "sh",
        &["-c", "cat > /etc/ufw/applications.d/mine"],
        "[My App]\ntitle=Mine\ndescription=Mine\nports=8080/tcp|9090:9095/udp\n",
    )?;
    lab.client.run("ufw", &["--force", "reset"])?;
    lab.client.run("ufw", &["default", "allow", "outgoing"])?;
    for case in &CASES {
        let words = shell_words(case.statement);
        lab.client.run("ufw", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    lab.client.run("ufw", &["limit", "out", "2222/tcp"])?;
    lab.client.run("ufw", &["--force", "enable"])?;
    let added = lab.client.run("ufw", &["show", "added"])?;
    let numbered = lab.client.run("ufw", &["status", "numbered"])?;

    let observer = Observer::watch(&lab.client)?;
    for (transport, address, port) in CASES.iter().flat_map(|case| case.packets) {
        if by_legacy {
            knock_until_named(&observer, &lab.client, (transport, address, *port))?;
        } else {
            knock(&observer, &lab.client, (transport, address, *port))?;
        }
    }
    // The sixth connection within half a minute is refused.
    let server = lab.web_server(2222)?;
    let limited = observer.tells(|| {
        for _ in 0..6 {
            traffic::run(&lab.client, &["tcp", FAR_V4, "2222", "1"])?;
        }
        Ok(())
    });
    limited.context("the connections that ufw limits")?;
    drop(server);
    if !by_legacy {
        hear(&observer, ("tcp", FAR_V4, 2222))?;
    }
    let report = observer.stop()?;

    for case in &CASES {
        let in_ufw = |line: &str| {
            line.strip_prefix("ufw ").is_some_and(|line| line.split(" comment ").next() == Some(case.words))
        };
        ensure!(added.lines().any(in_ufw), "ufw has no `{}`: {added}", case.words);
        for (transport, address, port) in case.packets {
            let event = event(&report, (transport, address, *port))?;
            let v6 = address.contains(':');
            let number =
                listed_number(&numbered, case.listed, v6).with_context(|| format!("{} in {numbered}", case.listed))?;
            let comment = if case.statement.contains("hardening") { json!("hardening 2023") } else { Value::Null };
            expect(
                event,
                &[
                    ("/rule/ruleset", json!("ufw")),
                    ("/rule/name", json!(case.words)),
                    ("/rule/description", comment),
                    ("/egress/rule/number", json!(number)),
                    ("/egress/rule/note", Value::Null),
                    ("/egress/rule/chain", json!(if v6 { "ufw6-user-output" } else { "ufw-user-output" })),
                    ("/egress/rule/source", json!(if by_legacy { "replay" } else { "probe" })),
                ],
            )?;
            let reason = event["event"]["reason"].as_str().unwrap_or_default();
            ensure!(reason.starts_with(&format!("ufw rule {number} `{}`", case.words)), "{reason}");
        }
    }
    let limited = event(&report, ("tcp", FAR_V4, 2222))?;
    if by_legacy {
        // Which connection is one too many, a copy does not know: it lets the packet pass, or that is in doubt.
        ensure!(limited["rule"].is_null(), "{limited}");
    } else {
        expect(limited, &[("/rule/name", json!("limit out 2222/tcp")), ("/egress/verdict", json!("reject"))])?;
    }
    let ids: std::collections::BTreeSet<_> =
        report.events.iter().chain(&report.late).filter_map(|event| event["rule"]["id"].as_str()).collect();
    // One statement is one rule, in both families and whatever it was made into.
    let hit = CASES.iter().filter(|case| !case.packets.is_empty()).count() + usize::from(!by_legacy);
    ensure!(ids.len() == hit, "{hit} statements, {} ids", ids.len());
    Ok(Outcome::Passed)
}

/// `[ 7] 443/tcp (v6)  DENY OUT …`
fn listed_number(numbered: &str, listed: &str, v6: bool) -> Option<u32> {
    numbered.lines().find_map(|line| {
        let (number, rest) = line.strip_prefix('[')?.split_once(']')?;
        let rest = rest.trim_start().strip_prefix(listed)?;
        let own_family = listed.contains("::");
        let is_v6 = rest.starts_with(" (v6)");
        let ends = rest.starts_with("  ") || is_v6 || rest.starts_with(" on ");
        (ends && (is_v6 == v6 || own_family)).then(|| number.trim().parse().ok()).flatten()
    })
}

/// What no rule allows.
pub(super) fn default(action: &str, chain: &str) -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    with_ufw(&mut lab.client, &[&format!("default {action} outgoing"), "allow out 80/tcp"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, ("udp", FAR_V4, 53))?;
    let report = observer.stop()?;
    let event = event(&report, ("udp", FAR_V4, 53))?;
    expect(
        event,
        &[
            ("/rule/ruleset", json!("ufw")),
            ("/rule/name", json!(format!("default {action} outgoing"))),
            ("/egress/rule/number", Value::Null),
            ("/egress/rule/chain", json!(chain)),
            ("/egress/rule/note", Value::Null),
        ],
    )?;
    Ok(Outcome::Passed)
}

/// A line of an administrator's in a file that ufw reads.
pub(super) fn before() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    with_ufw(&mut lab.client, &["default allow outgoing"])?;
    let line = "-A ufw-before-output -p udp --dport 7000 -j DROP";
    lab.client.run("sed", &["-i", &format!("s/^COMMIT/{line}\\nCOMMIT/"), "/etc/ufw/before.rules"])?;
    lab.client.run("ufw", &["reload"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, ("udp", FAR_V4, 7000))?;
    let report = observer.stop()?;
    let event = event(&report, ("udp", FAR_V4, 7000))?;
    expect(event, &[("/rule/ruleset", json!("ufw")), ("/rule/name", json!(line)), ("/egress/rule/note", Value::Null)])?;
    ensure!(
        event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("/etc/ufw/before.rules")),
        "{event}"
    );
    Ok(Outcome::Passed)
}

/// A rule in ufw's chain that ufw does not know: no number is guessed, for this rule or any other there.
pub(super) fn changed() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    lab.client.run("iptables", &["-I", "ufw-user-output", "1", "-p", "udp", "--dport", "6000", "-j", "DROP"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, ("udp", FAR_V4, 6000))?;
    knock(&observer, &lab.client, ("tcp", FAR_V4, 443))?;
    let report = observer.stop()?;
    for (transport, port, words) in [("udp", 6000, "--dport 6000"), ("tcp", 443, "--dport 443")] {
        let event = event(&report, (transport, FAR_V4, port))?;
        expect(event, &[("/rule/ruleset", json!("ufw")), ("/egress/rule/number", Value::Null)])?;
        ensure!(event["rule"]["name"].as_str().is_some_and(|name| name.contains(words)), "{event}");
        let note = event["egress"]["rule"]["note"].as_str().unwrap_or_default();
        ensure!(note.contains("changed without ufw"), "{event}");
    }
    Ok(Outcome::Passed)
}

/// `observer` alone names what denies in the same words. It shows the namespace that it runs in.
pub(super) fn on_screen() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp comment 'hardening 2023'"])?;
    let program = harness::observer::program().canonicalize()?.display().to_string();
    // On an emulated machine the texts of rules take longer than the screen is to.
    let screen = lab.client.run("env", &[&format!("OBSERVER_PATIENCE={}", harness::slowness()), &program])?;
    ensure!(screen.contains("ufw rule 1 `deny out 443/tcp` # hardening 2023"), "{screen}");
    ensure!(screen.contains("ufw rule 2 `deny out 443/tcp` # hardening 2023"), "{screen}");
    Ok(Outcome::Passed)
}

/// A file system whose program never answers stands where ufw's files were: the rule is reported without them, and nothing waits. Others
/// keep their front end's words, however many reads hang.
pub(super) fn hanging_files() -> Result<Outcome> {
    const MOUNT: &str = "import ctypes, os, sys, time
fuse = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0'.encode()
if libc.mount(b'never', b'/etc/ufw', b'fuse.never', 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
print('mounted', flush=True)
time.sleep(600)
";
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    // More than the threads that may hang for one mount namespace.
    const HANGING: std::ops::Range<u16> = 6401..6407;
    const OTHER: u16 = 6410;
    let denies: Vec<String> = HANGING.map(|port| format!("deny out {port}/udp")).collect();
    let mut statements = vec!["default allow outgoing"];
    statements.extend(denies.iter().map(String::as_str));
    with_ufw(&mut lab.client, &statements)?;
    let mut other = Lab::new()?;
    with_ufw(&mut other.client, &["default allow outgoing", &format!("deny out {OTHER}/udp")])?;
    let mut command = lab.client.command("python3");
    let mut child = command.args(["-IS", "-c", MOUNT]).stdout(std::process::Stdio::piped()).spawn()?;
    let mut said = String::new();
    let stdout = child.stdout.take().context("no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said)?;
    // Its end lets go of whoever waits.
    let _server = Server(child);
    if said.trim() != "mounted" {
        return Ok(Outcome::Skipped("this kernel has no file systems of programs (FUSE)".to_owned()));
    }
    let observer = Observer::start(["watch", "-o", "json", "--no-fix"])?;
    for port in HANGING {
        knock(&observer, &lab.client, ("udp", FAR_V4, port))?;
    }
    knock(&observer, &other.client, ("udp", FAR_V4, OTHER))?;
    let report = observer.stop()?;
    for port in HANGING {
        let event = report.explained(event(&report, ("udp", FAR_V4, port))?);
        expect(event, &[("/rule/ruleset", json!("ufw")), ("/egress/rule/number", Value::Null)])?;
        let note = event["egress"]["rule"]["note"].as_str().unwrap_or_default();
        ensure!(note.contains("not to be read"), "{event}");
    }
    let event = report.explained(event(&report, ("udp", FAR_V4, OTHER))?);
    expect(event, &[("/rule/ruleset", json!("ufw")), ("/egress/rule/number", json!(1))])?;
    Ok(Outcome::Passed)
}

/// Rules for what is forwarded, and what no rule of them allows.
pub(super) fn routed() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Containers::new(Plug::Bridge)?;
    lab.host.private_files()?;
    let rule = "route deny in on docker0 out on eth0 to 203.0.113.10 port 7000 proto udp";
    for statement in ["--force reset", "default deny routed", "route allow 7001/udp", rule, "--force enable"] {
        lab.host.run("ufw", &statement.split(' ').collect::<Vec<_>>())?;
    }
    let numbered = lab.host.run("ufw", &["status", "numbered"])?;
    let number = listed_number(&numbered, "203.0.113.10 7000/udp", false);
    let number = number.with_context(|| format!("no number in {numbered}"))?;
    let observer = Observer::watch(&lab.host)?;
    for port in [7000, 7002] {
        knock(&observer, &lab.containers[0], ("udp", FAR_V4, port))?;
    }
    let report = observer.stop()?;
    for (port, name, number) in [(7000, rule, json!(number)), (7002, "default deny routed", Value::Null)] {
        expect(
            event(&report, ("udp", FAR_V4, port))?,
            &[("/rule/ruleset", json!("ufw")), ("/rule/name", json!(name)), ("/egress/rule/number", number)],
        )?;
    }
    Ok(Outcome::Passed)
}

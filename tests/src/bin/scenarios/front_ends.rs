//! Rules in the words of whoever manages them: real front ends, real clients, and what the front ends themselves say.

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug, Server},
    namespace::Namespace,
    observer::{Observer, Report, expect},
    traffic, wait_for,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("ufw_rules", || ufw_rules(false)),
    ("ufw_rules_by_iptables_legacy", || ufw_rules(true)),
    ("ufw_default_deny", || ufw_default("deny", "OUTPUT")),
    ("ufw_default_reject", || ufw_default("reject", "ufw-reject-output")),
    ("ufw_before_rules", ufw_before),
    ("ufw_was_changed_without_it", ufw_changed),
    ("ufw_on_the_answer_screen", ufw_on_screen),
    ("firewalld_rules", firewalld),
    ("iptables_in_its_own_words", iptables),
    ("chains_of_container_engines", engines),
    ("shorewall_csf_and_wg_quick", others),
    ("ferm_may_have_made_it", ferm),
    ("files_that_hang", hanging_files),
];

/// Every packet's rule is told at once where it is freed; elsewhere these words are the same.
fn one_by_one() -> Option<Outcome> {
    let live = kernel::is_at_least(6, 7);
    (!live).then(|| Outcome::Skipped("on this kernel not every packet's rule is told".to_owned()))
}

/// ufw with private files, switched on.
fn with_ufw(lab: &mut Lab, statements: &[&str]) -> Result<()> {
    lab.client.private_files()?;
    lab.client.run("ufw", &["--force", "reset"])?;
    for statement in statements {
        let words = shell_words(statement);
        lab.client.run("ufw", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    lab.client.run("ufw", &["--force", "enable"])?;
    Ok(())
}

/// Words with blanks stand between quotes.
fn shell_words(text: &str) -> Vec<String> {
    text.split('\'')
        .enumerate()
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

/// Sends one packet, which is dropped, and waits until that is told.
fn knock(observer: &Observer, client: &Namespace, transport: &str, address: &str, port: u16) -> Result<()> {
    let port = port.to_string();
    let args: &[&str] = if transport == "tcp" { &["tcp", address, &port, "0.2"] } else { &["udp", address, &port] };
    observer.tells(|| traffic::run(client, args)).map(drop).with_context(|| format!("{transport} {address} {port}"))
}

/// The event of a destination, told with its rule where one has it.
fn event<'a>(report: &'a Report, address: &str, transport: &str, port: u16) -> Result<&'a Value> {
    let mut all = report.events.iter().filter(|event| {
        event["destination"]["ip"] == address
            && event["destination"]["port"] == port
            && event["network"]["transport"] == transport
    });
    let named = all.clone().find(|event| !event["rule"].is_null());
    named
        .or_else(|| all.next())
        .with_context(|| format!("nothing of {transport} {address} {port}: {:?}", report.events))
}

/// Where only a copy of the rules names one, the first packet may come before there is a copy: until its rule is told.
fn knock_until_named(observer: &Observer, client: &Namespace, to: (&str, &str, u16)) -> Result<()> {
    const ATTEMPTS: usize = 8;
    for _ in 0..ATTEMPTS {
        knock(observer, client, to.0, to.1, to.2)?;
        let told = observer.so_far();
        let mut lines = told.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if lines.any(|event| {
            event["destination"]["ip"] == to.1
                && event["destination"]["port"] == to.2
                && event["network"]["transport"] == to.0
                && !event["rule"].is_null()
        }) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    Ok(())
}

/// What `iptables` is in this namespace: its older tables.
fn with_iptables_legacy(client: &Namespace) -> Result<()> {
    let script = "mount --bind $(readlink -f $(command -v iptables-legacy)) $(readlink -f $(command -v iptables-nft))";
    client.run("sh", &["-c", script])?;
    let version = client.run("iptables", &["--version"])?;
    ensure!(version.contains("legacy"), "{version}");
    Ok(())
}

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

/// Each statement is told as ufw writes it, under the number that ufw gives it; whatever ufw's iptables is.
fn ufw_rules(by_legacy: bool) -> Result<Outcome> {
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
            knock(&observer, &lab.client, transport, address, *port)?;
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
    let report = observer.stop()?;

    for case in &CASES {
        let in_ufw = |line: &str| {
            line.strip_prefix("ufw ").is_some_and(|line| line.split(" comment ").next() == Some(case.words))
        };
        ensure!(added.lines().any(in_ufw), "ufw has no `{}`: {added}", case.words);
        for (transport, address, port) in case.packets {
            let event = event(&report, address, transport, *port)?;
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
    let limited = event(&report, FAR_V4, "tcp", 2222)?;
    if by_legacy {
        // Which connection is one too many, a copy does not know: it lets the packet pass, or that is in doubt.
        ensure!(limited["rule"].is_null(), "{limited}");
    } else {
        expect(limited, &[("/rule/name", json!("limit out 2222/tcp")), ("/egress/verdict", json!("reject"))])?;
    }
    let ids: std::collections::BTreeSet<_> =
        report.events.iter().filter_map(|event| event["rule"]["id"].as_str()).collect();
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
fn ufw_default(action: &str, chain: &str) -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    with_ufw(&mut lab, &[&format!("default {action} outgoing"), "allow out 80/tcp"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, "udp", FAR_V4, 53)?;
    let report = observer.stop()?;
    let event = event(&report, FAR_V4, "udp", 53)?;
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
fn ufw_before() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    with_ufw(&mut lab, &["default allow outgoing"])?;
    let line = "-A ufw-before-output -p udp --dport 7000 -j DROP";
    lab.client.run("sed", &["-i", &format!("s/^COMMIT/{line}\\nCOMMIT/"), "/etc/ufw/before.rules"])?;
    lab.client.run("ufw", &["reload"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, "udp", FAR_V4, 7000)?;
    let report = observer.stop()?;
    let event = event(&report, FAR_V4, "udp", 7000)?;
    expect(event, &[("/rule/ruleset", json!("ufw")), ("/rule/name", json!(line)), ("/egress/rule/note", Value::Null)])?;
    ensure!(
        event["event"]["reason"].as_str().is_some_and(|reason| reason.contains("/etc/ufw/before.rules")),
        "{event}"
    );
    Ok(Outcome::Passed)
}

/// A rule in ufw's chain that ufw does not know: no number is guessed, for this rule or any other there.
fn ufw_changed() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    with_ufw(&mut lab, &["default allow outgoing", "deny out 443/tcp"])?;
    lab.client.run("iptables", &["-I", "ufw-user-output", "1", "-p", "udp", "--dport", "6000", "-j", "DROP"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, "udp", FAR_V4, 6000)?;
    knock(&observer, &lab.client, "tcp", FAR_V4, 443)?;
    let report = observer.stop()?;
    for (transport, port, words) in [("udp", 6000, "--dport 6000"), ("tcp", 443, "--dport 443")] {
        let event = event(&report, FAR_V4, transport, port)?;
        expect(event, &[("/rule/ruleset", json!("ufw")), ("/egress/rule/number", Value::Null)])?;
        ensure!(event["rule"]["name"].as_str().is_some_and(|name| name.contains(words)), "{event}");
        let note = event["egress"]["rule"]["note"].as_str().unwrap_or_default();
        ensure!(note.contains("changed without ufw"), "{event}");
    }
    Ok(Outcome::Passed)
}

/// `observer` alone names what denies in the same words. It shows the namespace that it runs in.
fn ufw_on_screen() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    with_ufw(&mut lab, &["default allow outgoing", "deny out 443/tcp comment 'hardening 2023'"])?;
    let screen = lab.client.run(&harness::observer::program().canonicalize()?.display().to_string(), &[])?;
    ensure!(screen.contains("ufw rule 1 `deny out 443/tcp` # hardening 2023"), "{screen}");
    ensure!(screen.contains("ufw rule 2 `deny out 443/tcp` # hardening 2023"), "{screen}");
    Ok(Outcome::Passed)
}

/// A real firewalld with a message bus of its own.
fn firewalld() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    if !["/usr/sbin/firewalld", "/usr/bin/firewalld"].iter().any(|path| std::path::Path::new(path).exists()) {
        return Ok(Outcome::Skipped("firewalld is not installed".to_owned()));
    }
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    lab.client.run("sh", &["-c", "mkdir -p /run/dbus && dbus-daemon --system --fork --nopidfile"])?;
    let offline = |args: &[&str]| lab.client.run("firewall-offline-cmd", args);
    offline(&["--new-policy", "hostout"])?;
    offline(&["--policy", "hostout", "--add-ingress-zone", "HOST"])?;
    offline(&["--policy", "hostout", "--add-egress-zone", "ANY"])?;
    let rich = [
        "rule family=\"ipv4\" destination address=\"203.0.113.0/24\" port port=\"443\" protocol=\"tcp\" reject",
        "rule port port=\"25\" protocol=\"tcp\" drop",
        "rule priority=\"-10\" family=\"ipv6\" destination address=\"2001:db8:1::/48\" port port=\"443\" protocol=\"tcp\" drop",
        "rule service name=\"ldap\" reject",
    ];
    for rule in rich {
        offline(&["--policy", "hostout", "--add-rich-rule", rule])?;
    }
    offline(&[
        "--direct",
        "--add-rule",
        "ipv4",
        "filter",
        "OUTPUT",
        "0",
        "-p",
        "udp",
        "--dport",
        "7000",
        "-j",
        "DROP",
    ])?;
    let mut daemon = lab.client.command("firewalld");
    let _daemon = Server(daemon.args(["--nofork", "--nopid"]).stdout(std::process::Stdio::null()).spawn()?);
    wait_for("firewalld", || {
        Ok(lab.client.run("firewall-cmd", &["--state"]).is_ok_and(|state| state.trim() == "running").then_some(()))
    })?;
    let observer = Observer::watch(&lab.client)?;
    let told = [
        ("tcp", FAR_V4, 443, "firewalld policy hostout, rich rule", rich[0], "reject"),
        ("tcp", FAR_V4, 25, "firewalld policy hostout, rich rule", rich[1], "drop"),
        ("tcp", FAR_V6, 25, "firewalld policy hostout, rich rule", rich[1], "drop"),
        ("tcp", FAR_V6, 443, "firewalld policy hostout, rich rule", rich[2], "drop"),
        ("tcp", FAR_V4, 389, "firewalld policy hostout, rich rule", rich[3], "reject"),
        ("udp", FAR_V4, 7000, "firewalld's direct rule", "ipv4 filter OUTPUT 0 -p udp --dport 7000 -j DROP", "drop"),
    ];
    for (transport, address, port, ..) in told {
        knock(&observer, &lab.client, transport, address, port)?;
    }
    // One that no file has.
    let fleeting = "rule port port=\"7070\" protocol=\"tcp\" drop";
    lab.client.run("firewall-cmd", &["--policy", "hostout", "--add-rich-rule", fleeting])?;
    knock(&observer, &lab.client, "tcp", FAR_V4, 7070)?;
    // A policy's own target, and no packet at all.
    lab.client.run("firewall-cmd", &["--permanent", "--policy", "hostout", "--set-target", "REJECT"])?;
    lab.client.run("firewall-cmd", &["--reload"])?;
    knock(&observer, &lab.client, "udp", FAR_V4, 53)?;
    lab.client.run("firewall-cmd", &["--panic-on"])?;
    knock(&observer, &lab.client, "udp", FAR_V4, 54)?;
    let report = observer.stop()?;
    let unkept = event(&report, FAR_V4, "tcp", 7070)?;
    let note = unkept["egress"]["rule"]["note"].as_str().unwrap_or_default();
    ensure!(unkept["rule"]["ruleset"] == "firewalld" && note.contains("without --permanent"), "{unkept}");
    let whole = [
        ("udp", FAR_V4, 53, "firewalld policy hostout", "target REJECT", "reject"),
        ("udp", FAR_V4, 54, "firewalld's panic mode", "--panic-on", "drop"),
    ];
    for (transport, address, port, what, name, verdict) in told.into_iter().chain(whole) {
        let event = event(&report, address, transport, port)?;
        expect(
            event,
            &[("/rule/ruleset", json!("firewalld")), ("/rule/name", json!(name)), ("/egress/verdict", json!(verdict))],
        )?;
        ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.starts_with(what)), "{event}");
    }
    Ok(Outcome::Passed)
}

/// Rules that iptables wrote, as `iptables-save` writes them.
fn iptables() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    let lines = [
        ("iptables-nft", "-A OUTPUT -d 203.0.113.10/32 -p udp -m udp --dport 7000 -j DROP"),
        (
            "iptables-nft",
            "-A OUTPUT -p udp -m multiport --dports 7001,7002 -m comment --comment \"two ports\" -j REJECT --reject-with icmp-port-unreachable",
        ),
        ("ip6tables-nft", "-A OUTPUT -p udp -m udp --dport 7003 -j DROP"),
        ("iptables-nft", "-t mangle -A POSTROUTING -p udp -m udp --dport 7004 -j DROP"),
    ];
    for (program, line) in lines {
        let line = line.replace("\"two ports\"", "'two ports'");
        lab.client.run(program, &shell_words(&line).iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    lab.client.run("iptables-nft", &["-P", "FORWARD", "DROP"])?;
    let observer = Observer::watch(&lab.client)?;
    let told = [
        (FAR_V4, 7000, "iptables rule 1 of OUTPUT", lines[0].1.trim_start_matches("-A OUTPUT ")),
        (FAR_V4, 7002, "iptables rule 2 of OUTPUT", lines[1].1.trim_start_matches("-A OUTPUT ")),
        (FAR_V6, 7003, "ip6tables rule 1 of OUTPUT", lines[2].1.trim_start_matches("-A OUTPUT ")),
        (FAR_V4, 7004, "iptables -t mangle rule 1 of POSTROUTING", "-p udp -m udp --dport 7004 -j DROP"),
    ];
    for (address, port, ..) in told {
        knock(&observer, &lab.client, "udp", address, port)?;
    }
    let report = observer.stop()?;
    for (address, port, what, name) in told {
        let event = event(&report, address, "udp", port)?;
        let late = report.late.iter().find(|late| late["destination"]["port"] == port);
        // Where the text came later, a line of its own has it.
        let event = late.unwrap_or(event);
        expect(event, &[("/rule/ruleset", json!("iptables")), ("/rule/name", json!(name))])?;
        ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.starts_with(what)), "{event}");
    }
    Ok(Outcome::Passed)
}

/// Chains as Docker, Podman and Kubernetes make them, with the packets of a container.
fn engines() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let lab = Containers::new(Plug::Bridge)?;
    let chains = [
        ("DOCKER-USER", 7000, "docker"),
        ("NETAVARK_FORWARD", 7001, "podman"),
        ("KUBE-POD-FW-ABC", 7002, "kubernetes"),
    ];
    for (chain, port, _) in chains {
        lab.host.run("iptables-nft", &["-N", chain])?;
        lab.host.run("iptables-nft", &["-A", "FORWARD", "-j", chain])?;
        lab.host.run("iptables-nft", &["-A", chain, "-p", "udp", "--dport", &port.to_string(), "-j", "DROP"])?;
    }
    let observer = Observer::watch(&lab.host)?;
    for (_, port, _) in chains {
        observer.tells(|| traffic::run(&lab.containers[0], &["udp", FAR_V4, &port.to_string()]))?;
    }
    let report = observer.stop()?;
    for (chain, port, owner) in chains {
        let event = event(&report, FAR_V4, "udp", port)?;
        expect(event, &[("/rule/ruleset", json!(owner)), ("/egress/rule/path", json!(["FORWARD", chain]))])?;
        let reason = event["event"]["reason"].as_str().unwrap_or_default();
        ensure!(reason.starts_with(&format!("{owner}'s chain {chain}, rule 1 `")), "{reason}");
    }
    Ok(Outcome::Passed)
}

/// Chains as Shorewall and CSF make them, and the rule of wg-quick's manual.
fn others() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let told = [
        // Zones, a rule of its own between them, and what ends in a chain that all of them lead to.
        (
            "-N shorewall; -N reject; -N fw-net; -A OUTPUT -o eth0 -j fw-net; -A fw-net -p udp --dport 7000 -j DROP; \
             -A fw-net -p udp -g reject; -A reject -p udp -j REJECT",
            &[
                (7000, "shorewall", "shorewall's chain fw-net, from zone fw to zone net, rule 1 `"),
                (7001, "shorewall", "shorewall's chain fw-net, from zone fw to zone net, rule 2, by reject `"),
            ][..],
        ),
        (
            "-N DENYOUT; -N LOGDROPOUT; -A OUTPUT -j DENYOUT; -A DENYOUT -p udp --dport 7000 -j DROP; -A OUTPUT -j LOGDROPOUT; \
             -A LOGDROPOUT -p udp --dport 7001 -j REJECT",
            &[(7000, "csf", "csf's chain DENYOUT, rule 1 `"), (7001, "csf", "csf's chain LOGDROPOUT, rule 1 `")],
        ),
        (
            "-I OUTPUT ! -o wg0 -m mark ! --mark 0xca6c -m addrtype ! --dst-type LOCAL -j REJECT",
            &[(7000, "wg-quick", "the kill switch of wg-quick's interface wg0, rule 1 `")],
        ),
    ];
    for (lines, packets) in told {
        let lab = Lab::new()?;
        for line in lines.split("; ") {
            lab.client.run("iptables-nft", &line.split_whitespace().collect::<Vec<_>>())?;
        }
        let observer = Observer::watch(&lab.client)?;
        for (port, ..) in packets {
            knock(&observer, &lab.client, "udp", FAR_V4, *port)?;
        }
        let report = observer.stop()?;
        for (port, ruleset, reason) in packets {
            let event = event(&report, FAR_V4, "udp", *port)?;
            expect(event, &[("/rule/ruleset", json!(ruleset))])?;
            ensure!(event["event"]["reason"].as_str().is_some_and(|said| said.starts_with(reason)), "{event}");
        }
    }
    Ok(Outcome::Passed)
}

/// It leaves no mark on its rules: that it may have made one is said beside iptables' own words.
fn ferm() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    lab.client.run("sh", &["-c", "mkdir -p /etc/ferm && echo '# rules' > /etc/ferm/ferm.conf"])?;
    lab.client.run("iptables-nft", &["-A", "OUTPUT", "-p", "udp", "--dport", "7000", "-j", "DROP"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, "udp", FAR_V4, 7000)?;
    let report = observer.stop()?;
    let event = event(&report, FAR_V4, "udp", 7000)?;
    expect(
        event,
        &[("/rule/ruleset", json!("iptables")), ("/rule/name", json!("-p udp -m udp --dport 7000 -j DROP"))],
    )?;
    let note = event["egress"]["rule"]["note"].as_str().unwrap_or_default();
    ensure!(note.contains("/etc/ferm/ferm.conf"), "{event}");
    Ok(Outcome::Passed)
}

/// A file system whose program never answers stands where ufw's files were: the rule is told without them, and nothing waits.
fn hanging_files() -> Result<Outcome> {
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
    with_ufw(&mut lab, &["default allow outgoing", "deny out 443/tcp", "deny out 53/udp"])?;
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
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, "tcp", FAR_V4, 443)?;
    knock(&observer, &lab.client, "udp", FAR_V4, 53)?;
    let report = observer.stop()?;
    for (transport, port) in [("tcp", 443), ("udp", 53)] {
        let event = event(&report, FAR_V4, transport, port)?;
        expect(event, &[("/rule/ruleset", json!("ufw")), ("/egress/rule/number", Value::Null)])?;
        let note = event["egress"]["rule"]["note"].as_str().unwrap_or_default();
        ensure!(note.contains("not to be read"), "{event}");
    }
    Ok(Outcome::Passed)
}

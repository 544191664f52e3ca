//! Every front end and verdict: drop, reject and policy, by nft, both iptables and ufw, with real clients.

use anyhow::{Result, ensure};
use harness::{
    kernel,
    lab::{FAR_V4, FAR_V6, Lab},
    namespace::Namespace,
    observer::{Observer, Report, expect},
    slowness, traffic,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("nft_drop", || nft("tcp dport 443 counter drop")),
    ("nft_reject_with_reset", || nft("tcp dport 443 counter reject with tcp reset")),
    ("nft_reject_with_icmp", || nft("tcp dport 443 counter reject")),
    ("nft_policy", || nft("tcp dport 443 counter; tcp dport 443 goto end")),
    ("nft_set_and_verdict_map", || nft("tcp dport 443 counter; tcp dport vmap { 443 : drop }")),
    ("iptables_nft_drop", || iptables("iptables-nft", &["-j", "DROP"])),
    ("iptables_nft_reject", || iptables("iptables-nft", &["-j", "REJECT"])),
    ("iptables_nft_reject_with_reset", || iptables("iptables-nft", &["-j", "REJECT", "--reject-with", "tcp-reset"])),
    ("iptables_nft_policy", || iptables("iptables-nft", &[])),
    ("iptables_legacy_drop", || iptables("iptables-legacy", &["-j", "DROP"])),
    ("iptables_legacy_reject", || iptables("iptables-legacy", &["-j", "REJECT"])),
    ("iptables_legacy_policy", || iptables("iptables-legacy", &[])),
    ("ufw_deny_out_443", ufw_deny),
    ("ufw_default_deny_outgoing", ufw_default_deny),
    ("curl_is_named_with_its_arguments", curl),
];

/// A rule in a chain whose policy lets everything else out.
fn nft(rules: &str) -> Result<Outcome> {
    let lab = Lab::new()?;
    let rules = rules.replace("; ", "\n");
    lab.client.nft(&format!(
        "table inet t {{ chain end {{ drop; }}\nchain out {{ type filter hook output priority 0;\n{rules}\n}} }}"
    ))?;
    let report = knock(&lab, FAR_V4)?;
    all_told(&report, lab.client.counted()?)?;
    let report = knock(&lab, FAR_V6)?;
    ensure!(!report.foreground().is_empty(), "IPv6 gives no event");
    Ok(Outcome::Passed)
}

/// A rule for port 443, or without one the chain's policy.
fn iptables(program: &str, target: &[&str]) -> Result<Outcome> {
    let lab = Lab::new()?;
    if target.is_empty() {
        lab.client.run(program, &["-P", "OUTPUT", "DROP"])?;
    } else {
        let rule = [&["-A", "OUTPUT", "-p", "tcp", "--dport", "443"], target].concat();
        lab.client.run(program, &rule)?;
    }
    let report = knock(&lab, FAR_V4)?;
    let counted = iptables_count(&lab.client, program)?;
    all_told(&report, counted)?;
    Ok(Outcome::Passed)
}

/// Lines of all packets that the firewall counted: a slow machine sends one again before the client gives up. A retransmit whose timer interrupts the program on its processor is
/// skipped there, and counted as missed.
fn all_told(report: &Report, counted: u64) -> Result<()> {
    let told: u64 = report.foreground().iter().filter_map(|event| event["egress"]["count"].as_u64()).sum();
    let most = told + report.number("/missed_max");
    ensure!(
        told > 0 && (told..=most).contains(&counted),
        "{told} told, {counted} counted: {:?} {}",
        report.events,
        report.account
    );
    Ok(())
}

/// Packets of the OUTPUT chain's policy, or of its only rule.
fn iptables_count(client: &Namespace, program: &str) -> Result<u64> {
    let listing = client.run(&format!("{program}-save"), &["-c"])?;
    let bracketed = |line: &str| line.split_once('[')?.1.split_once(':')?.0.parse::<u64>().ok();
    let of = |wanted: &str| listing.lines().find(|line| line.contains(wanted)).and_then(bracketed);
    Ok(of("-A OUTPUT").or_else(|| of(":OUTPUT DROP")).unwrap_or(0))
}

/// A connect to port 443 that is blocked, and one to port 80 of a real server that is not where the rules allow it.
fn knock(lab: &Lab, address: &str) -> Result<Report> {
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, &["tcp", address, "443", "1.5"])?;
    let report = observer.stop()?;
    for event in report.foreground() {
        expect(
            event,
            &[
                ("/destination/ip", json!(address)),
                ("/destination/port", json!(443)),
                ("/network/transport", json!("tcp")),
                ("/process/pid", json!(client.pid)),
                ("/egress/cause", json!("netfilter")),
                ("/egress/hook", json!("output")),
            ],
        )?;
    }
    Ok(report)
}

/// Enables ufw in a client with private files.
fn with_ufw(lab: &mut Lab, rules: &[&[&str]]) -> Result<()> {
    lab.client.private_files()?;
    lab.client.run("ufw", &["--force", "reset"])?;
    for rule in rules {
        lab.client.run("ufw", rule)?;
    }
    lab.client.run("ufw", &["--force", "enable"])?;
    Ok(())
}

fn ufw_deny() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    with_ufw(&mut lab, &[&["default", "allow", "outgoing"], &["deny", "out", "443/tcp"]])?;
    let server = lab.web_server(80)?;
    let observer = Observer::watch(&lab.client)?;
    let open = traffic::run(&lab.client, &["tcp", FAR_V4, "80", "2"])?;
    let v4 = traffic::run(&lab.client, &["tcp", FAR_V4, "443", "1.5"])?;
    let v6 = traffic::run(&lab.client, &["tcp", FAR_V6, "443", "1.5"])?;
    let report = observer.stop()?;
    drop(server);
    ensure!(open.said == "ok", "port 80 is not open: {}", open.said);
    ensure!(v4.said == "timeout" && v6.said == "timeout", "said {} and {}", v4.said, v6.said);
    let pids: Vec<_> = report.foreground().iter().map(|event| event["process"]["pid"].as_u64()).collect();
    for pid in [v4.pid, v6.pid] {
        ensure!(pids.contains(&Some(u64::from(pid))), "{pid} is not among {pids:?}");
    }
    ensure!(!pids.contains(&Some(u64::from(open.pid))), "what passed was told");
    for event in report.foreground() {
        expect(event, &[("/destination/port", json!(443)), ("/egress/hook", json!("output"))])?;
        let (family, chain) = match event["network"]["type"].as_str() {
            Some("ipv6") => ("ip6", "ufw6-user-output"),
            _ => ("ip", "ufw-user-output"),
        };
        by_rule(
            report.explained(event),
            &[("family", json!(family)), ("chain", json!(chain)), ("position", json!(1))],
        )?;
    }
    Ok(Outcome::Passed)
}

/// The rule that dropped it, where this kernel shows it.
fn by_rule(event: &Value, wanted: &[(&str, Value)]) -> Result<()> {
    // An emulated ruleset may take too long to read: another line names it.
    let rule = &event["egress"]["rule"];
    // Older kernels tell the first packet's chain alone, where there is no copy yet that names the rule.
    let is_named = rule["handle"].is_u64() || rule["text"].is_string();
    let told = kernel::is_at_least(6, 7) && slowness() == 1 || is_named;
    for (field, value) in wanted.iter().filter(|_| told) {
        ensure!(event["egress"]["rule"][field] == *value, "{field} is not {value}: {event}");
    }
    Ok(())
}

fn ufw_default_deny() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    with_ufw(&mut lab, &[&["default", "deny", "outgoing"]])?;
    let observer = Observer::watch(&lab.client)?;
    let web = traffic::run(&lab.client, &["tcp", FAR_V4, "80", "0.5"])?;
    let dns = traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
    let report = observer.stop()?;
    ensure!(dns.said == "EPERM", "the DNS client was told {}", dns.said);
    for (client, port, transport) in [(web.pid, 80, "tcp"), (dns.pid, 53, "udp")] {
        let events = report.foreground();
        let event = events.iter().find(|event| event["process"]["pid"] == client);
        let Some(event) = event else { anyhow::bail!("{client} is not told: {:?}", report.events) };
        expect(event, &[("/destination/port", json!(port)), ("/network/transport", json!(transport))])?;
        by_rule(
            report.explained(event),
            &[("chain", json!("OUTPUT")), ("handle", Value::Null), ("text", json!("policy drop"))],
        )?;
    }
    Ok(Outcome::Passed)
}

/// A real curl, with a secret on its command line.
fn curl() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; tcp dport 443 counter drop; } }")?;
    let observer = Observer::watch(&lab.client)?;
    let child = lab
        .client
        .command("curl")
        .args(["-sS", "-m", "1.5", "-H", "DD-API-KEY: 0123456789abcdef0123456789abcdef"])
        .arg(format!("https://{FAR_V4}/"))
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let report = observer.stop()?;
    ensure!(output.status.code() == Some(28), "curl ended with {}", output.status);
    ensure!(report.events.len() as u64 == lab.client.counted()?, "not every packet was told");
    for event in &report.events {
        expect(
            event,
            &[
                ("/process/pid", json!(pid)),
                ("/process/name", json!("curl")),
                ("/process/parent/pid", json!(std::process::id())),
                ("/process/args/5", json!("DD-API-KEY: ***")),
                ("/egress/ancestry/0/name", json!("curl")),
                ("/egress/ancestry/1/pid", json!(std::process::id())),
            ],
        )?;
        ensure!(event["process"]["executable"].as_str().is_some_and(|path| path.ends_with("/curl")), "{event}");
        ensure!(!event.to_string().contains("0123456789abcdef0123"), "the key was told: {event}");
    }
    let incidents: std::collections::BTreeSet<_> =
        report.events.iter().map(|event| event["egress"]["incident"].to_string()).collect();
    ensure!(incidents.len() == 1, "one cause, {} incidents", incidents.len());
    Ok(Outcome::Passed)
}

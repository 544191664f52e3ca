//! Neighbours who cannot be asked for, or whose answers are stopped: reports name the rule and whoever waits for them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab, SERVER_V4, SERVER_V6},
    observer::{Observer, command, expect},
    traffic, wait_for,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario, unnamed};

pub(crate) const ALL: &[Scenario] = &[
    ("whom_nobody_can_ask_for", asked),
    ("who_are_dead_by_themselves", dead),
    ("a_command_that_waits_for_one", by_run),
];

/// A lab in which nobody is known.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    for (namespace, four, six) in
        [(&lab.client, SERVER_V4, SERVER_V6), (&lab.server, harness::lab::CLIENT_V4, "fd00:9::1")]
    {
        namespace.ip(&[&format!("neigh del {four} dev eth0"), &format!("neigh del {six} dev eth0")])?;
    }
    // A neighbour is given up sooner.
    for family in ["ipv4", "ipv6"] {
        lab.client.set(&format!("{family}/neigh/eth0/retrans_time_ms"), "200")?;
    }
    Ok(lab)
}

const ARP_OUT: &str = "table arp a { chain o { type filter hook output priority 0; arp operation request drop } }";
const ARP_IN: &str = "table arp a { chain i { type filter hook input priority 0; arp operation reply drop } }";
const NS_OUT: &str =
    "table inet t { chain o { type filter hook output priority 0; icmpv6 type nd-neighbor-solicit drop } }";
const NA_IN: &str =
    "table inet t { chain i { type filter hook input priority 0; icmpv6 type nd-neighbor-advert drop } }";

/// A line is about this process, and that one or a later one of its incident names the rule.
fn is_explained(lines: &str, pid: u32) -> bool {
    let lines: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let own = lines.iter().find(|line| line["process"]["pid"] == pid);
    own.is_some_and(|own| {
        let is_of_it = |line: &&Value| line["egress"]["incident"] == own["egress"]["incident"];
        lines.iter().filter(is_of_it).any(|line| line["egress"]["rule"].is_object())
    })
}

/// A line comes so soon.
const TOLD: Duration = Duration::from_secs(4);

/// What there is by then.
fn wait_at_most<T>(limit: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let until = Instant::now() + limit * harness::slowness();
    while Instant::now() < until {
        if let Some(answer) = ready()? {
            return Ok(Some(answer));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

fn asked() -> Result<Outcome> {
    if let Some(skipped) = unnamed("NEIGH_FAILED") {
        return Ok(skipped);
    }
    for (ruleset, packet, destinations) in [
        (ARP_OUT, "arp", [FAR_V4, SERVER_V4]),
        (ARP_IN, "arp", [FAR_V4, SERVER_V4]),
        (NS_OUT, "solicitation", [FAR_V6, SERVER_V6]),
        (NA_IN, "solicitation", [FAR_V6, SERVER_V6]),
    ] {
        for address in destinations {
            let lab = lab()?;
            lab.client.nft(ruleset)?;
            let observer = Observer::watch(&lab.client)?;
            let mut clients = Vec::new();
            for (args, transport, port) in
                [(&["tcp", address, "443", "3"][..], "tcp", 443), (&["ask", address, "53", "yes"], "udp", 53)]
            {
                // Beside other scenarios a packet may be counted only, or come through: then it is sent once more.
                let pid = wait_for("a line about it with its rule", || {
                    let client = traffic::run(&lab.client, args)?;
                    let is_told = || Ok(is_explained(&observer.so_far(), client.pid).then_some(client.pid));
                    // The rule's text may come later.
                    wait_at_most(TOLD, is_told)
                })
                .with_context(|| format!("{ruleset}: {address} {transport}: {}", observer.so_far()))?;
                clients.push((pid, transport, port));
            }
            let report = observer.stop()?;
            for (pid, transport, port) in clients {
                let events = report.foreground();
                let event = events.iter().find(|event| event["process"]["pid"] == pid);
                let event = event.with_context(|| format!("{ruleset}: {address} {transport}: {:#?}", report.events))?;
                expect(
                    event,
                    &[
                        ("/egress/packet", json!(packet)),
                        ("/destination/ip", json!(address)),
                        ("/destination/port", json!(port)),
                        ("/network/transport", json!(transport)),
                        ("/event/action", json!("egress-blocked")),
                        ("/egress/cause", json!("netfilter")),
                    ],
                )?;
                ensure!(report.explained(event)["egress"]["rule"].is_object(), "{ruleset}: {event}");
            }
            // The question itself is the kernel's.
            let questions: Vec<&Value> =
                report.events.iter().filter(|event| event["egress"]["background"] == "discovery").collect();
            ensure!(!questions.is_empty(), "{ruleset}: {:#?}", report.events);
            for question in questions {
                expect(question, &[("/egress/packet", json!(packet)), ("/process", Value::Null)])?;
            }
        }
    }
    Ok(Outcome::Passed)
}

/// While questions for others are stopped, nobody is there who could answer.
fn dead() -> Result<Outcome> {
    let lab = lab()?;
    lab.client.nft("table arp a { chain o { type filter hook output priority 0; arp daddr ip 10.9.0.2 drop } }")?;
    let observer = Observer::watch(&lab.client)?;
    let stopped = traffic::run(&lab.client, &["tcp", SERVER_V4, "443", "1.5"])?;
    let dead = traffic::run(&lab.client, &["tcp", "10.9.0.77", "443", "1.5"])?;
    let report = observer.stop()?;
    ensure!(report.events.iter().any(|event| event["process"]["pid"] == stopped.pid), "{:#?}", report.events);
    ensure!(report.events.iter().all(|event| event["process"]["pid"] != dead.pid), "{:#?}", report.events);
    Ok(Outcome::Passed)
}

/// The verdict is not that nothing was blocked.
fn by_run() -> Result<Outcome> {
    if let Some(skipped) = unnamed("NEIGH_FAILED") {
        return Ok(skipped);
    }
    for ruleset in [ARP_OUT, NS_OUT] {
        let lab = lab()?;
        lab.client.nft(ruleset)?;
        let address = if ruleset == ARP_OUT { FAR_V4.to_owned() } else { format!("[{FAR_V6}]") };
        let pid = lab.client.pid().to_string();
        let output = command()
            .args(["run", "--no-fix", "--netns", &lab.client.path().display().to_string(), "--"])
            .args(["nsenter", "-t", &pid, "-n", "curl", "-s", "-m", "4", &format!("http://{address}/")])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!said.contains("nothing was blocked") && said.contains("VERDICT blocked"), "{ruleset}: {said}");
    }
    Ok(Outcome::Passed)
}

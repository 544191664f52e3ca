//! Connections that hang already when observer starts: told at once, with owner and age, in every namespace.

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    observer::{Observer, Report, expect},
    slowness, traffic, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("stopped_here_or_without_an_answer", || walked(stopped_or_unanswered)),
    ("in_a_containers_namespace", || walked(container)),
    ("a_line_on_the_screen", || walked(screen)),
    ("filters_hold_for_it_too", || walked(filtered)),
];

/// What hangs is found by a walk over all open files, which not every kernel offers.
fn walked(scenario: fn() -> Result<Outcome>) -> Result<Outcome> {
    if kernel::knows("bpf_sock_from_file") {
        scenario()
    } else {
        Ok(Outcome::Skipped("this kernel's walk over open files shows no sockets".to_owned()))
    }
}

/// 443 is dropped here; what goes to 444 leaves and is dropped by the other end.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; tcp dport 443 counter drop; } }")?;
    lab.server.nft("table inet t { chain i { type filter hook input priority 0; tcp dport 444 drop; } }")?;
    Ok(lab)
}

fn states(report: &Report) -> Vec<&Value> {
    report.events.iter().filter(|event| event["event"]["action"] == "egress-hanging").collect()
}

fn stopped_or_unanswered() -> Result<Outcome> {
    let lab = lab()?;
    let _server = lab.web_server(80)?;
    let clients = [(FAR_V4, "443"), (FAR_V6, "443"), (FAR_V4, "444"), (FAR_V6, "444")]
        .into_iter()
        .map(|(address, port)| {
            Ok((traffic::command(&lab.client, &["tcp", address, port, "20"])?.spawn()?, address, port))
        })
        .collect::<Result<Vec<_>>>()?;
    // One that has its answer, and does not hang.
    let open = traffic::command(&lab.client, &["lingering", FAR_V4, "80", "2"])?.spawn()?;
    traffic::until_sent_again(&lab.client, clients.len())?;
    let report = Observer::watch(&lab.client)?.stop()?;
    let told = states(&report);
    ensure!(told.len() == clients.len(), "{} told: {told:?}", told.len());
    for (client, address, port) in &clients {
        let event =
            told.iter().find(|event| event["process"]["pid"] == client.id()).context("a connection is not told")?;
        let stopped = *port == "443";
        expect(
            event,
            &[
                ("/event/kind", json!("state")),
                ("/destination/ip", json!(address)),
                ("/destination/port", json!(port.parse::<u16>()?)),
                ("/process/name", json!("python3")),
                ("/egress/owner", json!("socket")),
                ("/egress/count", json!(0)),
                ("/egress/outcome/left", json!(!stopped)),
                ("/egress/netns", json!(lab.client.inode()?)),
                ("/user/id", json!("0")),
            ],
        )?;
        ensure!(event["egress"]["attempts"].as_u64().is_some_and(|attempts| attempts >= 2), "{event}");
        let rule = &event["egress"]["rule"];
        if stopped && slowness() == 1 {
            // Before another SYN is sent: the copy tells at once.
            ensure!(rule["position"] == 1 && rule["source"] == "replay" && rule["table"] == "t", "{event}");
            ensure!(
                event["event"]["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.ends_with("(by replay of the current rules)")),
                "{event}"
            );
        }
        ensure!(stopped || rule.is_null(), "{event}");
        let waited = event["egress"]["outcome"]["waited_ms"].as_u64().context("waited_ms")?;
        ensure!((1000..9000 * u64::from(slowness())).contains(&waited), "it has waited {waited} ms");
        let left = event["egress"]["outcome"]["gives_up_ms"].as_u64().context("gives_up_ms")?;
        ensure!((120_000..132_000).contains(&(left + waited)), "it gives up after {} ms", left + waited);
        ensure!(event["source"]["port"].as_u64().is_some_and(|port| port > 0), "{event}");
    }
    for (mut client, ..) in clients {
        client.kill()?;
        client.wait()?;
    }
    ensure!(traffic::finish(open)?.said == "ok");
    Ok(Outcome::Passed)
}

/// Observer is not in that namespace, and it has all of them.
fn container() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft("table inet t { chain f { type filter hook forward priority 0; tcp dport 443 counter drop; } }")?;
    let mut client = traffic::command(&lab.containers[0], &["tcp", FAR_V4, "443", "20"])?.spawn()?;
    traffic::until_sent_again(&lab.containers[0], 1)?;
    let report = Observer::start(["watch", "--no-fix", "-o", "json"])?.stop()?;
    let told = states(&report);
    let own: Vec<_> = told.iter().filter(|event| event["process"]["pid"] == client.id()).collect();
    client.kill()?;
    client.wait()?;
    ensure!(own.len() == 1, "{told:?}");
    // Out of the container it came; that the host dropped it then is not known there.
    expect(
        own[0],
        &[
            ("/egress/netns", json!(lab.containers[0].inode()?)),
            ("/egress/outcome/left", json!(true)),
            ("/destination/ip", json!(FAR_V4)),
        ],
    )?;
    Ok(Outcome::Passed)
}

fn screen() -> Result<Outcome> {
    let lab = lab()?;
    let mut client = traffic::command(&lab.client, &["tcp", FAR_V4, "443", "20"])?.spawn()?;
    traffic::until_sent_again(&lab.client, 1)?;
    let observer = Observer::start(["watch", "--netns", &lab.client.path().display().to_string()])?;
    ensure!(observer.ready.contains("hanging"), "{}", observer.ready);
    // Told without waiting for the next SYN, and the block itself when that comes.
    wait_for("the next SYN", || Ok(observer.so_far().contains("BLOCKED").then_some(())))?;
    let (_, text, _) = observer.end(Signal::SIGINT)?;
    client.kill()?;
    client.wait()?;
    let text = String::from_utf8(text)?;
    let first = text.lines().next().unwrap_or_default();
    ensure!(first.starts_with("HANGING NOW") && first.contains(&format!("python3[{}]", client.id())), "{text}");
    ensure!(first.contains(&format!("{FAR_V4}:443/tcp since ")) && first.contains(", gives up in "), "{text}");
    ensure!(first.contains("since") && text.contains("never left this host"), "{text}");
    ensure!(text.contains("BLOCKED"), "{text}");
    Ok(Outcome::Passed)
}

fn filtered() -> Result<Outcome> {
    let lab = lab()?;
    let mut client = traffic::command(&lab.client, &["tcp", FAR_V4, "443", "20"])?.spawn()?;
    traffic::until_sent_again(&lab.client, 1)?;
    let netns = lab.client.path().display().to_string();
    for (filter, wanted) in [(["--port", "443"], 1), (["--port", "80"], 0), (["--action", "egress-blocked"], 0)] {
        let report = Observer::start(["watch", "-o", "json", "--netns", &netns].into_iter().chain(filter))?.stop()?;
        let told = states(&report);
        ensure!(told.len() == wanted, "{filter:?}: {told:?}");
        for event in told {
            expect(event, &[("/egress/outcome/left", json!(false)), ("/process/pid", json!(client.id()))])?;
        }
    }
    client.kill()?;
    client.wait()?;
    Ok(Outcome::Passed)
}

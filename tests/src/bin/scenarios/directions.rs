//! What is not this host's egress gives nothing, although both ends are on one kernel.

use anyhow::{Result, ensure};
use harness::{
    lab::{CLIENT_V4, FAR_V4, FAR_V6, Lab, SERVER_V4, SERVER_V6},
    namespace::Namespace,
    observer::Observer,
    traffic,
};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("inbound_input_drop", || inbound("type filter hook input priority 0;")),
    ("inbound_prerouting_drop", || inbound("type filter hook prerouting priority 0;")),
    ("inbound_raw_prerouting_drop", || inbound("type filter hook prerouting priority -300;")),
    ("inbound_netdev_ingress_drop", inbound_netdev),
    ("loopback_input_drop", loopback),
    ("accepted_traffic", accepted),
    ("closed_ports", closed),
];

/// Watches every namespace while `act` runs; events of these two must not appear.
fn silent(lab: &Lab, act: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    let observer = Observer::start(["watch", "--no-fix", "-o", "json"])?;
    act()?;
    let report = observer.stop()?;
    let ours = [lab.client.inode()?, lab.server.inode()?];
    let told: Vec<_> = report
        .events
        .iter()
        .filter(|event| event["egress"]["netns"].as_u64().is_some_and(|netns| ours.contains(&netns)))
        .collect();
    ensure!(told.is_empty(), "told: {told:?}");
    Ok(Outcome::Passed)
}

fn all_traffic(client: &Namespace) -> Result<()> {
    for address in [SERVER_V4, SERVER_V6, FAR_V4, FAR_V6] {
        traffic::run(client, &["tcp", address, "80", "0.2"])?;
        traffic::run(client, &["udp", address, "53", "3"])?;
        traffic::run(client, &["ping", address])?;
    }
    Ok(())
}

/// The server drops what comes in, in the same context in which the client sent it.
fn inbound(hook: &str) -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.server.nft(&format!("table inet t {{ chain c {{ {hook} iif != lo counter drop; }} }}"))?;
    let outcome = silent(&lab, || all_traffic(&lab.client))?;
    ensure!(lab.server.counted()? > 0, "nothing was dropped");
    Ok(outcome)
}

fn inbound_netdev() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.server.nft("table netdev t { chain c { type filter hook ingress device eth0 priority 0; counter drop; } }")?;
    let outcome = silent(&lab, || all_traffic(&lab.client))?;
    ensure!(lab.server.counted()? > 0, "nothing was dropped");
    Ok(outcome)
}

fn loopback() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain c { type filter hook input priority 0; iif lo udp dport 53 counter drop; } }")?;
    let outcome = silent(&lab, || {
        traffic::run(&lab.client, &["udp", "127.0.0.1", "53", "3"])?;
        traffic::run(&lab.client, &["udp", "::1", "53", "3"]).map(drop)
    })?;
    ensure!(lab.client.counted()? == 6, "not everything was dropped");
    Ok(outcome)
}

fn accepted() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain out { type filter hook output priority 0; policy drop; counter accept; } }")?;
    let server = lab.web_server(80)?;
    let outcome = silent(&lab, || {
        for address in [FAR_V4, FAR_V6] {
            let client = traffic::run(&lab.client, &["tcp", address, "80", "2"])?;
            ensure!(client.said == "ok", "the server does not answer: {}", client.said);
        }
        Ok(())
    });
    drop(server);
    outcome
}

/// Refused by the other end: RST and ICMP, no drop here.
fn closed() -> Result<Outcome> {
    let lab = Lab::new()?;
    silent(&lab, || {
        for address in [FAR_V4, FAR_V6, CLIENT_V4] {
            let client = traffic::run(&lab.client, &["tcp", address, "81", "2"])?;
            ensure!(client.said == "ECONNREFUSED", "said {}", client.said);
            traffic::run(&lab.client, &["udp", address, "81", "2", "yes"])?;
        }
        Ok(())
    })
}

//! Packets that the kernel makes: tunnels, resets, what is left of closed connections.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{CLIENT_V4, FAR_V4, Lab, SERVER_V4, SERVER_V6},
    observer::{Observer, expect},
    traffic,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("a_tunnels_packet_carries_a_process", || tunnel(SERVER_V4)),
    ("a_tunnels_packet_over_ipv6", || tunnel(SERVER_V6)),
    ("a_tunnel_chosen_by_the_route", tunnel_by_route),
    ("what_comes_in_by_a_tunnel_is_not_told", inbound_by_tunnel),
    ("a_reset_by_a_rule", reset_by_rule),
    ("invalid_after_a_close", invalid_after_close),
    ("a_network_file_system", network_file_system),
];

/// Address of the far end inside the tunnel.
const INNER: &str = "192.168.77.2";
const MAC: &str = "02:00:00:00:77:02";
const DROP_VXLAN: &str =
    "table inet t { chain c { type filter hook output priority 0; meta oifname eth0 udp dport 4789 counter drop; } }";

/// Every packet of the process, wrapped: the process is named, and that it is wrapped.
fn knock(lab: &Lab, remote: &str) -> Result<Outcome> {
    lab.client.nft(DROP_VXLAN)?;
    let observer = Observer::watch(&lab.client)?;
    let tcp = traffic::run(&lab.client, &["tcp", INNER, "443", "0.4"])?.pid;
    let udp = traffic::run(&lab.client, &["udp", INNER, "53"])?.pid;
    let ping = traffic::run(&lab.client, &["ping", INNER])?.pid;
    lab.client.ip(&[&format!("neigh del {INNER} dev vx")])?;
    traffic::run(&lab.client, &["udp", INNER, "53"])?;
    let report = observer.stop()?;
    for pid in [tcp, udp, ping] {
        let events: Vec<_> = report.events.iter().filter(|event| event["process"]["pid"] == pid).collect();
        ensure!(events.len() == 1, "{} events of {pid}: {:?}", events.len(), report.events);
        expect(
            events[0],
            &[
                ("/destination/ip", json!(remote)),
                ("/destination/port", json!(4789)),
                ("/network/transport", json!("udp")),
                ("/egress/encapsulated", json!(true)),
                ("/egress/hook", json!("output")),
            ],
        )?;
    }
    // What the kernel says on the tunnel for itself belongs to nobody else: it asked for a neighbour that is not there.
    ensure!(report.events.len() > 3, "the question for a neighbour is missing: {:?}", report.events);
    for event in
        report.events.iter().filter(|event| ![tcp, udp, ping].map(Value::from).contains(&event["process"]["pid"]))
    {
        expect(event, &[("/egress/owner", json!("kernel")), ("/process", Value::Null)])?;
    }
    Ok(Outcome::Passed)
}

fn tunnel(remote: &str) -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.ip(&[
        &format!("link add vx type vxlan id 42 remote {remote} dev eth0 dstport 4789"),
        "addr add 192.168.77.1/24 dev vx",
        "link set vx up",
        &format!("neigh add {INNER} lladdr {MAC} dev vx"),
    ])?;
    knock(&lab, remote)
}

/// The tunnel's other end is in the route (`encap ip`), and the device knows none.
fn tunnel_by_route() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.ip(&[
        "link add vx type vxlan external dstport 4789",
        "link set vx up",
        &format!("route add {INNER}/32 encap ip id 42 dst {SERVER_V4} dev vx"),
        &format!("neigh add {INNER} lladdr {MAC} dev vx"),
    ])?;
    knock(&lab, SERVER_V4)
}

/// Its destination is a tunnel's description, which is no route: inbound, at every hook.
fn inbound_by_tunnel() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.ip(&[
        "link add vx address 02:00:00:00:77:02 type vxlan external dstport 4789",
        &format!("addr add {INNER}/24 dev vx"),
        "link set vx up",
    ])?;
    lab.server.ip(&[
        &format!("link add vx type vxlan id 42 remote {CLIENT_V4} dev eth0 dstport 4789"),
        "addr add 192.168.77.1/24 dev vx",
        "link set vx up",
        &format!("neigh add {INNER} lladdr {MAC} dev vx"),
    ])?;
    lab.client.nft(
        "table inet t {
             chain p { type filter hook prerouting priority -300; iifname vx udp dport 53 counter drop; }
             chain i { type filter hook input priority 0; iifname vx udp dport 54 counter drop; }
         }
         table netdev n { chain g { type filter hook ingress device vx priority 0; udp dport 55 counter drop; } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    for port in ["53", "54", "55"] {
        traffic::run(&lab.server, &["udp", INNER, port, "3"])?;
    }
    let report = observer.stop()?;
    ensure!(lab.client.counted()? == 9, "{} packets came in", lab.client.counted()?);
    let told: Vec<_> = report.events.iter().filter(|event| event["destination"]["ip"] == INNER).collect();
    ensure!(told.is_empty(), "{told:?}");
    Ok(Outcome::Passed)
}

/// A rule answers a peer with a reset, another rule stops that: nobody here waits for it, and the kernel made it.
fn reset_by_rule() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t {
             chain i { type filter hook input priority 0; tcp dport 9 reject with tcp reset; }
             chain o { type filter hook output priority 0; tcp flags rst counter drop; }
         }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    traffic::run(&lab.server, &["tcp", CLIENT_V4, "9", "0.4"])?;
    let report = observer.stop()?;
    ensure!(!report.events.is_empty() && report.foreground().is_empty(), "{:?}", report.events);
    ensure!(report.number("/reported") == lab.client.counted()?, "the firewall counted {}", lab.client.counted()?);
    for event in &report.events {
        expect(
            event,
            &[
                ("/egress/owner", json!("kernel")),
                ("/egress/background", json!("invalid-state")),
                ("/process", Value::Null),
                ("/user", Value::Null),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

/// A mount asks for it, and the kernel connects, on a socket of its own: nobody else is named.
fn network_file_system() -> Result<Outcome> {
    // Where it is built in there is nothing to load.
    let _ = Command::new("modprobe").arg("nfsv4").output();
    if !std::fs::read_to_string("/proc/filesystems")?.contains("nfs4") {
        return Ok(Outcome::Skipped("this kernel has no NFS client".to_owned()));
    }
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; tcp dport 2049 counter drop; } }")?;
    let observer = Observer::watch(&lab.client)?;
    let options = format!("addr={FAR_V4},clientaddr={CLIENT_V4}");
    let mut mount = lab.client.command("timeout");
    let source = format!("{FAR_V4}:/export");
    let mount =
        mount.args(["-s", "KILL", "4", "mount", "-i", "-t", "nfs4", "-o", &options, &source, "/mnt"]).output()?;
    ensure!(!mount.status.success(), "it was mounted");
    let report = observer.stop()?;
    let events = report.foreground();
    ensure!(!events.is_empty(), "nothing was told: {:?}; {mount:?}", report.events);
    ensure!(report.number("/reported") == lab.client.counted()?, "{}", report.account);
    for event in events {
        expect(
            event,
            &[
                ("/destination/port", json!(2049)),
                ("/egress/owner", json!("kernel")),
                ("/process", Value::Null),
                ("/user", Value::Null),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

/// Connection tracking has forgotten a connection when it is closed, and the usual rule drops what is left of it.
fn invalid_after_close() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(80)?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0; ct state invalid counter drop; ct state new accept; } }",
    )?;
    lab.client.run(
        "sh",
        &["-c", "cd /proc/sys/net/netfilter && echo 0 > nf_conntrack_tcp_loose && echo 1 > nf_conntrack_tcp_timeout_established"],
    )?;
    let netns = lab.client.path().display().to_string();
    let observer = Observer::watch(&lab.client)?;
    let screen = Observer::start(["watch", "--netns", &netns])?;
    let client = traffic::command(&lab.client, &["lingering", FAR_V4, "80", "2"])?.spawn().context("client")?;
    let client = traffic::finish(client)?;
    ensure!(client.said == "ok", "the connection failed: {}", client.said);
    // Its FIN is sent again after 0.2, 0.6 and 1.4 seconds.
    thread::sleep(Duration::from_millis(1000));
    let least = lab.client.counted()?;
    let report = observer.stop()?;
    // It may be sent once more while observer ends.
    let most = lab.client.counted()?;
    let (_, text, _) = screen.end(Signal::SIGINT)?;
    let text = String::from_utf8(text)?;
    ensure!(least >= 2, "only {least} were dropped");
    ensure!((least..=most).contains(&report.number("/reported")), "{least} to {most} counted: {}", report.account);
    ensure!(report.foreground().is_empty(), "{:?}", report.foreground());
    ensure!(!text.contains("BLOCKED") && text.contains("invalid-state"), "{text}");
    Ok(Outcome::Passed)
}

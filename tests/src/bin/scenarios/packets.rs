//! Every protocol in both families: one blocked packet gives one event with the right ends and the right process.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{
    factor, kernel,
    lab::{CLIENT_INTERFACE, FAR_V4, FAR_V6, Lab},
    observer::{Observer, expect},
    traffic,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario, without_egress_hook};

pub(crate) const ALL: &[Scenario] = &[
    ("tcp_over_ipv4", || one(&["tcp", FAR_V4, "443", "0.3"], FAR_V4, json!("tcp"), json!(443))),
    ("tcp_over_ipv6", || one(&["tcp", FAR_V6, "443", "0.3"], FAR_V6, json!("tcp"), json!(443))),
    ("udp_over_ipv4", || one(&["udp", FAR_V4, "53"], FAR_V4, json!("udp"), json!(53))),
    ("udp_over_ipv6", || one(&["udp", FAR_V6, "53"], FAR_V6, json!("udp"), json!(53))),
    ("connected_udp", || one(&["udp", FAR_V4, "53", "1", "yes"], FAR_V4, json!("udp"), json!(53))),
    ("icmp_by_a_ping_socket", || one(&["ping", FAR_V4], FAR_V4, json!("icmp"), Value::Null)),
    ("icmpv6_by_a_ping_socket", || one(&["ping", FAR_V6], FAR_V6, json!("ipv6-icmp"), Value::Null)),
    ("icmp_by_a_raw_socket", || one(&["raw", FAR_V4, "1", "08000000000000010000"], FAR_V4, json!("icmp"), Value::Null)),
    ("sctp", || one(&["raw", FAR_V4, "132", "303901bb0000000000000000"], FAR_V4, json!("sctp"), json!(443))),
    ("sctp_over_ipv6", || one(&["raw", FAR_V6, "132", "303901bb0000000000000000"], FAR_V6, json!("sctp"), json!(443))),
    ("another_protocol_by_number", || one(&["raw", FAR_V4, "253", "0035003500"], FAR_V4, json!("253"), Value::Null)),
    ("another_protocol_over_ipv6", || one(&["raw", FAR_V6, "253", "0035003500"], FAR_V6, json!("253"), Value::Null)),
    ("ipv6_extension_headers", || one(&["options", FAR_V6, "53"], FAR_V6, json!("udp"), json!(53))),
    ("fragments", fragments),
    ("vlan_frames", vlan_frames),
    ("flood_counted_to_the_packet", flood),
];

/// One packet into a chain that drops everything.
fn one(traffic: &[&str], address: &str, transport: Value, port: Value) -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain out { type filter hook output priority 0; policy drop; icmpv6 type != echo-request accept; counter; } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, traffic)?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 1, "one packet, and {} events: {:?}", report.events.len(), report.events);
    ensure!(lab.client.counted()? == 1, "the firewall counted otherwise");
    let kind = if address.contains(':') { "ipv6" } else { "ipv4" };
    expect(
        &report.events[0],
        &[
            ("/event/action", json!("egress-blocked")),
            ("/network/transport", transport),
            ("/network/type", json!(kind)),
            ("/destination/ip", json!(address)),
            ("/destination/port", port),
            ("/process/pid", json!(client.pid)),
            ("/egress/owner", json!("socket")),
            ("/egress/cause", json!("netfilter")),
            ("/egress/drop_reason", kernel::reason("NETFILTER_DROP")),
            ("/egress/hook", json!("output")),
            ("/egress/interface", json!(CLIENT_INTERFACE)),
            ("/egress/count", json!(1)),
            ("/egress/netns", json!(lab.client.inode()?)),
            ("/user/id", json!("0")),
        ],
    )?;
    let name = report.events[0]["process"]["name"].as_str().unwrap_or_default();
    ensure!(name.starts_with("python"), "named {name}");
    Ok(Outcome::Passed)
}

/// The first fragment has ports, later ones never have, whatever their bytes look like.
fn fragments() -> Result<Outcome> {
    if let Some(skipped) = without_egress_hook() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!(
        "table netdev t {{ chain out {{ type filter hook egress device {CLIENT_INTERFACE} priority 0; meta l4proto {{ udp, ipv6-frag }} counter drop; }} }}"
    ))?;
    // Offset 185 in units of eight bytes; the payload would read as ports 12345 and 53.
    let later_v4 = "45000020000000b940110000 0a090001 cb00710a 30390035000c0000 00000000".replace(' ', "");
    let later_v6 = "60000000 0014 2c 40 fd000009000000000000000000000001 20010db8000100000000000000000010 \
                    11 00 05c8 00000001 30390035000c0000 00000000"
        .replace(' ', "");
    let cases: [(&[&str], &str, Value); 4] = [
        (&["big", FAR_V4, "53", "4000"], FAR_V4, json!(53)),
        (&["big", FAR_V6, "53", "4000"], FAR_V6, json!(53)),
        (&["whole", FAR_V4, &later_v4], FAR_V4, Value::Null),
        (&["whole", FAR_V6, &later_v6], FAR_V6, Value::Null),
    ];
    for (traffic, address, port) in cases {
        let observer = Observer::watch(&lab.client)?;
        let client = traffic::run(&lab.client, traffic)?;
        let report = observer.stop()?;
        let events = report.foreground();
        ensure!(events.len() == 1, "{traffic:?}: {:?}", report.events);
        expect(
            events[0],
            &[
                ("/network/transport", json!("udp")),
                ("/destination/ip", json!(address)),
                ("/destination/port", port),
                ("/process/pid", json!(client.pid)),
                ("/egress/hook", json!("egress")),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

/// Whole frames with a VLAN tag, by a packet socket, dropped at netdev egress.
fn vlan_frames() -> Result<Outcome> {
    if let Some(skipped) = without_egress_hook() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(&format!(
        "table netdev t {{ chain out {{ type filter hook egress device {CLIENT_INTERFACE} priority 0; counter drop; }} }}"
    ))?;
    let udp = "450000200000000040110000 0a090001 cb00710a 30390035000c0000 00000000";
    let frame = format!("020000000002 020000000001 8100 0007 0800 {udp}").replace(' ', "");
    let observer = Observer::watch(&lab.client)?;
    // Nothing binds such a socket to its process: it is looked for while it is open.
    let seconds = factor(Duration::from_millis(300)).as_secs_f64().to_string();
    let client = traffic::run(&lab.client, &["frame", CLIENT_INTERFACE, &frame, &seconds])?;
    let report = observer.stop()?;
    let events = report.foreground();
    ensure!(events.len() == 1, "one frame: {:?}", report.events);
    expect(
        events[0],
        &[
            ("/destination/ip", json!(FAR_V4)),
            ("/destination/port", json!(53)),
            ("/network/transport", json!("udp")),
            ("/egress/hook", json!("egress")),
            ("/process/pid", json!(client.pid)),
        ],
    )?;
    Ok(Outcome::Passed)
}

/// A hundred thousand packets: what is reported and what is lost add up to the firewall's own counter.
fn flood() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain out { type filter hook output priority 0; udp dport 9999 counter drop; } }")?;
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, &["flood", FAR_V4, "9999", "100000"])?;
    let report = observer.stop()?;
    let counted = lab.client.counted()?;
    let lost: u64 =
        ["map", "ring", "decode", "queue", "store"].iter().map(|stage| report.number(&format!("/lost/{stage}"))).sum();
    let told = report.number("/reported");
    ensure!(counted == 100_000, "{counted} counted");
    ensure!(told + lost + report.number("/missed_max") >= counted, "{told} told and {lost} lost of {counted}");
    ensure!(told + lost <= counted, "{told} told and {lost} lost of {counted}");
    for event in &report.events {
        expect(event, &[("/process/pid", json!(client.pid)), ("/destination/port", json!(9999))])?;
    }
    Ok(Outcome::Passed)
}

//! firewalld: policies, rich rules, direct rules, panic mode.

use anyhow::{Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab},
    observer::{Observer, expect},
};
use serde_json::json;

use super::{event, knock, one_by_one, with_firewalld, without_firewalld};
use crate::Outcome;

/// A real firewalld with a message bus of its own.
pub(super) fn rules() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    if let Some(skipped) = without_firewalld() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    let rich = [
        "rule family=\"ipv4\" destination address=\"203.0.113.0/24\" port port=\"443\" protocol=\"tcp\" reject",
        "rule port port=\"25\" protocol=\"tcp\" drop",
        "rule priority=\"-10\" family=\"ipv6\" destination address=\"2001:db8:1::/48\" port port=\"443\" protocol=\"tcp\" drop",
        "rule service name=\"ldap\" reject",
    ];
    let options = rich.map(|rule| ["--add-rich-rule", rule]);
    let _daemon = with_firewalld(&mut lab.client, &options.each_ref().map(|options| &options[..]))?;
    lab.client.run("sh", &["-c", "firewall-cmd --permanent --direct --add-rule ipv4 filter OUTPUT 0 -p udp --dport 7000 -j DROP && firewall-cmd --reload"])?;
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
        knock(&observer, &lab.client, (transport, address, port))?;
    }
    // One that no file has.
    let fleeting = "rule port port=\"7070\" protocol=\"tcp\" drop";
    lab.client.run("firewall-cmd", &["--policy", "hostout", "--add-rich-rule", fleeting])?;
    knock(&observer, &lab.client, ("tcp", FAR_V4, 7070))?;
    // A policy's own target, and no packet at all.
    lab.client.run("firewall-cmd", &["--permanent", "--policy", "hostout", "--set-target", "REJECT"])?;
    lab.client.run("firewall-cmd", &["--reload"])?;
    knock(&observer, &lab.client, ("udp", FAR_V4, 53))?;
    lab.client.run("firewall-cmd", &["--panic-on"])?;
    knock(&observer, &lab.client, ("udp", FAR_V4, 54))?;
    let report = observer.stop()?;
    let unkept = event(&report, ("tcp", FAR_V4, 7070))?;
    let note = unkept["egress"]["rule"]["note"].as_str().unwrap_or_default();
    ensure!(unkept["rule"]["ruleset"] == "firewalld" && note.contains("without --permanent"), "{unkept}");
    let whole = [
        ("udp", FAR_V4, 53, "firewalld policy hostout", "target REJECT", "reject"),
        ("udp", FAR_V4, 54, "firewalld's panic mode", "--panic-on", "drop"),
    ];
    for (transport, address, port, what, name, verdict) in told.into_iter().chain(whole) {
        let event = event(&report, (transport, address, port))?;
        expect(
            event,
            &[("/rule/ruleset", json!("firewalld")), ("/rule/name", json!(name)), ("/egress/verdict", json!(verdict))],
        )?;
        ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.starts_with(what)), "{event}");
    }
    Ok(Outcome::Passed)
}

//! iptables itself, and those that are known by the names of their chains.

use anyhow::{Result, ensure};
use harness::{
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    observer::{Observer, expect},
};
use serde_json::json;

use super::{event, knock, one_by_one, shell_words};
use crate::Outcome;

/// Rules that iptables wrote, as `iptables-save` writes them.
pub(super) fn iptables() -> Result<Outcome> {
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
        knock(&observer, &lab.client, ("udp", address, port))?;
    }
    let report = observer.stop()?;
    for (address, port, what, name) in told {
        let event = event(&report, ("udp", address, port))?;
        expect(event, &[("/rule/ruleset", json!("iptables")), ("/rule/name", json!(name))])?;
        ensure!(event["event"]["reason"].as_str().is_some_and(|reason| reason.starts_with(what)), "{event}");
    }
    Ok(Outcome::Passed)
}

/// Chains as Docker, Podman and Kubernetes make them, with the packets of a container.
pub(super) fn engines() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let lab = Containers::new(Plug::Bridge)?;
    let chains = [
        ("DOCKER-USER", 7000, "docker"),
        ("NETAVARK_FORWARD", 7001, "podman"),
        ("KUBE-POD-FW-ABC", 7002, "kubernetes"),
        ("cali-FORWARD", 7003, "calico"),
        ("f2b-recidive", 7004, "fail2ban"),
        ("ts-forward", 7005, "tailscale"),
    ];
    for (chain, port, _) in chains {
        lab.host.run("iptables-nft", &["-N", chain])?;
        lab.host.run("iptables-nft", &["-A", "FORWARD", "-j", chain])?;
        lab.host.run("iptables-nft", &["-A", chain, "-p", "udp", "--dport", &port.to_string(), "-j", "DROP"])?;
    }
    let observer = Observer::watch(&lab.host)?;
    for (_, port, _) in chains {
        knock(&observer, &lab.containers[0], ("udp", FAR_V4, port))?;
    }
    let report = observer.stop()?;
    for (chain, port, owner) in chains {
        let event = event(&report, ("udp", FAR_V4, port))?;
        expect(event, &[("/rule/ruleset", json!(owner)), ("/egress/rule/path", json!(["FORWARD", chain]))])?;
        let reason = event["event"]["reason"].as_str().unwrap_or_default();
        ensure!(reason.starts_with(&format!("{owner}'s chain {chain}, rule 1 `")), "{reason}");
    }
    Ok(Outcome::Passed)
}

/// Chains as Shorewall and CSF make them, and the rule of wg-quick's manual.
pub(super) fn others() -> Result<Outcome> {
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
            knock(&observer, &lab.client, ("udp", FAR_V4, *port))?;
        }
        let report = observer.stop()?;
        for (port, ruleset, reason) in packets {
            let event = event(&report, ("udp", FAR_V4, *port))?;
            expect(event, &[("/rule/ruleset", json!(ruleset))])?;
            ensure!(event["event"]["reason"].as_str().is_some_and(|said| said.starts_with(reason)), "{event}");
        }
    }
    Ok(Outcome::Passed)
}

/// It leaves no mark on its rules: that it may have made one is said beside iptables' own words.
pub(super) fn ferm() -> Result<Outcome> {
    if let Some(skipped) = one_by_one() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    lab.client.run("sh", &["-c", "mkdir -p /etc/ferm && echo '# rules' > /etc/ferm/ferm.conf"])?;
    lab.client.run("iptables-nft", &["-A", "OUTPUT", "-p", "udp", "--dport", "7000", "-j", "DROP"])?;
    let observer = Observer::watch(&lab.client)?;
    knock(&observer, &lab.client, ("udp", FAR_V4, 7000))?;
    let report = observer.stop()?;
    let event = event(&report, ("udp", FAR_V4, 7000))?;
    expect(
        event,
        &[("/rule/ruleset", json!("iptables")), ("/rule/name", json!("-p udp -m udp --dport 7000 -j DROP"))],
    )?;
    let note = event["egress"]["rule"]["note"].as_str().unwrap_or_default();
    ensure!(note.contains("/etc/ferm/ferm.conf"), "{event}");
    Ok(Outcome::Passed)
}

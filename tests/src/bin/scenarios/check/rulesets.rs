//! Whole rulesets and routes: what `check` says of each destination is what a real client finds there.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab},
    observer::expect,
    traffic,
};
use serde_json::{Value, json};

use super::{check, lines, word};
use crate::{Outcome, front_ends};

/// Where the client goes: protocol, address, port.
pub(super) const DESTINATIONS: [(&str, &str, u16); 6] = [
    ("tcp", FAR_V4, 443),
    ("tcp", FAR_V6, 443),
    ("tcp", FAR_V4, 80),
    ("udp", FAR_V4, 53),
    ("udp", FAR_V6, 53),
    ("udp", "203.0.113.77", 53),
];

/// What is said of each destination is what the client finds, in this ruleset.
pub(super) fn agrees(lab: &Lab, ruleset: &str) -> Result<()> {
    let words: Vec<String> = DESTINATIONS.iter().map(|to| word(*to)).collect();
    let mut args = vec!["--no-fix", "-o", "json"];
    args.extend(words.iter().map(String::as_str));
    let output = check(&lab.client, &args)?;
    let told = lines(&output)?;
    ensure!(told.len() == DESTINATIONS.len(), "{ruleset}: {} lines", told.len());
    let mut is_any_blocked = false;
    for ((transport, address, port), event) in DESTINATIONS.iter().zip(&told) {
        let port_text = port.to_string();
        let args: &[&str] = match *transport {
            "tcp" => &["tcp", address, &port_text, "1.5"],
            _ => &["udp", address, &port_text],
        };
        let said = traffic::run(&lab.client, args)?.said;
        let action = if said == "ok" { "egress-allowed" } else { "egress-blocked" };
        is_any_blocked |= said != "ok";
        expect(
            event,
            &[
                ("/event/action", json!(action)),
                ("/event/kind", json!("state")),
                ("/event/dataset", json!("observer.check")),
                ("/destination/ip", json!(address)),
                ("/destination/port", json!(port)),
            ],
        )
        .map_err(|error| error.context(format!("{ruleset}: {transport} {address} {port}: the client says {said}")))?;
        let has_rule = event["egress"]["rule"].is_object();
        ensure!(has_rule == (said != "ok"), "{ruleset}: {event}");
    }
    ensure!(output.status.code() == Some(i32::from(is_any_blocked)), "{ruleset}: {}", output.status);
    Ok(())
}

/// Plain nftables.
pub(super) fn nft_rulesets() -> Result<Outcome> {
    let out = |rules: &str| format!("table inet t {{ chain o {{ type filter hook output priority 0; {rules} }} }}");
    let rulesets = [
        out("udp dport 1 drop"),
        out("tcp dport 443 drop"),
        out("tcp dport 443 reject with tcp reset; udp dport 53 reject"),
        out("policy drop; tcp dport 443 accept; ct state established accept"),
        out("ip daddr 203.0.113.0/24 tcp dport { 80, 443 } drop"),
        out("ip6 daddr 2001:db8:1::/48 drop"),
        out("oifname \"eth0\" udp dport 53 drop"),
        out("oifname \"wlan0\" drop"),
        out("meta skuid 0 tcp dport 80 drop"),
        out("meta skuid 65534 drop"),
        out("tcp dport vmap { 80 : drop, 443 : accept }; ip daddr 203.0.113.77 drop"),
        // An interval that ends where the next one begins has no end of its own.
        out("tcp dport vmap { 0-442 : drop, 443 : accept, 444 : drop }; tcp dport 443 drop"),
        out("ip protocol udp accept; ip hdrlength vmap { 0-4 : drop, 5 : accept, 6 : continue }; ip version 4 drop"),
        out("jump s }\nchain s { udp dport 53 ip daddr 203.0.113.10 return; udp dport 53 drop"),
        format!(
            "{}\ntable ip u {{ chain p {{ type filter hook postrouting priority 0; tcp dport 80 drop }} }}",
            out("tcp dport 443 accept")
        ),
        out("ct state new tcp dport 443 drop"),
    ];
    for ruleset in rulesets {
        let lab = Lab::new()?;
        let _servers = [lab.web_server(443)?, lab.web_server(80)?];
        lab.client.nft(&ruleset)?;
        agrees(&lab, &ruleset)?;
    }
    Ok(Outcome::Passed)
}

/// Both kinds of iptables.
pub(super) fn iptables_rulesets() -> Result<Outcome> {
    let rulesets: [&[&str]; 5] = [
        &["iptables -A OUTPUT -p tcp --dport 443 -j DROP"],
        &[
            "iptables -P OUTPUT DROP",
            "iptables -A OUTPUT -p tcp -m multiport --dports 80,443 -j ACCEPT",
            "iptables -I INPUT -j ACCEPT",
        ],
        &["ip6tables -A OUTPUT -p udp --dport 53 -j REJECT"],
        &[
            "iptables -N x",
            "iptables -A OUTPUT -j x",
            "iptables -A x -d 203.0.113.77 -j DROP",
            "iptables -A x -p tcp --dport 80 -j RETURN",
        ],
        &["iptables -A OUTPUT -m owner --uid-owner 0 -p udp --dport 53 -j DROP"],
    ];
    for kind in ["nft", "legacy"] {
        for rules in rulesets {
            let lab = Lab::new()?;
            let _servers = [lab.web_server(443)?, lab.web_server(80)?];
            // Legacy tables alone are followed by nftables' help.
            lab.client.nft("table inet t {}")?;
            for rule in rules {
                let (program, rest) = rule.split_once(' ').context("a rule")?;
                lab.client.run(&format!("{program}-{kind}"), &rest.split(' ').collect::<Vec<_>>())?;
            }
            agrees(&lab, &format!("{kind}: {rules:?}"))?;
        }
    }
    Ok(Outcome::Passed)
}

/// ufw and firewalld.
pub(super) fn ufw_rulesets() -> Result<Outcome> {
    for statements in [
        &["default allow outgoing", "deny out 443/tcp"][..],
        &["default deny outgoing", "allow out 53", "allow out to 203.0.113.10 port 80 proto tcp"],
        &["default allow outgoing", "reject out on eth0 to 203.0.113.0/24", "limit out 443/tcp"],
    ] {
        let mut lab = Lab::new()?;
        let _servers = [lab.web_server(443)?, lab.web_server(80)?];
        front_ends::with_ufw(&mut lab.client, statements)?;
        // How often one came before, a copy does not know.
        if statements.iter().any(|statement| statement.starts_with("limit")) {
            let output = check(
                &lab.client,
                &["--no-fix", "-o", "json", "10.9.0.2:443", &word(("udp", FAR_V4, 53)), &word(("tcp", FAR_V4, 443))],
            )?;
            let told = lines(&output)?;
            expect(&told[0], &[("/event/action", json!("egress-unknown"))])?;
            expect(&told[1], &[("/event/action", json!("egress-blocked"))])?;
            // What is rejected before does not come there.
            expect(&told[2], &[("/event/action", json!("egress-blocked"))])?;
            continue;
        }
        agrees(&lab, &format!("{statements:?}"))?;
    }
    if front_ends::without_firewalld().is_none() {
        let mut lab = Lab::new()?;
        let _servers = [lab.web_server(443)?, lab.web_server(80)?];
        let rule = "rule port port=\"443\" protocol=\"tcp\" reject";
        let _firewalld = front_ends::with_firewalld(&mut lab.client, &[&["--add-rich-rule", rule]])?;
        agrees(&lab, "firewalld")?;
    }
    Ok(Outcome::Passed)
}

/// Rules of routing that know the user, the protocol and the port; each as a client finds it, and by which interface it would leave.
pub(super) fn routing_rules() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.ip(&[
        "link add eth1 type veth peer name eth9",
        "addr add 10.8.0.1/24 dev eth1",
        "link set eth9 up",
        "link set eth1 up",
        "neigh add 10.8.0.2 lladdr 02:00:00:00:00:08 dev eth1",
        "route add default via 10.8.0.2 table 77",
        "route add prohibit default table 78",
        "rule add uidrange 65534-65534 table 77",
        "rule add ipproto tcp dport 444 table 78",
        "rule add ipproto tcp dport 445 prohibit",
        "rule add ipproto udp dport 53 table 77",
    ])?;
    let rules = "oifname \"eth1\" meta nfproto ipv4 drop";
    lab.client.nft(&format!("table inet t {{ chain o {{ type filter hook output priority 0; {rules}\n}} }}"))?;
    let _server = lab.web_server(443)?;
    for (args, (transport, address, port), (action, cause)) in [
        (&[][..], ("tcp", FAR_V4, 443), ("egress-allowed", Value::Null)),
        (&["--as", "nobody"], ("tcp", FAR_V4, 443), ("egress-blocked", json!("netfilter"))),
        (&[], ("tcp", FAR_V4, 444), ("egress-blocked", json!("route"))),
        (&[], ("tcp", FAR_V4, 445), ("egress-blocked", json!("route"))),
        (&[], ("udp", FAR_V4, 53), ("egress-blocked", json!("netfilter"))),
        (&[], ("udp", FAR_V4, 54), ("egress-allowed", Value::Null)),
    ] {
        let to = word((transport, address, port));
        let told = lines(&check(&lab.client, &[args, &["--no-fix", "-o", "json", &to]].concat())?)?;
        expect(&told[0], &[("/event/action", json!(action)), ("/egress/cause", cause)])
            .with_context(|| format!("{args:?} {to}"))?;
        let port = port.to_string();
        let client = match transport {
            "tcp" => ["tcp", address, &port, "0.6"].to_vec(),
            _ => ["udp", address, &port].to_vec(),
        };
        let mut command = lab.client.command("setpriv");
        let uid = if args.is_empty() { "0" } else { "65534" };
        command.args(["--reuid", uid, "--clear-groups", "/usr/bin/python3", "-IS", "-"]).args(client);
        command.stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        let said = traffic::finish(command.spawn()?)?.said;
        ensure!((said == "ok") == (action == "egress-allowed"), "{args:?} {to}: the client says {said}");
    }
    Ok(Outcome::Passed)
}

/// What no route leads to, and what a route is there to stop.
pub(super) fn routes() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t {}")?;
    lab.client.ip(&[
        "route add blackhole 198.51.100.0/24",
        "route add prohibit 198.51.101.0/24",
        "route del default via inet6 fd00:9::2",
    ])?;
    let output = check(
        &lab.client,
        &["-o", "json", "198.51.100.1:443", "198.51.101.1:443", "[2001:db8:2::1]:443", "203.0.113.10:443"],
    )?;
    let told = lines(&output)?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    for (event, (action, cause, words)) in told.iter().zip([
        ("egress-blocked", json!("route"), "blackhole"),
        ("egress-blocked", json!("route"), "prohibits"),
        ("egress-unreachable", Value::Null, "no route"),
        ("egress-allowed", Value::Null, ""),
    ]) {
        expect(event, &[("/event/action", json!(action)), ("/egress/cause", cause)])?;
        ensure!(event["event"]["reason"].as_str().unwrap_or_default().contains(words), "{event}");
    }
    Ok(Outcome::Passed)
}

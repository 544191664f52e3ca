//! Rules that decide by more than a packet: what is certain all the same is said, and what is not is not.

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, Lab, Server},
    namespace::Namespace,
};

use super::{
    check,
    conversations::{self, OTHER_V4, found, talking},
    lines,
};
use crate::Outcome;

/// A service of a cluster with three servers.
const SERVICE: (&str, &str, u16) = ("tcp", "10.96.0.1", 443);

const KUBE_PROXY: &str = "*nat\n:KUBE-SERVICES -\n:KUBE-SVC-ONE -\n:KUBE-SEP-A -\n:KUBE-SEP-B -\n:KUBE-SEP-C -\n-A OUTPUT -j \
    KUBE-SERVICES\n-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-ONE\n-A KUBE-SVC-ONE -m statistic --mode \
    random --probability 0.33333333349 -j KUBE-SEP-A\n-A KUBE-SVC-ONE -m statistic --mode random --probability 0.50000000000 -j \
    KUBE-SEP-B\n-A KUBE-SVC-ONE -j KUBE-SEP-C\n-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 203.0.113.10:80\n-A KUBE-SEP-B \
    -p tcp -m tcp -j DNAT --to-destination 203.0.113.77:80\n-A KUBE-SEP-C -p tcp -m tcp -j DNAT --to-destination \
    203.0.113.10:443\nCOMMIT\n";
/// The same by nftables: by a map of verdicts, as kube-proxy does, and by a map of addresses.
const BY_VERDICTS: &str = "table ip kube {\n chain a {\n meta l4proto tcp dnat to 203.0.113.10:80\n }\n chain b {\n meta l4proto tcp dnat to \
    203.0.113.77:80\n }\n chain c {\n meta l4proto tcp dnat to 203.0.113.10:443\n }\n chain o {\n type nat hook output priority -100; ip \
    daddr 10.96.0.1 tcp dport 443 numgen random mod 3 vmap { 0 : goto a, 1 : goto b, 2 : goto c }\n }\n}\n";
const BY_ADDRESSES: &str = "table ip kube {\n chain o {\n type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat to \
    numgen inc mod 2 map { 0 : 203.0.113.10, 1 : 203.0.113.77 }\n }\n}\n";
/// By a mark, which another table reads; and by a hash, with numbers of which several lead to one server.
const BY_MARKS: &str = "table ip marks {\n chain o {\n type filter hook output priority -150; ip daddr 10.96.0.1 ct state new meta mark set \
    numgen random mod 2 offset 1\n }\n}\ntable ip kube {\n chain o {\n type nat hook output priority -100; tcp dport 443 meta mark 1 dnat to \
    203.0.113.10:80; tcp dport 443 meta mark 2 dnat to 203.0.113.77:80\n }\n}\n";
const BY_HASH: &str = "table ip kube {\n chain o {\n type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat to jhash tcp \
    sport mod 4 map { 0-1 : 203.0.113.10, 2-3 : 203.0.113.77 }\n }\n}\n";
/// Tries of a client, at most: each server is met by one of them, but for once in ten billion runs.
const TRIES: usize = 60;

fn cluster(rules: &str, program: Option<&str>) -> Result<(Lab, Server)> {
    let (lab, server) = talking()?;
    match program {
        Some(program) => drop(lab.client.feed(program, &["--noflush"], rules)?),
        None => lab.client.nft(rules)?,
    }
    Ok((lab, server))
}

fn filter(rule: &str) -> String {
    format!("table inet f {{\n chain o {{\n type filter hook output priority 0;\n {rule}\n }}\n}}\n")
}

fn action(client: &Namespace, args: &[&str]) -> Result<serde_json::Value> {
    let told = lines(&check(client, &[&["-o", "json"], args].concat())?)?;
    told.into_iter().next().context("no answer")
}

/// One of several servers at random.
pub(super) fn chance() -> Result<Outcome> {
    let services = [
        (KUBE_PROXY, Some("iptables-nft-restore")),
        (KUBE_PROXY, Some("iptables-legacy-restore")),
        (BY_VERDICTS, None),
        (BY_ADDRESSES, None),
        (BY_MARKS, None),
        (BY_HASH, None),
    ];
    let probe = Lab::new()?;
    let has_legacy = probe.client.run("iptables-legacy", &["-t", "nat", "-L"]).is_ok();
    let is_legacy = |program: Option<&str>| program.is_some_and(|program| program.contains("legacy"));
    for (rules, program) in services.into_iter().filter(|(_, program)| has_legacy || !is_legacy(*program)) {
        for (rule, wanted) in [
            ("udp dport 53 drop", "egress-allowed"),
            ("ip daddr 203.0.113.0/24 drop", "egress-blocked"),
            // One of them.
            ("ip daddr 203.0.113.77 drop", "egress-unknown"),
        ] {
            let (lab, _server) = cluster(rules, program)?;
            lab.client.nft(&filter(rule))?;
            let event = action(&lab.client, &["--no-fix", "10.96.0.1:443"])?;
            ensure!(event["event"]["action"] == wanted, "{rules} {program:?} {rule}: {event}");
            let tries = match wanted {
                "egress-unknown" => TRIES,
                "egress-blocked" => 2,
                _ => 18,
            };
            let mut found: Vec<String> = Vec::new();
            while found.len() < tries && found.iter().all(|one| (one == "ok") == (found[0] == "ok")) {
                found.extend(conversations::found(&lab.client, &vec![SERVICE; tries.min(6)])?);
            }
            let (ok, stopped) = (found.iter().any(|one| one == "ok"), found.iter().any(|one| one != "ok"));
            let is_so = match wanted {
                "egress-allowed" => !stopped,
                "egress-blocked" => !ok,
                _ => ok && stopped,
            };
            ensure!(is_so, "{rules} {program:?} {rule}: the client finds {found:?}");
        }
    }
    Ok(Outcome::Passed)
}

/// A fix lets every server be reached.
pub(super) fn fix_of_all() -> Result<Outcome> {
    let (lab, _server) = cluster(KUBE_PROXY, Some("iptables-nft-restore"))?;
    lab.client.run("iptables-nft", &["-A", "OUTPUT", "-p", "tcp", "-d", "203.0.113.0/24", "-j", "REJECT"])?;
    let event = action(&lab.client, &["10.96.0.1:443"])?;
    let fix = &event["egress"]["fix"];
    ensure!(fix["verified"] == true && fix["undo_verified"] == true, "{event}");
    let commands = fix["commands"].as_array().context("no commands")?;
    ensure!(commands.len() == 3, "{fix}");
    for line in commands {
        lab.client.run("sh", &["-c", line.as_str().context("no text")?])?;
    }
    let after = found(&lab.client, &vec![SERVICE; TRIES])?;
    ensure!(after.iter().all(|one| one == "ok"), "{after:?}");
    let beside = found(&lab.client, &[("tcp", OTHER_V4, 443)])?;
    ensure!(beside[0] != "ok", "it opens more: {beside:?}");
    Ok(Outcome::Passed)
}

/// Rates and counters, and what nothing looks at.
pub(super) fn rates() -> Result<Outcome> {
    for (rule, wanted) in [
        ("tcp dport 443 limit rate over 1000/second drop; tcp dport 443 drop", "egress-blocked"),
        ("tcp dport 443 limit rate 1/second accept; tcp dport 443 accept; drop", "egress-allowed"),
        ("tcp dport 443 limit rate 1/second accept; tcp dport 443 drop", "egress-unknown"),
        ("tcp dport 443 limit rate over 1000/second drop", "egress-unknown"),
        ("tcp dport 443 quota over 1 mbytes drop; tcp dport 443 drop", "egress-blocked"),
        ("tcp dport 443 ct count over 3 drop; tcp dport 443 drop", "egress-blocked"),
        // Marks that nobody looks at, and one that a rule does.
        ("ct mark set numgen inc mod 2; tcp dport 443 drop", "egress-blocked"),
        ("meta mark set numgen random mod 2", "egress-allowed"),
        ("meta mark set numgen random mod 2; tcp dport 443 meta mark 1 drop", "egress-unknown"),
        ("add @seen {ip daddr}; tcp dport 443 drop", "egress-blocked"),
        ("add @seen {ip daddr}", "egress-allowed"),
        // A copy does not know how much was used.
        ("tcp dport 443 quota over 500 mbytes drop", "egress-unknown"),
        // The number 2 has no verdict, and a mixture of two ways lets a connection through that both stop.
        (
            "tcp dport 443 numgen random mod 3 vmap { 0 : accept, 1 : accept, 5 : accept }; tcp dport 443 drop",
            "egress-unknown",
        ),
        (
            "tcp dport 443 numgen random mod 3 vmap { 0 : accept, 1 : accept, 2 : accept }; tcp dport 443 drop",
            "egress-allowed",
        ),
        (
            "tcp dport 443 numgen random mod 2 0 ct state established drop; tcp dport 443 ct state new limit rate 1/second drop",
            "egress-unknown",
        ),
        // What stands before what does not match is done all the same.
        (
            "tcp dport 443 meta mark set 1 limit rate 100/hour burst 60 packets accept; meta mark 1 drop",
            "egress-unknown",
        ),
        ("tcp dport 443 meta mark set 1 numgen random mod 2 0 drop; tcp dport 443 meta mark 0 drop", "egress-unknown"),
        ("tcp option timestamp tsval < 2147483648 drop", "egress-unknown"),
        // The sender's port is another one each time.
        ("tcp sport 32768-46000 drop", "egress-unknown"),
        ("tcp sport { 32768-40000, 50000-60000 } drop", "egress-unknown"),
        ("tcp sport & 1 == 1 tcp dport 443 drop", "egress-unknown"),
        ("tcp sport > 1023 drop", "egress-blocked"),
        ("tcp sport { 80, 443, 1024-65535 } drop", "egress-blocked"),
        // Also where something random lets some of them pass before.
        (
            "ct state established accept; tcp dport 443 numgen random mod 2 0 accept; tcp sport 32768-46000 drop",
            "egress-unknown",
        ),
        ("tcp sport < 1024 drop; tcp sport 1024-65535 accept; drop", "egress-allowed"),
        // What only counts decides nothing.
        ("ip daddr @counted drop", "egress-allowed"),
        ("tcp dport 443 add @seen {ip daddr limit rate 1/second} accept; tcp dport 443 drop", "egress-unknown"),
    ] {
        let (lab, _server) = talking()?;
        let table = filter(&rule.replace("; ", "\n "));
        lab.client
            .nft(&table.replace(" chain o", " set seen {\n type ipv4_addr; flags dynamic; size 100\n }\n set counted {\n type ipv4_addr; counter; elements = { 203.0.113.77 }\n }\n chain o"))?;
        let event = action(&lab.client, &["--no-fix", &format!("{FAR_V4}:443")])?;
        ensure!(event["event"]["action"] == wanted, "{rule}: {event}");
    }
    Ok(Outcome::Passed)
}

/// Ranges of ports that iptables asks for.
pub(super) fn ranges_of_ports() -> Result<Outcome> {
    for (chain, rule, wanted) in [
        ("OUTPUT", "-p tcp --sport 32768:46000 -j DROP", "egress-unknown"),
        ("OUTPUT", "-p tcp --sport 1024:65535 --dport 443 -j DROP", "egress-blocked"),
        ("OUTPUT", "-p tcp -m multiport --sports 5,32768:46000 -j DROP", "egress-unknown"),
        ("OUTPUT", "-p tcp -m multiport --sports 5,6 -j DROP", "egress-allowed"),
        ("INPUT", "-p tcp --dport 1024:65535 -j DROP", "egress-blocked"),
        ("INPUT", "-p tcp --dport 32768:46000 -j DROP", "egress-unknown"),
        ("OUTPUT", "-p tcp -m conntrack --ctorigsrcport 32768:46000 -j DROP", "egress-unknown"),
        ("OUTPUT", "-p tcp -m conntrack --ctorigdstport 443 -j DROP", "egress-blocked"),
    ] {
        let (lab, _server) = talking()?;
        let rule: Vec<&str> = ["-A", chain].into_iter().chain(rule.split(' ')).collect();
        lab.client.run("iptables-nft", &rule)?;
        let event = action(&lab.client, &["--no-fix", &format!("{FAR_V4}:443")])?;
        ensure!(event["event"]["action"] == wanted, "{rule:?}: {event}");
    }
    for (rule, wanted) in [
        ("tcp dport 443 ct original proto-src 32768-46000 drop", "egress-unknown"),
        ("tcp dport 443 ct original proto-dst 443 drop", "egress-blocked"),
        ("meta l4proto tcp @th,0,32 & 0x400001bb == 0x400001bb drop", "egress-unknown"),
        ("meta l4proto tcp @th,0,32 0x001601bb drop", "egress-allowed"),
        ("tcp sport & 1 == 1 drop", "egress-unknown"),
    ] {
        let (lab, _server) = talking()?;
        lab.client.nft(&filter(rule))?;
        let event = action(&lab.client, &["--no-fix", &format!("{FAR_V4}:443")])?;
        ensure!(event["event"]["action"] == wanted, "{rule}: {event}");
    }
    // Which of several ports it is sent to is another one each time.
    for (ports, wanted) in [("80-81", "egress-unknown"), ("80", "egress-blocked")] {
        let (lab, _server) = talking()?;
        lab.client.nft(&format!(
            "table ip n {{\n chain o {{\n type nat hook output priority -100; tcp dport 443 dnat to 203.0.113.10:{ports}\n }}\n}}\n{}",
            filter("tcp dport 80 drop")
        ))?;
        let event = action(&lab.client, &["--no-fix", &format!("{FAR_V4}:443")])?;
        ensure!(event["event"]["action"] == wanted, "{ports}: {event}");
    }
    Ok(Outcome::Passed)
}

/// Another program decides, which is not in the copy; and what a rule asks before does not hide that.
pub(super) fn queues() -> Result<Outcome> {
    let (lab, _server) = talking()?;
    if lab.client.nft(&filter("tcp dport 9 queue num 7 bypass")).is_err() {
        return Ok(Outcome::Skipped("this kernel has no queues for packets".to_owned()));
    }
    for rule in ["queue num 7 bypass\n tcp dport 443 drop", "tcp dport 443 limit rate 1000/second queue num 7 bypass"] {
        lab.client.nft(&format!("flush ruleset\n{}", filter(rule)))?;
        let event = action(&lab.client, &["--no-fix", &format!("{FAR_V4}:443")])?;
        ensure!(event["event"]["action"] == "egress-unknown", "{rule}: {event}");
    }
    Ok(Outcome::Passed)
}

/// Without policies of IPsec what asks for them is certain; what one takes is not known.
pub(super) fn ipsec() -> Result<Outcome> {
    let in_nft = filter("rt ipsec exists drop\n ipsec out ip daddr 192.0.2.1 drop\n tcp dport 80 drop");
    // Rules of an overlay network, in either way.
    let in_iptables = "*filter\n-A OUTPUT -m policy --dir out --pol ipsec -j DROP\nCOMMIT\n";
    for (rules, program) in [
        (in_nft.as_str(), None),
        (in_iptables, Some("iptables-nft-restore")),
        (in_iptables, Some("iptables-legacy-restore")),
    ] {
        policies(rules, program)?;
    }
    Ok(Outcome::Passed)
}

fn policies(rules: &str, program: Option<&str>) -> Result<()> {
    let (lab, _server) = cluster(rules, program)?;
    let mut actions = Vec::new();
    for policy in [None, Some(["xfrm", "policy", "add", "dir", "out", "dst", "203.0.113.64/26"])] {
        if let Some(policy) = policy {
            let template = ["tmpl", "dst", "203.0.113.77", "proto", "esp", "mode", "transport"];
            lab.client.run("ip", &[&policy[..], &template].concat())?;
        }
        for to in [FAR_V4, OTHER_V4] {
            let event = action(&lab.client, &["--no-fix", &format!("{to}:443")])?;
            actions.push(event["event"]["action"].as_str().unwrap_or_default().to_owned());
        }
    }
    // One for packets without a mark.
    let (other, _server) = talking()?;
    other.client.nft("table inet t {\n}\n")?;
    let unmarked = "xfrm policy add dir out dst 203.0.113.64/26 mark 0 mask 0xff action block";
    other.client.run("ip", &unmarked.split(' ').collect::<Vec<_>>())?;
    let event = action(&other.client, &["--no-fix", &format!("{OTHER_V4}:443")])?;
    ensure!(event["event"]["action"] == "egress-unknown", "{unmarked}: {event}");
    // What rules ask of policies is not certain any more for anybody.
    let expected = ["egress-allowed", "egress-allowed", "egress-unknown", "egress-unknown"];
    ensure!(actions == expected, "{program:?}: {actions:?}");
    Ok(())
}

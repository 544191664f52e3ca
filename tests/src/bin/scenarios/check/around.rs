//! What is around the rules decides, too: who listens, routes that are no address's, sets that rules fill, tunnels. What is not known
//! is not said.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Server},
    namespace::Namespace,
    traffic, wait_for,
};
use serde_json::Value;

use super::{
    check,
    conversations::{OTHER_V4, agrees, echo, found, inet, talking},
    lines,
};
use crate::{Outcome, without_trials};

/// What is said of one destination.
fn told(client: &Namespace, args: &[&str]) -> Result<Value> {
    let told = lines(&check(client, &[&["-o", "json"], args].concat())?)?;
    told.into_iter().next().context("no answer")
}

fn why(event: &Value) -> &str {
    event["egress"]["check"]["why"].as_str().unwrap_or_default()
}

/// A server in a namespace as another user.
fn echo_of(namespace: &Namespace, user: &str, ports: &[&str]) -> Result<Server> {
    let mut command = namespace.command("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "/usr/bin/python3", "-IS", "-", "echo"]);
    let mut child =
        command.args(ports).stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut up = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().context("no output")?, &mut up)?;
    Ok(Server(child))
}

/// Where rules send a connection to this host itself, it is the listener's user who answers.
pub(super) fn listeners() -> Result<Outcome> {
    let redirect =
        "table ip n {\n chain o {\n type nat hook output priority -100; tcp dport 443 redirect to :8080\n }\n}\n";
    for rule in [
        "meta skuid 65534 drop",
        "tcp sport 8080 meta skuid 0 drop",
        "tcp sport 8080 meta skuid 65534 tcp flags & syn == syn drop",
        "tcp sport 8080 meta skuid 65534 meta length > 1000 drop",
    ] {
        let (lab, _server) = talking()?;
        let _listener = echo_of(&lab.client, "65534", &["8080"])?;
        lab.client.nft(&format!("{redirect}{}", inet(rule, "")))?;
        agrees(&lab.client, &[("tcp", FAR_V4, 443)], rule)?;
    }
    let (lab, _server) = talking()?;
    lab.client.nft("table inet t {\n}\n")?;
    let event = told(&lab.client, &["127.0.0.1:9"])?;
    ensure!(event["event"]["action"] == "egress-allowed" && why(&event).contains("nothing listens there"), "{event}");
    // Where it ends decides, not whose address is asked for.
    lab.client.ip(&["route add local 198.51.100.0/24 dev lo"])?;
    lab.client.nft(
        "table ip n {\n chain o {\n type nat hook output priority -100; tcp dport 8443 dnat to 203.0.113.10:443\n }\n}\n",
    )?;
    for (to, is_heard) in [("198.51.100.9:9", false), ("10.9.0.1:9", false), ("10.9.0.1:8443", true)] {
        let event = told(&lab.client, &["--no-fix", to])?;
        let is_said = why(&event).contains("nothing listens");
        ensure!(event["event"]["action"] == "egress-allowed" && is_said != is_heard, "{to}: {event}");
    }
    Ok(Outcome::Passed)
}

/// Routes that no address makes, and next hops among which something else than addresses chooses.
pub(super) fn routes() -> Result<Outcome> {
    let (lab, _server) = talking()?;
    let _here = echo(&lab.client, &["443"])?;
    lab.client.ip(&["route add local 203.0.113.0/24 dev lo", "route add local 2001:db8::/32 dev lo"])?;
    lab.client.nft(&inet("oifname \"eth0\" drop", ""))?;
    agrees(&lab.client, &[("tcp", FAR_V4, 443), ("tcp", FAR_V6, 443)], "routes to this host")?;
    // By an interface that does not have the address from which it is sent.
    let (lab, _server) = talking()?;
    let ends = |end: &Namespace, name: &str, other: u8| {
        end.ip(&[&format!("addr add fd00:90::{other}/64 dev {name} nodad"), &format!("link set {name} up")])
    };
    lab.client.run("ip", &["link", "add", "x1", "type", "veth", "peer", "name", "x2"])?;
    lab.client.run("ip", &["link", "set", "x2", "netns", &lab.server.pid().to_string()])?;
    ends(&lab.client, "x1", 1)?;
    ends(&lab.server, "x2", 2)?;
    wait_for("the other interface", || Ok(lab.client.run("ping", &["-c1", "-W1", "fd00:90::2"]).ok()))?;
    lab.client.nft(
        "table ip6 n {\n chain o {\n type nat hook output priority -100; tcp dport 443 dnat to [fd00:90::2]:80\n }\n}\n",
    )?;
    agrees(&lab.client, &[("tcp", FAR_V6, 443)], "another interface")?;
    let (lab, _server) = talking()?;
    lab.client.set("ipv4/fib_multipath_hash_policy", "1")?;
    lab.client.ip(&[
        "link add x1 type veth peer name x2",
        "addr add 10.90.0.1/24 dev x1",
        "link set x1 up",
        "link set x2 up",
        "route add 203.0.113.0/24 nexthop via 10.9.0.2 dev eth0 nexthop via 10.90.0.2 dev x1",
    ])?;
    lab.client.nft(&inet("oifname \"x1\" drop", ""))?;
    let event = told(&lab.client, &["203.0.113.10:443"])?;
    ensure!(event["event"]["action"] == "egress-unknown" && why(&event).contains("next hops"), "{event}");
    Ok(Outcome::Passed)
}

/// What a program takes from a tunnel is said beside the answer.
pub(super) fn programs_tunnels() -> Result<Outcome> {
    let (lab, _server) = talking()?;
    if lab.client.run("ip", &["tuntap", "add", "tun7", "mode", "tun"]).is_err() {
        return Ok(Outcome::Skipped("this kernel has no tun interfaces".to_owned()));
    }
    lab.client.ip(&["addr add 10.77.0.1/24 dev tun7", "link set tun7 up"])?;
    lab.client.nft(&inet("udp dport 1194 drop", ""))?;
    let event = told(&lab.client, &["--no-fix", "10.77.0.2:443"])?;
    ensure!(event["event"]["action"] == "egress-allowed" && why(&event).contains("only as far as tun7"), "{event}");
    Ok(Outcome::Passed)
}

/// Sets of ipset that rules fill, or whose counters they ask for.
pub(super) fn filled_sets() -> Result<Outcome> {
    for kind in ["nft", "legacy"] {
        let (lab, _server) = talking()?;
        lab.client.nft("table inet t {\n}\n")?;
        lab.client.feed(
            "ipset",
            &["restore"],
            "create known hash:ip\ncreate counted hash:ip counters\nadd counted 203.0.113.10\n",
        )?;
        let program = format!("iptables-{kind}");
        let rule = |words: &str| lab.client.run(&program, &words.split(' ').collect::<Vec<_>>());
        rule("-A OUTPUT -p udp -m set --match-set counted dst --packets-gt 40 -j DROP")?;
        if kind == "nft" {
            let event = told(&lab.client, &["--no-fix", "203.0.113.10:53/udp"])?;
            ensure!(event["event"]["action"] == "egress-unknown" && why(&event).contains("counter"), "{event}");
        }
        for words in ["-m set --match-set known dst -j ACCEPT", "-j SET --add-set known dst", "-j DROP"] {
            rule(&format!("-A OUTPUT -p tcp {words}"))?;
        }
        let event = told(&lab.client, &["--no-fix", "203.0.113.10:443"])?;
        ensure!(
            event["event"]["action"] == "egress-unknown" && why(&event).contains("which rules fill"),
            "{kind}: {event}"
        );
    }
    Ok(Outcome::Passed)
}

/// What the other end writes, how long an application's packets are, and what a tunnel sends: said beside the answer.
pub(super) fn beside() -> Result<Outcome> {
    let (lab, _server) = talking()?;
    lab.client
        .ip(&["link add vx type vxlan id 7 remote 10.9.0.2 dstport 4789 dev eth0", "addr add 10.5.0.1/24 dev vx"])?;
    lab.client.ip(&["link set vx up"])?;
    for (rules, to, words) in [
        (inet("", "ip ttl < 60 drop"), "203.0.113.10:443", "for usual packets"),
        (inet("meta length 300-450 drop", ""), "203.0.113.10:443", "for usual packets"),
        (inet("udp dport 4789 drop", ""), "10.5.0.2:443", "only as far as vx"),
        (inet("ip ttl < 60 drop", ""), "203.0.113.10:443", ""),
    ] {
        lab.client.nft(&format!("flush ruleset\n{rules}"))?;
        let event = told(&lab.client, &["--no-fix", to])?;
        ensure!(event["event"]["action"] == "egress-allowed", "{rules}: {event}");
        ensure!(why(&event).is_empty() == words.is_empty() && why(&event).contains(words), "{rules}: {event}");
    }
    Ok(Outcome::Passed)
}

/// Commands that were tried in vain are not told as a fix.
pub(super) fn in_vain() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let (lab, _server) = talking()?;
    lab.client.run("iptables-nft", &["-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--sport", "443", "-j", "DROP"])?;
    let event = told(&lab.client, &["203.0.113.10:443"])?;
    let fix = &event["egress"]["fix"];
    ensure!(
        event["event"]["action"] == "egress-blocked" && fix["commands"].as_array().is_none_or(Vec::is_empty),
        "{event}"
    );
    ensure!(fix["note"].as_str().is_some_and(|note| note.contains("every known command was tried")), "{event}");
    ensure!(found(&lab.client, &[("tcp", OTHER_V4, 443)])? != ["ok"], "the rule stops nothing");
    Ok(Outcome::Passed)
}

/// The same rules again change nothing, whatever sets without a name they have.
pub(super) fn the_same_rules() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let (lab, _server) = talking()?;
    lab.client.nft(&inet("policy drop; tcp dport { 80, 443 } accept; tcp dport vmap { 1 : accept, 2 : drop }", ""))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("same.nft");
    std::fs::write(&file, lab.client.run("nft", &["list", "ruleset"])?)?;
    let file = file.display().to_string();
    let output = check(&lab.client, &["--diff", &file, "203.0.113.10:443"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !said.contains("\n  adds ") && !said.contains("\n  removes "), "{said}");
    ensure!(
        said.contains("note     it has no other rules than those in force; the file has no `flush ruleset`"),
        "{said}"
    );
    let output = check(&lab.client, &["--after", "nft add table inet other", "203.0.113.10:443"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("note     it adds no rule and removes none\n"), "{said}");
    let listed = lab.client.run("nft", &["-a", "list", "chain", "inet", "t", "o"])?;
    let handle = listed.lines().find(|line| line.contains("{ 80, 443 }")).and_then(|line| line.rsplit(' ').next());
    let command = format!("nft delete rule inet t o handle {}", handle.context("no rule")?);
    let output = check(&lab.client, &["--after", &command, "203.0.113.10:443"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("removes  inet t o: tcp dport { 80, 443 } accept"), "{said}");
    Ok(Outcome::Passed)
}

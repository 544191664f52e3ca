//! The same packet through a copy of the rules: a second opinion, and nothing of it left behind or seen.

mod legacy;
mod packets;
mod traces;

use std::{fmt::Write, net::UdpSocket, process::Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab, Plug},
    namespace::Namespace,
    observer::{self, Observer, Report},
    slowness, traffic, wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    sys::socket::{setsockopt, sockopt::Priority},
    unistd::{Pid, Uid, setfsuid},
};
use serde_json::Value;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("the_users_own_packet", by_user),
    ("routes_and_interfaces", surroundings),
    ("what_a_copy_cannot_know", by_priority),
    ("a_rate_is_no_proof", by_rate),
    ("a_hundred_thousand_elements", elements),
    ("nothing_is_left_behind_or_seen", traces::none),
    ("none_where_it_is_forbidden", traces::forbidden),
    ("without_nft", without_nft),
    ("every_protocol", packets::protocols),
    ("forwarded_from_a_veth", || packets::forwarded(Plug::Veth, "forward priority 0")),
    ("forwarded_from_a_bridge", || packets::forwarded(Plug::Bridge, "postrouting priority 0")),
    ("before_its_route_is_known", || packets::forwarded(Plug::Bridge, "prerouting priority -300")),
    ("a_connection_that_was_there", packets::established),
    ("a_sockets_mark_and_group", packets::mark_and_group),
    ("at_the_interface", packets::at_the_interface),
    ("a_sockets_cgroup", packets::cgroup),
    ("a_flowtable_without_offload", packets::flowtable),
    ("a_copy_that_cannot_be_built", unbuilt),
    ("swapped_between_drop_and_question", swapped),
    ("iptables_legacy", legacy::shapes),
    ("iptables_legacy_without_its_programs", legacy::without_programs),
    ("a_rate_of_iptables_legacy", legacy::by_rate),
];

/// The last line about a port whose rule the copy has said something of, else any with a rule.
fn told(report: &Report, port: u16) -> Option<&Value> {
    let all = report.events.iter().chain(&report.late);
    let mut with_rule = all.filter(|event| event["destination"]["port"] == port && !event["egress"]["rule"].is_null());
    with_rule.clone().rfind(|event| settled(&event["egress"]["rule"])).or_else(|| with_rule.next_back())
}

/// The copy has said something of it.
fn settled(rule: &Value) -> bool {
    rule["confirmed_by"] == "replay" || rule["source"] == "replay" || !rule["replay"].is_null()
}

/// Kernels on which a rule is seen, or named by the copy.
fn impossible(report: &Report) -> Option<Outcome> {
    let rules = &report.account["rules"];
    let possible = rules["live"] == true || rules["verdicts"] == true;
    (!possible).then(|| Outcome::Skipped(format!("rules are not seen here: {}", rules["why"])))
}

/// Sends until the copy's opinion is reported: it may take longer to make than a line waits for it.
fn confirmed(observer: &Observer, port: u16, send: impl Fn() -> Result<()>) -> Result<()> {
    let is_of = |event: &Value| event["destination"]["port"] == port && settled(&event["egress"]["rule"]);
    observer.tells_until("the copy's opinion", send, is_of).map(drop)
}

/// An observer that can run no other program.
fn without_programs(namespace: &Namespace) -> Result<Observer> {
    let mut command = observer::command_after("mount -t tmpfs none /usr/sbin");
    command.args(["watch", "--no-fix", "-o", "json", "--netns"]).arg(namespace.path()).stdin(Stdio::null());
    Observer::start_command(&mut command)
}

fn udp(client: &Namespace, address: &str, port: u16) -> Result<()> {
    traffic::run(client, &["udp", address, &port.to_string()]).map(drop)
}

/// Rules by user of the socket: the copy's packet is sent as that user.
fn by_user() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0;\nmeta skuid 65534 udp dport 9001 drop comment \"hit\"\n\
         udp dport 9001 drop\n} }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let send = || {
        lab.client.inside(|| {
            // Of this thread alone, which ends.
            setfsuid(Uid::from_raw(65_534));
            let _ = UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (FAR_V4, 9001));
            Ok(())
        })
    };
    confirmed(&observer, 9001, send)?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let event = told(&report, 9001).context("no rule")?;
    ensure!(event["egress"]["rule"]["position"] == 1, "{event}");
    ensure!(event["egress"]["rule"]["replay"].is_null(), "{event}");
    ensure!(report.number("/rules/replay/disagreed") == 0, "{}", report.account["rules"]);
    Ok(Outcome::Passed)
}

/// The interface and the address that a rule asks for are those of the way out, whatever else there is.
fn surroundings() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.ip(&[
        "link add dmz0 type veth peer name dmz1",
        "link set dmz0 up",
        "link set dmz1 up",
        "addr add 10.77.0.1/24 dev dmz0",
        "addr add fd00:77::1/64 dev dmz0 nodad",
        "neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev dmz0",
        "route add 198.51.100.0/24 via 10.77.0.9 dev dmz0 src 10.77.0.1",
        "route add 2001:db8:77::/48 via fd00:77::9 dev dmz0",
    ])?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0;\noifname dmz0 ip saddr 10.77.0.1 udp dport 9001 drop\n\
         oifname dmz0 udp dport 9001 drop\noifname eth0 udp dport 9001 drop\n} }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    for address in ["198.51.100.7", "2001:db8:77::7", FAR_V4, FAR_V6] {
        let before = observer.told();
        udp(&lab.client, address, 9001)?;
        wait_for("an event", || Ok((observer.told() > before).then_some(())))?;
    }
    confirmed(&observer, 9001, || udp(&lab.client, FAR_V6, 9001))?;
    for address in ["198.51.100.7", "2001:db8:77::7", FAR_V4] {
        udp(&lab.client, address, 9001)?;
    }
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    for (address, position) in [("198.51.100.7", 1), ("2001:db8:77::7", 2), (FAR_V4, 3), (FAR_V6, 3)] {
        let of = |event: &&Value| event["destination"]["ip"] == address && event["egress"]["rule"]["position"].is_u64();
        let by_copy = |event: &&Value| {
            event["egress"]["rule"]["confirmed_by"] == "replay" || event["egress"]["rule"]["source"] == "replay"
        };
        let all: Vec<&Value> = report.events.iter().chain(&report.late).filter(of).collect();
        ensure!(all.iter().all(|event| event["egress"]["rule"]["position"] == position), "{all:?}");
        ensure!(all.iter().any(by_copy), "{all:?} {}", report.account["rules"]);
    }
    ensure!(report.number("/rules/replay/disagreed") == 0, "{}", report.account["rules"]);
    Ok(Outcome::Passed)
}

/// A priority that the program gave its socket: the copy lets the packet pass, and that is said.
fn by_priority() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0; meta priority 0:5 udp dport 9001 drop } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let send = || {
        lab.client.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            setsockopt(&socket, Priority, &5)?;
            let _ = socket.send_to(b"x", (FAR_V4, 9001));
            Ok(())
        })
    };
    confirmed(&observer, 9001, send)?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let event = told(&report, 9001).context("no rule")?;
    let rule = &event["egress"]["rule"];
    ensure!(rule["confirmed_by"].is_null() && rule["source"] == "probe", "{event}");
    let said = rule["replay"].as_str().with_context(|| format!("nothing is said: {event}"))?;
    ensure!(said.contains("lets it pass") && said.contains("meta priority in chain o"), "{said}");
    Ok(Outcome::Passed)
}

/// A rule that drops what is too much: the copy's bucket is full.
fn by_rate() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0;\n\
         udp dport 9001 limit rate 1/hour burst 1 packets accept\nudp dport 9001 drop\n} }",
    )?;
    udp(&lab.client, FAR_V4, 9001)?;
    let observer = Observer::watch(&lab.client)?;
    confirmed(&observer, 9001, || udp(&lab.client, FAR_V4, 9001))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let rule = &told(&report, 9001).context("no rule")?["egress"]["rule"];
    // Once a packet has passed there, the copy's bucket is empty too.
    let said = rule["replay"].as_str().is_some_and(|said| said.contains("`limit` in chain o"));
    ensure!(rule["source"] == "probe" && rule["position"] == 2, "{rule}");
    ensure!(said || rule["confirmed_by"] == "replay", "{rule}");
    Ok(Outcome::Passed)
}

fn elements() -> Result<Outcome> {
    if slowness() > 1 {
        return Ok(Outcome::Skipped("an emulated machine takes minutes to load them".to_owned()));
    }
    let lab = Lab::new()?;
    let mut all = String::new();
    for number in 0..100_000 {
        write!(all, "10.{}.{}.{}, ", number >> 16, number >> 8 & 255, number & 255)?;
    }
    lab.client.nft(&format!(
        "table inet t {{ set blocked {{\ntype ipv4_addr\nelements = {{ {all}{FAR_V4}}}\n}}\n\
         chain o {{ type filter hook output priority 0;\nip daddr @blocked udp dport 9001 drop comment \"hit\"\n}} }}"
    ))?;
    let observer = Observer::watch(&lab.client)?;
    confirmed(&observer, 9001, || udp(&lab.client, FAR_V4, 9001))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let event = told(&report, 9001).context("no rule")?;
    ensure!(event["egress"]["rule"]["confirmed_by"] == "replay", "{event} {}", report.account["rules"]);
    Ok(Outcome::Passed)
}

/// So many routes are not copied: the rule is reported by what was seen, and nothing is said to be confirmed.
fn unbuilt() -> Result<Outcome> {
    let lab = Lab::new()?;
    let routes: Vec<String> =
        (0..10_001).map(|number| format!("route add 10.200.{}.{}/32 dev eth0", number >> 8, number & 255)).collect();
    lab.client.ip(&routes.iter().map(String::as_str).collect::<Vec<_>>())?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 9001 drop } }")?;
    let observer = Observer::watch(&lab.client)?;
    // What came of the copy is heard by who asks next.
    for _ in 0..4 {
        observer.tells(|| udp(&lab.client, FAR_V4, 9001))?;
    }
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let rule = &told(&report, 9001).context("no rule")?["egress"]["rule"];
    ensure!(rule["position"] == 1 && rule["source"] == "probe" && rule["confirmed_by"].is_null(), "{rule}");
    ensure!(
        report.number("/rules/replay/agreed") == 0 && report.number("/rules/replay/unable") > 0,
        "{}",
        report.account
    );
    Ok(Outcome::Passed)
}

/// Rules that are others by the time that the helper is asked: what drops the packet now is not told of then.
fn swapped() -> Result<Outcome> {
    let lab = Lab::new()?;
    let rules = |port: u16| {
        format!("table inet t {{ chain o {{ type filter hook output priority 0; udp dport {port} drop\n}} }}")
    };
    let legacy = |what: &str, port: u16| {
        lab.client.run("iptables-legacy", &[what, "OUTPUT", "-p", "udp", "--dport", &port.to_string(), "-j", "DROP"])
    };
    lab.client.nft(&rules(9001))?;
    legacy("-A", 9002)?;
    let observer = Observer::watch(&lab.client)?;
    for port in [9001, 9002] {
        confirmed(&observer, port, || udp(&lab.client, FAR_V4, port))?;
    }
    let [_, helper] = observer::helpers(observer.child.id())?;
    let helper = i32::try_from(helper)?;
    // Later than answers are good for.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let told = observer.told();
    kill(Pid::from_raw(helper), Signal::SIGSTOP)?;
    for port in [9001, 9002] {
        udp(&lab.client, FAR_V4, port)?;
    }
    lab.client.run("nft", &["flush", "ruleset"])?;
    // The same packets, by rules at other places.
    lab.client.nft(&format!(
        "table inet t {{ chain o {{ type filter hook output priority 0; udp dport 9 drop\nudp dport {} drop\n}} }}",
        9001
    ))?;
    lab.client.run("iptables-legacy", &["-I", "OUTPUT", "-p", "tcp", "-j", "DROP"])?;
    kill(Pid::from_raw(helper), Signal::SIGCONT)?;
    wait_for("both packets", || Ok((observer.told() >= told + 2).then_some(())))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    for port in [9001, 9002] {
        let event = report.events.iter().rfind(|event| event["destination"]["port"] == port).context("no event")?;
        let rule = &event["egress"]["rule"];
        ensure!(rule["position"].is_null() || rule["position"] == 1, "the later rule is told: {event}");
        ensure!(rule["source"] != "replay" && rule["confirmed_by"] != "replay", "{event}");
    }
    Ok(Outcome::Passed)
}

/// The copy is made without any program.
fn without_nft() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 9001 counter drop } }")?;
    let observer = without_programs(&lab.client)?;
    confirmed(&observer, 9001, || udp(&lab.client, FAR_V4, 9001))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let rule = &told(&report, 9001).context("no rule")?["egress"]["rule"];
    ensure!(rule["position"] == 1 && rule["text"].is_null(), "{rule}");
    ensure!(rule["confirmed_by"] == "replay" || rule["source"] == "replay", "{rule}");
    Ok(Outcome::Passed)
}

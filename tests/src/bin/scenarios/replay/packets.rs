//! Packets of every kind through the copy: it agrees with what was seen.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug, SERVER_V4},
    namespace::Namespace,
    observer::{self, Observer, Report},
    testbed, traffic,
};
use nix::{
    sys::socket::{setsockopt, sockopt::Mark},
    unistd::{Gid, setfsgid},
};
use serde_json::Value;

use super::{impossible, settled};
use crate::{Outcome, without_egress_hook};

/// All lines with a rule: of each the last one.
fn opinion(report: &Report, is_of: impl Fn(&Value) -> bool) -> Result<&Value> {
    let all = report.events.iter().chain(&report.late);
    let mut with_rule = all.filter(|event| is_of(event) && !event["egress"]["rule"].is_null());
    let settled = with_rule.clone().rfind(|event| settled(&event["egress"]["rule"]));
    settled.or_else(|| with_rule.next_back()).with_context(|| format!("no rule: {:?}", report.events))
}

/// It was seen, or named, and the copy has it so.
fn agrees(report: &Report, is_of: impl Fn(&Value) -> bool, position: u64) -> Result<()> {
    let event = opinion(report, is_of)?;
    let rule = &event["egress"]["rule"];
    ensure!(rule["position"] == position, "not {position}: {event}");
    ensure!(rule["confirmed_by"] == "replay" || rule["source"] == "replay", "{event} {}", report.account["rules"]);
    Ok(())
}

/// Sends until the copy has an opinion of these kinds, in so many lines of different kinds and families.
fn opinions(observer: &Observer, kinds: &[(&str, u64)], count: usize, send: impl Fn() -> Result<()>) -> Result<()> {
    super::wait_for("the copy's opinions", || {
        send()?;
        // An opinion takes time on a processor, which the senders would have again.
        std::thread::sleep(std::time::Duration::from_millis(50) * (harness::slowness() - 1));
        let told = observer.so_far();
        let lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let kinds_told: std::collections::BTreeSet<String> = lines
            .filter(|event| settled(&event["egress"]["rule"]))
            .filter(|event| kinds.iter().any(|(kind, _)| event["network"]["transport"] == *kind))
            .map(|event| format!("{} {}", event["network"]["transport"], event["destination"]["ip"]))
            .collect();
        Ok((kinds_told.len() >= count).then_some(()))
    })
}

const KINDS: [(&str, u64); 5] = [("tcp", 1), ("udp", 2), ("icmp", 3), ("ipv6-icmp", 4), ("sctp", 5)];
const RULES: &str = "tcp dport 9001 drop\nudp dport 9001 drop\nicmp type echo-request drop\nicmpv6 type echo-request drop\n\
                     sctp dport 9001 drop";
/// An SCTP packet's common header from port 5000 to 9001, and a chunk INIT.
const SCTP: &str = "138823290000000000000000010000140000000100000100000a000a00000001";

/// One packet of every kind in both families.
fn every_kind(from: &Namespace) -> Result<()> {
    for address in [FAR_V4, FAR_V6] {
        traffic::run(from, &["tcp", address, "9001", "0.2"])?;
        traffic::run(from, &["udp", address, "9001"])?;
        traffic::run(from, &["ping", address])?;
        traffic::run(from, &["raw", address, "132", SCTP])?;
    }
    Ok(())
}

fn agree_on(report: &Report, kinds: &[(&str, u64)]) -> Result<()> {
    for &(kind, position) in kinds {
        for address in [FAR_V4, FAR_V6] {
            if (kind == "icmp") == (address == FAR_V4) || !kind.contains("icmp") {
                agrees(
                    report,
                    |event| event["network"]["transport"] == kind && event["destination"]["ip"] == address,
                    position,
                )?;
            }
        }
    }
    ensure!(report.number("/rules/replay/disagreed") == 0, "{}", report.account["rules"]);
    Ok(())
}

pub(super) fn protocols() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(&format!("table inet t {{ chain o {{ type filter hook output priority 0;\n{RULES}\n}} }}"))?;
    let observer = Observer::watch(&lab.client)?;
    opinions(&observer, &KINDS, 2 * (KINDS.len() - 1), || every_kind(&lab.client))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    agree_on(&report, &KINDS)?;
    Ok(Outcome::Passed)
}

/// The host's rules for what it forwards, at each hook.
pub(super) fn forwarded(plug: Plug, hook: &str) -> Result<Outcome> {
    // In front of a bridge's routes only a known sender tells a container's packet from another host's: a raw socket's is not.
    let kinds = if hook.starts_with("prerouting") { &KINDS[..4] } else { &KINDS[..] };
    let lab = Containers::new(plug)?;
    lab.host.nft(&format!("table inet t {{ chain f {{ type filter hook {hook};\n{RULES}\n}} }}"))?;
    let observer = Observer::watch(&lab.host)?;
    opinions(&observer, kinds, 2 * (kinds.len() - 1), || every_kind(&lab.containers[0]))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    agree_on(&report, kinds)?;
    Ok(Outcome::Passed)
}

/// Data on a connection that was there before the rule: its entry in the table of connections decides.
pub(super) fn established() -> Result<Outcome> {
    // Loaded by whoever asks for connections, such as `conntrack`.
    let is_loaded = std::path::Path::new("/sys/module/nf_conntrack_netlink").exists();
    if !is_loaded && !kernel::knows("ctnetlink_get_conntrack") {
        return Ok(Outcome::Skipped(
            "this kernel's table of connections cannot be read (nf_conntrack_netlink)".to_owned(),
        ));
    }
    let lab = Lab::new()?;
    let _server = lab.web_server(8080)?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; ct state new accept\n} }")?;
    let observer = Observer::watch(&lab.client)?;
    let to: SocketAddr = (SERVER_V4.parse::<std::net::IpAddr>()?, 8080).into();
    let mut connection = lab.client.inside(|| Ok(TcpStream::connect(to)?))?;
    lab.client.run(
        "nft",
        &["add rule inet t o ct state established tcp dport 8080 drop; add rule inet t o tcp dport 8080 drop"],
    )?;
    opinions(&observer, &KINDS, 1, || Ok(connection.try_clone()?.write_all(b"x")?))?;
    let _ = connection.flush();
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    agrees(&report, |event| event["destination"]["port"] == 8080, 2)?;
    Ok(Outcome::Passed)
}

/// What only the socket tells: its mark, and the group with which it was opened.
pub(super) fn mark_and_group() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0; meta mark 7 udp dport 9001 drop\n\
         meta skgid 65534 udp dport 9002 drop\nudp dport { 9001, 9002 } drop\n} }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    for port in [9001, 9002] {
        super::confirmed(&observer, port, || {
            lab.client.inside(|| {
                if port == 9002 {
                    // Of this thread alone, which ends.
                    setfsgid(Gid::from_raw(65_534));
                }
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                if port == 9001 {
                    setsockopt(&socket, Mark, &7)?;
                }
                let _ = socket.send_to(b"x", (FAR_V4, port));
                Ok(())
            })
        })?;
    }
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    for (port, position) in [(9001, 1), (9002, 2)] {
        agrees(&report, |event| event["destination"]["port"] == port, position)?;
    }
    Ok(Outcome::Passed)
}

/// A chain that hangs on the interface, behind all others.
pub(super) fn at_the_interface() -> Result<Outcome> {
    if let Some(skipped) = without_egress_hook() {
        return Ok(skipped);
    }
    let lab = Lab::new()?;
    lab.client.nft(
        "table netdev t { chain gone { type filter hook egress device eth0 priority 0; udp dport 9 drop\nudp dport 9001 drop } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    opinions(&observer, &KINDS, 2, || {
        super::udp(&lab.client, FAR_V4, 9001)?;
        super::udp(&lab.client, FAR_V6, 9001)
    })?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    for address in [FAR_V4, FAR_V6] {
        agrees(&report, |event| event["destination"]["ip"] == address, 2)?;
    }
    Ok(Outcome::Passed)
}

/// A cgroup; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A rule that asks for the cgroup of the socket: the copy's is made there, unless that is forbidden.
pub(super) fn cgroup() -> Result<Outcome> {
    let Some(root) = testbed::cgroup_root()? else {
        return Ok(Outcome::Skipped("cgroup2 is not mounted".to_owned()));
    };
    let name = format!("observer-replay-{}", std::process::id());
    let group = Group(root.join(&name));
    std::fs::create_dir_all(&group.0)?;
    let lab = Lab::new()?;
    // Where `nft` looks for it.
    let rules = format!(
        "table inet t {{ chain o {{ type filter hook output priority 0; socket cgroupv2 level 1 \"{name}\" udp dport 9001 drop\n\
         udp dport 9001 drop\n}}\n}}"
    );
    let mounted = format!("mount --bind {} /sys/fs/cgroup && exec nft -f -", root.display());
    if let Err(error) = lab.client.feed("unshare", &["-m", "sh", "-c", &mounted], &rules) {
        return Ok(Outcome::Skipped(format!("this kernel or nft knows no cgroups in rules: {error:#}")));
    }
    let enter = format!("echo $$ > {} && exec python3 -IS - udp {FAR_V4} 9001", group.procs().display());
    let send = || {
        let mut command = lab.client.command("sh");
        command.args(["-c", &enter]).stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        traffic::finish(command.spawn()?).map(drop)
    };
    for (flags, forbidden) in [(&[][..], false), (&["--no-cgroup-replay"], true)] {
        let mut command = observer::command();
        command.args(["watch", "--no-fix", "-o", "json"]).args(flags).arg("--netns").arg(lab.client.path());
        let observer = Observer::start_command(&mut command)?;
        super::confirmed(&observer, 9001, send)?;
        let report = observer.stop()?;
        if let Some(skipped) = impossible(&report) {
            return Ok(skipped);
        }
        if forbidden {
            let event = opinion(&report, |event| event["destination"]["port"] == 9001)?;
            let said = event["egress"]["rule"]["replay"].as_str().unwrap_or_default();
            ensure!(event["egress"]["rule"]["position"] == 1 && said.contains("a cgroup in chain o"), "{event}");
        } else {
            agrees(&report, |event| event["destination"]["port"] == 9001, 1)?;
        }
        let left = std::fs::read_to_string(group.procs())?;
        ensure!(left.trim().is_empty(), "somebody is left in the cgroup: {left}");
    }
    Ok(Outcome::Passed)
}

/// A rule that puts connections into a flowtable, which is copied with the interfaces that are there.
pub(super) fn flowtable() -> Result<Outcome> {
    let lab = Lab::new()?;
    let rules = "table inet t { flowtable f { hook ingress priority 0; devices = { eth0 }; }
chain w { type filter hook forward priority 0; ct state established flow add @f; }
chain o { type filter hook output priority 0; udp dport 9 drop; udp dport 9001 drop; } }";
    if let Err(error) = lab.client.nft(rules) {
        return Ok(Outcome::Skipped(format!("this kernel has no flowtables: {error:#}")));
    }
    let observer = Observer::watch(&lab.client)?;
    opinions(&observer, &KINDS, 1, || super::udp(&lab.client, FAR_V4, 9001))?;
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    agrees(&report, |event| event["destination"]["port"] == 9001, 2)?;
    Ok(Outcome::Passed)
}

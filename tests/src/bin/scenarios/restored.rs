//! A blocked destination that works again: told once, under the same incident, for whom it was blocked, with the change of rules
//! that came before.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug, SERVER_V4, SERVER_V6, Server},
    namespace::Namespace,
    observer::{Observer, Report, command, expect},
    traffic, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("told_once_after_a_change", once),
    ("while_it_hangs", hanging),
    ("for_whom_it_was_blocked", for_whom),
    ("another_group_was_never_blocked", group),
    ("who_is_not_in_a_group_was_never_blocked", supplementary_group),
    ("from_a_container", from_a_container),
    ("answers_to_datagrams", answers),
    ("in_words", in_words),
    ("by_run", by_run),
    ("given_up", given_up),
];

const NOBODY: &str = "65534";

/// A chain that drops what begins a connection there.
fn chain(hook: &str, and: &str) -> String {
    format!("table inet t {{ chain o {{ type filter hook {hook} priority 0; {and} tcp dport 443 drop\n}} }}")
}

/// Waits for so many lines that something works again.
fn works(observer: &Observer, count: usize) -> Result<()> {
    wait_for("that it works again", || {
        Ok((observer.so_far().matches("\"egress-restored\"").count() >= count).then_some(()))
    })
}

/// Takes the rules away, and waits until that was heard.
fn lift(observer: &Observer, namespace: &Namespace) -> Result<()> {
    let heard = || observer.so_far().matches("\"ruleset-changed\"").count();
    let before = heard();
    namespace.nft("flush chain inet t o")?;
    wait_for("a change of rules", || Ok((heard() > before).then_some(())))
}

fn connects(namespace: &Namespace, address: &str, expected: &str) -> Result<u32> {
    let client = traffic::run(namespace, &["tcp", address, "443", "0.6"])?;
    ensure!(client.said == expected, "{address}: the client says {}, expected {expected}", client.said);
    Ok(client.pid)
}

/// One line of a restoration, as it must be.
fn check(report: &Report, restored: &Value, pid: u32, port: u16) -> Result<()> {
    let incident = &restored["egress"]["incident"];
    let blocked: Vec<&Value> = report.events.iter().filter(|event| event["egress"]["incident"] == *incident).collect();
    ensure!(!blocked.is_empty(), "nothing was blocked under this incident: {restored}");
    expect(
        restored,
        &[
            ("/event/type", json!(["connection", "allowed"])),
            ("/event/outcome", json!("success")),
            ("/egress/count", json!(0)),
            ("/egress/owner", json!("socket")),
            ("/process/pid", json!(pid)),
            ("/destination/port", json!(port)),
        ],
    )?;
    ensure!(blocked.iter().any(|event| event["event"]["start"] == restored["event"]["start"]), "{restored}");
    ensure!(
        blocked.iter().any(|event| event["event"]["end"] == restored["egress"]["restored"]["last_blocked"]),
        "{restored}"
    );
    ensure!(restored["egress"]["restored"]["after_ms"].as_u64().is_some_and(|after| after > 0), "{restored}");
    Ok(())
}

/// Its change of rules is one that was reported, and the words say so.
fn after_nft(report: &Report, restored: &Value) -> Result<()> {
    let change = &restored["egress"]["restored"]["change"];
    let told = report.changes.iter().find(|told| told["event"]["id"] == change["id"]).context("no such change")?;
    ensure!(told["@timestamp"] == change["at"] && told["process"]["name"] == "nft", "{told} {restored}");
    let reason = restored["event"]["reason"].as_str().unwrap_or_default();
    ensure!(
        reason.contains(" before, nft ← scenarios ← ") && reason.contains(" changed the firewall rules"),
        "{reason}"
    );
    Ok(())
}

/// Both families, again after another block, and never for what was not blocked.
fn once() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    let observer = Observer::watch(&lab.client)?;
    connects(&lab.client, FAR_V4, "ok")?;
    let mut pids = Vec::new();
    for (round, address) in [FAR_V4, FAR_V6, FAR_V4].into_iter().enumerate() {
        lab.client.nft(&chain("output", ""))?;
        observer.tells(|| connects(&lab.client, address, "timeout"))?;
        lift(&observer, &lab.client)?;
        pids.push(connects(&lab.client, address, "ok")?);
        works(&observer, round + 1)?;
        connects(&lab.client, address, "ok")?;
    }
    let report = observer.stop()?;
    ensure!(report.restored.len() == 3, "{:?}", report.restored);
    for (restored, pid) in report.restored.iter().zip(pids) {
        check(&report, restored, pid, 443)?;
        after_nft(&report, restored)?;
    }
    Ok(Outcome::Passed)
}

/// The same socket that was blocked gets through in the end; rules change meanwhile, or nothing that is heard does.
fn hanging() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    lab.client.nft(&chain("output", ""))?;
    let observer = Observer::watch(&lab.client)?;
    let client = observer.tells(|| Ok(traffic::command(&lab.client, &["tcp", FAR_V4, "443", "20"])?.spawn()?))?;
    lift(&observer, &lab.client)?;
    let client = traffic::finish(client)?;
    ensure!(client.said == "ok", "the client says {}", client.said);
    works(&observer, 1)?;
    // No rule of nftables.
    lab.client.ip(&["link set eth0 down", "link set eth0 up"])?;
    let report = observer.stop()?;
    ensure!(report.restored.len() == 1, "{:?}", report.restored);
    check(&report, &report.restored[0], client.pid, 443)?;
    after_nft(&report, &report.restored[0])?;
    Ok(Outcome::Passed)
}

/// Another user, another program: to them it was never closed.
fn for_whom() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    lab.client.nft(&chain("output", &format!("meta skuid {NOBODY}")))?;
    let observer = Observer::watch(&lab.client)?;
    let as_nobody = || -> Result<traffic::Client> {
        let mut client = lab.client.command("setpriv");
        client.args(["--reuid", NOBODY, "--clear-groups", "/usr/bin/python3", "-IS", "-", "tcp", FAR_V4, "443", "0.6"]);
        client.stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        traffic::finish(client.spawn()?)
    };
    observer.tells(as_nobody)?;
    connects(&lab.client, FAR_V4, "ok")?;
    lab.client.nft("flush chain inet t o")?;
    // Another program of the same user's.
    let mut other = lab.client.command("setpriv");
    other.args(["--reuid", NOBODY, "--clear-groups", "bash", "-c", &format!("exec 3<>/dev/tcp/{FAR_V4}/443")]);
    ensure!(other.status()?.success(), "the other program did not get through");
    let pid = as_nobody()?.pid;
    works(&observer, 1)?;
    let report = observer.stop()?;
    ensure!(report.restored.len() == 1, "{:?}", report.restored);
    check(&report, &report.restored[0], pid, 443)?;
    expect(&report.restored[0], &[("/user/id", json!(NOBODY))])?;
    Ok(Outcome::Passed)
}

/// The usual rule for programs that are to have no network.
fn group() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    lab.client.nft(&chain("output", &format!("meta skgid {NOBODY}")))?;
    let observer = Observer::watch(&lab.client)?;
    let of_group = |group: &str| -> Result<traffic::Client> {
        let mut client = lab.client.command("setpriv");
        client.args(["--regid", group, "--clear-groups", "/usr/bin/python3", "-IS", "-", "tcp", FAR_V4, "443", "0.6"]);
        client.stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        traffic::finish(client.spawn()?)
    };
    observer.tells(|| of_group(NOBODY))?;
    let other = of_group("0")?;
    ensure!(other.said == "ok", "the client of another group says {}", other.said);
    lift(&observer, &lab.client)?;
    let pid = of_group(NOBODY)?.pid;
    works(&observer, 1)?;
    let report = observer.stop()?;
    ensure!(report.restored.len() == 1, "{:?}", report.restored);
    check(&report, &report.restored[0], pid, 443)?;
    Ok(Outcome::Passed)
}

/// Of its other groups a process shows nothing: that somebody else gets through says nothing of whoever was blocked.
fn supplementary_group() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    let rule = "*filter\n-A OUTPUT -m owner --gid-owner 4242 --suppl-groups -j REJECT\nCOMMIT\n";
    lab.client.feed("iptables-nft-restore", &["--noflush"], rule)?;
    let observer = Observer::watch(&lab.client)?;
    let in_groups = |groups: &[&str]| -> Result<traffic::Client> {
        let mut client = lab.client.command("setpriv");
        client.args(["--reuid", NOBODY, "--regid", NOBODY]).args(groups);
        client.args(["/usr/bin/python3", "-IS", "-", "tcp", FAR_V4, "443", "0.6"]);
        client.stdin(traffic::script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        traffic::finish(client.spawn()?)
    };
    let blocked = observer.tells(|| in_groups(&["--groups", "4242"]))?;
    ensure!(blocked.said != "ok", "the client in the group gets through");
    for _ in 0..3 {
        let other = in_groups(&["--clear-groups"])?;
        ensure!(other.said == "ok", "the client without the group says {}", other.said);
    }
    let report = observer.stop()?;
    ensure!(report.restored.is_empty(), "{:?}", report.restored);
    Ok(Outcome::Passed)
}

/// The host forwards it; the rules are the host's, the socket is the container's.
fn from_a_container() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    let [first, second] = &lab.containers;
    let server = Lab::serve(&lab.server, 443)?;
    lab.host.nft(&chain("forward", &format!("ip saddr {}", lab.addresses[0])))?;
    let observer = Observer::watch(&lab.host)?;
    observer.tells(|| connects(first, FAR_V4, "timeout"))?;
    connects(second, FAR_V4, "ok")?;
    lift(&observer, &lab.host)?;
    let pid = connects(first, FAR_V4, "ok")?;
    works(&observer, 1)?;
    drop(server);
    let report = observer.stop()?;
    ensure!(report.restored.len() == 1, "{:?}", report.restored);
    check(&report, &report.restored[0], pid, 443)?;
    after_nft(&report, &report.restored[0])?;
    Ok(Outcome::Passed)
}

/// Sends back whatever comes.
const ECHO: &str = "import socket\ns=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)\ns.bind(('::',53))\n\
                    while True:\n  d,a=s.recvfrom(2048)\n  s.sendto(d,a)";

/// Of both families, by sockets that are connected and others; and never for what is only sent.
fn answers() -> Result<Outcome> {
    if !Path::new("/sys/bus/event_source/devices/kprobe/type").exists() {
        return Ok(Outcome::Skipped("this kernel has no kprobes, by which a datagram's answer is seen".to_owned()));
    }
    if !kernel::probes_may_grow_maps() {
        return Ok(Outcome::Skipped("this kernel would write a warning into its log (before Linux 6.1)".to_owned()));
    }
    let lab = Lab::new()?;
    let mut echo = lab.server.command("python3");
    let _echo = Server(echo.args(["-IS", "-c", ECHO]).stdin(Stdio::null()).spawn()?);
    wait_for("the echo", || Ok(lab.server.table("udp6")?.contains(":0035 ").then_some(())))?;
    let observer = Observer::watch(&lab.client)?;
    let asks = |address: &str, connected: &str, expected: &[&str]| -> Result<u32> {
        let client = traffic::run(&lab.client, &["ask", address, "53", connected])?;
        ensure!(expected.contains(&client.said.as_str()), "{address}: the client says {}", client.said);
        Ok(client.pid)
    };
    let mut pids = Vec::new();
    for (round, (address, connected)) in
        [(SERVER_V4, "no"), (SERVER_V6, "no"), (SERVER_V4, "yes")].into_iter().enumerate()
    {
        lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 53 drop\n} }")?;
        observer.tells(|| asks(address, connected, &["EPERM"]))?;
        lift(&observer, &lab.client)?;
        // What is only sent is no answer.
        traffic::run(&lab.client, &["udp", FAR_V4, "54"])?;
        // What came sooner might be an answer to what was sent before the block.
        std::thread::sleep(std::time::Duration::from_millis(600));
        pids.push(asks(address, connected, &["ok"])?);
        works(&observer, round + 1)?;
    }
    let report = observer.stop()?;
    ensure!(report.restored.len() == 3, "{:?}", report.restored);
    for (restored, pid) in report.restored.iter().zip(pids) {
        check(&report, restored, pid, 53)?;
        after_nft(&report, restored)?;
        expect(restored, &[("/egress/restored/by", json!("answer"))])?;
        let reason = restored["event"]["reason"].as_str().unwrap_or_default();
        ensure!(reason.starts_with("an answer came "), "{reason}");
    }
    Ok(Outcome::Passed)
}

fn in_words() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    lab.client.nft(&chain("output", ""))?;
    let path = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "--no-fix", "--netns", &path])?;
    connects(&lab.client, FAR_V4, "timeout")?;
    wait_for("the block", || Ok(observer.so_far().contains("BLOCKED").then_some(())))?;
    lab.client.nft("flush chain inet t o")?;
    wait_for("the change", || Ok(observer.so_far().contains("CHANGED").then_some(())))?;
    let pid = connects(&lab.client, FAR_V4, "ok")?;
    wait_for("the line", || Ok(observer.so_far().contains("WORKS").then_some(())))?;
    let (_, stdout, _) = observer.end(Signal::SIGINT)?;
    let text = String::from_utf8(stdout)?;
    let line = text.lines().find(|line| line.contains("WORKS")).context("not told")?;
    let begins = format!("WORKS    python3[{pid}] → {FAR_V4}:443/tcp: a connection was established ");
    ensure!(line.contains(&begins) && line.contains("s after the first packet was blocked; "), "{line}");
    Ok(Outcome::Passed)
}

/// The command that hung gets through, and ends at once: that is reported before the end.
fn by_run() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _server = lab.web_server(443)?;
    lab.client.nft(&chain("output", ""))?;
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let netns = lab.client.path().display().to_string();
    let mut observer = command();
    observer.args(["run", "--no-fix", "--netns", &netns, "--report"]).arg(&report).args(["--", "sh", "-c"]);
    // The second SYN follows after a second.
    let lift = format!(
        "(sleep 0.5; nsenter --net={netns} nft flush chain inet t o) & nsenter --net={netns} timeout 20 bash -c 'exec 3<>/dev/tcp/{FAR_V4}/443'"
    );
    let output = observer.arg(lift).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("observer: WORKS bash["), "{said}");
    let line = said.lines().find(|line| line.starts_with("    works    ")).context(said.to_string())?;
    ensure!(line.contains("a connection was established "), "{line}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    let story = report["egress"]["blocked"].get(0).context("nothing was blocked")?;
    ensure!(story["restored"].as_str().is_some_and(|restored| line.contains(restored)), "{story}");
    Ok(Outcome::Passed)
}

/// A connection that its application gives up is reported under its incident, with how long it waited; one that is refused is not.
fn given_up() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(&chain("output", "tcp dport 80 reject with tcp reset;"))?;
    let observer = Observer::watch(&lab.client)?;
    for address in [FAR_V4, FAR_V6] {
        observer.tells(|| traffic::run(&lab.client, &["tcp", address, "443", "1.5"]))?;
    }
    observer.tells(|| traffic::run(&lab.client, &["tcp", FAR_V4, "80", "1.5"]))?;
    wait_for("outcomes", || Ok((observer.so_far().matches("\"egress-outcome\"").count() >= 2).then_some(())))?;
    let report = observer.stop()?;
    ensure!(report.outcomes.len() == 2, "{:?}", report.outcomes);
    for (outcome, address) in report.outcomes.iter().zip([FAR_V4, FAR_V6]) {
        expect(
            outcome,
            &[
                ("/destination/ip", json!(address)),
                ("/destination/port", json!(443)),
                ("/egress/count", json!(0)),
                ("/event/outcome", json!("failure")),
            ],
        )?;
        let waited = outcome["egress"]["outcome"]["waited_ms"].as_u64().context("how long")?;
        ensure!(waited >= 1400, "{outcome}");
        let incident = &outcome["egress"]["incident"];
        let blocked = report.events.iter().find(|event| event["egress"]["incident"] == *incident);
        let blocked = blocked.with_context(|| format!("nothing was blocked under its incident: {outcome}"))?;
        ensure!(blocked["process"]["pid"] == outcome["process"]["pid"], "{outcome}");
    }
    Ok(Outcome::Passed)
}

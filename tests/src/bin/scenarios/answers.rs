//! What comes back to a connection that was begun here, and is stopped on the way in; and what is nobody's answer.

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{CLIENT_V4, Containers, FAR_V4, FAR_V6, Lab, Plug, Server},
    namespace::Namespace,
    observer::{Observer, expect},
    traffic,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("at_the_input_hook", at_input),
    ("before_their_route", before_their_route),
    ("before_connection_tracking", before_tracking),
    ("of_datagrams_before_connection_tracking", of_datagrams_before_tracking),
    ("without_connection_tracking", untracked),
    ("without_early_demultiplexing", without_early_demux),
    ("over_a_vlan", vlan),
    ("translated_on_the_way_out", translated),
    ("errors_about_a_datagram", errors),
    ("to_a_container", || container(Plug::Veth)),
    ("to_a_container_behind_a_bridge", || container(Plug::Bridge)),
    ("to_a_container_without_connection_tracking", container_untracked),
    ("of_a_container", of_a_container),
    ("which_fit_are_not_told", fitting),
    ("nobodys", nobodys),
];

/// A web server and one that answers datagrams.
fn servers(lab: &Namespace) -> Result<[Server; 2]> {
    let web = Lab::serve(lab, 443)?;
    let echo = traffic::command(lab, &["echo", "53"])?.stdout(std::process::Stdio::null()).spawn()?;
    harness::wait_for("the echo server", || Ok(lab.table("udp6")?.contains(":0035 ").then_some(())))?;
    Ok([web, Server(echo)])
}

/// What a client asks for; transport and port in the report.
const KINDS: [(&[&str], &str, Option<u16>); 4] = [
    (&["tcp", "ADDRESS", "443", "0.5"], "tcp", Some(443)),
    (&["ask", "ADDRESS", "53"], "udp", Some(53)),
    (&["ask", "ADDRESS", "53", "yes"], "udp", Some(53)),
    (&["ping", "ADDRESS"], "icmp", None),
];

/// Runs each kind of client in both families. Each is reported with its process and the fields of `more`.
fn all_told(
    client: &Namespace,
    watched: &Namespace,
    kinds: &[(&[&str], &str, Option<u16>)],
    more: &[(&str, Value)],
) -> Result<()> {
    let observer = Observer::watch(watched)?;
    let mut clients = Vec::new();
    for address in [FAR_V4, FAR_V6] {
        for (args, transport, port) in kinds {
            let args: Vec<&str> = args.iter().map(|word| if *word == "ADDRESS" { address } else { *word }).collect();
            let client = observer.tells(|| traffic::run(client, &args))?;
            ensure!(client.said != "ok" || *transport == "icmp", "{args:?} got its answer");
            let transport = if *transport == "icmp" && address.contains(':') { "ipv6-icmp" } else { transport };
            clients.push((client.pid, address, transport, *port));
        }
    }
    let report = observer.stop()?;
    for (pid, address, transport, port) in clients {
        let is_it = |event: &&&Value| event["process"]["pid"] == pid;
        let events = report.foreground();
        let Some(event) = events.iter().find(is_it) else {
            anyhow::bail!("no report of pid {pid} to {address} {transport}: {:#?}", report.events)
        };
        let event = report.explained(event);
        let port = port.map_or(Value::Null, |port| json!(port));
        let wanted = [
            ("/egress/packet", json!("answer")),
            ("/egress/verdict", json!("drop")),
            ("/destination/ip", json!(address)),
            ("/destination/port", port),
            ("/network/transport", json!(transport)),
        ];
        expect(event, &wanted)?;
        expect(event, more)?;
    }
    let others: Vec<_> =
        report.foreground().into_iter().filter(|event| event["egress"]["packet"] != "answer").collect();
    ensure!(others.is_empty(), "told beside: {others:#?}");
    Ok(())
}

/// Drops answers.
fn chain(hook: &str) -> String {
    format!(
        "table inet t {{ chain c {{ {hook} meta l4proto {{ tcp, udp }} th sport {{ 443, 53 }} counter drop\n\
         icmp type echo-reply counter drop\nicmpv6 type echo-reply counter drop }} }}\n"
    )
}

/// Has connection tracking look at everything.
const TRACKED: &str = "table inet k { chain k { type filter hook prerouting priority 0; ct state new } }\n";

fn at_input() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _servers = servers(&lab.server)?;
    lab.client.nft(&(chain("type filter hook input priority 0;") + TRACKED))?;
    let more =
        [("/egress/hook", json!("input")), ("/egress/interface", json!("eth0")), ("/egress/rule/chain", json!("c"))];
    all_told(&lab.client, &lab.client, &KINDS, &more)?;
    Ok(Outcome::Passed)
}

fn before_their_route() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _servers = servers(&lab.server)?;
    lab.client.nft(&(chain("type filter hook prerouting priority -150;") + TRACKED))?;
    all_told(&lab.client, &lab.client, &KINDS, &[("/egress/hook", json!("prerouting"))])?;
    Ok(Outcome::Passed)
}

/// Whoever sent the question is not known there: `run` names the chain and does not say that nothing was blocked at all.
fn of_datagrams_before_tracking() -> Result<Outcome> {
    let said = |rules: &str| -> Result<String> {
        let lab = Lab::new()?;
        lab.client.nft(rules)?;
        let output = lab.client.command(harness::observer::program()).args(["run", "--", "true"]).output()?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let unseen = said(&chain("type filter hook prerouting priority -300;"))?;
    let named = "what `inet t c` drops on the way in is not all seen";
    ensure!(unseen.contains("VERDICT ") && unseen.contains(named), "{unseen}");
    let input = "table inet t { chain c { type filter hook input priority 0; RULE udp sport 53 drop } }";
    let untracked = said(&input.replace("RULE", ""))?;
    ensure!(untracked.contains("VERDICT ") && untracked.contains(named), "{untracked}");
    for rules in [
        input.replace("RULE", "ct state established accept; "),
        "table inet t { chain c { type filter hook prerouting priority -300; counter accept } }".to_owned(),
    ] {
        let passing = said(&rules)?;
        ensure!(passing.contains("VERDICT ") && !passing.contains("`inet t c` drops on the way in"), "{passing}");
    }
    Ok(Outcome::Passed)
}

/// In the `raw` table and on the interface itself nothing but its addresses tells of an answer. What else comes from there is nobody's.
fn before_tracking() -> Result<Outcome> {
    let other = "table inet t { chain c { type filter hook prerouting priority -300; tcp sport 443 counter drop } }";
    let netdev =
        "table netdev t { chain c { type filter hook ingress device eth0 priority 0; tcp sport 443 counter drop } }";
    let at = |hook: &str| [("/egress/hook", json!(hook)), ("/egress/interface", json!("eth0"))];
    for (rules, by_iptables, hook) in [
        (chain("type filter hook prerouting priority -300;"), false, "prerouting"),
        ("*raw\n-A PREROUTING -p tcp --sport 443 -j DROP\nCOMMIT\n".to_owned(), true, "prerouting"),
        (netdev.to_owned(), false, "ingress"),
    ] {
        let lab = Lab::new()?;
        let _servers = servers(&lab.server)?;
        if by_iptables {
            for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
                lab.client.feed(program, &["--noflush"], &rules)?;
            }
        } else {
            lab.client.nft(&rules)?;
        }
        let more = at(hook);
        all_told(&lab.client, &lab.client, &KINDS[..1], if hook == "ingress" { &more } else { &more[..1] })
            .context(rules)?;
    }
    // Of another host's, as of one that pretends to be the server.
    let lab = Lab::new()?;
    lab.client.nft(other)?;
    let observer = Observer::watch(&lab.client)?;
    let from_443 = "import socket, sys\nsocket.setdefaulttimeout(0.3)\n\
         try: socket.create_connection((sys.argv[1], 7000), source_address=('', 443))\nexcept OSError: pass";
    for address in [CLIENT_V4, "fd00:9::1"] {
        lab.server.run("python3", &["-c", from_443, address])?;
    }
    // Nor of somebody in another namespace, who has the same address and waits for the same.
    let stranger = Namespace::new()?;
    stranger.ip(&[
        "link add v0 type veth peer name v1",
        "link set v0 up",
        "link set v1 up",
        &format!("addr add {CLIENT_V4}/24 dev v0"),
    ])?;
    let waits = "import socket\nsocket.setdefaulttimeout(0.3)\n\
         try: socket.create_connection(('10.9.0.2', 443), source_address=('10.9.0.1', 7000))\nexcept OSError: pass";
    stranger.run("python3", &["-c", waits])?;
    let answers = "import socket, struct\ns = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n\
         s.sendto(struct.pack('!HHIIBBHHH', 443, 7000, 1, 1, 0x50, 0x12, 1000, 0, 0), ('10.9.0.1', 0))";
    lab.server.run("python3", &["-c", answers])?;
    ensure!(lab.client.counted()? >= 3, "nothing was dropped");
    let report = observer.stop()?;
    ensure!(report.events.is_empty(), "told of nobody's answer: {:#?}", report.events);
    Ok(Outcome::Passed)
}

/// The socket itself tells that it waits.
fn untracked() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _servers = servers(&lab.server)?;
    lab.client.nft(&chain("type filter hook input priority 0;"))?;
    // Whoever has asked without connecting is not known by its socket.
    all_told(&lab.client, &lab.client, &[KINDS[0], KINDS[2]], &[("/egress/hook", json!("input"))])?;
    Ok(Outcome::Passed)
}

/// Packets get their sockets behind the hook then.
fn without_early_demux() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _servers = servers(&lab.server)?;
    lab.client.set("ipv4/tcp_early_demux", "0")?;
    lab.client.set("ipv4/udp_early_demux", "0")?;
    lab.client.nft(&(chain("type filter hook input priority 0;") + TRACKED))?;
    all_told(&lab.client, &lab.client, &KINDS, &[("/egress/hook", json!("input"))])?;
    Ok(Outcome::Passed)
}

/// Both ends are on a VLAN: at the input hook, in the `raw` table, and on the interface of the VLAN itself.
fn vlan() -> Result<Outcome> {
    let lower =
        "table netdev t { chain c { type filter hook ingress device v5 priority 0; tcp sport 443 counter drop } }";
    for (rules, kinds, hook) in [
        (chain("type filter hook input priority 0;") + TRACKED, &KINDS[..], "input"),
        (chain("type filter hook prerouting priority -300;"), &KINDS[..1], "prerouting"),
        (lower.to_owned(), &KINDS[..1], "ingress"),
    ] {
        let lab = Lab::new()?;
        for (namespace, number) in [(&lab.client, 1), (&lab.server, 2)] {
            if namespace.ip(&["link add link eth0 name v5 type vlan id 5"]).is_err() {
                return Ok(Outcome::Skipped("this kernel has no VLANs".to_owned()));
            }
            namespace.ip(&[
                &format!("addr add 10.55.0.{number}/24 dev v5"),
                &format!("addr add fd55::{number}/64 dev v5 nodad"),
                "link set v5 up",
            ])?;
        }
        lab.client.ip(&[
            &format!("route replace {FAR_V4}/32 via 10.55.0.2"),
            &format!("route replace {FAR_V6}/128 via fd55::2"),
        ])?;
        let _servers = servers(&lab.server)?;
        lab.client.nft(&rules)?;
        all_told(&lab.client, &lab.client, kinds, &[("/egress/hook", json!(hook))]).context(rules)?;
    }
    Ok(Outcome::Passed)
}

/// The destination is what was asked for.
fn translated() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _servers = servers(&lab.server)?;
    lab.client.nft(
        "table ip n { chain o { type nat hook output priority -100; ip daddr 198.51.100.9 dnat to 203.0.113.10 } }\n\
         table inet t { chain i { type filter hook input priority 0; tcp sport 443 drop } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let client = observer.tells(|| traffic::run(&lab.client, &["tcp", "198.51.100.9", "443", "0.5"]))?;
    let report = observer.stop()?;
    let [event, ..] = report.foreground()[..] else { anyhow::bail!("no report") };
    expect(
        event,
        &[
            ("/process/pid", json!(client.pid)),
            ("/destination/ip", json!("198.51.100.9")),
            ("/destination/nat/ip", json!(FAR_V4)),
            ("/source/ip", json!(CLIENT_V4)),
            ("/egress/packet", json!("answer")),
        ],
    )?;
    Ok(Outcome::Passed)
}

/// A closed port's error is the answer to whoever has sent there.
fn errors() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(
        "table inet t { chain i { type filter hook input priority 0; ct state related drop }\n\
         chain k { type filter hook output priority 0; ct state new } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let mut pids = Vec::new();
    for address in [FAR_V4, FAR_V6] {
        pids.push((observer.tells(|| traffic::run(&lab.client, &["ask", address, "7000", "yes"]))?.pid, address));
    }
    let report = observer.stop()?;
    for (pid, address) in pids {
        let events = report.foreground();
        let event = events.iter().find(|event| event["destination"]["ip"] == address);
        let Some(event) = event else { anyhow::bail!("no report of {address}: {:#?}", report.events) };
        expect(
            event,
            &[
                ("/process/pid", json!(pid)),
                ("/destination/port", json!(7000)),
                ("/network/transport", json!("udp")),
                ("/egress/packet", json!("answer")),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

/// What the host forwards to a container.
fn container(plug: Plug) -> Result<Outcome> {
    let lab = Containers::new(plug)?;
    let _servers = servers(&lab.server)?;
    lab.host.nft(&(chain("type filter hook forward priority 0;") + TRACKED))?;
    all_told(&lab.containers[0], &lab.host, &KINDS[..3], &[("/egress/hook", json!("forward"))])?;
    Ok(Outcome::Passed)
}

/// Whoever forwards it knows nothing of the connection.
fn container_untracked() -> Result<Outcome> {
    for (hook, place) in [("forward priority 0", "forward"), ("prerouting priority -300", "prerouting")] {
        let lab = Containers::new(Plug::Veth)?;
        let _servers = servers(&lab.server)?;
        lab.host.nft(&chain(&format!("type filter hook {hook};")))?;
        all_told(&lab.containers[0], &lab.host, &KINDS[..1], &[("/egress/hook", json!(place))])?;
    }
    Ok(Outcome::Passed)
}

/// What a container answers belongs to whoever has contacted it, where that is somebody on this host.
fn of_a_container() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    let _server = Lab::serve(&lab.containers[0], 443)?;
    lab.host
        .nft("table inet t { chain f { type filter hook forward priority 0; ct state established counter drop } }")?;
    let observer = Observer::watch(&lab.host)?;
    let client = observer.tells(|| traffic::run(&lab.server, &["tcp", &lab.addresses[0], "443", "0.5"]))?;
    let report = observer.stop()?;
    ensure!(lab.host.counted()? > 0, "nothing was dropped");
    ensure!(!report.events.is_empty(), "the drop was not told");
    for event in &report.events {
        expect(
            event,
            &[
                ("/egress/packet", json!("answer")),
                ("/process/pid", json!(client.pid)),
                ("/destination/ip", json!(lab.addresses[0])),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

/// Answers that arrive, while what is invalid or late is dropped.
fn fitting() -> Result<Outcome> {
    let lab = Lab::new()?;
    let _servers = servers(&lab.server)?;
    lab.client.nft(
        "table inet t { chain i { type filter hook input priority 0; policy drop; ct state established,related accept\n\
         meta l4proto ipv6-icmp accept } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    for address in [FAR_V4, FAR_V6] {
        for (args, transport, _) in KINDS {
            let args: Vec<&str> = args.iter().map(|word| if *word == "ADDRESS" { address } else { *word }).collect();
            let client = traffic::run(&lab.client, &args)?;
            ensure!(client.said == "ok" || transport == "icmp", "{args:?} says {}", client.said);
        }
    }
    let report = observer.stop()?;
    ensure!(report.foreground().is_empty(), "{:#?}", report.foreground());
    Ok(Outcome::Passed)
}

/// What others begin is theirs, however much of it there is.
fn nobodys() -> Result<Outcome> {
    const PACKETS: u64 = 100_000;
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain i { type filter hook input priority 0; ct state new,invalid counter drop } }")?;
    let observer = Observer::watch(&lab.client)?;
    traffic::run(&lab.server, &["flood", CLIENT_V4, "53", &PACKETS.to_string()])?;
    traffic::run(&lab.server, &["tcp", CLIENT_V4, "443", "0.2"])?;
    traffic::run(&lab.server, &["ping", CLIENT_V4])?;
    let dropped = lab.client.counted()?;
    let report = observer.stop()?;
    ensure!(dropped > PACKETS, "{dropped} packets were dropped");
    ensure!(report.events.is_empty() && report.number("/reported") == 0, "{:#?}", report.events);
    Ok(Outcome::Passed)
}

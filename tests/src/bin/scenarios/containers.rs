//! Containers' egress, which the host forwards: named as the process inside, wherever on the host it was stopped.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{CLIENT_V4, Containers, FAR_V4, FAR_V6, Plug},
    namespace::Namespace,
    observer::{Observer, Report, expect},
    testbed, traffic,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario, unnamed, without_egress_hook};

pub(crate) const ALL: &[Scenario] = &[
    ("forward_from_a_veth", || forward(Plug::Veth)),
    ("forward_from_a_bridge", || forward(Plug::Bridge)),
    ("postrouting_after_translation", translated),
    ("raw_prerouting", || {
        unrouted(
            "table inet t { chain c { type filter hook prerouting priority -300; MATCH } }",
            "prerouting",
            "netfilter",
        )
    }),
    ("netdev_ingress", || {
        unrouted(
            "table netdev t { chain c { type filter hook ingress device veth2 priority 0; MATCH } }",
            "ingress",
            "netfilter",
        )
    }),
    ("tc_ingress", tc_ingress),
    ("prerouting_of_a_bridge", bridge_prerouting),
    ("dockers_rules", docker),
    ("kubernetes_rules", kubernetes),
    ("ipv4_by_a_socket_of_the_newer_family", mapped),
    ("a_server_in_a_container_answers", answers),
    ("two_containers_at_once", two),
    ("senders_that_live_for_one_call", brief),
    ("a_docker_container_by_its_name", || named(&DOCKER)),
    ("a_podman_container_by_its_name", || named(&PODMAN)),
    ("a_pods_container_by_its_name", || named(&KUBELET)),
    ("a_rootless_containers_network", rootless),
    ("what_comes_in_is_not_told", inbound),
    ("destination_before_translation", redirected),
];

const MATCH: &str = "meta l4proto { tcp, udp } th dport { 443, 53 } counter drop\nicmp type echo-request counter drop\nicmpv6 type echo-request counter drop";

/// TCP, UDP (one packet, and one by a connected socket) and ping in both families from one container.
fn all_kinds(container: &Namespace) -> Result<Vec<(u32, &'static str, &'static str)>> {
    let mut clients = Vec::new();
    for (address, ping) in [(FAR_V4, "icmp"), (FAR_V6, "ipv6-icmp")] {
        clients.push((traffic::run(container, &["tcp", address, "443", "0.4"])?.pid, address, "tcp"));
        clients.push((traffic::run(container, &["udp", address, "53"])?.pid, address, "udp"));
        clients.push((traffic::run(container, &["udp", address, "53", "1", "yes"])?.pid, address, "udp"));
        clients.push((traffic::run(container, &["ping", address])?.pid, address, ping));
    }
    Ok(clients)
}

fn check(report: &Report, clients: &[(u32, &str, &str)], more: &[(&str, Value)]) -> Result<()> {
    let events = report.foreground();
    ensure!(events.len() == clients.len(), "{} packets, {} events: {events:?}", clients.len(), events.len());
    for (event, (pid, address, transport)) in events.iter().zip(clients) {
        expect(
            event,
            &[
                ("/process/pid", json!(pid)),
                ("/process/name", json!("python3")),
                ("/destination/ip", json!(address)),
                ("/network/transport", json!(transport)),
            ],
        )?;
        expect(event, more)?;
    }
    Ok(())
}

fn forward(plug: Plug) -> Result<Outcome> {
    let lab = Containers::new(plug)?;
    lab.host.nft(&format!("table inet t {{ chain c {{ type filter hook forward priority 0;\n{MATCH}\n}} }}"))?;
    let observer = Observer::watch(&lab.host)?;
    let clients = all_kinds(&lab.containers[0])?;
    let report = observer.stop()?;
    let mut more = vec![
        ("/egress/hook", json!("forward")),
        ("/egress/owner", json!("flow")),
        ("/egress/netns", json!(lab.host.inode()?)),
    ];
    if plug == Plug::Veth {
        more.push(("/egress/origin_netns", json!(lab.containers[0].inode()?)));
    }
    check(&report, &clients, &more)?;
    ensure!(report.number("/reported") == lab.host.counted()?, "the firewall counted {}", lab.host.counted()?);
    Ok(Outcome::Passed)
}

/// Past source address translation the packet has the host's address; the sender's is in the connection.
fn translated() -> Result<Outcome> {
    let mut chains = vec![("postrouting", "inet", "type filter hook postrouting priority 200;")];
    if without_egress_hook().is_none() {
        chains.push(("egress", "netdev", "type filter hook egress device eth0 priority 0;"));
    }
    for (hook, family, chain) in chains {
        let lab = Containers::new(Plug::Bridge)?;
        lab.host.nft(&format!(
            "table inet n {{ chain c {{ type nat hook postrouting priority 100; oif eth0 masquerade; }} }}\n\
             table {family} t {{ chain c {{ {chain}\n{MATCH}\n}} }}"
        ))?;
        let observer = Observer::watch(&lab.host)?;
        let client = traffic::run(&lab.containers[1], &["tcp", FAR_V4, "443", "0.4"])?;
        let report = observer.stop()?;
        ensure!(report.events.len() == 1, "{hook}: {:?}", report.events);
        expect(
            &report.events[0],
            &[
                ("/process/pid", json!(client.pid)),
                ("/egress/hook", json!(hook)),
                ("/source/ip", json!(lab.addresses[1])),
                ("/source/nat/ip", json!(CLIENT_V4)),
                ("/destination/nat", Value::Null),
            ],
        )?;
    }
    Ok(Outcome::Passed)
}

/// Where Cilium and Calico stop a container: before there is a route.
fn unrouted(ruleset: &str, hook: &str, cause: &str) -> Result<Outcome> {
    let lab = Containers::new(Plug::Veth)?;
    lab.host.nft(&ruleset.replace("MATCH", &format!("\n{MATCH}\n")))?;
    let observer = Observer::watch(&lab.host)?;
    let clients = all_kinds(&lab.containers[0])?;
    let report = observer.stop()?;
    let origin = json!(lab.containers[0].inode()?);
    check(
        &report,
        &clients,
        &[("/egress/hook", json!(hook)), ("/egress/cause", json!(cause)), ("/egress/origin_netns", origin)],
    )?;
    Ok(Outcome::Passed)
}

fn tc_ingress() -> Result<Outcome> {
    if let Some(skipped) = unnamed("TC_INGRESS") {
        return Ok(skipped);
    }
    let lab = Containers::new(Plug::Veth)?;
    let _program = testbed::deny_tc_ingress(&lab.host, "veth2")?;
    let observer = Observer::watch(&lab.host)?;
    let client = traffic::run(&lab.containers[0], &["udp", FAR_V4, "53"])?;
    let report = observer.stop()?;
    let events = report.foreground();
    ensure!(events.len() == 1, "{events:?}");
    expect(
        events[0],
        &[
            ("/process/pid", json!(client.pid)),
            ("/egress/hook", json!("ingress")),
            ("/egress/cause", json!("tc")),
            ("/egress/interface", json!("veth2")),
        ],
    )?;
    Ok(Outcome::Passed)
}

/// The packet is IPv4, the socket's addresses are mapped ones.
fn mapped() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft(&format!("table inet t {{ chain c {{ type filter hook forward priority 0;\n{MATCH}\n}} }}"))?;
    let observer = Observer::watch(&lab.host)?;
    let client = traffic::run(&lab.containers[0], &["mapped", FAR_V4, "443"])?;
    let report = observer.stop()?;
    let (pid, events) = (client.pid, vec![(client.pid, FAR_V4, "tcp"), (client.pid, FAR_V4, "udp")]);
    check(&report, &events, &[("/egress/owner", json!("flow")), ("/process/pid", json!(pid))])?;
    Ok(Outcome::Passed)
}

/// A connection that came in from outside; what its server sends back is dropped on the host. The port is its listener's too.
fn answers() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    let folder = tempfile::TempDir::new()?;
    let go = folder.path().join("go").display().to_string();
    let mut server = traffic::command(&lab.containers[0], &["accepted", "7000", &go])?.spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("no stdout")?).lines();
    ensure!(lines.next().transpose()?.as_deref() == Some("listening"), "the server does not listen");
    let peer = traffic::command(&lab.server, &["tcp", &lab.addresses[0], "7000", "5"])?.spawn()?;
    ensure!(lines.next().transpose()?.as_deref() == Some("accepted"), "the connection did not come in");
    // The peer is on this host, too: if observer saw it connect, it would name the peer. A peer elsewhere is not known.
    let observer = Observer::watch(&lab.host)?;
    lab.host.nft("table inet t { chain c { type filter hook forward priority 0; tcp sport 7000 counter drop; } }")?;
    std::fs::write(&go, "")?;
    let pid = server.id();
    server.wait()?;
    traffic::finish(peer)?;
    let report = observer.stop()?;
    let data: Vec<_> = report.foreground();
    ensure!(!data.is_empty(), "nothing is told: {:?}", report.events);
    for event in data {
        expect(
            event,
            &[("/process/pid", json!(pid)), ("/source/port", json!(7000)), ("/egress/owner", json!("flow"))],
        )?;
    }
    Ok(Outcome::Passed)
}

/// At a bridge a container's packet is known by its sender alone.
fn bridge_prerouting() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft(&format!("table inet t {{ chain c {{ type filter hook prerouting priority -300;\n{MATCH}\n}} }}"))?;
    let observer = Observer::watch(&lab.host)?;
    let clients = all_kinds(&lab.containers[0])?;
    let report = observer.stop()?;
    check(&report, &clients, &[("/egress/owner", json!("flow"))])?;
    for event in report.foreground() {
        // Where the bridge's own netfilter calls the hook, it cannot be told from the device's.
        let hook = &event["egress"]["hook"];
        ensure!(hook == "prerouting" || hook.is_null(), "{event}");
    }
    Ok(Outcome::Passed)
}

/// The shape of Docker's tables, with the administrator's rule where Docker's pages put it.
fn docker() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    for rule in [
        "-N DOCKER",
        "-N DOCKER-USER",
        "-N DOCKER-ISOLATION-STAGE-1",
        "-P FORWARD DROP",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "-A DOCKER-USER -p tcp --dport 443 -j DROP",
        "-A DOCKER-USER -j RETURN",
        "-t nat -A POSTROUTING ! -o docker0 -j MASQUERADE",
    ] {
        lab.host.run("iptables-nft", &rule.split(' ').collect::<Vec<_>>())?;
    }
    let observer = Observer::watch(&lab.host)?;
    let blocked = traffic::run(&lab.containers[0], &["tcp", FAR_V4, "443", "0.4"])?;
    let open = traffic::run(&lab.containers[0], &["tcp", FAR_V4, "80", "0.4"])?;
    let report = observer.stop()?;
    ensure!(open.said == "ECONNREFUSED", "port 80 is not open: {}", open.said);
    ensure!(report.foreground().len() == 1, "{:?}", report.events);
    expect(report.foreground()[0], &[("/process/pid", json!(blocked.pid)), ("/egress/hook", json!("forward"))])?;
    ensure!(observer_names(&report, open.pid) == 0);
    Ok(Outcome::Passed)
}

/// The shape of kube-proxy's tables: a service's address becomes an endpoint's before the packet is forwarded, and dropped.
fn kubernetes() -> Result<Outcome> {
    let lab = Containers::new(Plug::Veth)?;
    for rule in [
        "-t nat -N KUBE-SERVICES",
        "-t nat -N KUBE-SVC-X",
        "-t nat -N KUBE-SEP-X",
        "-t nat -A PREROUTING -j KUBE-SERVICES",
        "-t nat -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j KUBE-SVC-X",
        "-t nat -A KUBE-SVC-X -j KUBE-SEP-X",
        "-t nat -A KUBE-SEP-X -p tcp -j DNAT --to-destination 203.0.113.10:6443",
        "-N KUBE-FORWARD",
        "-A FORWARD -j KUBE-FORWARD",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -p tcp --dport 6443 -j DROP",
    ] {
        lab.host.run("iptables-nft", &rule.split(' ').collect::<Vec<_>>())?;
    }
    let observer = Observer::watch(&lab.host)?;
    let client = traffic::run(&lab.containers[1], &["tcp", "10.96.0.1", "443", "0.4"])?;
    let report = observer.stop()?;
    ensure!(report.foreground().len() == 1, "{:?}", report.events);
    expect(
        report.foreground()[0],
        &[
            ("/process/pid", json!(client.pid)),
            ("/egress/hook", json!("forward")),
            ("/destination/ip", json!("10.96.0.1")),
            ("/destination/port", json!(443)),
            ("/destination/nat/ip", json!(FAR_V4)),
            ("/destination/nat/port", json!(6443)),
        ],
    )?;
    Ok(Outcome::Passed)
}

fn observer_names(report: &Report, pid: u32) -> usize {
    report.events.iter().filter(|event| event["process"]["pid"] == pid).count()
}

/// The same destination from two containers at the same time.
fn two() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft(&format!("table inet t {{ chain c {{ type filter hook forward priority 0;\n{MATCH}\n}} }}"))?;
    let observer = Observer::watch(&lab.host)?;
    let first = traffic::command(&lab.containers[0], &["tcp", FAR_V4, "443", "2.5"])?.spawn()?;
    let second = traffic::command(&lab.containers[1], &["tcp", FAR_V4, "443", "2.5"])?.spawn()?;
    let pids = [first.id(), second.id()];
    traffic::finish(first)?;
    traffic::finish(second)?;
    let report = observer.stop()?;
    for (pid, address) in pids.into_iter().zip(&lab.addresses) {
        let events: Vec<_> = report.events.iter().filter(|event| event["source"]["ip"] == **address).collect();
        ensure!(events.len() >= 2, "{} packets of {address}", events.len());
        for event in events {
            expect(event, &[("/process/pid", json!(pid))])?;
        }
    }
    Ok(Outcome::Passed)
}

/// Gone before anybody could look, with their namespace's socket.
fn brief() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft(&format!("table inet t {{ chain c {{ type filter hook forward priority 0;\n{MATCH}\n}} }}"))?;
    let observer = Observer::watch(&lab.host)?;
    let client = std::env::current_exe()?.with_file_name("client");
    lab.containers[0].run(client.to_str().context("path")?, &["many", "50", FAR_V4, "443"])?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 50, "{} events", report.events.len());
    let mut numbers: Vec<_> = report.events.iter().map(|event| event["process"]["args"][4].to_string()).collect();
    numbers.sort();
    numbers.dedup();
    ensure!(numbers.len() == 50, "{} different clients are named", numbers.len());
    Ok(Outcome::Passed)
}

/// What a runtime leaves on its host: the cgroup's folder, and a file by which the container's name is known.
struct Runtime {
    runtime: &'static str,
    /// Below a slice; `ID` stands for the container's.
    cgroup: &'static str,
    file: &'static str,
    text: &'static str,
    pod: Option<(&'static str, &'static str)>,
}

const DOCKER: Runtime = Runtime {
    runtime: "docker",
    cgroup: "docker-ID.scope",
    file: "/var/lib/docker/containers/ID/config.v2.json",
    text: r#"{"State":{"Running":true},"Name":"/web"}"#,
    pod: None,
};
const PODMAN: Runtime = Runtime {
    runtime: "podman",
    cgroup: "libpod-ID.scope",
    file: "/var/lib/containers/storage/overlay-containers/containers.json",
    text: r#"[{"id":"ID","names":["web"],"image":"x","layer":"y"}]"#,
    pod: None,
};
const KUBELET: Runtime = Runtime {
    runtime: "containerd",
    cgroup: "cri-containerd-ID.scope",
    file: "/var/log/containers/shop-7d4b9_front_web-ID.log",
    text: "",
    pod: Some(("front", "shop-7d4b9")),
};

/// Id, name and slice, although the container is gone when its packet is named.
fn named(runtime: &Runtime) -> Result<Outcome> {
    let Some(root) = testbed::cgroup_root()? else {
        return Ok(Outcome::Skipped("the unified cgroup hierarchy is not mounted".to_owned()));
    };
    let mut lab = harness::lab::Lab::new()?;
    lab.client.private_files()?;
    lab.client.nft("table inet t { chain c { type filter hook output priority 0; udp dport 53 counter drop; } }")?;
    let id = format!("{:064x}", lab.client.inode()?);
    let file = runtime.file.replace("ID", &id);
    lab.client.feed(
        "sh",
        &["-c", &format!("mkdir -p $(dirname {file}) && cat > {file}")],
        &runtime.text.replace("ID", &id),
    )?;
    let mut command = lab.client.command(harness::observer::program());
    command.args(["watch", "-o", "json", "--netns", "/proc/self/ns/net"]);
    let observer = Observer::start_command(&mut command)?;
    let slice = root.join(format!("observertest{}.slice", lab.client.inode()?));
    let unit = runtime.cgroup.replace("ID", &id);
    let group = slice.join(&unit);
    std::fs::create_dir_all(&group)?;
    let enter = format!("echo $$ > {}/cgroup.procs && exec python3 -IS - udp {FAR_V4} 53", group.display());
    let child = lab
        .client
        .command("sh")
        .args(["-c", &enter])
        .stdin(traffic::script()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let client = traffic::finish(child);
    std::fs::remove_dir(&group)?;
    std::fs::remove_dir(&slice)?;
    let client = client?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 1, "{:?}", report.events);
    let (namespace, pod) = runtime.pod.unzip();
    expect(
        &report.events[0],
        &[
            ("/process/pid", json!(client.pid)),
            ("/container/id", json!(id)),
            ("/container/runtime", json!(runtime.runtime)),
            ("/container/name", json!("web")),
            ("/orchestrator/namespace", json!(namespace)),
            ("/orchestrator/resource/name", json!(pod)),
            ("/egress/unit", json!(unit)),
            ("/egress/slice", json!(slice.file_name().and_then(|name| name.to_str()))),
        ],
    )?;
    Ok(Outcome::Passed)
}

/// A real slirp4netns carries the container's connection in its own name: it is the owner, and what it is is said.
fn rootless() -> Result<Outcome> {
    let lab = harness::lab::Lab::new()?;
    lab.client.nft(&format!("table inet t {{ chain c {{ type filter hook output priority 0;\n{MATCH}\n}} }}"))?;
    let container = Namespace::new()?;
    let mut relay = lab
        .client
        .command("slirp4netns")
        .args(["--configure", "--mtu=1500", &container.pid().to_string(), "tap0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let result = (|| {
        harness::wait_for("slirp4netns", || {
            Ok(container.run("ip", &["route"])?.contains("default via").then_some(()))
        })?;
        let observer = Observer::watch(&lab.client)?;
        let client = traffic::run(&container, &["tcp", FAR_V4, "443", "0.4"])?;
        let report = observer.stop()?;
        let events = report.foreground();
        ensure!(!events.is_empty() && observer_names(&report, client.pid) == 0, "{:?}", report.events);
        for event in events {
            expect(
                event,
                &[
                    ("/process/pid", json!(relay.id())),
                    ("/process/name", json!("slirp4netns")),
                    ("/egress/relay", json!("slirp4netns")),
                    ("/egress/owner", json!("socket")),
                    ("/egress/hook", json!("output")),
                    ("/egress/origin_netns", Value::Null),
                    ("/destination/ip", json!(FAR_V4)),
                ],
            )?;
        }
        Ok(Outcome::Passed)
    })();
    relay.kill()?;
    relay.wait()?;
    result
}

/// To the host itself, from outside to the host, and from outside into the host's own chains: no egress.
fn inbound() -> Result<Outcome> {
    for plug in [Plug::Veth, Plug::Bridge] {
        let lab = Containers::new(plug)?;
        lab.host.nft(
            &"table inet t { chain i { type filter hook input priority 0; iif != lo counter drop; }
             chain p { type filter hook prerouting priority -300; ip daddr { GATEWAY, 10.9.0.1 } udp dport 99 counter drop; } }"
                .replace("GATEWAY", &lab.gateway),
        )?;
        let observer = Observer::watch(&lab.host)?;
        for port in ["53", "99"] {
            traffic::run(&lab.containers[0], &["udp", &lab.gateway, port])?;
            traffic::run(&lab.server, &["udp", CLIENT_V4, port])?;
        }
        traffic::run(&lab.containers[0], &["tcp", &lab.gateway, "80", "0.3"])?;
        traffic::run(&lab.server, &["ping", CLIENT_V4])?;
        let report = observer.stop()?;
        ensure!(lab.host.counted()? >= 6, "only {} were dropped", lab.host.counted()?);
        ensure!(report.foreground().is_empty(), "{plug:?}: {:?}", report.events);
    }
    Ok(Outcome::Passed)
}

/// An application asks for one address, a rule turns it to another, a second rule drops it there: the first is reported.
fn redirected() -> Result<Outcome> {
    let lab = harness::lab::Lab::new()?;
    lab.client.nft(
        "table ip n { chain c { type nat hook output priority -100; tcp dport 443 dnat to 203.0.113.10:3128; } }
         table ip t { chain c { type filter hook output priority 0; tcp dport 3128 counter drop; } }",
    )?;
    let observer = Observer::watch(&lab.client)?;
    let client = traffic::run(&lab.client, &["tcp", "198.51.100.1", "443", "0.4"])?;
    let report = observer.stop()?;
    ensure!(report.events.len() == 1, "{:?}", report.events);
    expect(
        &report.events[0],
        &[
            ("/process/pid", json!(client.pid)),
            ("/destination/ip", json!("198.51.100.1")),
            ("/destination/port", json!(443)),
            ("/destination/nat/ip", json!(FAR_V4)),
            ("/destination/nat/port", json!(3128)),
        ],
    )?;
    Ok(Outcome::Passed)
}

//! Conversations: `check` allows what a real client can hold a conversation with, and nothing else, over many rulesets.

use std::{io::Read, process::Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab, Server},
    namespace::Namespace,
    traffic,
};
use serde_json::Value;

use super::{check, lines, word};
use crate::{Outcome, front_ends};

/// Another address of the server.
pub(crate) const OTHER_V4: &str = "203.0.113.77";
/// Where the client goes: protocol, address, port.
const DESTINATIONS: [(&str, &str, u16); 7] = [
    ("tcp", FAR_V4, 443),
    ("tcp", FAR_V6, 443),
    ("tcp", FAR_V4, 80),
    ("tcp", FAR_V6, 80),
    ("udp", FAR_V4, 53),
    ("udp", FAR_V6, 53),
    ("tcp", OTHER_V4, 443),
];

/// A server that answers on these ports, in that namespace.
pub(crate) fn echo(namespace: &Namespace, ports: &[&str]) -> Result<Server> {
    let mut command = traffic::command(namespace, &[&["echo"], ports].concat())?;
    let mut child = command.stderr(Stdio::null()).spawn().context("cannot start the server")?;
    let mut up = [0; 2];
    child.stdout.as_mut().context("no output")?.read_exact(&mut up)?;
    Ok(Server(child))
}

/// A lab whose server answers on ports 53, 80 and 443.
pub(crate) fn talking() -> Result<(Lab, Server)> {
    let lab = Lab::new()?;
    lab.server.ip(&[&format!("addr add {OTHER_V4}/32 dev lo")])?;
    let server = echo(&lab.server, &["53", "80", "443"])?;
    Ok((lab, server))
}

/// So many seconds, longer where the machine is slower.
pub(crate) fn seconds(number: f64) -> String {
    (number * f64::from(harness::slowness())).to_string()
}

/// What a real client finds at each of these.
pub(crate) fn found(client: &Namespace, destinations: &[(&str, &str, u16)]) -> Result<Vec<String>> {
    let ports: Vec<String> = destinations.iter().map(|(_, _, port)| port.to_string()).collect();
    let seconds = seconds(0.8);
    let mut args = vec!["converse", seconds.as_str()];
    for ((transport, address, _), port) in destinations.iter().zip(&ports) {
        args.extend([*transport, *address, port.as_str()]);
    }
    let said = traffic::run(client, &args)?.said;
    Ok(said.split(' ').map(str::to_owned).collect())
}

/// What is said of each destination is what the client finds; what is said, by destination.
pub(crate) fn agrees(client: &Namespace, destinations: &[(&str, &str, u16)], ruleset: &str) -> Result<Vec<Value>> {
    let words: Vec<String> = destinations.iter().map(|to| word(*to)).collect();
    let args: Vec<&str> = ["--no-fix", "-o", "json"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let told = lines(&check(client, &args)?)?;
    let found = found(client, destinations)?;
    for (((to, found), event), word) in destinations.iter().zip(&found).zip(&told).zip(&words) {
        let action = event["event"]["action"].as_str().unwrap_or_default();
        let wanted = if found == "ok" { "egress-allowed" } else { "egress-blocked" };
        ensure!(action == wanted, "{ruleset}: {word} {to:?}: the client finds {found}, check says {event}");
        ensure!(event["egress"]["rule"].is_object() == (found != "ok"), "{ruleset}: {event}");
    }
    Ok(told)
}

/// `inet` chains of rules for what is sent and what comes in.
pub(super) fn inet(output: &str, input: &str) -> String {
    format!(
        "table inet t {{\n counter c {{\n }}\n chain x {{\n ip daddr 203.0.113.77 drop\n }}\n chain o {{\n type filter hook output priority 0; {output}\n }}\n \
         chain i {{\n type filter hook input priority 0; {input}\n }}\n}}\n"
    )
}

const BACK: &str = "policy drop; iif lo accept; ct state established,related accept; \
                    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept;";

/// nftables: each statement that was, or could be, taken for a doubt; and what only a conversation shows.
pub(super) fn by_nft() -> Result<Outcome> {
    let rulesets = [
        inet("", "policy drop; iif lo accept"),
        inet("policy drop; tcp dport 443 accept; udp dport 53 accept", BACK),
        inet("tcp dport 80 tcp flags & fin == fin drop", ""),
        inet("meta l4proto tcp meta length > 1000 drop", ""),
        inet("tcp dport 443 meta length > 1400 drop", ""),
        inet("", "tcp sport 443 meta length > 1499 drop"),
        inet("meta nfproto ipv6 tcp dport 80 ip6 length > 1200 drop", ""),
        inet("", "tcp sport 443 tcp flags & (syn | ack) == (syn | ack) drop; udp sport 53 drop"),
        inet("tcp flags & syn == syn tcp option maxseg size set 1300; tcp dport 80 drop", BACK),
        inet("tcp dport 443 counter name \"c\" reject", BACK),
        inet("meta skuid 65534 limit rate 1/hour drop; tcp dport 80 drop", ""),
        inet("tcp dport 443 reject; tcp dport 443 limit rate 1/hour accept", ""),
        inet("limit rate 1/hour log prefix \"x\"; ip daddr 203.0.113.77 drop", ""),
        inet("meta time > \"2020-01-01 00:00:00\" tcp dport 80 drop", ""),
        inet("fib daddr type local accept; fib daddr . oif type unicast tcp dport 80 drop", ""),
        inet("ip ttl 64 tcp dport 443 drop; ip6 hoplimit 64 udp dport 53 drop", ""),
        inet("meta cgroup 77 drop; meta priority 5 drop; udp dport 53 drop", ""),
        inet("ip daddr . tcp dport { 203.0.113.10 . 443, 203.0.113.77 . 80 } drop", ""),
        inet("tcp dport vmap { 80 : drop, 443 : goto x }", ""),
        inet("jump { udp dport 53 drop; }", ""),
        "table inet t {\n set s {\n type ipv4_addr; flags interval,timeout; timeout 1h; elements = { 203.0.113.0/26, \
             198.51.100.0/24 timeout 5m }\n }\n chain o {\n type filter hook output priority 0; ip daddr @s drop\n }\n}\n"
            .to_owned(),
        "table inet t {\n set s {\n type ipv4_addr; flags timeout; elements = { 203.0.113.77 timeout 1h }\n }\n \
         chain o {\n type filter hook output priority 0; ip daddr @s tcp dport 443 drop\n }\n}\n"
            .to_owned(),
        format!(
            "{}table inet r {{\n chain o {{\n type filter hook output priority raw; tcp dport 80 notrack\n }}\n}}\n",
            inet("", BACK)
        ),
        format!(
            "{}table ip n {{\n chain p {{\n type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 masquerade\n }}\n}}\n",
            inet("tcp dport 80 drop", BACK)
        ),
        format!(
            "{}table ip n {{\n chain p {{\n type nat hook postrouting priority srcnat; oifname \"eth0\" masquerade\n }}\n}}\n",
            inet("udp dport 53 drop", BACK)
        ),
        format!(
            "{}table ip n {{\n chain o {{\n type nat hook output priority -100; ip daddr 203.0.113.77 tcp dport 443 dnat to \
             203.0.113.10:80\n }}\n}}\n",
            inet("", BACK)
        ),
        format!(
            "{}table ip n {{\n chain o {{\n type nat hook output priority -100; ip daddr 203.0.113.77 tcp dport 443 dnat to \
             203.0.113.10:80\n }}\n}}\n",
            inet("tcp dport 80 drop", BACK)
        ),
        "table inet n {\n chain o {\n type nat hook output priority -100; tcp dport 80 redirect to :9\n }\n}\n".to_owned(),
        "table inet n {\n chain o {\n type nat hook output priority -100; tcp dport 80 redirect to :7777\n }\n}\n".to_owned(),
        format!(
            "{}table inet m {{\n chain o {{\n type route hook output priority mangle; tcp dport 443 meta mark set 7\n }}\n}}\n",
            inet("meta mark 7 drop", "")
        ),
        "table ip d {\n chain o {\n type filter hook output priority 0; udp dport 53 dup to 10.9.0.2 device \"eth0\"; tcp dport \
         80 drop\n }\n}\n"
            .to_owned(),
        "table netdev n {\n chain i {\n type filter hook ingress device \"eth0\" priority 0; ip saddr 203.0.113.77 drop\n }\n}\n"
            .to_owned(),
        "table arp a {\n chain o {\n type filter hook output priority 0; arp operation request drop\n }\n}\n".to_owned(),
    ];
    for ruleset in rulesets {
        let (lab, _server) = talking()?;
        let _proxy = echo(&lab.client, &["7777"])?;
        lab.client.nft(&ruleset).with_context(|| ruleset.clone())?;
        agrees(&lab.client, &DESTINATIONS, &ruleset)?;
    }
    Ok(Outcome::Passed)
}

/// Both kinds of iptables.
pub(super) fn by_iptables() -> Result<Outcome> {
    let back = "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    let rulesets: Vec<String> = vec![
        "*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n".to_owned(),
        format!("*filter\n:INPUT DROP\n:OUTPUT DROP\n{back}-A OUTPUT -p tcp -m multiport --dports 80,443 -j ACCEPT\nCOMMIT\n"),
        format!(
            "*filter\n:INPUT DROP\n:droplog -\n{back}-A INPUT -j droplog\n-A OUTPUT -p tcp --dport 80 -j ACCEPT\n-A OUTPUT -o eth0 \
             -j droplog\n-A droplog -m limit --limit 10/min -j LOG\n-A droplog -j DROP\nCOMMIT\n"
        ),
        "*filter\n-A OUTPUT -p tcp --dport 80 -j REJECT\nCOMMIT\n*mangle\n-A POSTROUTING -o eth0 -p tcp --tcp-flags SYN,RST SYN -j \
         TCPMSS --clamp-mss-to-pmtu\n-A OUTPUT -p tcp --dport 443 -j DSCP --set-dscp 0x10\nCOMMIT\n"
            .to_owned(),
        "*filter\n-A OUTPUT -p udp --dport 53 -j DROP\nCOMMIT\n*nat\n-A POSTROUTING -o docker0 -j MASQUERADE\nCOMMIT\n".to_owned(),
        format!("*filter\n{back}-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A OUTPUT -p tcp --dport 443 -j DROP\nCOMMIT\n"),
        "*filter\n-A OUTPUT -p tcp -m length --length 1000:65535 -j DROP\nCOMMIT\n".to_owned(),
        "*filter\n-A OUTPUT -p tcp --dport 22 -m recent --name ssh --set\n-A OUTPUT -p tcp --dport 22 -m recent --name ssh --update \
         --seconds 60 --hitcount 3 -j DROP\n-A OUTPUT -p tcp --dport 80 -j DROP\nCOMMIT\n"
            .to_owned(),
        "*filter\n-A OUTPUT -m time --timestart 00:00:00 --timestop 23:59:59 -p tcp --dport 80 -j DROP\nCOMMIT\n".to_owned(),
        "*filter\n-A OUTPUT -p tcp --tcp-flags FIN FIN -j DROP\nCOMMIT\n".to_owned(),
        "*nat\n-A OUTPUT -p tcp --dport 443 -j REDIRECT --to-ports 7777\nCOMMIT\n".to_owned(),
    ];
    for kind in ["nft", "legacy"] {
        for ruleset in &rulesets {
            let (lab, _server) = talking()?;
            let _proxy = echo(&lab.client, &["7777"])?;
            // Legacy tables alone are followed by nftables' help.
            lab.client.nft("table inet t {\n}\n")?;
            for program in ["iptables", "ip6tables"] {
                lab.client.feed(&format!("{program}-{kind}-restore"), &["--noflush"], ruleset)?;
            }
            agrees(&lab.client, &DESTINATIONS, &format!("{kind}: {ruleset}"))?;
        }
    }
    Ok(Outcome::Passed)
}

/// Sets of ipset, which rules name by their places: also where an earlier one is gone.
pub(super) fn by_ipset() -> Result<Outcome> {
    for kind in ["nft", "legacy"] {
        let (lab, _server) = talking()?;
        lab.client.nft("table inet t {\n}\n")?;
        let sets = "create gone hash:ip\ncreate nets hash:net\ncreate also-gone hash:ip\ncreate pairs hash:ip,port timeout \
                    600\ncreate six hash:net family inet6\ncreate list list:set size 8\nadd nets 203.0.113.0/26\nadd nets \
                    203.0.113.10 nomatch\nadd pairs 203.0.113.77,tcp:443\nadd six 2001:db8:1::/64\nadd list nets\n";
        lab.client.feed("ipset", &["restore"], sets)?;
        lab.client.run("ipset", &["destroy", "gone"])?;
        lab.client.run("ipset", &["destroy", "also-gone"])?;
        for rule in [
            "-A OUTPUT -m set --match-set pairs dst,dst -j DROP",
            "-A OUTPUT -p udp -m set ! --match-set list dst -j DROP",
        ] {
            lab.client.run(&format!("iptables-{kind}"), &rule.split(' ').collect::<Vec<_>>())?;
        }
        let six = "-A OUTPUT -p tcp --dport 80 -m set --match-set six dst -j REJECT";
        lab.client.run(&format!("ip6tables-{kind}"), &six.split(' ').collect::<Vec<_>>())?;
        agrees(&lab.client, &DESTINATIONS, kind)?;
    }
    Ok(Outcome::Passed)
}

/// Docker beside ufw.
const DOCKER: &str = "*nat\n:DOCKER -\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n-A OUTPUT ! -d 127.0.0.0/8 -m addrtype \
    --dst-type LOCAL -j DOCKER\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n-A DOCKER -i docker0 -j \
    RETURN\nCOMMIT\n*filter\n:DOCKER -\n:DOCKER-USER -\n:DOCKER-FORWARD -\n:DOCKER-CT -\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j \
    DOCKER-FORWARD\n-A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER-FORWARD -i docker0 -j ACCEPT\n-A DOCKER-CT -o docker0 -m conntrack \
    --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
/// Services of Kubernetes, one with an endpoint and one without.
const KUBE_PROXY: &str = "*nat\n:KUBE-SERVICES -\n:KUBE-POSTROUTING -\n:KUBE-MARK-MASQ -\n:KUBE-SVC-ONE -\n:KUBE-SEP-ONE -\n-A OUTPUT \
    -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n-A KUBE-SERVICES -d \
    203.0.113.77/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-ONE\n-A KUBE-SVC-ONE ! -s 10.244.0.0/16 -d 203.0.113.77/32 -p tcp -m tcp \
    --dport 443 -j KUBE-MARK-MASQ\n-A KUBE-SVC-ONE -j KUBE-SEP-ONE\n-A KUBE-SEP-ONE -p tcp -m tcp -j DNAT --to-destination \
    203.0.113.10:80\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j \
    RETURN\n-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n-A KUBE-POSTROUTING -j MASQUERADE \
    --random-fully\nCOMMIT\n*filter\n:KUBE-SERVICES -\n:KUBE-FIREWALL -\n-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n-A \
    OUTPUT -j KUBE-FIREWALL\n-A KUBE-SERVICES -d 203.0.113.10/32 -p udp -m udp --dport 53 -m comment --comment \"x/dns has no \
    endpoints\" -j REJECT --reject-with icmp-port-unreachable\n-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! \
    --ctstate RELATED,ESTABLISHED,DNAT -j DROP\nCOMMIT\n";
/// A host endpoint of Calico's.
const CALICO: &str = "*filter\n:cali-OUTPUT -\n:cali-to-host-endpoint -\n:cali-th-eth0 -\n:cali-po-allow-web -\n-A OUTPUT -m comment \
    --comment \"cali:one\" -j cali-OUTPUT\n-A cali-OUTPUT -m mark --mark 0x10000/0x10000 -j ACCEPT\n-A cali-OUTPUT -j MARK \
    --set-xmark 0x0/0xf0000\n-A cali-OUTPUT -m conntrack ! --ctstate DNAT -j cali-to-host-endpoint\n-A cali-OUTPUT -m mark --mark \
    0x10000/0x10000 -j ACCEPT\n-A cali-to-host-endpoint -o eth0 -g cali-th-eth0\n-A cali-th-eth0 -m conntrack --ctstate \
    RELATED,ESTABLISHED -j ACCEPT\n-A cali-th-eth0 -m conntrack --ctstate INVALID -j DROP\n-A cali-th-eth0 -j MARK --set-xmark \
    0x0/0x10000\n-A cali-th-eth0 -j cali-po-allow-web\n-A cali-th-eth0 -m mark --mark 0x10000/0x10000 -j RETURN\n-A cali-th-eth0 -j \
    DROP\n-A cali-po-allow-web -p tcp -m multiport --dports 80,8080 -j MARK --set-xmark 0x10000/0x10000\nCOMMIT\n";
/// The sandbox of an agent that writes code: lists of addresses, and nothing else.
const SANDBOX: &str = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n-A INPUT -p udp -m udp --sport 53 -j ACCEPT\n-A INPUT -p tcp -m \
    tcp --sport 22 -m state --state ESTABLISHED -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n-A INPUT -s 10.9.0.0/24 -j ACCEPT\n-A INPUT -m \
    state --state RELATED,ESTABLISHED -j ACCEPT\n-A OUTPUT -p udp -m udp --dport 53 -j ACCEPT\n-A OUTPUT -p tcp -m tcp --dport 22 \
    -j ACCEPT\n-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -d 10.9.0.0/24 -j ACCEPT\n-A OUTPUT -m state --state RELATED,ESTABLISHED -j \
    ACCEPT\n-A OUTPUT -m set --match-set allowed-static dst -j ACCEPT\n-A OUTPUT -m set --match-set allowed-dynamic dst -j \
    ACCEPT\n-A OUTPUT -j REJECT --reject-with icmp-admin-prohibited\nCOMMIT\n";

/// Rulesets as other programs write them.
pub(super) fn of_other_programs() -> Result<Outcome> {
    for ruleset in [DOCKER, KUBE_PROXY, CALICO, SANDBOX] {
        let (mut lab, _server) = talking()?;
        if ruleset == DOCKER {
            front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp", "reject out 53"])?;
        }
        if ruleset == SANDBOX {
            let sets = "create allowed-static hash:net\ncreate allowed-dynamic hash:ip timeout 600\nadd allowed-static \
                        203.0.113.64/26\nadd allowed-dynamic 198.51.100.1 timeout 500\n";
            lab.client.feed("ipset", &["restore"], sets)?;
        }
        lab.client.feed("iptables-nft-restore", &["--noflush"], ruleset)?;
        agrees(&lab.client, &DESTINATIONS, ruleset)?;
    }
    Ok(Outcome::Passed)
}

/// Which packet of a conversation is stopped, in both families; where its neighbour is not known, it is asked for.
pub(super) fn packets() -> Result<Outcome> {
    let (four, six) = (("tcp", FAR_V4, 443), ("tcp", FAR_V6, 443));
    for (ruleset, to, packet, rule) in [
        (inet("icmpv6 type nd-neighbor-solicit drop", ""), six, "solicitation", "icmpv6 type nd-neighbor-solicit drop"),
        (inet("", "icmpv6 type nd-neighbor-advert drop"), six, "solicitation", "icmpv6 type nd-neighbor-advert drop"),
        (
            "table arp a {\n chain o {\n type filter hook output priority 0; arp operation request drop\n }\n}\n"
                .to_owned(),
            four,
            "arp",
            "arp operation request drop",
        ),
        (
            "table arp a {\n chain i {\n type filter hook input priority 0; arp operation reply drop\n }\n}\n"
                .to_owned(),
            four,
            "arp",
            "arp operation reply drop",
        ),
        (inet("", "tcp sport 443 drop"), four, "answer", "tcp sport 443 drop"),
        (inet("", "tcp sport 443 drop"), six, "answer", "tcp sport 443 drop"),
        (inet("meta length > 1000 drop", ""), four, "segment", "meta length > 1000 drop"),
        (inet("meta length > 1000 drop", ""), six, "segment", "meta length > 1000 drop"),
    ] {
        let (lab, _server) = talking()?;
        for interface in [("client", &lab.client), ("server", &lab.server)].map(|(_, namespace)| namespace) {
            interface.run("ip", &["neigh", "flush", "dev", "eth0", "nud", "permanent"])?;
            interface.run("ip", &["-6", "neigh", "flush", "dev", "eth0", "nud", "permanent"])?;
        }
        lab.client.nft(&ruleset)?;
        // Asked again, now that the client has tried: it knows no more.
        for _ in 0..if packet == "answer" { 1 } else { 2 } {
            let told = agrees(&lab.client, &[to], &ruleset)?;
            let egress = &told[0]["egress"];
            ensure!(egress["packet"] == packet && egress["rule"]["text"] == rule, "{ruleset}: {}", told[0]);
        }
    }
    Ok(Outcome::Passed)
}

/// Rules stop what asks for a neighbour that is known: until it is asked for again, nothing is stopped.
pub(super) fn known_neighbours() -> Result<Outcome> {
    let arp = "table arp a {\n chain o {\n type filter hook output priority 0; arp operation request drop\n }\n}\n";
    for (ruleset, to, family, rule) in [
        (inet("icmpv6 type nd-neighbor-solicit drop", ""), FAR_V6, "-6", "icmpv6 type nd-neighbor-solicit drop"),
        (inet("", "icmpv6 type nd-neighbor-advert drop"), FAR_V6, "-6", "icmpv6 type nd-neighbor-advert drop"),
        (arp.to_owned(), FAR_V4, "-4", "arp operation request drop"),
    ] {
        let (lab, _server) = talking()?;
        let to = ("tcp", to, 443);
        lab.client.nft(&ruleset)?;
        let told = agrees(&lab.client, &[to], &ruleset)?;
        ensure!(told[0]["egress"]["check"]["why"].is_null(), "it is known for good: {}", told[0]);
        let known = lab.client.run("ip", &[family, "neigh", "show", "nud", "permanent"])?;
        let of_gateway =
            known.lines().find(|line| !line.starts_with("ff02")).context("no neighbour is known for good")?;
        let words: Vec<&str> = of_gateway.split_ascii_whitespace().filter(|word| *word != "PERMANENT").collect();
        lab.client.run("ip", &[&[family, "neigh", "replace"], words.as_slice(), &["nud", "stale"]].concat())?;
        let told = agrees(&lab.client, &[to], &ruleset)?;
        let why = told[0]["egress"]["check"]["why"].as_str().unwrap_or_default();
        ensure!(why.contains("only while its neighbour is known") && why.contains(rule), "{ruleset}: {}", told[0]);
        ensure!(told[0]["egress"]["rule"].is_null(), "{ruleset}: {}", told[0]);
    }
    Ok(Outcome::Passed)
}

/// What the kernel makes of a packet, or takes for granted, as it is set.
pub(super) fn by_settings() -> Result<Outcome> {
    for (setting, value, ruleset) in [
        ("ipv4/ip_local_port_range", "10000 20000", inet("tcp sport 32768-60999 accept; tcp dport 443 drop", "")),
        ("ipv4/ip_local_port_range", "10000 20000", inet("tcp sport 10000-20000 accept; tcp dport 443 drop", "")),
        ("ipv4/ip_default_ttl", "128", inet("ip ttl != 128 tcp dport 443 drop", "")),
        ("ipv6/conf/eth0/hop_limit", "200", inet("ip6 hoplimit != 200 tcp dport 443 drop", "")),
        ("ipv4/tcp_timestamps", "0", inet("tcp option timestamp exists tcp dport 443 drop", "")),
        ("ipv4/tcp_sack", "0", inet("tcp option sack-perm exists tcp dport 443 drop", "")),
        ("ipv4/tcp_window_scaling", "0", inet("tcp option window exists tcp dport 443 drop", "")),
        ("ipv4/ip_no_pmtu_disc", "1", inet("ip frag-off & 0x4000 == 0 tcp dport 443 drop", "")),
    ] {
        let (lab, _server) = talking()?;
        lab.client.set(setting, value)?;
        lab.client.nft(&ruleset)?;
        agrees(&lab.client, &DESTINATIONS[..2], &format!("{setting} {value}: {ruleset}"))?;
    }
    Ok(Outcome::Passed)
}

/// Rules that mark packets choose the gateway, and the interface.
pub(super) fn by_marks() -> Result<Outcome> {
    let marks =
        "table ip m { chain o { type route hook output priority -150; ip daddr 203.0.113.10 meta mark set 7 } }";
    for (rules, routes) in [
        ("", &["route add default via 10.9.0.3 table 77"][..]),
        ("tcp dport 80 drop", &["route add default via 10.9.0.3 table 77"]),
        (
            "}\nchain p { type filter hook postrouting priority 0; oifname x1 tcp dport 443 drop",
            &[
                "link add x1 type veth peer name x2",
                "addr add 10.90.0.1/24 dev x1",
                "link set x1 up",
                "link set x2 up",
                "route add default via 10.90.0.2 dev x1 table 77",
            ],
        ),
    ] {
        let (lab, _server) = talking()?;
        lab.server.ip(&["addr add 10.9.0.3/24 dev eth0"])?;
        lab.client.ip(routes)?;
        lab.client.ip(&["rule add fwmark 7 lookup 77"])?;
        lab.client.nft(&format!("{marks}\n{}", inet(rules, "")))?;
        agrees(
            &lab.client,
            &[("tcp", FAR_V4, 443), ("tcp", FAR_V4, 80)][..if rules.is_empty() { 2 } else { 1 }],
            rules,
        )?;
    }
    Ok(Outcome::Passed)
}

/// What decides about frames is not in the copy: then it is not said that a destination is allowed.
pub(super) fn of_a_bridge() -> Result<Outcome> {
    let drops = "type filter hook output priority 0; ip protocol tcp tcp dport 443 drop";
    for (ruleset, action) in [
        ("table inet t {\n}\n".to_owned(), "egress-allowed"),
        (format!("table inet t {{ chain o {{ {drops} }} }}"), "egress-blocked"),
        (format!("table bridge b {{ chain o {{ {drops} }} }}"), "egress-unknown"),
        (
            "table netdev n { chain i { type filter hook ingress device eth0 priority 0; tcp sport 443 drop } }"
                .to_owned(),
            "egress-unknown",
        ),
    ] {
        let (lab, _server) = talking()?;
        lab.client.ip(&[
            "link add br0 type bridge forward_delay 0",
            "link set br0 address 02:00:00:00:00:01",
            "addr flush dev eth0",
            "link set eth0 master br0",
            "link set br0 up",
            "addr add 10.9.0.1/24 dev br0",
            "route add default via 10.9.0.2",
        ])?;
        // Where the kernel has no such tables, there is nothing to be said.
        if lab.client.nft(&ruleset).is_err() {
            continue;
        }
        let told = lines(&check(&lab.client, &["--no-fix", "-o", "json", "203.0.113.10:443"])?)?;
        let found = found(&lab.client, &[("tcp", FAR_V4, 443)])?;
        ensure!((found == ["ok"]) == (action == "egress-allowed"), "{ruleset}: the client finds {found:?}");
        ensure!(told[0]["event"]["action"] == action, "{ruleset}: {}", told[0]);
    }
    Ok(Outcome::Passed)
}

/// Its routes are the ones that are taken.
pub(super) fn without_a_carrier() -> Result<Outcome> {
    let (lab, _server) = talking()?;
    lab.client.ip(&[
        "link add x1 type veth peer name x2",
        "addr add 10.90.0.1/24 dev x1",
        "link set x1 up",
        "route add 203.0.113.0/24 via 10.90.0.2 dev x1",
    ])?;
    lab.client.nft(&inet("oifname x1 drop; oifname eth0 tcp dport 443 reject", ""))?;
    let told = lines(&check(&lab.client, &["--no-fix", "-o", "json", "203.0.113.10:443"])?)?;
    ensure!(told[0]["egress"]["rule"]["text"] == "oifname \"x1\" drop", "{}", told[0]);
    // Where the kernel is set not to take such a route, it takes the next one, or the other hop.
    lab.client.set("ipv4/conf/all/ignore_routes_with_linkdown", "1")?;
    for routes in [
        &[][..],
        &["route add 203.0.113.0/24 nexthop via 10.9.0.2 dev eth0 nexthop via 10.90.0.2 dev x1", "route del default"],
    ] {
        if !routes.is_empty() {
            lab.client.ip(&["route del 203.0.113.0/24"])?;
        }
        lab.client.ip(routes)?;
        agrees(&lab.client, &[("tcp", FAR_V4, 443), ("tcp", FAR_V4, 80)], "routes that are not taken")?;
    }
    // So it does where its own address makes the route; and an address need not make any, or makes a better one.
    for (setting, addresses) in [
        ("1", &["addr add 203.0.113.1/24 dev x1"][..]),
        ("0", &["addr add 203.0.113.1/24 dev x1 noprefixroute"]),
        ("0", &["addr add 203.0.113.1/24 dev x1 metric 600", "addr add 203.0.113.2/24 dev eth0 metric 100"]),
    ] {
        let (lab, _server) = talking()?;
        lab.client.ip(&["link add x1 type veth peer name x2", "link set x1 up"])?;
        if setting == "0" {
            lab.client.ip(&["link set x2 up"])?;
        }
        lab.client.set("ipv4/conf/all/ignore_routes_with_linkdown", setting)?;
        lab.client.ip(addresses)?;
        lab.client.nft(&inet("oifname \"eth0\" tcp dport 443 reject", ""))?;
        let told = lines(&check(&lab.client, &["--no-fix", "-o", "json", "203.0.113.10:443"])?)?;
        ensure!(told[0]["event"]["action"] == "egress-blocked", "{addresses:?}: {}", told[0]);
        let said = traffic::run(&lab.client, &["tcp", FAR_V4, "443", "1"])?.said;
        ensure!(said == "ECONNREFUSED", "{addresses:?}: the client finds {said}");
    }
    Ok(Outcome::Passed)
}

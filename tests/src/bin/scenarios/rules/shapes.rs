//! The shapes: a ruleset, the packet that it drops, and what the rule does with it.

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Packet {
    Udp4,
    Udp6,
    Tcp4,
    Tcp6,
}
pub(crate) use Packet::{Tcp4, Tcp6, Udp4, Udp6};

/// How the rules are made.
#[derive(Clone, Copy)]
pub(super) enum Rules {
    /// For `nft`; of several rules, the one that drops has the comment `hit`.
    Nft(&'static str),
    /// Lines for one of the iptables; the rule that drops is the `usize`th of that chain, 0 its policy.
    Iptables(&'static str, &'static [&'static str], &'static str, usize),
}
pub(super) use Rules::{Iptables, Nft};

/// A way to drop a packet to port `PORT`.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) send: Packet,
    pub(super) rules: Rules,
    pub(super) verdict: &'static str,
}

const fn drops(send: Packet, rules: &'static str) -> Shape {
    Shape { send, rules: Nft(rules), verdict: "drop" }
}

const fn rejects(send: Packet, rules: &'static str) -> Shape {
    Shape { send, rules: Nft(rules), verdict: "reject" }
}

pub(super) const OUT: &str = "type filter hook output priority 0;";

/// `OUT` stands for a base chain's line.
pub(super) const MATCHES: [Shape; 16] = [
    drops(Udp4, "table inet t { chain o { OUT udp dport PORT drop comment \"hit\" } }"),
    drops(Tcp4, "table inet t { chain o { OUT tcp dport PORT drop comment \"hit\" } }"),
    drops(Udp6, "table inet t { chain o { OUT udp dport PORT drop comment \"hit\" } }"),
    drops(Tcp6, "table inet t { chain o { OUT tcp dport PORT drop comment \"hit\" } }"),
    drops(Udp4, "table inet t { chain o { OUT meta l4proto { tcp, udp } th dport PORT drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { chain o { OUT udp dport 9 drop\nudp dport PORT counter drop comment \"hit\"\nudp dport 10 drop } }",
    ),
    drops(
        Udp4,
        "table inet t { chain o { OUT udp dport PORT counter log prefix \"x\" counter drop comment \"hit\" } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT udp dport PORT limit rate 1000/second drop comment \"hit\" } }"),
    drops(Udp4, "table inet t { chain o { OUT udp dport PORT quota over 0 bytes drop comment \"hit\" } }"),
    drops(Udp4, "table inet t { chain o { OUT meta skuid 0 udp dport PORT drop comment \"hit\" } }"),
    drops(Udp4, "table inet t { chain o { OUT udp dport PORT ct state new drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { chain o { OUT oifname \"eth0\" ip daddr 203.0.113.0/24 udp dport PORT drop comment \"hit\" } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT udp dport PORT meta mark set 7\nmeta mark 7 drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { chain o { OUT udp dport != 9 udp dport != 10 udp dport != 11 udp dport != 12 udp sport != 1 ip ttl > 1 ip length > 20 ip protocol udp oifname \"eth0\" meta mark 0 udp dport PORT counter drop comment \"hit\" } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT drop comment \"hit\" } }"),
    drops(
        Tcp4,
        "table inet t { chain o { OUT tcp flags & (syn | ack) == syn tcp dport PORT drop comment \"hit\"\ntcp dport PORT drop } }",
    ),
];

pub(super) const SETS: [Shape; 14] = [
    drops(Udp4, "table inet t { chain o { OUT udp dport { 9, PORT } drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { set s { type inet_service; elements = { 9, PORT } }\nchain o { OUT udp dport @s drop comment \"hit\" } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT udp dport 9000-65000 drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { set s { type inet_service; flags interval; elements = { 9-10, 9000-65000 } }\nchain o { OUT udp dport @s drop comment \"hit\" } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT ip daddr . udp dport { 203.0.113.10 . PORT } drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { set s { type ipv4_addr . inet_service; flags interval; elements = { 203.0.113.0/24 . 9000-65000 } }\nchain o { OUT ip daddr . udp dport @s drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain o { OUT meta mark set udp dport map { PORT : 5 }\nmeta mark 5 drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { set s { type ipv4_addr; flags dynamic,timeout; timeout 1m; }\nchain o { OUT udp dport PORT add @s { ip daddr } drop comment \"hit\" } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT udp dport vmap { 9 : accept, PORT : drop } comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { map m { type inet_service : verdict; elements = { PORT : drop } }\nchain o { OUT udp dport vmap @m comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain o { OUT meta l4proto . udp dport vmap { tcp . 9 : accept, udp . PORT : drop } comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain x { udp dport 9 accept\ncounter drop comment \"hit\" }\nchain o { OUT udp dport vmap { PORT : jump x } } }",
    ),
    rejects(
        Udp4,
        "table inet t { chain x { counter reject comment \"hit\" }\nchain o { OUT udp dport vmap { PORT : goto x }\ndrop } }",
    ),
    drops(Udp4, "table inet t { chain o { OUT udp dport PORT numgen inc mod 1 vmap { 0 : drop } comment \"hit\" } }"),
];

pub(super) const WAYS: [Shape; 10] = [
    drops(Udp4, "table inet t { chain x { udp dport PORT drop comment \"hit\" }\nchain o { OUT jump x\ndrop } }"),
    drops(
        Udp4,
        "table inet t { chain y { udp dport PORT drop comment \"hit\" }\nchain x { jump y\ndrop }\nchain o { OUT jump x\ndrop } }",
    ),
    drops(
        Udp4,
        "table inet t { chain z { udp dport PORT drop comment \"hit\" }\nchain y { jump z\ndrop }\nchain x { jump y }\nchain o { OUT jump x\ndrop } }",
    ),
    drops(Udp4, "table inet t { chain x { udp dport PORT drop comment \"hit\" }\nchain o { OUT goto x } }"),
    drops(
        Udp4,
        "table inet t { chain x { udp dport 9 drop }\nchain o { OUT jump x\nudp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain x { udp dport PORT return\ndrop }\nchain o { OUT jump x\nudp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain o { OUT udp dport PORT accept\ndrop }\nchain p { type filter hook output priority 10; udp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet a { chain o { type filter hook output priority -10; udp dport PORT accept\ndrop } }\ntable ip b { chain o { type filter hook output priority 5; udp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain y { return }\nchain x { jump y\nudp dport PORT goto z\ndrop }\nchain z { jump y\ncounter drop comment \"hit\" }\nchain o { OUT jump x } }",
    ),
    drops(
        Udp4,
        "table inet t { chain y { udp dport PORT drop comment \"hit\" }\nchain x { jump y }\nchain o { OUT jump x\njump y } }",
    ),
];

pub(super) const HOOKS: [Shape; 9] = [
    drops(Udp4, "table ip t { chain o { OUT udp dport PORT drop comment \"hit\" } }"),
    drops(Udp6, "table ip6 t { chain o { OUT udp dport PORT drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table inet t { chain o { type filter hook postrouting priority 0; udp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table inet t { chain o { type filter hook output priority -300; udp dport PORT drop comment \"hit\" } }",
    ),
    drops(Udp4, "table ip t { chain o { type route hook output priority -150; udp dport PORT drop comment \"hit\" } }"),
    drops(
        Udp4,
        "table ip t { chain n { type nat hook postrouting priority 100; masquerade }\nchain o { type filter hook postrouting priority 200; udp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table ip6 u { chain o { OUT drop } }\ntable ip t { chain o { OUT udp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp4,
        "table netdev t { chain o { type filter hook egress device eth0 priority 0; ip protocol udp udp dport PORT drop comment \"hit\" } }",
    ),
    drops(
        Udp6,
        "table netdev t { chain x { udp dport PORT drop comment \"hit\" }\nchain o { type filter hook egress device eth0 priority 0; meta l4proto udp jump x } }",
    ),
];

pub(super) const VERDICTS: [Shape; 12] = [
    rejects(Udp4, "table inet t { chain o { OUT udp dport PORT reject comment \"hit\" } }"),
    rejects(Udp6, "table inet t { chain o { OUT udp dport PORT reject comment \"hit\" } }"),
    rejects(Tcp4, "table inet t { chain o { OUT tcp dport PORT reject with tcp reset comment \"hit\" } }"),
    rejects(Tcp6, "table inet t { chain o { OUT tcp dport PORT reject with tcp reset comment \"hit\" } }"),
    rejects(Udp4, "table inet t { chain o { OUT udp dport PORT reject with icmpx admin-prohibited comment \"hit\" } }"),
    rejects(Udp4, "table ip t { chain o { OUT udp dport PORT reject with icmp host-prohibited comment \"hit\" } }"),
    rejects(Udp6, "table ip6 t { chain x { counter reject comment \"hit\" }\nchain o { OUT udp dport PORT jump x } }"),
    drops(Udp4, "table inet t { chain hit { OUT policy drop; } }"),
    drops(Udp4, "table inet t { chain hit { OUT policy drop; udp dport 9 accept\nudp dport 10 drop } }"),
    drops(
        Tcp4,
        "table inet t { chain x { tcp dport 9 drop }\nchain hit { OUT policy drop; jump x\ntcp dport 10 reject } }",
    ),
    drops(Udp4, "table inet t { chain x { udp dport PORT return\ndrop }\nchain hit { OUT policy drop; jump x } }"),
    drops(
        Udp4,
        "table inet t { chain a { type filter hook output priority -5; policy accept; udp dport 9 drop }\nchain hit { OUT policy drop; } }",
    ),
];

const fn iptables(
    send: Packet,
    program: &'static str,
    lines: &'static [&'static str],
    chain: &'static str,
    at: usize,
) -> Shape {
    Shape { send, rules: Iptables(program, lines, chain, at), verdict: "drop" }
}

pub(super) const IPTABLES: [Shape; 9] = [
    iptables(Udp4, "iptables-nft", &["-A OUTPUT -p udp --dport PORT -j DROP"], "OUTPUT", 1),
    iptables(
        Udp4,
        "iptables-nft",
        &[
            "-A OUTPUT -p tcp -j DROP",
            "-A OUTPUT -p udp -m multiport --dports 9,PORT -m conntrack --ctstate NEW -j DROP",
        ],
        "OUTPUT",
        2,
    ),
    iptables(
        Udp4,
        "iptables-nft",
        &["-N x", "-A x -p udp --dport 9 -j ACCEPT", "-A x -p udp --dport PORT -j DROP", "-A OUTPUT -j x"],
        "x",
        2,
    ),
    iptables(
        Udp4,
        "iptables-nft",
        &["-A OUTPUT -p udp --dport PORT -m hashlimit --hashlimit-name h --hashlimit-upto 1000/s -j DROP"],
        "OUTPUT",
        1,
    ),
    iptables(Udp4, "iptables-nft", &["-A OUTPUT -p tcp -j ACCEPT", "-P OUTPUT DROP"], "OUTPUT", 0),
    iptables(Udp6, "ip6tables-nft", &["-A OUTPUT -p udp --dport PORT -j DROP"], "OUTPUT", 1),
    Shape {
        verdict: "reject",
        ..iptables(Udp4, "iptables-nft", &["-A OUTPUT -p udp --dport PORT -j REJECT"], "OUTPUT", 1)
    },
    Shape {
        verdict: "reject",
        ..iptables(
            Tcp4,
            "iptables-nft",
            &["-N x", "-A x -p tcp --dport PORT -j REJECT --reject-with tcp-reset", "-A OUTPUT -j x"],
            "x",
            1,
        )
    },
    Shape {
        verdict: "reject",
        ..iptables(
            Udp6,
            "ip6tables-nft",
            &["-A OUTPUT -m owner --uid-owner 0 -p udp --dport PORT -j REJECT"],
            "OUTPUT",
            1,
        )
    },
];

//! The table of front ends.

use std::collections::HashSet;

use super::*;
use crate::{
    firewall::{
        netfilter::family,
        nft::{Chain, Rule, RuleVerdict},
    },
    model::{Entrance, Jump, Lasts, PacketKind, Scope},
};

fn rule(table: &str, chain: &str, text: &str) -> NamedRule {
    NamedRule {
        backend: Backend::Nft,
        family: "ip".to_owned(),
        table: table.to_owned(),
        chain: chain.to_owned(),
        handle: Some(9),
        position: Some(1),
        text: Some(text.to_owned()),
        path: Vec::new(),
        verdict: None,
        ruleset_sha256: None,
        statement: None,
        translates: None,
        entrance: Entrance::Own,
        packet: None,
        leads_to: None,
        translated: None,
        sees_forwarded: false,
    }
}

/// A rule of a table with these chains, with its statement.
fn told(table: &str, chain: &str, text: &str, others: &[&str]) -> NamedRule {
    let chains: Vec<Chain> = others
        .iter()
        .chain([&chain])
        .map(|name| Chain {
            family: family::IPV4,
            table: table.to_owned(),
            name: (*name).to_owned(),
            handle: 1,
            hook: (*name == "OUTPUT").then_some(3),
            priority: Some(0),
            policy: None,
        })
        .collect();
    let in_force = Rule {
        family: family::IPV4,
        table: table.to_owned(),
        chain: chain.to_owned(),
        handle: 9,
        verdicts: vec![RuleVerdict::Drop],
        packets: None,
    };
    let named = rule(table, chain, text);
    let place = Place {
        named: &named,
        base: "OUTPUT",
        rules: &[&in_force],
        all: &[&in_force],
        chains: &chains.iter().collect::<Vec<_>>(),
        saved: Some(text),
    };
    let statement = statement(&place, &mut Vec::new);
    NamedRule { statement, ..named }
}

/// A rule of each front end that has words for rules, as it is in force: table, chain, text, and other chains of the table.
const RULES: [(&str, &str, &str, &str, &[&str]); 22] = [
    ("ufw", "filter", "ufw-user-output", "-j DROP", &["OUTPUT"]),
    ("firewalld", "firewalld", "filter_OUT_policy_p_deny", "drop", &[]),
    ("firewalld", "firewalld_policy_drop", "output", "drop", &[]),
    ("wg-quick", "filter", "OUTPUT", "! -o wg0 -m mark ! --mark 0xca6c -m addrtype ! --dst-type LOCAL -j REJECT", &[]),
    ("docker", "filter", "DOCKER-ISOLATION-STAGE-2", "-j DROP", &["OUTPUT"]),
    ("podman", "netavark", "NETAVARK-ISOLATION-3", "drop", &[]),
    ("kubernetes", "filter", "KUBE-FIREWALL", "-j DROP", &["OUTPUT"]),
    ("docker", "docker-bridges", "filter-forward-out__docker0", "drop", &[]),
    ("kubernetes", "kube-proxy", "reject-chain", "reject", &[]),
    ("calico", "calico", "filter-cali-fw-x", "drop", &[]),
    ("csf", "filter", "SMTPOUTPUT", "-j REJECT", &["OUTPUT"]),
    ("calico", "filter", "cali-fw-x", "-j DROP", &["OUTPUT"]),
    ("cilium", "filter", "CILIUM_OUTPUT", "-j DROP", &["OUTPUT"]),
    ("libvirt", "filter", "LIBVIRT_FWI", "-o virbr0 -j REJECT", &["OUTPUT"]),
    ("libvirt", "libvirt_network", "guest_output", "reject", &[]),
    ("fail2ban", "f2b-table", "f2b-chain", "drop", &[]),
    ("shorewall", "filter", "shorewall", "-j DROP", &["OUTPUT"]),
    ("shorewall", "filter", "fw-net", "-j DROP", &["OUTPUT", "shorewall"]),
    ("tailscale", "filter", "ts-forward", "-j DROP", &["OUTPUT", "shorewall"]),
    ("csf", "filter", "DENYOUT", "-j DROP", &["OUTPUT"]),
    ("iptables", "filter", "OUTPUT", "-j DROP", &[]),
    ("nftables", "t", "o", "drop", &[]),
];

fn target() -> Target {
    let addresses = vec!["203.0.113.9".parse().unwrap()];
    Target {
        transport: "tcp",
        port: 443,
        addresses,
        is_by_name: false,
        is_forwarded: false,
        comes_by: None,
        others: Others::Nobody,
    }
}

#[test]
fn every_name_is_one_front_ends() {
    let mut names = HashSet::new();
    assert!(ALL.iter().all(|front_end| names.insert(front_end.name())));
    let mut commands = HashSet::new();
    assert!(ALL.iter().flat_map(|front_end| front_end.commands()).all(|command| commands.insert(*command)));
    let mut tables = HashSet::new();
    assert!(ALL.iter().flat_map(|front_end| front_end.tables()).all(|table| tables.insert(*table)));
    let mut pages_names = HashSet::new();
    assert!(pages().all(|(_, page)| pages_names.insert(page.name)));
    // One that begins another would take its rules.
    let prefixes: Vec<&str> = ALL.iter().flat_map(|front_end| front_end.chain_prefixes()).copied().collect();
    for (at, prefix) in prefixes.iter().enumerate() {
        assert!(!prefixes.iter().enumerate().any(|(other, of)| other != at && of.starts_with(prefix)), "{prefix}");
    }
}

#[test]
fn every_statement_belongs_to_a_front_end() {
    for (owner, table, chain, text, others) in RULES {
        let told = told(table, chain, text, others);
        let ruleset = told.statement.as_ref().map(|statement| statement.ruleset.as_str());
        assert_eq!(ruleset, Some(owner).filter(|owner| *owner != NFTABLES), "{chain}");
        assert_eq!(of(&told).name(), owner, "{chain}");
    }
    // The first has no rules in nftables, and the second has no words of its own.
    let silent = ["iptables-legacy", "proxmox"];
    for front_end in ALL.iter().filter(|front_end| !silent.contains(&front_end.name())) {
        assert!(
            RULES.iter().any(|(owner, ..)| *owner == front_end.name()),
            "a rule of {}'s is missing",
            front_end.name()
        );
    }
    let legacy = NamedRule { backend: Backend::IptablesLegacy, ..rule("filter", "OUTPUT", "") };
    assert_eq!(of(&legacy).name(), IPTABLES_LEGACY);
}

#[test]
fn every_rule_has_commands_or_advice() {
    for (owner, table, chain, text, others) in RULES {
        let is_planned = match plans(&told(table, chain, text, others), &target(), &Known::default()) {
            Ok(plans) => plans.iter().all(|plan| !plan.commands.is_empty() && !plan.undo.is_empty()),
            Err(advice) => advice.is_some(),
        };
        assert!(is_planned, "{owner}: {chain}");
    }
}

/// What is advised for a rule, by the chain that it is in.
const ADVICE: [(&str, &str, &str, &str); 27] = [
    (
        "filter",
        "KUBE-SERVICES",
        "-d 10.96.0.10/32 -p tcp -m comment --comment \"kube-system/kube-dns:dns-tcp has no endpoints\" -j REJECT",
        "nothing is behind the Service kube-system/kube-dns: `kubectl get endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns`",
    ),
    (
        "filter",
        "KUBE-EXTERNAL-SERVICES",
        "-m comment --comment \"shop/web:http has no local endpoints\" -j DROP",
        "nothing is behind the Service shop/web: `kubectl get endpointslices -n shop",
    ),
    (
        "filter",
        "KUBE-FW-ABC",
        "-m comment --comment \"shop/web:http loadbalancer IP\" -j DROP",
        "kube-proxy made this rule of the Service shop/web: `kubectl describe service -n shop web`",
    ),
    (
        "filter",
        "KUBE-SERVICES",
        "-m comment --comment \"$(id)/x has no endpoints\" -j REJECT",
        "nothing is behind the Service with this address: `kubectl get services,endpointslices -A`",
    ),
    (
        "filter",
        "KUBE-FORWARD",
        "-m conntrack --ctstate INVALID -j DROP",
        "kube-proxy made this rule, and makes it anew",
    ),
    ("kube-proxy", "reject-chain", "reject", "nothing is behind the Service with this address"),
    (
        "filter",
        "KUBE-POD-FW-X",
        "-m comment --comment \"rule to REJECT traffic destined for POD name:web-1 namespace: shop\" -j REJECT",
        "a NetworkPolicy made this rule: `kubectl get networkpolicy -n shop`",
    ),
    ("filter", "KUBE-NWPLCY-X", "-j DROP", "a NetworkPolicy made this rule: `kubectl get networkpolicy -A`"),
    (
        "filter",
        "cali-po-_x",
        "-m comment --comment \"cali:1\" -m comment --comment \"Policy shop/knp.default.deny egress\" -j DROP",
        "Calico's policy shop/deny made this rule: `kubectl get networkpolicy,globalnetworkpolicy -A`",
    ),
    (
        "filter",
        "cali-fw-cali1234",
        "-m comment --comment \"cali:x\" -m comment --comment \"Drop if no policies passed packet\" -j DROP",
        "no policy of the workload behind cali1234 allows it",
    ),
    (
        "calico",
        "filter-cali-fw-cali1234",
        "comment \"cali:x Drop if no profiles matched\" drop",
        "no policy of the workload behind cali1234 allows it",
    ),
    ("filter", "cali-OUTPUT", "-j DROP", "Calico made this rule of a policy"),
    ("filter", "CILIUM_OUTPUT", "-j DROP", "Cilium made this rule of a policy: `kubectl get ciliumnetworkpolicy -A`"),
    ("docker-bridges", "filter-forward-out__docker0", "drop", "Docker makes this rule in a table of its own"),
    (
        "filter",
        "DENYOUT",
        "-d 198.51.100.9/32 ! -o lo -j DROP",
        "the address is in CSF's list of denied ones (csf.deny): `csf -dr 198.51.100.9`",
    ),
    (
        "filter",
        "DENYOUT",
        "-d 198.51.100.0/24 ! -o lo -j DROP",
        "the address is in CSF's list of denied ones (csf.deny): `csf -dr 198.51.100.0/24`",
    ),
    (
        "filter",
        "DENYOUT",
        "-m set --match-set chain_DENY dst -j DROP",
        "the address is in CSF's list of denied ones (csf.deny): `csf -dr 203.0.113.9`",
    ),
    (
        "filter",
        "GDENYOUT",
        "-d 198.51.100.9/32 -j DROP",
        "a list for all servers (GLOBAL_DENY of csf.conf) denies 198.51.100.9",
    ),
    (
        "filter",
        "SMTPOUTPUT",
        "-p tcp -m multiport --dports 25 -j REJECT",
        "CSF's SMTP_BLOCK lets only some users send mail",
    ),
    (
        "filter",
        "LOGDROPOUT",
        "-j REJECT",
        "CSF made this rule: add 443 to TCP_OUT (and TCP6_OUT) in /etc/csf/csf.conf, then `csf -r`",
    ),
    (
        "filter",
        "PVEFW-reject",
        "-p tcp -j REJECT --reject-with tcp-reset",
        "Proxmox's firewall writes its chains anew: add `OUT ACCEPT -dest 203.0.113.9 -p tcp -dport 443` below [RULES] in /etc/pve/local/host.fw",
    ),
    (
        "filter",
        "LIBVIRT_FWI",
        "-o virbr0 -j REJECT --reject-with icmp-port-unreachable",
        "libvirt's network behind virbr0 lets nobody outside begin a connection to its guests",
    ),
    (
        "libvirt_network",
        "guest_output",
        "iif \"virbr1\" counter packets 0 bytes 0 reject",
        "libvirt's network behind virbr1 lets out only what comes from its own addresses",
    ),
    ("libvirt_network", "guest_cross", "drop", "libvirt's network made this rule; libvirt writes its rules anew"),
    ("f2b-table", "f2b-chain", "drop", "a jail of fail2ban banned the address"),
    ("filter", "ts-forward", "-j DROP", "Tailscale made this rule"),
    ("netavark", "NETAVARK-ISOLATION-3", "drop", "podman made this rule"),
];

#[test]
fn advice_fits_the_chain() {
    for (table, chain, text, wanted) in ADVICE {
        let others: &[&str] = if table == "filter" { &["OUTPUT"] } else { &[] };
        match plans(&told(table, chain, text, others), &target(), &Known::default()) {
            Err(Some(advice)) => assert!(advice.starts_with(wanted), "{chain}: {advice}"),
            other => panic!("{chain}: {other:?}"),
        }
    }
}

#[test]
fn an_exception_is_put_in_front_of_the_rule_or_the_jump() {
    let commands = |rule: &NamedRule| plans(rule, &target(), &Known::default()).map(|plans| plans[0].commands.clone());
    let native = told("t", "o", "drop", &[]);
    let first = "nft insert rule ip t o handle 9 ip daddr 203.0.113.9 tcp dport 443 accept comment ";
    assert!(commands(&native).unwrap()[0].starts_with(first));
    let jump = Jump { chain: "OUTPUT".to_owned(), handle: 4, position: 2 };
    let shared = NamedRule { entrance: Entrance::Before(jump), ..told("filter", "own", "-j DROP", &["OUTPUT"]) };
    assert_eq!(commands(&shared).unwrap(), ["iptables-nft -I OUTPUT 2 -d 203.0.113.9 -p tcp --dport 443 -j ACCEPT"]);
    let docker = told("filter", "DOCKER", "-j DROP", &["OUTPUT"]);
    assert_eq!(
        commands(&docker).unwrap(),
        ["iptables-nft -I DOCKER-USER 1 -d 203.0.113.9 -p tcp --dport 443 -j ACCEPT"]
    );
    let nowhere = NamedRule { entrance: Entrance::Nowhere("no place".to_owned()), ..native.clone() };
    assert_eq!(commands(&nowhere), Err(Some("no place".to_owned())));
    assert_eq!(commands(&NamedRule { chain: "$(reboot)".to_owned(), ..native }), Err(None));
}

#[test]
fn the_narrowest_is_first_where_the_rule_is_not_about_the_port() {
    let scopes = |text: &str, is_by_name: bool| -> Vec<Scope> {
        let plans = plans(&told("t", "o", text, &[]), &Target { is_by_name, ..target() }, &Known::default()).unwrap();
        let (others, temporary) = plans.split_at(plans.iter().position(|plan| plan.lasts == Lasts::Hour).unwrap());
        assert!(temporary.iter().all(|plan| plan.lasts == Lasts::Hour));
        assert!(others.iter().all(|plan| plan.lasts == Lasts::Reload));
        let mut scopes: Vec<Scope> = others.iter().map(|plan| plan.scope).collect();
        scopes.dedup();
        scopes
    };
    let (narrow, broad) = ([Scope::Address, Scope::Port], [Scope::Port, Scope::Address]);
    for text in ["drop", "ip daddr 203.0.113.9 tcp dport 443 drop", "tcp dport 80 drop", "meta skuid 1000 drop"] {
        assert_eq!(scopes(text, false), narrow, "{text}");
        assert_eq!(scopes(text, true), broad, "{text}");
    }
    for text in ["tcp dport 443 drop", "tcp dport { 80, 443 } reject"] {
        assert_eq!(scopes(text, false), broad, "{text}");
    }
}

#[test]
fn every_command_is_one_front_ends() {
    let of = |line: &str| {
        let words = line.split(' ').map(str::to_owned).collect();
        of_change(&ProposedChange::Command(words)).map(FrontEnd::name)
    };
    assert_eq!(of("ufw allow out 443/tcp"), Some("ufw"));
    assert_eq!(of("firewall-cmd --reload"), Some("firewalld"));
    assert_eq!(of("ip6tables-legacy -F"), Some("iptables-legacy"));
    assert_eq!(of("sh -c true"), None);
}

#[test]
fn a_configuration_is_known_by_its_text() {
    let of = |text: &str| {
        let (front_end, load) = configuration(text).unwrap().unwrap();
        (front_end.name(), load.path, load.command[0])
    };
    let tables = |header: &str, line: &str| format!("{header}\n*filter\n:OUTPUT ACCEPT [0:0]\n{line}\nCOMMIT\n");
    let (saved, saved6) = ("# Generated by iptables-save v1.8.9", "# Generated by ip6tables-save v1.8.9");
    let (user, user6) = ("/etc/ufw/user.rules", "/etc/ufw/user6.rules");
    let restored = |program| ("iptables", "/tmp/proposed", program);
    let restores = [restored("iptables-restore"), restored("ip6tables-restore")];
    for (text, wanted) in [
        (tables(saved, "-A OUTPUT -j DROP"), restores[0]),
        (tables(saved6, "-A OUTPUT -j DROP"), restores[1]),
        (tables("", "-A OUTPUT -p icmpv6 -j ACCEPT"), restores[1]),
        (tables(saved, "-A OUTPUT -m comment --comment icmpv6 -j DROP"), restores[0]),
        (tables(saved, "-A OUTPUT -j ufw-before-output"), restores[0]),
        (tables("### RULES ###", "-A ufw-user-output -j DROP"), ("ufw", user, "ufw")),
        (tables("### tuple ### deny any any ::/0 any ::/0 out", "-A ufw6-user-output -j DROP"), ("ufw", user6, "ufw")),
        (
            "table inet t { chain o { type filter hook output priority 0; } }".to_owned(),
            ("nftables", "/tmp/proposed", "nft"),
        ),
    ] {
        assert_eq!(of(&text), wanted, "{text}");
    }
    assert!(configuration(&tables("", "-A ufw-before-output -j DROP")).is_err(), "before.rules");
}

#[test]
fn what_is_named_of_files_is_copied() {
    for front_end in ALL {
        let needs = front_end.needs();
        let is_copied = |path: &&str| {
            needs.files.contains(path) || needs.folders.iter().any(|folder| path.starts_with(&format!("{folder}/")))
        };
        for paths in [needs.planned_from, needs.hooks, needs.shell_files] {
            assert!(paths.iter().all(is_copied), "{}", front_end.name());
        }
        assert_eq!(front_end.has_files(), !front_end.start(&[]).is_empty(), "{}", front_end.name());
    }
}

#[test]
fn ufw_is_not_asked_whether_it_is_sure() {
    let of = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        of_command(&words[0]).unwrap().in_the_copy(&words, &|_, _, _| None).unwrap().join(" ")
    };
    assert_eq!(of("ufw delete deny out 443/tcp"), "ufw --force delete deny out 443/tcp");
    assert_eq!(of("ufw route delete deny out on eth0"), "ufw --force route delete deny out on eth0");
    assert_eq!(of("ufw allow out 443/tcp"), "ufw allow out 443/tcp");
    assert_eq!(of("iptables -F OUTPUT"), "iptables -F OUTPUT");
}

#[test]
fn where_ferm_is_used_an_exception_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("etc/ferm");
    std::fs::create_dir_all(&file).unwrap();
    let note = || {
        let known = Known::read(&Root::open(folder.path()).unwrap());
        plans(&told("filter", "OUTPUT", "-j DROP", &[]), &target(), &known).unwrap()[0].note.clone().unwrap_or_default()
    };
    assert!(!note().contains("ferm"));
    std::fs::write(file.join("ferm.conf"), "table filter chain OUTPUT policy DROP;\n").unwrap();
    assert!(note().contains("anew from /etc/ferm/ferm.conf"), "{}", note());
}

#[test]
fn answers_are_those_to_connections_that_were_begun_here() {
    let commands = |rule: NamedRule| {
        let rule = NamedRule { packet: Some(PacketKind::Answer), ..rule };
        let plans = plans(&rule, &target(), &Known::default()).unwrap();
        plans.into_iter().flat_map(|plan| plan.commands).collect::<Vec<_>>()
    };
    let native = commands(told("t", "o", "drop", &[]));
    assert!(!native.is_empty() && native.iter().all(|line| line.contains("ct direction reply")), "{native:?}");
    let iptables = commands(told("filter", "INPUT", "-j DROP", &["OUTPUT"]));
    assert!(!iptables.is_empty() && iptables.iter().all(|line| line.contains("--ctdir REPLY")), "{iptables:?}");
}

#[test]
fn where_others_pass_the_bound_command_is_the_first() {
    let first = |others: Others, sees_forwarded: bool| {
        let rule = NamedRule { sees_forwarded, ..told("t", "o", "drop", &[]) };
        plans(&rule, &Target { others, ..target() }, &Known::default()).unwrap()[0].commands[0].clone()
    };
    assert!(!first(Others::Nobody, true).contains("fib") && !first(Others::Forwarded, false).contains("fib"));
    assert!(first(Others::Forwarded, true).contains("fib saddr type local"));
    assert!(first(Others::Translated, true).contains("fib saddr type local ct status and snat == 0"));
}

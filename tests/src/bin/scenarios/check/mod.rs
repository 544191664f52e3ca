//! `observer check`: what it says of destinations is what a real client experiences there.

mod around;
pub(crate) mod conversations;
mod live;
mod published;
mod rulesets;
mod senders;
mod ways;

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab},
    namespace::Namespace,
    observer::{command, command_among_mounts_of, expect},
    traffic,
};
use serde_json::{Value, json};

use crate::{Outcome, Scenario, front_ends, without_trials};

pub(crate) const ALL: &[Scenario] = &[
    ("nft_rulesets_as_a_client_finds_them", rulesets::nft_rulesets),
    ("iptables_rulesets_as_a_client_finds_them", rulesets::iptables_rulesets),
    ("front_ends_as_a_client_finds_them", rulesets::ufw_rulesets),
    ("conversations_by_nft", conversations::by_nft),
    ("conversations_by_iptables", conversations::by_iptables),
    ("conversations_by_sets_of_ipset", conversations::by_ipset),
    ("rulesets_of_other_programs", conversations::of_other_programs),
    ("a_published_firewall_script", published::firewall_of_a_container),
    ("which_packet_of_a_conversation", conversations::packets),
    ("a_neighbour_that_is_known_for_now", conversations::known_neighbours),
    ("who_listens_here", around::listeners),
    ("routes_that_no_address_makes", around::routes),
    ("sets_that_rules_fill", around::filled_sets),
    ("a_tunnel_of_a_program", around::programs_tunnels),
    ("what_is_said_beside_an_answer", around::beside),
    ("commands_in_vain_are_no_fix", around::in_vain),
    ("the_same_rules_are_no_change", around::the_same_rules),
    ("what_the_kernel_is_set_to", conversations::by_settings),
    ("routes_by_marks", conversations::by_marks),
    ("one_of_several_servers_at_random", ways::chance),
    ("a_fix_for_every_server", ways::fix_of_all),
    ("rates_and_counters", ways::rates),
    ("ranges_of_ports", ways::ranges_of_ports),
    ("queues_of_packets", ways::queues),
    ("policies_of_ipsec", ways::ipsec),
    ("ports_of_a_bridge", conversations::of_a_bridge),
    ("an_interface_without_a_carrier", conversations::without_a_carrier),
    ("routes_are_part_of_the_answer", rulesets::routes),
    ("rules_of_routing_are_part_of_it", rulesets::routing_rules),
    ("users_are_told_apart", users),
    ("a_command_is_tried_first", after),
    ("the_first_rules_of_a_host", first_rules),
    ("one_fix_for_all", one_fix),
    ("a_profile_without_a_resolver", profile),
    ("names_without_an_address", names),
    ("mistakes_are_one_sentence", mistakes),
    ("own_profiles", own_profiles),
    ("a_proposed_ruleset", proposed),
    ("worse_than_before", worse),
    ("nothing_is_loaded_into_the_kernel", loaded),
    ("the_page_for_a_profile", page),
    ("programs_of_a_cgroup_are_asked", senders::programs),
    ("rules_that_ask_for_a_cgroup", senders::rules),
    ("members_of_a_group", senders::supplementary_groups),
    ("units_of_systemd", senders::units),
    ("a_sender_that_is_not_there", senders::mistakes),
    live::ALL[0],
    live::ALL[1],
    live::ALL[2],
];

pub(crate) fn check(netns: &Namespace, args: &[&str]) -> Result<Output> {
    let mut command = command_among_mounts_of(netns);
    command.args(["check", "--netns"]).arg(netns.path()).args(args);
    Ok(command.stdin(Stdio::null()).output()?)
}

/// Lines of `-o json`.
pub(crate) fn lines(output: &Output) -> Result<Vec<Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    ensure!(!text.is_empty(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    lines.with_context(|| format!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

pub(crate) fn word((transport, address, port): (&str, &str, u16)) -> String {
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{address}:{port}/{transport}")
}

/// What a proposed rule asks for is not loaded to try it.
fn loaded() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let known = std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    let is_there = || std::fs::read_to_string("/proc/modules").unwrap_or_default().contains("nft_osf ");
    if !known.contains("/nft_osf.ko") || is_there() {
        return Ok(Outcome::Skipped("this kernel has no module nft_osf that could be loaded".to_owned()));
    }
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; } }")?;
    let to = word(("tcp", FAR_V4, 443));
    let rule = "osf name \"Linux\" drop";
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(
        file.path(),
        format!("table inet t {{\n chain o {{\n type filter hook output priority 0; {rule}\n }}\n}}\n"),
    )?;
    let path = file.path().display().to_string();
    for args in [["--after", &format!("nft add rule inet t o {rule}"), &to], ["--ruleset", &path, &to]] {
        let output = check(&lab.client, &args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let says = said.contains("cannot be told: trying it would load the kernel's module nft_osf");
        ensure!(says && !output.status.success(), "{args:?}: {}: {said}", output.status);
    }
    ensure!(!is_there(), "the module was loaded");
    Ok(Outcome::Passed)
}

/// Rules about users are judged for whoever would send.
fn users() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client
        .nft("table inet t { chain o { type filter hook output priority 0; meta skuid != 0 tcp dport 443 drop } }")?;
    for (user, status) in [("root", 0), ("nobody", 1)] {
        let output = check(&lab.client, &["--no-fix", "--as", user, "203.0.113.10:443"])?;
        ensure!(output.status.code() == Some(status), "{user}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(Outcome::Passed)
}

/// What ufw makes of a command is not what one thinks; and one that it does not understand is reported in its own words.
/// Where nothing is in force yet.
fn first_rules() -> Result<Outcome> {
    if let Some(skipped) = without_trials() {
        return Ok(skipped);
    }
    // What iptables-legacy has is tried without any table of nftables, too.
    let lab = Lab::new()?;
    if lab.client.run("iptables-legacy", &["-A", "OUTPUT", "-p", "tcp", "--dport", "443", "-j", "DROP"]).is_ok() {
        let told = lines(&check(&lab.client, &["-o", "json", "203.0.113.10:443"])?)?;
        ensure!(told[0]["egress"]["fix"]["verified"] == true, "{}", told[0]);
    }
    for (command, status) in [
        ("nft add table inet q", 0),
        ("iptables-nft -A OUTPUT -p tcp --dport 443 -j DROP", 1),
        ("iptables-nft -A OUTPUT -p tcp --dport 80 -j DROP", 0),
    ] {
        let lab = Lab::new()?;
        let output = check(&lab.client, &["203.0.113.10:443", "--after", command])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(status), "{command}: {} {said}", output.status);
    }
    Ok(Outcome::Passed)
}

fn after() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    let before = lab.client.run("sh", &["-c", "nft -s list ruleset; sha256sum /etc/ufw/*.rules"])?;
    for (command, status, words) in [
        ("ufw allow out 443", 1, "1 of 1 STILL blocked"),
        ("ufw insert 1 allow out 443/tcp", 1, "1 of 1 STILL blocked"),
        ("sudo ufw allow out 443/tcp", 0, "none of 1 blocked"),
        ("iptables -I ufw-user-output 1 -p tcp --dport 443 -j ACCEPT", 0, "none of 1 blocked"),
    ] {
        let output = check(&lab.client, &["203.0.113.10:443", "--after", command])?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(status) && said.contains(words), "{command}: {} {said}", output.status);
    }
    let output = check(&lab.client, &["203.0.113.10:443", "--after", "ufw alow out 443"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("Invalid syntax"), "{} {said}", output.status);
    let after = lab.client.run("sh", &["-c", "nft -s list ruleset; sha256sum /etc/ufw/*.rules"])?;
    ensure!(before == after, "something has changed: {before}{after}");
    Ok(Outcome::Passed)
}

/// Several destinations behind several rules: the fewest commands, proven together; a shell runs them.
fn one_fix() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp", "reject out 53/udp"])?;
    let _servers = [lab.web_server(443)?, lab.web_server(80)?];
    let words: Vec<String> = rulesets::DESTINATIONS.iter().map(|to| word(*to)).collect();
    let mut args = vec!["-o", "json"];
    args.extend(words.iter().map(String::as_str));
    let told = lines(&check(&lab.client, &args)?)?;
    let fix = &told[0]["egress"]["fix"];
    ensure!(fix["verified"] == true && fix["undo_verified"] == true, "{fix}");
    let plain = crate::fixes::without_place(&told[0], "commands")?;
    ensure!(plain == ["ufw allow out 443/tcp", "ufw allow out 53/udp"], "{fix}");
    ensure!(told[2]["egress"]["fix"].is_null(), "what is not stopped needs none: {}", told[2]);
    for line in fix["commands"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lab.client.run("sh", &["-c", line])?;
    }
    rulesets::agrees(&lab, "after the fix")?;
    let output = check(&lab.client, &args)?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(Outcome::Passed)
}

/// A profile in all three forms.
fn profile() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    let output = check(&lab.client, &["datadog", "--no-dns"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{} {said}", output.status);
    ensure!(said.contains("install  install.datadoghq.com:443"), "{said}");
    ensure!(said.contains("24 of 26 blocked") && said.contains("-n ufw allow out 443/tcp"), "{said}");
    ensure!(said.contains("tested in a private copy") && said.contains("nothing was sent"), "{said}");
    let told = lines(&check(&lab.client, &["datadog", "--no-dns", "--set", "site=datadoghq.eu", "-o", "json"])?)?;
    let api = told.iter().find(|event| event["destination"]["domain"] == "api.datadoghq.eu").context("no api")?;
    expect(
        api,
        &[
            ("/egress/check/profile", json!("datadog")),
            ("/egress/check/phase", json!("run")),
            ("/egress/check/required", json!(true)),
            ("/rule/name", json!("deny out 443/tcp")),
        ],
    )?;
    let output = check(&lab.client, &["datadog", "--no-dns", "-o", "markdown"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.starts_with("# 24 of 26 blocked") && said.contains(" -n ufw allow out 443/tcp\n```"), "{said}");
    Ok(Outcome::Passed)
}

/// Names are given, or stand for any address.
fn names() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; ip daddr 203.0.113.10 drop } }")?;
    let given =
        ["--resolve", "a.example:203.0.113.10", "--resolve", "a.example:2001:db8:1::10", "--no-dns", "-o", "json"];
    let told = lines(&check(&lab.client, &[&given[..], &["a.example:443", "b.example:443"]].concat())?)?;
    let is = |event: &Value, action: &str| event["event"]["action"] == action;
    ensure!(told.len() == 4 && is(&told[0], "egress-blocked") && is(&told[1], "egress-allowed"), "{told:?}");
    ensure!(is(&told[2], "egress-allowed") && told[2]["egress"]["check"]["any_address"].is_string(), "{told:?}");
    let misspelt = check(&lab.client, &["b.example:443", "--no-dns", "--resolve", "b.exmaple:203.0.113.10"])?;
    let said = String::from_utf8_lossy(&misspelt.stderr);
    ensure!(
        said.contains("no destination is called `b.exmaple`") && said.contains("did you mean `b.example`?"),
        "{said}"
    );
    // A name that no resolver knows is judged all the same.
    let output = check(&lab.client, &["no-such-host.invalid:443"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("placeholder address: "), "{} {said}", output.status);
    Ok(Outcome::Passed)
}

/// What was typed wrongly is reported with what is right.
fn mistakes() -> Result<Outcome> {
    let lab = Lab::new()?;
    for (args, words) in [
        (&["nosuchprofile"][..], "there is no profile `nosuchprofile`"),
        (&["example.com:99999"], "has no port between 1 and 65535"),
        (&["wazuh"], "needs the manager"),
        (&["datadog", "--set", "site=example.com"], "is no site of profile datadog"),
        (&["datadog", "--set", "color=red"], "has no variable `color`"),
        (&["203.0.113.10:443", "--after", "rm -rf /"], "cannot be tried"),
        (&["203.0.113.10:443", "--as", "nobody-at-all"], "there is no user"),
        (&["203.0.113.10:443", "--after", "nft insert rule inet t o handle 999 accept"], "no rule with handle 999"),
    ] {
        lab.client.nft("table inet t { chain o { type filter hook output priority 0; } }")?;
        let output = check(&lab.client, args)?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        ensure!(output.status.code() == Some(2), "{args:?}: {} {said}", output.status);
        ensure!(said.contains(words), "{args:?}: {said}");
    }
    Ok(Outcome::Passed)
}

/// An administrator's own, and one that is broken.
fn own_profiles() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 5140 drop } }")?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("mine.toml");
    let mine = "name = \"mine\"\ntitle = \"Our log host\"\nsource = \"https://wiki.example.com/logs\"\nas_of = \"2026-11\"\n\
                [[destination]]\nhost = \"203.0.113.10\"\nport = 5140\ntransport = \"udp\"\nphase = \"run\"\npurpose = \"logs\"\n";
    std::fs::write(&path, mine)?;
    let dir = folder.path().display().to_string();
    let output = check(&lab.client, &["mine", "--profiles", &dir])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(1) && said.contains("203.0.113.10:5140/udp") && said.contains("logs"),
        "{said}"
    );
    let output = command().args(["check", "--list", "--profiles", &dir]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("Our log host") && said.contains("Datadog Agent"), "{said}");
    std::fs::write(&path, mine.replace("5140", "\"many\""))?;
    let output = check(&lab.client, &["mine", "--profiles", &dir])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("mine.toml") && said.contains("port"), "{said}");
    Ok(Outcome::Passed)
}

/// Before and after a change of rules.
fn worse() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 53 drop } }")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("before.jsonl").display().to_string();
    let words = ["203.0.113.10:443", "203.0.113.10:53/udp", "203.0.113.10:80"];
    let output = check(&lab.client, &[&["--no-fix", "--save", &file][..], &words].concat())?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    let output = check(&lab.client, &[&["--no-fix", "--against", &file][..], &words].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("0 worse, 0 otherwise"), "{} {said}", output.status);
    lab.client
        .nft("flush ruleset\ntable inet t { chain o { type filter hook output priority 0; tcp dport 443 drop } }")?;
    let output = check(&lab.client, &[&["--no-fix", "--against", &file][..], &words].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1) && said.contains("1 worse, 1 otherwise"), "{} {said}", output.status);
    ensure!(said.contains("worse      203.0.113.10:443/tcp v4: allowed → blocked by"), "{said}");
    std::fs::write(&file, "{}")?;
    let output = check(&lab.client, &[&["--against", &file][..], &words].concat())?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    Ok(Outcome::Passed)
}

/// Lines of the shell block behind a title.
fn block<'a>(page: &'a str, title: &str) -> Result<Vec<&'a str>> {
    let (_, rest) = page.split_once(&format!("## {title}\n")).context("no such title")?;
    let (_, rest) = rest.split_once("```sh\n").context("no block")?;
    Ok(rest.split_once("```").context("no end")?.0.lines().collect())
}

/// The commands of each page are run by a shell on a host that lets nothing out: the client gets through, and not after the undo.
fn page() -> Result<Outcome> {
    for by in ["ufw", "firewalld", "nft", "iptables"] {
        let mut lab = Lab::new()?;
        let _server = lab.web_server(443)?;
        let mut _firewalld = None;
        match by {
            "ufw" => front_ends::with_ufw(&mut lab.client, &["default deny outgoing"])?,
            "firewalld" if front_ends::without_firewalld().is_some() => continue,
            "firewalld" => _firewalld = Some(front_ends::with_firewalld(&mut lab.client, &[&["--set-target", "REJECT"]])?),
            "nft" => lab.client.nft(
                "table inet filter { chain output { type filter hook output priority 0; policy drop; ct state established accept } }",
            )?,
            _ => {
                for program in ["iptables", "ip6tables"] {
                    lab.client.run(program, &["-P", "OUTPUT", "DROP"])?;
                    lab.client.run(program, &["-A", "OUTPUT", "-p", "icmpv6", "-j", "ACCEPT"]).ok();
                }
            }
        }
        // Nobody needs to be root for it.
        let output = command().args(["check", "--steps", by, "datadog"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let page = String::from_utf8(output.stdout)?;
        let tries = || -> Result<Vec<String>> {
            [("tcp", FAR_V4, "443"), ("tcp", FAR_V6, "443"), ("udp", FAR_V4, "123"), ("udp", FAR_V6, "53")]
                .iter()
                .map(|(transport, address, port)| {
                    let args: &[&str] =
                        if *transport == "tcp" { &["tcp", address, port, "1.5"] } else { &["udp", address, port] };
                    Ok(traffic::run(&lab.client, args)?.said)
                })
                .collect()
        };
        for (title, passes) in [("Let it out", true), ("Take it back", false)] {
            ensure!(tries()?.iter().all(|said| (said == "ok") != passes), "{by}: before {title}: {:?}", tries()?);
            for line in block(&page, title)? {
                lab.client.run("sh", &["-c", &line.replace("sudo ", "")])?;
            }
            ensure!(tries()?.iter().all(|said| (said == "ok") == passes), "{by}: after {title}: {:?}", tries()?);
        }
    }
    Ok(Outcome::Passed)
}

/// Files that are not in force yet: of nft, iptables-save and ufw; and one that is wrong.
fn proposed() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let user = lab.client.run("cat", &["/etc/ufw/user.rules"])?;
    let nft = file(
        "nft.conf",
        "flush ruleset\ntable inet f { chain o { type filter hook output priority 0; policy drop; tcp dport 443 accept;\n}\n}\n",
    )?;
    let saved = file(
        "rules.v4",
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p udp --dport 53 -j DROP\nCOMMIT\n",
    )?;
    let ufw = file("user.rules", &user.replace(" 443", " 80"))?;
    let words = ["203.0.113.10:443", "203.0.113.10:80", "203.0.113.10:53/udp"];
    for (path, blocked) in [(&nft, [false, true, true]), (&saved, [false, false, true]), (&ufw, [false, true, false])] {
        let told = lines(&check(&lab.client, &[&["-o", "json", "--ruleset", path][..], &words].concat())?)?;
        let found: Vec<bool> = told.iter().map(|event| event["event"]["action"] == "egress-blocked").collect();
        ensure!(found == blocked, "{path}: {told:?}");
    }
    let output = check(&lab.client, &[&["--diff", &ufw][..], &words].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        said.contains("203.0.113.10:443") && said.contains("203.0.113.10:80") && !said.contains(":53/udp"),
        "{}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(said.contains("was BLOCKED v4") && said.contains("was allowed v4"), "{said}");
    let wrong =
        file("wrong.conf", "table inet f { chain o { type filter hook output priority 0; tcp dprt 443 drop;\n}\n}\n")?;
    let output = check(&lab.client, &["--ruleset", &wrong, "203.0.113.10:443"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains("syntax error") && said.contains("dprt"),
        "{} {said}",
        output.status
    );
    Ok(Outcome::Passed)
}

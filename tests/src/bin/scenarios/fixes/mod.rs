//! What lets a blocked packet through: the printed commands are run by a real shell, the same client gets through, and the undo
//! brings the block back.

mod conversations;
mod firewalld;
mod tables;
mod ufw;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{Lab, Server},
    namespace::Namespace,
    observer::Observer,
    patience, traffic,
};
use serde_json::{Value, json};

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    ("ufw_the_very_rule", ufw::the_very_rule),
    ("ufw_wider_rules", ufw::wider),
    ("ufw_addresses", ufw::addresses),
    ("ufw_defaults", ufw::defaults),
    ("ufw_two_rules_behind_each_other", ufw::two),
    ("ufw_by_iptables_legacy", ufw::by_legacy),
    ("ufw_for_what_is_forwarded", ufw::forwarded),
    ("in_the_first_namespace", ufw::first),
    ("ufw_without_a_command", ufw::without),
    ("firewalld_policies", firewalld::policies),
    ("firewalld_direct_and_panic", firewalld::others),
    ("nft_rules", tables::nft),
    ("in_a_named_namespace", tables::in_a_named_namespace),
    ("iptables_rules", || tables::iptables(false)),
    ("iptables_legacy_rules", || tables::iptables(true)),
    ("chains_of_docker", tables::docker),
    ("chains_that_two_hooks_lead_to", tables::shared),
    ("of_both_directions", conversations::of_both_directions),
    ("answers_to_a_container", conversations::answers_to_a_container),
    ("beside_containers", conversations::beside_containers),
    ("of_neighbours", conversations::of_neighbours),
    ("of_later_packets", conversations::of_later_packets),
    ("no_more_than_asked", conversations::no_more_than_asked),
    ("where_rules_send_it", conversations::where_it_is_sent),
    ("a_rule_for_packets_that_come_later", conversations::seen_later),
    ("hostile_names", tables::hostile),
    ("a_command_that_hangs_shows_its_fix", tables::by_run),
];

/// Where packets go: protocol, address, port.
type To<'a> = (&'a str, &'a str, u16);

/// What the client makes of it: `ok`, or how it failed.
fn tries(client: &Namespace, (transport, address, port): To<'_>) -> Result<String> {
    let port = port.to_string();
    // A refusal by IPv6 takes a second to arrive.
    let args: &[&str] = if transport == "tcp" { &["tcp", address, &port, "1.5"] } else { &["udp", address, &port] };
    Ok(traffic::run(client, args)?.said)
}

/// The fix that is reported of this destination, which is tried until then.
pub(crate) fn told(observer: &Observer, client: &Namespace, to: To<'_>) -> Result<Value> {
    let deadline = Instant::now() + 3 * patience();
    loop {
        tries(client, to)?;
        // On an emulated machine the client takes so much of it that nothing else is done.
        for _ in 0..40 * harness::slowness() {
            let lines = observer.so_far();
            let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let is_it = |event: &Value| {
                event["event"]["action"] == "egress-fix"
                    && event["destination"]["ip"] == to.1
                    && event["destination"]["port"] == to.2
            };
            if let Some(event) = lines.find(is_it) {
                return Ok(event);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(Instant::now() < deadline, "no fix was told of {to:?}: {}", observer.so_far());
    }
}

/// Rules, front ends' files and mounts as they are seen by whoever lives there.
fn standing(host: &Namespace) -> Result<String> {
    const SCRIPT: &str = "nft -s list ruleset; iptables-legacy-save 2>/dev/null | grep -v '^[#:]'; \
        find /etc/ufw /etc/default /etc/firewalld -type f 2>/dev/null | sort | xargs -r sha256sum; cut -d' ' -f5- /proc/self/mountinfo";
    host.run("sh", &["-c", SCRIPT])
}

/// A fix and what is expected of it.
fn expect(event: &Value, wanted: &[(&str, Value)]) -> Result<()> {
    harness::observer::expect(event, wanted)
}

fn lines(event: &Value, which: &str) -> Vec<String> {
    lines_of(&event["egress"]["fix"], which)
}

fn lines_of(fix: &Value, which: &str) -> Vec<String> {
    let all = fix[which].as_array().into_iter().flatten();
    all.filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

/// The same as they are in the namespace itself: each must have the words before it that enter that.
pub(crate) fn without_place(event: &Value, which: &str) -> Result<Vec<String>> {
    let place = event["egress"]["where"].as_str().context("it is another namespace than observer's own")?;
    lines(event, which)
        .into_iter()
        .map(|line| {
            ensure!(line.starts_with(place), "`{line}` does not begin with `{place}`");
            Ok(line.replace(&format!("{place} "), ""))
        })
        .collect()
}

/// A client behind a host's rules is stopped; the fix is proven and is these commands, if they are given; run by a shell they let
/// it through, and the undo stops it again.
fn works(host: &Namespace, client: &Namespace, to: To<'_>, commands: &[&str]) -> Result<Value> {
    let stopped = tries(client, to)?;
    let before = standing(host)?;
    let observer = among_mounts_of(host)?;
    let event = told(&observer, client, to)?;
    let after = standing(host)?;
    ensure!(before == after, "looking for a fix has changed something: {before}\n{after}");
    observer.stop()?;
    expect(
        &event,
        &[
            ("/egress/fix/verified", json!(true)),
            ("/egress/fix/undo_verified", json!(true)),
            ("/egress/fix/verified_for", json!([to.1])),
            ("/egress/count", json!(0)),
        ],
    )?;
    let told = lines(&event, "commands");
    let plain = without_place(&event, "commands")?;
    ensure!(!told.is_empty() && (commands.is_empty() || plain == commands), "{plain:?}, expected {commands:?}");
    let fix = &event["egress"]["fix"];
    for fix in [Some(fix), fix.get("narrow"), fix.get("broad"), fix.get("temporary")].into_iter().flatten() {
        for line in lines_of(fix, "commands") {
            host.run("sh", &["-c", &line])?;
        }
        let now = tries(client, to)?;
        ensure!(now == "ok", "after {fix} the client to {to:?} says {now}");
        for line in lines_of(fix, "undo") {
            host.run("sh", &["-c", &line])?;
        }
        let again = tries(client, to)?;
        ensure!(
            again == stopped && again != "ok",
            "taken back, {fix}: the client to {to:?} says {again}, said {stopped}"
        );
    }
    Ok(event)
}

/// An observer in the host's mount namespace, where its front ends' files are the host's own: with those of another one nothing is
/// printed that root could paste.
fn among_mounts_of(host: &Namespace) -> Result<Observer> {
    let mut observer = harness::observer::command_among_mounts_of(host);
    Observer::start_command(observer.args(["watch", "-o", "json", "--netns"]).arg(host.path()))
}

/// A real server for it, where that takes one.
fn server(lab: &Lab, to: To<'_>) -> Result<Option<Server>> {
    (to.0 == "tcp").then(|| lab.web_server(to.2)).transpose()
}

//! Rules in the words of whoever manages them: real front ends, real clients, and what the front ends themselves say.

mod chains;
mod firewalld;
mod ufw;

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    lab::Server,
    namespace::Namespace,
    observer::{Observer, Report},
    traffic, wait_for,
};
use serde_json::Value;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("ufw_rules", || ufw::rules(false)),
    ("ufw_rules_by_iptables_legacy", || ufw::rules(true)),
    ("ufw_default_deny", || ufw::default("deny", "OUTPUT")),
    ("ufw_default_reject", || ufw::default("reject", "ufw-reject-output")),
    ("ufw_before_rules", ufw::before),
    ("ufw_route_rules", ufw::routed),
    ("ufw_was_changed_without_it", ufw::changed),
    ("ufw_on_the_answer_screen", ufw::on_screen),
    ("firewalld_rules", firewalld::rules),
    ("iptables_in_its_own_words", chains::iptables),
    ("chains_of_container_engines", chains::engines),
    ("shorewall_csf_and_wg_quick", chains::others),
    ("ferm_may_have_made_it", chains::ferm),
    ("files_that_hang", ufw::hanging_files),
];

/// ufw with private files, switched on.
pub(crate) fn with_ufw(host: &mut Namespace, statements: &[&str]) -> Result<()> {
    if !host.has_private_files() {
        host.private_files()?;
    }
    host.run("ufw", &["--force", "reset"])?;
    for statement in statements {
        let words = shell_words(statement);
        host.run("ufw", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    host.run("ufw", &["--force", "enable"])?;
    Ok(())
}

/// What `iptables` is in this namespace, which has private files: its older tables, as `update-alternatives` sets it.
pub(crate) fn with_iptables_legacy(client: &Namespace) -> Result<()> {
    let script = "cd /etc/alternatives && for name in iptables ip6tables; do for end in '' -save -restore; do \
        ln -sf /usr/sbin/$name-legacy$end $name$end; done; done";
    client.run("sh", &["-c", script])?;
    let version = client.run("iptables", &["--version"])?;
    ensure!(version.contains("legacy"), "{version}");
    Ok(())
}

/// Where it is not installed.
pub(crate) fn without_firewalld() -> Option<Outcome> {
    let is_there = ["/usr/sbin/firewalld", "/usr/bin/firewalld"].iter().any(|path| Path::new(path).exists());
    (!is_there).then(|| Outcome::Skipped("firewalld is not installed".to_owned()))
}

/// A real firewalld and a message bus of its own, both ended when dropped, and a policy `hostout` for what the host sends, with these options.
pub(crate) fn with_firewalld(host: &mut Namespace, options: &[&[&str]]) -> Result<[Server; 2]> {
    host.private_files()?;
    host.run("mkdir", &["-p", "/run/dbus"])?;
    let mut bus = host.command("dbus-daemon");
    let bus = Server(bus.args(["--system", "--nofork", "--nopidfile"]).stdout(Stdio::null()).spawn()?);
    wait_for("the message bus", || Ok(host.run("test", &["-S", "/run/dbus/system_bus_socket"]).is_ok().then_some(())))?;
    let offline = |args: &[&str]| host.run("firewall-offline-cmd", args);
    offline(&["--new-policy", "hostout"])?;
    for options in [&["--add-ingress-zone", "HOST"][..], &["--add-egress-zone", "ANY"]].iter().chain(options) {
        offline(&[&["--policy", "hostout"], *options].concat())?;
    }
    let mut daemon = host.command("firewalld");
    let daemon = Server(daemon.args(["--nofork", "--nopid"]).stdout(Stdio::null()).spawn()?);
    wait_for("firewalld", || {
        Ok(host.run("firewall-cmd", &["--state"]).is_ok_and(|state| state.trim() == "running").then_some(()))
    })?;
    Ok([daemon, bus])
}

/// Every packet's rule is reported at once where it is freed; elsewhere these words are the same.
fn one_by_one() -> Option<Outcome> {
    let live = kernel::is_at_least(6, 7);
    (!live).then(|| Outcome::Skipped("on this kernel not every packet's rule is told".to_owned()))
}

/// Words with blanks stand between quotes.
fn shell_words(text: &str) -> Vec<String> {
    text.split('\'')
        .enumerate()
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

/// Sends one packet, which is dropped, and waits until that is reported with its rule: where its text takes a while, that comes
/// in a line of its own.
fn knock(observer: &Observer, client: &Namespace, to: (&str, &str, u16)) -> Result<()> {
    send(observer, client, to)?;
    hear(observer, to)
}

/// Waits until a rule is reported of this destination.
fn hear(observer: &Observer, to: (&str, &str, u16)) -> Result<()> {
    wait_for(&format!("the rule of {to:?}"), || {
        let told = observer.so_far();
        let mut lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.any(|event| is_of(&event, to) && !event["rule"].is_null()).then_some(()))
    })
}

fn send(observer: &Observer, client: &Namespace, (transport, address, port): (&str, &str, u16)) -> Result<()> {
    let port = port.to_string();
    let args: &[&str] = if transport == "tcp" { &["tcp", address, &port, "0.2"] } else { &["udp", address, &port] };
    observer.tells(|| traffic::run(client, args)).map(drop).with_context(|| format!("{transport} {address} {port}"))
}

fn is_of(event: &Value, (transport, address, port): (&str, &str, u16)) -> bool {
    event["destination"]["ip"] == address
        && event["destination"]["port"] == port
        && event["network"]["transport"] == transport
}

/// The event of a destination, told with its rule where one has it.
fn event<'a>(report: &'a Report, to: (&str, &str, u16)) -> Result<&'a Value> {
    let mut all = report.events.iter().chain(&report.late).filter(|event| is_of(event, to));
    let named = all.clone().find(|event| !event["rule"].is_null());
    named.or_else(|| all.next()).with_context(|| format!("nothing of {to:?}: {:?}", report.events))
}

/// Where only a copy of the rules names one, the first packet may come before there is a copy: until its rule is reported.
fn knock_until_named(observer: &Observer, client: &Namespace, to: (&str, &str, u16)) -> Result<()> {
    let is_told = |event: &Value| is_of(event, to) && !event["rule"].is_null();
    observer.tells_until("the rule", || send(observer, client, to), is_told).map(drop)
}

//! ufw, with its traps.

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{Containers, FAR_V4, FAR_V6, Lab, Plug},
    namespace::Namespace,
    observer::Observer,
};
use serde_json::json;

use super::{To, expect, lines, server, told, without_place, works};
use crate::{Outcome, front_ends};

/// Rules, a packet that one of them stops, and the commands that let it through.
type Case<'a> = (&'a [&'a str], To<'a>, &'a [&'a str]);

fn all(cases: &[Case<'_>], by_legacy: bool) -> Result<Outcome> {
    for (statements, to, commands) in cases {
        let mut lab = Lab::new()?;
        if by_legacy {
            lab.client.private_files()?;
            front_ends::with_iptables_legacy(&lab.client)?;
            // The proof needs nftables.
            lab.client.nft("table inet t {}")?;
        }
        front_ends::with_ufw(&mut lab.client, statements)?;
        let _server = server(&lab, *to)?;
        works(&lab.client, &lab.client, *to, commands)
            .map_err(|error| error.context(format!("{statements:?}, to {to:?}")))?;
    }
    Ok(Outcome::Passed)
}

/// The rule that stops it is about this very port: it is changed where it stands.
pub(super) fn the_very_rule() -> Result<Outcome> {
    all(
        &[
            (
                &["default allow outgoing", "deny out 443/tcp comment 'hardening 2023'"],
                ("tcp", FAR_V4, 443),
                &["ufw allow out 443/tcp"],
            ),
            (&["default allow outgoing", "reject out log 443/tcp"], ("tcp", FAR_V6, 443), &["ufw allow out 443/tcp"]),
            (&["default allow outgoing", "deny out 123/udp"], ("udp", FAR_V4, 123), &["ufw allow out 123/udp"]),
        ],
        false,
    )
}

/// It is about more: what is added behind it does not help.
pub(super) fn wider() -> Result<Outcome> {
    all(
        &[
            (
                &["default allow outgoing", "allow out 22/tcp", "deny out 443"],
                ("tcp", FAR_V4, 443),
                &["ufw insert 2 allow out 443/tcp"],
            ),
            (&["default allow outgoing", "deny out 443"], ("tcp", FAR_V6, 443), &["ufw prepend allow out 443/tcp"]),
            (
                &["default allow outgoing", "deny out on eth0 to any port 25 proto tcp", "allow out 22/tcp"],
                ("tcp", FAR_V4, 25),
                &["ufw delete deny out on eth0 to any port 25 proto tcp"],
            ),
            // Nobody asked for its other ports.
            (
                &["default allow outgoing", "deny out on eth0 to any port 25,443 proto tcp", "allow out 22/tcp"],
                ("tcp", FAR_V4, 443),
                &["ufw insert 1 allow out on eth0 to any port 443 proto tcp"],
            ),
            (
                &["default allow outgoing", "deny out on eth0", "allow out 22/tcp"],
                ("udp", FAR_V4, 53),
                &["ufw insert 1 allow out on eth0 to 203.0.113.10 port 53 proto udp"],
            ),
        ],
        false,
    )
}

/// It is about addresses.
pub(super) fn addresses() -> Result<Outcome> {
    all(
        &[
            (
                &["default allow outgoing", "reject out to 203.0.113.0/24"],
                ("tcp", FAR_V4, 443),
                &["ufw insert 1 allow out proto tcp to 203.0.113.10 port 443"],
            ),
            (
                &["default allow outgoing", "deny out to 2001:db8:1::/48 port 443 proto tcp"],
                ("tcp", FAR_V6, 443),
                &["ufw prepend allow out proto tcp to 2001:db8:1::10 port 443"],
            ),
            // The very one is the only one.
            (
                &["default allow outgoing", "deny out to 203.0.113.10 port 443 proto tcp"],
                ("tcp", FAR_V4, 443),
                &["ufw allow out proto tcp to 203.0.113.10 port 443"],
            ),
            // The same stands behind it already, where it does nothing.
            (
                &[
                    "default allow outgoing",
                    "deny out to 203.0.113.0/24",
                    "allow out to 203.0.113.10 port 443 proto tcp",
                ],
                ("tcp", FAR_V4, 443),
                &[
                    "ufw delete allow out to 203.0.113.10 port 443 proto tcp",
                    "ufw insert 1 allow out proto tcp to 203.0.113.10 port 443",
                ],
            ),
        ],
        false,
    )
}

/// Nothing allows it.
pub(super) fn defaults() -> Result<Outcome> {
    all(
        &[
            (&["default deny outgoing"], ("tcp", FAR_V4, 443), &["ufw allow out proto tcp to 203.0.113.10 port 443"]),
            (
                &["default reject outgoing", "allow out 80/tcp"],
                ("udp", FAR_V6, 53),
                &["ufw allow out proto udp to 2001:db8:1::10 port 53"],
            ),
        ],
        false,
    )
}

/// Behind the first there is a second.
pub(super) fn two() -> Result<Outcome> {
    all(
        &[
            // `insert 1 allow out 443/tcp` would be skipped: a rule about the same is there.
            (
                &["default allow outgoing", "deny out 443", "deny out 443/tcp"],
                ("tcp", FAR_V4, 443),
                &["ufw delete deny out 443/tcp", "ufw insert 1 allow out 443/tcp"],
            ),
        ],
        false,
    )?;
    // Another table stops it, too.
    let mut lab = Lab::new()?;
    front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    lab.client.nft(
        "table inet mine { chain o { type filter hook output priority 10; tcp dport 80 drop; tcp dport 443 counter drop } }",
    )?;
    let to = ("tcp", FAR_V4, 443);
    let _server = server(&lab, to)?;
    works(&lab.client, &lab.client, to, &[])?;
    Ok(Outcome::Passed)
}

/// The older tables.
pub(super) fn by_legacy() -> Result<Outcome> {
    all(
        &[
            (&["default allow outgoing", "deny out 443/tcp"], ("tcp", FAR_V4, 443), &["ufw allow out 443/tcp"]),
            (&["default deny outgoing"], ("udp", FAR_V4, 53), &["ufw allow out proto udp to 203.0.113.10 port 53"]),
        ],
        true,
    )
}

/// A container's packets.
pub(super) fn forwarded() -> Result<Outcome> {
    for (statements, command) in [
        (
            &["default allow routed", "route deny in on docker0 out on eth0 to 203.0.113.10 port 7000 proto udp"][..],
            None,
        ),
        (&["default deny routed"], Some("ufw route allow in on docker0 proto udp to 203.0.113.10 port 7000")),
    ] {
        let mut lab = Containers::new(Plug::Bridge)?;
        front_ends::with_ufw(&mut lab.host, statements)?;
        let observer = super::among_mounts_of(&lab.host)?;
        let to = ("udp", FAR_V4, 7000);
        let event = told(&observer, &lab.containers[0], to)?;
        observer.stop()?;
        expect(&event, &[("/egress/fix/verified", json!(true)), ("/egress/fix/undo_verified", json!(true))])?;
        let commands = lines(&event, "commands");
        let plain = without_place(&event, "commands")?;
        ensure!(command.is_none_or(|command| plain == [command]), "{plain:?}");
        let passes = || -> Result<bool> {
            let observer = Observer::watch(&lab.host)?;
            super::tries(&lab.containers[0], to)?;
            // Behind it, so that whatever it is has been told.
            let report = observer.stop()?;
            Ok(report.events.iter().all(|event| event["destination"]["port"] != 7000))
        };
        ensure!(!passes()?, "it passes before");
        for line in &commands {
            lab.host.run("sh", &["-c", line])?;
        }
        ensure!(passes()?, "after {commands:?} it is stopped");
        for line in lines(&event, "undo") {
            lab.host.run("sh", &["-c", &line])?;
        }
        ensure!(!passes()?, "after the undo it passes");
    }
    Ok(Outcome::Passed)
}

/// Where no command of ufw's does it, what does is said; and nothing is proven where its files are not what is in force.
pub(super) fn without() -> Result<Outcome> {
    let mut lab = Lab::new()?;
    front_ends::with_ufw(&mut lab.client, &["default allow outgoing", "deny out 443/tcp"])?;
    let line = "-A ufw-before-output -p udp --dport 7000 -j DROP";
    lab.client.run("sed", &["-i", &format!("s/^COMMIT/{line}\\nCOMMIT/"), "/etc/ufw/before.rules"])?;
    lab.client.run("ufw", &["reload"])?;
    let start = || super::among_mounts_of(&lab.client);
    let observer = start()?;
    let event = told(&observer, &lab.client, ("udp", FAR_V4, 7000))?;
    observer.stop()?;
    ensure!(lines(&event, "commands").is_empty(), "{event}");
    expect(&event, &[("/egress/fix/verified", json!(false))])?;
    let note = event["egress"]["fix"]["note"].as_str().unwrap_or_default();
    ensure!(note.contains("/etc/ufw/before.rules") && note.contains("ufw reload"), "{note}");
    // What stands in the file is not in force any more, and a reload would bring back something else.
    lab.client.run("sh", &["-c", "sed -i 's/^-A ufw-user-output -p tcp --dport 443 -j DROP/-A ufw-user-output -p tcp --dport 444 -j DROP/; s/^### tuple ### deny tcp 443/### tuple ### deny tcp 444/' /etc/ufw/user.rules"])?;
    let observer = start()?;
    let event = told(&observer, &lab.client, ("tcp", FAR_V4, 443))?;
    observer.stop()?;
    expect(&event, &[("/egress/fix/verified", json!(false))])?;
    let fix = event["egress"]["fix"].to_string();
    ensure!(fix.contains("the live rules differ from ufw's files"), "{fix}");
    // From outside nothing is printed that root could paste: it would run that mount namespace's programs.
    lab.client.run("ufw", &["deny", "out", "7001/udp"])?;
    let observer = Observer::watch_with_fixes(&lab.client)?;
    let event = told(&observer, &lab.client, ("udp", FAR_V4, 7001))?;
    observer.stop()?;
    ensure!(lines(&event, "commands").is_empty() && !event["egress"]["fix"].to_string().contains("nsenter"), "{event}");
    Ok(Outcome::Passed)
}

/// The usual case: the host's own namespace, its own files. Only where that is a machine which ends afterwards.
pub(super) fn first() -> Result<Outcome> {
    if let Some(skipped) = crate::without_a_machine() {
        return Ok(skipped);
    }
    let lab = Lab::join(Namespace::own()?, Namespace::new()?)?;
    let https = ("tcp", FAR_V4, 443);
    let _server = server(&lab, https)?;
    lab.client.run("ufw", &["--force", "reset"])?;
    lab.client.run("ufw", &["default", "allow", "outgoing"])?;
    lab.client.run("ufw", &["deny", "out", "443/tcp"])?;
    lab.client.run("ufw", &["--force", "enable"])?;
    let done = works(&lab.client, &lab.client, https, &["ufw allow out 443/tcp"]);
    lab.client.run("ufw", &["--force", "disable"])?;
    done.context("ufw")?;
    lab.client.nft("table inet first { chain o { type filter hook output priority 0; tcp dport 443 drop\n} }")?;
    let done = works(&lab.client, &lab.client, https, &[]);
    lab.client.run("nft", &["delete", "table", "inet", "first"])?;
    done.map(|_| Outcome::Passed)
}

//! The answer screen: what stands, and what to do next.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, Zoned};
use serde::Serialize;
use uuid::Uuid;

use super::{
    escape::escape,
    fix::as_root,
    json::{self, State},
};
use crate::{
    firewall::{
        denies::{Denies, Deny, Forwarded},
        inventory::Inventory,
    },
    model::{Backend, Recorded, Reporter, Statement},
};

const STRONG: Style = Style::new().bold();
const WARN: Style = AnsiColor::Yellow.on_default().bold();

/// What is so without anything happening.
pub struct Standing {
    /// This host, and this program.
    pub reporter: Reporter,
    /// Front ends with rules, or why they are not known.
    pub firewalls: Result<Inventory, String>,
    /// What can block outbound traffic, or why it is not known.
    pub denies: Result<Denies, String>,
    /// The last incidents in the store, or why they are not known. `None` where nothing is recorded.
    pub recorded: Option<Result<Vec<Recorded>, String>>,
}

/// What is not known is absent, and why.
#[derive(Serialize)]
struct Found<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    firewalls: Option<&'a Inventory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firewalls_unknown: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outbound: Option<&'a Denies>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outbound_unknown: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<Vec<Incident<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded_unknown: Option<&'a str>,
}

/// An incident in the store.
#[derive(Serialize)]
struct Incident<'a> {
    incident: Uuid,
    start: Timestamp,
    end: Timestamp,
    packets: u64,
    sender: String,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> From<&'a Recorded> for Incident<'a> {
    fn from(recorded: &'a Recorded) -> Self {
        let Recorded { attempt, packets, first, last } = recorded;
        Self {
            incident: attempt.incident,
            start: *first,
            end: *last,
            packets: *packets,
            sender: attempt.sender.words(),
            destination: attempt.to().to_string(),
            reason: attempt.finding.as_deref(),
        }
    }
}

/// Host, firewalls and denies for a program: one object on one line, before those of what hangs and is blocked.
pub fn json(writer: &mut impl Write, standing: &Standing) -> io::Result<()> {
    let known = standing.recorded.as_ref().and_then(|recorded| recorded.as_ref().ok());
    let unknown = standing.recorded.as_ref().and_then(|recorded| recorded.as_ref().err());
    let egress = Found {
        firewalls: standing.firewalls.as_ref().ok(),
        firewalls_unknown: standing.firewalls.as_ref().err().map(String::as_str),
        outbound: standing.denies.as_ref().ok(),
        outbound_unknown: standing.denies.as_ref().err().map(String::as_str),
        recorded: known.map(|incidents| incidents.iter().map(Incident::from).collect()),
        recorded_unknown: unknown.map(String::as_str),
    };
    let state = State::new(&standing.reporter, "observer.status", None, egress);
    json::write_line(writer, &state)?;
    writer.flush()
}

/// Host, firewalls, denies.
pub fn standing(writer: &mut impl Write, standing: &Standing, now: &Zoned) -> io::Result<()> {
    let host = standing.reporter.host.name.as_deref().map(|name| format!(" on {}", escape(name))).unwrap_or_default();
    let time = now.strftime("%H:%M:%S %Z (UTC%:z)");
    writeln!(writer, "{STRONG}observer {}{STRONG:#}{host} · {time}", env!("CARGO_PKG_VERSION"))?;
    let firewalls = match &standing.firewalls {
        Ok(inventory) => {
            let active: Vec<String> = inventory
                .active()
                .map(|front_end| format!("{} ({})", front_end.name, escape(&front_end.evidence)))
                .collect();
            if active.is_empty() { "no rules in this network namespace".to_owned() } else { active.join(", ") }
        }
        Err(why) => format!("not known: {}", escape(why)),
    };
    line(writer, "firewalls", &firewalls)?;
    for order in standing.firewalls.iter().flat_map(|inventory| &inventory.order) {
        line(writer, "", &format!("evaluated in order, all must accept: {}", escape(order)))?;
    }
    match &standing.denies {
        Ok(denies) => outbound(writer, denies)?,
        Err(why) => line(writer, "outbound", &format!("not known: {}", escape(why)))?,
    }
    match &standing.recorded {
        None => {}
        Some(Ok(incidents)) => recorded(writer, incidents, now)?,
        Some(Err(why)) => line(writer, "recorded", &format!("not known: {}", escape(why)))?,
    }
    line(writer, "now", "hanging connections, and blocks within one second:")
}

/// `recorded   Tue 03:12  curl[7] → 203.0.113.10:443/tcp  ×12  ufw rule 1 …`
fn recorded(writer: &mut impl Write, incidents: &[Recorded], now: &Zoned) -> io::Result<()> {
    if incidents.is_empty() {
        return line(writer, "recorded", "no blocked connection");
    }
    for (number, Recorded { attempt, packets, last, .. }) in incidents.iter().enumerate() {
        let last = last.to_zoned(now.time_zone().clone());
        let format = if last.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M" };
        let by = attempt.finding.as_deref().map(|finding| format!("  {}", escape(finding))).unwrap_or_default();
        let (time, who, to) = (last.strftime(format), attempt.sender.words(), attempt.to());
        let label = if number == 0 { "recorded" } else { "" };
        line(writer, label, &format!("last {time}  {} → {to}  ×{packets}{by}", escape(&who)))?;
    }
    line(writer, "", "`observer report --events` prints all that was recorded")
}

fn outbound(writer: &mut impl Write, denies: &Denies) -> io::Result<()> {
    let policies = denies.denies.iter().filter(|deny| deny.handle.is_none()).count();
    let rules = denies.total - policies;
    let mut families: Vec<&str> =
        denies.denies.iter().filter(|deny| deny.handle.is_none()).map(|deny| deny.family.as_str()).collect();
    families.sort_unstable();
    families.dedup();
    let default = if families.is_empty() {
        "default allow".to_owned()
    } else {
        format!("{WARN}default deny ({}){WARN:#}", families.join(", "))
    };
    let rules = match rules {
        0 => "no rule blocks".to_owned(),
        1 => format!("{WARN}1 rule blocks{WARN:#}"),
        more => format!("{WARN}{more} rules block{WARN:#}"),
    };
    line(writer, "outbound", &format!("{default}, {rules}"))?;
    for row in rows_of(denies) {
        line(writer, "", &row)?;
    }
    let more = denies.total.saturating_sub(denies.denies.len());
    if more > 0 {
        line(writer, "", &format!("and {more} more"))?;
    }
    if denies.maps > 0 {
        let maps = if denies.maps == 1 { "1 verdict map".to_owned() } else { format!("{} verdict maps", denies.maps) };
        line(writer, "", &format!("{maps} may block too: see `nft list ruleset`"))?;
    }
    let Forwarded { rules, policies, chains } = &denies.forwarded;
    if rules + policies > 0 {
        let parts = [(*rules, "rule", "rules"), (*policies, "policy", "policies")];
        let parts = parts.iter().filter(|(count, ..)| *count > 0);
        let parts: Vec<String> =
            parts.map(|(count, one, more)| format!("{count} {}", if *count == 1 { one } else { more })).collect();
        let words = format!("{} can block forwarded traffic ({})", parts.join(" and "), escape(&chains.join(", ")));
        line(writer, "containers", &words)?;
    }
    Ok(())
}

/// A row for each rule and policy: one for both families where a statement is of both, and says which.
fn rows_of(denies: &Denies) -> Vec<String> {
    let mut rows: Vec<(String, Vec<&str>, Option<u64>)> = Vec::new();
    for deny in &denies.denies {
        let words = described(deny);
        let family = match deny.family.as_str() {
            "ip" if deny.statement.is_some() => Some("IPv4"),
            "ip6" if deny.statement.is_some() => Some("IPv6"),
            _ => None,
        };
        match rows.iter_mut().find(|(of, ..)| family.is_some() && *of == words) {
            Some((_, families, packets)) => {
                families.extend(family);
                *packets = packets.zip(deny.packets).map(|(one, other)| one + other).or(*packets).or(deny.packets);
            }
            None => rows.push((words, family.into_iter().collect(), deny.packets)),
        }
    }
    let row = |(words, families, packets): (String, Vec<&str>, Option<u64>)| {
        let families = if families.is_empty() { String::new() } else { format!(" ({})", families.join(", ")) };
        let packets = packets.map(|packets| format!("  ×{packets} so far")).unwrap_or_default();
        format!("{words}{families}{packets}")
    };
    rows.into_iter().map(row).collect()
}

fn described(deny: &Deny) -> String {
    let hook = if deny.hook == "output" { String::new() } else { format!(" (hook {})", deny.hook) };
    if let Some(Statement { what, name, comment, note, .. }) = &deny.statement {
        let comment = comment.as_ref().map(|comment| format!(" # {}", escape(comment))).unwrap_or_default();
        let note = note.as_ref().map(|note| format!(" ({})", escape(note))).unwrap_or_default();
        return format!("{} `{}`{comment}{note}: {}", escape(what), escape(name), deny.verdict);
    }
    match (deny.handle, &deny.text) {
        (None, _) => format!("{}{hook}: policy {}", escape(&deny.place), deny.verdict),
        (Some(place), None) if deny.backend == Backend::IptablesLegacy => {
            format!("{}{hook}: rule {place} of iptables-legacy: {}", escape(&deny.place), deny.verdict)
        }
        (Some(handle), None) => {
            format!("{}{hook}: rule with handle {handle}: {}", escape(&deny.place), deny.verdict)
        }
        (Some(handle), Some(text)) => {
            format!("{}{hook}: `{}` # handle {handle}", escape(&deny.place), escape(text))
        }
    }
}

/// One command.
pub fn next(writer: &mut impl Write, found: bool) -> io::Result<()> {
    let (command, why) = if found {
        ("observer watch", "shows blocked connections as they happen")
    } else {
        ("observer run -- COMMAND", "nothing hangs now: run what fails, to see what is blocked")
    };
    let command = as_root(command);
    line(writer, "next", &format!("{STRONG}{command}{STRONG:#}   {why}"))?;
    writer.flush()
}

fn line(writer: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(writer, "{label:<10} {text}")
}

//! The answer screen: what stands, and what to do next.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::Zoned;

use super::{escape::escape, fix::as_root};
use crate::{
    firewall::{
        denies::{Denies, Deny},
        inventory::Inventory,
    },
    model::{Backend, Host, Statement},
};

const STRONG: Style = Style::new().bold();
const WARN: Style = AnsiColor::Yellow.on_default().bold();

/// What is so without anything happening.
pub struct Standing {
    /// This host.
    pub host: Host,
    /// Front ends with rules, or why they are not known.
    pub firewalls: Result<Inventory, String>,
    /// What can stop what goes out, or why it is not known.
    pub denies: Result<Denies, String>,
}

/// Host, firewalls, denies.
pub fn standing(writer: &mut impl Write, standing: &Standing, now: &Zoned) -> io::Result<()> {
    let host = standing.host.name.as_deref().map(|name| format!(" on {}", escape(name))).unwrap_or_default();
    let time = now.strftime("%H:%M:%S %Z (UTC%:z)");
    writeln!(writer, "{STRONG}observer {}{STRONG:#}{host} · {time}", env!("CARGO_PKG_VERSION"))?;
    let firewalls = match &standing.firewalls {
        Ok(inventory) => {
            let active: Vec<String> = inventory
                .active()
                .map(|front_end| format!("{} ({})", front_end.name, escape(&front_end.evidence)))
                .collect();
            if active.is_empty() { "no rules in this namespace".to_owned() } else { active.join(", ") }
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
    line(writer, "now", "hanging connections, and blocks within one second:")
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
    for deny in &denies.denies {
        line(writer, "", &described(deny))?;
    }
    let more = denies.total.saturating_sub(denies.denies.len());
    if more > 0 {
        line(writer, "", &format!("and {more} more"))?;
    }
    if denies.maps > 0 {
        let maps = if denies.maps == 1 { "1 verdict map".to_owned() } else { format!("{} verdict maps", denies.maps) };
        line(writer, "", &format!("{maps} may block too: see `nft list ruleset`"))?;
    }
    Ok(())
}

fn described(deny: &Deny) -> String {
    let packets = match deny.packets {
        Some(packets) => format!("  ×{packets} so far"),
        None => String::new(),
    };
    let hook = if deny.hook == "output" { String::new() } else { format!(" (hook {})", deny.hook) };
    if let Some(Statement { what, name, comment, note, .. }) = &deny.statement {
        let comment = comment.as_ref().map(|comment| format!(" # {}", escape(comment))).unwrap_or_default();
        let note = note.as_ref().map(|note| format!(" ({})", escape(note))).unwrap_or_default();
        return format!("{} `{}`{comment}{note}: {}{packets}", escape(what), escape(name), deny.verdict);
    }
    match (deny.handle, &deny.text) {
        (None, _) => format!("{}{hook}: policy {}", escape(&deny.place), deny.verdict),
        (Some(place), None) if deny.backend == Backend::IptablesLegacy => {
            format!("{}{hook}: rule {place} of iptables-legacy: {}{packets}", escape(&deny.place), deny.verdict)
        }
        (Some(handle), None) => {
            format!("{}{hook}: rule with handle {handle}: {}{packets}", escape(&deny.place), deny.verdict)
        }
        (Some(handle), Some(text)) => {
            format!("{}{hook}: `{}` # handle {handle}{packets}", escape(&deny.place), escape(text))
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

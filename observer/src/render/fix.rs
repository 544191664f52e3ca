//! What lets something through, in words and lines: the same wherever it is reported.

use std::{
    io::{self, Write},
    sync::OnceLock,
};

use anstyle::Style;

use super::escape::escape;
use crate::{
    confinement::programs,
    model::{Attempt, Fix, Lasts, Other, Probe},
};

const STRONG: Style = Style::new().bold();

/// A line for root's shell as the person at the terminal types it: behind `sudo` where observer itself was started so, or by
/// somebody else than root.
pub(super) fn as_root(line: &str) -> String {
    if uses_sudo() { with_sudo(line) } else { line.to_owned() }
}

/// The same for a document, whoever reads it.
pub(super) fn with_sudo(line: &str) -> String {
    format!("sudo {}", line.replace("$(", "$(sudo "))
}

/// Whether commands for root are typed behind `sudo`.
pub(super) fn uses_sudo() -> bool {
    static USES: OnceLock<bool> = OnceLock::new();
    *USES.get_or_init(|| {
        let is_root = rustix::process::geteuid().is_root() || STARTED_AS_ROOT.get().copied().unwrap_or(false);
        (!is_root || std::env::var_os("SUDO_UID").is_some()) && programs::find("sudo").is_some()
    })
}

/// Set at start: later the process is nobody's.
static STARTED_AS_ROOT: OnceLock<bool> = OnceLock::new();

/// Remembers who started observer; to be called before privileges are given up.
pub fn remember_who_started() {
    let _ = STARTED_AS_ROOT.set(rustix::process::geteuid().is_root());
}

/// Where a block happened, if that is not where observer runs: `in container web`, `in network namespace blue`.
pub(super) fn place(attempt: &Attempt) -> Option<String> {
    if !attempt.is_elsewhere {
        return None;
    }
    if let Some(name) = attempt.sender.container.as_ref().and_then(|container| container.name.as_ref()) {
        return Some(format!("in container {name}"));
    }
    Some(format!("in {}", namespace(attempt.netns?, attempt.entering.as_deref())))
}

/// `network namespace blue`, or its number and a process that lives there; `entering` are the words before a command for it.
pub(super) fn namespace(number: u32, entering: Option<&str>) -> String {
    let entering = entering.unwrap_or_default();
    if let Some(name) = entering.strip_prefix("ip netns exec ") {
        return format!("network namespace {name}");
    }
    let pid = entering.strip_prefix("nsenter -t ").and_then(|rest| rest.split(' ').next());
    let pid = pid.map(|pid| format!(" of pid {pid}")).unwrap_or_default();
    format!("network namespace {number}{pid}")
}

/// What is known of a fix, in words.
pub(super) fn about(fix: &Fix) -> String {
    let mut parts = Vec::new();
    if fix.verified {
        let addresses: Vec<String> = fix.verified_for.iter().map(ToString::to_string).collect();
        let of = if addresses.is_empty() { String::new() } else { format!(" for {}", addresses.join(" and ")) };
        parts.push(format!("tested in a private copy{of}"));
    } else if let Some(why) = &fix.unverified {
        parts.push(format!("untested: {why}"));
    }
    if let Some(opens) = &fix.opens {
        parts.push(format!("allows {opens}"));
    }
    parts.extend(match fix.lasts {
        Some(Lasts::Permanent) => Some("permanent".to_owned()),
        Some(Lasts::Reload) => Some("until the firewall reloads or the host reboots".to_owned()),
        Some(Lasts::Hour) => Some("for one hour".to_owned()),
        None => None,
    });
    if fix.undo_verified == Some(false) {
        parts.push("the undo does not restore the previous rules".to_owned());
    }
    parts.extend(fix.note.clone());
    parts.join(" · ")
}

/// A fix on a screen: labels, and what stands behind them. Other commands stand below; what ends by itself and the probes take more
/// rows than a block of a stream has, and are there with `are_all` only.
pub(super) fn rows(fix: &Fix, command: &'static str, are_all: bool) -> Vec<(&'static str, String)> {
    let commands = |label: &'static str, lines: &[String]| -> Vec<(&'static str, String)> {
        let row = |(at, line): (usize, &String)| {
            (if at == 0 { label } else { AND }, format!("{STRONG}{}{STRONG:#}", escape(&as_root(line))))
        };
        lines.iter().enumerate().map(row).collect()
    };
    let mut rows: Vec<(&'static str, String)> =
        fix.place.iter().map(|place| ("where", format!("in {}", escape(place)))).collect();
    rows.extend(commands(command, &fix.commands));
    rows.extend(commands("undo", &fix.undo));
    let words = about(fix);
    if !words.is_empty() {
        rows.push(("", escape(&words).into_owned()));
    }
    rows.extend(probes(fix).into_iter().filter(|_| are_all).map(|words| ("probes", escape(&words).into_owned())));
    for other in fix.others.iter().filter(|other| are_all || other.other != Other::Temporary) {
        rows.extend(commands("or", &other.commands));
        rows.extend(commands("undo", &other.undo));
        let hour = (other.other == Other::Temporary).then(|| "for one hour".to_owned());
        let opens = other.opens.iter().map(|opens| format!("allows {opens}"));
        let words = std::iter::once("tested too".to_owned()).chain(opens).chain(hour).chain(other.note.clone());
        rows.push(("", escape(&words.collect::<Vec<_>>().join(" · ")).into_owned()));
    }
    rows
}

/// The conversations that were tried before and after, in words: as many as anybody reads.
fn probes(fix: &Fix) -> Option<String> {
    const MOST: usize = 8;
    // The first ones are of whoever asks.
    let own = fix.probes.first().and_then(|probe| probe.user);
    let mut all: Vec<String> = Vec::new();
    for probe in &fix.probes {
        let user = probe.user.filter(|user| Some(*user) != own);
        let words = Probe { user, is_one_way: false, ..probe.clone() }.words();
        // Those of both families have the same words.
        if !all.contains(&words) {
            all.push(words);
        }
    }
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    all.extend((more > 0).then(|| format!("and {more} more, which JSON has")));
    (!all.is_empty()).then(|| all.join(", "))
}

/// Label of a command that belongs to the one above.
pub(super) const AND: &str = "and";

/// Its commands in blocks for a shell, as Markdown.
pub(super) fn blocks(writer: &mut impl Write, fix: &Fix) -> io::Result<()> {
    let others = fix.others.iter().flat_map(|other| {
        let title = match other.other {
            Other::Narrow => "Or, for these addresses alone",
            Other::Broad => "Or, for this port of every destination",
            Other::Temporary => "Or, for one hour",
        };
        [(title, &other.commands), ("To take that back", &other.undo)]
    });
    if let Some(place) = &fix.place {
        writeln!(writer, "\nThey are run in {}.", escape(place))?;
    }
    for (title, lines) in [("Commands", &fix.commands), ("To take it back", &fix.undo)].into_iter().chain(others) {
        if lines.is_empty() {
            continue;
        }
        writeln!(writer, "\n{title}:\n\n```sh")?;
        for line in lines {
            writeln!(writer, "{}", escape(line))?;
        }
        writeln!(writer, "```")?;
    }
    Ok(())
}

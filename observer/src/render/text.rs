//! Lines for a person, as a terminal shows them.

use std::{
    io::{self, Write},
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::{
    escape::escape,
    fix::{as_root, namespace, place as elsewhere, rows},
};
use crate::model::{
    Attempt, Background, Confirmation, Coverage, Fix, Outcome, Process, Restored, RuleSource, RulesetChange, Sender,
    span,
};

const ALERT: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const STRONG: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Parents shown in the first line of a block.
const MAX_PARENTS: usize = 6;
/// Characters of a command line shown; JSON has all of it.
const MAX_COMMAND: usize = 160;

/// Writes times of this zone.
pub(crate) struct Text {
    zone: TimeZone,
}

impl Text {
    pub(crate) fn new(zone: TimeZone) -> Self {
        Self { zone }
    }

    fn time(&self, timestamp: Timestamp) -> String {
        timestamp.to_zoned(self.zone.clone()).strftime("%H:%M:%S").to_string()
    }

    /// What was stopped, whole.
    pub(crate) fn block(&self, writer: &mut impl Write, attempt: &Attempt, is_lost: bool) -> io::Result<()> {
        let time = self.time(attempt.end);
        let kind = attempt.background.map(|kind| format!("  {DIM}({}){DIM:#}", kind.label())).unwrap_or_default();
        let word = if is_lost { "LOST   " } else { "BLOCKED" };
        let scope =
            elsewhere(attempt).map(|words| format!("  {STRONG}{}{STRONG:#}", escape(&words))).unwrap_or_default();
        writeln!(writer, "{time} {ALERT}{word}{ALERT:#}  {}{scope}{kind}", who_at_length(&attempt.sender))?;
        line(writer, "to", &format!("{STRONG}{}{STRONG:#}{}", attempt.to(), way(attempt)))?;
        if let Some(finding) = &attempt.finding {
            line(writer, "by", &format!("{}{DIM}{}{DIM:#}", escape(finding), known(attempt)))?;
        }
        if let Some(replay) = attempt.rule.as_ref().and_then(|rule| rule.replay.as_ref()) {
            line(writer, "note", &escape(replay))?;
        }
        if attempt.nothing_left {
            line(writer, "note", "nothing left this host; the network and the server were not reached")?;
        }
        if let Some(command) = attempt.sender.process.as_ref().and_then(Process::command_line) {
            line(writer, "ran", &escape(&shorten(&command)))?;
        }
        let place = place(attempt);
        if !place.is_empty() {
            line(writer, "in", &place)?;
        }
        match next(&attempt.profiles) {
            Some(words) => line(writer, "next", &words),
            None => Ok(()),
        }
    }

    /// `15:30:07 RULE     curl[2211] → 203.0.113.10:443/tcp: nft rule …`
    pub(crate) fn rule(&self, writer: &mut impl Write, at: Timestamp, attempt: &Attempt) -> io::Result<()> {
        let (time, finding) = (self.time(at), attempt.finding.as_deref().unwrap_or_default());
        writeln!(writer, "{time} {STRONG}RULE{STRONG:#}     {}: {}", who_and_where(attempt), escape(finding))
    }

    /// `15:32:21 ENDED    curl[2211] → 203.0.113.10:443/tcp: gave up after 2m14s`
    pub(crate) fn outcome(&self, writer: &mut impl Write, attempt: &Attempt, outcome: Outcome) -> io::Result<()> {
        let (time, how) = (self.time(attempt.end), outcome.sentence());
        writeln!(writer, "{time} {STRONG}ENDED{STRONG:#}    {}: {how}", who_and_where(attempt))
    }

    /// `15:30:20 WORKS    curl[2300] → 203.0.113.10:443/tcp: a connection was established 12s after …`
    pub(crate) fn restored(&self, writer: &mut impl Write, attempt: &Attempt, restored: &Restored) -> io::Result<()> {
        let (time, how) = (self.time(attempt.end), restored.sentence());
        writeln!(writer, "{time} {GOOD}WORKS{GOOD:#}    {}: {}", who_and_where(attempt), escape(&how))
    }

    /// `15:30:08 FIX      curl[2211] → 203.0.113.10:443/tcp`, the commands, and what is known of them.
    pub(crate) fn fix(&self, writer: &mut impl Write, at: Timestamp, attempt: &Attempt, fix: &Fix) -> io::Result<()> {
        writeln!(writer, "{} {GOOD}FIX{GOOD:#}      {}", self.time(at), who_and_where(attempt))?;
        for (label, text) in rows(fix, "run", false) {
            line(writer, label, &text)?;
        }
        Ok(())
    }

    /// ``15:30:10 CHANGED  ufw added `allow out 443/tcp`, by ufw[2301] ← sh``
    pub(crate) fn change(&self, writer: &mut impl Write, at: Timestamp, change: &RulesetChange) -> io::Result<()> {
        // Whoever ran the program that did it says more than that.
        let by: Vec<String> = match change.sender.ancestry.as_slice() {
            [] => change.ruleset.changed_by.iter().map(|actor| format!("pid {}", actor.pid)).collect(),
            [first, parents @ ..] => std::iter::once(format!("{}[{}]", first.name, first.pid))
                .chain(parents.iter().take(MAX_PARENTS).map(|parent| parent.name.clone()))
                .collect(),
        };
        let by = if by.is_empty() { "an unknown process".to_owned() } else { by.join(" ← ") };
        let scope = if change.is_elsewhere {
            format!(" in {}", namespace(change.netns, change.entering.as_deref()))
        } else {
            String::new()
        };
        let (time, what) = (self.time(at), change.ruleset.what());
        let words = match change.ruleset.statements() {
            Some(statements) => format!("{statements}{scope}, by {by}"),
            None => format!("firewall rules{scope}, by {by}{what}"),
        };
        writeln!(writer, "{time} {STRONG}CHANGED{STRONG:#}  {}", escape(&words))
    }

    /// `15:30:11 again    curl[2211] → 203.0.113.10:443/tcp  ×5 over 31s`; in so many columns, with its count and its destination.
    pub(crate) fn again(&self, again: &Again<'_>, width: Option<usize>) -> String {
        let Again { at, who, others, to, packets, over, last, by } = again;
        let others = match others {
            (0, _) => String::new(),
            (others, false) => format!(" and {others} more"),
            (others, true) => format!(" and at least {others} more"),
        };
        let (who, to) = (escape(who), escape(to));
        let name = who.rsplit_once('[').map_or(&*who, |(name, _)| name);
        let time = self.time(*at);
        let word = if by.is_some() { "more " } else { "again" };
        let by = by.map(|by| format!("  {}", escape(by))).unwrap_or_default();
        let over = if over.as_secs() > 0 { format!(" over {}", span(over.unsigned_abs())) } else { String::new() };
        // The time in front is that of the line, which may come later.
        let since = if self.time(*last) == time { String::new() } else { format!(", last {}", self.time(*last)) };
        let forms = [
            format!("{time} {word}    {who}{others} → {to}  ×{packets}{over}{since}{by}"),
            format!("{time} {word}    {who}{others} → {to}  ×{packets}{over}{since}"),
            format!("{time} {word}  {name} → {to}  ×{packets}{over}"),
            format!("{time} {word}  {name} → {to}  ×{packets}"),
            format!("{word}  ×{packets}  → {to}"),
        ];
        let fits = |form: &&String| width.is_none_or(|width| textwrap::core::display_width(form) <= width);
        forms.iter().find(fits).or(forms.last()).cloned().unwrap_or_default()
    }
}

/// What repeated.
pub(crate) struct Again<'a> {
    /// Time in front.
    pub(crate) at: Timestamp,
    /// The last sender.
    pub(crate) who: &'a str,
    /// How many other processes there were, and whether there may be more.
    pub(crate) others: (usize, bool),
    /// Where to.
    pub(crate) to: &'a str,
    /// Packets.
    pub(crate) packets: u64,
    /// From the first packet to the last.
    pub(crate) over: SignedDuration,
    /// The last packet.
    pub(crate) last: Timestamp,
    /// What stopped them, where these are several destinations.
    pub(crate) by: Option<&'a str>,
}

/// `sudo observer check datadog apt  (all that it needs, in one answer)`; `None` where nothing is known of the sender.
pub(crate) fn next(profiles: &[String]) -> Option<String> {
    let command = as_root(&format!("observer check {}", profiles.join(" ")));
    (!profiles.is_empty())
        .then(|| format!("{STRONG}{}{STRONG:#}  finds everything else that it needs", escape(&command)))
}

/// A connection that hung when observer started.
pub(crate) fn hanging(writer: &mut impl Write, attempt: &Attempt) -> io::Result<()> {
    writeln!(writer, "{ALERT}HANGING NOW{ALERT:#}  {}", hangs(attempt))?;
    line(writer, "by", &escape(attempt.finding.as_deref().unwrap_or_default()))?;
    match next(&attempt.profiles) {
        Some(words) => line(writer, "next", &words),
        None => Ok(()),
    }
}

/// That there are more of them.
pub(crate) fn more_hang(writer: &mut impl Write, more: usize) -> io::Result<()> {
    writeln!(writer, "  {more} more hang (-o json shows all)")
}

/// `most from  curl ×5, others ×2`
pub(crate) fn most(writer: &mut impl Write, label: &str, (most, rest): (Vec<(&str, u64)>, u64)) -> io::Result<()> {
    let mut parts: Vec<String> = most.into_iter().map(|(name, count)| format!("{} ×{count}", escape(name))).collect();
    if rest > 0 {
        parts.push(format!("others ×{rest}"));
    }
    writeln!(writer, "{DIM}{label:<10}{DIM:#} {}", parts.join(", "))
}

/// Background that was not shown, by its kind.
pub(crate) fn folded<'a>(
    writer: &mut impl Write,
    kinds: impl Iterator<Item = (&'a Background, &'a u64)> + Clone,
) -> io::Result<()> {
    let total: u64 = kinds.clone().map(|(_, count)| count).sum();
    let kinds: Vec<String> = kinds.map(|(kind, count)| format!("{} {count}", kind.label())).collect();
    writeln!(writer, "{DIM}folded (--all shows): {}: {}{DIM:#}", packets(total), kinds.join(", "))
}

/// The closing lines: packets that full queues lost, and the account.
pub(crate) fn account(writer: &mut impl Write, coverage: &Coverage, stories: u64, dropped: u64) -> io::Result<()> {
    if dropped > 0 {
        writeln!(writer, "{DIM}not blocked: full queues lost {}{DIM:#}", packets(dropped))?;
    }
    let account = &coverage.account;
    let lost = account.lost.total();
    let at_least = if account.missed_max > 0 { "at least " } else { "" };
    let incidents = match stories {
        1 => "1 incident".to_owned(),
        total => format!("{total} incidents"),
    };
    write!(writer, "{at_least}{} blocked, {incidents}", packets(account.reported.saturating_sub(dropped)))?;
    if account.filtered > 0 {
        write!(writer, " · {} more filtered out", account.filtered)?;
    }
    if lost > 0 {
        write!(writer, " · {ALERT}{lost} lost{ALERT:#}")?;
    } else {
        write!(writer, " · lost 0")?;
    }
    if account.missed_max > 0 {
        write!(writer, " · up to {} not seen", account.missed_max)?;
    }
    writeln!(writer)?;
    for degraded in &account.degraded {
        writeln!(
            writer,
            "{DIM}degraded: {}: {} → {}{DIM:#}",
            degraded.what,
            escape(&degraded.why),
            degraded.consequence
        )?;
    }
    Ok(())
}

/// While a command runs: something that it was denied.
pub(crate) fn run_blocked(writer: &mut impl Write, who: &str, to: &str, by: &str) -> io::Result<()> {
    writeln!(writer, "observer: {ALERT}BLOCKED{ALERT:#} {} → {to}: {}", escape(who), escape(by))
}

/// That there is more of it than is reported now.
pub(crate) fn run_more(writer: &mut impl Write) -> io::Result<()> {
    writeln!(writer, "observer: {ALERT}BLOCKED{ALERT:#} and more; the verdict lists all")
}

/// What would let it through.
pub(crate) fn run_fix(writer: &mut impl Write, fix: &Fix) -> io::Result<()> {
    let how = if fix.verified { "tested" } else { "untested" };
    let commands: Vec<String> = fix.commands.iter().map(|line| as_root(line)).collect();
    writeln!(writer, "observer: fix ({how}): {}", escape(&commands.join("; ")))
}

/// That it works again.
pub(crate) fn run_restored(writer: &mut impl Write, attempt: &Attempt, restored: &Restored) -> io::Result<()> {
    let how = restored.sentence();
    writeln!(writer, "observer: {GOOD}WORKS{GOOD:#} {}: {}", who_and_where(attempt), escape(&how))
}

fn line(writer: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(writer, "  {DIM}{label:<5}{DIM:#} {text}")
}

fn who_and_where(attempt: &Attempt) -> String {
    format!("{} → {}", escape(&attempt.sender.words()), attempt.to())
}

/// `curl[2211] → 203.0.113.10:443/tcp since 41s, gives up in 1m33s`
fn hangs(attempt: &Attempt) -> String {
    let waits = attempt.wait.map(|wait| {
        let since = span(Duration::from_millis(wait.waited_ms));
        let end = wait
            .gives_up_ms
            .map(|left| format!(", gives up in {}", span(Duration::from_millis(left))))
            .unwrap_or_default();
        format!(" since {since}{end}")
    });
    let scope = elsewhere(attempt).map(|words| format!(" {}", escape(&words))).unwrap_or_default();
    let who = attempt.sender.words();
    format!("{}{scope} → {}{}", escape(&who), attempt.to(), waits.unwrap_or_default())
}

/// Command lines can be whole scripts.
fn shorten(text: &str) -> String {
    if text.chars().count() <= MAX_COMMAND {
        return text.to_owned();
    }
    text.chars().take(MAX_COMMAND).chain(['…']).collect()
}

fn packets(count: u64) -> String {
    if count == 1 { "1 packet".to_owned() } else { format!("{count} packets") }
}

/// How a rule is known, where that is more than seeing it.
fn known(attempt: &Attempt) -> &'static str {
    match attempt.rule.as_ref().map(|rule| (rule.source, rule.confirmed_by)) {
        Some((RuleSource::Replay, _)) => "  (from a copy of the ruleset)",
        Some((RuleSource::Probe, Some(Confirmation::Replay))) => "  (confirmed by replay)",
        Some((RuleSource::Probe, Some(Confirmation::Verdict))) => "  (seen in two ways)",
        _ => "",
    }
}

fn who_at_length(sender: &Sender) -> String {
    let parents: String = sender
        .ancestry
        .iter()
        .skip(1)
        .filter(|parent| parent.pid != 1)
        .take(MAX_PARENTS)
        .map(|parent| format!(" ← {}", escape(&parent.name)))
        .collect();
    let user = sender.user.as_ref().filter(|_| sender.process.is_some()).map(|user| {
        let effective = user.effective.as_ref().map(|(id, name)| format!(", running as {}", user_name(*id, name)));
        format!("  ({}{})", user_name(user.id, &user.name), effective.unwrap_or_default())
    });
    format!("{STRONG}{}{STRONG:#}{parents}{}", escape(&sender.words()), user.unwrap_or_default())
}

fn user_name(id: u32, name: &Option<String>) -> String {
    name.as_ref().map_or_else(|| format!("uid {id}"), |name| escape(name).into_owned())
}

fn way(attempt: &Attempt) -> String {
    attempt.interface.as_ref().map(|interface| format!(" via {}", escape(interface))).unwrap_or_default()
}

fn place(attempt: &Attempt) -> String {
    let sender = &attempt.sender;
    let mut parts = Vec::new();
    if let Some(relay) = &sender.relay {
        parts.push(format!("{} carries it for a rootless container", escape(relay)));
    }
    if attempt.encapsulated {
        parts.push("in a tunnel: the destination is its other end".to_owned());
    }
    if let Some(origin) = attempt.origin_netns {
        parts.push(format!("forwarded for namespace net:[{origin}]"));
    }
    if let Some(container) = &sender.container {
        let short: String = container.id.chars().take(12).collect();
        let pod = sender.pod.as_ref().map(|pod| format!("pod {}/{} ", escape(&pod.namespace), escape(&pod.name)));
        let name = container.name.as_deref().map(|name| format!("{} ", escape(name))).unwrap_or_default();
        parts.push(format!("{}container {name}{short}", pod.unwrap_or_default()));
    }
    if let Some(unit) = &sender.unit {
        parts.push(escape(unit).into_owned());
    } else if let Some(cgroup) = sender.cgroup.as_ref().filter(|cgroup| *cgroup != "/") {
        parts.push(format!("cgroup {}", escape(cgroup)));
    }
    parts.join(" · ")
}

/// What a sender is counted under.
pub(crate) fn name(sender: &Sender) -> String {
    sender.process.as_ref().map_or_else(|| sender.words(), |process| process.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ancestor, Container};

    fn written(attempt: &Attempt) -> String {
        let mut text = Vec::new();
        let styled = &mut anstream::StripStream::new(&mut text);
        Text::new(TimeZone::UTC).block(styled, attempt, false).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_block_says_who_where_to_and_by_what() {
        let mut attempt = Attempt::example();
        attempt.sender.ancestry.push(Ancestor { pid: 5, name: "sh\n".to_owned() });
        attempt.nothing_left = true;
        assert_eq!(
            written(&attempt),
            "00:00:00 BLOCKED  curl[7] ← sh\\n  (uid 0)\n  to    203.0.113.10:443/tcp\n  by    a rule dropped it\n  note  \
             nothing left this host; the network and the server were not reached\n"
        );
    }

    #[test]
    fn another_namespace_is_said_in_the_first_line() {
        let mut attempt = Attempt { is_elsewhere: true, netns: Some(77), ..Attempt::example() };
        assert!(written(&attempt).lines().next().unwrap().ends_with("in network namespace 77"));
        attempt.entering = Some("ip netns exec blue".to_owned());
        assert!(written(&attempt).lines().next().unwrap().ends_with("in network namespace blue"));
        let id = "a".repeat(64);
        attempt.sender.container = Some(Container { id, runtime: None, name: Some("web".to_owned()) });
        let text = written(&attempt);
        assert!(text.lines().next().unwrap().ends_with("in container web"), "{text}");
        assert!(text.ends_with("  in    container web aaaaaaaaaaaa\n"), "{text}");
    }

    #[test]
    fn repeats_say_count_and_destination_at_any_width() {
        let at = Timestamp::UNIX_EPOCH;
        let again = Again {
            at: at + SignedDuration::from_secs(60),
            who: "curl[2211]",
            others: (2, false),
            to: "203.0.113.10:443/tcp",
            packets: 5,
            over: SignedDuration::from_secs(31),
            last: at + SignedDuration::from_secs(59),
            by: None,
        };
        let rows =
            [None, Some(80), Some(60), Some(46), Some(20)].map(|width| Text::new(TimeZone::UTC).again(&again, width));
        let whole = "00:01:00 again    curl[2211] and 2 more → 203.0.113.10:443/tcp  ×5 over 31s, last 00:00:59";
        assert_eq!(
            rows.each_ref().map(String::as_str),
            [
                whole,
                "00:01:00 again  curl → 203.0.113.10:443/tcp  ×5 over 31s",
                "00:01:00 again  curl → 203.0.113.10:443/tcp  ×5 over 31s",
                "again  ×5  → 203.0.113.10:443/tcp",
                "again  ×5  → 203.0.113.10:443/tcp",
            ]
        );
    }

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(shorten("ls"), "ls");
        assert_eq!(shorten(&"x".repeat(MAX_COMMAND + 1)).chars().count(), MAX_COMMAND + 1);
        assert!(shorten(&"x".repeat(MAX_COMMAND + 1)).ends_with('…'));
    }
}

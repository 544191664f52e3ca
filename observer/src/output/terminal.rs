//! Events for a person: one block an incident, repeats in short, background folded into the closing lines.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::{Duration, Instant},
};

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};

use super::{
    Output,
    escape::escape,
    fix::{about, as_root},
    live::{Live, MAX_ROWS},
};
use crate::{
    incident::{Fold, Repeats, Told, Top, who},
    model::{Action, Background, Change, Confirmation, Difference, Event, RuleSource, Summary, span},
};

const ALERT: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const STRONG: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Parents shown in the first line of a block.
const MAX_PARENTS: usize = 6;

/// What is told in place is told at most this often.
const REDRAW: Duration = Duration::from_millis(200);

/// Senders and destinations that are named at the end.
const MOST: usize = 3;

/// Changes of rules by the same program within this time are told as one.
const BURST: Duration = Duration::from_secs(1);

/// Hanging connections that are shown.
const MAX_HANGING: usize = 20;

/// Characters of a command line shown; JSON has all of it.
const MAX_COMMAND: usize = 160;

/// Writes to `W`, which strips styles where there is no terminal.
pub struct Terminal<W> {
    writer: W,
    zone: TimeZone,
    fold: Fold,
    show_background: bool,
    background: BTreeMap<Background, u64>,
    /// Packets that full queues lost.
    dropped: u64,
    /// Repeats are told in place, and the time when that was last done.
    live: Option<Live>,
    drawn: Option<Instant>,
    /// Packets that were blocked, by who sent them and where to.
    senders: Top,
    destinations: Top,
    /// Connections that hang and were shown, and those that were not.
    hanging: (usize, usize),
    /// Parent of who changed rules last, and when that was.
    changed: Option<(Option<u32>, Instant)>,
}

impl<W: Write + Send> Terminal<W> {
    /// `show_background` shows what nobody waits for like everything else; with `live` repeats are told in place.
    pub fn new(writer: W, zone: TimeZone, show_background: bool, live: Option<Live>) -> Self {
        Self {
            live,
            drawn: None,
            senders: Top::default(),
            destinations: Top::default(),
            writer,
            zone,
            fold: Fold::default(),
            show_background,
            background: BTreeMap::new(),
            dropped: 0,
            hanging: (0, 0),
            changed: None,
        }
    }

    fn time(&self, timestamp: Timestamp) -> String {
        timestamp.to_zoned(self.zone.clone()).strftime("%H:%M:%S").to_string()
    }

    fn block(&mut self, event: &Event) -> io::Result<()> {
        self.make_room()?;
        let time = self.time(event.timestamp);
        let kind = event.egress.background.map(|kind| format!("  {DIM}({}){DIM:#}", kind.label())).unwrap_or_default();
        let word = if event.event.action == Action::EgressDropped { "LOST   " } else { "BLOCKED" };
        writeln!(self.writer, "{time} {ALERT}{word}{ALERT:#}  {}{kind}", who_at_length(event))?;
        self.line("to", &format!("{STRONG}{}{STRONG:#}{}", destination(event), way(event)))?;
        if let Some(reason) = &event.event.reason {
            self.line("by", &format!("{}{DIM}{}{DIM:#}", escape(reason), known(event)))?;
        }
        if let Some(replay) = event.egress.rule.as_ref().and_then(|rule| rule.replay.as_ref()) {
            self.line("note", &escape(replay))?;
        }
        if event.egress.nothing_left == Some(true) {
            self.line("note", "no packet of this connection has left this host: network and server were not reached")?;
        }
        if let Some(command) = event.process.as_ref().and_then(|process| process.command_line.as_ref()) {
            self.line("ran", &escape(&shorten(command)))?;
        }
        let place = place(event);
        if !place.is_empty() {
            self.line("in", &place)?;
        }
        Ok(())
    }

    /// Takes away what is told in place; it is drawn again below what is written now.
    fn make_room(&mut self) -> io::Result<()> {
        if let Some(live) = &mut self.live {
            live.erase(&mut self.writer)?;
            self.drawn = None;
        }
        Ok(())
    }

    /// `15:30:07 RULE     curl[2211] → 203.0.113.10:443/tcp: nft rule …`
    fn rule(&mut self, event: &Event) -> io::Result<()> {
        if event.egress.background.is_some() && !self.show_background {
            return Ok(());
        }
        self.make_room()?;
        let (time, reason) = (self.time(event.timestamp), event.event.reason.as_deref().unwrap_or_default());
        let (who, to) = (who(event), destination(event));
        writeln!(self.writer, "{time} {STRONG}RULE{STRONG:#}     {} → {to}: {}", escape(&who), escape(reason))
    }

    /// `15:30:20 WORKS    curl[2300] → 203.0.113.10:443/tcp: a connection was established 12s after …`
    fn restored(&mut self, event: &Event) -> io::Result<()> {
        self.make_room()?;
        let (time, reason) = (self.time(event.timestamp), event.event.reason.as_deref().unwrap_or_default());
        let (who, to) = (who(event), destination(event));
        writeln!(self.writer, "{time} {GOOD}WORKS{GOOD:#}    {} → {to}: {}", escape(&who), escape(reason))
    }

    /// `15:30:08 FIX      curl[2211] → 203.0.113.10:443/tcp`, the commands, and what is known of them.
    fn fix(&mut self, event: &Event) -> io::Result<()> {
        let Some(fix) = &event.egress.fix else { return Ok(()) };
        self.make_room()?;
        let (time, who, to) = (self.time(event.timestamp), who(event), destination(event));
        writeln!(self.writer, "{time} {GOOD}FIX{GOOD:#}      {} → {to}", escape(&who))?;
        for line in &fix.commands {
            self.line("run", &format!("{STRONG}{}{STRONG:#}", escape(&as_root(line))))?;
        }
        for line in &fix.undo {
            self.line("undo", &escape(&as_root(line)))?;
        }
        self.line("note", &escape(&about(fix)))
    }

    fn hangs(&mut self, event: &Event) -> io::Result<()> {
        if self.hanging.0 >= MAX_HANGING {
            self.hanging.1 += 1;
            return Ok(());
        }
        self.hanging.0 += 1;
        writeln!(self.writer, "{ALERT}HANGING NOW{ALERT:#}  {}", hangs(event))
    }

    fn line(&mut self, label: &str, text: &str) -> io::Result<()> {
        writeln!(self.writer, "  {DIM}{label:<5}{DIM:#} {text}")
    }

    fn repeats(&mut self, all: bool) -> io::Result<()> {
        for repeats in self.fold.due(Instant::now(), all) {
            let row = self.row(&repeats);
            writeln!(self.writer, "{row}")?;
        }
        Ok(())
    }

    /// `15:30:11 again    curl[2211] → 203.0.113.10:443/tcp  ×5`
    fn row(&self, repeats: &Repeats) -> String {
        let time = self.time(repeats.last);
        let others = if repeats.others > 0 { format!(" and {} more", repeats.others) } else { String::new() };
        format!("{time} again    {}{others} → {}  ×{}", escape(&repeats.who), repeats.to, repeats.count)
    }

    /// Repeats in place, when something changed and the last time was long enough ago.
    fn redraw(&mut self) -> io::Result<()> {
        let changed = self.drawn.is_none() || self.fold.waiting();
        if !changed || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return Ok(());
        }
        let rows: Vec<String> = self.fold.standing(MAX_ROWS).iter().map(|repeats| self.row(repeats)).collect();
        if let Some(live) = &mut self.live {
            live.draw(&mut self.writer, &rows)?;
            self.drawn = Some(Instant::now());
        }
        Ok(())
    }

    /// What there was most of, where that is not said by the only block above.
    fn most(&mut self) -> io::Result<()> {
        for (label, top) in [("most from", &self.senders), ("most to", &self.destinations)] {
            if top.names() > 1 {
                let (most, rest) = top.most(MOST);
                let mut parts: Vec<String> =
                    most.into_iter().map(|(name, count)| format!("{} ×{count}", escape(name))).collect();
                if rest > 0 {
                    parts.push(format!("others ×{rest}"));
                }
                writeln!(self.writer, "{DIM}{label:<10}{DIM:#} {}", parts.join(", "))?;
            }
        }
        Ok(())
    }
}

impl<W: Write + Send> Output for Terminal<W> {
    fn event(&mut self, event: &Event) -> io::Result<bool> {
        if event.event.action == Action::EgressHanging {
            self.hangs(event)?;
            return Ok(true);
        }
        if event.event.action == Action::EgressRule {
            return self.rule(event).map(|()| false);
        }
        if event.event.action == Action::EgressFix {
            return self.fix(event).map(|()| false);
        }
        if event.event.action == Action::EgressRestored {
            return self.restored(event).map(|()| false);
        }
        if event.event.action == Action::EgressDropped {
            self.dropped += event.egress.count;
            if !self.show_background {
                return Ok(false);
            }
        }
        if let Some(kind) = event.egress.background
            && !self.show_background
        {
            *self.background.entry(kind).or_default() += event.egress.count;
            return Ok(false);
        }
        let name = event.process.as_ref().map_or_else(|| who(event), |process| process.name.clone());
        self.senders.add(&name, event.egress.count);
        self.destinations.add(&destination(event), event.egress.count);
        if self.fold.take(event, Instant::now(), || destination(event)) == Told::New {
            self.block(event)?;
        }
        Ok(true)
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        // A program that makes many changes, or has others make them as ufw does, is told once, and then what came of them.
        let by = change.egress.ancestry.get(1).map(|parent| parent.pid);
        let again = self.changed.as_ref().is_some_and(|(before, when)| *before == by && when.elapsed() < BURST);
        self.changed = Some((by, Instant::now()));
        let is_news = change.egress.ruleset.difference.as_ref().is_some_and(Difference::is_any);
        if again && !is_news {
            return Ok(());
        }
        self.make_room()?;
        let time = self.time(change.timestamp);
        // Whoever ran the program that did it says more than that.
        let line: Vec<String> = match change.egress.ancestry.as_slice() {
            [] => change.egress.ruleset.changed_by.iter().map(|doer| format!("pid {}", doer.pid)).collect(),
            [first, parents @ ..] => std::iter::once(format!("{}[{}]", first.name, first.pid))
                .chain(parents.iter().take(MAX_PARENTS).map(|parent| parent.name.clone()))
                .collect(),
        };
        let (by, what) = (line.join(" ← "), change.egress.ruleset.what());
        writeln!(
            self.writer,
            "{time} {STRONG}CHANGED{STRONG:#}  firewall rules, by {}{}",
            escape(if by.is_empty() { "somebody" } else { &by }),
            escape(&what)
        )
    }

    fn idle(&mut self) -> io::Result<bool> {
        let more = std::mem::take(&mut self.hanging.1);
        if more > 0 {
            writeln!(self.writer, "  and {more} more hang (-o json shows all)")?;
        }
        if self.live.is_some() {
            self.redraw()?;
        } else {
            self.repeats(false)?;
        }
        self.writer.flush()?;
        Ok(self.fold.waiting())
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        // What was told in place becomes lines that stay.
        if self.live.is_some() {
            self.make_room()?;
            for repeats in self.fold.standing(usize::MAX).into_iter().rev() {
                let row = self.row(&repeats);
                writeln!(self.writer, "{row}")?;
            }
        }
        self.repeats(true)?;
        self.most()?;
        if !self.background.is_empty() {
            let total: u64 = self.background.values().sum();
            let kinds: Vec<String> =
                self.background.iter().map(|(kind, count)| format!("{} {count}", kind.label())).collect();
            writeln!(self.writer, "{DIM}folded (--all shows): {}: {}{DIM:#}", packets(total), kinds.join(", "))?;
        }
        if self.dropped > 0 {
            writeln!(self.writer, "{DIM}not blocked: full queues lost {}{DIM:#}", packets(self.dropped))?;
        }
        let account = &summary.egress;
        let lost = account.lost.total();
        let at_least = if account.missed_max > 0 { "at least " } else { "" };
        let incidents = match self.fold.total {
            1 => "1 incident".to_owned(),
            total => format!("{total} incidents"),
        };
        write!(
            self.writer,
            "{at_least}{} blocked, {incidents}",
            packets(account.reported.saturating_sub(self.dropped))
        )?;
        if account.filtered > 0 {
            write!(self.writer, " · {} more filtered out", account.filtered)?;
        }
        if lost > 0 {
            write!(self.writer, " · {ALERT}{lost} lost{ALERT:#}")?;
        } else {
            write!(self.writer, " · lost 0")?;
        }
        if account.missed_max > 0 {
            write!(self.writer, " · up to {} runs skipped by the kernel", account.missed_max)?;
        }
        writeln!(self.writer)?;
        for degraded in &account.degraded {
            writeln!(
                self.writer,
                "{DIM}degraded: {}: {} → {}{DIM:#}",
                degraded.what,
                escape(&degraded.why),
                degraded.consequence
            )?;
        }
        self.writer.flush()
    }
}

/// `curl[2211] → 203.0.113.10:443/tcp since 41s, gives up in 1m33s at the latest: …`
pub(super) fn hangs(event: &Event) -> String {
    let waits = event.egress.outcome.map(|outcome| {
        let since = span(Duration::from_millis(outcome.waited_ms));
        let end = outcome
            .gives_up_ms
            .map(|left| format!(", gives up in {} at the latest", span(Duration::from_millis(left))))
            .unwrap_or_default();
        format!(" since {since}{end}")
    });
    let reason = event.event.reason.as_deref().unwrap_or_default();
    format!("{} → {}{}: {reason}", escape(&who(event)), destination(event), waits.unwrap_or_default())
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
fn known(event: &Event) -> &'static str {
    match event.egress.rule.as_ref().map(|rule| (rule.source, rule.confirmed_by)) {
        Some((RuleSource::Replay, _)) => "  (by replay: so it is in a copy of the rules)",
        Some((RuleSource::Probe, Some(Confirmation::Replay))) => "  (confirmed by replay)",
        Some((RuleSource::Probe, Some(Confirmation::Verdict))) => "  (seen in two ways)",
        _ => "",
    }
}

fn who_at_length(event: &Event) -> String {
    let parents: String = event
        .egress
        .ancestry
        .iter()
        .skip(1)
        .filter(|parent| parent.pid != 1)
        .take(MAX_PARENTS)
        .map(|parent| format!(" ← {}", escape(&parent.name)))
        .collect();
    let user = event.user.as_ref().filter(|_| event.process.is_some()).map(|user| {
        let effective =
            user.effective.as_ref().map(|user| format!(", running as {}", user_name(user))).unwrap_or_default();
        format!("  ({}{effective})", user_name(user))
    });
    format!("{STRONG}{}{STRONG:#}{parents}{}", escape(&who(event)), user.unwrap_or_default())
}

fn user_name(user: &crate::model::User) -> String {
    user.name.as_ref().map_or_else(|| format!("uid {}", user.id), |name| escape(name).into_owned())
}

/// `203.0.113.10:443/tcp`, `[2001:db8::1]:53/udp`, `10.0.0.1 icmp`.
pub(super) fn destination(event: &Event) -> String {
    let transport = event.network.transport.as_deref();
    match (&event.destination, transport) {
        (Some(destination), Some(transport)) => match destination.port {
            Some(port) => format!("{}/{transport}", std::net::SocketAddr::new(destination.ip, port)),
            None if transport.starts_with(|first: char| first.is_ascii_digit()) => {
                format!("{} protocol {transport}", destination.ip)
            }
            None => format!("{} {transport}", destination.ip),
        },
        (Some(destination), None) => destination.ip.to_string(),
        (None, _) => event.network.r#type.map_or_else(|| "an unknown destination".to_owned(), str::to_owned),
    }
}

fn way(event: &Event) -> String {
    event.egress.interface.as_ref().map(|interface| format!(" via {}", escape(interface))).unwrap_or_default()
}

fn place(event: &Event) -> String {
    let mut parts = Vec::new();
    if let Some(relay) = &event.egress.relay {
        parts.push(format!("{} carries it for a rootless container", escape(relay)));
    }
    if event.egress.encapsulated.is_some() {
        parts.push("in a tunnel: the destination is its other end".to_owned());
    }
    if let Some(origin) = event.egress.origin_netns {
        parts.push(format!("forwarded for namespace net:[{origin}]"));
    }
    if let Some(container) = &event.container {
        let short: String = container.id.chars().take(12).collect();
        let pod = event.orchestrator.as_ref().map(|orchestrator| {
            format!("pod {}/{} ", escape(&orchestrator.namespace), escape(&orchestrator.resource.name))
        });
        let name = container.name.as_deref().map(|name| format!("{} ", escape(name))).unwrap_or_default();
        parts.push(format!("{}container {name}{short}", pod.unwrap_or_default()));
    }
    if let Some(unit) = &event.egress.unit {
        parts.push(escape(unit).into_owned());
    } else if let Some(cgroup) = event.egress.cgroup.as_ref().filter(|cgroup| *cgroup != "/") {
        parts.push(format!("cgroup {}", escape(cgroup)));
    }
    parts.join(" · ")
}

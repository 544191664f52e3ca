//! What a command was denied: each block at once while it hangs, and a verdict at its end.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anstyle::{AnsiColor, Style};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    Output,
    escape::escape,
    json::JsonLines,
    terminal::{destination, span},
};
use crate::{
    incident::who,
    model::{Action, Event, Finished, Summary},
};

const ALERT: Style = AnsiColor::Red.on_default().bold();
const STRONG: Style = Style::new().bold();

/// Lines of each list that are shown; the events file has all.
const MAX_STORIES: usize = 20;

/// What the verdict and whoever runs the command tell each other.
#[derive(Debug, Default)]
pub struct Findings {
    /// The command or something that it started was denied something.
    pub blocked: AtomicBool,
    /// Told at the first block.
    pub first: Notify,
    /// How the command ended.
    pub ended: OnceLock<Finished>,
}

/// One cause, and how often.
struct Story {
    who: String,
    to: String,
    by: String,
    packets: u64,
}

#[derive(Default)]
struct Stories {
    list: Vec<Story>,
    by_incident: HashMap<Uuid, usize>,
}

impl Stories {
    /// True for the first of an incident.
    fn take(&mut self, event: &Event) -> bool {
        if let Some(story) = self.by_incident.get(&event.egress.incident) {
            self.list[*story].packets += event.egress.count;
            return false;
        }
        self.by_incident.insert(event.egress.incident, self.list.len());
        self.list.push(Story {
            who: escape(&who(event)).into_owned(),
            to: destination(event),
            by: event.event.reason.as_deref().map(|reason| escape(reason).into_owned()).unwrap_or_default(),
            packets: event.egress.count,
        });
        true
    }
}

/// Writes to `W`, which strips styles where there is no terminal, and every event to a file if one is given.
pub struct Verdict<W> {
    writer: W,
    events: Option<JsonLines<BufWriter<File>>>,
    /// Process id of the command.
    command: u32,
    findings: Arc<Findings>,
    inside: Stories,
    outside: Stories,
    background: u64,
}

impl<W: Write + Send> Verdict<W> {
    /// For the command with this process id.
    pub fn new(writer: W, events: Option<BufWriter<File>>, command: u32, findings: Arc<Findings>) -> Self {
        Self {
            writer,
            events: events.map(JsonLines::new),
            command,
            findings,
            inside: Stories::default(),
            outside: Stories::default(),
            background: 0,
        }
    }

    fn list(&mut self, title: &str, stories: &Stories) -> io::Result<()> {
        for story in stories.list.iter().take(MAX_STORIES) {
            writeln!(self.writer, "  {title:<10} {} → {} ×{}  {}", story.who, story.to, story.packets, story.by)?;
        }
        let more = stories.list.len().saturating_sub(MAX_STORIES);
        if more > 0 {
            writeln!(self.writer, "  {title:<10} and {more} more")?;
        }
        Ok(())
    }
}

impl<W: Write + Send> Output for Verdict<W> {
    fn event(&mut self, event: &Event) -> io::Result<bool> {
        if let Some(events) = &mut self.events {
            events.event(event)?;
        }
        if event.event.action != Action::EgressBlocked || event.egress.background.is_some() {
            self.background += event.egress.count;
            return Ok(false);
        }
        if !event.egress.ancestry.iter().any(|ancestor| ancestor.pid == self.command) {
            self.outside.take(event);
            return Ok(true);
        }
        if self.inside.take(event)
            && let Some(story) = self.inside.list.last()
        {
            writeln!(self.writer, "observer: {ALERT}BLOCKED{ALERT:#} {} → {}: {}", story.who, story.to, story.by)?;
            self.writer.flush()?;
        }
        self.findings.blocked.store(true, Ordering::Release);
        self.findings.first.notify_one();
        Ok(true)
    }

    fn idle(&mut self) -> io::Result<bool> {
        if let Some(events) = &mut self.events {
            events.idle()?;
        }
        self.writer.flush()?;
        Ok(false)
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        if let Some(events) = &mut self.events {
            events.finish(summary)?;
        }
        let account = &summary.egress;
        let whole = account.lost.total() == 0 && account.missed_max == 0 && account.degraded.is_empty();
        let (inside, outside) = (std::mem::take(&mut self.inside), std::mem::take(&mut self.outside));
        let sentence = match (inside.list.is_empty(), outside.list.is_empty(), whole) {
            (false, ..) => format!("{ALERT}blocked on this host{ALERT:#}"),
            (true, false, _) => {
                "nothing that the command sent was blocked, but something else was at the same time".into()
            }
            (true, true, true) => "nothing was blocked".to_owned(),
            (true, true, false) => "no block was seen, but not everything could be".to_owned(),
        };
        let ended = self.findings.ended.get().map(|ended| format!(". The command {ended} after {}", span(ended.after)));
        writeln!(
            self.writer,
            "observer: {STRONG}VERDICT{STRONG:#} {sentence}{}",
            ended.unwrap_or_else(|| ". The command had not ended".to_owned())
        )?;
        self.list("blocked", &inside)?;
        if !outside.list.is_empty() {
            writeln!(self.writer, "  not its children, same time:")?;
            self.list("blocked", &outside)?;
        }
        let mut parts = Vec::new();
        if self.background > 0 {
            parts.push(format!("background {}", self.background));
        }
        parts.push(format!("lost {}", account.lost.total()));
        if account.missed_max > 0 {
            parts.push(format!("up to {} runs skipped by the kernel", account.missed_max));
        }
        if account.degraded.is_empty() {
            parts.push("all probes attached".to_owned());
        }
        writeln!(self.writer, "  {}", parts.join(" · "))?;
        for degraded in &account.degraded {
            writeln!(
                self.writer,
                "  degraded: {}: {} → {}",
                degraded.what,
                escape(&degraded.why),
                degraded.consequence
            )?;
        }
        self.writer.flush()
    }
}

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
    conclusion::{self, Conclusion, Story},
    escape::escape,
    fix::as_root,
    json::JsonLines,
    terminal::destination,
};
use crate::{
    incident::who,
    model::{Action, Change, Event, Finished, Fix, OwnerKnown, Summary},
};

const ALERT: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();

/// What the verdict and whoever runs the command tell each other.
#[derive(Debug, Default)]
pub struct Findings {
    /// The command or something that it started was denied something.
    pub blocked: AtomicBool,
    /// Told at the first block.
    pub first: Notify,
    /// How the command ended.
    pub ended: OnceLock<Finished>,
    /// News of what was blocked may still come.
    pub waits: AtomicBool,
}

/// Stories that are announced while the command runs.
const MAX_ANNOUNCED: usize = 20;
/// Stories among which one is looked for that is the same under another incident.
const RECENT: usize = 64;
/// Stories that are told one by one.
const MAX_STORIES: usize = 10_000;

#[derive(Default)]
struct Stories {
    list: Vec<Story>,
    by_incident: HashMap<Uuid, usize>,
}

impl Stories {
    /// True for the first of an incident.
    fn take(&mut self, event: &Event) -> bool {
        if let Some(story) = self.by_incident.get(&event.egress.incident) {
            let story = &mut self.list[*story];
            story.packets += event.egress.count;
            story.last = event.event.end;
            story.blocked_again(event);
            return false;
        }
        // Its rule was told late: what came before is of another incident, and the same story.
        let by = event.event.reason.as_deref().unwrap_or_default();
        let (who_it_is, to) = (who(event), destination(event));
        let same = |story: &Story| story.by == by && story.who == who_it_is && story.to == to;
        if let Some(place) = self.list.iter().rev().take(RECENT).position(same) {
            let place = self.list.len() - 1 - place;
            self.by_incident.insert(event.egress.incident, place);
            self.list[place].packets += event.egress.count;
            self.list[place].last = event.event.end;
            self.list[place].blocked_again(event);
            return false;
        }
        if self.list.len() >= MAX_STORIES {
            self.take_with_others(event);
            return false;
        }
        self.by_incident.insert(event.egress.incident, self.list.len());
        self.list.push(Story {
            who: who_it_is,
            to,
            by: by.to_owned(),
            packets: event.egress.count,
            first: event.event.start,
            last: event.event.end,
            incident: event.egress.incident,
            fix: None,
            restored: None,
            restored_at: None,
        });
        true
    }

    /// The rule of a story that was told already.
    fn name(&mut self, event: &Event) {
        let place = self.by_incident.get(&event.egress.incident).filter(|_| !event.egress.incident.is_nil());
        if let (Some(story), Some(reason)) = (place.and_then(|place| self.list.get_mut(*place)), &event.event.reason) {
            story.by.clone_from(reason);
        }
    }

    /// A story's destination works again; false where it is not told here.
    fn restored(&mut self, event: &Event) -> bool {
        let place = self.by_incident.get(&event.egress.incident).filter(|_| !event.egress.incident.is_nil());
        let story = place.and_then(|place| self.list.get_mut(*place));
        let reason = event.event.reason.as_deref().unwrap_or_default();
        let told = story.map(|story| {
            story.restored = Some(format!("{}: {reason}", who(event)));
            story.restored_at = Some(event.timestamp);
        });
        told.is_some()
    }

    /// What would let a story's packets through; false where it is not told here.
    fn fix(&mut self, event: &Event, fix: &Fix) -> bool {
        let place = self.by_incident.get(&event.egress.incident).filter(|_| !event.egress.incident.is_nil());
        let story = place.and_then(|place| self.list.get_mut(*place));
        story.map(|story| story.fix = Some(fix.clone())).is_some()
    }

    /// One story for all that is too much to be told one by one.
    fn take_with_others(&mut self, event: &Event) {
        let place = *self.by_incident.entry(Uuid::nil()).or_insert_with(|| {
            self.list.push(Story {
                who: "others".to_owned(),
                to: "other destinations".to_owned(),
                by: format!("more than {MAX_STORIES} different ones"),
                packets: 0,
                first: event.event.start,
                last: event.event.end,
                incident: Uuid::nil(),
                fix: None,
                restored: None,
                restored_at: None,
            });
            self.list.len() - 1
        });
        self.list[place].packets += event.egress.count;
        self.list[place].last = event.event.end;
    }
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For a ticket.
    Markdown,
    /// For a program.
    Json,
}

/// What the verdict is about, and where else it goes.
pub struct Subject {
    /// Process id of the command.
    pub pid: u32,
    /// Its words, secrets masked.
    pub command: Vec<String>,
    /// Only one network namespace is watched.
    pub only_netns: bool,
    /// Where every event goes.
    pub events: Option<BufWriter<File>>,
    /// Where the conclusion goes.
    pub report: Option<(Form, BufWriter<File>)>,
}

/// Writes to `W`, which strips styles where there is no terminal. Nothing that cannot be written ends it: the command goes
/// on.
pub struct Verdict<W> {
    writer: W,
    subject: Subject,
    events: Option<JsonLines<BufWriter<File>>>,
    /// Why the events' file is not complete.
    failed: Option<io::Error>,
    findings: Arc<Findings>,
    inside: Stories,
    /// Of senders that are not known.
    unknown: Stories,
    outside: Stories,
    own_background: u64,
    background: u64,
    queues: u64,
}

impl<W: Write + Send> Verdict<W> {
    /// For a command that is about to run.
    pub fn new(writer: W, mut subject: Subject, findings: Arc<Findings>) -> Self {
        Self {
            writer,
            events: subject.events.take().map(JsonLines::new),
            failed: None,
            subject,
            findings,
            inside: Stories::default(),
            unknown: Stories::default(),
            outside: Stories::default(),
            own_background: 0,
            background: 0,
            queues: 0,
        }
    }
}

impl<W: Write> Verdict<W> {
    /// Says the last story of the command's while it goes on.
    fn announce(&mut self) {
        let Some(Story { who, to, by, .. }) = self.inside.list.last() else { return };
        let _ = if self.inside.list.len() > MAX_ANNOUNCED {
            writeln!(self.writer, "observer: {ALERT}BLOCKED{ALERT:#} and more; the end tells all")
        } else {
            writeln!(self.writer, "observer: {ALERT}BLOCKED{ALERT:#} {} → {to}: {}", escape(who), escape(by))
        };
        let _ = self.writer.flush();
    }

    /// Says what would let the command's packets through, while it goes on.
    fn fixed(&mut self, event: &Event) {
        let Some(fix) = &event.egress.fix else { return };
        let own = self.inside.fix(event, fix);
        for stories in [&mut self.unknown, &mut self.outside] {
            stories.fix(event, fix);
        }
        if own && !fix.commands.is_empty() && self.findings.ended.get().is_none() {
            let how = if fix.verified { "proven" } else { "not proven" };
            let commands: Vec<String> = fix.commands.iter().map(|line| as_root(line)).collect();
            let _ = writeln!(self.writer, "observer: fix ({how}): {}", escape(&commands.join("; ")));
            let _ = self.writer.flush();
        }
    }

    /// Says that something works again that was blocked for the command.
    fn restored(&mut self, event: &Event) {
        // For others it may work while it does not for the command.
        if !event.egress.ancestry.iter().any(|ancestor| ancestor.pid == self.subject.pid) {
            for stories in [&mut self.unknown, &mut self.outside] {
                stories.restored(event);
            }
            return;
        }
        if self.inside.restored(event)
            && let Some(reason) = &event.event.reason
        {
            let (who, to) = (who(event), destination(event));
            let _ = writeln!(self.writer, "observer: {GOOD}WORKS{GOOD:#} {} → {to}: {}", escape(&who), escape(reason));
            let _ = self.writer.flush();
        }
    }

    /// A full disk must not end what watches a command: it is said at the end.
    fn write_events(&mut self, write: impl FnOnce(&mut JsonLines<BufWriter<File>>) -> io::Result<()>) {
        if let Some(events) = &mut self.events
            && let Err(error) = write(events)
        {
            self.failed = Some(error);
            self.events = None;
        }
    }
}

impl<W: Write + Send> Output for Verdict<W> {
    fn event(&mut self, event: &Event) -> io::Result<bool> {
        self.write_events(|events| events.event(event).map(drop));
        if event.event.action == Action::EgressFix {
            self.fixed(event);
            return Ok(false);
        }
        if event.event.action == Action::EgressRestored {
            self.restored(event);
            return Ok(false);
        }
        if event.event.action == Action::EgressRule {
            for stories in [&mut self.inside, &mut self.unknown, &mut self.outside] {
                stories.name(event);
            }
            return Ok(false);
        }
        let own = event.egress.ancestry.iter().any(|ancestor| ancestor.pid == self.subject.pid);
        if event.event.action != Action::EgressBlocked {
            self.queues += event.egress.count;
            return Ok(false);
        }
        if event.egress.background.is_some() {
            let background = if own { &mut self.own_background } else { &mut self.background };
            *background += event.egress.count;
            return Ok(false);
        }
        if !own {
            let named = event.process.is_some() || event.egress.owner == Some(OwnerKnown::Kernel);
            let stories = if named { &mut self.outside } else { &mut self.unknown };
            stories.take(event);
            return Ok(true);
        }
        // Whoever waits for it must not wait for a reader of stderr.
        self.findings.blocked.store(true, Ordering::Release);
        self.findings.first.notify_one();
        if self.inside.take(event) && self.inside.list.len() <= MAX_ANNOUNCED + 1 {
            self.announce();
        }
        Ok(true)
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        self.write_events(|events| events.change(change));
        Ok(())
    }

    fn waits(&mut self, for_news: bool) {
        self.findings.waits.store(for_news, Ordering::Release);
    }

    fn idle(&mut self) -> io::Result<bool> {
        self.write_events(|events| events.idle().map(drop));
        let _ = self.writer.flush();
        Ok(false)
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        self.write_events(|events| events.finish(summary));
        let conclusion = Conclusion {
            command: std::mem::take(&mut self.subject.command),
            ended: self.findings.ended.get().cloned(),
            only_netns: self.subject.only_netns,
            inside: std::mem::take(&mut self.inside.list),
            unknown: std::mem::take(&mut self.unknown.list),
            outside: std::mem::take(&mut self.outside.list),
            own_background: self.own_background,
            background: self.background,
            queues: self.queues,
            start: summary.event.start,
            end: summary.event.end,
            account: summary.egress.clone(),
            host: summary.host.clone(),
            agent: summary.agent.clone(),
        };
        let written = match &mut self.subject.report {
            Some((Form::Markdown, file)) => conclusion::markdown(file, &conclusion),
            Some((Form::Json, file)) => conclusion::json(file, &conclusion),
            None => Ok(()),
        };
        for (what, result) in [("events", self.failed.take().map_or(Ok(()), Err)), ("report", written)] {
            if let Err(error) = result {
                let _ = writeln!(self.writer, "observer: the file of the {what} is not complete: {error}");
            }
        }
        let _ = conclusion::human(&mut self.writer, &conclusion);
        Ok(())
    }
}

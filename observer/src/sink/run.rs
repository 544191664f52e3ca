//! What a command was denied: each block at once while it hangs, and a verdict at its end.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::Sink;
use crate::{
    incident::{self, Snapshot},
    model::{Attempt, Coverage, Finished, Kind, Line, OwnerKnown, Reporter},
    render::{
        conclusion::{self, Conclusion, Story},
        text,
    },
};

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

/// Stories that are announced while the command runs.
const MAX_ANNOUNCED: usize = 20;
/// Stories that are reported one by one.
const MAX_STORIES: usize = 10_000;

/// What was denied to somebody, by stories: the same incident of another user or namespace is another's business.
#[derive(Default)]
struct Stories {
    list: Vec<Story>,
    places: HashMap<Uuid, usize>,
}

impl Stories {
    /// Takes in what was blocked; true for the first of a story.
    fn take(&mut self, attempt: &Attempt) -> bool {
        let is_full = self.list.len() >= MAX_STORIES;
        let story = incident::story(attempt);
        // One for all that is too much to be reported one by one.
        let key = if is_full && !self.places.contains_key(&story) { Uuid::nil() } else { story };
        let is_new = !self.places.contains_key(&key);
        let place = *self.places.entry(key).or_insert_with(|| {
            self.list.push(if key.is_nil() { Story::others(attempt, MAX_STORIES) } else { Story::new(attempt) });
            self.list.len() - 1
        });
        self.list[place].add(attempt);
        is_new && !key.is_nil()
    }

    /// The story of what was reported before.
    fn of(&mut self, attempt: &Attempt) -> Option<&mut Story> {
        self.list.get_mut(*self.places.get(&incident::story(attempt))?)
    }

    /// The story of what works again. Who reached it is known better than who was blocked where the packets were forwarded: then it is
    /// the only one of its incident.
    fn of_reached(&mut self, attempt: &Attempt) -> Option<&mut Story> {
        if self.places.contains_key(&incident::story(attempt)) {
            return self.of(attempt);
        }
        let mut of_it = self.list.iter_mut().filter(|story| story.incident == attempt.incident);
        of_it.next().filter(|_| of_it.next().is_none())
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
    /// Base chains that may drop answers unseen.
    pub unwatched: Vec<String>,
    /// Where the conclusion goes.
    pub report: Option<(Form, BufWriter<File>)>,
    /// This host.
    pub reporter: Reporter,
}

/// Writes to `W`, which strips styles where there is no terminal. Nothing that cannot be written ends it: the command goes
/// on.
pub struct VerdictSink<W> {
    writer: W,
    subject: Subject,
    findings: Arc<Findings>,
    inside: Stories,
    /// Of senders that are not known.
    unknown: Stories,
    outside: Stories,
    own_background: u64,
    background: u64,
    queues: u64,
}

impl<W: Write + Send> VerdictSink<W> {
    /// For a command that is about to run.
    pub fn new(writer: W, subject: Subject, findings: Arc<Findings>) -> Self {
        Self {
            writer,
            findings,
            subject,
            inside: Stories::default(),
            unknown: Stories::default(),
            outside: Stories::default(),
            own_background: 0,
            background: 0,
            queues: 0,
        }
    }

    /// Something that was blocked.
    fn blocked(&mut self, attempt: &Attempt) {
        let own = attempt.sender.descends_from(self.subject.pid);
        if attempt.background.is_some() {
            let background = if own { &mut self.own_background } else { &mut self.background };
            *background += attempt.packets;
            return;
        }
        if !own {
            let named = attempt.sender.process.is_some() || attempt.sender.known == Some(OwnerKnown::Kernel);
            let stories = if named { &mut self.outside } else { &mut self.unknown };
            stories.take(attempt);
            return;
        }
        // Whoever waits for it must not wait for a reader of stderr.
        self.findings.blocked.store(true, Ordering::Release);
        self.findings.first.notify_one();
        if self.inside.take(attempt) && self.inside.list.len() <= MAX_ANNOUNCED + 1 {
            self.announce();
        }
    }

    /// Says the last story of the command's while it goes on.
    fn announce(&mut self) {
        let Some(story) = self.inside.list.last() else { return };
        let _ = if self.inside.list.len() > MAX_ANNOUNCED {
            text::run_more(&mut self.writer)
        } else {
            text::run_blocked(&mut self.writer, &story.who, &story.to, &story.by)
        };
        let _ = self.writer.flush();
    }

    /// The stories that news is of, in all lists.
    fn stories(&mut self, attempt: &Attempt) -> impl Iterator<Item = &mut Story> {
        let lists = [&mut self.inside, &mut self.unknown, &mut self.outside];
        lists.into_iter().filter_map(|stories| stories.of(attempt))
    }
}

impl<W: Write + Send> Sink for VerdictSink<W> {
    fn take(&mut self, line: &Line, _: Option<Snapshot>) -> io::Result<()> {
        match &line.kind {
            Kind::Blocked(attempt) => self.blocked(attempt),
            Kind::Dropped(attempt) => self.queues += attempt.packets,
            Kind::Rule(attempt) => {
                let finding = attempt.finding.as_deref().unwrap_or_default();
                self.stories(attempt).for_each(|story| finding.clone_into(&mut story.by));
            }
            Kind::Fix(attempt, fix) => {
                self.stories(attempt).for_each(|story| story.fix = Some((**fix).clone()));
                let own = self.inside.of(attempt).is_some();
                if own && !fix.commands.is_empty() && self.findings.ended.get().is_none() {
                    let _ = text::run_fix(&mut self.writer, fix);
                    let _ = self.writer.flush();
                }
            }
            Kind::Outcome(attempt, outcome) => {
                // The same destination may hang for others still.
                let lists = if attempt.sender.descends_from(self.subject.pid) {
                    [Some(&mut self.inside), None]
                } else {
                    [Some(&mut self.unknown), Some(&mut self.outside)]
                };
                for story in lists.into_iter().flatten().filter_map(|stories| stories.of(attempt)) {
                    story.ended = Some(outcome.sentence());
                }
            }
            Kind::Restored(attempt, restored) => {
                // For others it may work while it does not for the command.
                if !attempt.sender.descends_from(self.subject.pid) {
                    for stories in [&mut self.unknown, &mut self.outside] {
                        stories.of_reached(attempt).into_iter().for_each(|story| story.works(attempt, restored));
                    }
                } else if let Some(story) = self.inside.of_reached(attempt) {
                    story.works(attempt, restored);
                    let _ = text::run_restored(&mut self.writer, attempt, restored);
                    let _ = self.writer.flush();
                }
            }
            Kind::Hanging(_) | Kind::RulesetChanged(_) | Kind::Started(_) | Kind::Stopped | Kind::Summary(_) => {}
        }
        Ok(())
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
        let _ = self.writer.flush();
        Ok(None)
    }

    fn finish(&mut self, _: &Line, coverage: &Coverage) -> io::Result<()> {
        let conclusion = Conclusion {
            command: mem::take(&mut self.subject.command),
            ended: self.findings.ended.get().cloned(),
            only_netns: self.subject.only_netns,
            unwatched: mem::take(&mut self.subject.unwatched),
            inside: mem::take(&mut self.inside.list),
            unknown: mem::take(&mut self.unknown.list),
            outside: mem::take(&mut self.outside.list),
            own_background: self.own_background,
            background: self.background,
            queues: self.queues,
            start: coverage.start,
            end: coverage.end,
            account: coverage.account.clone(),
            host: self.subject.reporter.host.clone(),
            agent: self.subject.reporter.agent.clone(),
        };
        let written = match &mut self.subject.report {
            Some((Form::Markdown, file)) => conclusion::markdown(file, &conclusion),
            Some((Form::Json, file)) => conclusion::json(file, &conclusion),
            None => Ok(()),
        };
        if let Err(error) = written {
            let _ = writeln!(self.writer, "observer: the file of the report is not complete: {error}");
        }
        let _ = conclusion::human(&mut self.writer, &conclusion);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Account, Restored, RestoredBy, Sender};

    const COMMAND: u32 = 7;

    fn verdict() -> VerdictSink<Vec<u8>> {
        let subject = Subject {
            pid: COMMAND,
            command: vec!["curl".to_owned()],
            only_netns: false,
            unwatched: Vec::new(),
            report: None,
            reporter: Reporter::example(),
        };
        VerdictSink::new(Vec::new(), subject, Arc::default())
    }

    fn line(kind: Kind) -> Line {
        Line { id: None, sequence: Some(1), at: jiff::Timestamp::UNIX_EPOCH, kind }
    }

    fn text(mut verdict: VerdictSink<Vec<u8>>) -> String {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let coverage = Coverage { start: at, end: at, account: Account::default() };
        verdict.finish(&line(Kind::Summary(Box::new(coverage.clone()))), &coverage).unwrap();
        String::from_utf8(anstream::adapter::strip_bytes(&verdict.writer).into_vec()).unwrap()
    }

    fn blocked(verdict: &mut VerdictSink<Vec<u8>>, attempt: &Attempt, packets: u64) {
        let attempt = Attempt { packets, ..attempt.clone() };
        verdict.take(&line(Kind::Blocked(Box::new(attempt))), Some(Snapshot::example(1))).unwrap();
    }

    #[test]
    fn what_the_command_was_denied_is_told_apart_from_the_rest() {
        let mut verdict = verdict();
        blocked(&mut verdict, &Attempt::example(), 1);
        blocked(&mut verdict, &Attempt::example(), 2);
        let stranger = Attempt { sender: Sender::example("/usr/bin/wget", 99), ..Attempt::example() };
        blocked(&mut verdict, &stranger, 500);
        blocked(&mut verdict, &Attempt { sender: Sender::default(), ..Attempt::example() }, 1);
        let named = Attempt { finding: Some("nft rule".to_owned()), ..Attempt::example() };
        let others = Attempt { netns: Some(99), finding: Some("another's".to_owned()), ..named.clone() };
        for attempt in [named, others] {
            verdict.take(&line(Kind::Rule(Box::new(attempt))), None).unwrap();
        }
        assert!(verdict.findings.blocked.load(Ordering::Acquire));
        let text = text(verdict);
        assert_eq!(text.matches("observer: BLOCKED curl[7]").count(), 1, "{text}");
        assert!(text.contains("VERDICT blocked on this host"), "{text}");
        assert!(text.contains("curl[7] → 203.0.113.10:443/tcp ×3  nft rule"), "{text}");
        assert!(text.contains("wget[99] → 203.0.113.10:443/tcp ×500  nft rule"), "in every list: {text}");
        let (_, others) = text.split_once("sender unknown:").unwrap();
        assert!(
            others.contains("no process")
                && others.contains(
                    "other processes blocked meanwhile:
"
                ),
            "{text}"
        );
    }

    #[test]
    fn that_it_works_for_others_says_nothing_of_the_command() {
        let restored = Box::new(Restored {
            after_ms: 1,
            by: RestoredBy::Connection,
            last_blocked: jiff::Timestamp::UNIX_EPOCH,
            change: None,
        });
        let works = |verdict: &mut VerdictSink<Vec<u8>>, pid| {
            let attempt = Attempt { sender: Sender::example("/usr/bin/curl", pid), ..Attempt::example() };
            let kind = Kind::Restored(Box::new(attempt), restored.clone());
            verdict.take(&line(kind), None).unwrap();
        };
        let mut others = verdict();
        blocked(&mut others, &Attempt::example(), 1);
        works(&mut others, 99);
        assert!(!text(others).contains("works"));
        let mut own = verdict();
        // Of what another namespace forwarded the user is not known.
        let mut forwarded = Attempt::example();
        forwarded.sender.user = None;
        blocked(&mut own, &forwarded, 1);
        works(&mut own, COMMAND);
        let text = text(own);
        assert!(text.contains("observer: WORKS curl[7]") && text.contains("    works "), "{text}");
    }

    #[test]
    fn queues_and_background_are_no_blocks() {
        let mut verdict = verdict();
        verdict.take(&line(Kind::Dropped(Box::new(Attempt::example()))), None).unwrap();
        let background = Attempt { background: Some(crate::model::Background::Mdns), ..Attempt::example() };
        blocked(&mut verdict, &background, 1);
        assert!(!verdict.findings.blocked.load(Ordering::Acquire));
        assert!(text(verdict).contains("background of the command 1 · lost by full queues 1"));
    }

    #[test]
    fn there_is_one_story_for_what_is_too_much() {
        let mut stories = Stories::default();
        for number in 1..=MAX_STORIES as u128 + 5 {
            let attempt = Attempt { incident: Uuid::from_u128(number), ..Attempt::example() };
            assert_eq!(stories.take(&attempt), number <= MAX_STORIES as u128);
        }
        assert_eq!((stories.list.len(), stories.list[MAX_STORIES].packets), (MAX_STORIES + 1, 5));
    }
}

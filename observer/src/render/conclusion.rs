//! What came of a command that was run: as the closing lines of `run`, as Markdown for a ticket, as JSON for a program.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

use super::{
    ecs::{self, Ecs},
    escape::escape,
    fix::{about, as_root, blocks, place, rows},
    json,
    markdown::{cell, command_cell},
    text,
};
use crate::model::{Account, Agent, Attempt, Finished, Fix, Host, Restored, span};

const ALERT: Style = AnsiColor::Red.on_default().bold();
const STRONG: Style = Style::new().bold();

/// Lines of each list that are shown on a terminal; report and events have all.
const MAX_SHOWN: usize = 20;

/// One cause, and how often.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    /// `curl[2211]`
    pub who: String,
    /// `203.0.113.10:443/tcp`
    pub to: String,
    /// What stopped it.
    pub by: String,
    /// `observer check` can be asked about it as it is: a destination of this namespace.
    #[serde(skip)]
    pub is_here: bool,
    /// Packets.
    pub packets: u64,
    /// The first one.
    pub first: Timestamp,
    /// The last one.
    pub last: Timestamp,
    /// `egress.incident` of its events.
    pub incident: uuid::Uuid,
    /// What would let it through.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "fix")]
    pub fix: Option<Fix>,
    /// How its last connection ended, where that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// That it worked again, in a sentence; absent where that was not seen, or it was blocked once more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<String>,
    /// When that was.
    #[serde(skip)]
    pub restored_at: Option<Timestamp>,
    /// What `observer check` is asked for to find everything else that the sender will need.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
}

fn fix<S: Serializer>(fix: &Option<Fix>, serializer: S) -> Result<S::Ok, S::Error> {
    fix.as_ref().map(ecs::Fix::from).serialize(serializer)
}

impl Story {
    /// Of which nothing was counted yet.
    pub(crate) fn new(attempt: &Attempt) -> Self {
        let elsewhere = place(attempt).map(|place| format!(" {place}")).unwrap_or_default();
        Self {
            who: format!("{}{elsewhere}", attempt.sender.words()),
            to: attempt.to(),
            by: attempt.finding.clone().unwrap_or_default(),
            is_here: !attempt.is_elsewhere && attempt.destination.as_ref().is_some_and(|end| end.port.is_some()),
            packets: 0,
            first: attempt.start,
            last: attempt.end,
            incident: attempt.incident,
            fix: None,
            ended: None,
            restored: None,
            restored_at: None,
            profiles: attempt.profiles.clone(),
        }
    }

    /// One for all that is more than so many.
    pub(crate) fn others(attempt: &Attempt, number: usize) -> Self {
        Self {
            who: "others".to_owned(),
            to: "other destinations".to_owned(),
            by: format!("more than {number} different ones"),
            is_here: false,
            incident: uuid::Uuid::nil(),
            profiles: Vec::new(),
            ..Self::new(attempt)
        }
    }

    /// More of it was blocked: after it worked, it does not any more; what was blocked before is only counted late.
    pub(crate) fn add(&mut self, attempt: &Attempt) {
        self.packets += attempt.packets;
        self.last = attempt.end;
        if self.restored_at.is_none_or(|at| attempt.end > at) {
            (self.restored, self.restored_at) = (None, None);
        }
    }

    /// It works again, for whoever it was blocked.
    pub(crate) fn works(&mut self, attempt: &Attempt, restored: &Restored) {
        self.restored = Some(format!("{}: {}", attempt.sender.words(), restored.sentence()));
        self.restored_at = Some(attempt.end);
    }
}

/// What is said about a run in one or two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// The command was denied something.
    Blocked,
    /// Something was blocked, and it is not known whose it was.
    BlockedUnknown,
    /// Not the command, but something else meanwhile.
    BlockedOutside,
    /// Both lists are empty, nothing was lost, nothing was degraded.
    NothingBlocked,
    /// Both lists are empty, and something may have been missed.
    NothingSeen,
}

impl Judgement {
    /// In words.
    fn sentence(self) -> &'static str {
        match self {
            Self::Blocked => "blocked on this host",
            Self::BlockedUnknown => "something was blocked, and it is not known whether the command sent it",
            Self::BlockedOutside => {
                "nothing that the command sent was blocked, but something else was at the same time"
            }
            Self::NothingBlocked => "nothing was blocked",
            Self::NothingSeen => "no block was seen, but not everything could be",
        }
    }
}

/// Everything that is known at the end of a run.
#[derive(Clone, Debug)]
pub struct Conclusion {
    /// The command, secrets masked.
    pub command: Vec<String>,
    /// How it ended; `None` when it had not.
    pub ended: Option<Finished>,
    /// Blocked for the command and what it started.
    pub inside: Vec<Story>,
    /// Denied to whoever it was.
    pub unknown: Vec<Story>,
    /// Denied to others meanwhile.
    pub outside: Vec<Story>,
    /// The command's background packets.
    pub own_background: u64,
    /// Such packets of others.
    pub background: u64,
    /// Packets that full queues lost.
    pub queues: u64,
    /// Only one network namespace was watched.
    pub only_netns: bool,
    /// Base chains that may drop answers unseen: `ip raw PREROUTING`.
    pub unwatched: Vec<String>,
    /// When observing began and ended.
    pub start: Timestamp,
    /// See [`Self::start`].
    pub end: Timestamp,
    /// Of everything that was seen.
    pub account: Account,
    /// This host.
    pub host: Host,
    /// This program.
    pub agent: Agent,
}

impl Conclusion {
    /// `nothing was blocked` is said only when nothing can have been missed but what [`Self::unwatched`] says.
    pub fn judgement(&self) -> Judgement {
        let Account { lost, missed_max, degraded, .. } = &self.account;
        let whole = lost.total() == 0 && *missed_max == 0 && degraded.is_empty();
        if !self.inside.is_empty() {
            Judgement::Blocked
        } else if !self.unknown.is_empty() {
            Judgement::BlockedUnknown
        } else if !self.outside.is_empty() {
            Judgement::BlockedOutside
        } else if whole {
            Judgement::NothingBlocked
        } else {
            Judgement::NothingSeen
        }
    }

    /// The judgement in words, and what limits it.
    fn sentence(&self) -> String {
        let judgement = self.judgement();
        let mut sentence = judgement.sentence().to_owned();
        if judgement != Judgement::Blocked && self.own_background > 0 {
            sentence.push_str(", but background traffic of the command");
        }
        if judgement != Judgement::Blocked && self.only_netns {
            sentence.push_str(" (in the network namespace that was watched)");
        }
        if judgement != Judgement::Blocked && !self.unwatched.is_empty() {
            let chains: Vec<_> = self.unwatched.iter().map(|chain| escape(chain)).collect();
            let _ = write!(sentence, "; what `{}` drops on the way in is not all seen", chains.join("`, `"));
        }
        sentence
    }

    /// The lists, each under its title.
    fn lists(&self) -> [(&'static str, &[Story]); 3] {
        [
            ("Blocked for the command", &self.inside),
            ("Blocked: sender unknown", &self.unknown),
            ("Other processes blocked meanwhile", &self.outside),
        ]
    }

    /// Profiles of what the command is or installs, each once.
    fn profiles(&self) -> Vec<String> {
        let mut profiles: Vec<String> = Vec::new();
        for profile in self.inside.iter().flat_map(|story| &story.profiles) {
            if !profiles.contains(profile) {
                profiles.push(profile.clone());
            }
        }
        profiles
    }

    /// What tells more than was seen.
    fn next(&self) -> Option<String> {
        let is_open = |story: &&Story| story.is_here && story.fix.is_none() && story.restored.is_none();
        let has_failed = self.ended.as_ref().is_some_and(|ended| ended.code != 0);
        let (command, why) = match (self.judgement(), self.inside.iter().find(is_open)) {
            (Judgement::Blocked, Some(story)) => {
                (format!("observer check {}", story.to), "names the rule and looks for a fix")
            }
            (Judgement::NothingBlocked, _) if has_failed => (
                "observer check HOST:PORT".to_owned(),
                "also tests what `run` does not see: answers to datagrams in the raw table and at ingress hooks, or without connection tracking",
            ),
            _ => return None,
        };
        Some(format!("{STRONG}{}{STRONG:#}  {why}", escape(&as_root(&command))))
    }

    fn ended(&self) -> String {
        match &self.ended {
            Some(ended) => format!("The command {ended} after {}", span(ended.after)),
            None => "The command had not ended".to_owned(),
        }
    }

    /// Lost packets and what else limits what was said.
    fn coverage(&self) -> Vec<String> {
        let mut parts = Vec::new();
        for (what, packets) in [
            ("background of the command", self.own_background),
            ("background", self.background),
            ("lost by full queues", self.queues),
        ] {
            if packets > 0 {
                parts.push(format!("{what} {packets}"));
            }
        }
        parts.push(format!("lost {}", self.account.lost.total()));
        if self.account.missed_max > 0 {
            parts.push(format!("up to {} not seen", self.account.missed_max));
        }
        if self.account.degraded.is_empty() {
            parts.push("all probes attached".to_owned());
        }
        parts
    }
}

/// For a person who ran it.
pub fn human(writer: &mut impl Write, conclusion: &Conclusion) -> io::Result<()> {
    let judgement = conclusion.judgement();
    let style = if judgement == Judgement::Blocked { ALERT } else { Style::new() };
    writeln!(
        writer,
        "observer: {STRONG}VERDICT{STRONG:#} {style}{}{style:#}. {}",
        conclusion.sentence(),
        conclusion.ended()
    )?;
    list(writer, &conclusion.inside)?;
    for (title, stories) in
        [("sender unknown:", &conclusion.unknown), ("other processes blocked meanwhile:", &conclusion.outside)]
    {
        if !stories.is_empty() {
            writeln!(writer, "  {title}")?;
            list(writer, stories)?;
        }
    }
    writeln!(writer, "  {}", conclusion.coverage().join(" · "))?;
    if let Some(words) = text::next(&conclusion.profiles()).or_else(|| conclusion.next()) {
        writeln!(writer, "  {:<10} {words}", "next")?;
    }
    for degraded in &conclusion.account.degraded {
        writeln!(writer, "  degraded: {}: {} → {}", degraded.what, escape(&degraded.why), degraded.consequence)?;
    }
    writer.flush()
}

fn list(writer: &mut impl Write, stories: &[Story]) -> io::Result<()> {
    for Story { who, to, by, packets, fix, restored, ended, .. } in stories.iter().take(MAX_SHOWN) {
        let ended = ended.as_ref().map(|ended| format!(", {ended}")).unwrap_or_default();
        writeln!(writer, "  {:<10} {} → {to} ×{packets}{ended}  {}", "blocked", escape(who), escape(by))?;
        if let Some(restored) = restored {
            writeln!(writer, "    {:<8} {}", "works", escape(restored))?;
        }
        let Some(fix) = fix else { continue };
        for (label, text) in rows(fix, "fix", false) {
            writeln!(writer, "    {label:<8} {text}")?;
        }
    }
    let more = stories.len().saturating_sub(MAX_SHOWN);
    if more > 0 {
        writeln!(writer, "  {:<10} and {more} more", "blocked")?;
    }
    Ok(())
}

/// For a ticket. Times are UTC.
pub fn markdown(writer: &mut impl Write, conclusion: &Conclusion) -> io::Result<()> {
    let seconds = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let title = match (conclusion.judgement(), conclusion.inside.first()) {
        (Judgement::Blocked, Some(first)) => {
            format!("{} could not reach {}: blocked on this host", first.who, first.to)
        }
        _ => conclusion.sentence(),
    };
    writeln!(writer, "# {}\n", cell(&title))?;
    writeln!(writer, "| | |\n|---|---|")?;
    writeln!(writer, "| command | {} |", command_cell(&conclusion.command.join(" ")))?;
    if let Some(name) = &conclusion.host.name {
        writeln!(writer, "| host | {} |", cell(name))?;
    }
    writeln!(writer, "| observed | {} – {} UTC |", seconds(conclusion.start), seconds(conclusion.end))?;
    writeln!(writer, "| verdict | {} |", conclusion.sentence())?;
    writeln!(writer, "| end | {} |", conclusion.ended())?;
    for (title, stories) in conclusion.lists() {
        writeln!(writer, "\n## {title}\n")?;
        if stories.is_empty() {
            writeln!(writer, "Nothing.")?;
            continue;
        }
        writeln!(writer, "| who | to | packets | first | last | by |\n|---|---|---:|---|---|---|")?;
        for Story { who, to, by, packets, first, last, .. } in stories {
            let (first, last) = (seconds(*first), seconds(*last));
            writeln!(writer, "| {} | {} | {packets} | {first} | {last} | {} |", cell(who), cell(to), cell(by))?;
        }
        for Story { to, restored, .. } in stories {
            if let Some(restored) = restored {
                writeln!(writer, "\n**{} works again**: {}", cell(to), cell(restored))?;
            }
        }
        for Story { who, to, fix, .. } in stories {
            let Some(fix) = fix else { continue };
            writeln!(writer, "\n**Fix for {} → {}**: {}", cell(who), cell(to), cell(&about(fix)))?;
            blocks(writer, fix)?;
        }
    }
    writeln!(writer, "\n## Coverage\n\n{}.", conclusion.coverage().join(", "))?;
    for degraded in &conclusion.account.degraded {
        writeln!(writer, "- degraded: {}: {} → {}", degraded.what, cell(&degraded.why), degraded.consequence)?;
    }
    writeln!(writer, "\nobserver {}", conclusion.agent.version)?;
    writer.flush()
}

#[derive(Serialize)]
struct State<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Timestamp,
    ecs: Ecs,
    agent: &'a Agent,
    host: &'a Host,
    event: Meta,
    process: ProcessState<'a>,
    egress: EgressState<'a>,
}

#[derive(Serialize)]
struct Meta {
    kind: &'static str,
    dataset: &'static str,
    module: &'static str,
    start: Timestamp,
    end: Timestamp,
    action: &'static str,
    reason: String,
}

#[derive(Serialize)]
struct ProcessState<'a> {
    args: &'a [String],
    command_line: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
}

#[derive(Serialize)]
struct EgressState<'a> {
    judgement: Judgement,
    #[serde(skip_serializing_if = "Option::is_none")]
    ran_ms: Option<i128>,
    blocked: &'a [Story],
    blocked_unknown: &'a [Story],
    blocked_outside: &'a [Story],
    own_background: u64,
    background: u64,
    queues: u64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unwatched: &'a [String],
    account: &'a Account,
}

/// For a program: one object on one line.
pub fn json(writer: &mut impl Write, conclusion: &Conclusion) -> io::Result<()> {
    let ran = conclusion.ended.as_ref().and_then(|ended| SignedDuration::try_from(ended.after).ok());
    let state = State {
        timestamp: conclusion.end,
        ecs: Ecs::default(),
        agent: &conclusion.agent,
        host: &conclusion.host,
        event: Meta {
            kind: "state",
            dataset: "observer.run",
            module: "observer",
            start: conclusion.start,
            end: conclusion.end,
            action: "run-finished",
            reason: conclusion.sentence(),
        },
        process: ProcessState {
            args: &conclusion.command,
            command_line: conclusion.command.join(" "),
            exit_code: conclusion.ended.as_ref().map(|ended| ended.code),
        },
        egress: EgressState {
            judgement: conclusion.judgement(),
            ran_ms: ran.map(|ran| ran.as_millis()),
            blocked: &conclusion.inside,
            blocked_unknown: &conclusion.unknown,
            blocked_outside: &conclusion.outside,
            own_background: conclusion.own_background,
            background: conclusion.background,
            queues: conclusion.queues,
            unwatched: &conclusion.unwatched,
            account: &conclusion.account,
        },
    };
    json::write_line(writer, &state)?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Degraded, Lost};

    fn conclusion() -> Conclusion {
        Conclusion {
            command: vec!["curl".to_owned()],
            ended: None,
            inside: Vec::new(),
            unknown: Vec::new(),
            outside: Vec::new(),
            own_background: 0,
            background: 0,
            queues: 0,
            only_netns: false,
            unwatched: Vec::new(),
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::UNIX_EPOCH,
            account: Account::default(),
            host: Host { name: None, id: None, boot: None },
            agent: Agent { r#type: "observer".to_owned(), version: "0".to_owned(), id: None },
        }
    }

    fn story() -> Story {
        Story {
            is_here: false,
            who: "a|b".to_owned(),
            to: "192.0.2.1:443/tcp".to_owned(),
            by: "`rule`".to_owned(),
            packets: 1,
            first: Timestamp::UNIX_EPOCH,
            last: Timestamp::UNIX_EPOCH,
            incident: uuid::Uuid::nil(),
            fix: None,
            ended: None,
            restored: None,
            restored_at: None,
            profiles: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_said_to_be_blocked_only_when_all_was_seen() {
        let empty = conclusion();
        assert_eq!(empty.judgement(), Judgement::NothingBlocked);
        let lost = Account { lost: Lost { map: 1, ..Lost::default() }, ..Account::default() };
        let missed = Account { missed_max: 1, ..Account::default() };
        let what = || "x".to_owned();
        let degraded = vec![Degraded { what: what(), why: what(), consequence: what() }];
        let degraded = Account { degraded, ..Account::default() };
        for account in [lost, missed, degraded] {
            assert_eq!(Conclusion { account, ..conclusion() }.judgement(), Judgement::NothingSeen);
        }
        let outside = Conclusion { outside: vec![story()], ..conclusion() };
        assert_eq!(outside.judgement(), Judgement::BlockedOutside);
        let unknown = Conclusion { unknown: vec![story()], ..outside.clone() };
        assert_eq!(unknown.judgement(), Judgement::BlockedUnknown);
        let limited = Conclusion { own_background: 1, only_netns: true, ..conclusion() }.sentence();
        assert!(limited.starts_with("nothing was blocked, but background"), "{limited}");
        assert_eq!(Conclusion { inside: vec![story()], ..outside }.judgement(), Judgement::Blocked);
        let unwatched = Conclusion { unwatched: vec!["ip raw PREROUTING".to_owned()], ..conclusion() };
        assert_eq!(
            unwatched.sentence(),
            "nothing was blocked; what `ip raw PREROUTING` drops on the way in is not all seen"
        );
    }

    #[test]
    fn names_are_no_markup() {
        let mut text = Vec::new();
        markdown(&mut text, &Conclusion { inside: vec![story()], ..conclusion() }).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("| `a\\|b` | 192.0.2.1:443/tcp | 1 |"), "{text}");
        assert!(text.contains("`rule`"), "{text}");
    }
}

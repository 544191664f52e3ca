//! What `check` found: for a person, for a ticket, for a program.

mod compare;
mod json;
mod table;

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::{
    escape::escape,
    fix::{about, blocks, rows},
    markdown::cell,
    screen::Screen,
};
use crate::{
    attribute::host::Identity,
    check::{
        Known, Target,
        live::{Live, Step},
        profiles::Profiles,
    },
    model::{After, Fate, Fix, NamedRule, Preflighted, Tried, Verdict},
};
pub use compare::{Kept, changes};
pub use json::json;

const ALERT: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const STRONG: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
/// How it begins where something is reached now, and not any more once the neighbour by which it leaves is asked for.
const BY_KNOWN: &str = "only while its neighbour is known";

/// Everything that is reported.
pub struct Answer {
    /// This host.
    pub identity: Identity,
    /// As whom, where that is not root.
    pub user: Option<String>,
    /// As which unit, and from which cgroup, where that was asked.
    pub unit: Option<String>,
    /// See `unit`.
    pub cgroup: Option<String>,
    /// What was asked.
    pub targets: Vec<Target>,
    /// What was found, in the same order.
    pub answer: Preflighted,
    /// What became of real connections, in the order of targets and addresses; empty where none was begun.
    pub live: Vec<Vec<Live>>,
    /// The command or the file that was tried.
    pub after: Option<String>,
    /// It is a ruleset, which takes the place of the one in force.
    pub is_ruleset: bool,
    /// Only what changes by it is reported.
    pub only_changes: bool,
    /// Names that were looked up.
    pub look_ups: usize,
}

/// How a destination stands, over all its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Allowed,
    Blocked,
    Unreachable,
    Unknown,
}

fn stands(fates: &[Fate]) -> Stands {
    let any = |is: fn(&Fate) -> bool| fates.iter().any(is);
    if any(Fate::is_blocked) {
        Stands::Blocked
    } else if any(|fate| matches!(fate, Fate::Unknown(_))) {
        Stands::Unknown
    } else if any(Fate::passes) {
        Stands::Allowed
    } else {
        Stands::Unreachable
    }
}

/// What became of a real connection, in a few words.
fn tried(live: &Live) -> String {
    let mut parts = Vec::new();
    parts.extend(live.connect_ms.map(|took| format!("connected in {took} ms")));
    parts.extend(live.tls_ms.map(|took| format!("TLS in {took} ms")));
    if !live.certificate.is_empty() {
        parts.push(format!("certificate of {}", live.certificate.join(", ")));
    }
    parts.extend(live.answer_ms.map(|took| format!("answered in {took} ms")));
    parts.extend(live.why.clone());
    parts.join(", ")
}

/// `v4 v6`, of the addresses for which that holds.
fn families(target: &Target, fates: &[Fate], is: impl Fn(&Fate) -> bool) -> String {
    let has = |v6: bool| target.addresses.iter().zip(fates).any(|(address, fate)| address.is_ipv6() == v6 && is(fate));
    let names = [(false, "v4"), (true, "v6")].into_iter().filter(|(v6, _)| has(*v6)).map(|(_, name)| name);
    names.collect::<Vec<_>>().join(" ")
}

impl Answer {
    /// What counts: after the command, where one was tried.
    fn fates(&self) -> &[Vec<Fate>] {
        match &self.answer.after {
            Some(Tried::Is(After { fates, .. })) => fates,
            _ => &self.answer.fates,
        }
    }

    /// What stops it, in a few words each. Of a rule that was reported before, its name is enough.
    fn why(&self, fates: &[Fate], told: &mut Vec<usize>) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let is_alone = stands(fates) == Stands::Unreachable;
        let (before, last) = (told.clone(), told.last().copied());
        for fate in fates {
            let words = match fate {
                Fate::Passes => continue,
                Fate::PassesBut(words) => words.clone(),
                Fate::PassesByKnown(rule, but) => self.by_known(*rule, but.as_deref()).unwrap_or_default(),
                // Where one family has no way, the other is what counts.
                Fate::NoRoute { is_decided: false, .. } if !is_alone => continue,
                Fate::Stopped(rule) => {
                    let known = match (before.contains(rule), last == Some(*rule)) {
                        (_, true) => Reported::Last,
                        (true, false) => Reported::Before,
                        (false, false) => Reported::Never,
                    };
                    told.push(*rule);
                    self.answer.rules.get(*rule).map_or_else(String::new, |rule| short(rule, known))
                }
                Fate::Denied { why, rule, .. } => {
                    let behind =
                        rule.and_then(|rule| self.answer.rules.get(rule)).map(|rule| short(rule, Reported::Never));
                    behind.map_or_else(|| why.clone(), |behind| format!("{why}, and {behind}"))
                }
                Fate::NoRoute { why, .. } | Fate::Unknown(why) => why.clone(),
            };
            if !all.contains(&words) {
                all.push(words);
            }
        }
        all
    }

    /// The words before and behind what was tried.
    fn around_change(&self) -> [&'static str; 2] {
        if self.is_ruleset { ["with", " in place of the live rules"] } else { ["after", ""] }
    }

    /// That a destination is reached only as long as a neighbour is known.
    fn by_known(&self, rule: usize, but: Option<&str>) -> Option<String> {
        let rule = self.answer.rules.get(rule)?;
        let more = but.map(|but| format!("; {but}")).unwrap_or_default();
        Some(format!("{BY_KNOWN}: {}{more}", short(rule, Reported::Never)))
    }

    /// What became of real connections, by family where several differ; and where that differs than what the rules say.
    fn live(&self, index: usize, target: &Target, fates: &[Fate]) -> Vec<String> {
        let Some(all) = self.live.get(index) else { return Vec::new() };
        let mut parts: Vec<(String, Vec<&str>)> = Vec::new();
        for ((live, address), fate) in all.iter().zip(&target.addresses).zip(fates) {
            // Where one family has no way, the other is what counts.
            let has_way = !matches!(fate, Fate::NoRoute { is_decided: false, .. });
            if !has_way && live.failed == Some(Step::Connect) && all.len() > 1 {
                continue;
            }
            let mut words = tried(live);
            if fate.is_blocked() && live.has_connected() {
                words.push_str(", although that should be blocked: the rules have changed, or were read wrongly");
            } else if fate.passes() && matches!(live.failed, Some(Step::Connect | Step::Answer)) {
                words.push_str(", and no rule here stops it");
            }
            let family = if address.is_ipv4() { "v4" } else { "v6" };
            match parts.iter_mut().find(|(known, _)| *known == words) {
                Some((_, families)) if !families.contains(&family) => families.push(family),
                Some(_) => {}
                None => parts.push((words, vec![family])),
            }
        }
        let of = |(words, families): (String, Vec<&str>)| format!("live {}: {words}", families.join(" "));
        parts.into_iter().map(of).collect()
    }

    /// `BLOCKED v4, allowed v6`, and how loud that is.
    fn verdict(&self, target: &Target, fates: &[Fate]) -> (Stands, String) {
        let stands = stands(fates);
        let of = |is: fn(&Fate) -> bool| families(target, fates, is);
        let passes = of(Fate::passes);
        let words = match stands {
            Stands::Allowed => format!("allowed {passes}"),
            Stands::Blocked => {
                let stopped = of(Fate::is_blocked);
                let rest = if passes.is_empty() { String::new() } else { format!(", allowed {passes}") };
                format!("BLOCKED {stopped}{rest}")
            }
            Stands::Unreachable => "no way there".to_owned(),
            Stands::Unknown if passes.is_empty() => "not known".to_owned(),
            Stands::Unknown => {
                format!("not known {}, allowed {passes}", of(|fate| matches!(fate, Fate::Unknown(_))))
            }
        };
        (stands, words)
    }

    /// Whether a destination stands as it did before what was tried: by the same statements.
    fn is_as_before(&self, index: usize) -> bool {
        fn stands<'a>(
            answer: &Preflighted,
            fates: &'a [Vec<Fate>],
            index: usize,
        ) -> Vec<(Option<String>, Option<&'a Fate>)> {
            let of = |fate: &'a Fate| match fate {
                // The places of rules differ.
                Fate::Stopped(rule) => (answer.rules.get(*rule).map(|rule| short(rule, Reported::Never)), None),
                Fate::PassesByKnown(rule, _) => {
                    (answer.rules.get(*rule).map(|rule| format!("known {}", short(rule, Reported::Never))), None)
                }
                other => (None, Some(other)),
            };
            fates.get(index).into_iter().flatten().map(of).collect()
        }
        stands(&self.answer, self.fates(), index) == stands(&self.answer, &self.answer.fates, index)
    }

    /// Destinations that are reported, and what becomes of them.
    fn told(&self) -> impl Iterator<Item = (usize, &Target, &[Fate])> {
        let all = self.targets.iter().zip(self.fates()).enumerate();
        let all = all.map(|(index, (target, fates))| (index, target, fates.as_slice()));
        all.filter(|(index, ..)| !self.only_changes || !self.is_as_before(*index))
    }

    fn count(&self, which: Stands) -> usize {
        self.fates().iter().filter(|fates| stands(fates) == which).count()
    }

    /// `13 of 16 blocked`; after a command also how many of them were before.
    fn sentence(&self) -> String {
        let (blocked, all) = (self.count(Stands::Blocked), self.targets.len());
        let is_after = matches!(self.answer.after, Some(Tried::Is(_)));
        let was = |index: usize| self.answer.fates.get(index).is_some_and(|fates| stands(fates) == Stands::Blocked);
        let is = self.fates().iter().enumerate().filter(|(_, fates)| stands(fates) == Stands::Blocked);
        let still = is.filter(|(index, _)| was(*index)).count();
        match (blocked, self.count(Stands::Unknown)) {
            (0, 0) => format!("none of {all} blocked"),
            (0, unknown) => format!("none of {all} blocked as far as is known; {unknown} not known"),
            (blocked, _) if !is_after => format!("{blocked} of {all} blocked"),
            (blocked, _) if still == blocked => format!("{blocked} of {all} STILL blocked"),
            (blocked, _) if still == 0 => format!("{blocked} of {all} newly blocked"),
            (blocked, _) => format!("{still} of {all} STILL blocked, {} newly blocked", blocked - still),
        }
    }

    fn asked(&self) -> String {
        let look_ups = match self.look_ups {
            0 => String::new(),
            1 => " (1 name looked up)".to_owned(),
            count => format!(" ({count} names looked up)"),
        };
        let who = match (&self.unit, &self.cgroup, &self.user) {
            (Some(unit), _, user) => {
                format!(", for {}{}", unit, user.as_ref().map(|user| format!(" as user {user}")).unwrap_or_default())
            }
            (None, Some(cgroup), _) => format!(", for cgroup {cgroup}"),
            (None, None, Some(user)) => format!(", for user {user}"),
            (None, None, None) => String::new(),
        };
        let has_tried = |live: &Live| live.has_connected() || matches!(live.failed, Some(Step::Connect | Step::Answer));
        let sent = if self.live.is_empty() {
            "nothing was sent to these destinations"
        } else if !self.live.iter().flatten().any(has_tried) {
            "--live sent nothing: no destination has an address that can be tried"
        } else {
            "then real connections were made, as asked by --live"
        };
        format!("Asked of this host's own rules, routes and cgroup programs{who}; {sent}{look_ups}.")
    }
}

/// Whether a rule stands above already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reported {
    Never,
    Before,
    /// In the row above.
    Last,
}

/// `ufw rule 1 ``deny out 443/tcp```; without its words where it stands above.
fn short(rule: &NamedRule, known: Reported) -> String {
    let words = named(rule, known);
    match (rule.packet, rule.leads_to) {
        (_, Some(to)) => format!("{words} sends it to {to} on this host, where nothing listens"),
        (Some(packet), None) => format!("{words} stops {}", packet.words()),
        (None, None) => words,
    }
}

/// The same without what it stops.
fn named(rule: &NamedRule, known: Reported) -> String {
    match (&rule.statement, rule.verdict) {
        (Some(statement), _) if known != Reported::Never && statement.number.is_some() => statement.what.clone(),
        _ if known == Reported::Last => "the same".to_owned(),
        (Some(statement), _) => format!("{} `{}`", statement.what, statement.name),
        (None, verdict) => {
            let place = format!("{} {} {}", rule.family, rule.table, rule.chain);
            match (&rule.text, rule.is_policy()) {
                (_, true) => format!("policy of chain {place}"),
                (Some(text), _) => format!("rule `{text}` in {place}"),
                (None, _) => format!(
                    "a rule in {place} {}",
                    if verdict == Some(Verdict::Reject) { "rejects it" } else { "drops it" }
                ),
            }
        }
    }
}

fn place(target: &Target) -> String {
    let entry = &target.entry;
    let host =
        if entry.host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{}]", entry.host) } else { entry.host.clone() };
    let transport = if entry.transport == "tcp" { "" } else { "/udp" };
    format!("{host}:{}{transport}", entry.port)
}

/// Why addresses of names are not known, where that is the same for all.
fn unknown_to_all(targets: &[Target]) -> Option<(usize, &str)> {
    let mut reasons = targets.iter().filter_map(|target| match &target.known {
        Known::Any(why) => Some(why.as_str()),
        _ => None,
    });
    let first = reasons.next()?;
    let rest: Vec<&str> = reasons.collect();
    (!rest.is_empty() && rest.iter().all(|why| *why == first)).then_some((rest.len() + 1, first))
}

/// What is reported of an entry beside its destination and verdict.
fn remarks(target: &Target, says_unknown: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(probe) = &target.entry.probe {
        remarks.push(format!("tested as {probe}"));
    }
    if target.entry.host.parse::<ipnet::IpNet>().is_ok() && target.addresses.len() > 1 {
        remarks.push("only its first and last address were tested".to_owned());
    }
    if let Known::Any(why) = &target.known
        && says_unknown
    {
        remarks.push(format!("placeholder address: {why}"));
    }
    remarks
}

fn purpose(target: &Target) -> (String, String) {
    target.entry.profile.as_ref().map_or_else(Default::default, |of| {
        let optional = if of.is_required { "" } else { ", optional" };
        (of.phase.clone(), format!("{}{optional}", of.purpose))
    })
}

/// Profiles by name, for a person.
pub fn list(writer: &mut impl Write, profiles: &Profiles) -> io::Result<()> {
    for (profile, path) in profiles.all() {
        writeln!(writer, "{STRONG}{:<16}{STRONG:#} {}", escape(&profile.name), escape(&profile.title))?;
        for (name, default, about) in profile.variables() {
            let default = default.map(|default| format!(", {default} without")).unwrap_or_default();
            writeln!(writer, "{:<16} --set {}=…  {}{}", "", escape(name), escape(about), escape(&default))?;
        }
        let from = path.map(|path| format!("{} · ", path.display())).unwrap_or_default();
        writeln!(
            writer,
            "{:<16} {DIM}{}{} ({}){DIM:#}",
            "",
            escape(&from),
            escape(&profile.source),
            escape(&profile.as_of)
        )?;
    }
    writer.flush()
}

/// For a person.
pub fn human(writer: &mut Screen<impl Write>, answer: &Answer) -> io::Result<()> {
    if let Some(what) = &answer.after {
        let [before, behind] = answer.around_change();
        writeln!(
            writer,
            "{DIM}in a private copy, {before}{DIM:#} {STRONG}{}{STRONG:#}{DIM}{behind}{DIM:#}",
            escape(what)
        )?;
    }
    let (unknown, mut told) = (unknown_to_all(&answer.targets), Vec::new());
    let mut rows = Vec::new();
    for (index, target, fates) in answer.told() {
        let (stands, verdict) = answer.verdict(target, fates);
        let style = match stands {
            Stands::Blocked => ALERT,
            Stands::Allowed => GOOD,
            Stands::Unreachable | Stands::Unknown => STRONG,
        };
        let (phase, purpose) = purpose(target);
        let mut rest = answer.why(fates, &mut told);
        rest.extend(remarks(target, unknown.is_none()));
        rest.extend(answer.live(index, target, fates));
        if let Some(before) = answer.answer.fates.get(index).filter(|_| answer.only_changes) {
            rest.push(format!("was {}", answer.verdict(target, before).1));
        }
        rows.push(table::Row { phase, place: place(target), purpose, style, verdict, rest: rest.join(" · ") });
    }
    table::write(writer, &rows)?;
    writeln!(writer, "{STRONG}{}{STRONG:#}", answer.sentence())?;
    match &answer.answer.after {
        Some(Tried::Is(after)) => {
            for (label, rules) in [("adds", &after.added), ("removes", &after.removed)] {
                for rule in rules {
                    writeln!(writer, "  {label:<8} {}", escape(rule))?;
                }
            }
            if let Some(note) = &after.note {
                writeln!(writer, "  {:<8} {}", "note", escape(note))?;
            }
        }
        Some(Tried::Refused(why) | Tried::Unknown(why)) => {
            writeln!(writer, "  what the command would change is not known: {}", escape(why))?;
        }
        None => {}
    }
    if let Some(fix) = &answer.answer.fix {
        write_fix(writer, fix)?;
    }
    if let Some((count, why)) = unknown {
        writeln!(writer, "{DIM}{count} names were tested with a placeholder address: {}{DIM:#}", escape(why))?;
    }
    writeln!(writer, "{DIM}{}{DIM:#}", escape(&answer.asked()))?;
    writer.flush()
}

fn write_fix(writer: &mut impl Write, fix: &Fix) -> io::Result<()> {
    // Which addresses it was tested for stands above.
    let told = Fix { verified_for: Vec::new(), ..fix.clone() };
    for (label, text) in rows(&told, "fix", true) {
        writeln!(writer, "  {label:<8} {text}")?;
    }
    Ok(())
}

/// For a ticket.
pub fn markdown(writer: &mut impl Write, answer: &Answer) -> io::Result<()> {
    writeln!(writer, "# {}\n", cell(&answer.sentence()))?;
    if let Some(name) = &answer.identity.reporter.host.name {
        writeln!(
            writer,
            "Host {}, {} UTC. {}\n",
            cell(name),
            Timestamp::now().strftime("%Y-%m-%d %H:%M:%S"),
            cell(&answer.asked())
        )?;
    }
    if let Some(what) = &answer.after {
        let [before, behind] = answer.around_change();
        writeln!(writer, "In a private copy, {before} {}{behind}.\n", cell(what))?;
    }
    writeln!(writer, "| phase | destination | purpose | verdict | by |\n|---|---|---|---|---|")?;
    for (index, target, fates) in answer.told() {
        let (phase, purpose) = purpose(target);
        let mut rest = answer.why(fates, &mut Vec::new());
        rest.extend(remarks(target, true));
        rest.extend(answer.live(index, target, fates));
        let words = answer.verdict(target, fates).1;
        writeln!(
            writer,
            "| {} | {} | {} | {} | {} |",
            cell(&phase),
            cell(&place(target)),
            cell(&purpose),
            cell(&words),
            cell(&rest.join("; "))
        )?;
    }
    if let Some(fix) = &answer.answer.fix {
        writeln!(writer, "\n## What lets it through\n\n{}", cell(&about(fix)))?;
        blocks(writer, fix)?;
    }
    writer.flush()
}

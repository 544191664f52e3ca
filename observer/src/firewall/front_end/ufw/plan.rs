//! ufw's commands. Which of them work depends on what rules there are already, and it does not say so by its status:
//! `insert 1 allow out 443/tcp` is skipped when `deny out 443/tcp` exists, `allow out 443/tcp` changes that in place or is
//! added behind everything else, and positions are those of IPv4's rules.

use std::net::IpAddr;

use super::{
    files::{DEFAULTS, USER, USER6},
    tuples::Entries,
    words::WITHOUT_IPV6,
};
use crate::{
    firewall::front_end::{Known, Plan, Plans, Target, plan::plain},
    model::{Lasts, NamedRule, Scope, Statement},
};

const ACTIONS: [&str; 4] = ["allow", "deny", "reject", "limit"];

/// A statement's words: what it does, and what it is about.
struct Words<'a> {
    action: &'a str,
    log: Option<&'a str>,
    /// Behind `out`, or `route ACTION`.
    about: &'a str,
}

impl<'a> Words<'a> {
    /// Of a statement about outbound traffic, or is forwarded.
    fn of(name: &'a str, is_forwarded: bool) -> Option<Self> {
        let rest = if is_forwarded { name.strip_prefix("route ")? } else { name };
        let (action, rest) = rest.split_once(' ')?;
        if !ACTIONS.contains(&action) {
            return None;
        }
        let rest = if is_forwarded { rest } else { rest.strip_prefix("out ")? };
        let log = ["log", "log-all"].into_iter().find(|log| rest.starts_with(&format!("{log} ")));
        Some(Self { action, log, about: log.map_or(rest, |log| &rest[log.len() + 1..]) })
    }

    /// What makes it, behind `ufw`, `ufw route`, and a place or `delete`.
    fn command(&self, is_forwarded: bool) -> String {
        let log = self.log.map(|log| format!("{log} ")).unwrap_or_default();
        let out = if is_forwarded { "" } else { "out " };
        format!("{} {out}{log}{}", self.action, self.about)
    }
}

/// What no command of its does.
pub(super) fn advice(statement: &Statement) -> Option<String> {
    (statement.name == WITHOUT_IPV6).then(|| {
        format!("ufw drops all of IPv6 because of {WITHOUT_IPV6}: write IPV6=yes in {DEFAULTS}, then `ufw reload`; its rules decide then")
    })
}

pub(super) fn plans(rule: &NamedRule, target: &Target, known: &Known) -> Plans {
    let Some(statement) = &rule.statement else { return Ok(Vec::new()) };
    if statement.note.is_some() {
        return Err(Some(
            "the live rules differ from ufw's files: `ufw reload` loads the files where ufw is enabled".to_owned(),
        ));
    }
    if let Some(advice) = advice(statement) {
        return Err(Some(advice));
    }
    // Bound to the interface by which it comes, and not.
    let bound = target.comes_by.as_deref().and_then(plain).filter(|_| target.is_forwarded).map(|_| target.clone());
    let targets: Vec<Target> = bound.into_iter().chain([target.by_any()]).collect();
    if statement.name.starts_with("default ") {
        return Ok(targets.iter().flat_map(by_default).collect());
    }
    if statement.name.starts_with("-A ") {
        let file = statement.what.trim_start_matches("ufw's ").trim_end_matches(':');
        return Err(Some(format!(
            "it is a line of {file}, which no command of ufw's changes: edit it, then `ufw reload`"
        )));
    }
    let Some(words) = Words::of(&statement.name, target.is_forwarded) else { return Ok(Vec::new()) };
    let entries = Entries::of(known.file(USER), known.file(USER6));
    Ok(targets.iter().flat_map(|target| of_statement(rule, statement, &words, target, &entries)).collect())
}

/// `ufw insert 1`, `ufw route prepend`, `ufw`.
fn ufw(target: &Target, place: &str) -> String {
    let route = if target.is_forwarded { "route " } else { "" };
    let place = if place.is_empty() { String::new() } else { format!("{place} ") };
    format!("ufw {route}{place}")
}

/// `in on docker0 `: by which interface what is forwarded comes.
fn comes_by(target: &Target) -> String {
    target.comes_by.as_ref().map(|name| format!("in on {name} ")).unwrap_or_default()
}

/// What allows the port everywhere, as it is typed, and as ufw writes it.
fn port(target: &Target) -> String {
    if target.is_forwarded {
        format!("allow {}proto {} to any port {}", comes_by(target), target.transport, target.port)
    } else {
        format!("allow out {}", target.port())
    }
}

fn of_address(target: &Target, address: IpAddr) -> String {
    let out = if target.is_forwarded { comes_by(target) } else { "out ".to_owned() };
    format!("allow {out}proto {} to {address} port {}", target.transport, target.port)
}

fn plan(scope: Scope, opens: String, commands: Vec<String>, undo: Vec<String>, note: Option<String>) -> Plan {
    Plan { commands, undo, scope, opens, lasts: Lasts::Permanent, note }
}

/// Whatever no rule allows is stopped: a rule behind all others is enough.
fn by_default(target: &Target) -> Vec<Plan> {
    let allow = |what: &str| vec![format!("{}{what}", ufw(target, ""))];
    let delete = |what: &str| vec![format!("{}{what}", ufw(target, "delete"))];
    let by_port = plan(Scope::Port, target.opens_port(), allow(&port(target)), delete(&port(target)), None);
    let all = target.addresses.iter().map(|address| of_address(target, *address));
    let by_address = plan(
        Scope::Address,
        target.opens_address(&target.addresses),
        all.clone().flat_map(|what| allow(&what)).collect(),
        all.flat_map(|what| delete(&what)).collect(),
        Some(target.of_addresses()),
    );
    vec![by_port, by_address]
}

fn of_statement(
    rule: &NamedRule,
    statement: &Statement,
    words: &Words<'_>,
    target: &Target,
    entries: &Entries,
) -> Vec<Plan> {
    let (comment, lost) = of_comment(statement.comment.as_ref());
    // Positions are IPv4's; what is for IPv6 alone can only be put first.
    let number = statement.number.filter(|_| rule.family == "ip");
    let place = number.map_or_else(|| "prepend".to_owned(), |number| format!("insert {number}"));
    let before = |what: &str| format!("{}{what}", ufw(target, &place));
    let delete = |what: &str| format!("{}{what}", ufw(target, "delete"));
    let mut plans = Vec::new();
    let is_the_port = !target.is_forwarded && words.about == target.port();
    if is_the_port {
        let commands = vec![format!("ufw allow out {}", target.port())];
        let undo = vec![format!("ufw {}{comment}", words.command(false))];
        plans.push(plan(Scope::Port, target.opens_port(), commands, undo, lost.clone()));
    }
    // One about the same must go first: it would be changed where it stands, or the new one be skipped.
    let mut commands = vec![before(&port(target))];
    let mut undo = vec![delete(&port(target))];
    // Where it stood last, nothing comes behind it that it could be put in front of.
    let existing = |about: &str| {
        entries.all.iter().find_map(|entry| {
            let words = Words::of(&entry.words, target.is_forwarded).filter(|words| words.about == about)?;
            let command = words.command(target.is_forwarded);
            let (comment, lost) = of_comment(entry.comment.as_ref());
            let place = entry.number.filter(|number| *number < entries.numbers);
            let place = place.map_or_else(String::new, |number| format!("insert {number}"));
            Some((delete(&command), format!("{}{command}{comment}", ufw(target, &place)), lost))
        })
    };
    let mut note = None;
    if !is_the_port && let Some((delete, again, lost)) = existing(&target.port()) {
        commands.insert(0, delete);
        undo.push(again);
        note = lost;
    }
    let by_port = plan(Scope::Port, target.opens_port(), commands, undo, note);
    let (v4, v6) = (target.of_family(false), target.of_family(true));
    let all: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    // In front of the statement, each with what ufw calls it and what makes it.
    let inserted = |all: Vec<(Option<IpAddr>, String, String)>, scope: Scope, opens: String, notes: Vec<String>| {
        let (mut commands, mut undo, mut notes) = (Vec::new(), Vec::new(), notes);
        for (address, about, made) in all {
            // It is changed where it stands.
            if words.about == about {
                commands.push(ufw(target, "") + &made);
                undo.push(format!("{}{}{comment}", ufw(target, ""), words.command(target.is_forwarded)));
                notes.extend(lost.clone());
                continue;
            }
            let place = match (address, number) {
                (None | Some(IpAddr::V4(_)), Some(number)) => format!("insert {number}"),
                _ => "prepend".to_owned(),
            };
            let existing = existing(&about);
            undo.extend(existing.iter().map(|(_, again, _)| again.clone()));
            undo.push(delete(&made));
            commands.extend(existing.iter().map(|(delete, ..)| delete.clone()));
            commands.push(ufw(target, &place) + &made);
            notes.extend(existing.and_then(|(.., lost)| lost));
        }
        undo.reverse();
        plan(scope, opens, commands, undo, (!notes.is_empty()).then(|| notes.join("; ")))
    };
    let to = |address: &dyn std::fmt::Display| format!("to {address} port {} proto {}", target.port, target.transport);
    let each = all.iter().map(|address| (Some(*address), to(address), of_address(target, *address))).collect();
    let by_address = inserted(each, Scope::Address, target.opens_address(&all), vec![target.of_addresses()]);
    // For the interface alone that the statement is about.
    let interface = words.about.strip_prefix("on ").and_then(|rest| plain(rest.split(' ').next()?));
    let on = interface.filter(|_| !target.is_forwarded).map(|name| format!("on {name} "));
    let mut bound = Vec::new();
    if let (Some(on), Some(name)) = (&on, interface) {
        let made = |about: String| (format!("{on}{about}"), format!("allow out {on}{about}"));
        let (about, port) = made(to(&"any"));
        let opens = format!("{} by {name}", target.opens_port());
        bound.push(inserted(vec![(None, about, port)], Scope::Port, opens, Vec::new()));
        let each = all.iter().map(|address| {
            let (about, made) = made(to(address));
            (Some(*address), about, made)
        });
        let opens = format!("{} by {name}", target.opens_address(&all));
        bound.push(inserted(each.collect(), Scope::Address, opens, vec![target.of_addresses()]));
    }
    // It stops nothing else then.
    let is_exact = on.as_ref().is_some_and(|on| words.about == format!("{on}{}", to(&"any")));
    let deleted = deletion(statement, target, number, entries, (&comment, lost.clone()));
    let deleted = deleted.map(|plan| if is_exact { Plan { scope: Scope::Port, ..plan } } else { plan });
    if is_exact {
        plans.extend(deleted);
        plans.extend(bound);
        plans.extend([by_port, by_address]);
    } else {
        plans.extend(bound);
        plans.extend([by_port, by_address]);
        plans.extend(deleted);
    }
    plans
}

/// The comment of a statement behind a command that makes that statement again, and what is to be known of it.
fn of_comment(comment: Option<&String>) -> (String, Option<String>) {
    const MAX: usize = 120;
    // Quotes keep it one word for every shell.
    let is_plain = |text: &&String| {
        text.len() <= MAX
            && text
                .chars()
                .all(|character| character == ' ' || character.is_ascii_graphic() && !"'\\!`$\"".contains(character))
    };
    match comment {
        None => (String::new(), None),
        Some(text) if is_plain(&text) => {
            (format!(" comment '{text}'"), Some("the undo restores the rule's comment".to_owned()))
        }
        Some(_) => (String::new(), Some("ufw forgets the comment of the rule that it changes".to_owned())),
    }
}

/// Takes the statement itself away.
fn deletion(
    statement: &Statement,
    target: &Target,
    number: Option<u32>,
    entries: &Entries,
    (comment, lost): (&str, Option<String>),
) -> Option<Plan> {
    let rest: Vec<&str> = statement.name.split(' ').collect();
    if !rest.iter().all(|word| plain(word).is_some()) {
        return None;
    }
    let own = statement.name.strip_prefix("route ").unwrap_or(&statement.name);
    // Where it stood last, nothing comes behind it that it could be put in front of.
    let last = entries.numbers;
    let again = match number {
        Some(number) if number < last => ufw(target, &format!("insert {number}")),
        Some(_) => ufw(target, ""),
        None => ufw(target, "prepend"),
    };
    Some(plan(
        Scope::Rule,
        format!("all that `{}` stopped", statement.name),
        vec![format!("{}{own}", ufw(target, "delete"))],
        vec![format!("{again}{own}{comment}")],
        lost,
    ))
}

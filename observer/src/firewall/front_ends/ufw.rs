//! ufw: its rules as `ufw show added` writes them, numbered as `ufw status numbered` does; its default policies; its
//! `before.rules` and `after.rules`.

use std::collections::HashSet;

use super::{Does, Place, is_about_the_same};
use crate::{firewall::files::Root, model::Statement};

const RULESET: &str = "ufw";
const FILES: &str = "/etc/ufw/";
const DEFAULTS: &str = "/etc/default/ufw";

/// A statement of the administrator's, as ufw keeps it in a comment above the rules that it makes of it.
#[derive(Debug, PartialEq, Eq)]
struct Tuple {
    /// `deny`, `reject`, …
    action: String,
    /// `log` or `log-all`; empty without.
    log: String,
    is_route: bool,
    protocol: String,
    destination: End,
    source: End,
    is_out: bool,
    interface_in: String,
    interface_out: String,
    comment: Option<String>,
}

/// One end of what it matches.
#[derive(Debug, PartialEq, Eq)]
struct End {
    address: String,
    port: String,
    /// Application profile; empty without.
    profile: String,
}

/// A rule of a file of iptables-restore's, and the statement that it was made of.
struct Line {
    /// Behind `-A CHAIN`, as it stands there.
    text: String,
    words: Vec<String>,
    tuple: Option<usize>,
}

/// The statement, if the rule is ufw's.
pub(super) fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    let named = place.named;
    let v6 = match named.family.as_str() {
        "ip" => false,
        "ip6" => true,
        _ => return None,
    };
    let prefix = if v6 { "ufw6-" } else { "ufw-" };
    if named.table != "filter" || !place.has_chain(prefix) {
        return None;
    }
    let Some(own) = named.chain.strip_prefix(prefix) else {
        // The rules of a built-in chain are not ufw's, but its policy is.
        let routed = named.chain == "FORWARD";
        return named.is_policy().then(|| policy(routed, roots));
    };
    match own {
        "reject-output" => return Some(by_default("reject", false)),
        "reject-forward" => return Some(by_default("reject", true)),
        _ => {}
    }
    let chain = &named.chain;
    let mut seen_file = false;
    for root in roots() {
        let file = |name: &str| root.read(&format!("{FILES}{name}{}.rules", if v6 { "6" } else { "" })).ok();
        let Some(user) = file("user") else { continue };
        seen_file = true;
        let (tuples, lines) = parse(&user, chain);
        if own == "user-limit" {
            if let Some(statement) = limit(place, &user, prefix, v6, &root) {
                return Some(statement);
            }
            continue;
        }
        if own.starts_with("user-") {
            let Some(line) = place.index().filter(|_| agree(place, &lines, true)).and_then(|index| lines.get(index))
            else {
                continue;
            };
            if let Some(index) = line.tuple {
                return Some(of_tuple(&tuples, index, v6, &root));
            }
            return Some(of_file(line, chain, "user", v6));
        }
        for name in ["before", "after"] {
            let (_, lines) = parse(&file(name).unwrap_or_default(), chain);
            // ufw adds its own behind them.
            if let Some(line) = place.index().filter(|_| agree(place, &lines, false)).and_then(|index| lines.get(index))
            {
                return Some(of_file(line, chain, name, v6));
            }
        }
    }
    // It is in ufw's chain, and not as ufw's files have it.
    let number = named.position.map(|position| format!(", rule {position}")).unwrap_or_default();
    let note = if seen_file {
        "the rules in force are not those of ufw's files: changed without ufw, or not reloaded"
    } else {
        "ufw's files are not to be read"
    };
    Some(Statement {
        ruleset: RULESET.to_owned(),
        what: format!("ufw's chain {chain}{number}"),
        name: place.text()?,
        number: None,
        comment: None,
        note: Some(note.to_owned()),
    })
}

/// Lines of a file agree with the rules in force: all of them, or those at the beginning.
fn agree(place: &Place<'_>, lines: &[Line], wholly: bool) -> bool {
    let many = if wholly { lines.len() == place.rules.len() } else { lines.len() <= place.rules.len() };
    let same = |(line, rule): (&Line, &&super::Rule)| Does::of_words(&line.words) == Does::of(rule);
    let hit = place.index().and_then(|index| lines.get(index));
    let text = place.saved.or(place.named.text.as_deref());
    many && !lines.is_empty()
        && lines.iter().zip(place.rules).all(same)
        // Without its text nobody knows that it is that line's.
        && hit.is_none_or(|line| text.is_some_and(|text| is_about_the_same(&line.words, text)))
}

/// Statements of a file, and the lines that append to one chain.
fn parse(text: &str, chain: &str) -> (Vec<Tuple>, Vec<Line>) {
    let (mut tuples, mut lines) = (Vec::new(), Vec::new());
    let mut current = None;
    for line in text.lines().map(str::trim) {
        if let Some(tuple) = line.strip_prefix("### tuple ###") {
            current = tuple_of(tuple).map(|tuple| {
                tuples.push(tuple);
                tuples.len() - 1
            });
        } else if line.starts_with("### END RULES") {
            current = None;
        } else if let Some(rest) = line.strip_prefix("-A ")
            && let Some((of, text)) = rest.split_once(' ')
            && of == chain
            && let Some(words) = shlex::split(text)
        {
            lines.push(Line { text: text.to_owned(), words, tuple: current });
        }
    }
    (tuples, lines)
}

/// `deny tcp 443 0.0.0.0/0 any 0.0.0.0/0 out comment=…`; before the direction there may be two application profiles.
fn tuple_of(text: &str) -> Option<Tuple> {
    let (text, comment) = match text.split_once(" comment=") {
        Some((text, comment)) => (text, of_hexadecimal(comment.trim())),
        None => (text, None),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let (first, profiles, direction) = match words.as_slice() {
        [first @ .., direction] if first.len() == 6 => (first, ["-", "-"], *direction),
        [first @ .., to, from, direction] if first.len() == 6 => (first, [*to, *from], *direction),
        // Of the time when rules had no direction.
        first if first.len() == 6 => (first, ["-", "-"], "in"),
        _ => return None,
    };
    let [action, protocol, port, address, source_port, source] = *<&[&str; 6]>::try_from(first).ok()?;
    let (action, is_route) = action.strip_prefix("route:").map_or((action, false), |action| (action, true));
    let (action, log) = action.split_once('_').unwrap_or((action, ""));
    let profile = |word: &str| if word == "-" { String::new() } else { word.replace("%20", " ") };
    let interface =
        |prefix: &str| direction.split('!').find_map(|part| part.strip_prefix(prefix)).unwrap_or_default().to_owned();
    let end = |address: &str, port: &str, of: &str| End {
        address: address.to_owned(),
        port: port.to_owned(),
        profile: profile(of),
    };
    Some(Tuple {
        action: action.to_owned(),
        log: log.to_owned(),
        is_route,
        protocol: protocol.to_owned(),
        destination: end(address, port, profiles[0]),
        source: end(source, source_port, profiles[1]),
        is_out: direction.starts_with("out"),
        interface_in: interface("in_"),
        interface_out: interface("out_"),
        comment,
    })
}

fn of_hexadecimal(text: &str) -> Option<String> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    Some(String::from_utf8_lossy(&bytes?).into_owned())
}

impl End {
    fn is_any(&self) -> bool {
        matches!(self.address.as_str(), "0.0.0.0/0" | "::/0")
    }

    /// ` to 203.0.113.0/24 port 80`; nothing where it is anything.
    fn words(&self, direction: &str) -> String {
        let address = if self.is_any() { "any" } else { &self.address };
        let port = match (self.profile.as_str(), self.port.as_str()) {
            ("", "any") => String::new(),
            ("", port) => format!(" port {port}"),
            (profile, _) => format!(" app {}", quoted(profile)),
        };
        if address == "any" && port.is_empty() { String::new() } else { format!(" {direction} {address}{port}") }
    }
}

fn quoted(profile: &str) -> String {
    if profile.contains(' ') { format!("'{profile}'") } else { profile.to_owned() }
}

impl Tuple {
    /// As `ufw show added` writes it, behind `ufw` and without its comment.
    fn words(&self) -> String {
        let mut words = if self.is_route { format!("route {}", self.action) } else { self.action.clone() };
        let log = if self.log.is_empty() { String::new() } else { format!(" {}", self.log) };
        let is_short = self.destination.is_any()
            && self.source.is_any()
            && self.source.port == "any"
            && self.source.profile.is_empty()
            && self.interface_in.is_empty()
            && self.interface_out.is_empty()
            && self.destination.port != "any";
        if is_short {
            if self.is_out {
                words += " out";
            }
            words += &log;
            if self.destination.profile.is_empty() {
                words += &format!(" {}", self.destination.port);
                if self.protocol != "any" {
                    words += &format!("/{}", self.protocol);
                }
            } else {
                words += &format!(" {}", quoted(&self.destination.profile));
            }
            return words;
        }
        if !self.interface_in.is_empty() {
            words += &format!(" in on {}", self.interface_in);
        }
        if !self.interface_out.is_empty() {
            words += &format!(" out on {}", self.interface_out);
        } else if self.is_out {
            words += " out";
        }
        words += &log;
        let ends = self.source.words("from") + &self.destination.words("to");
        if ends.is_empty() && self.interface_in.is_empty() && self.interface_out.is_empty() {
            words += " to any";
        }
        words += &ends;
        if self.protocol != "any" && self.destination.profile.is_empty() && self.source.profile.is_empty() {
            words += &format!(" proto {}", self.protocol);
        }
        words
    }

    /// What makes the rules of one application profile one entry of `ufw status numbered`.
    fn profile(&self) -> Option<String> {
        let name = |end: &End| if end.profile.is_empty() { end.port.clone() } else { end.profile.clone() };
        let has = !self.destination.profile.is_empty() || !self.source.profile.is_empty();
        has.then(|| {
            [
                name(&self.destination),
                self.destination.address.clone(),
                name(&self.source),
                self.source.address.clone(),
                self.interface_in.clone(),
                self.interface_out.clone(),
                // Only what names an interface says its direction otherwise.
                if self.is_out { "out" } else { "in" }.to_owned(),
            ]
            .join(" ")
        })
    }
}

/// The number that `ufw status numbered` gives the tuple at `index`, behind those of the other family: the rules of an
/// application profile stand there under their first one's.
fn number(before: &[Tuple], tuples: &[Tuple], index: usize) -> u32 {
    let all: Vec<&Tuple> = before.iter().chain(tuples).collect();
    let at = before.len() + index;
    let profile = all[at].profile();
    let first = all.iter().position(|other| profile.is_some() && other.profile() == profile).unwrap_or(at);
    let mut profiles = HashSet::new();
    let entries = all[..=first].iter().filter(|tuple| tuple.profile().is_none_or(|profile| profiles.insert(profile)));
    entries.count() as u32
}

fn of_tuple(tuples: &[Tuple], index: usize, v6: bool, root: &Root) -> Statement {
    let tuple = &tuples[index];
    // Those for IPv4 are numbered first.
    let before = if v6 { root.read(&format!("{FILES}user.rules")).ok() } else { Some(String::new()) };
    let before = before.map(|text| parse(&text, "").0);
    let number = before.map(|before| number(&before, tuples, index));
    let what = number.map_or_else(|| "a rule of ufw's".to_owned(), |number| format!("ufw rule {number}"));
    Statement {
        ruleset: RULESET.to_owned(),
        what,
        name: tuple.words(),
        number,
        comment: tuple.comment.clone(),
        note: None,
    }
}

/// ufw's statements, as it writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// For IPv4.
    pub v4: Vec<String>,
    /// For IPv6.
    pub v6: Vec<String>,
    /// The highest number of those for IPv4.
    pub numbers: u32,
}

/// Those of the files below a root folder; none where there are no files.
pub fn entries(root: &Root) -> Entries {
    let read = |name: &str| parse(&root.read(&format!("{FILES}{name}.rules")).unwrap_or_default(), "").0;
    let (v4, v6) = (read("user"), read("user6"));
    let words = |tuples: &[Tuple]| tuples.iter().map(Tuple::words).collect();
    let numbers = v4.len().checked_sub(1).map_or(0, |last| number(&[], &v4, last));
    Entries { v4: words(&v4), v6: words(&v6), numbers }
}

/// All statements that limit share one rule that rejects: told where there is only one that leads there.
fn limit(place: &Place<'_>, user: &str, prefix: &str, v6: bool, root: &Root) -> Option<Statement> {
    let from = if place.base == "FORWARD" { "user-forward" } else { "user-output" };
    let (tuples, lines) = parse(user, &format!("{prefix}{from}"));
    // The file must be what is in force here too.
    let in_force: Vec<Does<'_>> =
        place.all.iter().filter(|rule| rule.chain == format!("{prefix}{from}")).map(|rule| Does::of(rule)).collect();
    if in_force != lines.iter().map(|line| Does::of_words(&line.words)).collect::<Vec<_>>() {
        return None;
    }
    let to = Does::Leads(&place.named.chain);
    let mut leading = lines.iter().filter(|line| Does::of_words(&line.words) == to).filter_map(|line| line.tuple);
    let first = leading.next()?;
    if leading.any(|other| other != first) {
        return None;
    }
    Some(of_tuple(&tuples, first, v6, root))
}

fn of_file(line: &Line, chain: &str, name: &str, v6: bool) -> Statement {
    let six = if v6 { "6" } else { "" };
    Statement {
        ruleset: RULESET.to_owned(),
        what: format!("ufw's {FILES}{name}{six}.rules:"),
        name: format!("-A {chain} {}", line.text),
        number: None,
        comment: None,
        note: None,
    }
}

/// A built-in chain drops what no rule accepts.
fn policy(routed: bool, roots: &mut dyn FnMut() -> Vec<Root>) -> Statement {
    let key = if routed { "DEFAULT_FORWARD_POLICY" } else { "DEFAULT_OUTPUT_POLICY" };
    let known: Vec<String> = roots().iter().filter_map(|root| value(&root.read(DEFAULTS).ok()?, key)).collect();
    let statement = by_default("deny", routed);
    // One that rejects does so by a rule, and its policy drops what comes after that.
    let agrees = |known: &String| ["DROP", "REJECT"].contains(&known.as_str());
    match known.first() {
        Some(other) if !known.iter().any(agrees) => Statement {
            note: Some(format!("{DEFAULTS} says {key}={other}: changed without ufw, or not reloaded")),
            what: "policy of ufw's chain".to_owned(),
            name: format!("-P {} DROP", if routed { "FORWARD" } else { "OUTPUT" }),
            ..statement
        },
        _ => statement,
    }
}

fn by_default(action: &str, routed: bool) -> Statement {
    Statement {
        ruleset: RULESET.to_owned(),
        what: "ufw's default policy".to_owned(),
        name: format!("default {action} {}", if routed { "routed" } else { "outgoing" }),
        number: None,
        comment: None,
        note: None,
    }
}

/// `KEY="VALUE"`
fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='))?;
    Some(shlex::split(line)?.concat())
}

#[cfg(test)]
#[path = "ufw_tests.rs"]
mod tests;

//! ufw's files of rules: each of its statements stands in a comment, above the rules that ufw made of it.

use std::collections::HashSet;

/// A statement of the administrator's, as ufw keeps it in a comment above the rules that it makes of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tuple {
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
    pub(super) comment: Option<String>,
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
pub(super) struct Line {
    /// Behind `-A CHAIN`, as it stands there.
    pub(super) text: String,
    pub(super) words: Vec<String>,
    pub(super) tuple: Option<usize>,
}

/// Statements of a file, and the lines that append to one chain.
pub(super) fn parse(text: &str, chain: &str) -> (Vec<Tuple>, Vec<Line>) {
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
        Some((text, comment)) => (text, of_hexadecimal(comment.trim()).map(shortened)),
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

/// A comment may be as long as its writer likes.
fn shortened(comment: String) -> String {
    const MAX: usize = 160;
    if comment.chars().count() <= MAX { comment } else { comment.chars().take(MAX).chain(['…']).collect() }
}

pub(super) fn of_hexadecimal(text: &str) -> Option<String> {
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
    pub(super) fn words(&self) -> String {
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
pub(super) fn number(before: &[Tuple], tuples: &[Tuple], index: usize) -> u32 {
    let all: Vec<&Tuple> = before.iter().chain(tuples).collect();
    let at = before.len() + index;
    let profile = all[at].profile();
    let first = all.iter().position(|other| profile.is_some() && other.profile() == profile).unwrap_or(at);
    let mut profiles = HashSet::new();
    let entries = all[..=first].iter().filter(|tuple| tuple.profile().is_none_or(|profile| profiles.insert(profile)));
    entries.count() as u32
}

/// One of ufw's statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As ufw writes it, without its comment.
    pub(super) words: String,
    pub(super) comment: Option<String>,
    /// Its number, of one for IPv4.
    pub(super) number: Option<u32>,
}

/// ufw's statements, as it writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// All of them: those for IPv4 first.
    pub(super) all: Vec<Entry>,
    /// The highest number of those for IPv4.
    pub(super) numbers: u32,
}

impl Entries {
    /// Those of `user.rules` and `user6.rules`.
    pub(super) fn of(user: &str, user6: &str) -> Self {
        let (v4, v6) = (parse(user, "").0, parse(user6, "").0);
        let numbers = v4.len().checked_sub(1).map_or(0, |last| number(&[], &v4, last));
        let entry = |tuple: &Tuple, number| Entry { words: tuple.words(), comment: tuple.comment.clone(), number };
        let numbered = v4.iter().enumerate().map(|(at, tuple)| entry(tuple, Some(number(&[], &v4, at))));
        let all = numbered.chain(v6.iter().map(|tuple| entry(tuple, None))).collect();
        Self { all, numbers }
    }
}

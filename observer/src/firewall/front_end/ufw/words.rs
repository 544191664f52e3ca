//! ufw's words: its rules as `ufw show added` writes them, numbered as `ufw status numbered` does; its default policies; its
//! `before.rules` and `after.rules`.

use super::{
    NAME,
    files::{DEFAULTS, FOLDER, SETTINGS},
    tuples::{Line, Tuple, number, parse},
};
use crate::{
    firewall::{
        files::Root,
        front_end::{
            Place,
            line::{Does, is_about_the_same},
            words::plain,
        },
        nft::Rule,
    },
    model::Statement,
};

/// Its setting by which it drops all of IPv6.
pub(super) const WITHOUT_IPV6: &str = "IPV6=no";

/// The statement, if the rule is ufw's.
pub(super) fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    let named = place.named;
    let v6 = match named.family.as_str() {
        "ip" => false,
        "ip6" => true,
        _ => return None,
    };
    let prefix = if v6 { "ufw6-" } else { "ufw-" };
    if named.table != "filter" {
        return None;
    }
    if !place.has_chain(prefix) {
        return (v6 && named.is_policy()).then(|| without_ipv6(roots)).flatten();
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
        let file = |name: &str| root.read(&format!("{FOLDER}/{name}{}.rules", if v6 { "6" } else { "" })).ok();
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
        "the live rules differ from ufw's files: changed without ufw, or not reloaded"
    } else {
        "ufw's files are not to be read"
    };
    let statement = plain(NAME, format!("ufw's chain {chain}{number}"), place.text()?);
    Some(Statement { note: Some(note.to_owned()), ..statement })
}

/// With `IPV6=no` it drops all of IPv6 by policies, and has no chains for it.
fn without_ipv6(roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    let says = |text: &str, setting: &str| text.lines().any(|line| line.trim().eq_ignore_ascii_case(setting));
    let is_so = |root: &Root| {
        root.read(DEFAULTS).is_ok_and(|text| says(&text, "ipv6=no"))
            && root.read(SETTINGS).is_ok_and(|text| says(&text, "enabled=yes"))
    };
    roots().iter().any(is_so).then(|| plain(NAME, format!("ufw's setting in {DEFAULTS}"), WITHOUT_IPV6.to_owned()))
}

/// Lines of a file agree with the rules in force: all of them, or those at the beginning.
fn agree(place: &Place<'_>, lines: &[Line], wholly: bool) -> bool {
    let many = if wholly { lines.len() == place.rules.len() } else { lines.len() <= place.rules.len() };
    let same = |(line, rule): (&Line, &&Rule)| Does::of_words(&line.words) == Does::of(rule);
    let hit = place.index().and_then(|index| lines.get(index));
    let text = place.saved.or(place.named.text.as_deref());
    many && !lines.is_empty()
        && lines.iter().zip(place.rules).all(same)
        // Without its text nobody knows that it is that line's.
        && hit.is_none_or(|line| text.is_some_and(|text| is_about_the_same(&line.words, text)))
}

fn of_tuple(tuples: &[Tuple], index: usize, v6: bool, root: &Root) -> Statement {
    let tuple = &tuples[index];
    // Those for IPv4 are numbered first.
    let before = if v6 { root.read(&format!("{FOLDER}/user.rules")).ok() } else { Some(String::new()) };
    let before = before.map(|text| parse(&text, "").0);
    let number = before.map(|before| number(&before, tuples, index));
    let what = number.map_or_else(|| "a rule of ufw's".to_owned(), |number| format!("ufw rule {number}"));
    Statement { number, comment: tuple.comment.clone(), ..plain(NAME, what, tuple.words()) }
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
    plain(NAME, format!("ufw's {FOLDER}/{name}{six}.rules:"), format!("-A {chain} {}", line.text))
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
    let name = format!("default {action} {}", if routed { "routed" } else { "outgoing" });
    plain(NAME, "ufw's default policy".to_owned(), name)
}

/// `KEY="VALUE"`
fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='))?;
    Some(shlex::split(line)?.concat())
}

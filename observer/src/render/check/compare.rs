//! An answer and an earlier one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::{ALERT, Answer, BY_KNOWN, STRONG, json::line};
use crate::render::escape::escape;

/// What an earlier answer said of each destination.
pub struct Kept(BTreeMap<String, BTreeSet<String>>);

/// What differs from an earlier answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `install.example.com:443/tcp v4`
    pub place: String,
    /// What was said, and what is now.
    pub was: String,
    /// See `was`.
    pub is: String,
    /// It passed, and does not any more.
    pub is_worse: bool,
}

/// What says the same of a destination the next time, whatever address it has then.
fn key(value: &Value) -> Option<String> {
    let destination = &value["destination"];
    let host = destination["domain"].as_str().or(destination["ip"].as_str())?;
    let family = if value["network"]["type"] == "ipv6" { "v6" } else { "v4" };
    Some(format!("{host}:{}/{} {family}", destination["port"], value["network"]["transport"].as_str()?))
}

const ALLOWED: &str = "allowed";

/// By what it is stopped, or that it is not.
fn said(value: &Value) -> String {
    let action = value["event"]["action"].as_str().unwrap_or_default().trim_start_matches("egress-");
    let why = value["egress"]["check"]["why"].as_str().unwrap_or_default();
    // What else is said beside an allowed destination stops nothing.
    if action == ALLOWED {
        return if why.starts_with(BY_KNOWN) { format!("{action} {BY_KNOWN}") } else { action.to_owned() };
    }
    match value["rule"]["name"].as_str().or(value["egress"]["check"]["why"].as_str()) {
        Some(by) => format!("{action} by {by}"),
        None => action.to_owned(),
    }
}

/// Everything that was said of the addresses of a name.
fn by_place(lines: impl Iterator<Item = Value>) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lines {
        if let Some(key) = key(&line) {
            all.entry(key).or_default().insert(said(&line));
        }
    }
    all
}

impl Kept {
    /// Reads what `--save` wrote.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} is no answer of `check`", path.display()))?;
        let is_answer = |line: &Value| line["event"]["dataset"] == "observer.check";
        ensure!(!lines.is_empty() && lines.iter().all(is_answer), "{} is no answer of `check`", path.display());
        Ok(Self(by_place(lines.into_iter())))
    }

    /// What changed now, of what was asked both times; an error where that is nothing.
    pub fn compare(&self, answer: &Answer) -> anyhow::Result<Vec<Difference>> {
        let now = Timestamp::now();
        let lines = answer.targets.iter().zip(answer.fates()).flat_map(|(target, fates)| {
            let all = target.addresses.iter().zip(fates);
            all.filter_map(move |(address, fate)| {
                serde_json::to_value(line(answer, target, *address, (fate, None), now)).ok()
            })
        });
        let now = by_place(lines);
        ensure!(now.keys().any(|place| self.0.contains_key(place)), "the file has none of these destinations");
        let both = now.into_iter().filter_map(|(place, is)| Some((self.0.get(&place)?, place, is)));
        let words = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(", ");
        Ok(both
            .filter(|(was, _, is)| *was != is)
            .map(|(was, place, is)| {
                // Something passed, and not all of it does, or something else stops some of it.
                let is_new = is.iter().any(|said| said != ALLOWED && !was.contains(said));
                let is_worse = was.contains(ALLOWED) && (is_new || !is.contains(ALLOWED));
                Difference { is_worse, place, was: words(was), is: words(&is) }
            })
            .collect())
    }
}

/// What changed, for a person.
pub fn changes(writer: &mut impl Write, changes: &[Difference]) -> io::Result<()> {
    for Difference { place, was, is, is_worse } in changes {
        let (style, word) = if *is_worse { (ALERT, "worse") } else { (STRONG, "otherwise") };
        writeln!(writer, "{style}{word:<10}{style:#} {}: {} → {}", escape(place), escape(was), escape(is))?;
    }
    let worse = changes.iter().filter(|change| change.is_worse).count();
    writeln!(writer, "{STRONG}{worse} worse, {} otherwise than before{STRONG:#}", changes.len() - worse)?;
    writer.flush()
}

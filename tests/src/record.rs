//! What observer wrote in each scenario, as a set of lines without what is different in every run: so that a change that must not
//! change what is reported can be compared with what was reported before (`cargo xtask record`).
//!
//! The environment variable `OBSERVER_RECORD` names a folder; each scenario's lines become one file in it.

use std::{cell::RefCell, collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

thread_local! {
    /// The scenario that this thread runs, and its lines so far.
    static SCENARIO: RefCell<Option<(String, BTreeSet<String>)>> = const { RefCell::new(None) };
}

/// Fields whose values are another run's: when, how much, which number. An event's count is what its packets happened to be folded
/// into.
const PASSING: [&str; 42] = [
    "@timestamp",
    "agent",
    "after_ms",
    "ancestry",
    "at",
    "before_ms",
    "bytes",
    "cgroup",
    "count",
    "details",
    "ecs",
    "end",
    "entity_id",
    "enclosing",
    "filtered",
    "generation",
    "gives_up_ms",
    "hex",
    "host",
    "id",
    "incident",
    "inner_pid",
    "last_blocked",
    "missed_max",
    "netns",
    "origin_netns",
    "packets",
    "parent",
    "pid",
    "reported",
    "ruleset_sha256",
    "rules",
    "seen",
    "sequence",
    "sha256",
    "socket_inode",
    "start",
    "thread",
    "unit",
    "slice",
    "waited_ms",
    "where",
];

/// Runs a scenario, and writes down what was kept meanwhile.
pub fn during<T>(scenario: &str, run: impl FnOnce() -> T) -> T {
    let Some(folder) = std::env::var_os("OBSERVER_RECORD").map(PathBuf::from) else { return run() };
    SCENARIO.set(Some((scenario.to_owned(), BTreeSet::new())));
    let result = run();
    if let Some((name, lines)) = SCENARIO.take().filter(|(_, lines)| !lines.is_empty())
        && let Err(error) = write(&folder, &name, &lines)
    {
        eprintln!("{name} is not recorded: {error:#}");
    }
    result
}

fn write(folder: &std::path::Path, name: &str, lines: &BTreeSet<String>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{}.jsonl", name.replace("::", ".")));
    let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Keeps the JSON lines that observer wrote; all else is none.
pub(crate) fn keep(stdout: &[u8]) {
    SCENARIO.with_borrow_mut(|scenario| {
        let Some((_, lines)) = scenario else { return };
        let all = String::from_utf8_lossy(stdout);
        let values = all.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(Value::is_object);
        lines.extend(values.map(|value| normal(&value).to_string()));
    });
}

/// Without what is different in every run.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| !PASSING.contains(&name.as_str()));
            let kept = kept.map(|(name, value)| {
                let value = match name.as_str() {
                    "source" => Value::Null,
                    // Programs of the machine that runs the scenario.
                    "args" | "command_line" | "executable" | "script" => Value::Bool(!value.is_null()),
                    _ => normal(value),
                };
                (name.clone(), value)
            });
            Value::Object(kept.collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(normal).collect()),
        Value::String(text) => Value::String(without_numbers(text)),
        other => other.clone(),
    }
}

/// A text whose long numbers, and words that are made anew in every run, are a sign.
fn without_numbers(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    for word in text.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric()) {
        let (word, end) = word.split_at(word.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric()).len());
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        let is_made = digits >= 2 && word.len() >= 5 || digits >= 3 && digits == word.len();
        normal.push_str(if is_made { "#" } else { word });
        normal.push_str(end);
    }
    normal
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_passes_is_left_out() {
        let one = json!({"@timestamp": "2024", "egress": {"count": 3, "hook": "output", "reason": "of pid 41234 by handle 12"}});
        let other = json!({"@timestamp": "2025", "egress": {"count": 1, "hook": "output", "reason": "of pid 99234 by handle 12"}});
        assert_eq!(normal(&one), normal(&other));
        assert_ne!(normal(&one), normal(&json!({"egress": {"hook": "forward"}})));
    }
}

//! Values as JSON, one object a line.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{
    Serializer,
    ser::{CompactFormatter, Formatter},
};

use super::{ecs::Ecs, escape::must_escape};
use crate::model::{Agent, Host, Reporter};

/// How something stands, as one object: not an event.
#[derive(Serialize)]
pub(super) struct State<'a, T> {
    #[serde(rename = "@timestamp")]
    timestamp: Timestamp,
    ecs: Ecs,
    agent: &'a Agent,
    host: &'a Host,
    event: Meta,
    egress: T,
}

#[derive(Serialize)]
struct Meta {
    kind: &'static str,
    dataset: &'static str,
    module: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl<'a, T> State<'a, T> {
    /// As it is now, of `observer.doctor` or the like.
    pub(super) fn new(reporter: &'a Reporter, dataset: &'static str, reason: Option<String>, egress: T) -> Self {
        let Reporter { agent, host, .. } = reporter;
        let event = Meta { kind: "state", dataset, module: "observer", reason };
        Self { timestamp: Timestamp::now(), ecs: Ecs::default(), agent, host, event, egress }
    }
}

/// One value and a newline. Characters that could harm a terminal are written as `\uXXXX`: the same JSON to a program,
/// harmless to a person who looks at it.
pub fn write_line(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(&mut *writer, Harmless))?;
    writer.write_all(b"\n")
}

struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, character) in fragment.char_indices().filter(|(_, character)| must_escape(*character)) {
            CompactFormatter.write_string_fragment(writer, &fragment[plain..at])?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + character.len_utf8();
        }
        CompactFormatter.write_string_fragment(writer, &fragment[plain..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_same_json_without_anything_dangerous(text in any::<String>()) {
            let mut line = Vec::new();
            write_line(&mut line, &text).unwrap();
            let line = String::from_utf8(line).unwrap();
            prop_assert_eq!(&serde_json::from_str::<String>(&line).unwrap(), &text);
            prop_assert!(!line.trim_end_matches('\n').chars().any(must_escape));
        }
    }
}

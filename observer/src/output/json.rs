//! Events as JSON, one object a line.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{
    Serializer,
    ser::{CompactFormatter, Formatter},
};

use super::{Output, escape::must_escape};
use crate::model::{Change, Event, Summary};

/// Writes lines to `W`; flushed when nothing more is at hand.
pub struct JsonLines<W> {
    writer: W,
}

impl<W: Write + Send> JsonLines<W> {
    /// Over a buffered writer.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }
}

impl<W: Write + Send> Output for JsonLines<W> {
    fn event(&mut self, event: &Event) -> io::Result<bool> {
        write_line(&mut self.writer, event)?;
        Ok(true)
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        write_line(&mut self.writer, change)
    }

    fn idle(&mut self) -> io::Result<bool> {
        self.writer.flush()?;
        Ok(false)
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        write_line(&mut self.writer, summary)?;
        self.writer.flush()
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

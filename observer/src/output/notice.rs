//! What observer says beside its data: whole lines on stderr, each by one write, so that nothing of a command that shares
//! it comes in between.

use std::io::{self, BufWriter, Write};

use anstream::{AutoStream, ColorChoice, StripStream};

use super::escape::escape;

/// Says one line, or one with a hint below. Nobody may listen any more.
pub fn say(line: &str) {
    let lines: String = line.lines().map(|line| format!("{}\n", escape(line))).collect();
    let _ = io::stderr().write_all(lines.as_bytes());
}

/// Stderr for what is written in pieces and flushed by lines; without styles where they are not wanted.
pub fn stderr() -> Box<dyn Write + Send> {
    let buffered: Box<dyn Write + Send> = Box::new(BufWriter::new(io::stderr()));
    match AutoStream::choice(&io::stderr()) {
        ColorChoice::Never => Box::new(StripStream::new(buffered)),
        _ => buffered,
    }
}

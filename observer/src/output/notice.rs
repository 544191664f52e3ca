//! What observer says beside its data: whole lines on stderr, each by one write, so that nothing of a command that shares
//! it comes in between.

use std::io::{self, BufWriter, Write};

use anstream::{AutoStream, ColorChoice, StripStream};

/// Says one line. Nobody may listen any more.
pub fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Stderr for what is written in pieces and flushed by lines; without styles where they are not wanted.
pub fn stderr() -> Box<dyn Write + Send> {
    let buffered: Box<dyn Write + Send> = Box::new(BufWriter::new(io::stderr()));
    match AutoStream::choice(&io::stderr()) {
        ColorChoice::Never => Box::new(StripStream::new(buffered)),
        _ => buffered,
    }
}

//! What observer says beside its data: whole lines on stderr, each by one write, so that nothing of a command that shares
//! it comes in between.

use std::{
    io::{self, BufWriter, Write},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use anstream::{AutoStream, ColorChoice, StripStream};

use crate::render::{
    escape::escape,
    screen::{self, Screen},
};

/// Only errors are said.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// From now on [`note`] says nothing, or does.
pub fn set_quiet(is_quiet: bool) {
    IS_QUIET.store(is_quiet, Ordering::Relaxed);
}

/// Notices are not wanted.
pub fn is_quiet() -> bool {
    IS_QUIET.load(Ordering::Relaxed)
}

/// Says a notice: what is good to know, and no error.
pub fn note(line: &str) {
    if !is_quiet() {
        say(line);
    }
}

/// Says one line, or one with a hint below. Nobody may listen any more.
pub fn say(line: &str) {
    let mut lines = Screen::new(Vec::new(), screen::stderr_width);
    for line in line.lines() {
        let _ = writeln!(lines, "{}", escape(line));
    }
    let _ = io::stderr().write_all(lines.unbroken());
}

/// The same where something else may hold stderr up, such as a pipe that nobody reads: waits for it no longer than this.
pub fn say_within(line: &str, time: Duration) {
    let (done, waits) = channel();
    let line = line.to_owned();
    let said = thread::Builder::new().name("notice".to_owned()).spawn(move || {
        say(&line);
        // Nobody waits any more.
        let _ = done.send(());
    });
    if said.is_ok() {
        let _ = waits.recv_timeout(time);
    }
}

/// Stderr for what is written in pieces and flushed by lines; without styles where they are not wanted.
pub fn stderr() -> Screen<Box<dyn Write + Send>> {
    let buffered: Box<dyn Write + Send> = Box::new(BufWriter::new(io::stderr()));
    let styled = match AutoStream::choice(&io::stderr()) {
        ColorChoice::Never => Box::new(StripStream::new(buffered)),
        _ => buffered,
    };
    Screen::new(styled, screen::stderr_width)
}

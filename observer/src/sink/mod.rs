//! Where lines go: [`terminal`] for a person, [`run`] for whoever runs a command, [`jsonl`] for programs, [`store`] for later. Each has a thread of its own behind a
//! bounded queue ([`fan`]).

pub mod fan;
mod groups;
pub mod jsonl;
pub mod live;
pub mod notice;
pub mod ordered;
mod repeats;
pub mod run;
pub mod store;
pub mod terminal;
mod top;

use std::{io, time::Duration};

use crate::{
    incident::Snapshot,
    model::{Coverage, Document, Line},
};

/// Something that takes lines.
pub trait Sink: Send {
    /// One line, and the story that it belongs to as it stood then.
    fn take(&mut self, line: &Line, story: Option<Snapshot>) -> io::Result<()>;
    /// A ruleset that lines refer to, once.
    fn document(&mut self, _document: &Document) -> io::Result<()> {
        Ok(())
    }
    /// Called when nothing more is at hand, and several times a second in a storm: tell what waited long enough, flush. After how long
    /// it is to be called again, where something still waits.
    fn tick(&mut self) -> io::Result<Option<Duration>>;
    /// The end: the account's line, and what it tells.
    fn finish(&mut self, line: &Line, coverage: &Coverage) -> io::Result<()>;
}

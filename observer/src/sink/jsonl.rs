//! Lines as JSON, one object a line, as the Elastic Common Schema names its fields.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::Sink;
use crate::{
    incident::Snapshot,
    model::{Coverage, Line, Reporter},
    render::ecs,
};

/// Writes to `W`; flushed when nothing more is at hand.
pub struct JsonLines<W> {
    writer: W,
    reporter: Reporter,
}

impl<W: Write + Send> JsonLines<W> {
    /// Over a buffered writer.
    pub fn new(writer: W, reporter: Reporter) -> Self {
        Self { writer, reporter }
    }
}

impl<W: Write + Send> Sink for JsonLines<W> {
    fn take(&mut self, line: &Line, _: Option<Snapshot>) -> io::Result<()> {
        ecs::write(&mut self.writer, line, &self.reporter)
    }

    fn tick(&mut self) -> io::Result<Option<Duration>> {
        self.writer.flush().map(|()| None)
    }

    fn finish(&mut self, line: &Line, _: &Coverage) -> io::Result<()> {
        ecs::write(&mut self.writer, line, &self.reporter)?;
        self.writer.flush()
    }
}

//! `observer doctor`

use std::io::{self, BufWriter};

use anyhow::Result;
use clap::ValueEnum;

use super::Exit;
use crate::{
    doctor,
    model::Status,
    privilege::Helper,
    render::{
        doctor as render,
        screen::{self, Screen},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Choose the output format
    #[arg(short, long, value_enum, default_value = "human")]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Text for a person
    Human,
    /// One JSON object
    Json,
    /// A table for a ticket
    Markdown,
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    let diagnosis = doctor::examine(Helper::start()?);
    let width = if matches!(args.output, Format::Human) { screen::stdout_width } else { screen::unlimited };
    let mut stdout = Screen::new(BufWriter::new(anstream::AutoStream::auto(io::stdout())), width);
    let written = match args.output {
        Format::Human => render::human(&mut stdout, &diagnosis),
        Format::Json => render::json(&mut stdout, &diagnosis),
        Format::Markdown => render::markdown(&mut stdout, &diagnosis),
    };
    super::written(written)?;
    Ok(if diagnosis.worst() == Status::Failed { Exit::CannotObserve } else { Exit::Done })
}

//! `observer report`

use std::{
    env,
    fs::{self, File},
    io::{self, BufWriter, Seek},
};

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::{
    Exit, config,
    exit::{self, UsageError},
    filters, times, written,
};
use crate::{
    render::ecs,
    sink::notice::note,
    store::{Range, Store, Stored},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the recorded events, one JSON object a line
    ///
    /// Repeated blocks of one incident are summed up after an hour. Such a line has the sum of their counts; `event.start` and `event.end`
    /// are the times of the first and the last packet.
    #[arg(long, required = true)]
    events: bool,
    /// Choose the output format
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
    /// Print what was reported from this time on: 2024-01-22T14:30Z, 14:30, 2h, yesterday
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    since: Option<Timestamp>,
    /// Print what was reported before this time
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    until: Option<Timestamp>,
    #[command(flatten)]
    store: config::OfTheStore,
    #[command(flatten)]
    filters: filters::Filters,
}

/// `-o`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object per line
    Json,
}

pub(super) fn run(args: Args) -> Result<Exit> {
    let Args { filters, events: _, output: Format::Json, since, until, store } = args;
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        let sentence = "--since is not before --until: no line can be between them".to_owned();
        let hint = "`--since 2h --until 10m` is from two hours ago to ten minutes ago; a time of day is today's";
        return Err(UsageError { sentence, hint: hint.to_owned() }.into());
    }
    if let Some(since) = since.filter(|since| *since > Timestamp::now()) {
        let sentence = format!("--since {since} is in the future: nothing was recorded then");
        return Err(UsageError { sentence, hint: "a time of day without a date is today's".to_owned() }.into());
    }
    let filter = filters.of_the_past()?;
    let store = store.path()?;
    let opened = Store::open(&store).map_err(|error| exit::wrong_store(error.into()))?;
    // Whoever reads it may take hours, and the store must not be held as long.
    let mut spool = BufWriter::new(spool().context("cannot make a temporary file")?);
    let mut count = 0;
    let read = opened.lines(Range { since, until }, |Stored { line, reporter, .. }| {
        if filter.matches(&line) {
            ecs::write(&mut spool, &line, &reporter).context("cannot write to a temporary file")?;
            count += 1;
        }
        Ok(())
    });
    drop(opened);
    let mut spool = spool.into_inner().context("cannot write to a temporary file")?;
    spool.rewind()?;
    let printed = io::copy(&mut spool, &mut io::stdout().lock());
    written(printed.map(drop))?;
    // What was read before a damaged page is printed.
    if let Some((lines, error)) = read? {
        let lines = if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") };
        note(&format!("observer: cannot read {lines} of {}: {error}", store.display()));
        return Ok(Exit::Usage);
    }
    if count == 0 {
        note(&format!("observer: {} has no line of that time and kind", store.display()));
    }
    Ok(Exit::Done)
}

/// A file of this user alone, without a name.
fn spool() -> io::Result<File> {
    let (file, path) = nix::unistd::mkstemp(&env::temp_dir().join("observer-XXXXXX"))?;
    fs::remove_file(path)?;
    Ok(file.into())
}

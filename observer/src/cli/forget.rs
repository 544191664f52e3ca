//! `observer forget`

use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;

use super::{Exit, exit::UsageError, filters, times};
use crate::{
    sink::notice::note,
    store::{self, Forget, Forgotten},
};

#[derive(Debug, clap::Args)]
#[command(override_usage = "observer forget [OPTIONS] --user USER|--container ID|--before TIME")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["user", "container", "before"]))]
pub(super) struct Args {
    /// Remove lines of this user, by name or number
    ///
    /// Lines of the user's rootless containers are removed too, whatever user they are of in there.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Remove lines of this container, by id or the beginning of it
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Remove what happened before this time: 2024-01-22, 30d
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    before: Option<Timestamp>,
    /// Use this store
    #[arg(long, value_name = "PATH", default_value = store::DEFAULT)]
    store: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    let what = match (&args.user, &args.container, args.before) {
        (Some(user), ..) => Forget::User(filters::user_id(user)?),
        (_, Some(id), _) if id.len() < 12 => {
            let sentence = format!("`{id}` is too short for a container's id: others may begin so too");
            return Err(UsageError { sentence, hint: "write at least 12 characters of it".to_owned() }.into());
        }
        (_, Some(id), _) => Forget::Container(id.clone()),
        (_, _, Some(time)) => Forget::Before(time),
        // clap asks for one of them.
        (None, None, None) => return Ok(Exit::Usage),
    };
    let Forgotten { lines, are_in_the_log } = store::forget(&args.store, &what)?;
    let store = args.store.display();
    note(&format!("observer: {lines} lines were removed from {store}"));
    if are_in_the_log {
        note(
            "observer: another program reads the store: until it ends, they are still in the log beside it; then run this again",
        );
    }
    for copy in store::copies(&args.store) {
        note(&format!("observer: {} is a copy and was not searched", copy.display()));
    }
    Ok(Exit::Done)
}

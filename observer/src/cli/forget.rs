//! `observer forget`

use anyhow::Result;
use jiff::Timestamp;

use super::{
    Exit, config,
    exit::{self, UsageError},
    filters, times,
};
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
    /// Lines of the user's rootless containers are removed too, also those of other users inside them.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Remove lines of this container, by id or the beginning of it
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Remove what happened before this time: 2024-01-22, 30d
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    before: Option<Timestamp>,
    /// Count the lines that would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: config::OfTheStore,
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
    if let Some(time) = args.before.filter(|time| *time > Timestamp::now()) {
        let sentence = format!("--before {time} is in the future: everything would be removed");
        return Err(UsageError { sentence, hint: "`--before now` removes everything until now".to_owned() }.into());
    }
    let path = args.store.path()?;
    let counted = |lines: u64, one: &str, more: &str| match lines {
        1 => format!("observer: 1 line {one} removed from {}", path.display()),
        _ => format!("observer: {lines} lines {more} removed from {}", path.display()),
    };
    if args.dry_run {
        let lines = store::count_forgotten(&path, &what).map_err(exit::wrong_store)?;
        note(&counted(lines.unsigned_abs(), "would be", "would be"));
        return Ok(Exit::Done);
    }
    let Forgotten { lines, is_empty, are_in_the_log } = store::forget(&path, &what).map_err(exit::wrong_store)?;
    let left = if lines > 0 && is_empty { ": it has no line any more" } else { "" };
    note(&format!("{}{left}", counted(lines, "was", "were")));
    if are_in_the_log {
        note(
            "observer: another program reads the store: the removed lines stay in the log until it ends; then run this command again",
        );
    }
    for copy in store::copies(&path) {
        note(&format!("observer: {} is a copy and was not searched", copy.display()));
    }
    Ok(Exit::Done)
}

//! Exit statuses, in one place.

use crate::{
    probe::AttachError,
    store::{DEFAULT, OpenError, PlaceError, QueryError},
};

/// The program's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, nothing wrong found.
    Done,
    /// The command's finding: `run` was to fail on a block, and there was one.
    Finding,
    /// Bad usage or unreadable input.
    Usage,
    /// Cannot observe here: privilege, kernel feature, BTF; or cannot write what it sees.
    CannotObserve,
    /// Finished, but something was lost and `--strict` was given.
    Lost,
    /// Of the command that was run: its own, 128 and a signal's number, or 125 to 127 as with `env`.
    Of(u8),
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Finding => 1,
            Exit::Usage => 2,
            Exit::CannotObserve => 3,
            Exit::Lost => 4,
            Exit::Of(status) => status,
        })
    }
}

/// Bad usage that only shows after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}\nhint: {hint}")]
pub struct UsageError {
    /// What is wrong.
    pub sentence: String,
    /// What would be right.
    pub hint: String,
}

/// Status of an error.
pub fn of(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() { Exit::Usage } else { Exit::CannotObserve }
}

/// The error of a store that cannot be used as it is: its name, or this user, is wrong input.
pub fn wrong_store(error: anyhow::Error) -> anyhow::Error {
    let open = match error.downcast_ref::<QueryError>() {
        Some(QueryError::Open(open)) => Some(open),
        _ => error.downcast_ref::<OpenError>(),
    };
    let is_input = match (open, error.downcast_ref::<PlaceError>()) {
        (Some(open), _) => matches!(
            open,
            OpenError::Missing(_) | OpenError::Forbidden(_) | OpenError::Foreign(_) | OpenError::ReadOnly(_)
        ),
        (None, Some(place)) => !matches!(place, PlaceError::File { .. }),
        (None, None) => false,
    };
    if !is_input {
        return error;
    }
    UsageError {
        sentence: error.to_string(),
        hint: format!("name one with --store; the default is {DEFAULT}, or `store` in the configuration file"),
    }
    .into()
}

/// An attach error with its remedy on a line of its own.
pub fn with_hint(error: &AttachError) -> anyhow::Error {
    anyhow::anyhow!("{error}\nhint: {}", error.hint())
}

//! Exit statuses, in one place.

use crate::probe::AttachError;

/// The program's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, nothing wrong found.
    Done = 0,
    /// Bad usage or unreadable input.
    Usage = 2,
    /// Cannot observe here: privilege, kernel feature, BTF; or cannot write what it sees.
    CannotObserve = 3,
    /// Finished, but something was lost and `--strict` was given.
    Lost = 4,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
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

/// An attach error with its remedy on a line of its own.
pub fn with_hint(error: &AttachError) -> anyhow::Error {
    anyhow::anyhow!("{error}\nhint: {}", error.hint())
}

//! Parses, runs, exits; everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    observer::cli::run().into()
}

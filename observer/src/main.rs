//! Parses, runs, exits; everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    observer::read_rules().unwrap_or_else(|| observer::run().into())
}

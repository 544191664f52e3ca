//! Format and lint checks; every warning is an error.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, command, floors, words};

/// Runs them.
pub(crate) fn run() -> Result<ExitCode> {
    command::check(command::cargo().args(["fmt", "--all", "--check"]))?;
    floors::check()?;
    words::check()?;
    // The program embeds the eBPF side, so even a check needs it.
    build::ebpf_side()?;
    command::check(command::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    println!("format and lints: clean");
    Ok(ExitCode::SUCCESS)
}

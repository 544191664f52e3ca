//! The host's own programs, by absolute path: neither the caller's `PATH` nor a folder of somebody else is searched.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// Folders that the system's packages fill, in the order in which they are searched.
pub const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// `PATH` for the programs that observer runs.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Path of a program; `None` where it is not installed, and for a name that is a path itself.
pub fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return None;
    }
    let is_program = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0);
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(is_program)
}

/// Number of a group by its name; `None` where there is no such group. Asks `getent`, which knows groups of directories too.
pub fn group_number(name: &str) -> Result<Option<u32>> {
    let output = command("getent")?.args(["group", "--", name]).output().context("cannot run getent")?;
    // name:password:number:members
    let entry = String::from_utf8_lossy(&output.stdout);
    Ok(entry.trim().split(':').nth(2).and_then(|number| number.parse().ok()))
}

/// A command with an empty environment, a fixed `PATH` and working directory, and no standard input.
pub fn command(name: &str) -> Result<Command> {
    let path = find(name).with_context(|| format!("there is no {name} in {}: install it there", FOLDERS.join(", ")))?;
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
    Ok(command)
}

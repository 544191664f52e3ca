//! Words that people read: help fits a terminal, and no message shows a type of the program.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::root;

/// Columns of a terminal.
const COLUMNS: usize = 80;
/// Macros whose messages are for developers.
const FOR_DEVELOPERS: [&str; 2] = ["log::debug!", "log::trace!"];

/// Fails on help that is wider than a terminal, and on `Debug` text in a message.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for path in files(&root().join("observer/src/cli/help"), "txt")? {
        for (line, number) in read(&path)?.lines().zip(1..) {
            if line.chars().count() > COLUMNS {
                wrong.push(format!("{}:{number}: wider than {COLUMNS} columns", path.display()));
            }
        }
    }
    for path in files(&root().join("observer/src"), "rs")? {
        let is_test = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
        let text = read(&path)?;
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (line, number) in code.lines().zip(1..).filter(|_| !is_test) {
            if shows_a_type(line) {
                wrong.push(format!("{}:{number}: shows a type of the program", path.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "words that people read:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// It formats something for a developer, in a message that is not for one.
fn shows_a_type(line: &str) -> bool {
    (line.contains(":?}") || line.contains(":#?}")) && !FOR_DEVELOPERS.iter().any(|name| line.contains(name))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// All files of a folder and those in it that end so.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.extension().is_some_and(|own| own == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_for_developers_show_types() {
        assert!(shows_a_type(r#"bail!("not {kind:?}")"#) && shows_a_type(r#"format!("{:#?}", x)"#));
        assert!(!shows_a_type(r#"log::debug!("{kind:?}")"#) && !shows_a_type(r#"format!("{kind}")"#));
    }
}

//! Rooms import rooms on floors below their own alone. The floors are the list in ARCHITECTURE.md, so that what it shows is so.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::root;

/// The line before the list.
const BEGIN: &str = "```floors";

/// Fails on an import of a room that is not below, and on a room that is on no floor.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let floors = floors(&text)?;
    let source = root().join("observer/src");
    let mut files = Vec::new();
    list(&source, &mut files)?;
    let mut wrong = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&source)?;
        let room = room(relative);
        // They name what stands in the folder.
        if ["lib", "main"].contains(&room.as_str()) {
            continue;
        }
        let floor = floors.get(&room).with_context(|| format!("{room} is on no floor of ARCHITECTURE.md"))?;
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for other in imported(&text) {
            // A macro or a test's own module is none.
            let Some(below) = floors.get(&other) else { continue };
            if other != room && below <= floor {
                wrong.push(format!("{} imports {other}, which is not below {room}", relative.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    ensure!(wrong.is_empty(), "imports that go up:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// Rooms and the numbers of their floors, the highest floor first.
fn floors(text: &str) -> Result<BTreeMap<String, usize>> {
    let list = text.split_once(BEGIN).context("ARCHITECTURE.md has no list of floors")?.1;
    let list = list.split_once("```").context("the list of floors has no end")?.0;
    // Behind two blanks stands what a floor is for.
    let names = |line: &str| line.split("  ").next().unwrap_or_default().replace(',', " ");
    let rooms = list.lines().filter(|line| !line.trim().is_empty()).enumerate().flat_map(|(floor, line)| {
        names(line).split_whitespace().map(|name| (name.to_owned(), floor)).collect::<Vec<_>>()
    });
    Ok(rooms.collect())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The folder that a file is in, or its own name.
fn room(relative: &Path) -> String {
    let first = relative.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    first.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// Rooms that a file names behind `crate::`, comments left out.
fn imported(text: &str) -> Vec<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(heads(group)),
            None => rooms.push(word(rest)),
        }
    }
    rooms
}

/// First words of the parts of `a::{…}, b::c, d}`.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut begins, mut heads) = (0, true, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            letter if begins && !letter.is_whitespace() => {
                heads.push(word(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    heads
}

fn word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_found_in_every_shape() {
        let text = "use crate::{\n    model::{A, B},\n    sys,\n    probe::c::D,\n};\nuse crate::intake::x; // crate::nothing\nfn f() { crate::cli::run() }";
        assert_eq!(imported(text), ["model", "sys", "probe", "intake", "cli"]);
    }

    #[test]
    fn floors_are_counted_from_the_top() {
        let floors = floors("text\n```floors\ncli\nprobe, intake  what is seen\nmodel\n```\n").unwrap();
        assert_eq!((floors["cli"], floors["probe"], floors["intake"], floors["model"]), (0, 1, 1, 2));
    }
}

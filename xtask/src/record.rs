//! Records of what observer writes in each scenario, and how two of them differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};

use crate::{build, command, root, setup};

/// Runs the scenarios and records them in a folder, then compares that with another record. Fails when they differ, or when a
/// scenario failed.
pub(crate) fn run(folder: &Path, against: Option<&Path>, filter: Option<&str>) -> Result<ExitCode> {
    setup::test_tools()?;
    let observer = build::release()?;
    let testbed = build::ebpf_side()?.with_file_name("testbed-bpf");
    let folder = root().join(folder);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut scenarios = command::new(build::test_program("scenarios")?);
    scenarios.env("OBSERVER", observer).env("OBSERVER_TESTBED", testbed).env("OBSERVER_RECORD", &folder).args(filter);
    let text = command::text(&scenarios);
    let status = scenarios.status().with_context(|| format!("cannot run `{text}`"))?;
    let same = against.map(|against| compare(&root().join(against), &folder)).transpose()?.unwrap_or(true);
    Ok(if status.success() && same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints lines that one record has and the other one has not. True when there is none.
fn compare(before: &Path, now: &Path) -> Result<bool> {
    let (before, now) = (read(before)?, read(now)?);
    ensure!(!now.is_empty(), "nothing was recorded");
    let nothing = BTreeSet::new();
    let mut differences = 0;
    // A scenario that was not run now says nothing.
    for (name, now) in &now {
        let before = before.get(name).unwrap_or(&nothing);
        let lines =
            before.difference(now).map(|line| ('-', line)).chain(now.difference(before).map(|line| ('+', line)));
        for (sign, line) in lines {
            println!("{name} {sign} {line}");
            differences += 1;
        }
    }
    println!("{} scenarios recorded, {differences} lines differ", now.len());
    Ok(differences == 0)
}

fn read(folder: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut record = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|end| end == "jsonl")) else {
            continue;
        };
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        record.insert(name.to_string_lossy().into_owned(), text.lines().map(str::to_owned).collect());
    }
    Ok(record)
}

//! Of a copy nothing is seen, and nothing of it stays on the host.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    observer::Observer,
    wait_for,
};
use serde_json::Value;

use super::{confirmed, impossible, udp};
use crate::Outcome;

/// Network namespaces in which a process or thread of this machine lives.
fn namespaces() -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc")?.flatten() {
        for thread in fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
            found.extend(fs::metadata(thread.path().join("ns/net")).map(|meta| meta.ino()).ok());
        }
    }
    Ok(found)
}

/// All namespaces are watched, and of the copy nothing is reported; the host's rules, interfaces and namespaces are as before.
pub(super) fn none() -> Result<Outcome> {
    let lab = Lab::new()?;
    // Whatever is sent in the copy is dropped there too, the kernel's own among it.
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0; policy drop; udp dport 9778 counter drop } }",
    )?;
    let standing = || -> Result<[String; 3]> {
        Ok([
            lab.client.run("nft", &["list", "ruleset"])?,
            lab.client.run("ip", &["-o", "addr"])?,
            lab.client.run("ip", &["route"])?,
        ])
    };
    let host_before = standing_of_host()?;
    let observer = Observer::start(["watch", "--no-fix", "-o", "json", "--all"].map(str::to_owned))?;
    let [_, helper] = harness::observer::helpers(observer.child.id())?;
    let own = lab.client.inode()?;
    confirmed(&observer, 9778, || udp(&lab.client, FAR_V4, 9778))?;
    let copies = || -> Result<BTreeSet<u64>> {
        Ok(fs::read_dir(format!("/proc/{helper}/task"))?
            .flatten()
            // Others of its threads look into the namespaces of other scenarios for a moment.
            .filter(|thread| {
                fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "observer-copy")
            })
            .filter_map(|thread| Some(fs::metadata(thread.path().join("ns/net")).ok()?.ino()))
            .collect())
    };
    let at_first = copies()?;
    // Before, a number may have been that of another observer's proof.
    let told = observer.so_far();
    let sequence = |event: &Value| event["event"]["sequence"].as_u64().unwrap_or_default();
    let lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let before_copies = lines.map(|event| sequence(&event)).max().unwrap_or_default();
    let before = standing()?;
    udp(&lab.client, FAR_V4, 9778)?;
    // What the copy's interfaces send by themselves comes within some seconds.
    std::thread::sleep(std::time::Duration::from_secs(2));
    // But for what counters count, and for addresses that are new.
    let lasting = |text: String| text.replace(|letter: char| letter.is_ascii_digit(), "").replace(" tentative", "");
    let (before, after) = (before.map(lasting), standing()?.map(lasting));
    ensure!(before == after, "of the host something has changed: {before:?} {after:?}");
    // Those of other scenarios' rules come and go, and so do their numbers.
    let copies: BTreeSet<u64> = copies()?.intersection(&at_first).copied().collect();
    let report = observer.stop()?;
    if let Some(skipped) = impossible(&report) {
        return Ok(skipped);
    }
    let host = fs::metadata("/proc/self/ns/net")?.ino();
    let copies: Vec<u64> = copies.into_iter().filter(|copy| *copy != host).collect();
    ensure!(!copies.is_empty(), "there was no copy");
    for event in &report.events {
        let netns = event["egress"]["netns"].as_u64().unwrap_or_default();
        // Other scenarios' observers test themselves, in namespaces that come and go.
        if event["egress"]["background"] == "self-test" || sequence(event) <= before_copies {
            continue;
        }
        ensure!(!copies.contains(&netns), "of the copy: {event}");
        ensure!(event["destination"]["port"] != 9778 || netns == own, "{event}");
    }
    wait_for("the copy to be gone", || {
        let left = namespaces()?;
        Ok(copies.iter().all(|copy| !left.contains(copy)).then_some(()))
    })?;
    // It ends with its parent, a moment later.
    wait_for("the helper's end", || {
        Ok((children(helper)?.is_empty() && !Path::new(&format!("/proc/{helper}")).exists()).then_some(()))
    })?;
    let host_after = standing_of_host()?;
    ensure!(host_before == host_after, "of the host something has changed: {host_before:?} {host_after:?}");
    Ok(Outcome::Passed)
}

/// With `--no-replay` there is no copy, neither at start nor at a block, and no trial.
pub(super) fn forbidden() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 9779 counter drop } }")?;
    let netns = lab.client.path().display().to_string();
    let observer = Observer::start(["watch", "--no-replay", "-o", "json", "--netns", &netns])?;
    let [_, helper] = harness::observer::helpers(observer.child.id())?;
    // Longer than a copy at start waits.
    let until = std::time::Instant::now() + std::time::Duration::from_millis(1500);
    let mut names = BTreeSet::new();
    while std::time::Instant::now() < until {
        observer.tells(|| udp(&lab.client, FAR_V4, 9779))?;
        for thread in fs::read_dir(format!("/proc/{helper}/task"))?.flatten() {
            names.extend(fs::read_to_string(thread.path().join("comm")).ok());
        }
    }
    let report = observer.stop()?;
    ensure!(!names.iter().any(|name| name.trim() == "observer-copy"), "there was a copy: {names:?}");
    ensure!(report.fixes.is_empty(), "{:?}", report.fixes);
    let replays = &report.account["rules"]["replay"];
    ensure!(replays["agreed"] == 0 && replays["named"] == 0, "{replays}");
    Ok(Outcome::Passed)
}

/// What a copy could leave on the host: settings, rules, interfaces, names of namespaces, temporary files.
fn standing_of_host() -> Result<Vec<String>> {
    let run = |program: &str, args: &[&str]| -> Result<String> {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
        // Counters go on.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.replace(|letter: char| letter.is_ascii_digit(), ""))
    };
    let names = |folder: &str| -> String {
        let all: BTreeSet<String> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            // Whatever else comes and goes there is somebody else's: other scenarios' folders too.
            .filter(|name| name.starts_with("observer-replay") || name.starts_with("observer-copy"))
            .collect();
        format!("{all:?}")
    };
    // What every copy sets.
    let set = ["netfilter/nf_conntrack_checksum", "netfilter/nf_conntrack_tcp_be_liberal", "ipv6/conf/all/accept_ra"]
        .map(|place| fs::read_to_string(format!("/proc/sys/net/{place}")).unwrap_or_default());
    Ok(vec![
        set.concat(),
        run("nft", &["list", "ruleset"])?,
        run("ip", &["-o", "link"])?,
        names("/run/netns"),
        names("/tmp"),
    ])
}

/// Processes whose parent that is.
fn children(parent: u32) -> Result<Vec<String>> {
    let of = |stat: &str| stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok();
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| of(stat) == Some(parent))
        .collect())
}

//! The power of a machine is cut while it records a storm, again and again: whatever was acknowledged is in the store.
//!
//! The machine is killed, so that it loses all that its kernel has not given to the disk. The store is on a disk of its own, an ext4 file system
//! that lives through all rounds.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Built, initramfs, kernels::Kernel, machine, packages::Unpacked, quote};
use crate::{command, root};

/// Size of the disk.
const DISK: u64 = 512 << 20;
/// The machine is cut off so long after its first acknowledged line, in steps, so that each round has another moment.
const STEPS: [u64; 7] = [0, 130, 370, 610, 1040, 1730, 2900];
/// A round that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(600);
/// Marks of what the machine says.
const STORED: &str = "stored ";
const CHECKED: &str = "checked ";

/// Cuts the power so many times, and compares.
pub(super) fn cuts(built: &Built, kernel: &Kernel, unpacked: &Unpacked, rounds: u32) -> Result<()> {
    let disk = disk()?;
    let mut acknowledged: HashSet<String> = HashSet::new();
    for round in 0..=rounds {
        let is_last = round == rounds;
        let said = run(built, kernel, unpacked, &disk, round, is_last)?;
        let missing = acknowledged.iter().filter(|id| !said.stored.contains(*id)).count();
        if round > 0 {
            println!(
                "[power] after {round} cuts: {} lines acknowledged, {missing} of them missing, the store is {}",
                acknowledged.len(),
                said.checked.as_deref().unwrap_or("not checked"),
            );
            ensure!(said.checked.as_deref() == Some("ok"), "the store is damaged");
            ensure!(missing == 0, "acknowledged lines are missing");
        }
        acknowledged.extend(said.acknowledged);
    }
    ensure!(!acknowledged.is_empty(), "nothing was acknowledged");
    println!("test power::acknowledged_is_found ... ok ({rounds} cuts, {} lines)", acknowledged.len());
    Ok(())
}

/// A new disk with a file system.
fn disk() -> Result<PathBuf> {
    let path = root().join("target/vm/power.img");
    let _ = fs::remove_file(&path);
    File::create(&path)
        .and_then(|file| file.set_len(DISK))
        .with_context(|| format!("cannot make {}", path.display()))?;
    command::check(command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path))?;
    Ok(path)
}

/// What a machine said.
#[derive(Default)]
struct Said {
    /// Lines that were in the store when it started.
    stored: HashSet<String>,
    /// What SQLite said of the store then.
    checked: Option<String>,
    /// Lines that were acknowledged since.
    acknowledged: HashSet<String>,
}

/// Starts a machine that says what the store has; unless it is the last, it goes on recording until its power is cut.
fn run(built: &Built, kernel: &Kernel, unpacked: &Unpacked, disk: &Path, round: u32, is_last: bool) -> Result<Said> {
    let initramfs = initramfs::make(unpacked, &job(built, unpacked, is_last))?;
    let mut machine = machine::command(kernel, unpacked, &initramfs)?;
    machine.args(["-drive", &format!("file={},format=raw,if=virtio,cache=writeback", disk.display())]);
    let text = command::text(&machine);
    let mut child = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run `{text}`"))?;
    let began = Instant::now();
    let mut said = Said::default();
    let mut first: Option<Instant> = None;
    let wait = Duration::from_millis(STEPS[round as usize % STEPS.len()]);
    for line in BufReader::new(child.stdout.take().context("no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end_matches('\r').to_owned();
        if let Some(id) = line.strip_prefix(STORED) {
            said.stored.insert(id.to_owned());
        } else if let Some(checked) = line.strip_prefix(CHECKED) {
            said.checked = Some(checked.to_owned());
        } else if let Some(id) = id(&line) {
            said.acknowledged.insert(id);
            let first = *first.get_or_insert_with(Instant::now);
            if first.elapsed() >= wait {
                break;
            }
        } else {
            println!("[power] {line}");
        }
        ensure!(began.elapsed() < LIMIT, "the machine does not come to its end");
    }
    // The power is cut.
    let _ = child.kill();
    let _ = child.wait();
    ensure!(is_last || first.is_some(), "nothing was acknowledged in round {round}");
    Ok(said)
}

/// The id of an event in a whole line of JSON, as digits alone.
fn id(line: &str) -> Option<String> {
    let event = line.strip_prefix('{').filter(|line| line.ends_with('}'))?.split_once("\"event\":{")?.1;
    event.split_once("\"id\":\"")?.1.split_once('"').map(|(id, _)| id.replace('-', ""))
}

fn job(built: &Built, unpacked: &Unpacked, is_last: bool) -> String {
    let modules = unpacked.folder.join("lib/modules").join(&unpacked.version);
    let record = if is_last {
        "true"
    } else {
        "ip netns add storm
        ip -n storm link set lo up
        ip -n storm route add 10.0.0.0/8 dev lo
        ip netns exec storm nft 'add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c udp dport 53 drop'
        (sleep 1; while true; do ip netns exec storm $CLIENT scan 10.0.0.1 53 2000; sleep 0.2; done) > /dev/null 2>&1 &
        $OBSERVER record --netns storm --store /store/s/observer.db --reserve 1MiB -o json"
    };
    format!(
        "VM_MODULES={}\nOBSERVER={} CLIENT={}\nprepare() {{ for module in ext4 virtio_blk nf_tables veth; do modprobe -q $module; done; }}\n\
         job() {{\n        mkdir -p /store\n        mount -t ext4 /dev/vda /store\n        mkdir -p -m 750 /store/s\n\
         if [ -e /store/s/observer.db ]; then\n\
         cp /store/s/observer.db* /run/\n\
         sqlite3 /run/observer.db \"SELECT '{STORED}' || lower(hex(line)) FROM lines WHERE line IS NOT NULL\"\n\
         echo \"{CHECKED}$(sqlite3 /run/observer.db 'PRAGMA integrity_check')\"\n\
         fi\n        {record}\n}}\n",
        quote(&modules.display().to_string()),
        built.observer,
        quote(&Path::new(built.observer.trim_matches('\'')).with_file_name("client").display().to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_whole_lines() {
        assert_eq!(id("{\"a\":1,\"event\":{\"kind\":\"event\",\"id\":\"x-1\",\"b\":2}}"), Some("x1".to_owned()));
        assert_eq!(id("{\"a\":1,\"event\":{\"kind\":\"event\",\"id\":\"x-1\""), None);
        assert_eq!(id("observer: ready"), None);
    }
}

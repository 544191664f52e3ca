//! What happens to the store while it is written: its file system, its file, its lock, and more than it can take.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{lab::Lab, slowness, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{Outcome, blocked, folder, keeper, record, record_with, report, send, sqlite};

/// A file system of its own.
struct Mounted(PathBuf);

impl Mounted {
    fn new(folder: &Path, size: &str) -> Result<Self> {
        let at = folder.join("small");
        fs::create_dir(&at)?;
        let options = format!("size={size},mode=0700");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&at).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Other programs fill the file system: the reserve is used; without one lines wait, and nothing is lost once there is room.
pub(super) fn full() -> Result<Outcome> {
    for reserve in ["1MiB", "0"] {
        let lab = blocked()?;
        let folder = folder()?;
        let mounted = Mounted::new(folder.path(), "24m")?;
        let store = mounted.0.join("s.db");
        let begin = || record_with(&lab.client, &store, &["--reserve", reserve, "--keep-free", "4KiB"]);
        // The second run has its reserve too.
        begin()?.end(Signal::SIGTERM)?;
        let recorder = begin()?;
        recorder.tells(|| send(&lab))?;
        let filling = mounted.0.join("filling");
        ensure!(fs::write(&filling, vec![1; 64 << 20]).is_err(), "it was not filled");
        if reserve == "0" {
            let before = recorder.told();
            // Enough for more than the log's last page.
            for _ in 0..20 {
                send(&lab)?;
            }
            std::thread::sleep(Duration::from_secs(2));
            ensure!(recorder.told() == before, "lines were acknowledged that cannot be stored");
            fs::remove_file(&filling)?;
        } else {
            recorder.tells(|| send(&lab)).context("the reserve is not used")?;
        }
        recorder.tells(|| send(&lab)).context("it does not go on")?;
        let (status, _, said) = recorder.end(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}: {said}");
        ensure!(said.contains("no space is left in its file system") == (reserve == "0"), "{reserve}: {said}");
        let stored: u64 = report(&store)?.iter().filter_map(|line| line["egress"]["count"].as_u64()).sum();
        ensure!(stored == lab.client.counted()?, "{stored} packets are stored: {said}");
    }
    Ok(Outcome::Passed)
}

/// As ext4 becomes after an error: lines wait, also of a recorder that starts meanwhile, and all are stored once it is writable.
pub(super) fn read_only() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let mounted = Mounted::new(folder.path(), "24m")?;
    let store = mounted.0.join("s.db");
    let remount = |how: &str| -> Result<()> {
        let options = format!("remount,{how},size=24m,mode=0700");
        wait_for("the remount", || {
            let status = Command::new("mount").args(["-o", &options]).arg(&mounted.0).stderr(Stdio::null()).status()?;
            Ok(status.success().then_some(()))
        })
    };
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    recorder.end(Signal::SIGTERM)?;
    // A file that is open to be written keeps it from becoming read-only: it is so when the recorder starts.
    remount("ro")?;
    let recorder = record_with(&lab.client, &store, &["--reserve", "1MiB"])?;
    send(&lab)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(recorder.told() == 0, "a line was acknowledged that cannot be stored");
    remount("rw")?;
    recorder.tells(|| send(&lab))?;
    let (status, _, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(status.success() && said.contains("read-only") && said.contains("takes lines again"), "{said}");
    let stored: u64 = report(&store)?.iter().filter_map(|line| line["egress"]["count"].as_u64()).sum();
    ensure!(stored == lab.client.counted()?, "{stored} packets are stored");
    Ok(Outcome::Passed)
}

/// Somebody who holds the lock of a store.
struct Holder {
    process: std::process::Child,
    to: std::process::ChildStdin,
}

impl Holder {
    fn begin(store: &Path) -> Result<Self> {
        let mut process = Command::new("sqlite3").arg(store).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut to = process.stdin.take().context("stdin")?;
        writeln!(to, "BEGIN IMMEDIATE; SELECT 'held';")?;
        let mut said = String::new();
        BufReader::new(process.stdout.take().context("stdout")?).read_line(&mut said)?;
        ensure!(said.trim() == "held", "{said}");
        Ok(Self { process, to })
    }

    fn end(mut self) -> Result<()> {
        writeln!(self.to, "ROLLBACK;")?;
        drop(self.to);
        self.process.wait()?;
        Ok(())
    }
}

/// What holds the lock for a while costs nothing but time.
pub(super) fn locked() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    let holder = Holder::begin(&store)?;
    let before = recorder.told();
    send(&lab)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(recorder.told() == before, "a line was acknowledged that cannot be stored");
    holder.end()?;
    recorder.tells(|| send(&lab))?;
    let (status, _, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(
        status.success() && said.contains("another program holds its lock") && said.contains("takes lines again"),
        "{said}"
    );
    let stored: u64 = report(&store)?.iter().filter_map(|line| line["egress"]["count"].as_u64()).sum();
    ensure!(stored == lab.client.counted()?, "{stored} packets are stored");
    Ok(Outcome::Passed)
}

/// More than finds room while the lock is held: what is lost is counted, is in no line, and the rest is printed once it is stored.
pub(super) fn too_many() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record_with(&lab.client, &store, &["--reserve", "0", "--strict", "--max-size", "2GiB"])?;
    recorder.tells(|| send(&lab))?;
    let holder = Holder::begin(&store)?;
    let client = std::env::current_exe()?.with_file_name("client");
    for first in 1..=5 {
        lab.client.run(&client.display().to_string(), &["scan", &format!("198.{first}.0.1"), "53", "8000"])?;
        // Until then what is sent waits elsewhere.
        std::thread::sleep(Duration::from_secs(4) * slowness());
    }
    holder.end()?;
    recorder.tells(|| send(&lab)).context("nothing is printed after a loss")?;
    let (status, stdout, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(status.code() == Some(4), "{status}: {said}");
    let (reported, lost) = adds_up(&stdout, &lab)?;
    ensure!(lost > 0, "nothing was lost: {said}");
    let missing = sqlite(&store, "SELECT sum(packets) FROM gaps")?;
    ensure!(missing == lost.to_string(), "{lost} packets were lost, and {missing} are missing");
    let stored = sqlite(&store, "SELECT sum(packets) FROM stories")?;
    ensure!(stored == reported.to_string(), "{stored} packets are stored, and {reported} were reported");
    Ok(Outcome::Passed)
}

/// Every packet is in the account, and all but the lost ones were printed; how many were reported, and how many
/// the store lost.
fn adds_up(stdout: &[u8], lab: &Lab) -> Result<(u64, u64)> {
    let lines = stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines: Vec<Value> = lines.map(|line| Ok(serde_json::from_slice(line)?)).collect::<Result<_>>()?;
    let account = lines.last().context("no account")?;
    let number = |path: &str| account.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let lost: u64 =
        ["map", "ring", "decode", "queue", "store"].iter().map(|of| number(&format!("/egress/lost/{of}"))).sum();
    // What is filtered is of other namespaces.
    let (seen, own) = (number("/egress/seen") - number("/egress/filtered"), number("/egress/reported") + lost);
    let counted = lab.client.counted()?;
    ensure!(seen == own && own == counted, "seen {seen}, told {own}, counted {counted}: {account:#}");
    let printed: u64 = lines.iter().filter_map(|line| line["egress"]["count"].as_u64()).sum();
    ensure!(printed == number("/egress/reported"), "{printed} packets were printed: {account:#}");
    Ok((number("/egress/reported"), number("/egress/lost/store")))
}

/// Bytes of the file were changed while nobody had it open, after a run that was ended by force.
pub(super) fn damaged() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    for _ in 0..5 {
        recorder.tells(|| send(&lab))?;
    }
    recorder.end(Signal::SIGKILL)?;
    ensure!(sqlite(&store, "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA integrity_check")?.ends_with("ok"));
    let mut bytes = fs::read(&store)?;
    // Every page but the first.
    for page in bytes.chunks_mut(4096).skip(1) {
        page[..32].fill(0xa5);
    }
    fs::write(&store, bytes)?;
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    let (_, _, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(said.contains("is damaged") && said.contains("recording goes on in a new one"), "{said}");
    let aside: Vec<String> = fs::read_dir(folder.path())?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("s.db.damaged-"))
        .collect();
    ensure!(!aside.is_empty(), "the damaged store was not kept");
    ensure!(!report(&store)?.is_empty());
    Ok(Outcome::Passed)
}

/// An administrator moves the file while it is written.
pub(super) fn moved() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    let other = folder.path().join("other.db");
    fs::rename(&store, &other)?;
    recorder.tells(|| send(&lab))?;
    let (_, _, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(said.contains("was moved or removed: a new one is begun"), "{said}");
    ensure!(sqlite(&other, "SELECT count(*) FROM lines WHERE packets > 0")? == "1", "what was stored before is gone");
    ensure!(fs::metadata(&store)?.permissions().mode() & 0o777 == 0o640);
    ensure!(!report(&store)?.is_empty());
    Ok(Outcome::Passed)
}

/// What was acknowledged is in the store again with the next line.
pub(super) fn log_removed() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    for ending in ["-wal", "-shm"] {
        fs::remove_file(folder.path().join(format!("s.db{ending}")))?;
    }
    recorder.tells(|| send(&lab))?;
    recorder.tells(|| send(&lab))?;
    ensure!(report(&store)?.len() >= 3, "acknowledged lines are missing");
    kill(keeper(&recorder)?, Signal::SIGKILL)?;
    let (_, _, said) = recorder.end(Signal::SIGKILL)?;
    ensure!(said.contains("the log of the store") && said.contains("was removed"), "{said}");
    ensure!(report(&store)?.len() >= 3 && sqlite(&store, "PRAGMA integrity_check")? == "ok");
    Ok(Outcome::Passed)
}

/// The process that keeps the store reaches its own folder alone: it says so, and goes on where that comes back.
pub(super) fn folder_replaced() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let (inner, aside) = (folder.path().join("a"), folder.path().join("b"));
    fs::create_dir(&inner)?;
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o700))?;
    let store = inner.join("s.db");
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    fs::rename(&inner, &aside)?;
    fs::create_dir(&inner)?;
    let before = recorder.told();
    send(&lab)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(recorder.told() == before, "a line was acknowledged that nobody finds");
    fs::remove_dir(&inner)?;
    fs::rename(&aside, &inner)?;
    recorder.tells(|| send(&lab))?;
    let (status, _, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(status.success() && said.contains("was replaced: restart observer"), "{status}: {said}");
    let stored: u64 = report(&store)?.iter().filter_map(|line| line["egress"]["count"].as_u64()).sum();
    ensure!(stored == lab.client.counted()?, "{stored} packets are stored");
    Ok(Outcome::Passed)
}

/// Somebody makes up destinations faster than they can be removed: the file keeps its size, and every packet is in the account.
pub(super) fn flood() -> Result<Outcome> {
    const MOST: u64 = 8 << 20;
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record_with(&lab.client, &store, &["--reserve", "0", "--max-size", "8MiB", "--keep-free", "0"])?;
    let client = std::env::current_exe()?.with_file_name("client");
    let mut largest = 0;
    for first in 1..=5 {
        lab.client.run(&client.display().to_string(), &["scan", &format!("198.{first}.0.1"), "53", "8000"])?;
        for _ in 0..20 {
            largest = largest.max(fs::metadata(&store)?.len());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let (status, stdout, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(status.success(), "{status}: {said}");
    largest = largest.max(fs::metadata(&store)?.len());
    // A batch of lines, and what is too much before they wait.
    ensure!(largest < MOST + MOST / 8 + (6 << 20), "the store grew to {} MiB", largest >> 20);
    adds_up(&stdout, &lab)?;
    Ok(Outcome::Passed)
}

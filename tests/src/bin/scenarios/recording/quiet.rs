//! What recording leaves in the host's audit log: nothing.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Outcome, blocked, folder, record_with, send};
use crate::without_a_machine;

/// Prints `listening` once audit is on, and then a line for each record of the kernel; ends with its stdin.
const LISTENER: &str = r#"
import select, socket, struct, sys
AUDIT, SET, ENABLED, READLOG = 9, 1001, 1, 1
def switch(on):
    control = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, AUDIT)
    status = struct.pack("=10I", ENABLED, on, *[0] * 8)
    control.send(struct.pack("=IHHII", 16 + len(status), SET, 5, 1, 0) + status)
    return struct.unpack_from("=i", control.recv(4096), 16)[0]
try:
    error = switch(1)
except OSError as failed:
    error = failed.errno
if error:
    sys.exit("no audit: %d" % error)
log = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, AUDIT)
log.bind((0, READLOG))
print("listening", flush=True)
while True:
    ready, _, _ = select.select([log, sys.stdin], [], [])
    if log in ready:
        said = log.recv(65536)
        print(struct.unpack_from("=H", said, 4)[0], said[16:].decode(errors="replace").strip("\0\n"), flush=True)
    elif not sys.stdin.read():
        break
switch(0)
"#;
/// Records of programs, which a service manager writes: those of the kernel are others.
const OF_PROGRAMS: std::ops::Range<u32> = 1100..1200;

/// While packets are blocked and recorded, and while nothing happens, the kernel audits nothing. It hears that it would: a change of rules is
/// audited.
pub(super) fn audit() -> Result<Outcome> {
    if let Some(skipped) = without_a_machine() {
        return Ok(skipped);
    }
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record_with(&lab.client, &store, &["--reserve", "0"])?;
    recorder.tells(|| send(&lab))?;
    let mut listener = Command::new("python3");
    let listener = listener.args(["-IS", "-c", LISTENER]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut listener = listener.stderr(Stdio::piped()).spawn().context("python3")?;
    let minute = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::time::Instant::now() < minute && listener.try_wait()?.is_none() {
        send(&lab)?;
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
    lab.client.nft("add table inet audited")?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    drop(listener.stdin.take());
    let output = listener.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if errors.contains("no audit") {
        return Ok(Outcome::Skipped(format!("this kernel has {}", errors.trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    recorder.end(nix::sys::signal::Signal::SIGTERM)?;
    let (first, records) = text.split_once('\n').context("it did not listen")?;
    ensure!(first == "listening", "{errors}");
    let is_of_others = |record: &&str| {
        let kind = record.split(' ').next().and_then(|kind| kind.parse().ok());
        // That somebody listens is a record too.
        kind.is_some_and(|kind: u32| OF_PROGRAMS.contains(&kind)) || record.contains("nl-mcgrp=")
    };
    ensure!(records.lines().any(|record| record.contains("audited")), "a change of rules is not audited here: {text}");
    let before = records.lines().take_while(|record| !record.contains("audited"));
    let of_the_recorder: Vec<&str> = before.filter(|record| !is_of_others(record)).collect();
    ensure!(of_the_recorder.is_empty(), "{of_the_recorder:#?}");
    Ok(Outcome::Passed)
}

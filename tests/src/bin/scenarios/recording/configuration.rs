//! The configuration file of `record`, and what keeps a fleet's recorders down.

use std::{fs, io::ErrorKind, os::unix::net::UnixDatagram, process::Stdio, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    lab::FAR_V4,
    observer::{self, Observer},
    traffic, wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Outcome, blocked, folder, report, send, sqlite};

/// Its filters hold, what is typed goes before it, and a mistake is named with its line.
pub(super) fn file() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let (store, config) = (folder.path().join("s.db"), folder.path().join("observer.toml"));
    let text = format!(
        "store = {:?}\nreserve = \"1MiB\"\nargs = \"none\"\n\n[filter]\nport = 53\nnetns = {:?}\n",
        store.display().to_string(),
        lab.client.path().display().to_string()
    );
    fs::write(&config, &text)?;
    let mut command = observer::command();
    command.args(["record", "-o", "json", "--config"]).arg(&config);
    let recorder = Observer::start_command(&mut command)?;
    traffic::run(&lab.client, &["udp", FAR_V4, "9"])?;
    recorder.tells(|| send(&lab))?;
    recorder.end(Signal::SIGTERM)?;
    let stored = report(&store)?;
    let events: Vec<_> = stored.iter().filter(|line| line["event"]["action"] == "egress-blocked").collect();
    ensure!(!events.is_empty() && events.iter().all(|line| line["destination"]["port"] == 53), "{events:#?}");
    ensure!(
        events.iter().all(|line| line["process"]["executable"].is_string() && line["process"]["args"].is_null()),
        "{events:#?}"
    );
    let printed = observer::command()
        .args(["record", "--keep", "7d", "--print-config", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .output()?;
    let words = String::from_utf8_lossy(&printed.stdout).into_owned();
    ensure!(
        printed.status.success() && words.contains("keep = \"7d\"") && words.contains("port = [\"53\"]"),
        "{words}"
    );
    fs::write(&config, format!("{text}prot = \"udp\"\n"))?;
    let wrong = observer::command().args(["record", "--config"]).arg(&config).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(wrong.status.code() == Some(2), "{said}");
    ensure!(said.contains("observer.toml:8: there is no key `filter.prot`; did you mean `filter.proto`?"), "{said}");
    Ok(Outcome::Passed)
}

/// SIGHUP: new limits hold at once, other keys are named, a mistake changes nothing, and nothing that is blocked meanwhile is missed.
pub(super) fn read_again() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let (store, config) = (folder.path().join("s.db"), folder.path().join("observer.toml"));
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let netns = format!("[filter]\nnetns = {:?}\n", lab.client.path().display().to_string());
    fs::write(&config, format!("reserve = \"1MiB\"\n{netns}"))?;
    let mut command = observer::command();
    command.args(["record", "-o", "json", "--store"]).arg(&store).arg("--config").arg(&config);
    let recorder = Observer::start_command(&mut command)?;
    recorder.tells(|| send(&lab))?;
    let hang_up = || kill(Pid::from_raw(recorder.child.id().cast_signed()), Signal::SIGHUP);
    for text in
        ["keep = \"soon\"\n".to_owned(), format!("keep = \"1d\"\nprove = \"always\"\nreserve = \"1MiB\"\n{netns}")]
    {
        fs::write(&config, text)?;
        hang_up()?;
        recorder.tells(|| send(&lab))?;
    }
    let (status, _, said) = recorder.end(Signal::SIGTERM)?;
    ensure!(status.success(), "{status}: {said}");
    ensure!(
        said.contains("nothing was changed: ") && said.contains("observer.toml:1: `keep`: write for example"),
        "{said}"
    );
    ensure!(
        said.contains("was read again: keep 1d,") && said.contains("these keys take effect after a restart: prove"),
        "{said}"
    );
    // All that was blocked was seen, whatever happened meanwhile.
    let seen: u64 = sqlite(&store, "SELECT sum(packets) FROM stories")?.parse()?;
    ensure!(seen == lab.client.counted()?, "{seen} packets were stored");
    Ok(Outcome::Passed)
}

/// A service that was ended by force three times does not start a fourth time; by hand it does.
pub(super) fn held_down() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let (store, socket) = (folder.path().join("s.db"), folder.path().join("notify"));
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(harness::patience()))?;
    let command = |is_service: bool| {
        let mut command = observer::command();
        command.args(["record", "--reserve", "0", "--netns"]).arg(lab.client.path()).arg("--store").arg(&store);
        if is_service {
            command.env("NOTIFY_SOCKET", &socket);
        }
        command
    };
    for _ in 0..3 {
        let recorder = Observer::start_command(&mut command(true))?;
        let mut said = [0; 64];
        let length = manager.recv(&mut said)?;
        ensure!(&said[..length] == b"READY=1", "{}", String::from_utf8_lossy(&said[..length]));
        recorder.end(Signal::SIGKILL)?;
    }
    let fourth = command(true).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&fourth.stderr).into_owned();
    ensure!(
        fourth.status.code() == Some(2) && said.contains("ended by force three times within ten minutes"),
        "{said}"
    );
    ensure!(said.trim().lines().count() == 2, "{said}");
    let recorder = Observer::start_command(&mut command(false))?;
    send(&lab)?;
    wait_for("a stored line", || Ok((!report(&store)?.is_empty()).then_some(())))?;
    ensure!(recorder.end(Signal::SIGTERM)?.0.success());
    Ok(Outcome::Passed)
}

/// The service manager hears that observing goes on, and no more once the store takes nothing and everything before it is full.
pub(super) fn watchdog() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let (store, socket) = (folder.path().join("s.db"), folder.path().join("notify"));
    let manager = UnixDatagram::bind(&socket)?;
    let mut command = observer::command();
    command.args(["record", "--reserve", "0", "--netns"]).arg(lab.client.path()).arg("--store").arg(&store);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "1000000");
    let recorder = Observer::start_command(&mut command)?;
    let hears = |within: Duration| -> Result<Option<String>> {
        manager.set_read_timeout(Some(within))?;
        let mut said = [0; 64];
        let length = match manager.recv(&mut said) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            length => length?,
        };
        Ok(Some(String::from_utf8_lossy(&said[..length]).into_owned()))
    };
    ensure!(hears(harness::patience())?.as_deref() == Some("READY=1"));
    for _ in 0..3 {
        ensure!(hears(harness::patience())?.as_deref() == Some("WATCHDOG=1"), "an idle recorder is silent");
    }
    let keeper = super::keeper(&recorder)?;
    kill(keeper, Signal::SIGSTOP)?;
    // More than the socket, the queues and the backlog take.
    wait_for("silence", || {
        let client = std::env::current_exe()?.with_file_name("client");
        lab.client.run(&client.display().to_string(), &["scan", "10.9.0.1", "53", "4000"])?;
        while hears(Duration::from_millis(1))?.is_some() {}
        Ok(hears(Duration::from_secs(3))?.is_none().then_some(()))
    })?;
    kill(keeper, Signal::SIGCONT)?;
    wait_for("a sign of life", || Ok(hears(harness::patience())?.filter(|said| said == "WATCHDOG=1")))?;
    ensure!(recorder.end(Signal::SIGTERM)?.0.success());
    Ok(Outcome::Passed)
}

//! `observer record`: what it acknowledges is in the store, whatever happens to it, to the disk and to the file; and who reads it.

mod configuration;
mod faults;
mod quiet;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    namespace::Namespace,
    observer::{self, Observer},
    traffic, wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("what_is_stored_is_read", read_back),
    ("killed_again_and_again", killed),
    ("a_reader_that_has_had_enough", closed_pipe),
    ("one_recorder_for_a_store", only_one),
    ("the_process_that_keeps_it_is_killed", keeper_killed),
    ("a_full_file_system", faults::full),
    ("a_file_system_that_becomes_read_only", faults::read_only),
    ("a_lock_that_others_hold", faults::locked),
    ("more_than_finds_room", faults::too_many),
    ("a_damaged_store", faults::damaged),
    ("a_store_that_is_moved_away", faults::moved),
    ("a_log_that_is_removed", faults::log_removed),
    ("a_folder_that_is_replaced", faults::folder_replaced),
    ("a_flood_of_destinations", faults::flood),
    ("no_audit_records", quiet::audit),
    ("a_users_nested_namespaces", nested),
    ("the_group_reads_it", by_the_group),
    ("what_must_not_be_kept", forgotten),
    ("what_must_not_be_kept_while_it_goes_on", forgotten_meanwhile),
    ("other_files_are_refused", refused),
    ("a_configuration_file", configuration::file),
    ("a_configuration_that_is_read_again", configuration::read_again),
    ("ended_by_force_three_times", configuration::held_down),
    ("the_watchdog_of_the_service_manager", configuration::watchdog),
];

const DROP: &str = "table inet t { chain c { type filter hook output priority 0; udp dport { 53, 9 } counter drop } }";

/// A folder that only root writes to, on the disk.
fn folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("observer-store-").tempdir_in("/var/tmp")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
    Ok(folder)
}

fn record_with(lab: &Namespace, store: &Path, more: &[&str]) -> Result<Observer> {
    let mut command = observer::command();
    command.args(["record", "-o", "json", "--netns"]).arg(lab.path()).arg("--store").arg(store).args(more);
    Observer::start_command(&mut command)
}

fn record(lab: &Namespace, store: &Path) -> Result<Observer> {
    let recorder = record_with(lab, store, &["--reserve", "1MiB"])?;
    // The first line says that it began.
    wait_for("no beginning", || Ok((recorder.told() > 0).then_some(())))?;
    Ok(recorder)
}

fn observer(args: &[&str], store: &Path) -> Result<Output> {
    observer::command()
        .args(args)
        .arg("--store")
        .arg(store)
        .stdin(Stdio::null())
        .output()
        .context("cannot start observer")
}

/// The lines of a store, as `report` prints them.
fn report(store: &Path) -> Result<Vec<Value>> {
    let output = observer(&["report", "--events"], store)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn sqlite(store: &Path, sql: &str) -> Result<String> {
    let output = Command::new("sqlite3").arg(store).arg(sql).output().context("sqlite3")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["event"]["id"].as_str()).collect()
}

fn blocked() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    Ok(lab)
}

fn send(lab: &Lab) -> Result<()> {
    traffic::run(&lab.client, &["udp", FAR_V4, "53"]).map(drop)
}

/// Everything that was printed is in the store, as it was printed, and other programs read it.
fn read_back() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    for _ in 0..3 {
        recorder.tells(|| send(&lab))?;
    }
    lab.client.nft("add table inet more")?;
    wait_for("a change of rules", || Ok(recorder.so_far().contains("\"ruleset-changed\"").then_some(())))?;
    let live = report(&store)?;
    ensure!(!live.is_empty(), "a store that is being written is not read");
    let (status, stdout, _) = recorder.end(Signal::SIGTERM)?;
    ensure!(status.success(), "{status}");
    let printed: Vec<Value> =
        String::from_utf8(stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<_>>()?;
    let stored = report(&store)?;
    ensure!(stored == printed, "printed {printed:#?}\nstored {stored:#?}");
    let actions: Vec<&str> = stored.iter().filter_map(|line| line["event"]["action"].as_str()).collect();
    ensure!(actions.first() == Some(&"observer-started"), "{actions:?}");
    ensure!(actions.ends_with(&["observer-stopped", "summary"]), "{actions:?}");
    ensure!(!folder.path().join("s.db-wal").exists(), "a log is left beside a store at rest");
    ensure!(sqlite(&store, "PRAGMA integrity_check")? == "ok");
    let sent: u64 = stored.iter().filter_map(|line| line["egress"]["count"].as_u64()).sum();
    ensure!(sent == lab.client.counted()?, "{sent} packets are stored");
    ensure!(sqlite(&store, "SELECT sum(packets) FROM lines")? == sent.to_string());
    ensure!(sqlite(&store, "SELECT count(*) FROM runs WHERE ended_ns IS NOT NULL AND account IS NOT NULL")? == "1");
    let blocked = sqlite(&store, "SELECT DISTINCT program, destination, port, rule FROM blocked")?;
    ensure!(blocked == format!("python3|{FAR_V4}|53|udp dport {{ 9, 53 }} counter drop"), "{blocked}");
    let whose = sqlite(&store, "SELECT DISTINCT user, executable LIKE '/%', netns > 0, source FROM blocked")?;
    ensure!(whose == "root|1|1|10.9.0.1", "{whose}");
    let not_recorded = sqlite(&store, "SELECT since IS NOT NULL, until IS NULL, why FROM not_recorded")?;
    ensure!(not_recorded == "1|1|stopped", "{not_recorded}");
    // The ruleset as it stood then, by the digest that the lines have.
    let digest = stored.iter().find_map(|line| line["egress"]["rule"]["ruleset_sha256"].as_str());
    let of = |kind: &str| format!("FROM documents JOIN states USING (sha256) WHERE kind = '{kind}'");
    let text = sqlite(&store, &format!("SELECT sqlar_uncompress(body, bytes) {}", of("ruleset")))?;
    let routes = sqlite(&store, &format!("SELECT sqlar_uncompress(body, bytes) {}", of("routes")))?;
    ensure!(routes.contains("rule 0: from all lookup local") && routes.contains("10.9.0.0/"), "{routes}");
    ensure!(text.contains("udp dport { 9, 53 } counter drop"), "{text}");
    let written = folder.path().join("ruleset");
    let target = written.display();
    let write = format!("SELECT writefile('{target}', sqlar_uncompress(body, bytes)) {}", of("ruleset"));
    sqlite(&store, &write)?;
    let digested = String::from_utf8(Command::new("sha256sum").arg(&written).output()?.stdout)?;
    ensure!(digest.is_some_and(|digest| digested.starts_with(digest)), "{digest:?} {digested}");
    // Of one user, and of nobody.
    let only = |args: &[&str]| -> Result<usize> {
        let output = observer(&[&["report", "--events"], args].concat(), &store)?;
        Ok(String::from_utf8(output.stdout)?.lines().count())
    };
    ensure!(only(&["--user", "0", "--port", "53"])? > 0 && only(&["--port", "99"])? == 0);
    for action in actions.iter().filter(|action| !action.starts_with("observer-") && **action != "summary") {
        let count = actions.iter().filter(|other| *other == action).count();
        ensure!(only(&["--action", action])? == count, "{action}: {count} are stored");
    }
    ensure!(actions.contains(&"ruleset-changed") && only(&["--action", "ruleset-changed", "--comm", "nft"])? > 0);
    let here = lab.client.path().display().to_string();
    ensure!(only(&["--action", "ruleset-changed", "--netns", &here])? > 0, "{actions:?}");
    ensure!(only(&["--until", "2020-01-01"])? == 0 && only(&["--since", "1h"])? == stored.len());
    Ok(Outcome::Passed)
}

/// Whatever was acknowledged is there after a kill at any moment.
fn killed() -> Result<Outcome> {
    /// `OBSERVER_ROUNDS` has more.
    const ROUNDS: u32 = 20;
    let rounds = std::env::var("OBSERVER_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..rounds {
        let recorder = record(&lab.client, &store)?;
        let mut sender =
            traffic::command(&lab.client, &["flood", FAR_V4, "9", "200000"])?.stdout(Stdio::null()).spawn()?;
        wait_for("a line", || Ok((recorder.told() > 0).then_some(())))?;
        std::thread::sleep(std::time::Duration::from_millis(u64::from(round % 10) * 70));
        if round % 2 == 1 {
            // The process that writes, in the middle of it.
            kill(keeper(&recorder)?, Signal::SIGKILL)?;
        }
        let (_, stdout, stderr) = recorder.end(Signal::SIGKILL)?;
        let _ = sender.kill();
        let _ = sender.wait();
        let is_said = stderr.contains("the last recorder was ended by force");
        ensure!(is_said == (round > 0), "round {round}: {stderr}");
        // The last line may be cut.
        for line in stdout.split(|byte| *byte == b'\n') {
            let line: Option<Value> = serde_json::from_slice(line).ok();
            acknowledged.extend(line.and_then(|line| line["event"]["id"].as_str().map(str::to_owned)));
        }
    }
    ensure!(acknowledged.len() >= rounds as usize, "{} lines were acknowledged", acknowledged.len());
    let stored = report(&store)?;
    let found: std::collections::HashSet<&str> = ids(&stored).into_iter().collect();
    let missing: Vec<&String> = acknowledged.iter().filter(|id| !found.contains(id.as_str())).collect();
    ensure!(missing.is_empty(), "of {} acknowledged lines {} are missing", acknowledged.len(), missing.len());
    ensure!(sqlite(&store, "PRAGMA integrity_check")? == "ok");
    ensure!(sqlite(&store, "SELECT count(*) FROM runs WHERE ended_ns IS NULL")? == rounds.to_string());
    let by_force = sqlite(&store, "SELECT count(*) FROM not_recorded WHERE why LIKE 'ended by force%'")?;
    ensure!(by_force == (rounds - 1).to_string(), "{by_force}");
    Ok(Outcome::Passed)
}

/// That the reader of the output is gone is no kill: the run has its end, and the store is at rest.
fn closed_pipe() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let record = format!(
        "{} record -o json --reserve 0 --netns {} --store {} | head -n 1",
        observer::program().display(),
        lab.client.path().display(),
        store.display()
    );
    let mut shell = Command::new("sh").args(["-c", &record]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("the end of recording", || {
        send(&lab)?;
        Ok(shell.try_wait()?)
    })?;
    wait_for("the end of the run", || {
        let ended = sqlite(&store, "SELECT count(*) FROM runs WHERE ended_ns IS NOT NULL")?;
        Ok((ended == "1").then_some(()))
    })?;
    wait_for("a store at rest", || Ok((!folder.path().join("s.db-wal").exists()).then_some(())))?;
    Ok(Outcome::Passed)
}

fn only_one() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    let second = observer(&["record", "--for", "1s"], &store)?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(3) && said.contains("is being recorded to by another observer"), "{said}");
    let watch = Observer::watch(&lab.client)?;
    recorder.tells(|| watch.tells(|| send(&lab)))?;
    watch.stop()?;
    ensure!(recorder.end(Signal::SIGINT)?.0.success(), "it goes on");
    Ok(Outcome::Passed)
}

/// The service manager must see that as a failure, and start it again.
fn keeper_killed() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let mut recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    kill(keeper(&recorder)?, Signal::SIGKILL)?;
    send(&lab)?;
    send(&lab)?;
    let status = wait_for("its end", || Ok(recorder.child.try_wait()?))?;
    ensure!(status.code() == Some(3), "{status}");
    ensure!(!report(&store)?.is_empty());
    Ok(Outcome::Passed)
}

/// The process that keeps a recorder's store.
fn keeper(recorder: &Observer) -> Result<Pid> {
    let pid = recorder.child.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let keeper = children.split_whitespace().find(|child| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "observer-store")
    });
    Ok(Pid::from_raw(keeper.context("no process keeps the store")?.parse()?))
}

/// Users of a user namespace make further ones: all that is in them is on the account of whoever made the outermost.
fn nested() -> Result<Outcome> {
    const MAKER: u32 = 54_321;
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    // Observer's own network namespace is the one: elsewhere the namespace has the share.
    let mut command = observer::command_in_network_of(&lab.client);
    command.args(["record", "-o", "json", "--reserve", "0", "--netns", "/proc/self/ns/net", "--store"]).arg(&store);
    let recorder = Observer::start_command(&mut command)?;
    let maker = MAKER.to_string();
    let args = ["--reuid", &maker, "--regid", &maker, "--clear-groups", "unshare", "--user", "sleep", "1000"];
    let mut outer = lab.client.command("setpriv");
    let mut outer = Killed(outer.args(args).spawn()?);
    let pid = outer.0.id();
    wait_for("a user namespace", || {
        let other = fs::read_link(format!("/proc/{pid}/ns/user"))? != fs::read_link("/proc/self/ns/user")?;
        Ok(other.then_some(()))
    })?;
    for map in ["gid_map", "uid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 300000 10")?;
    }
    let client = std::env::current_exe()?.with_file_name("client").display().to_string();
    let inner = ["-t", &pid.to_string(), "-U", "--setuid", "5", "--setgid", "5", "unshare", "--user", &client];
    let line = recorder.tells_until(
        "a line of the inner namespace",
        || lab.client.run("nsenter", &[&inner[..], &["scan", FAR_V4, "53", "1"]].concat()).map(drop),
        |line| line["egress"]["namespaces"]["user"].is_u64(),
    )?;
    ensure!(line["user"]["id"] == "300005", "{line:#}");
    ensure!(line["egress"]["namespaces"]["user_owner"] == MAKER, "{line:#}");
    outer.0.kill()?;
    recorder.end(Signal::SIGTERM)?;
    let share = sqlite(&store, "SELECT DISTINCT name FROM shares JOIN lines ON share = shares.id WHERE packets > 0")?;
    ensure!(share.contains(&format!("user {MAKER}")) && !share.contains("300005"), "{share}");
    let output = observer(&["forget", "--user", &maker], &store)?;
    ensure!(output.status.success(), "{output:?}");
    let left = sqlite(&store, "SELECT * FROM blocked")?;
    ensure!(left.is_empty(), "something of it is left: {left}");
    Ok(Outcome::Passed)
}

/// A process that ends with the scenario.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A member of the group reads the store while it is written, after the end, and after a kill; nobody else does.
fn by_the_group() -> Result<Outcome> {
    const GROUP: u32 = 54_321;
    let lab = blocked()?;
    let folder = folder()?;
    chown(folder.path(), None, Some(GROUP))?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o2750))?;
    let store = folder.path().join("s.db");
    let as_a_member = |group: u32| -> Result<Output> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "54322", "--regid", &group.to_string(), "--clear-groups", "--"]);
        command.arg(observer::program()).args(["report", "--events", "--store"]).arg(&store);
        command.output().context("setpriv")
    };
    let is_read = |when: &str| -> Result<()> {
        let output = as_a_member(GROUP)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && !output.stdout.is_empty(), "{when}: {said}");
        let other = as_a_member(GROUP + 1)?;
        let said = String::from_utf8_lossy(&other.stderr).into_owned();
        ensure!(other.status.code() == Some(2) && said.contains("may not be read by this user"), "{when}: {said}");
        Ok(())
    };
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    is_read("while it is written")?;
    recorder.end(Signal::SIGTERM)?;
    is_read("after the end")?;
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    recorder.end(Signal::SIGKILL)?;
    is_read("after a kill")?;
    Ok(Outcome::Passed)
}

/// Lines of a user are removed while it records, and word of it stays.
fn forgotten() -> Result<Outcome> {
    let lab = blocked()?;
    let folder = folder()?;
    let store = folder.path().join("s.db");
    let recorder = record(&lab.client, &store)?;
    recorder.tells(|| send(&lab))?;
    let output = observer(&["forget", "--user", "0"], &store)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.contains("was removed from"), "{said}");
    ensure!(!report(&store)?.iter().any(|line| line["event"]["action"] == "egress-blocked"), "they are still there");
    recorder.tells(|| send(&lab)).context("it does not go on")?;
    recorder.end(Signal::SIGTERM)?;
    ensure!(report(&store)?.iter().any(|line| line["event"]["action"] == "egress-blocked"));
    ensure!(sqlite(&store, "SELECT why FROM gaps")? == "removed on request: user 0");
    let wrong = observer(&["forget", "--container", "abc"], &store)?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    Ok(Outcome::Passed)
}

/// Lines are removed again and again while others come: what was removed and what is left are all packets that were blocked.
fn forgotten_meanwhile() -> Result<Outcome> {
    const ROUNDS: u32 = 8;
    let lab = blocked()?;
    lab.client.nft("add rule inet t c tcp dport 81 counter drop")?;
    let folder = folder()?;
    let stores = ["a.db", "b.db"].map(|name| folder.path().join(name));
    let recorders = [record(&lab.client, &stores[0])?, record(&lab.client, &stores[1])?];
    let mut senders = Vec::new();
    for _ in 0..ROUNDS {
        // Each sends a SYN at once, after one second, and after three.
        let url = format!("http://{FAR_V4}:81/");
        let mut curl = lab.client.command("curl");
        senders.push(curl.args(["-s", "--max-time", "4", &url]).stdin(Stdio::null()).spawn()?);
        senders.push(traffic::command(&lab.client, &["flood", FAR_V4, "9", "2000"])?.stdout(Stdio::null()).spawn()?);
        recorders[0].tells(|| send(&lab))?;
        let output = observer(&["forget", "--before", "now"], &stores[0])?;
        ensure!(output.status.success(), "{output:?}");
    }
    for mut sender in senders {
        sender.wait()?;
    }
    for (recorder, store) in recorders.into_iter().zip(&stores) {
        let (status, _, said) = recorder.end(Signal::SIGTERM)?;
        ensure!(status.success(), "{said}");
        let number = |of: &str| -> Result<u64> { Ok(sqlite(store, &format!("SELECT {of}"))?.parse()?) };
        let left = number("coalesce(sum(packets), 0) FROM lines")?;
        let removed = number("coalesce(sum(packets), 0) FROM gaps")?;
        let recorded = number("json_extract(account, '$.reported') FROM runs")?;
        ensure!(
            left + removed == recorded,
            "{}: {left} are left, {removed} were removed, of {recorded}",
            store.display()
        );
        ensure!(recorded >= u64::from(ROUNDS) * 2000, "{recorded} were recorded");
    }
    Ok(Outcome::Passed)
}

/// What is no store, of a later version, or in a place of others is refused in a sentence, and stays as it is.
fn refused() -> Result<Outcome> {
    let folder = folder()?;
    let foreign = folder.path().join("foreign.db");
    sqlite(&foreign, "CREATE TABLE t (a)")?;
    let later = folder.path().join("later.db");
    sqlite(&later, "PRAGMA application_id = 1868723062; PRAGMA user_version = 99; CREATE TABLE t (a)")?;
    let open = folder.path().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    let text = folder.path().join("text");
    fs::write(&text, "no store: ".repeat(100))?;
    for (store, words) in [
        (&foreign, "is no store"),
        (&text, "is no store"),
        (&later, "use the newer observer"),
        (&open.join("s.db"), "other users can write to"),
    ] {
        let before = fs::read(store).ok();
        let output = observer(&["record", "--for", "1s"], store)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(3) && said.contains(words), "{said}");
        ensure!(fs::read(store).ok() == before, "{} was changed", store.display());
    }
    let empty = folder.path().join("empty.db");
    fs::write(&empty, "")?;
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
    let forget: &[&str] = &["forget", "--user", "1"];
    let report: &[&str] = &["report", "--events"];
    for (command, store, words) in [
        (report, &folder.path().join("none.db"), "there is no store at"),
        (report, &empty, "there is no store at"),
        (forget, &empty, "there is no store at"),
        (report, &fifo, "is no store"),
        (forget, &fifo, "is no store"),
        (forget, &foreign, "is no store"),
    ] {
        let output = observer(command, store)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && said.contains(words), "{command:?} {}: {said}", store.display());
    }
    ensure!(fs::read(&empty)?.is_empty(), "an empty file was written to");
    Ok(Outcome::Passed)
}

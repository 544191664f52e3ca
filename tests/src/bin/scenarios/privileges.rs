//! What observer keeps, and what it needs of the host.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    copy_program,
    lab::{FAR_V4, Lab},
    observer::{self, Observer, Report, expect},
    traffic, wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("every_process_has_what_it_needs_and_no_more", none_left),
    ("a_program_that_reads_rules_is_confined", program),
    ("what_reads_many_rules_is_confined", reader),
    ("a_helper_that_dies_is_replaced", replaced),
    ("too_little_memory_is_one_sentence", memory),
    ("empty_root_file_system", empty_root),
];

fn status(pid: u32, task: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim_start_matches(':').trim().to_owned())
}

/// Capabilities by their numbers.
const BPF: u64 = 1 << 39;
const NET_ADMIN_AND_RAW: u64 = 1 << 12 | 1 << 13;
/// CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_SYS_PTRACE,
/// CAP_SYS_ADMIN, CAP_SYSLOG.
const OF_THE_HELPER: u64 =
    1 << 2 | 1 << 6 | 1 << 7 | 1 << 8 | NET_ADMIN_AND_RAW | 1 << 18 | 1 << 19 | 1 << 21 | 1 << 34;

/// What a thread may have: in all sets, in the bounding set alone, its user, and that its system calls are filtered.
fn bounded(pid: u32, task: &str, (most, bounding): (u64, u64), user: &str) -> Result<()> {
    for (set, most) in
        ["CapEff", "CapPrm", "CapInh", "CapAmb"].map(|set| (set, most)).into_iter().chain([("CapBnd", bounding)])
    {
        let bits = u64::from_str_radix(&status(pid, task, set)?, 16)?;
        ensure!(bits & !most == 0, "{set} of thread {task} of {pid} is {bits:x}");
    }
    ensure!(status(pid, task, "NoNewPrivs")? == "1", "new privileges are possible");
    ensure!(status(pid, task, "Seccomp")? == "2", "system calls of thread {task} of {pid} are not filtered");
    ensure!(status(pid, task, "Uid")?.split_whitespace().all(|id| id == user), "the user of {pid} is not {user}");
    Ok(())
}

/// Of the process that decodes every thread; the helper and the process that starts it keep what they need and no more.
fn none_left() -> Result<Outcome> {
    let observer = Observer::start(["watch"])?;
    let pid = observer.child.id();
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Kernels before 5.19 want CAP_BPF for reading counters.
        bounded(pid, &task?.file_name().to_string_lossy(), (BPF, BPF), "65533")?;
        threads += 1;
    }
    ensure!(threads >= 2, "only {threads} threads: the test does not see what it should");
    // A process that changed its user belongs to root in /proc: nobody else reads its memory.
    ensure!(fs::metadata(format!("/proc/{pid}/status"))?.uid() == 0, "other processes of its user can look into it");
    let [spare, helper] = observer::helpers(pid)?;
    for (pid, name) in [(spare, "observer-spare"), (helper, "observer-helper")] {
        ensure!(fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == name, "{pid} is not {name}");
        bounded(pid, &pid.to_string(), (OF_THE_HELPER, OF_THE_HELPER), "0")?;
        let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
        ensure!(mounts(&pid.to_string())? != mounts("self")?, "{name} has no mounts of its own");
    }
    observer.end(Signal::SIGTERM)?;
    Ok(Outcome::Passed)
}

/// A program that reads a stranger's rules, looked at while it hangs: namespaces, root folder, environment, capabilities, limits.
fn program() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 53 drop } }")?;
    let sleep = format!("{}.5", 60_000 + std::process::id() % 20_000);
    let script = format!(
        "mount -t tmpfs -o mode=755 none /usr/local/sbin
         printf '#!/bin/sh\\nexec sleep {sleep}\\n' > /usr/local/sbin/nft
         chmod 755 /usr/local/sbin/nft
         mount --bind /usr/local/sbin/nft /usr/sbin/nft"
    );
    let mut command = observer::command_after(&script);
    command.args(["watch", "--no-fix", "-o", "json", "--netns"]).arg(lab.client.path()).env("SECRET", "of the caller");
    let observer = Observer::start_command(&mut command)?;
    let found = || -> Result<Option<u32>> {
        let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_it = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(format!("sleep\0{sleep}").as_bytes()))
        };
        Ok(all.into_iter().find(is_it))
    };
    let pid = wait_for("the program", || {
        traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
        found()
    })?;
    let pid_in_proc = format!("/proc/{pid}");
    bounded(pid, &pid.to_string(), (NET_ADMIN_AND_RAW, NET_ADMIN_AND_RAW), "0")?;
    for kind in ["mnt", "pid", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        ensure!(of(&pid.to_string())? != of("self")?, "it has no {kind} namespace of its own");
    }
    ensure!(fs::metadata(format!("{pid_in_proc}/ns/net"))?.ino() == lab.client.inode()?, "it is elsewhere");
    let environment = fs::read(format!("{pid_in_proc}/environ"))?;
    let environment: BTreeSet<_> = environment.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
    let names: Vec<_> = environment.iter().filter_map(|word| word.split(|byte| *byte == b'=').next()).collect();
    // The shell adds where it is.
    ensure!(names.iter().all(|name| [&b"PATH"[..], b"LC_ALL", b"PWD"].contains(name)), "its environment: {names:?}");
    let root = format!("{pid_in_proc}/root");
    let inside: BTreeSet<String> =
        fs::read_dir(&root)?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    ensure!(!inside.contains("root") && !inside.contains("home") && !inside.contains("sys"), "it sees {inside:?}");
    ensure!(fs::read_dir(format!("{root}/run"))?.next().is_none(), "it sees something in /run");
    ensure!(!Path::new(&format!("{root}/etc/shadow")).exists(), "it sees /etc/shadow");
    let mounts = fs::read_to_string(format!("{pid_in_proc}/mountinfo"))?;
    for mount in mounts.lines() {
        let options = mount.split(' ').nth(5).unwrap_or_default();
        let is_device = mount.split(' ').nth(4).is_some_and(|path| path.starts_with("/dev/"));
        ensure!(is_device || options.split(',').any(|option| option == "ro"), "it can write: {mount}");
    }
    let limits = fs::read_to_string(format!("{pid_in_proc}/limits"))?;
    for limit in ["Max cpu time", "Max address space"] {
        let line = limits.lines().find(|line| line.starts_with(limit)).context("no such limit")?;
        ensure!(!line.contains("unlimited"), "{line}");
    }
    observer.end(Signal::SIGTERM)?;
    wait_for("its end", || Ok(found()?.is_none().then_some(())))?;
    Ok(Outcome::Passed)
}

/// observer's own process that reads rules, looked at while it reads many of them.
fn reader() -> Result<Outcome> {
    let lab = Lab::new()?;
    let rules = "udp dport 54 accept; ".repeat(20_000);
    lab.client.nft(&format!(
        "table inet t {{ chain never {{ {rules} }}; chain o {{ type filter hook output priority 0; policy drop; }} }}"
    ))?;
    let mut command = observer::command();
    command.args(["watch", "--no-fix", "--no-replay", "-o", "json", "--netns"]).arg(lab.client.path());
    let observer = Observer::start_command(&mut command)?;
    let pids = || -> Result<Vec<u32>> {
        Ok(fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    };
    let netns = lab.client.inode()?;
    // False where it is not there, or no longer.
    let looked = || -> Result<bool> {
        let is_it = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "observer-reader")
                && fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|of| of.ino() == netns)
        };
        let Some(pid) = pids()?.into_iter().find(is_it) else { return Ok(false) };
        bounded(pid, &pid.to_string(), (NET_ADMIN_AND_RAW, NET_ADMIN_AND_RAW), "0")?;
        for kind in ["mnt", "pid", "ipc", "uts"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
            ensure!(of(&pid.to_string())? != of("self")?, "it has no {kind} namespace of its own");
        }
        ensure!(fs::read(format!("/proc/{pid}/environ"))?.is_empty(), "it has an environment");
        let inside = fs::read_dir(format!("/proc/{pid}/root"))?.flatten();
        let inside: BTreeSet<String> = inside.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ensure!(!["root", "home", "sys"].iter().any(|name| inside.contains(*name)), "it sees {inside:?}");
        for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let target = fs::read_link(file?.path())?.display().to_string();
            let is_its_own = ["/dev/null", "pipe:", "socket:", "/proc"].iter().any(|own| target.starts_with(own));
            ensure!(is_its_own, "it has {target} open");
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits.lines().find(|line| line.starts_with("Max address space")).context("no such limit")?;
        ensure!(!line.contains("unlimited"), "{line}");
        Ok(true)
    };
    // It is there for a moment: what was not seen of it this time is seen the next time.
    wait_for("a look at the process that reads rules", || {
        lab.client.nft("add rule inet t never udp dport 55 accept")?;
        traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            match looked() {
                Ok(true) => return Ok(Some(())),
                Ok(false) => {}
                Err(error) if error.is::<std::io::Error>() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    })?;
    wait_for("the policy's name", || Ok(observer.so_far().contains("policy drop").then_some(())))?;
    observer.stop()?;
    Ok(Outcome::Passed)
}

/// Another helper is started, the next block has its rule again, and the account says what was missing.
fn replaced() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 53 drop } }")?;
    let netns = lab.client.path().display().to_string();
    let mut command = observer::command();
    command.args(["watch", "--no-fix", "--strict", "-o", "json", "--netns", &netns]);
    let observer = Observer::start_command(&mut command)?;
    let helper = || observer::helpers(observer.child.id()).map(|[_, helper]| helper);
    let first = helper()?;
    observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "53"]).map(drop))?;
    kill(Pid::from_raw(i32::try_from(first)?), Signal::SIGKILL)?;
    wait_for("its end", || Ok((!Path::new(&format!("/proc/{first}/exe")).exists()).then_some(())))?;
    let before = observer.so_far().lines().count();
    wait_for("a rule by another helper", || {
        observer.tells(|| traffic::run(&lab.client, &["udp", FAR_V4, "53"]).map(drop))?;
        let told = observer.so_far();
        Ok(told.lines().skip(before).any(|line| line.contains(r#""text":"udp dport 53 drop""#)).then_some(()))
    })?;
    ensure!(helper()? != first, "no other helper was started");
    let (status, stdout, _) = observer.end(Signal::SIGINT)?;
    ensure!(status.code() == Some(4), "with --strict it ends with {status}");
    let told = Report::parse(&stdout)?.account["degraded"].to_string();
    ensure!(told.contains("helper process died at") && told.contains("started again"), "{told}");
    Ok(Outcome::Passed)
}

/// Too little memory is one sentence; a little more is enough with smaller tables.
fn memory() -> Result<Outcome> {
    let Some(group) = memory_group()? else {
        return Ok(Outcome::Skipped("there is no control group of memory that could be made here".to_owned()));
    };
    let limited = |megabytes: u64, args: &[&str]| -> Result<std::process::Output> {
        let limit = if group.join("memory.max").exists() { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(group.join(limit), (megabytes << 20).to_string())?;
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", group.display());
        let mut command = Command::new("sh");
        Ok(command.args(["-c", &script]).arg(observer::program()).args(args).output()?)
    };
    let refused = limited(64, &["watch", "--for", "1s"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let small = limited(160, &["watch", "--for", "1s", "-o", "json"])?;
    let account = String::from_utf8_lossy(&small.stdout).into_owned();
    wait_for("the group to be empty", || Ok(fs::remove_dir(&group).is_ok().then_some(())))?;
    ensure!(
        refused.status.code() == Some(3) && said.contains("allows 64 MB") && said.contains("hint"),
        "{}: {said}",
        refused.status
    );
    ensure!(small.status.success() && account.contains("\"what\":\"memory\""), "{}: {account}", small.status);
    Ok(Outcome::Passed)
}

fn memory_group() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let places = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let is_memory = words[2] == "cgroup" && words[3].split(',').any(|option| option == "memory");
        (is_memory || words[2] == "cgroup2")
            .then(|| PathBuf::from(words[1]).join(format!("observer-test-{}", std::process::id())))
    });
    for place in places {
        if fs::create_dir(&place).is_err() {
            continue;
        }
        if ["memory.max", "memory.limit_in_bytes"].iter().any(|file| place.join(file).exists()) {
            return Ok(Some(place));
        }
        fs::remove_dir(&place)?;
    }
    Ok(None)
}

/// One file copied into a file system with nothing but /proc and /sys: it runs, names the sender, and leaves nothing.
fn empty_root() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain out { type filter hook output priority 0; udp dport 53 counter drop; } }")?;
    let folder = tempfile::TempDir::new()?;
    let root = folder.path();
    copy_program(observer::program(), root.join("observer"))?;
    for name in ["proc", "sys"] {
        fs::create_dir(root.join(name))?;
    }
    let script = "mount -t proc proc \"$0/proc\" && mount -t sysfs sysfs \"$0/sys\" && exec chroot \"$0\" /observer watch -o json";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(root);
    let observer = Observer::start_command(&mut command)?;
    let client = traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
    let report = observer.stop()?;
    let inode = lab.client.inode()?;
    let events: Vec<_> = report.events.iter().filter(|event| event["egress"]["netns"] == inode).collect();
    ensure!(events.len() == 1, "{:?}", report.events);
    expect(events[0], &[("/process/pid", json!(client.pid)), ("/egress/owner", json!("socket"))])?;
    let mut left: Vec<_> = fs::read_dir(root)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    left.sort();
    ensure!(left == ["observer", "proc", "sys"], "left behind: {left:?}");
    Ok(Outcome::Passed)
}

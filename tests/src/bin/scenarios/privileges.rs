//! What observer keeps, and what it needs of the host.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use harness::{
    copy_program,
    lab::{FAR_V4, Lab},
    observer::{self, Observer, expect},
    traffic,
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] =
    &[("the_process_that_decodes_has_no_privileges", none_left), ("empty_root_file_system", empty_root)];

fn status(pid: u32, task: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim_start_matches(':').trim().to_owned())
}

/// Every thread of it; the helper keeps what it needs and no more.
fn none_left() -> Result<Outcome> {
    let observer = Observer::start(["watch"])?;
    let pid = observer.child.id();
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name().to_string_lossy().into_owned();
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let bits = u64::from_str_radix(&status(pid, &task, set)?, 16)?;
            // CAP_BPF, which kernels before 5.19 want for reading counters.
            ensure!(bits & !(1 << 39) == 0, "{set} of thread {task} is {bits:x}");
        }
        ensure!(status(pid, &task, "NoNewPrivs")? == "1", "new privileges are possible");
        ensure!(status(pid, &task, "Uid")?.split_whitespace().all(|id| id == "65533"), "still a privileged user");
        threads += 1;
    }
    ensure!(threads >= 2, "only {threads} threads: the test does not see what it should");
    let helper: u32 = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?.trim().parse()?;
    let kept = u64::from_str_radix(&status(helper, &helper.to_string(), "CapEff")?, 16)?;
    // CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN,
    // CAP_SYSLOG.
    ensure!(
        kept & !(1 << 2 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13 | 1 << 18 | 1 << 19 | 1 << 21 | 1 << 34) == 0,
        "the helper keeps {kept:x}"
    );
    observer.end(Signal::SIGTERM)?;
    Ok(Outcome::Passed)
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

//! What /proc says about processes and who holds a socket. Runs in the helper: other users' files need its privilege.

use std::{fs, path::Path};

use procfs::process::Process;

use crate::model::{Facts, Relative};

/// Parents followed before giving up on a loop that /proc should not have.
const MAX_PARENTS: usize = 64;
/// Bytes of arguments kept; what is longer is cut, with a mark.
const MAX_ARG_BYTES: usize = 16 * 1024;
/// Stands for what was cut.
const CUT: &str = "…";
/// Inode number of the initial pid namespace (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// True when the pids of this /proc are the kernel's own.
pub fn sees_initial_pids() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE))
}

/// Facts about a process; `None` when it is gone, or when it is another one than the one that started at `start_ns`.
pub fn facts(pid: u32, start_ns: Option<u64>) -> Option<Facts> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    if start_ns.is_some_and(|start_ns| ticks(start_ns) != stat.starttime) {
        return None;
    }
    let facts = Facts {
        pid,
        start_ticks: stat.starttime,
        executable: process.exe().ok().map(|path| path.to_string_lossy().into_owned()),
        args: process.cmdline().map(cut_args).unwrap_or_default(),
        euid: process.status().ok().map(|status| status.euid),
        cgroup: unified_cgroup(&process),
        parents: parents(stat.ppid),
        name: stat.comm,
    };
    // The pid may have been taken over while the files were read one by one.
    let still = process.stat().ok()?.starttime == facts.start_ticks;
    still.then_some(facts)
}

/// Clock ticks since boot, the unit of /proc, for a time of `CLOCK_BOOTTIME`.
pub fn ticks(boot_ns: u64) -> u64 {
    const NANOSECONDS: u64 = 1_000_000_000;
    boot_ns / (NANOSECONDS / procfs::ticks_per_second().max(1))
}

/// Processes that have the socket with this inode number open. `first` is looked at first and is the only answer when it
/// is one of them and `only_first` is set.
pub fn holders(inode: u64, first: u32, only_first: bool) -> Vec<u32> {
    let link = format!("socket:[{inode}]");
    if holds(first, &link) {
        return vec![first];
    }
    if only_first {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| holds(*pid, &link))
        .collect()
}

fn holds(pid: u32, link: &str) -> bool {
    pid != 0
        && fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(link)))
            })
        })
}

fn parents(first: i32) -> Vec<Relative> {
    let mut parents = Vec::new();
    let mut next = first;
    while next > 0
        && parents.len() < MAX_PARENTS
        && let Ok(stat) = Process::new(next).and_then(|process| process.stat())
    {
        parents.push(Relative { pid: next.unsigned_abs(), name: stat.comm });
        next = stat.ppid;
    }
    parents
}

fn unified_cgroup(process: &Process) -> Option<String> {
    process.cgroups().ok()?.0.into_iter().find(|cgroup| cgroup.hierarchy == 0).map(|cgroup| cgroup.pathname)
}

fn cut_args(args: Vec<String>) -> Vec<String> {
    let mut left = MAX_ARG_BYTES;
    let mut kept = Vec::new();
    for mut arg in args {
        if arg.len() > left {
            let end = (0..=left).rev().find(|end| arg.is_char_boundary(*end)).unwrap_or(0);
            arg.truncate(end);
            arg.push_str(CUT);
            kept.push(arg);
            break;
        }
        left -= arg.len();
        kept.push(arg);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn knows_itself_and_refuses_another_start() {
        let me = std::process::id();
        let facts = facts(me, None).unwrap();
        assert_eq!(facts.pid, me);
        assert!(facts.executable.is_some() && !facts.args.is_empty());
        let start_ns = facts.start_ticks * 10_000_000;
        assert!(super::facts(me, Some(start_ns)).is_some());
        assert!(super::facts(me, Some(start_ns + 1_000_000_000)).is_none());
    }

    #[test]
    fn finds_the_holder_of_a_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let text = link.to_str().unwrap();
        let inode = text.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap();
        assert_eq!(holders(inode, std::process::id(), true), [std::process::id()]);
        assert_eq!(holders(inode, 0, false), [std::process::id()]);
        assert!(holders(1, std::process::id(), true).is_empty());
    }

    #[test]
    fn long_arguments_are_cut_with_a_mark() {
        let kept = cut_args(vec!["a".repeat(MAX_ARG_BYTES - 1), "ää".into(), "never".into()]);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[1], CUT);
    }
}

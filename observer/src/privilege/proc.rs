//! What /proc says about processes and who holds a socket. Runs in the helper: other users' files need its privilege.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, PoisonError, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use observer_ebpf::abi::ARGS_BYTES;
use procfs::process::{Process, Status};
use rustix::fs::{Dir, Mode, OFlags, readlinkat};

use super::netns;
use crate::{
    model::{Arguments, Facts, Image, Namespaces, ProcessId},
    patience,
};

/// How long one walk over all open files answers questions.
const FRESH: Duration = Duration::from_secs(1);
/// A socket that the last walk did not see may be new; not sooner than this after it.
const STALE: Duration = Duration::from_millis(20);
/// Holders of one socket that are reported; two are already too many for an answer.
const MAX_HOLDERS: usize = 16;
/// How long arguments are waited for.
const ARGUMENTS: Duration = Duration::from_millis(50);
/// Threads that wait for arguments longer than that, of one user's processes and of all: then they are not read there any more.
const MAX_STUCK: usize = 2;
const MAX_ALL_STUCK: usize = 16;
/// Inode number of the initial pid namespace (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// True when the pids of this /proc are the kernel's own.
pub fn sees_initial_pids() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE))
}

/// Facts about a process; `None` when it is gone, or when it is another one than the one that started then.
pub fn facts(pid: u32, start_ticks: Option<u64>) -> Option<Facts> {
    read(pid, start_ticks, true)
}

fn read(pid: u32, start_ticks: Option<u64>, with_arguments: bool) -> Option<Facts> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    // A thread's number can be opened too.
    let status = process.status().ok();
    let leader = status.as_ref().and_then(|status| u32::try_from(status.tgid).ok());
    if let Some(leader) = leader.filter(|leader| *leader != pid) {
        return read(leader, start_ticks, with_arguments);
    }
    let stat = process.stat().ok()?;
    if start_ticks.is_some_and(|wanted| wanted != stat.starttime) {
        return None;
    }
    let euid = status.as_ref().map(|status| status.euid);
    let namespaces = namespaces(&process, status.as_ref());
    let read = if with_arguments { in_time(&process, status.map_or(0, |status| status.ruid)) } else { None };
    let facts = Facts {
        namespaces,
        id: ProcessId { pid, start_ticks: stat.starttime },
        parent_pid: u32::try_from(stat.ppid).unwrap_or(0),
        image: Image {
            executable: process.exe().ok().map(|path| path.to_string_lossy().into_owned()),
            executable_cut: false,
            script: None,
            args_unread: !with_arguments,
            args_cut: with_arguments && read.as_ref().is_none_or(|(_, cut)| *cut),
            args: read.map(|(args, _)| args).unwrap_or_default(),
        },
        euid,
        cgroup: unified_cgroup(&process),
        name: stat.comm,
    };
    // The pid may have been taken over while the files were read one by one.
    let still = process.stat().ok()?.starttime == facts.id.start_ticks;
    still.then_some(facts)
}

/// Its namespaces that are not the initial ones; what cannot be read is left out.
fn namespaces(process: &Process, status: Option<&Status>) -> Namespaces {
    let number = |name: &str| {
        let file = process.open_relative(format!("ns/{name}")).ok()?;
        Some((file.metadata().ok()?.ino(), file))
    };
    let mut found = Namespaces::default();
    if let Some((inode, _)) = number("pid").filter(|(inode, _)| *inode != netns::INITIAL_PID_NAMESPACE) {
        let inner = status.and_then(|status| status.nspid.as_ref()?.last().copied());
        found.pid = u32::try_from(inode).unwrap_or(0);
        found.inner_pid = inner.and_then(|inner| u32::try_from(inner).ok()).unwrap_or(0);
    }
    if let Some((inode, file)) = number("user").filter(|(inode, _)| *inode != netns::INITIAL_USER_NAMESPACE) {
        found.user = u32::try_from(inode).unwrap_or(0);
        found.user_owner = netns::maker(file.into()).unwrap_or(u32::MAX);
    }
    found
}

/// True while this very process runs.
pub fn lives(id: ProcessId) -> bool {
    let process = i32::try_from(id.pid).ok().and_then(|pid| Process::new(pid).ok());
    process.and_then(|process| process.stat().ok()).is_some_and(|stat| stat.starttime == id.start_ticks)
}

/// Facts about every process that runs now, but for arguments.
pub fn all() -> Vec<Facts> {
    pids().filter_map(|pid| read(pid, None, false)).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Threads that wait for arguments which do not come, by the user whose process it is.
static STUCK: Mutex<BTreeMap<u32, usize>> = Mutex::new(BTreeMap::new());

/// Arguments, and whether there are more; `None` when they are not to be had in time. They are in the process's own memory, and whoever
/// it belongs to may have put a file there whose file system does not answer: so a thread reads them that can be left alone.
fn in_time(process: &Process, uid: u32) -> Option<(Arguments, bool)> {
    let stuck = || STUCK.lock().unwrap_or_else(PoisonError::into_inner);
    let all: usize = stuck().values().sum();
    if stuck().get(&uid).is_some_and(|of| *of >= MAX_STUCK) || all >= MAX_ALL_STUCK {
        return None;
    }
    // Opened here: it stays this process's.
    let file = process.open_relative("cmdline").ok()?;
    *stuck().entry(uid).or_default() += 1;
    let (send, read) = channel();
    thread::spawn(move || {
        let read = arguments(file);
        let mut stuck = STUCK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = stuck.get_mut(&uid) {
            *of -= 1;
            if *of == 0 {
                stuck.remove(&uid);
            }
        }
        let _ = send.send(read);
    });
    read.recv_timeout(patience::here(ARGUMENTS)).ok()?
}

/// Read as bytes: they need not be text, and an empty one is one.
fn arguments(file: impl Read) -> Option<(Arguments, bool)> {
    let mut bytes = Vec::new();
    file.take(ARGS_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    let cut = bytes.len() > ARGS_BYTES;
    bytes.truncate(ARGS_BYTES);
    Some((Arguments::new(&bytes), cut))
}

/// True when a process has the socket with this inode number open.
pub fn holds(pid: u32, inode: u64) -> bool {
    pid != 0 && sockets(pid).is_some_and(|sockets| sockets.contains(&inode))
}

/// Which processes have which sockets open. One walk over all of /proc answers every question for [`FRESH`].
#[derive(Default)]
pub struct Holders {
    walked: Option<Instant>,
    by_inode: HashMap<u64, Vec<u32>>,
}

impl Holders {
    /// Processes that have the socket open, at most [`MAX_HOLDERS`].
    pub fn of(&mut self, inode: u64) -> Vec<u32> {
        let old = |limit: Duration| self.walked.is_none_or(|walked| walked.elapsed() > limit);
        if old(FRESH) || !self.by_inode.contains_key(&inode) && old(STALE) {
            self.by_inode.clear();
            for pid in pids() {
                for socket in sockets(pid).unwrap_or_default() {
                    let holders = self.by_inode.entry(socket).or_default();
                    if holders.last() != Some(&pid) && holders.len() < MAX_HOLDERS {
                        holders.push(pid);
                    }
                }
            }
            self.walked = Some(Instant::now());
        }
        // A process may have ended since the walk, and its number be another one's.
        let found = self.by_inode.get(&inode).into_iter().flatten().copied();
        found.filter(|pid| holds(*pid, inode)).collect()
    }
}

/// Inode numbers of a process's open sockets; `None` when it is gone. Its folder is opened once: what is read is that process's, or
/// fails.
fn sockets(pid: u32) -> Option<Vec<u64>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty()).ok()?;
    let entries = Dir::read_from(&folder).ok()?.flatten();
    let mut target = Vec::with_capacity(64);
    let socket = |entry: rustix::fs::DirEntry| {
        let path = readlinkat(&folder, entry.file_name(), std::mem::take(&mut target)).ok()?;
        let socket = path.to_str().ok().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        target = path.into_bytes();
        socket
    };
    Some(entries.filter_map(socket).collect())
}

fn unified_cgroup(process: &Process) -> Option<String> {
    process.cgroups().ok()?.0.into_iter().find(|cgroup| cgroup.hierarchy == 0).map(|cgroup| cgroup.pathname)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn knows_itself_and_refuses_another_start() {
        let me = std::process::id();
        let facts = facts(me, None).unwrap();
        assert_eq!(facts.id.pid, me);
        assert!(facts.image.executable.is_some() && !facts.image.args.is_empty());
        assert!(super::facts(me, Some(facts.id.start_ticks)).is_some());
        assert!(super::facts(me, Some(facts.id.start_ticks + 1)).is_none());
        assert!(all().iter().any(|one| one.id == facts.id && one.image.args_unread));
    }

    #[test]
    fn finds_the_holder_of_a_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let text = link.to_str().unwrap();
        let inode = text.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap();
        let me = std::process::id();
        assert!(holds(me, inode) && !holds(me, 1) && !holds(0, inode));
        let mut holders = Holders::default();
        assert_eq!(holders.of(inode), [me]);
        assert!(holders.of(1).is_empty());
    }
}

//! Network namespaces by their number: found, and entered by a thread of its own.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use rustix::fs::{AtFlags, Mode, OFlags, openat};

use crate::{
    confinement::programs,
    firewall::{
        files::Root,
        front_end::{self, FrontEnd},
    },
    model::{HELPER, NetnsPlace},
    sys,
};

/// Runs `work` on a thread in the namespace with this inode number; without one, in this process's own.
pub(super) fn inside<T: Send + 'static>(number: Option<u32>, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match number {
        Some(number) => enter(open(number)?, work),
        None => Ok(work()),
    }
}

/// The same without waiting for it: what came of it arrives when it has ended, or the sender is gone when it failed.
pub(super) fn begin<T: Send + 'static>(
    number: u32,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<Receiver<Result<T>>> {
    Ok(begin_in(open(number)?, work))
}

/// The same in a namespace that is open.
pub(super) fn begin_in<T: Send + 'static>(
    namespace: File,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Receiver<Result<T>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace");
        // Nobody waits any more for one that takes too long.
        let _ = send.send(entered.and_then(|()| work()));
    });
    receive
}

/// The same as [`inside`] for a namespace that a process is known to be in; if it is gone, that of any other.
pub(super) fn inside_of<T: Send + 'static>(
    pid: u32,
    number: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match Process::open(pid).and_then(|process| process.net(number)) {
        Some(namespace) => enter(namespace, work),
        None => enter(open(number)?, work),
    }
}

/// A process, by its folder in /proc, which stays its own: what is looked up in it fails once the process is gone.
pub(super) struct Process(OwnedFd);

impl Process {
    fn open(pid: u32) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(Self(rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).ok()?))
    }

    /// One of its namespaces. The process may be in another one by now: whoever uses this asks the file.
    fn namespace(&self, kind: &str) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Some(openat(&self.0, format!("ns/{kind}"), flags, Mode::empty()).ok()?.into())
    }

    /// Its mount namespace, if that belongs to the initial user namespace: in others whoever likes mounts what never answers.
    fn mounts_of_the_host(&self) -> Option<File> {
        let mounts = self.namespace("mnt")?;
        let users = File::from(sys::owning_user_namespace(mounts.as_fd()).ok()?).metadata().ok()?;
        (users.ino() == INITIAL_USER_NAMESPACE).then_some(mounts)
    }

    /// A small file of it.
    fn read(&self, name: &str) -> Option<String> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(file).take(4096).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Its parent's number.
    fn parent(&self) -> Option<u32> {
        self.read("stat")?.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    }

    /// When it began, in clock ticks since boot.
    fn began(&self) -> Option<u64> {
        self.read("stat")?.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }

    /// It is the helper of an observer. Its name alone says nothing: it must be root's, of the host, and confined as a helper is. A
    /// program that became root's by its file's mode has another real user, and may not be forbidden new privileges.
    fn is_a_helper(&self) -> bool {
        let is = |kind: &str, number: u64| {
            self.namespace(kind).and_then(|of| of.metadata().ok()).is_some_and(|of| of.ino() == number)
        };
        let has = |status: &str, name: &str, value: &[&str]| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.is_some_and(|words| words.split_whitespace().eq(value.iter().copied()))
        };
        let is_confined = |status: String| {
            has(&status, "Uid:", &["0"; 4]) && has(&status, "NoNewPrivs:", &["1"]) && has(&status, "Seccomp:", &["2"])
        };
        self.read("comm").is_some_and(|name| name.trim_end() == HELPER)
            && self.read("status").is_some_and(is_confined)
            && is("user", INITIAL_USER_NAMESPACE)
            && is("pid", INITIAL_PID_NAMESPACE)
    }

    /// One of its threads that live in namespaces which observer has made is in the one with this inode number.
    fn has_a_copy(&self, number: u32) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(tasks) = openat(&self.0, "task", flags, Mode::empty()) else { return false };
        let Ok(entries) = rustix::fs::Dir::read_from(&tasks) else { return false };
        entries.flatten().any(|entry| {
            let task = entry.file_name().to_string_lossy().into_owned();
            let namespace = rustix::fs::statat(&tasks, format!("{task}/ns/net"), AtFlags::empty());
            let name = || self.read(&format!("task/{task}/comm"));
            namespace.is_ok_and(|meta| meta.st_ino == u64::from(number))
                && name().is_some_and(|name| name.trim_end().as_bytes() == sys::COPY_THREAD.to_bytes())
        })
    }

    /// Its network namespace, if that has this inode number.
    fn net(&self, number: u32) -> Option<File> {
        let namespace = self.namespace("net")?;
        (namespace.metadata().ok()?.ino() == u64::from(number)).then_some(namespace)
    }
}

/// A process's network namespace, if that has this inode number.
pub(super) fn of(pid: u32, number: u32) -> Option<File> {
    Process::open(pid)?.net(number)
}

/// True when a process is in the namespace with this inode number.
pub(super) fn is_in(pid: u32, number: u32) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == u64::from(number))
}

pub(super) fn enter<T: Send + 'static>(namespace: File, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    // A namespace belongs to a thread; this one ends with the work.
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
        Ok(work())
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread in the network namespace failed"))?
}

/// A namespace is where a process lives in it, or where it is bound to a path.
pub(super) fn open(number: u32) -> Result<File> {
    of_a_process(number)
        .or_else(|| bound(number).next().map(|(_, namespace)| namespace))
        .with_context(|| format!("network namespace {number} has neither a process nor a path in sight"))
}

/// Numbers of all processes.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process that lives in the namespace with this inode number: the one that began first, which most often lives longest. Programs
/// that an observer runs there are none.
pub(super) fn resident(number: u32) -> Option<u32> {
    eldest(pids().filter(|pid| !is_an_observers_program(*pid)), number)
}

/// Of these processes the one that lives in the namespace and began first.
pub(super) fn eldest(pids: impl Iterator<Item = u32>, number: u32) -> Option<u32> {
    pids.filter(|pid| is_in(*pid, number)).min_by_key(|pid| Process::open(*pid).and_then(|process| process.began()))
}

/// The process is the helper of an observer, this one's or another's.
pub(super) fn is_a_helper(pid: u32) -> bool {
    Process::open(pid).is_some_and(|process| process.is_a_helper())
}

/// The process was started by the helper of an observer, by itself or by another one: it is in the namespace for a moment.
pub(super) fn is_an_observers_program(pid: u32) -> bool {
    const GENERATIONS: usize = 8;
    let parent = |pid: &u32| Process::open(*pid)?.parent().filter(|parent| *parent > 1);
    std::iter::successors(parent(&pid), parent)
        .take(GENERATIONS)
        .any(|pid| pid == std::process::id() || is_a_helper(pid))
}

/// Processes that live in the namespace with this inode number, but for programs that an observer runs there.
fn residents(number: u32) -> impl Iterator<Item = Process> {
    let is_resident = move |process: &Process| process.net(number).is_some();
    pids().filter_map(move |pid| Process::open(pid).filter(is_resident).filter(|_| !is_an_observers_program(pid)))
}

/// Root folders in which the files of a namespace's firewall may be: this process's own where it is its namespace, or nobody
/// lives there; and those of whoever does.
pub(super) fn roots(number: u32) -> Vec<Root> {
    let mut mounts: HashSet<u64> = fs::metadata("/proc/self/ns/mnt").map(|own| own.ino()).into_iter().collect();
    let mut roots = Vec::new();
    if is_in(std::process::id(), number) {
        mounts.extend(HOST_MOUNTS.get());
        roots.extend(Root::open(Path::new("/")));
    }
    let others = residents(number)
        .filter_map(|process| process.mounts_of_the_host())
        .filter(|namespace| namespace.metadata().is_ok_and(|meta| mounts.insert(meta.ino())));
    roots.extend(others.take(MAX_ROOTS).filter_map(|namespace| root_of(namespace).ok()));
    if roots.is_empty() {
        roots.extend(Root::open(Path::new("/")));
    }
    roots
}

/// Root folder of a mount namespace. That of a process in it can be another one, or belong to another mount namespace.
fn root_of(mounts: File) -> Result<Root> {
    let number = mounts.metadata().context("the mount namespace has no number")?.ino();
    let (send, root) = channel();
    let open = move || -> Result<OwnedFd> {
        // Threads share their root folder until then.
        unshare(CloneFlags::CLONE_FS)?;
        setns(mounts, CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/", flags, Mode::empty()).context("cannot open the mount namespace's root folder")
    };
    thread::spawn(move || {
        let _ = send.send(open());
    });
    let root = root.recv_timeout(ROOT).context("the mount namespace's root folder was not to be had in time")??;
    Ok(Root::of(root, number))
}

/// Root folder of whoever manages a namespace's firewall, where that is the host itself: its files are data that may be anything,
/// and its programs must be the host's own, which are run in its place.
pub(super) fn home(number: u32) -> Result<Root> {
    if is_in(std::process::id(), number) {
        return Root::open(Path::new("/"));
    }
    let mut residents = residents(number).peekable();
    if residents.peek().is_none() {
        return Root::open(Path::new("/"));
    }
    let mounts = residents.find_map(|process| process.mounts_of_the_host());
    let mounts = mounts.context("the rules are a container's own: its programs and files are not tried")?;
    let root = root_of(mounts)?;
    let programs = front_end::ALL.iter().flat_map(|of| of.commands().iter().chain(of.needs().programs));
    for name in programs {
        let Some(path) = programs::find(name) else { continue };
        let own = fs::metadata(&path).map(|meta| (meta.dev(), meta.ino())).ok();
        ensure!(
            root.place(&path.to_string_lossy()) == own,
            "the rules are managed with programs of their own ({name} is not the host's): nothing is tried"
        );
    }
    Ok(root)
}

/// The files of a front end below this root folder are others than the host's.
pub(super) fn has_own_files(root: &Root, front_end: &dyn FrontEnd) -> bool {
    let folders = front_end.needs().folders;
    let differ = |host: Root| folders.iter().any(|folder| host.place(folder) != root.place(folder));
    front_end.has_files() && Root::open(Path::new("/")).map_or(true, differ)
}

/// What is known of a namespace; `resident` is a process that lives there, where one is known.
pub(super) fn place(number: u32, resident: Option<u32>) -> NetnsPlace {
    let entering = entering_by(number, || resident);
    let is_other = !is_in(std::process::id(), number);
    let is_lonely = is_other && entering.is_none() && resident.is_none();
    let owner = resident.filter(|_| is_other).and_then(Process::open).and_then(|process| owner(&process.net(number)?));
    let is_an_observers = is_lonely && is_an_observers(number);
    let may_be_an_observers = is_lonely && !is_an_observers && is_there_another();
    NetnsPlace { is_an_observers, may_be_an_observers, is_other, entering, owner }
}

/// The namespace in which a process lives belongs to another user namespace than the initial one; so it is where that is not known.
fn is_a_strangers(pid: u32, number: u32) -> bool {
    let users = Process::open(pid)
        .and_then(|process| process.net(number))
        .and_then(|namespace| sys::owning_user_namespace(namespace.as_fd()).ok())
        .and_then(|users| rustix::fs::fstat(&users).ok());
    users.is_none_or(|users| users.st_ino != INITIAL_USER_NAMESPACE)
}

/// Whoever made the outermost user namespace below the initial one to which a namespace belongs; root where it belongs to the initial
/// one.
fn owner(namespace: &File) -> Option<u32> {
    maker(sys::owning_user_namespace(namespace.as_fd()).ok()?)
}

/// Whoever made a user namespace; of one within others, the outermost below the initial one. Root for that one.
pub(super) fn maker(mut users: OwnedFd) -> Option<u32> {
    /// The kernel allows no more, one in the other.
    const LEVELS: usize = 33;
    let inode = |users: &OwnedFd| rustix::fs::fstat(users).ok().map(|meta| meta.st_ino);
    if inode(&users)? == INITIAL_USER_NAMESPACE {
        return Some(0);
    }
    for _ in 0..LEVELS {
        let above = sys::owning_user_namespace(users.as_fd()).ok()?;
        if inode(&above)? == INITIAL_USER_NAMESPACE {
            return sys::maker_of_user_namespace(users.as_fd()).ok();
        }
        users = above;
    }
    None
}

/// Another observer runs on this host.
fn is_there_another() -> bool {
    pids().filter(|pid| *pid != std::process::id()).any(is_a_helper)
}

/// Another observer made it: a thread of its helper lives there, in a copy of rules or a self-test.
fn is_an_observers(number: u32) -> bool {
    let others = pids().filter(|pid| *pid != std::process::id()).filter_map(Process::open);
    others.filter(Process::is_a_helper).any(|process| process.has_a_copy(number))
}

/// Words that go before a command so that it is run in a namespace; `None` for this process's own, or where none are known.
pub(super) fn entering(number: u32) -> Option<String> {
    entering_by(number, || resident(number))
}

fn entering_by(number: u32, resident: impl FnOnce() -> Option<u32>) -> Option<String> {
    if is_in(std::process::id(), number) {
        return None;
    }
    let paths: Vec<PathBuf> = bound(number).map(|(path, _)| path).collect();
    if let Some(name) = named(&paths) {
        return Some(format!("ip netns exec {name}"));
    }
    // Another user's process can end, and have a process of the host's take its number before a command is run.
    if let Some(pid) = resident().filter(|pid| !is_a_strangers(*pid, number)) {
        return Some(format!("nsenter -t {pid} -n"));
    }
    paths.iter().filter_map(|path| plain(path.to_str()?)).next().map(|path| format!("nsenter --net={path}"))
}

/// The same where this is observer's own namespace: whoever has started it there by `ip netns exec` types what is printed in a shell of
/// the host's. Nothing where the host's first process lives there, too, or where it has no such name.
pub(super) fn entering_own(number: u32) -> Option<String> {
    const FIRST: u32 = 1;
    if is_in(FIRST, number) {
        return None;
    }
    let paths: Vec<PathBuf> = bound(number).map(|(path, _)| path).collect();
    Some(format!("ip netns exec {}", named(&paths)?))
}

/// The name by which `ip netns` knows a namespace, of the paths to it.
fn named(paths: &[PathBuf]) -> Option<&str> {
    let named = paths.iter().filter(|path| NAMED.iter().any(|folder| path.parent() == Some(Path::new(folder))));
    named.filter_map(|path| plain(path.file_name()?.to_str()?)).next()
}

/// A word that no shell takes for anything else.
fn plain(word: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    (!word.is_empty() && !word.starts_with('-') && word.bytes().all(is_plain)).then_some(word)
}

/// Folders in which `ip netns` keeps namespaces by name.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Root folder of whoever lives in a namespace; the host's own where nobody does.
pub(super) fn root(number: u32) -> Result<Root> {
    if is_in(std::process::id(), number) {
        return Root::open(Path::new("/"));
    }
    match residents(number).find_map(|process| process.mounts_of_the_host()) {
        Some(mounts) => root_of(mounts),
        None => Root::open(Path::new("/")),
    }
}

/// Inode number of the mount namespace in which observer was started.
static HOST_MOUNTS: OnceLock<u64> = OnceLock::new();

/// Makes a mount namespace of this process's own, in which what is mounted on the host from now on appears too.
pub(super) fn keep_mounts_apart() {
    if let Ok(mounts) = fs::metadata("/proc/self/ns/mnt") {
        HOST_MOUNTS.get_or_init(|| mounts.ino());
    }
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    let apart =
        unshare(CloneFlags::CLONE_NEWNS).and_then(|()| mount(None::<&str>, "/", None::<&str>, slave, None::<&str>));
    // Without privileges, or in a root folder that is no mount; nothing that mounts anything can be started then either.
    if let Err(error) = apart {
        log::debug!("mounts are not kept apart: {error}");
    }
}
/// Inode number of the initial user namespace (`PROC_USER_INIT_INO` of `include/linux/proc_ns.h`).
pub(super) const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
/// The same of processes (`PROC_PID_INIT_INO`).
pub(super) const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// How long a root folder is waited for.
const ROOT: Duration = Duration::from_secs(1);
/// Mount namespaces in which files are looked for.
const MAX_ROOTS: usize = 8;
/// Magic number of the file system whose files are namespaces.
const NSFS: u64 = 0x6e73_6673;

fn of_a_process(number: u32) -> Option<File> {
    residents(number).find_map(|process| process.net(number))
}

/// Paths to which a namespace is bound, each with the namespace.
pub(super) fn bound(number: u32) -> impl Iterator<Item = (PathBuf, File)> {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    let paths = mounts.into_iter().flatten().filter(|mount| mount.fs_type == "nsfs").map(|mount| mount.mount_point);
    paths.filter_map(move |path| {
        // Opening alone may do something, where another file has come to that path.
        let found = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let is_namespace = rustix::fs::fstatfs(&found).is_ok_and(|of| of.f_type as u64 == NSFS);
        let is_it = rustix::fs::fstat(&found).is_ok_and(|meta| meta.st_ino == u64::from(number));
        let open = || File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok();
        (is_namespace && is_it).then(open).flatten().map(|namespace| (path, namespace))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_found() {
        let number = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        assert_eq!(open(number).unwrap().metadata().unwrap().ino(), u64::from(number));
        assert!(open(1).is_err());
    }
}

//! Network namespaces by their number: found, and entered by a thread of its own.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::firewall::files::Root;

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
    let namespace = open(number)?;
    let (send, receive) = channel();
    thread::spawn(move || {
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace");
        // Nobody waits any more for one that takes too long.
        let _ = send.send(entered.and_then(|()| work()));
    });
    Ok(receive)
}

/// The same as [`inside`] for a namespace that a process is known to be in; if it is gone, that of any other.
pub(super) fn inside_of<T: Send + 'static>(
    pid: u32,
    number: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match with_number(PathBuf::from(format!("/proc/{pid}/ns/net")), number) {
        Some(namespace) => enter(namespace, work),
        None => enter(open(number)?, work),
    }
}

/// True when a process is in the namespace with this inode number.
pub(super) fn is_in(pid: u32, number: u32) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == u64::from(number))
}

fn enter<T: Send + 'static>(namespace: File, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    // A namespace belongs to a thread; this one ends with the work.
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
        Ok(work())
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread in the network namespace failed"))?
}

/// A namespace is where a process lives in it, or where it is bound to a path.
fn open(number: u32) -> Result<File> {
    of_a_process(number)
        .or_else(|| bound(number))
        .with_context(|| format!("network namespace {number} has neither a process nor a path in sight"))
}

/// A process that lives in the namespace with this inode number.
pub(super) fn resident(number: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        is_in(pid, number).then_some(pid)
    })
}

/// Root folders in which the files of a namespace's firewall may be: this process's own where it is its namespace, or nobody
/// lives there; and those of whoever does.
pub(super) fn roots(number: u32) -> Vec<Root> {
    let mount = |process: &str| fs::metadata(format!("/proc/{process}/ns/mnt")).map(|meta| meta.ino()).ok();
    let mut mounts = HashSet::new();
    let mut paths = Vec::new();
    if is_in(std::process::id(), number) {
        mounts.extend(mount("self"));
        paths.push(PathBuf::from("/"));
    }
    let residents = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        let pid = name.to_str()?.parse::<u32>().ok()?;
        (is_in(pid, number) && mounts.insert(mount(name.to_str()?)?)).then_some(pid)
    });
    paths.extend(residents.take(MAX_ROOTS).map(|pid| PathBuf::from(format!("/proc/{pid}/root"))));
    if paths.is_empty() {
        paths.push(PathBuf::from("/"));
    }
    paths.iter().filter_map(|path| Root::open(path).ok()).collect()
}

/// Where a namespace's firewall is managed from.
pub(super) struct Home {
    /// Its root folder.
    pub(super) root: Root,
    /// The mount namespace in which it is, where that is not this process's own.
    pub(super) mounts: Option<File>,
}

/// That, where it is the host's own: whoever lives there may have mounted something, and is no container.
pub(super) fn home(number: u32) -> Result<Home> {
    let root = |path: &str| Root::open(Path::new(path));
    let Some(pid) = resident(number).filter(|_| !is_in(std::process::id(), number)) else {
        return Ok(Home { root: root("/")?, mounts: None });
    };
    let place = |path: String| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let of = |process: &str| -> Result<_> {
        Ok((place(format!("/proc/{process}/root/"))?, place(format!("/proc/{process}/ns/user"))?))
    };
    let process = pid.to_string();
    ensure!(of(&process)? == of("self")?, "the rules are a container's own: its programs and files are not tried");
    let is_own = place(format!("/proc/{pid}/ns/mnt"))? == place("/proc/self/ns/mnt".to_owned())?;
    let mounts = if is_own { None } else { Some(File::open(format!("/proc/{pid}/ns/mnt"))?) };
    Ok(Home { root: root(&format!("/proc/{pid}/root"))?, mounts })
}

/// Path of the root folder of whoever lives in a namespace.
pub(super) fn root_path(number: u32) -> PathBuf {
    match resident(number).filter(|_| !is_in(std::process::id(), number)) {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/root")),
        None => PathBuf::from("/"),
    }
}

/// Mount namespaces in which files are looked for.
const MAX_ROOTS: usize = 8;

fn of_a_process(number: u32) -> Option<File> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        with_number(entry.path().join("ns/net"), number)
    })
}

fn bound(number: u32) -> Option<File> {
    let mounts = procfs::process::Process::myself().ok()?.mountinfo().ok()?;
    mounts
        .0
        .into_iter()
        .filter(|mount| mount.fs_type == "nsfs")
        .find_map(|mount| with_number(mount.mount_point, number))
}

fn with_number(path: PathBuf, number: u32) -> Option<File> {
    // Compared on the open file: the process may be another by now.
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.ino() == u64::from(number)).then_some(file)
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

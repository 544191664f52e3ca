//! Listening to changes of a namespace's rules, as long as a process or a path keeps it.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::netns;
use crate::intake::commits;

/// What listening to a namespace takes.
#[derive(Debug)]
pub struct Listening {
    /// Its inode number.
    pub netns: u32,
    /// Hears of changes, and keeps the namespace alive.
    pub socket: OwnedFd,
    /// Readable when what keeps the namespace may be gone: a process that lives there, or the path to which it is bound.
    pub resident: OwnedFd,
}

impl Listening {
    /// Made of the descriptors that came with an answer.
    pub(super) fn of(netns: u32, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        let [socket, resident] =
            <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| "the descriptors did not come".to_owned())?;
        Ok(Self { netns, socket, resident })
    }
}

/// A socket that hears of changes, and what tells that it must be closed: it keeps the namespace alive.
pub(super) fn begin(number: u32) -> Result<[OwnedFd; 2]> {
    let (resident, namespace) = match netns::resident(number) {
        Some(pid) => of_a_process(pid, number)?,
        None => of_a_path(number)?,
    };
    let socket = netns::enter(namespace, commits::listen)?.context("cannot listen to changes of nftables' rules")?;
    Ok([socket, resident])
}

/// A namespace in which a process lives: its end is heard of.
fn of_a_process(pid: u32, number: u32) -> Result<(OwnedFd, File)> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has such a number")?;
    let resident = pidfd_open(raw, PidfdFlags::NONBLOCK).context("the process is gone")?;
    // Now that it cannot be taken for another one any more.
    let namespace = netns::of(pid, number).context("the process is in another namespace now")?;
    Ok((resident, namespace))
}

/// Namespaces that are watched by their paths. The kernel lets a user have few watches of this kind (`fs.inotify.max_user_instances`).
static WATCHED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
const MOST: usize = 16;

/// A namespace that is bound to a path (`ip netns add`) and in which nobody lives: that some file was removed from that folder is heard of.
fn of_a_path(number: u32) -> Result<(OwnedFd, File)> {
    let bound = || netns::bound(number).next().context("the network namespace has neither a process nor a path");
    let (path, _) = bound()?;
    {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|number| netns::bound(*number).next().is_some());
        ensure!(
            watched.len() < MOST || watched.contains(&number),
            "{MOST} namespaces in which nobody lives are listened to"
        );
        watched.insert(number);
    }
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let folder = path.parent().context("a namespace is bound to no file")?;
    inotify::add_watch(&watch, folder, WatchFlags::DELETE | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR)
        .context("cannot watch the folder to which the namespace is bound")?;
    // It may have been removed before it was watched.
    Ok((watch, bound()?.1))
}

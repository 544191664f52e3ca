//! Listening to changes of a namespace's rules, as long as somebody lives there.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::netns;
use crate::intake::commits;

/// What listening to a namespace takes.
#[derive(Debug)]
pub struct Listening {
    /// Its inode number.
    pub netns: u32,
    /// Hears of changes, and keeps the namespace alive.
    pub socket: OwnedFd,
    /// A process that lives there: readable when it ends.
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

/// A socket that hears of changes, and a process that lives in the namespace: the socket keeps it alive, and must be closed
/// when that process ends.
pub(super) fn begin(number: u32) -> Result<[OwnedFd; 2]> {
    let pid = netns::resident(number).context("no process lives in the network namespace")?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has such a number")?;
    let resident = pidfd_open(raw, PidfdFlags::NONBLOCK).context("the process is gone")?;
    // Now that it cannot be taken for another one any more.
    ensure!(netns::is_in(pid, number), "the process is in another namespace now");
    let socket =
        netns::inside_of(pid, number, commits::listen)?.context("cannot listen to changes of nftables' rules")?;
    Ok([socket, resident])
}

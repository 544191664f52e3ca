//! One packet into a drop, in a network namespace made for it: the proof that this kernel shows what observer needs.
//!
//! [`send`] runs in the helper; the process that observes then looks for the event with exactly these numbers.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::MetadataExt,
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::{
    firewall::build::{self, TableSpec},
    kernel::{clock::boot_ns, loopback::raise_loopback},
};

/// Where the packet is sent: the discard port of the namespace's own loopback.
const DESTINATION: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9);

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Inode number of the namespace.
    pub netns: u32,
    /// Process that sent it.
    pub pid: u32,
    /// Source port.
    pub port: u16,
    /// When, nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
}

/// Makes a namespace, a chain whose policy is drop, and sends one datagram into it. The namespace is gone when this
/// returns: it belongs to a thread of its own.
pub fn send() -> Result<Sent> {
    thread::spawn(send_in_own_namespace).join().map_err(|_| anyhow::anyhow!("the self-test's thread failed"))?
}

fn send_in_own_namespace() -> Result<Sent> {
    crate::sys::name_copy_thread();
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    raise_loopback().context("cannot raise the namespace's loopback")?;
    build::table(&TableSpec { name: "observer_selftest", priority: 0, drops: true, chains: &[], rules: &[] })
        .context("cannot make an nftables chain in a namespace")?;
    let netns = std::fs::metadata("/proc/thread-self/ns/net").context("cannot read the namespace's number")?.ino();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot make a socket")?;
    let port = socket.local_addr().context("cannot read the socket's port")?.port();
    let boot_ns = boot_ns();
    match socket.send_to(b"observer self-test", DESTINATION) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Sent {
            netns: u32::try_from(netns).context("the namespace's number is too large")?,
            pid: std::process::id(),
            port,
            boot_ns,
        }),
        Err(error) => Err(error).context("the packet failed otherwise than by the drop"),
        Ok(_) => bail!("the packet was not dropped by a chain whose policy is drop"),
    }
}

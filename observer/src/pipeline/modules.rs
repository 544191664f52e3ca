//! Tells the slower half when modules of the kernel come and go: the kernel announces each to who listens (uevents).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket};

use super::consume::Flags;
use crate::{intake::ring::Item, probe::symbols::MODULES, sys::watch_readable};

/// The kernel's own announcements.
const KERNEL_GROUP: u32 = 1;
/// Longest announcement that the kernel makes (`UEVENT_BUFFER_SIZE`), and its header.
const MAX_ANNOUNCEMENT: usize = 4096;
/// Modules come in groups: what follows within this time is looked up together.
const GROUP: Duration = Duration::from_millis(20);

/// Asks for the kernel's functions to be looked up anew, as often as modules change.
pub(super) async fn watch(socket: io::Result<OwnedFd>, queue: SyncSender<Item>, flags: Arc<Flags>) {
    let mut socket = match socket.and_then(watch_readable) {
        Ok(socket) => socket,
        Err(error) => {
            log::debug!("modules that are loaded later will not be noticed: {error}");
            return;
        }
    };
    while let Ok(mut guard) = socket.readable_mut().await {
        let changed = drain(guard.get_inner());
        guard.clear_ready();
        if !changed {
            continue;
        }
        tokio::time::sleep(GROUP).await;
        // A full queue is emptied in a moment; only one request is in it.
        if !flags.modules.swap(true, Ordering::Relaxed) {
            while queue.try_send(Item::Modules).is_err() {
                tokio::time::sleep(GROUP).await;
            }
        }
    }
}

/// Listens from now on.
pub fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkKObjectUEvent)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// Reads what was announced; true when a module was among it, or something was lost.
fn drain(socket: &OwnedFd) -> bool {
    let mut changed = false;
    let mut buffer = [0; MAX_ANNOUNCEMENT];
    loop {
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut buffer) {
            // The kernel has no number.
            Ok((length, from)) => {
                changed |= from.is_some_and(|from| from.pid() == 0) && is_of_module(&buffer[..length]);
            }
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::ENOBUFS) => changed = true,
            Err(_) => return changed,
        }
    }
}

/// `add@/module/NAME`, and what follows behind a zero: of a module whose functions matter.
fn is_of_module(announcement: &[u8]) -> bool {
    let name =
        [b"add@/module/".as_slice(), b"remove@/module/"].iter().find_map(|prefix| announcement.strip_prefix(*prefix));
    let name = name.and_then(|name| name.split(|byte| *byte == 0).next());
    name.is_some_and(|name| MODULES.iter().any(|module| module.as_bytes() == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_of_modules_are_told_from_others() {
        assert!(is_of_module(b"add@/module/nfnetlink_queue\0ACTION=add\0"));
        assert!(is_of_module(b"remove@/module/nf_tables\0"));
        assert!(!is_of_module(b"add@/devices/virtual/net/veth0\0"));
        assert!(!is_of_module(b"add@/module/nfnetlink\0ACTION=add\0"), "its functions are nowhere");
        assert!(!is_of_module(b"change@/module/nf_tables\0"));
    }

    #[test]
    fn one_can_listen() {
        listen().unwrap();
    }
}

//! Tells the slower half when modules of the kernel come and go: the kernel announces each to who listens (uevents).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket};

use super::ledger::Flags;
use crate::{intake::ring::Item, kernel::symbols::MODULES, sys::watch_readable};

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
        let Some(nftables) = changed else { continue };
        flags.rules_anew.fetch_or(nftables, Ordering::Relaxed);
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

/// Reads what was announced; whether nftables' own module was among those that matter, if any was.
fn drain(socket: &OwnedFd) -> Option<bool> {
    let mut changed = None;
    let mut buffer = [0; MAX_ANNOUNCEMENT];
    loop {
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut buffer) {
            // The kernel has no number.
            Ok((length, Some(from))) if from.pid() == 0 => {
                if let Some(module) = module(&buffer[..length]) {
                    changed = Some(changed.unwrap_or(false) || module == NFTABLES);
                }
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::ENOBUFS) => changed = Some(true),
            Err(_) => return changed,
        }
    }
}

/// nftables' own module.
const NFTABLES: &str = "nf_tables";

/// `add@/module/NAME`, and what follows behind a zero: the name of a module whose functions matter.
fn module(announcement: &[u8]) -> Option<&'static str> {
    let name = [b"add@/module/".as_slice(), b"remove@/module/"]
        .iter()
        .find_map(|prefix| announcement.strip_prefix(*prefix))?;
    let name = name.split(|byte| *byte == 0).next()?;
    MODULES.into_iter().find(|module| module.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_of_modules_are_told_from_others() {
        assert_eq!(module(b"add@/module/nfnetlink_queue\0ACTION=add\0"), Some("nfnetlink_queue"));
        assert_eq!(module(b"remove@/module/nf_tables\0"), Some(NFTABLES));
        assert_eq!(module(b"add@/devices/virtual/net/veth0\0"), None);
        assert_eq!(module(b"add@/module/nfnetlink\0ACTION=add\0"), None, "its functions are nowhere");
        assert_eq!(module(b"change@/module/nf_tables\0"), None);
    }

    #[test]
    fn one_can_listen() {
        listen().unwrap();
    }
}

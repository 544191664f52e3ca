//! Messages between the processes: one datagram each, with descriptors beside it.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};

/// Longest message; arguments are cut well below it.
pub(super) const MAX_MESSAGE: usize = 128 * 1024;
/// Descriptors that come with a message at most.
const MAX_DESCRIPTORS: usize = 2;

/// Both ends.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context("cannot make a socket pair")
}

pub(super) fn send(socket: &OwnedFd, message: &[u8], descriptors: &[OwnedFd]) -> Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The next message, and what came with it; `None` when the other end is closed.
pub(super) fn receive(socket: &OwnedFd, flags: MsgFlags) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        loop {
            let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Ok(message) => {
                    let descriptors = crate::sys::received_descriptors(&message)?;
                    anyhow::ensure!(!message.flags.contains(MsgFlags::MSG_TRUNC), "a message is too long");
                    break (message.bytes, descriptors);
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    };
    buffer.truncate(length);
    Ok((length > 0).then_some((buffer, descriptors)))
}

//! Commits to nftables' rules, as the kernel announces them to whoever listens in a network namespace.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_bindings::nftables::GenAttrs;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};
use socket2::{SockFilter, SockRef};

use crate::{
    kernel::clock::boot_ns,
    model::{Actor, Commit},
};

/// `NFNLGRP_NFTABLES` as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the end of a commit.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// Bytes of a `struct nlmsghdr` and of a `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Longest message that is of interest.
const MAX_MESSAGE: usize = 1024;
/// Commits that are read in one go.
const MAX_COMMITS: usize = 256;
/// Room for commits that follow each other faster than they are read.
const BUFFER: usize = 1 << 20;

/// Listens in the network namespace of the calling thread, which the socket keeps alive.
pub fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    // Every rule and element is announced too, in messages of their own: a large ruleset would leave no room.
    SockRef::from(&socket).attach_filter(&only(NEW_GENERATION))?;
    let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    Ok(socket)
}

/// Messages of one type, which stands behind their length.
fn only(kind: u16) -> [SockFilter; 4] {
    const LOAD_HALF: u16 = 0x28;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // A filter loads in network byte order what is in the machine's.
    let kind = u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    [
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, kind),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Reads what has come.
pub fn drain(socket: &OwnedFd, netns: u32) -> Vec<Commit> {
    let mut commits = Vec::new();
    let mut buffer = [0; MAX_MESSAGE];
    let unknown = || Commit { boot_ns: boot_ns(), netns, generation: None, by: None };
    loop {
        if commits.len() >= MAX_COMMITS {
            return commits;
        }
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((0, _)) => return commits,
            // The kernel has no number; whoever else sends such things is not believed.
            Ok((length, from)) if from.is_some_and(|from| from.pid() == 0) => {
                commits.push(decode(&buffer[..length], unknown()));
            }
            Ok(_) => return commits,
            Err(nix::Error::EINTR) => {}
            // Some were lost.
            Err(nix::Error::ENOBUFS) => commits.push(unknown()),
            Err(_) => return commits,
        }
    }
}

fn decode(message: &[u8], mut commit: Commit) -> Commit {
    let Some(attributes) = message.get(HEADER + FAMILY_HEADER..) else { return commit };
    let attributes = GenAttrs::new(attributes);
    commit.generation = attributes.get_id().ok();
    let name = attributes.get_proc_name().ok().map(|name| name.to_string_lossy().into_owned());
    commit.by = attributes.get_proc_pid().ok().filter(|pid| *pid != 0).map(|pid| Actor { pid, name });
    commit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_has_a_number_and_an_author() {
        let mut message = vec![0; HEADER + FAMILY_HEADER];
        let mut attribute = |kind: u16, value: &[u8]| {
            message.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value);
            message.resize(message.len().next_multiple_of(4), 0);
        };
        attribute(1, &12u32.to_be_bytes());
        attribute(2, &4711u32.to_be_bytes());
        attribute(3, b"iptables-restor\0");
        let empty = Commit { boot_ns: 1, netns: 2, generation: None, by: None };
        let commit = decode(&message, empty.clone());
        assert_eq!((commit.generation, commit.netns), (Some(12), 2));
        assert_eq!(commit.by, Some(Actor { pid: 4711, name: Some("iptables-restor".to_owned()) }));
        assert_eq!(decode(&[0; 7], empty.clone()), empty);
    }
}

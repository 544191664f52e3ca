//! Puts a packet on its way: by a socket as its sender had one, or in front of the interface by which it came in.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::AsFd,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, getgroups, setfsgid, setfsuid};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    packet::Whole,
    surroundings::{address_of, peer_of},
};
use crate::{patience, sys};

/// `IPPROTO_RAW`: whoever sends gives the headers, too.
const RAW: i32 = 255;
/// A child in the sender's cgroup lives no longer.
const IN_CGROUP: Duration = Duration::from_millis(100);
/// A packet that is on its way, or was dropped; how it was rejected came at once.
const ON_ITS_WAY: [i32; 6] =
    [libc::EINPROGRESS, libc::EPERM, libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EACCES];

/// A socket's family, kind and protocol.
type Kind = (Domain, Type, Option<Protocol>);

/// What rules see of a sender.
#[derive(Clone, Copy)]
pub(super) struct SocketOwner<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: &'a [u32],
    pub(super) mark: u32,
}

/// A socket whose file that user opens, in the calling thread's namespace; and in a cgroup by its open `cgroup.procs`, where one
/// is given.
pub(super) fn socket(whole: &Whole, owner: SocketOwner<'_>, cgroup: Option<&File>) -> Result<Socket> {
    let domain = if whole.destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    socket_of((domain, Type::RAW, Some(Protocol::from(RAW))), owner, cgroup)
}

/// The same of any kind.
pub(super) fn socket_of(kind: Kind, owner: SocketOwner<'_>, cgroup: Option<&File>) -> Result<Socket> {
    let socket = match cgroup {
        Some(procs) => {
            let (domain, of, protocol) = kind;
            let kind = [domain.into(), of.into(), protocol.map_or(0, Into::into)];
            let made = sys::socket_in_cgroup(
                procs.as_fd(),
                kind,
                (owner.uid, owner.gid, owner.groups),
                patience::here(IN_CGROUP),
            );
            made.context("no socket could be made in the sender's cgroup")?.into()
        }
        None => plain_socket(kind, owner)?,
    };
    socket.set_nonblocking(true)?;
    if owner.mark != 0 {
        socket.set_mark(owner.mark).context("cannot mark a packet")?;
    }
    Ok(socket)
}

fn plain_socket((domain, of, protocol): Kind, owner: SocketOwner<'_>) -> Result<Socket> {
    as_user(owner, || Socket::new(domain, of, protocol)).context("cannot make a socket")
}

/// Makes a file as that user: whoever makes it is whose it is.
pub(super) fn as_user<T>(owner: SocketOwner<'_>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    let groups = getgroups()?;
    // Of this thread alone, as the others are.
    sys::set_groups(owner.groups)?;
    let before = (setfsgid(gid), setfsuid(uid));
    let is_user = setfsgid(gid) == gid && setfsuid(uid) == uid;
    let made = is_user.then(make);
    setfsuid(before.1);
    setfsgid(before.0);
    sys::set_groups(&groups.iter().map(|group| group.as_raw()).collect::<Vec<_>>())?;
    let refused = || io::Error::other(format!("not allowed to act as user {} and group {}", owner.uid, owner.gid));
    made.ok_or_else(refused)?
}

/// A real connection, or a socket for datagrams, that is begun as that user and in that cgroup; it goes on by itself. The inner
/// error is what the kernel says to whoever connects; the outer one says why nobody did.
pub fn connecting(
    to: SocketAddr,
    is_tcp: bool,
    (uid, gid, groups): (u32, u32, &[u32]),
    cgroup: Option<&File>,
) -> Result<io::Result<Socket>> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let kind = if is_tcp { Type::STREAM } else { Type::DGRAM };
    let socket = socket_of((domain, kind, None), SocketOwner { uid, gid, groups, mark: 0 }, cgroup)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Ok(Err(error)),
        _ => Ok(Ok(socket)),
    }
}

/// Sends by a socket; through an interface by name and number, whatever routes say, where one is given.
pub(super) fn by_socket(whole: &Whole, socket: &Socket, through: Option<(&str, u32)>) -> Result<()> {
    if let Some((name, _)) = through {
        socket.bind_device(Some(name.as_bytes())).context("cannot send through the interface")?;
    }
    let scope = through.map_or(0, |(_, index)| index);
    let end = |address: IpAddr| match address {
        IpAddr::V4(_) => SocketAddr::new(address, 0),
        IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, scope).into(),
    };
    socket.bind(&end(whole.source).into()).context("the copy does not have the sender's address")?;
    socket.set_broadcast(true)?;
    on_its_way(socket.send_to(&whole.bytes, &end(whole.destination).into()))
}

/// Sends by a raw socket; whether that is denied.
pub(super) fn is_denied(whole: &Whole, socket: &Socket) -> Result<bool> {
    match socket.send_to(&whole.bytes, &SocketAddr::new(whole.destination, 0).into()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
        sent => on_its_way(sent).map(|()| false),
    }
}

/// Sends it to an interface by its number, as if it came from its link.
pub(super) fn to_interface(whole: &Whole, index: u32) -> Result<()> {
    ensure!(
        Path::new("/proc/thread-self/net/packet").exists(),
        "this kernel has no packet sockets at hand, and none is loaded for it"
    );
    let ethertype = if whole.destination.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None).context("cannot make a packet socket")?;
    let to: SockAddr = sys::link_address(peer_of(index), ethertype as u16, address_of(index))?;
    on_its_way(socket.send_to(&whole.bytes, &to))
}

fn on_its_way(sent: io::Result<usize>) -> Result<()> {
    match sent {
        Err(error) if !error.raw_os_error().is_some_and(|number| ON_ITS_WAY.contains(&number)) => {
            Err(error).context("the packet could not be sent in the copy")
        }
        _ => Ok(()),
    }
}

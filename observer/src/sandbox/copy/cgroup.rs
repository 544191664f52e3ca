//! What the BPF programs of a cgroup say to a packet: asked by a socket of that cgroup, in a private namespace without any rules, so
//! that nobody else can have denied it, and nothing leaves it.

use std::{fs::File, io, net::SocketAddr};

use anyhow::{Context, Result};
use procfs::{FromReadSI, current_system_info, net::TcpNetEntries};
use socket2::{Domain, Socket, Type};

use super::{
    packet::Whole,
    send::{self, SocketOwner},
};
use crate::model::{Origin, Packet, Programs};

/// What they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing against it.
    Passes,
    /// Programs of this hook deny it.
    Denied(Programs),
    /// They send it there instead; `None` where that is an address of this host itself.
    Elsewhere(Option<SocketAddr>),
}

/// Asks them about a packet that begins a connection, or a datagram, in the namespace of the calling thread.
pub fn ask(packet: &Packet, cgroup: Option<&File>) -> Result<Said> {
    let whole = Whole::of(packet)?;
    let (transport, address, port) = packet.to().context("the packet has no ports")?;
    let Origin::Socket { uid, gid, groups, mark, .. } = &packet.origin else { return Ok(Said::Passes) };
    let owner = SocketOwner { uid: *uid, gid: *gid, groups, mark: *mark };
    let is_tcp = transport == "tcp";
    let kind = if is_tcp { Type::STREAM } else { Type::DGRAM };
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = match send::socket_of((domain, kind, None), owner, cgroup) {
        Ok(socket) => socket,
        Err(error) if is_denied(&error) => return Ok(Said::Denied(Programs::Create)),
        Err(error) => return Err(error),
    };
    let to = SocketAddr::new(address, port);
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(Said::Denied(Programs::Connect)),
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            return Err(error).context("a socket could not be connected in a private namespace");
        }
        _ => {}
    }
    if let Some(other) =
        peer(&socket, address.is_ipv6()).filter(|peer| (peer.ip().to_canonical(), peer.port()) != (address, port))
    {
        return Ok(Said::Elsewhere(Some(other)));
    }
    // Who was sent to nobody here has been refused by now, and is connected to nothing.
    let own = socket.local_addr().ok().and_then(|own| own.as_socket());
    if own.is_some_and(|own| own.ip().to_canonical().is_loopback()) && !address.is_loopback() {
        return Ok(Said::Elsewhere(None));
    }
    if !is_tcp {
        // Nobody but those at the way out can say no to it here.
        if let Err(error) = socket.send(&[0])
            && error.raw_os_error() == Some(libc::EPERM)
        {
            return Ok(Said::Denied(Programs::Egress));
        }
        return unconnected(&whole, to, owner, cgroup);
    }
    // To whoever connects it is not said that its first packet was dropped; to whoever sends the same as it is, it is.
    let raw = send::socket(&whole, owner, cgroup)?;
    Ok(if send::is_denied(&whole, &raw)? { Said::Denied(Programs::Egress) } else { Said::Passes })
}

/// Where a socket is connected to; of a connection that has no answer yet only the kernel's table says it.
fn peer(socket: &Socket, is_v6: bool) -> Option<SocketAddr> {
    if let Ok(peer) = socket.peer_addr() {
        return peer.as_socket();
    }
    let own = socket.local_addr().ok()?.as_socket()?;
    let table = if is_v6 { "/proc/thread-self/net/tcp6" } else { "/proc/thread-self/net/tcp" };
    let all = TcpNetEntries::from_file(table, current_system_info()).ok()?;
    all.0.into_iter().find(|entry| entry.local_address == own).map(|entry| entry.remote_address)
}

/// A datagram of a socket that is not connected has a hook of its own.
fn unconnected(whole: &Whole, to: SocketAddr, owner: SocketOwner<'_>, cgroup: Option<&File>) -> Result<Said> {
    let domain = if whole.destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = send::socket_of((domain, Type::DGRAM, None), owner, cgroup)?;
    let sent = socket.send_to(&[0], &to.into());
    let is_denied = sent.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
    Ok(if is_denied { Said::Denied(Programs::Send) } else { Said::Passes })
}

fn is_denied(error: &anyhow::Error) -> bool {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    number == Some(libc::EPERM) || number == Some(libc::EACCES)
}

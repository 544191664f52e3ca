//! The two ends of a conversation: the socket that begins it, and whoever answers.

use std::{io, net::SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    super::{
        listeners::Transport,
        send::{self, SocketOwner},
    },
    Caller, Exit, LOOPBACK, Lab, Talk, World,
    course::{Server, bound, bound_at},
    route,
};

impl Lab {
    /// Makes whoever is at the other end: on this host itself that user.
    pub(super) fn answer(&self, talk: &Talk, exit: Exit, uid: u32) -> Result<Server> {
        if exit.index == LOOPBACK {
            return Server::open(talk.transport, exit.to, (None, uid));
        }
        let world = self.worlds.get(&exit.index).context("an interface that is not in the copy")?;
        for address in exit.gateway.into_iter().chain([exit.to.ip()]) {
            world.take(exit.index, address)?;
        }
        if let Caller::Behind { source, .. } = talk.from {
            // Its answers come back by this namespace.
            world.leads(exit.index, source.ip())?;
        }
        world.inside(|| Server::open(talk.transport, exit.to, (Some(&World::name(exit.index)), 0)))
    }

    /// Makes whoever begins.
    pub(super) fn caller(&self, talk: &Talk) -> Result<Socket> {
        let domain = if talk.to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let (kind, protocol) = match talk.transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let kind = (domain, kind, Some(protocol));
        match &talk.from {
            Caller::Here { uid, gid, groups, mark, cgroup, source } => {
                let owner = SocketOwner { uid: *uid, gid: *gid, groups, mark: *mark };
                let socket = send::socket_of(kind, owner, cgroup.as_ref())?;
                if let Some(source) = source {
                    bound_by(&socket, *source, talk.own_port).context("the copy does not have the sender's address")?;
                }
                Ok(socket)
            }
            Caller::Behind { index, source } => {
                let world = self.worlds.get(index).context("an interface that is not in the copy")?;
                world.take(*index, source.ip())?;
                world.leads(*index, talk.to.ip())?;
                // Whoever is behind a router there is answered by that.
                if let Some(router) = route::gateway_of(*source, *index)? {
                    world.take(*index, router)?;
                }
                world.inside(|| {
                    let socket = Socket::new(kind.0, kind.1, kind.2).context("cannot make a socket")?;
                    socket.set_nonblocking(true)?;
                    socket.bind_device(Some(World::name(*index).as_bytes()))?;
                    bound_by(&socket, *source, talk.own_port).context("nobody can be there")?;
                    Ok(socket)
                })
            }
        }
    }
}

/// Gives a socket its address, and a port: its own, or the one from which it is to send.
fn bound_by(socket: &Socket, source: SocketAddr, own_port: Option<u16>) -> io::Result<()> {
    match own_port {
        Some(port) => bound_at(socket, SocketAddr::new(source.ip(), port)),
        None => bound(socket, source),
    }
}

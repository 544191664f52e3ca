//! What both ends of a conversation say and hear, as their sockets let them.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Talk;
use crate::{
    kernel::netlink::Netlink,
    sandbox::copy::{
        listeners::Transport,
        send::{self, SocketOwner},
    },
};

/// What each side says, in parts of so many bytes: short packets, and what fits into none.
const PARTS: [usize; 3] = [500, 1000, 6000];
const ALL: usize = PARTS[0] + PARTS[1] + PARTS[2];
/// Ports that a kernel gives to who asks for none begin here.
pub(in crate::sandbox::copy) const GIVEN: u16 = 32_768;

/// Gives a socket its own address, and its port where that was not given by the kernel.
pub(super) fn bound(socket: &Socket, at: SocketAddr) -> io::Result<()> {
    let port = if at.port() < GIVEN { at.port() } else { 0 };
    let at = match at {
        // What is of a link alone is never asked for.
        SocketAddr::V6(at) => SocketAddrV6::new(*at.ip(), port, 0, at.scope_id()).into(),
        SocketAddr::V4(at) => SocketAddr::new((*at.ip()).into(), port),
    };
    bound_at(socket, at)
}

/// Gives a socket exactly this address and port.
pub(super) fn bound_at(socket: &Socket, at: SocketAddr) -> io::Result<()> {
    // Earlier conversations were held from the same port.
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())
}

/// Whoever is at the other end.
pub(super) enum Server {
    /// Whose it is decides about whom it accepts, too.
    Tcp(Socket, u32),
    Udp(Socket),
}

impl Server {
    pub(super) fn open(transport: Transport, at: SocketAddr, (device, uid): (Option<&str>, u32)) -> Result<Self> {
        let domain = if at.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let (kind, protocol) = match transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let socket = send::socket_of((domain, kind, Some(protocol)), owner(uid), None)?;
        socket.set_reuse_address(true)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        // To where a route leads to this host although no interface has the address, one comes who listens at every one.
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let bound = socket.bind(&at.into()).or_else(|error| match device {
            None => socket.bind(&SocketAddr::new(any, at.port()).into()),
            Some(_) => Err(error),
        });
        bound.with_context(|| format!("nothing can listen on {at} in the copy"))?;
        Ok(match transport {
            Transport::Tcp => {
                socket.listen(8)?;
                Self::Tcp(socket, uid)
            }
            Transport::Udp => Self::Udp(socket),
        })
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Tcp(socket, _) | Self::Udp(socket) => socket,
        }
    }
}

/// How far it has come.
pub(super) struct Course<'a> {
    talk: &'a Talk,
    caller: Socket,
    server: Option<Server>,
    /// The server's end of a connection.
    accepted: Option<Socket>,
    is_connected: bool,
    said: usize,
    heard: usize,
    answered: usize,
    got: usize,
    /// The caller has said that it is done; the server has understood that, and said so too.
    is_closing: bool,
    is_closed: bool,
    /// It could not even be begun, and why.
    failed: Option<io::Error>,
}

impl<'a> Course<'a> {
    pub(super) fn begin(talk: &'a Talk, caller: Socket, server: Option<Server>) -> Result<Self> {
        let mut course = Self {
            talk,
            caller,
            server,
            accepted: None,
            is_connected: false,
            said: 0,
            heard: 0,
            answered: 0,
            got: 0,
            is_closing: false,
            is_closed: false,
            failed: None,
        };
        if talk.transport == Transport::Tcp {
            // Its parts are packets of their own.
            let _ = course.caller.set_tcp_nodelay(true);
        }
        match course.caller.connect(&talk.to.into()) {
            Ok(()) => course.is_connected = true,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => course.failed = Some(error),
        }
        if talk.transport == Transport::Udp {
            course.is_connected = true;
            let _ = course.caller.send(&talk.payload);
            course.said = 1;
        }
        Ok(course)
    }

    /// How much was said and heard on both sides.
    pub(super) fn progress(&self) -> usize {
        self.said + self.heard + self.answered + self.got
    }

    pub(super) fn own_port(&self) -> u16 {
        self.caller.local_addr().ok().and_then(|address| address.as_socket()).map_or(0, |address| address.port())
    }

    /// Says and hears what can be said and heard now; true when everything was.
    pub(super) fn go_on(&mut self) -> io::Result<bool> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        match self.talk.transport {
            Transport::Tcp => self.by_tcp(),
            Transport::Udp => self.by_udp(),
        }
    }

    fn by_udp(&mut self) -> io::Result<bool> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 2048];
        if let Some(Server::Udp(server)) = &self.server
            && let Some((_, from)) = ready(server.recv_from(&mut buffer))?
        {
            // If a rule stops the answer, the trace says so.
            let _ = server.send_to(b"observer", &from);
        }
        Ok(ready(self.caller.recv(&mut buffer))?.is_some())
    }

    fn by_tcp(&mut self) -> io::Result<bool> {
        let said = [b'o'; ALL];
        let mut buffer = [0; ALL];
        if !self.is_connected {
            if let Some(error) = self.caller.take_error()? {
                return Err(error);
            }
            self.is_connected = self.caller.peer_addr().is_ok();
        }
        if self.is_connected {
            while let Some(part) = PARTS.get(self.said)
                && ready((&self.caller).write(&said[..*part]))?.is_some()
            {
                self.said += 1;
            }
        }
        if let (None, Some(Server::Tcp(server, uid))) = (&self.accepted, &self.server)
            && let Some((accepted, _)) = ready(send::as_user(owner(*uid), || server.accept()))?
        {
            accepted.set_nonblocking(true)?;
            // Its parts are packets of their own.
            accepted.set_tcp_nodelay(true)?;
            self.accepted = Some(accepted);
        }
        if let Some(accepted) = &self.accepted {
            loop {
                match ready((&*accepted).read(&mut buffer))? {
                    None => break,
                    Some(0) => {
                        self.is_closed = self.heard == ALL;
                        break;
                    }
                    Some(bytes) => self.heard += bytes,
                }
            }
            while self.heard == ALL
                && let Some(part) = PARTS.get(self.answered)
                && ready((&*accepted).write(&said[..*part]))?.is_some()
            {
                self.answered += 1;
            }
            if self.is_closed {
                let _ = accepted.shutdown(std::net::Shutdown::Write);
            }
        }
        if self.is_connected {
            loop {
                match ready((&self.caller).read(&mut buffer))? {
                    None => break,
                    Some(0) => return Ok(self.got == ALL),
                    Some(bytes) => self.got += bytes,
                }
            }
            if self.got == ALL && !self.is_closing {
                self.is_closing = true;
                let _ = self.caller.shutdown(std::net::Shutdown::Write);
            }
        }
        Ok(false)
    }

    /// Waits until a socket is ready or the trace has news, at most until that time.
    pub(super) fn wait(&self, told: &Netlink, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let wants_to_say = self.talk.transport == Transport::Tcp && !self.is_connected;
        let caller = if wants_to_say { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut all = vec![PollFd::new(told, PollFlags::IN), PollFd::new(&self.caller, caller)];
        match (&self.accepted, &self.server) {
            (Some(accepted), _) => all.push(PollFd::new(accepted, PollFlags::IN)),
            (None, Some(server)) => all.push(PollFd::from_borrowed_fd(server.socket().as_fd(), PollFlags::IN)),
            (None, None) => {}
        }
        match poll(&mut all, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for a conversation"),
        }
    }
}

impl Drop for Course<'_> {
    fn drop(&mut self) {
        // Nothing of it is to be heard in the next one.
        let at_once = Some(Duration::ZERO);
        for socket in [Some(&self.caller), self.accepted.as_ref()].into_iter().flatten() {
            if self.talk.transport == Transport::Tcp {
                let _ = SockRef::from(socket).set_linger(at_once);
            }
        }
    }
}

/// A user with the group of the same number, which most have.
fn owner(uid: u32) -> SocketOwner<'static> {
    SocketOwner { uid, gid: uid, groups: &[], mark: 0 }
}

/// Nothing, where it would have to be waited for.
fn ready<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        // It is not connected yet.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        Err(error) => Err(error),
    }
}

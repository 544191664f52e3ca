//! The way that a packet would take, by the routes and routing rules of the calling thread's namespace. Nothing is sent.

use std::{
    io,
    net::{IpAddr, UdpSocket},
};

use anyhow::{Context, Result};
use netlink_bindings::rt_route::{Request, Rtmsg};
use netlink_socket2::NetlinkSocket;
use nix::net::if_::if_indextoname;
use observer_ebpf::logic::packet::protocol;

/// A way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The address from which it would be sent.
    pub(super) source: IpAddr,
    /// The interface by which it would leave, where that is known.
    pub(super) interface: Option<String>,
}

/// There is none: whether a route is there to stop it, and in words.
pub(super) type Stopped = (bool, String);

/// What would be sent: to where, by which protocol, to which port, by whom.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) to: IpAddr,
    pub(super) is_tcp: bool,
    pub(super) port: u16,
    pub(super) uid: u32,
}

/// The way for it.
pub(super) fn of(wanted: Wanted) -> Result<Route, Stopped> {
    if matches!(wanted.to, IpAddr::V6(to) if to.is_unicast_link_local()) {
        return Err((false, "an address of a link needs its interface, which is not known".to_owned()));
    }
    // What a socket finds: the address from which it sends, and whether the family is there at all.
    let any: IpAddr = if wanted.to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let connected = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((wanted.to, wanted.port))?;
        Ok(socket.local_addr()?.ip())
    });
    // Rules of routing may know the protocol, the port and the user, of which a socket for datagrams says nothing.
    match (connected, asked(wanted)) {
        (Err(error), _) if is_off(&error) => Err(words(&error)),
        (_, Ok(Asked { error: Some(number), .. })) => Err(words(&io::Error::from_raw_os_error(number))),
        (Ok(source), Ok(asked)) => Ok(Route { source: asked.source.unwrap_or(source), interface: asked.interface }),
        (Err(error), Ok(Asked { source: Some(source), interface, .. })) if is_no_route(&error) => {
            Ok(Route { source, interface })
        }
        (Ok(source), Err(why)) => {
            log::debug!("the kernel was not asked for a route: {why:#}");
            Ok(Route { source, interface: None })
        }
        (Err(error), _) => Err(words(&error)),
    }
}

/// What the kernel says of a route.
struct Asked {
    source: Option<IpAddr>,
    interface: Option<String>,
    /// Number of an error, where it leads nowhere.
    error: Option<i32>,
}

fn asked(wanted: Wanted) -> Result<Asked> {
    let mut header = Rtmsg::new();
    (header.rtm_family, header.rtm_dst_len) =
        if wanted.to.is_ipv4() { (libc::AF_INET as u8, 32) } else { (libc::AF_INET6 as u8, 128) };
    let mut request = Request::new().op_getroute_do(&header);
    let number = if wanted.is_tcp { protocol::TCP } else { protocol::UDP };
    request.encode().push_dst(wanted.to).push_uid(wanted.uid).push_ip_proto(number).push_dport(wanted.port);
    let mut socket = NetlinkSocket::new();
    let mut replies = socket.request(&request).context("cannot ask for a route")?;
    let (_, attributes) = match replies.recv_one() {
        Ok(reply) => reply,
        Err(error) => {
            let error = io::Error::from(error);
            let nowhere = Asked { source: None, interface: None, error: error.raw_os_error() };
            return if nowhere.error.is_some() { Ok(nowhere) } else { Err(error).context("no answer") };
        }
    };
    // Of IPv6 a route that leads nowhere is reported as one, with its error.
    let error = attributes.get_cacheinfo().map_or(0, |info| (info.rta_error as i32).abs());
    let interface = attributes.get_oif().ok().and_then(|index| if_indextoname(index).ok());
    Ok(Asked {
        source: attributes.get_prefsrc().ok(),
        interface: interface.and_then(|name| name.into_string().ok()),
        error: (error != 0).then_some(error),
    })
}

fn is_off(error: &io::Error) -> bool {
    [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT].map(Some).contains(&error.raw_os_error())
}

fn is_no_route(error: &io::Error) -> bool {
    // A program of observer's own cgroup may not permit it to ask by a socket.
    let all = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::EPERM];
    all.map(Some).contains(&error.raw_os_error())
}

fn words(error: &io::Error) -> Stopped {
    let words = |why: &str| why.to_owned();
    match error.raw_os_error() {
        Some(libc::ENETUNREACH) => (false, words("there is no route")),
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => (false, words("this address family is switched off")),
        Some(libc::EINVAL) => (true, words("a blackhole route or rule drops it")),
        Some(libc::EACCES) => (true, words("a route or rule prohibits it")),
        Some(libc::EHOSTUNREACH) => (true, words("an unreachable route or rule rejects it")),
        _ => (false, error.to_string()),
    }
}

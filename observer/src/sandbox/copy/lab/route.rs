//! Where routes of a copy lead.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::{Caller, LOOPBACK, Talk};
use crate::{
    kernel::netlink::{Body, Netlink},
    sandbox::copy::surroundings::{PROTOCOL as ROUTES, gateway},
};

/// Interface and gateway of a route in the calling thread's namespace. `by_address`: which of several next hops is taken follows from
/// addresses alone.
pub(super) fn of(talk: &Talk, by_address: bool) -> Result<(u32, Option<IpAddr>)> {
    /// `RTM_GETROUTE`, and how long a `struct rtmsg` is.
    const GET: u16 = 26;
    const FIXED: usize = 12;
    /// `RTM_F_FIB_MATCH`
    const MATCH: u32 = 0x2000;
    /// `RTA_*`
    const DESTINATION: u16 = 1;
    const SOURCE: u16 = 2;
    const INCOMING: u16 = 3;
    const OUTGOING: u16 = 4;
    const MARK: u16 = 16;
    const USER: u16 = 25;
    const PROTOCOL: u16 = 27;
    const PORT: u16 = 29;
    const HOPS: u16 = 9;
    /// `RTN_LOCAL`
    const LOCAL: u8 = 2;
    let (family, length) = if talk.to.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut body = Body::new(&[family as u8, length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.attributes.set(DESTINATION, bytes(talk.to.ip()));
    body.attributes.set(PROTOCOL, vec![talk.protocol()]);
    body.attributes.set(PORT, talk.to.port().to_be_bytes().to_vec());
    match &talk.from {
        Caller::Here { uid, mark, source, .. } => {
            body.attributes.set(USER, uid.to_ne_bytes().to_vec());
            if *mark != 0 {
                body.attributes.set(MARK, mark.to_ne_bytes().to_vec());
            }
            if let Some(source) = source {
                body.fixed[2] = length;
                body.attributes.set(SOURCE, bytes(source.ip()));
            }
        }
        Caller::Behind { index, source } => {
            body.fixed[2] = length;
            body.attributes.set(SOURCE, bytes(source.ip()));
            body.attributes.set(INCOMING, index.to_ne_bytes().to_vec());
        }
    }
    let route = Netlink::open(ROUTES, FIXED)?.get(GET, &body).context("no route leads there in the copy")?;
    let route = route.context("no route leads there in the copy")?;
    if route.fixed.get(7) == Some(&LOCAL) {
        return Ok((LOOPBACK, None));
    }
    // A label of the flow decides about IPv6, too, which is another one each time.
    if !by_address || talk.to.is_ipv6() {
        body.fixed[8..12].copy_from_slice(&MATCH.to_ne_bytes());
        let matched = Netlink::open(ROUTES, FIXED)?.get(GET, &body).ok().flatten();
        let has_several = matched.is_some_and(|route| route.attributes.get(HOPS).is_some());
        ensure!(!has_several, "the route has several next hops, and which one a connection takes is not known");
    }
    let index = route.attributes.get(OUTGOING).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    Ok((index.context("the route names no interface")?, gateway(&route)))
}

/// The gateway by which an address is reached through that interface, in the calling thread's namespace.
pub(super) fn gateway_of(to: SocketAddr, through: u32) -> Result<Option<IpAddr>> {
    const GET: u16 = 26;
    const FIXED: usize = 12;
    let (family, length) = if to.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let mut body = Body::new(&[family as u8, length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let bytes = match to.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    body.attributes.set(1, bytes);
    body.attributes.set(4, through.to_ne_bytes().to_vec());
    let Ok(Some(route)) = Netlink::open(ROUTES, FIXED)?.get(GET, &body) else { return Ok(None) };
    Ok(gateway(&route))
}

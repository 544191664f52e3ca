//! Makes the same in a copy: interfaces with two ends, addresses, routes, neighbours, settings.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{
    super::lab::World, ADDRESS, ADDRESS_OF_LINK, GROUP, IFNAME, Kind, LINK, LINKINFO, LOOPBACK, Link, MTU, NAMESPACE,
    NEIGHBOUR, PERMANENT, PROTOCOL, ROUTE, RULE, Surroundings, UNASKED, UP, settings::set,
};
use crate::{
    kernel::{
        btf::Btf,
        netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink},
    },
    patience,
};

/// `RTA_MULTIPATH`
const MULTIPATH: u16 = 9;
/// `RTNH_F_DEAD`: it is not taken. `RTNH_F_LINKDOWN`: its interface has no carrier, and it may be taken all the same.
const DEAD: u8 = 1;
const LINK_DOWN: u8 = 16;
/// The other ends have numbers that no interface has.
const PEERS: u32 = 1 << 30;
/// `IFA_FLAGS`, and of those `IFA_F_NODAD` and `IFA_F_NOPREFIXROUTE`
const FLAGS_OF_ADDRESS: u16 = 8;
const NO_DETECTION: u8 = 2;
const NO_ROUTE: u32 = 0x200;
/// What differs from the host in every copy: a packet's checksum was not computed yet when it was dropped, its connection's window is not
/// known, and nobody is to be asked for anything.
const OWN_SETTINGS: [(&str, &str); 4] = [
    ("netfilter/nf_conntrack_checksum", "0"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];

/// And where a conversation is held.
const OWN_OF_CONVERSATIONS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/tcp_fin_timeout", "1"),
];

/// Name of the other end of an interface's copy.
pub(in crate::sandbox::copy) fn peer_name(index: u32) -> String {
    format!("peer{index}")
}

/// Number of the other end of an interface's copy.
pub(in crate::sandbox::copy) fn peer_of(index: u32) -> u32 {
    index + PEERS
}

/// The same of its other end.
pub(in crate::sandbox::copy) fn far_address_of(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [2, 1, a, b, c, d]
}

/// Address at its link layer of an interface's copy.
pub(in crate::sandbox::copy) fn address_of(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    // One that nobody gives to devices.
    [2, 0, a, b, c, d]
}

/// The kind of interfaces whose other ends are somewhere.
const TWO_ENDED: &str = "veth";

/// A kind of interface for which nothing is loaded into the kernel.
pub fn kind() -> Result<&'static str> {
    let is_loaded = |module: &str| Btf::of_module(module).is_ok();
    let in_kernel = |of: &str| Btf::of_kernel().is_ok_and(|btf| btf.has_struct(of));
    if in_kernel("veth_priv") || is_loaded("veth") {
        Ok(TWO_ENDED)
    } else if is_loaded("dummy") {
        Ok("dummy")
    } else {
        bail!("this kernel has no interfaces at hand that a copy could have (veth or dummy), and none is loaded for it")
    }
}

/// Where the other ends of a copy's interfaces are.
#[derive(Clone, Copy)]
pub(in crate::sandbox::copy) enum Peers<'a> {
    /// Beside them; nobody is asked who has an address.
    Here,
    /// In these namespaces, by the numbers of the interfaces.
    Behind(&'a HashMap<u32, Rc<World>>),
}

impl Surroundings {
    /// Makes the same in the namespace of the calling thread. The inner error says what could not be set, in a container whose
    /// `/proc/sys` is only to be read.
    pub(in crate::sandbox::copy) fn make(&self, peers: Peers<'_>) -> Result<Result<()>> {
        let kind = if self.links.is_empty() { "" } else { kind()? };
        ensure!(
            kind != "dummy" || matches!(peers, Peers::Here),
            "there are no interfaces at hand with two ends (veth)"
        );
        if let Peers::Behind(_) = peers {
            // No address is looked for twice, and whoever sends may use every port.
            for (place, value) in OWN_OF_CONVERSATIONS {
                set(place, value)?;
            }
        }
        let mut links: Vec<(u16, Body)> = vec![(0, raised(LOOPBACK, UP))];
        for link in &self.links {
            let world = match peers {
                Peers::Here => None,
                Peers::Behind(worlds) => worlds.get(&link.index),
            };
            links.push((CREATE, new_link(link, kind, world.map(|world| world.descriptor()))));
            let is_unasked = link.is_unasked || matches!(peers, Peers::Here);
            links.push((0, raised(link.index, UP | if is_unasked { UNASKED } else { 0 })));
            if kind == "veth" && matches!(peers, Peers::Here) {
                links.push((0, raised(peer_of(link.index), UP | UNASKED)));
            }
        }
        let own = OWN_SETTINGS.iter().try_for_each(|(place, value)| set(place, value));
        let refused = all(LINK, &links)?;
        ensure!(refused == 0, "{refused} interfaces could not be made");
        let address = |body: &Body| {
            let mut body = body.with(body.attributes.only(&[1, 2, 4]));
            if let Some(flags) = body.fixed.get_mut(2) {
                *flags = NO_DETECTION;
            }
            // The routes that the kernel has made for them are among the others, as they are now.
            let is_here = body.fixed.get(4..8) == Some(&LOOPBACK.to_ne_bytes()[..]);
            let flags = u32::from(NO_DETECTION) | if is_here { 0 } else { NO_ROUTE };
            body.attributes.set(FLAGS_OF_ADDRESS, flags.to_ne_bytes().to_vec());
            (CREATE, body)
        };
        all(ADDRESS, &self.addresses.iter().map(address).collect::<Vec<_>>())?;
        // Cache information, and nexthop objects, which are spelt out too; and that nobody is there now, which is no reason for
        // another way, unless the kernel says that it does not take this one.
        let route = |body: &Body| {
            let mut body = body.with(body.attributes.without(&[12, 30]));
            let flags = body.fixed.get_mut(8)?;
            if *flags & DEAD != 0 {
                return None;
            }
            *flags &= !LINK_DOWN;
            if let Some(hops) = body.attributes.get(MULTIPATH).map(hops_that_are_taken) {
                body.attributes.set(MULTIPATH, hops);
            }
            Some((CREATE | APPEND, body))
        };
        // Through a gateway that another route leads to, maybe a later one.
        for _ in 0..2 {
            all(ROUTE, &self.routes.iter().filter_map(route).collect::<Vec<_>>())?;
        }
        all(RULE, &self.rules.iter().map(|body| (CREATE, body.clone())).collect::<Vec<_>>())?;
        if let Peers::Behind(worlds) = peers {
            for link in &self.links {
                if let Some(world) = worlds.get(&link.index) {
                    let mtu = link.mtu.as_deref().and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                    world.raise(link.index, link.is_unasked, mtu)?;
                }
            }
            // The kernel lets packets through some time after both ends are up.
            settle()?;
            for index in self.indexes() {
                for (address, _) in self.addresses(index) {
                    arrived(address, index)?;
                }
            }
            let mut settled: Vec<*const World> = Vec::new();
            for world in worlds.values() {
                if !settled.contains(&Rc::as_ptr(world)) {
                    settled.push(Rc::as_ptr(world));
                    world.inside(settle)?;
                }
            }
            let neighbour = |body: &Body| {
                let index = u32::from_ne_bytes(body.fixed.get(4..8)?.try_into().ok()?);
                let mut body = body.clone();
                body.fixed[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
                let mut attributes = body.attributes.only(&[1]);
                attributes.set(2, far_address_of(index).to_vec());
                worlds.contains_key(&index).then(|| (CREATE, body.with(attributes)))
            };
            all(NEIGHBOUR, &self.neighbours.iter().filter_map(neighbour).collect::<Vec<_>>())?;
            // Whom this namespace knows knows it, too.
            for index in self.indexes() {
                let of = |body: &&Body| body.fixed.get(4..8) == Some(&index.to_ne_bytes()[..]);
                let knows = |v6: bool| {
                    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
                    self.neighbours.iter().filter(of).any(|body| body.fixed.first() == Some(&family))
                };
                let known: Vec<IpAddr> =
                    self.addresses(index).into_iter().map(|(own, _)| own).filter(|own| knows(own.is_ipv6())).collect();
                if let Some(world) = worlds.get(&index) {
                    known.into_iter().try_for_each(|own| world.leads(index, own))?;
                }
            }
        }
        Ok(own.and_then(|()| self.settings.iter().try_for_each(|(place, value)| set(place, value))))
    }
}

/// Sends all; returns how many were refused. Some are there already.
fn all(kind: Kind, bodies: &[(u16, Body)]) -> Result<usize> {
    let messages = bodies.iter().map(|(flags, body)| Message { kind: kind.new, flags: *flags, body });
    let refused = Netlink::open(PROTOCOL, kind.fixed)?.each(messages)?;
    Ok(refused.into_iter().filter(|(_, error)| *error != libc::EEXIST).count())
}

/// Waits until every interface of the calling thread's namespace lets packets through.
fn settle() -> Result<()> {
    /// `IFLA_OPERSTATE`, and of that `IF_OPER_UNKNOWN` and `IF_OPER_UP`.
    const STATE: u16 = 16;
    const THROUGH: [u8; 2] = [0, 6];
    const STEP: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_secs(2);
    let until = Instant::now() + patience::here(LIMIT);
    let zeros = vec![0; LINK.fixed];
    loop {
        let links = Netlink::open(PROTOCOL, LINK.fixed)?.dump(LINK.new + 2, &Body::new(&zeros))?;
        let is_up =
            |body: &Body| body.attributes.get(STATE).and_then(<[u8]>::first).is_none_or(|of| THROUGH.contains(of));
        let flags = |body: &Body| body.fixed.get(8..12).and_then(|of| of.try_into().ok()).map_or(0, u32::from_ne_bytes);
        if links.iter().filter(|body| flags(body) & UP != 0).all(is_up) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "interfaces of the copy do not come up");
        thread::sleep(STEP);
    }
}

/// Waits until an address of the calling thread's namespace is its own: of IPv6 the kernel makes it so a moment later.
pub(in crate::sandbox::copy) fn arrived(address: IpAddr, index: u32) -> Result<()> {
    const STEP: Duration = Duration::from_micros(200);
    const LIMIT: Duration = Duration::from_secs(1);
    /// `RTN_LOCAL`
    const LOCAL: u8 = 2;
    let IpAddr::V6(v6) = address else { return Ok(()) };
    let mut question = Body::new(&[libc::AF_INET6 as u8, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    question.attributes.set(1, v6.octets().to_vec());
    if v6.is_unicast_link_local() {
        question.attributes.set(4, index.to_ne_bytes().to_vec());
    }
    let until = Instant::now() + patience::here(LIMIT);
    loop {
        let route = Netlink::open(PROTOCOL, ROUTE.fixed)?.get(ROUTE.new + 2, &question);
        if route.is_ok_and(|route| route.is_some_and(|route| route.fixed.get(7) == Some(&LOCAL))) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{address} is not there in the copy");
        thread::sleep(STEP);
    }
}

/// A `struct ifinfomsg`.
fn header(index: u32, flags: u32) -> Vec<u8> {
    let mut fixed = vec![0; LINK.fixed];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

fn raised(index: u32, flags: u32) -> Body {
    Body::new(&header(index, flags))
}

fn new_link(link: &Link, kind: &str, world: Option<BorrowedFd<'_>>) -> Body {
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let mut info = Attributes::default();
    info.set(1, kind.as_bytes().to_vec());
    if kind == "veth" {
        let mut peer = Attributes::default();
        peer.set(IFNAME, text(&peer_name(link.index)));
        if let Some(world) = world {
            peer.set(NAMESPACE, world.as_raw_fd().to_ne_bytes().to_vec());
            // A tunnel's packets have no address of the next on the way: each end takes them for its own.
            let address = if link.is_unasked { address_of(link.index) } else { far_address_of(link.index) };
            peer.set(ADDRESS_OF_LINK, address.to_vec());
        }
        let mut data = Attributes::default();
        data.set(1, [header(peer_of(link.index), 0), peer.bytes()].concat());
        info.set_list(2, &data);
    }
    let mut body = Body::new(&header(link.index, 0));
    body.attributes.set(IFNAME, text(&link.name));
    if let Some(mtu) = &link.mtu {
        body.attributes.set(MTU, mtu.clone());
    }
    if let Some(group) = &link.group {
        body.attributes.set(GROUP, group.clone());
    }
    body.attributes.set(ADDRESS_OF_LINK, address_of(link.index).to_vec());
    body.attributes.set_list(LINKINFO, &info);
    body
}

/// Those of a route's several hops that the kernel takes, each a `struct rtnexthop` with its attributes.
fn hops_that_are_taken(hops: &[u8]) -> Vec<u8> {
    /// Where its flags are, and how long it is at least.
    const FLAGS: usize = 2;
    const HEADER: usize = 8;
    let (mut taken, mut rest) = (Vec::new(), hops);
    while let Some(&[low, high]) = rest.get(..2) {
        let length = usize::from(u16::from_ne_bytes([low, high])).max(HEADER).next_multiple_of(4).min(rest.len());
        let (hop, behind) = rest.split_at(length);
        if let Some(flags) = hop.get(FLAGS).copied().filter(|flags| flags & DEAD == 0) {
            let start = taken.len();
            taken.extend_from_slice(hop);
            taken[start + FLAGS] = flags & !LINK_DOWN;
        }
        rest = behind;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_without_a_carrier_are_taken_and_dead_ones_are_not() {
        let hop =
            |flags: u8, index: u8| [&[16, 0, flags, 0, index, 0, 0, 0][..], &[8, 0, 5, 0, 10, 0, 0, index]].concat();
        let all = [hop(LINK_DOWN, 1), hop(DEAD | LINK_DOWN, 2), hop(0, 3)].concat();
        assert_eq!(hops_that_are_taken(&all), [hop(0, 1), hop(0, 3)].concat());
        assert!(hops_that_are_taken(&[]).is_empty());
        // Cut short.
        assert_eq!(hops_that_are_taken(&all[..18]), hop(0, 1));
    }
}

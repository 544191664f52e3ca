//! What a packet's way depends on beside the rules: interfaces of the same names and numbers, addresses, routes.

use anyhow::{Result, bail, ensure};

use super::netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink};
use crate::probe::btf::Btf;

/// `NETLINK_ROUTE`
const PROTOCOL: isize = 0;
/// `RTM_NEW…`; what asks for it is two more.
const LINK: Kind = Kind { new: 16, fixed: 16 };
const ADDRESS: Kind = Kind { new: 20, fixed: 8 };
const ROUTE: Kind = Kind { new: 24, fixed: 12 };
const RULE: Kind = Kind { new: 32, fixed: 12 };

const IFNAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const LINKINFO: u16 = 18;
const LOOPBACK: u32 = 1;
/// `IFF_UP`
const UP: u32 = 1;
/// Interfaces that are made at most.
const MAX_LINKS: usize = 256;
/// With more of them a copy takes too long.
const MAX_ROUTES: usize = 10_000;
/// The other ends have numbers that no interface has.
const PEERS: u32 = 1 << 30;
/// `IFA_F_NODAD`
const NO_DETECTION: u8 = 2;
/// `RTPROT_KERNEL`, and the table that addresses make.
const BY_KERNEL: u8 = 2;
const LOCAL_TABLE: u8 = 255;

#[derive(Clone, Copy)]
struct Kind {
    new: u16,
    fixed: usize,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    mtu: Option<Vec<u8>>,
}

/// All of a namespace.
pub(super) struct Surroundings {
    links: Vec<Link>,
    addresses: Vec<Body>,
    routes: Vec<Body>,
    rules: Vec<Body>,
}

/// Lists the namespace of the calling thread.
pub(super) fn list() -> Result<Surroundings> {
    let dump = |kind: Kind| {
        let zeros = vec![0; kind.fixed];
        Netlink::open(PROTOCOL, kind.fixed)?.dump(kind.new + 2, &Body::new(&zeros))
    };
    let link = |body: &Body| {
        let number = |at: usize| Some(u32::from_ne_bytes(body.fixed.get(at..at + 4)?.try_into().ok()?));
        let is_up = number(8)? & UP != 0;
        let link = Link {
            index: number(4)?,
            name: body.attributes.text(IFNAME)?,
            mtu: body.attributes.get(MTU).map(<[u8]>::to_vec),
        };
        // What belongs to a bridge or a bond has no routes of its own.
        let is_part = body.attributes.get(MASTER).is_some();
        (is_up && !is_part && link.index != LOOPBACK).then_some(link)
    };
    let links: Vec<Link> = dump(LINK)?.iter().filter_map(link).collect();
    ensure!(links.len() <= MAX_LINKS, "there are more than {MAX_LINKS} interfaces");
    let made = |route: &Body| {
        let byte = |at: usize| route.fixed.get(at).copied().unwrap_or(0);
        byte(5) != BY_KERNEL && byte(4) != LOCAL_TABLE
    };
    let routes: Vec<Body> = dump(ROUTE)?.into_iter().filter(made).collect();
    ensure!(routes.len() <= MAX_ROUTES, "there are more than {MAX_ROUTES} routes");
    Ok(Surroundings { links, addresses: dump(ADDRESS)?, routes, rules: dump(RULE)? })
}

/// A kind of interface for which nothing is loaded into the kernel.
pub(super) fn kind() -> Result<&'static str> {
    let is_loaded = |module: &str| Btf::of_module(module).is_ok();
    let in_kernel = |of: &str| Btf::of_kernel().is_ok_and(|btf| btf.has_struct(of));
    if in_kernel("veth_priv") || is_loaded("veth") {
        Ok("veth")
    } else if is_loaded("dummy") {
        Ok("dummy")
    } else {
        bail!("this kernel has no interfaces at hand that a copy could have (veth or dummy), and none is loaded for it")
    }
}

impl Surroundings {
    /// Number of an interface.
    pub(super) fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|link| link.name == name).map(|link| link.index)
    }

    /// Makes the same in the namespace of the calling thread.
    pub(super) fn make(&self) -> Result<()> {
        let kind = if self.links.is_empty() { "" } else { kind()? };
        let mut links: Vec<(u16, Body)> = vec![(0, raised(LOOPBACK))];
        for link in &self.links {
            links.push((CREATE, new_link(link, kind)));
            links.push((0, raised(link.index)));
            if kind == "veth" {
                links.push((0, raised(link.index + PEERS)));
            }
        }
        let refused = all(LINK, &links)?;
        ensure!(refused == 0, "{refused} interfaces could not be made");
        let address = |body: &Body| {
            let mut body = body.with(body.attributes.only(&[1, 2, 4]));
            if let Some(flags) = body.fixed.get_mut(2) {
                *flags = NO_DETECTION;
            }
            (CREATE, body)
        };
        all(ADDRESS, &self.addresses.iter().map(address).collect::<Vec<_>>())?;
        // Cache information, and nexthop objects, which are spelt out too.
        let route = |body: &Body| (CREATE | APPEND, body.with(body.attributes.without(&[12, 30])));
        // Through a gateway that another route leads to, maybe a later one.
        for _ in 0..2 {
            all(ROUTE, &self.routes.iter().map(route).collect::<Vec<_>>())?;
        }
        all(RULE, &self.rules.iter().map(|body| (CREATE, body.clone())).collect::<Vec<_>>())?;
        Ok(())
    }
}

/// Sends all; returns how many were refused. Some are there already.
fn all(kind: Kind, bodies: &[(u16, Body)]) -> Result<usize> {
    let messages = bodies.iter().map(|(flags, body)| Message { kind: kind.new, flags: *flags, body });
    let refused = Netlink::open(PROTOCOL, kind.fixed)?.each(messages)?;
    Ok(refused.into_iter().filter(|(_, error)| *error != libc::EEXIST).count())
}

/// A `struct ifinfomsg`.
fn header(index: u32, flags: u32) -> Vec<u8> {
    let mut fixed = vec![0; LINK.fixed];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

fn raised(index: u32) -> Body {
    Body::new(&header(index, UP))
}

fn new_link(link: &Link, kind: &str) -> Body {
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let mut info = Attributes::default();
    info.set(1, kind.as_bytes().to_vec());
    if kind == "veth" {
        let mut peer = Attributes::default();
        peer.set(IFNAME, text(&format!("peer{}", link.index)));
        let mut data = Attributes::default();
        data.set(1, [header(link.index + PEERS, 0), peer.bytes()].concat());
        info.set_list(2, &data);
    }
    let mut body = Body::new(&header(link.index, 0));
    body.attributes.set(IFNAME, text(&link.name));
    if let Some(mtu) = &link.mtu {
        body.attributes.set(MTU, mtu.clone());
    }
    body.attributes.set_list(LINKINFO, &info);
    body
}

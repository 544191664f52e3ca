//! What a packet's way depends on beside the rules: interfaces of the same names and numbers, addresses, routes, and what the
//! kernel was set to.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::kernel::netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink};
use crate::{confinement::reader::Question, kernel::btf::Btf};

/// `NETLINK_ROUTE`
const PROTOCOL: isize = 0;
/// `RTM_NEW…`; what asks for it is two more.
const LINK: Kind = Kind { new: 16, fixed: 16 };
const ADDRESS: Kind = Kind { new: 20, fixed: 8 };
const ROUTE: Kind = Kind { new: 24, fixed: 12 };
const RULE: Kind = Kind { new: 32, fixed: 12 };

/// `IFLA_*`
const ADDRESS_OF_LINK: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const LINKINFO: u16 = 18;
const LOOPBACK: u32 = 1;
/// `IFF_UP`, and `IFF_NOARP`: whoever is next on the way need not be asked for.
const UP: u32 = 1;
const UNASKED: u32 = 0x80;
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

/// Settings of the kernel below `/proc/sys/net`, of each address family as a whole.
const SETTINGS: [&str; 5] = [
    "ipv4/ip_forward",
    "ipv4/ip_nonlocal_bind",
    "ipv6/ip_nonlocal_bind",
    "ipv4/fib_multipath_hash_policy",
    "netfilter/nf_conntrack_tcp_loose",
];
/// The same of interfaces.
const SETTINGS_OF_LINKS: [(&str, &str); 7] = [
    ("ipv4", "forwarding"),
    ("ipv4", "rp_filter"),
    ("ipv4", "accept_local"),
    ("ipv4", "route_localnet"),
    ("ipv4", "src_valid_mark"),
    ("ipv6", "disable_ipv6"),
    ("ipv6", "forwarding"),
];
/// What differs from the host in every copy: a packet's checksum was not computed yet when it was dropped, its connection's window is not
/// known, and nobody is to be asked for anything.
const OWN_SETTINGS: [(&str, &str); 4] = [
    ("netfilter/nf_conntrack_checksum", "0"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];

#[derive(Clone, Copy)]
struct Kind {
    new: u16,
    fixed: usize,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    index: u32,
    name: String,
    mtu: Option<Vec<u8>>,
}

/// All of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    links: Vec<Link>,
    /// Interfaces that belong to another, a bridge or a bond, by their numbers, and that one's.
    parts: HashMap<u32, u32>,
    addresses: Vec<Body>,
    routes: Vec<Body>,
    rules: Vec<Body>,
    /// Places below `/proc/sys/net`, and what is there.
    settings: Vec<(String, String)>,
}

/// Lists the namespace of the calling thread by a confined process.
pub const SURROUNDINGS: Question<Surroundings> = Question::new("surroundings", |_| list());

fn list() -> Result<Surroundings> {
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
    let all = dump(LINK)?;
    let links: Vec<Link> = all.iter().filter_map(link).collect();
    let is_vrf = |body: &Body| body.attributes.list(LINKINFO).text(1).as_deref() == Some("vrf");
    ensure!(!all.iter().any(is_vrf), "there are routing domains (VRF), which are not copied");
    let native = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    let part = |body: &Body| Some((native(body.fixed.get(4..8)?)?, native(body.attributes.get(MASTER)?)?));
    let parts = all.iter().filter_map(part).collect();
    ensure!(links.len() <= MAX_LINKS, "there are more than {MAX_LINKS} interfaces");
    let made = |route: &Body| {
        let byte = |at: usize| route.fixed.get(at).copied().unwrap_or(0);
        byte(5) != BY_KERNEL && byte(4) != LOCAL_TABLE
    };
    let routes: Vec<Body> = dump(ROUTE)?.into_iter().filter(made).collect();
    ensure!(routes.len() <= MAX_ROUTES, "there are more than {MAX_ROUTES} routes");
    let names = ["all", "lo"].into_iter().chain(links.iter().map(|link| link.name.as_str()));
    let of_links = names.flat_map(|name| {
        SETTINGS_OF_LINKS.iter().map(move |(family, setting)| format!("{family}/conf/{name}/{setting}"))
    });
    let settings = SETTINGS.iter().map(|setting| (*setting).to_owned()).chain(of_links);
    let settings = settings.filter_map(|place| Some((setting(&place)?, place))).map(|(value, place)| (place, value));
    let settings = settings.collect();
    Ok(Surroundings { links, parts, addresses: dump(ADDRESS)?, routes, rules: dump(RULE)?, settings })
}

/// A setting in the namespace of the calling thread; `None` where the kernel does not have it.
fn setting(place: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/net/{place}")).ok()?.trim().to_owned())
}

/// Sets it, where it differs.
fn set(place: &str, value: &str) -> Result<()> {
    if setting(place).is_some_and(|now| now != value) {
        fs::write(format!("/proc/sys/net/{place}"), value)
            .with_context(|| format!("cannot set {place} in the copy"))?;
    }
    Ok(())
}

/// Number of the other end of an interface's copy.
pub(super) fn peer_of(index: u32) -> u32 {
    index + PEERS
}

/// Address at its link layer of an interface's copy.
pub(super) fn address_of(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    // One that nobody gives to devices.
    [2, 0, a, b, c, d]
}

/// A kind of interface for which nothing is loaded into the kernel.
pub fn kind() -> Result<&'static str> {
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
        if name == "lo" {
            return Some(LOOPBACK);
        }
        self.links.iter().find(|link| link.name == name).map(|link| link.index)
    }

    /// It is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Where what came in by an interface comes in here: there, or by what that belongs to.
    pub(super) fn entrance(&self, index: u32) -> Option<u32> {
        let index = self.parts.get(&index).copied().unwrap_or(index);
        self.links.iter().any(|link| link.index == index).then_some(index)
    }

    /// Makes the same in the namespace of the calling thread. The inner error says what could not be set, in a container whose
    /// `/proc/sys` is only to be read.
    pub(super) fn make(&self) -> Result<Result<()>> {
        let kind = if self.links.is_empty() { "" } else { kind()? };
        let mut links: Vec<(u16, Body)> = vec![(0, raised(LOOPBACK, UP))];
        for link in &self.links {
            links.push((CREATE, new_link(link, kind)));
            links.push((0, raised(link.index, UP | UNASKED)));
            if kind == "veth" {
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
        Ok(own.and_then(|()| self.settings.iter().try_for_each(|(place, value)| set(place, value))))
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

fn raised(index: u32, flags: u32) -> Body {
    Body::new(&header(index, flags))
}

fn new_link(link: &Link, kind: &str) -> Body {
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let mut info = Attributes::default();
    info.set(1, kind.as_bytes().to_vec());
    if kind == "veth" {
        let mut peer = Attributes::default();
        peer.set(IFNAME, text(&format!("peer{}", link.index)));
        let mut data = Attributes::default();
        data.set(1, [header(peer_of(link.index), 0), peer.bytes()].concat());
        info.set_list(2, &data);
    }
    let mut body = Body::new(&header(link.index, 0));
    body.attributes.set(IFNAME, text(&link.name));
    if let Some(mtu) = &link.mtu {
        body.attributes.set(MTU, mtu.clone());
    }
    body.attributes.set(ADDRESS_OF_LINK, address_of(link.index).to_vec());
    body.attributes.set_list(LINKINFO, &info);
    body
}

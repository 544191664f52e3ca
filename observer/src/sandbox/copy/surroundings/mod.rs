//! What a packet's way depends on beside the rules: interfaces of the same names and numbers, addresses, routes, and what the
//! kernel was set to.

mod make;
mod settings;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

pub use self::make::kind;
use self::settings::{SETTINGS, SETTINGS_OF_LINKS};
pub(super) use self::{
    make::{Peers, address_of, arrived, far_address_of, peer_name, peer_of},
    settings::{set, setting},
};
use super::{
    ipsec::{self, Policy},
    listeners::{self, Listeners, Transport},
    marks::Facts,
};
use crate::{
    confinement::reader::Question,
    kernel::netlink::{Body, Netlink},
};

/// `NETLINK_ROUTE`
pub(super) const PROTOCOL: isize = 0;
/// `RTM_NEW…`; what asks for it is two more.
const LINK: Kind = Kind { new: 16, fixed: 16 };
const ADDRESS: Kind = Kind { new: 20, fixed: 8 };
const ROUTE: Kind = Kind { new: 24, fixed: 12 };
const RULE: Kind = Kind { new: 32, fixed: 12 };
const NEIGHBOUR: Kind = Kind { new: 28, fixed: 12 };
/// `NUD_VALID` but for `NUD_NOARP`: whoever has such a state needs not be asked for.
const VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;
/// `NUD_PERMANENT`
const PERMANENT: u16 = 0x80;

/// `IFLA_*`
const ADDRESS_OF_LINK: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const GROUP: u16 = 27;
const NAMESPACE: u16 = 28;
const LINKINFO: u16 = 18;
const LOOPBACK: u32 = 1;
/// `IFLA_LINK` and `IFLA_LINK_NETNSID`
const LOWER: u16 = 5;
const LOWER_NAMESPACE: u16 = 37;
/// Kinds of interfaces that are on another one.
const UPPER: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];
/// Kinds of interfaces that put packets into others, which this namespace sends.
const TUNNELS: [&str; 18] = [
    "vxlan",
    "geneve",
    "gre",
    "gretap",
    "erspan",
    "ip6gre",
    "ip6gretap",
    "ip6erspan",
    "ipip",
    "ip6tnl",
    "sit",
    "vti",
    "vti6",
    "xfrm",
    "wireguard",
    "bareudp",
    "tun",
    "ppp",
];
/// `ARPHRD_ETHER`
const ETHERNET: u16 = 1;
/// `IFF_UP`, and `IFF_NOARP`: whoever is next on the way need not be asked for.
const UP: u32 = 1;
const UNASKED: u32 = 0x80;
/// Interfaces that are made at most.
const MAX_LINKS: usize = 256;
/// With more of them a copy takes too long.
const MAX_ROUTES: usize = 10_000;
/// `RTPROT_KERNEL`: an address makes it.
const BY_KERNEL: u8 = 2;
/// `RTN_UNICAST`
const UNICAST: u8 = 1;

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
    group: Option<Vec<u8>>,
    /// Whoever is next on the way is not asked for.
    is_unasked: bool,
    /// What leaves by it is put into other packets.
    is_tunnel: bool,
}

/// All of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    links: Vec<Link>,
    /// Any of them is of another type than those of a copy, such as a tunnel.
    has_other_types: bool,
    /// Interfaces that belong to another, a bridge or a bond, by their numbers, and that one's.
    parts: HashMap<u32, u32>,
    /// Their names, by the numbers of what they belong to.
    names_of_parts: HashMap<u32, Vec<String>>,
    addresses: Vec<Body>,
    routes: Vec<Body>,
    rules: Vec<Body>,
    /// Neighbours that are known, whom nobody asks for.
    neighbours: Vec<Body>,
    /// Policies of IPsec.
    policies: Vec<Policy>,
    /// Ports on which somebody listens here.
    listeners: Listeners,
    /// Places below `/proc/sys/net`, and what is there.
    settings: Vec<(String, String)>,
}

/// Lists the namespace of the calling thread by a confined process.
pub const SURROUNDINGS: Question<Surroundings> = Question::new("surroundings", list);
/// What that question takes: whether to ask for policies of IPsec, too.
pub(super) const WITHOUT_POLICIES: usize = 0;
pub(super) const WITH_POLICIES: usize = 1;

fn list(asked: usize) -> Result<Surroundings> {
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
            group: body.attributes.get(GROUP).map(<[u8]>::to_vec),
            is_unasked: number(8)? & UNASKED != 0,
            is_tunnel: kind_of(body).is_some_and(|kind| TUNNELS.contains(&kind.as_str())),
        };
        // What belongs to a bridge or a bond has no routes of its own.
        let is_part = body.attributes.get(MASTER).is_some();
        (is_up && !is_part && link.index != LOOPBACK).then_some(link)
    };
    let all = dump(LINK)?;
    let links: Vec<Link> = all.iter().filter_map(link).collect();
    let is_vrf = |body: &Body| kind_of(body).as_deref() == Some("vrf");
    ensure!(!all.iter().any(is_vrf), "there are routing domains (VRF), which are not copied");
    let native = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    let part = |body: &Body| Some((native(body.fixed.get(4..8)?)?, native(body.attributes.get(MASTER)?)?));
    let parts = all.iter().filter_map(part).collect();
    let mut names_of_parts: HashMap<u32, Vec<String>> = HashMap::new();
    for (body, (_, whole)) in all.iter().filter_map(|body| Some((body, part(body)?))) {
        names_of_parts.entry(whole).or_default().extend(body.attributes.text(IFNAME));
    }
    // Of those that are on another one of this namespace, what hangs on that decides, too.
    for body in &all {
        let is_upper = kind_of(body).is_some_and(|kind| UPPER.contains(&kind.as_str()));
        let lower = body.attributes.get(LOWER).filter(|_| is_upper && body.attributes.get(LOWER_NAMESPACE).is_none());
        let own = body.fixed.get(4..8).and_then(native);
        let is_it = |other: &&Body| other.fixed.get(4..8) == lower;
        if let (Some(own), Some(lower)) = (own, all.iter().find(is_it)) {
            names_of_parts.entry(own).or_default().extend(lower.attributes.text(IFNAME));
        }
    }
    let of_type = |body: &Body| body.fixed.get(2..4).and_then(|of| of.try_into().ok()).map_or(0, u16::from_ne_bytes);
    let has_other_types = all.iter().filter(|body| link(body).is_some()).any(|body| of_type(body) != ETHERNET);
    ensure!(links.len() <= MAX_LINKS, "there are more than {MAX_LINKS} interfaces");
    // The kernel makes those to its own addresses in a copy, too.
    let made = |route: &Body| route.fixed.get(5) != Some(&BY_KERNEL) || route.fixed.get(7) == Some(&UNICAST);
    let routes: Vec<Body> = dump(ROUTE)?.into_iter().filter(made).collect();
    ensure!(routes.len() <= MAX_ROUTES, "there are more than {MAX_ROUTES} routes");
    let names = ["all", "lo"].into_iter().chain(links.iter().map(|link| link.name.as_str()));
    let of_links = names.flat_map(|name| {
        SETTINGS_OF_LINKS.iter().map(move |(family, setting)| format!("{family}/conf/{name}/{setting}"))
    });
    let settings = SETTINGS.iter().map(|setting| (*setting).to_owned()).chain(of_links);
    let settings = settings.filter_map(|place| Some((setting(&place)?, place))).map(|(value, place)| (place, value));
    let settings = settings.collect();
    let neighbours = dump(NEIGHBOUR)?.into_iter().filter(|body| state(body) & VALID != 0).take(MAX_ROUTES).collect();
    let (addresses, rules, listeners) = (dump(ADDRESS)?, dump(RULE)?, listeners::here());
    Ok(Surroundings {
        links,
        has_other_types,
        parts,
        names_of_parts,
        addresses,
        routes,
        rules,
        neighbours,
        policies: if asked == WITH_POLICIES { ipsec::list()? } else { Vec::new() },
        listeners,
        settings,
    })
}

/// What kind of an interface it is, of those that are made.
fn kind_of(link: &Body) -> Option<String> {
    link.attributes.list(LINKINFO).text(1)
}

fn address_of_bytes(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
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

    /// Where what came in by an interface comes in here: there, or by what that belongs to.
    pub(crate) fn entrance(&self, index: u32) -> Option<u32> {
        let index = self.parts.get(&index).copied().unwrap_or(index);
        self.links.iter().any(|link| link.index == index).then_some(index)
    }

    /// What decides about marks in a copy.
    pub(super) fn facts(&self) -> Facts {
        /// `FRA_FWMARK`, which is left out where it is 0, and `FRA_FWMASK`
        const MARK: u16 = 10;
        const MASK: u16 = 16;
        Facts {
            has_other_types: self.has_other_types,
            has_whole_sets: true,
            fills_ipsets: false,
            has_policies: !self.policies.is_empty(),
            routes_by_mark: self
                .rules
                .iter()
                .any(|rule| [MARK, MASK].iter().any(|number| rule.attributes.get(*number).is_some())),
        }
    }

    /// Where several next hops lead to a destination, it is the same one each time for the same addresses.
    pub(super) fn chooses_hops_by_address(&self) -> bool {
        /// `RTA_NH_ID`
        const OBJECT: u16 = 30;
        // By ports, too, or by who is a neighbour now.
        const BY_MORE: [&str; 2] = ["ipv4/fib_multipath_hash_policy", "ipv4/fib_multipath_use_neigh"];
        let by_more = |(place, value): &(String, String)| BY_MORE.contains(&place.as_str()) && value.as_str() != "0";
        !self.settings.iter().any(by_more) && !self.routes.iter().any(|route| route.attributes.get(OBJECT).is_some())
    }

    /// This neighbour is known now, and is asked for again some time.
    pub(super) fn remembers(&self, index: u32, neighbour: IpAddr) -> bool {
        let bytes = match neighbour {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        self.neighbours.iter().any(|body| {
            body.fixed.get(4..8) == Some(&index.to_ne_bytes()[..])
                && body.attributes.get(1) == Some(bytes.as_slice())
                && state(body) & PERMANENT == 0
        })
    }

    /// Why traffic with another end cannot be tested: a policy of IPsec may decide about it. `by` is its protocol and the other end's
    /// port; `has_marks`: its packets may be marked.
    pub(crate) fn why_untested(
        &self,
        other: IpAddr,
        by: Option<(u8, u16)>,
        has_marks: impl Fn() -> bool,
    ) -> Option<String> {
        ipsec::why_untested(&self.policies, other, by, has_marks)
    }

    /// What leaves by an interface that is a tunnel leaves in packets of its own.
    pub(crate) fn untried(&self, interface: Option<&str>) -> Option<String> {
        let tunnel = self.links.iter().find(|link| link.is_tunnel && Some(link.name.as_str()) == interface)?;
        Some(format!("tried only as far as {}, a tunnel or a program's interface", tunnel.name))
    }

    /// Names of interfaces that belong to this one, a bridge or a bond, or that it belongs to, as one of a VLAN does.
    pub(super) fn parts_of(&self, index: u32) -> &[String] {
        self.names_of_parts.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Names of the interfaces, but for the loopback.
    pub(super) fn names(&self) -> Vec<String> {
        self.links.iter().map(|link| link.name.clone()).collect()
    }

    /// Numbers of the interfaces, but for the loopback.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> {
        self.links.iter().map(|link| link.index)
    }

    /// Name of an interface.
    pub(crate) fn name(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }

    /// The user who listens on that port, at that address or at all; an error where it is not known whether anybody does.
    pub(super) fn listener(&self, transport: Transport, to: SocketAddr) -> Result<Option<u32>> {
        Ok(self.listeners.who(transport, to)?.map(|listener| listener.uid))
    }

    /// Addresses of an interface, each with the length of its network.
    pub(super) fn addresses(&self, index: u32) -> Vec<(IpAddr, u8)> {
        let is_of = |body: &&Body| body.fixed.get(4..8) == Some(&index.to_ne_bytes()[..]);
        let of = |body: &Body| {
            // Of a link between two ends the other one stands there.
            let bytes = body.attributes.get(2).or_else(|| body.attributes.get(1))?;
            Some((address_of_bytes(bytes)?, *body.fixed.get(1)?))
        };
        self.addresses.iter().filter(is_of).filter_map(of).collect()
    }

    /// It is the broadcast address of one of its networks.
    pub(crate) fn is_broadcast(&self, to: IpAddr) -> bool {
        let is_it = |(own, length): (IpAddr, u8)| match (own, to) {
            (IpAddr::V4(own), IpAddr::V4(to)) if length < 31 => {
                ipnet::Ipv4Net::new(own, length).is_ok_and(|net| net.broadcast() == to)
            }
            _ => false,
        };
        self.indexes().flat_map(|index| self.addresses(index)).any(is_it)
    }

    /// Interfaces with an address of that family: their numbers, an own address, and one that a neighbour may have.
    pub(crate) fn neighbours(&self, v6: bool) -> Vec<(u32, IpAddr, IpAddr)> {
        let of = |index: u32| {
            let own = self.addresses(index);
            let is_own = |address: IpAddr| own.iter().any(|(own, _)| *own == address);
            let near = |address: IpAddr, length: u8| -> Option<IpAddr> {
                let net = ipnet::IpNet::new(address, length).ok()?;
                let is_free = |near: &IpAddr| net.contains(near) && !is_own(*near);
                match address {
                    IpAddr::V4(address) => {
                        // The first addresses are routers' most often, whom rules may trust.
                        let net = ipnet::Ipv4Net::new(address, length).ok()?;
                        net.hosts().skip(68).take(1).chain(net.hosts().take(8)).map(IpAddr::from).find(is_free)
                    }
                    IpAddr::V6(address) => {
                        let bits = [0x4d00, 0x4d, 0x3, 0x2, 0x1].into_iter();
                        bits.map(|bits| std::net::Ipv6Addr::from(u128::from(address) ^ bits).into()).find(is_free)
                    }
                }
            };
            let is_usable = |address: &IpAddr| {
                address.is_ipv6() == v6 && !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
            };
            let (address, length) = own.iter().find(|(address, _)| is_usable(address))?;
            // With an address alone, whoever is there is reached by a route.
            let neighbour = near(*address, *length).or_else(|| self.behind(index, v6).find(|near| !is_own(*near)))?;
            Some((index, *address, neighbour))
        };
        self.indexes().filter_map(of).collect()
    }

    /// Whom routes by an interface lead to: somebody of each network.
    fn behind(&self, index: u32, v6: bool) -> impl Iterator<Item = IpAddr> {
        /// `RTA_DST` and `RTA_OIF`
        const DESTINATION: u16 = 1;
        const OUTGOING: u16 = 4;
        /// Of networks for documentation: where a route leads everywhere.
        const ANYBODY: [IpAddr; 2] = [
            IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 69)),
            IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 69)),
        ];
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
        self.routes.iter().filter_map(move |route| {
            let is_its = route.attributes.get(OUTGOING) == Some(&index.to_ne_bytes()[..]);
            if !is_its || route.fixed.first() != Some(&family) {
                return None;
            }
            let Some(bytes) = route.attributes.get(DESTINATION) else { return Some(ANYBODY[usize::from(v6)]) };
            let (to, length) = (address_of_bytes(bytes)?, *route.fixed.get(1)?);
            match ipnet::IpNet::new(to, length).ok()? {
                ipnet::IpNet::V4(net) => net.hosts().nth(68).or_else(|| net.hosts().next()).map(IpAddr::from),
                ipnet::IpNet::V6(net) => net.hosts().nth(68).or_else(|| net.hosts().next()).map(IpAddr::from),
            }
        })
    }

    /// Gateways of all routes, whatever leads to them, with the numbers of their interfaces.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        const OUTGOING: u16 = 4;
        self.routes.iter().filter_map(|route| {
            let index = u32::from_ne_bytes(route.attributes.get(OUTGOING)?.try_into().ok()?);
            Some((index, gateway(route)?))
        })
    }

    /// It forwards packets of that family.
    pub(crate) fn forwards(&self, v6: bool) -> bool {
        let place = if v6 { "ipv6/conf/all/forwarding" } else { "ipv4/ip_forward" };
        self.settings.iter().any(|(of, value)| of == place && value == "1")
    }
}

/// The gateway of a route, of the other family too (`via inet6`).
pub(super) fn gateway(route: &Body) -> Option<IpAddr> {
    /// `RTA_GATEWAY`; `RTA_VIA`, which has the family before the address.
    const GATEWAY: u16 = 5;
    const VIA: u16 = 18;
    let via = || route.attributes.get(VIA)?.get(2..).and_then(address_of_bytes);
    route.attributes.get(GATEWAY).and_then(address_of_bytes).or_else(via)
}

/// What is known of a neighbour: bits of `NUD_…`.
fn state(body: &Body) -> u16 {
    body.fixed.get(8..10).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

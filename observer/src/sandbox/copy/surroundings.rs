//! What a packet's way depends on beside the rules: interfaces of the same names and numbers, addresses, routes, and what the
//! kernel was set to.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    ipsec::{self, Policy},
    lab::World,
    listeners::{self, Listeners, Transport},
    marks::Facts,
};
use crate::kernel::netlink::{APPEND, Attributes, Body, CREATE, Message, Netlink};
use crate::{confinement::reader::Question, kernel::btf::Btf, patience};

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
/// `RTA_MULTIPATH`
const MULTIPATH: u16 = 9;
/// `RTNH_F_DEAD`: it is not taken. `RTNH_F_LINKDOWN`: its interface has no carrier, and it may be taken all the same.
const DEAD: u8 = 1;
const LINK_DOWN: u8 = 16;
/// `ARPHRD_ETHER`
const ETHERNET: u16 = 1;
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
/// `RTPROT_KERNEL`: an address makes it.
const BY_KERNEL: u8 = 2;

/// Settings of the kernel below `/proc/sys/net`, of each address family as a whole.
const SETTINGS: [&str; 13] = [
    "ipv4/ip_forward",
    "ipv4/ip_nonlocal_bind",
    "ipv6/ip_nonlocal_bind",
    "ipv4/ip_local_port_range",
    "ipv4/ip_default_ttl",
    "ipv4/ip_no_pmtu_disc",
    "ipv4/tcp_timestamps",
    "ipv4/tcp_sack",
    "ipv4/tcp_window_scaling",
    "ipv4/tcp_ecn",
    "ipv4/fib_multipath_hash_policy",
    "ipv6/fib_multipath_hash_policy",
    "netfilter/nf_conntrack_tcp_loose",
];
/// The same of interfaces.
const SETTINGS_OF_LINKS: [(&str, &str); 8] = [
    ("ipv4", "forwarding"),
    ("ipv4", "rp_filter"),
    ("ipv4", "accept_local"),
    ("ipv4", "route_localnet"),
    ("ipv4", "src_valid_mark"),
    ("ipv6", "disable_ipv6"),
    ("ipv6", "forwarding"),
    ("ipv6", "hop_limit"),
];
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

/// Where the other ends of a copy's interfaces are.
#[derive(Clone, Copy)]
pub(super) enum Peers<'a> {
    /// Beside them; nobody is asked who has an address.
    Here,
    /// In these namespaces, by the numbers of the interfaces.
    Behind(&'a HashMap<u32, Rc<World>>),
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
    // The kernel makes its own in a copy, too.
    let made = |route: &Body| route.fixed.get(5) != Some(&BY_KERNEL);
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

/// A setting in the namespace of the calling thread; `None` where the kernel does not have it.
pub(super) fn setting(place: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/net/{place}")).ok()?.trim().to_owned())
}

/// Sets it, where it differs.
pub(super) fn set(place: &str, value: &str) -> Result<()> {
    if setting(place).is_some_and(|now| now != value) {
        fs::write(format!("/proc/sys/net/{place}"), value)
            .with_context(|| format!("cannot set {place} in the copy"))?;
    }
    Ok(())
}

/// Name of the other end of an interface's copy.
pub(super) fn peer_name(index: u32) -> String {
    format!("peer{index}")
}

/// Number of the other end of an interface's copy.
pub(super) fn peer_of(index: u32) -> u32 {
    index + PEERS
}

/// The same of its other end.
pub(super) fn far_address_of(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [2, 1, a, b, c, d]
}

fn address_of_bytes(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// Address at its link layer of an interface's copy.
pub(super) fn address_of(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    // One that nobody gives to devices.
    [2, 0, a, b, c, d]
}

/// The kind of interfaces whose other ends are somewhere.
pub(crate) const TWO_ENDED: &str = "veth";

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
        let by_ports =
            |(place, value): &(String, String)| place == "ipv4/fib_multipath_hash_policy" && value.as_str() != "0";
        !self.settings.iter().any(by_ports) && !self.routes.iter().any(|route| route.attributes.get(OBJECT).is_some())
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
        Some(format!("the packets of tunnel {} itself were not tried", tunnel.name))
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

    /// Nobody listens where it goes, on this host itself.
    pub(crate) fn is_unheard(&self, transport: Transport, to: SocketAddr) -> bool {
        let is_own = to.ip().is_loopback()
            || self.indexes().flat_map(|index| self.addresses(index)).any(|(own, _)| own == to.ip());
        is_own && matches!(self.listener(transport, to), Ok(None))
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
            own.iter().find_map(|(address, length)| match address {
                IpAddr::V4(address) if !v6 && *length < 31 => {
                    let net = ipnet::Ipv4Net::new(*address, *length).ok()?;
                    let near = net.hosts().take(8).map(IpAddr::from).find(|near| !is_own(*near));
                    // The first addresses are routers' most often, whom rules may trust.
                    let far = net.hosts().nth(68).map(IpAddr::from).filter(|far| !is_own(*far));
                    Some((index, (*address).into(), far.or(near)?))
                }
                IpAddr::V6(address) if v6 && *length < 127 && !address.is_unicast_link_local() => {
                    let near = std::net::Ipv6Addr::from(u128::from(*address) ^ 0x4d00);
                    let net = ipnet::Ipv6Net::new(*address, *length).ok()?;
                    (net.contains(&near) && !is_own(near.into())).then(|| (index, (*address).into(), near.into()))
                }
                _ => None,
            })
        };
        self.indexes().filter_map(of).collect()
    }

    /// Gateways of all routes, whatever leads to them, with the numbers of their interfaces.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        const OUTGOING: u16 = 4;
        const GATEWAY: u16 = 5;
        self.routes.iter().filter_map(|route| {
            let index = u32::from_ne_bytes(route.attributes.get(OUTGOING)?.try_into().ok()?);
            Some((index, address_of_bytes(route.attributes.get(GATEWAY)?)?))
        })
    }

    /// It forwards packets of that family.
    pub(crate) fn forwards(&self, v6: bool) -> bool {
        let place = if v6 { "ipv6/conf/all/forwarding" } else { "ipv4/ip_forward" };
        self.settings.iter().any(|(of, value)| of == place && value == "1")
    }

    /// Makes the same in the namespace of the calling thread. The inner error says what could not be set, in a container whose
    /// `/proc/sys` is only to be read.
    pub(super) fn make(&self, peers: Peers<'_>) -> Result<Result<()>> {
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

/// What is known of a neighbour: bits of `NUD_…`.
fn state(body: &Body) -> u16 {
    body.fixed.get(8..10).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
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
pub(super) fn arrived(address: IpAddr, index: u32) -> Result<()> {
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

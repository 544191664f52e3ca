//! Fields of a `struct sk_buff`.

use core::hint::black_box;

use observer_ebpf::{
    abi::{Direction, answer, place},
    logic::{
        direction::{self, Origin},
        packet::{ethertype, protocol},
    },
};

use super::{
    connection, expected,
    layout::{address, field},
    link::{self, Link},
    read::{Probe, Reader},
    scratch::{Packet, get, put},
    sock,
};

/// Low bit of `skb->_skb_refdst`: the reference is not counted.
const DST_NOREF: u64 = 1;
/// `DST_METADATA` of `include/net/dst.h` (since 4.3): a tunnel's description, not a route.
const DST_METADATA: u16 = 0x80;
/// `DST_FAKE_RTABLE`, likewise.
const DST_FAKE_RTABLE: u16 = 0x10;
/// `skb->mac_header` before it is set.
const MAC_HEADER_UNSET: u16 = 0xffff;

/// A dropped packet.
#[derive(Clone, Copy)]
pub struct Skb {
    address: u64,
    /// Its socket, or 0.
    pub sk: u64,
    /// Its route, or 0.
    pub dst: u64,
    /// `skb->dev`, or 0.
    pub dev: u64,
    /// Its route is the one that a bridge's netfilter gives it.
    is_bridged: bool,
}

impl Skb {
    /// Reads the pointers that decide what kind of packet it is.
    #[inline(always)]
    pub fn read<R: Reader>(address: u64) -> Self {
        let refdst: u64 = R::field(address, field!(skb_refdst)).unwrap_or(0);
        let dst = refdst & !DST_NOREF;
        let flags: u16 = Probe::field(dst, field!(dst_flags)).unwrap_or(0);
        Self {
            address,
            sk: R::field(address, field!(skb_sk)).unwrap_or(0),
            dst: if flags & DST_METADATA == 0 { dst } else { 0 },
            dev: R::field(address, field!(skb_dev)).unwrap_or(0),
            is_bridged: flags & DST_FAKE_RTABLE != 0,
        }
    }

    /// It has come in for this host itself and is nobody's answer, as most of what is freed. By as few reads as that takes: false where
    /// it takes more.
    #[inline(always)]
    pub fn is_inbound<R: Reader>(address: u64) -> bool {
        let iif: u32 = R::or_zero(address, field!(skb_iif));
        let refdst: u64 = R::field(address, field!(skb_refdst)).unwrap_or(0);
        let nfct: u64 = R::field(address, field!(skb_nfct)).unwrap_or(0);
        let dst = refdst & !DST_NOREF;
        if iif == 0 || dst == 0 || connection::is_answer(nfct) {
            return false;
        }
        // Connection tracking leaves neighbour discovery out. What it does not know may be what a socket waits for.
        if connection::of(nfct) == 0 {
            let kind = u16::from_be(R::field(address, field!(skb_protocol)).unwrap_or(0));
            let sk: u64 = R::field(address, field!(skb_sk)).unwrap_or(0);
            let may_be_discovery = kind == ethertype::IPV6 && next_header::<R>(address) == protocol::ICMPV6;
            if sk != 0 || kind == ethertype::ARP || may_be_discovery {
                return false;
            }
        }
        is_for_here(dst)
    }

    /// Which way it was going, a [`Direction`] in [`DIRECTION_BITS`] or 0 for an inbound packet; and in all others the namespace that it
    /// came from, where that is another.
    ///
    /// A number and no enum: the verifier would walk everything that follows once for each.
    #[inline(always)]
    pub fn direction<R: Reader>(&self) -> u64 {
        // Pointers as plain numbers, which is all that a function of its own takes; the others are such.
        let iif: u32 = R::field(self.address, field!(skb_iif)).unwrap_or(u32::MAX);
        let device: u64 = Probe::field(self.address, field!(skb_dev)).unwrap_or(0);
        let sk: u64 = Probe::field(self.address, field!(skb_sk)).unwrap_or(0);
        let head: u64 = Probe::field(self.address, field!(skb_head)).unwrap_or(0);
        let network = u64::from(R::field::<u16>(self.address, field!(skb_network_header)).unwrap_or(0));
        let kind = skb_kind(head + network, u32::from(self.protocol::<R>()));
        if R::HAS_ROOM && iif != 0 && self.connection::<R>() == 0 {
            let whose = expected::is_expected(head + network, self.protocol::<R>(), device);
            if whose != 0 {
                return Direction::Answer as u64
                    | (whose & expected::ELSEWHERE) * (ANSWERS_ANOTHER / expected::ELSEWHERE);
            }
        }
        // A packet that crosses a bridge passes netfilter with a route that leads nowhere, and with its sender's socket: it is nobody's
        // answer here.
        let whose = u64::from(self.is_bridged).wrapping_sub(1);
        let nfct = self.connection::<R>() & whose;
        skb_direction(u64::from(iif) | kind << KIND_SHIFT, self.dst, sk & whose, device, nfct)
    }

    /// `skb->protocol`, host byte order.
    #[inline(always)]
    fn protocol<R: Reader>(&self) -> u16 {
        u16::from_be(R::field(self.address, field!(skb_protocol)).unwrap_or(0))
    }

    /// Its connection and what it is to it (`skb->_nfct`); 0 without connection tracking.
    #[inline(always)]
    pub fn connection<R: Reader>(&self) -> u64 {
        R::field(self.address, field!(skb_nfct)).unwrap_or(0)
    }

    /// Ethertype of what stands at the network header, host byte order.
    ///
    /// For a tagged frame `skb->protocol` is the tag's, while the network header is at the tag or behind it, as the
    /// sender left it. The two bytes before the network header tell which.
    #[inline(always)]
    pub fn ethertype<R: Reader>(&self) -> u16 {
        let kind = u16::from_be(R::field(self.address, field!(skb_protocol)).unwrap_or(0));
        if kind != ethertype::VLAN && kind != ethertype::VLAN_OUTER {
            return kind;
        }
        let head: u64 = R::field(self.address, field!(skb_head)).unwrap_or(0);
        let network = u64::from(R::field::<u16>(self.address, field!(skb_network_header)).unwrap_or(0));
        if !self.at_link_header::<R>() || network < 2 {
            return 0;
        }
        u16::from_be(Probe::field((head + network).wrapping_sub(2), 0).unwrap_or(0))
    }

    /// `skb->data` stands at the link header.
    #[inline(always)]
    fn at_link_header<R: Reader>(&self) -> bool {
        let mac: u16 = R::field(self.address, field!(skb_mac_header)).unwrap_or(MAC_HEADER_UNSET);
        mac != MAC_HEADER_UNSET && u64::from(mac) == self.headroom::<R>()
    }

    /// Length in bytes as the hook sees it.
    #[inline(always)]
    pub fn length<R: Reader>(&self) -> u32 {
        R::field(self.address, field!(skb_len)).unwrap_or(0)
    }

    /// Bits of [`answer`] of an answer, 0 of what is none; and above them the number of the interface that it was to leave by.
    #[inline(always)]
    pub fn answer<R: Reader>(&self, direction: u32, nfct: u64) -> (u8, u32) {
        let known = skb_answer(direction | u32::from(self.protocol::<R>()) << DIRECTION_WIDTH, self.dst, nfct);
        (known as u8, (known >> 32) as u32)
    }

    /// The route's device, or 0.
    #[inline(always)]
    pub fn route_device(&self) -> u64 {
        Probe::field(self.dst, field!(dst_dev)).unwrap_or(0)
    }

    /// The device that the packet was to leave by, or 0: on the device itself that is where it died (a VLAN's or a bond's
    /// packet has the upper device as its route's), before that the route's.
    #[inline(always)]
    pub fn out_device<R: Reader>(&self, routes: u64) -> u64 {
        if routes == 0 || self.dev != 0 && self.at_link_header::<R>() { self.dev } else { routes }
    }

    /// Bits of [`place`]: what tells at which hook it died.
    #[inline(always)]
    pub fn place<R: Reader>(&self, direction: u32, routes: u64) -> u8 {
        let mut bits = 0;
        if self.dev != 0 {
            bits |= place::DEVICE;
        }
        if self.dev == routes {
            bits |= place::DEVICE_IS_ROUTES;
        }
        if self.at_link_header::<R>() {
            bits |= place::AT_LINK_HEADER;
        }
        if direction != Direction::Local as u32 {
            let iif: u32 = R::field(self.address, field!(skb_iif)).unwrap_or(0);
            // `ip_rcv_core` and `ip6_rcv_core` write it to the front of `skb->cb` (`inet_skb_parm.iif`).
            let received: u32 = Probe::field(self.address, field!(skb_cb)).unwrap_or(0);
            if received == iif {
                bits |= place::PROTOCOL_REACHED;
            }
            if received == 0 {
                bits |= place::CONTROL_EMPTY;
            }
            if Probe::field(routes, field!(dev_ifindex)) == Some(iif) {
                bits |= place::HAIRPIN;
            }
        }
        bits
    }

    /// Bytes between the start of the buffer and the packet's data.
    #[inline(always)]
    fn headroom<R: Reader>(&self) -> u64 {
        let head: u64 = R::field(self.address, field!(skb_head)).unwrap_or(0);
        let data: u64 = R::field(self.address, field!(skb_data)).unwrap_or(0);
        // To the verifier both are pointers and only their difference is a number: it must be computed as it stands.
        black_box(data.wrapping_sub(head))
    }

    /// Address of the network header, and how many bytes of the packet are linear from there on; 0 bytes when none are.
    ///
    /// # Safety
    /// The scratch space must be this CPU's.
    #[inline(always)]
    pub unsafe fn linear<R: Reader>(&self, scratch: *mut Packet) -> (u64, u64) {
        // By way of memory: a pointer that was loaded directly is none that a function of its own takes.
        // SAFETY: the scratch space is this CPU's.
        let head: u64 = unsafe {
            put!(scratch.pointer, R::field(self.address, field!(skb_head)).unwrap_or(0));
            get!(scratch.pointer)
        };
        let network = u64::from(R::field::<u16>(self.address, field!(skb_network_header)).unwrap_or(0));
        let paged: u32 = R::field(self.address, field!(skb_data_len)).unwrap_or(0);
        let end = self.headroom::<R>() + u64::from(self.length::<R>().wrapping_sub(paged));
        (head + network, if end > network { end - network } else { 0 })
    }
}

/// What follows the IPv6 header of a packet.
#[inline(always)]
fn next_header<R: Reader>(address: u64) -> u8 {
    const NEXT: u32 = 6;
    let head: u64 = R::field(address, field!(skb_head)).unwrap_or(0);
    let network = u64::from(R::field::<u16>(address, field!(skb_network_header)).unwrap_or(0));
    Probe::field(head.wrapping_add(network), NEXT).unwrap_or(0)
}

/// A route that leads to this host itself: its input function, and its flags close behind it.
#[inline(always)]
fn is_for_here(dst: u64) -> bool {
    let (input, flags): (u64, u16) = if Probe::is_direct() {
        (Probe::field(dst, field!(dst_input)).unwrap_or(0), Probe::field(dst, field!(dst_flags)).unwrap_or(0))
    } else {
        // By one call. In memory the flags are the first two bytes of the next word but one.
        if field!(dst_flags).wrapping_sub(field!(dst_input)) != 16 {
            return false;
        }
        let [input, _, third] = Probe::field::<[u64; 3]>(dst, field!(dst_input)).unwrap_or_default();
        let bytes = third.to_ne_bytes();
        (input, u16::from_ne_bytes([bytes[0], bytes[1]]))
    };
    let forwards = |low: u32, high: u32| input == address(low, high);
    flags & (DST_METADATA | DST_FAKE_RTABLE) == 0
        && input != 0
        && !forwards(field!(ip_forward_low), field!(ip_forward_high))
        && !forwards(field!(ip6_forward_low), field!(ip6_forward_high))
}

/// What a packet is to neighbour discovery, beside the number of its interface.
const KIND_SHIFT: u32 = 32;
/// It is of ARP.
const ARP: u64 = 1;
/// It is a neighbour's answer to who asked for it: a reply of ARP, or an advertisement that was solicited.
const FOUND: u64 = 2;

/// Bits [`ARP`] and [`FOUND`] of the packet whose network header begins there.
///
/// A function of its own to the verifier too: it is checked once, and not again for every way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skb_kind(start: u64, kind: u32) -> u64 {
    /// `ARPOP_REPLY`, and where it stands.
    const REPLY: u16 = 2;
    const OPERATION: u64 = 6;
    /// Where an IPv6 header has what follows it, and where a solicited advertisement says so.
    const NEXT: u64 = 6;
    const MESSAGE: u64 = 40;
    const ADVERTISEMENT: u8 = 136;
    const SOLICITED: u8 = 0x40;
    if kind == u32::from(ethertype::ARP) {
        let is_reply = Probe::field::<u16>(start + OPERATION, 0).map(u16::from_be) == Some(REPLY);
        return if is_reply { ARP | FOUND } else { ARP };
    }
    if kind != u32::from(ethertype::IPV6) || Probe::field::<u8>(start + NEXT, 0) != Some(protocol::ICMPV6) {
        return 0;
    }
    let is_answer = Probe::field::<u8>(start + MESSAGE, 0) == Some(ADVERTISEMENT);
    if is_answer && Probe::field::<u8>(start + MESSAGE, 4).unwrap_or(0) & SOLICITED != 0 { FOUND } else { 0 }
}

/// See [`Skb::answer`]: a function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skb_answer(what: u32, dst: u64, nfct: u64) -> u64 {
    let (direction, kind) = (what & DIRECTION_BITS as u32, what >> DIRECTION_WIDTH);
    if direction != Direction::Answer as u32 {
        return 0;
    }
    let mut bits = if connection::is_error(nfct) { answer::ERROR } else { 0 };
    let input: u64 = Probe::field(dst, field!(dst_input)).unwrap_or(0);
    let forwards = |low: u32, high: u32| input != 0 && input == address(low, high);
    if dst == 0 {
        // Whoever is next on the way answers this host, and ARP has no routes.
        bits |= if kind == u32::from(ethertype::ARP) { answer::LOCAL } else { answer::UNROUTED };
    } else if !forwards(field!(ip_forward_low), field!(ip_forward_high))
        && !forwards(field!(ip6_forward_low), field!(ip6_forward_high))
    {
        bits |= answer::LOCAL;
    }
    // Whoever began the connection is where its answer goes to.
    let leaves_by: u64 = Probe::field(dst, field!(dst_dev)).unwrap_or(0);
    let index: u32 = Probe::field(leaves_by, field!(dev_ifindex)).unwrap_or(0);
    u64::from(bits) | u64::from(index) << 32
}

/// Stands for the namespace of an answer to a connection that another one has begun: no address.
pub const ANSWERS_ANOTHER: u64 = 8;

/// A direction in the low bits of an address, which are free.
pub const DIRECTION_BITS: u64 = 7;
/// How many they are.
const DIRECTION_WIDTH: u32 = 3;

/// See [`Skb::direction`].
///
/// A function of its own to the verifier too: it is checked once, and not again for every way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skb_direction(received: u64, dst: u64, sk: u64, device: u64, nfct: u64) -> u64 {
    let (skb_iif, kind) = (received as u32, received >> KIND_SHIFT);
    if skb_iif == 0 {
        // What is sent without a route is of a socket, or of ARP.
        let route = dst != 0 || kind & ARP != 0;
        let made = Origin { route, socket: sk != 0, ..Origin::MADE_HERE };
        return direction::direction(made).map_or(0, |direction| direction as u64);
    }
    if kind & FOUND != 0 {
        return Direction::Answer as u64;
    }
    let here: u64 = Probe::field(device, field!(dev_net)).unwrap_or(0);
    let kind = link::kind(device);
    let peer = if kind == Link::Veth { link::peer_net(device) } else { 0 };
    let mut from = if peer != here { peer } else { 0 };
    let mut origin = Origin { skb_iif, route: dst != 0, socket: sk != 0, ..Origin::MADE_HERE };
    if dst != 0 {
        let input: u64 = Probe::field(dst, field!(dst_input)).unwrap_or(0);
        let forwards = |low: u32, high: u32| input != 0 && input == address(low, high);
        origin.forwarding = forwards(field!(ip_forward_low), field!(ip_forward_high))
            || forwards(field!(ip6_forward_low), field!(ip6_forward_high));
        // At FORWARD the device is still the one that it came in by; later it is the one that it leaves by.
        if Probe::field::<u64>(dst, field!(dst_dev)) == Some(device) {
            from = 0;
        }
    } else {
        let net: u64 = if sk != 0 { Probe::field(sk, field!(sk_net)).unwrap_or(0) } else { 0 };
        origin.foreign_socket = net != 0 && net != here;
        origin.gateway = from != 0 || kind == Link::Bridge;
        if origin.foreign_socket {
            from = net;
        }
    }
    // Without a route the socket is its sender's, if it has one. An error on its way to others is what its sender made.
    let is_for_here = dst != 0 && !origin.forwarding;
    origin.answer = connection::is_answer(nfct) && (is_for_here || !connection::is_error(nfct))
        || connection::of(nfct) == 0 && is_for_here && sock::waits(sk);
    match direction::direction(origin) {
        Some(direction) => from | direction as u64,
        None => 0,
    }
}

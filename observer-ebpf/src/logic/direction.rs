//! Is a dropped packet this host's own egress, and where on its way did it die.

use super::packet::{ethertype, protocol};
use crate::abi::{Cause, Direction, DropKey, Hook, answer, flag, place};

/// What the eBPF side reads from the packet to tell its direction.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// `skb->skb_iif`: the device it was received on, 0 for a packet made here. Set at the start of reception, before
    /// any ingress hook, and cleared when a packet crosses a veth or enters a tunnel (`skb_scrub_packet`).
    pub skb_iif: u32,
    /// It has a route (a metadata dst of a tunnel is not one), or needs none: ARP.
    pub route: bool,
    /// The route's input function forwards.
    pub forwarding: bool,
    /// It has a socket.
    pub socket: bool,
    /// The socket belongs to another namespace than the device that received it.
    pub foreign_socket: bool,
    /// The device that received it is where another namespace's packets come in: a veth whose peer is there, or a bridge.
    pub gateway: bool,
    /// Connection tracking knows it as one of the other way than the connection's first packet; or its socket waits for it.
    pub answer: bool,
}

impl Origin {
    /// A packet that was not received, of which nothing else is known.
    pub const MADE_HERE: Self = Self {
        skb_iif: 0,
        route: false,
        forwarding: false,
        socket: false,
        foreign_socket: false,
        gateway: false,
        answer: false,
    };
}

/// Which way a packet was going; `None` for one that was coming in, whose drop is no egress.
///
/// "Not local" would be the wrong test for a forwarded packet: an inbound IPv6 multicast packet has a route without the
/// local flag.
#[inline(always)]
pub fn direction(origin: Origin) -> Option<Direction> {
    if origin.skb_iif == 0 {
        if origin.route || origin.socket { Some(Direction::Local) } else { None }
    } else if origin.answer {
        Some(Direction::Answer)
    } else if origin.route {
        if origin.forwarding { Some(Direction::Forward) } else { None }
    } else if origin.foreign_socket || origin.gateway {
        Some(Direction::Unrouted)
    } else {
        None
    }
}

/// What tells the hook.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// `skb->dev` is set. At OUTPUT it is NULL, except for what the kernel makes with a device in hand (neighbour
    /// discovery, multicast reports) and for tunnels' outer packets.
    pub device: bool,
    /// `skb->dev` is the device of the route.
    pub device_is_routes: bool,
    /// `skb->data` stands at the link header: `__dev_queue_xmit` resets `mac_header` to `data` before its hooks, and
    /// nothing else on the way out does.
    pub at_link_header: bool,
    /// Made by the kernel with the device already set: neighbour discovery, multicast listener reports, IGMP.
    pub device_preset: bool,
    /// The protocol's receive function has begun with the packet: it has taken the socket off and written the incoming
    /// device into the control block.
    pub protocol_reached: bool,
    /// The socket is off, and the control block is empty: a bridge's netfilter leaves it so before its call of the
    /// protocol's hooks, but others may too.
    pub control_empty: bool,
    /// It is to leave by the device that it came in by.
    pub hairpin: bool,
    /// Of an answer: it is for this namespace itself.
    pub is_for_here: bool,
    /// Of an answer: it has no route yet.
    pub is_unrouted: bool,
}

impl Place {
    /// From what is counted.
    pub fn new(key: &DropKey) -> Self {
        let has = |bit: u8| key.place & bit != 0;
        let socket = key.flags & flag::SOCKET != 0;
        Self {
            device: has(place::DEVICE),
            device_is_routes: has(place::DEVICE_IS_ROUTES),
            at_link_header: has(place::AT_LINK_HEADER),
            device_preset: device_preset(key),
            protocol_reached: !socket && has(place::PROTOCOL_REACHED),
            control_empty: !socket && has(place::CONTROL_EMPTY),
            hairpin: has(place::HAIRPIN),
            is_for_here: key.answer & answer::LOCAL != 0,
            is_unrouted: key.answer & answer::UNROUTED != 0,
        }
    }
}

/// Neighbour discovery, multicast listener reports and IGMP: the kernel makes them with the device already set.
fn device_preset(key: &DropKey) -> bool {
    match key.protocol {
        protocol::IGMP => key.ethertype == ethertype::IPV4,
        protocol::ICMPV6 if key.flags & flag::TRANSPORT != 0 => matches!(key.detail, 130..=137 | 143),
        _ => key.flags & flag::HOP_BY_HOP != 0,
    }
}

/// Hook of a packet that died of `cause`; `None` when it cannot be reported.
pub fn hook(cause: Cause, direction: Direction, place: Place) -> Option<Hook> {
    match (direction, cause) {
        (Direction::Answer, Cause::Netfilter | Cause::Nfqueue) if place.is_for_here => Some(Hook::Input),
        (Direction::Answer, Cause::Netfilter | Cause::Nfqueue) if place.is_unrouted && place.protocol_reached => {
            Some(Hook::Prerouting)
        }
        (Direction::Answer, _) if place.is_unrouted => Some(Hook::Ingress),
        (Direction::Answer, Cause::Netfilter | Cause::Nfqueue) => hook(cause, Direction::Forward, place),
        (Direction::Answer, Cause::Neighbour) => None,
        (Direction::Answer, _) => hook(cause, Direction::Forward, place),
        (Direction::Unrouted, Cause::Netfilter | Cause::Nfqueue) if place.protocol_reached => Some(Hook::Prerouting),
        (Direction::Unrouted, Cause::Netfilter | Cause::Nfqueue) if place.control_empty => None,
        (Direction::Unrouted, Cause::Neighbour) => None,
        (Direction::Unrouted, _) => Some(Hook::Ingress),
        (_, Cause::Neighbour) => None,
        (_, Cause::Cgroup | Cause::Tc | Cause::Queue) => Some(Hook::Egress),
        (Direction::Local, Cause::Netfilter | Cause::Nfqueue) => local(place),
        (Direction::Forward, Cause::Netfilter | Cause::Nfqueue) if place.at_link_header => Some(Hook::Egress),
        // Until it is sent out, the packet's device is the one that received it.
        (Direction::Forward, Cause::Netfilter | Cause::Nfqueue) if !place.device_is_routes => Some(Hook::Forward),
        (Direction::Forward, Cause::Netfilter | Cause::Nfqueue) if place.hairpin => None,
        (Direction::Forward, Cause::Netfilter | Cause::Nfqueue) => Some(Hook::Postrouting),
    }
}

fn local(place: Place) -> Option<Hook> {
    if !place.device {
        Some(Hook::Output)
    } else if place.at_link_header {
        Some(Hook::Egress)
    } else if !place.device_is_routes {
        Some(Hook::Output)
    } else if place.device_preset {
        None
    } else {
        Some(Hook::Postrouting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin::MADE_HERE;
    const PLACE: Place = Place {
        device: false,
        device_is_routes: false,
        at_link_header: false,
        device_preset: false,
        protocol_reached: false,
        control_empty: false,
        hairpin: false,
        is_for_here: false,
        is_unrouted: false,
    };

    #[test]
    fn packets_made_here_are_local_egress() {
        let made = |route, socket| direction(Origin { route, socket, ..ORIGIN });
        assert_eq!(made(true, true), Some(Direction::Local));
        assert_eq!(made(true, false), Some(Direction::Local), "a reset has a route and sometimes no socket");
        assert_eq!(made(false, true), Some(Direction::Local), "a packet socket has no route");
        assert_eq!(made(false, false), None);
    }

    #[test]
    fn received_packets_are_forwarded_or_inbound() {
        let received = Origin { skb_iif: 2, ..ORIGIN };
        assert_eq!(direction(Origin { route: true, forwarding: true, ..received }), Some(Direction::Forward));
        assert_eq!(direction(Origin { route: true, socket: true, ..received }), None, "early demux gives a socket");
        assert_eq!(direction(Origin { route: true, gateway: true, ..received }), None, "its route does not forward");
        assert_eq!(direction(received), None);
        let answer = Origin { answer: true, ..received };
        assert_eq!(direction(Origin { route: true, ..answer }), Some(Direction::Answer));
        assert_eq!(direction(Origin { route: true, forwarding: true, ..answer }), Some(Direction::Answer));
        assert_eq!(direction(answer), Some(Direction::Answer));
        assert_eq!(direction(Origin { foreign_socket: true, ..received }), Some(Direction::Unrouted));
        assert_eq!(direction(Origin { gateway: true, ..received }), Some(Direction::Unrouted));
    }

    #[test]
    fn hooks_of_local_packets_are_told_apart_or_left_open() {
        let local = |cause, place| hook(cause, Direction::Local, place);
        let with_device = Place { device: true, device_is_routes: true, ..PLACE };
        assert_eq!(local(Cause::Netfilter, PLACE), Some(Hook::Output));
        assert_eq!(local(Cause::Netfilter, with_device), Some(Hook::Postrouting));
        assert_eq!(local(Cause::Netfilter, Place { at_link_header: true, ..with_device }), Some(Hook::Egress));
        assert_eq!(local(Cause::Netfilter, Place { device_is_routes: false, ..with_device }), Some(Hook::Output));
        assert_eq!(local(Cause::Netfilter, Place { device_preset: true, ..with_device }), None);
        for cause in [Cause::Cgroup, Cause::Tc, Cause::Queue] {
            assert_eq!(local(cause, with_device), Some(Hook::Egress));
        }
    }

    #[test]
    fn hooks_of_forwarded_packets() {
        let forward = |place| hook(Cause::Netfilter, Direction::Forward, place);
        let with_device = Place { device: true, device_is_routes: true, ..PLACE };
        assert_eq!(forward(Place { device_is_routes: false, ..with_device }), Some(Hook::Forward));
        assert_eq!(forward(with_device), Some(Hook::Postrouting));
        assert_eq!(forward(Place { hairpin: true, ..with_device }), None);
        assert_eq!(forward(Place { at_link_header: true, ..with_device }), Some(Hook::Egress));
        let unrouted = |cause, place| hook(cause, Direction::Unrouted, place);
        let behind = Place { protocol_reached: true, ..with_device };
        assert_eq!(unrouted(Cause::Netfilter, behind), Some(Hook::Prerouting));
        assert_eq!(unrouted(Cause::Netfilter, with_device), Some(Hook::Ingress));
        assert_eq!(unrouted(Cause::Netfilter, Place { control_empty: true, ..with_device }), None);
        assert_eq!(unrouted(Cause::Tc, behind), Some(Hook::Ingress));
    }
}

//! Is a dropped packet this host's own egress, and where on its way did it die.

use crate::abi::{Cause, Hook};

/// What the kernel half reads from the packet to tell its direction.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// `skb->skb_iif`: the device it was received on, 0 for a packet made here. Set at the start of reception, before
    /// any ingress hook, and cleared when a packet crosses a veth or enters a tunnel (`skb_scrub_packet`).
    pub skb_iif: u32,
    /// It has a route (a metadata dst of a tunnel is not one).
    pub route: bool,
    /// It has a socket.
    pub socket: bool,
}

/// True for a packet that a socket of this host sent: never received anywhere, and with a route or a socket.
///
/// "Not local" would be the wrong test: an inbound IPv6 multicast packet has a route without the local flag.
#[inline(always)]
pub fn is_local_egress(origin: Origin) -> bool {
    origin.skb_iif == 0 && (origin.route || origin.socket)
}

/// What the kernel half reads from the packet to tell the hook.
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
    /// Made by the kernel with the device already set: ICMPv6 and IGMP.
    pub device_preset: bool,
}

/// Hook of a locally made packet that died of `cause`; `None` when it cannot be told.
#[inline(always)]
pub fn hook(cause: Cause, place: Place) -> Option<Hook> {
    match cause {
        Cause::Cgroup | Cause::Tc => Some(Hook::Egress),
        Cause::Netfilter if !place.device => Some(Hook::Output),
        Cause::Netfilter if place.at_link_header => Some(Hook::Egress),
        Cause::Netfilter if !place.device_is_routes => Some(Hook::Output),
        Cause::Netfilter if place.device_preset => None,
        Cause::Netfilter => Some(Hook::Postrouting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_made_here_are_egress() {
        let origin = |skb_iif, route, socket| Origin { skb_iif, route, socket };
        assert!(is_local_egress(origin(0, true, true)));
        assert!(is_local_egress(origin(0, true, false)), "a reset has a route and sometimes no socket");
        assert!(is_local_egress(origin(0, false, true)), "a packet socket has no route");
        assert!(!is_local_egress(origin(0, false, false)));
        assert!(!is_local_egress(origin(2, true, true)), "early demux gives inbound packets a socket");
        assert!(!is_local_egress(origin(1, true, false)), "loopback counts as received");
    }

    #[test]
    fn hooks_are_told_apart_or_left_open() {
        let place = Place { device: false, device_is_routes: false, at_link_header: false, device_preset: false };
        assert_eq!(hook(Cause::Netfilter, place), Some(Hook::Output));
        let with_device = Place { device: true, device_is_routes: true, ..place };
        assert_eq!(hook(Cause::Netfilter, with_device), Some(Hook::Postrouting));
        assert_eq!(hook(Cause::Netfilter, Place { at_link_header: true, ..with_device }), Some(Hook::Egress));
        assert_eq!(hook(Cause::Netfilter, Place { device_is_routes: false, ..with_device }), Some(Hook::Output));
        assert_eq!(hook(Cause::Netfilter, Place { device_preset: true, ..with_device }), None);
        assert_eq!(hook(Cause::Cgroup, with_device), Some(Hook::Egress));
        assert_eq!(hook(Cause::Tc, with_device), Some(Hook::Egress));
    }
}

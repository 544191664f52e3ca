//! Numbers of `uapi/linux/netfilter.h`: address families, hooks, verdicts. Part of the kernel's ABI.

/// `NFPROTO_*`
pub mod family {
    /// All of them, in a request.
    pub const UNSPEC: u8 = 0;
    /// IPv4 and IPv6.
    pub const INET: u8 = 1;
    /// IPv4.
    pub const IPV4: u8 = 2;
    /// ARP.
    pub const ARP: u8 = 3;
    /// A device.
    pub const NETDEV: u8 = 5;
    /// A bridge.
    pub const BRIDGE: u8 = 7;
    /// IPv6.
    pub const IPV6: u8 = 10;

    /// Name as `nft` writes it.
    pub fn name(family: u8) -> &'static str {
        match family {
            INET => "inet",
            IPV4 => "ip",
            ARP => "arp",
            NETDEV => "netdev",
            BRIDGE => "bridge",
            IPV6 => "ip6",
            _ => "unknown",
        }
    }
}

/// `NF_INET_*`; of family netdev `NF_NETDEV_*`.
pub mod hook {
    use super::family;

    /// `NF_INET_PRE_ROUTING`
    pub const PRE_ROUTING: u32 = 0;
    /// `NF_INET_LOCAL_IN`
    pub const LOCAL_IN: u32 = 1;
    /// `NF_INET_FORWARD`
    pub const FORWARD: u32 = 2;
    /// `NF_INET_LOCAL_OUT`
    pub const LOCAL_OUT: u32 = 3;
    /// `NF_INET_POST_ROUTING`
    pub const POST_ROUTING: u32 = 4;
    /// `NF_INET_INGRESS`, of the family `inet` alone.
    pub const INET_INGRESS: u32 = 5;
    /// `NF_NETDEV_INGRESS`
    pub const NETDEV_INGRESS: u32 = 0;
    /// `NF_NETDEV_EGRESS`
    pub const NETDEV_EGRESS: u32 = 1;

    /// `NF_ARP_IN`
    pub const ARP_IN: u32 = 0;
    /// `NF_ARP_OUT`
    pub const ARP_OUT: u32 = 1;

    /// A hook on a packet's way, as lines name it; `None` for others.
    pub fn name(of: u8, number: u32) -> Option<&'static str> {
        match (of, number) {
            (family::NETDEV, NETDEV_INGRESS) | (family::INET, INET_INGRESS) => Some("ingress"),
            (family::NETDEV, NETDEV_EGRESS) => Some("egress"),
            (family::ARP, ARP_IN) => Some("input"),
            (family::ARP, ARP_OUT) => Some("output"),
            (family::INET | family::IPV4 | family::IPV6, PRE_ROUTING) => Some("prerouting"),
            (family::INET | family::IPV4 | family::IPV6, LOCAL_IN) => Some("input"),
            (family::INET | family::IPV4 | family::IPV6, FORWARD) => Some("forward"),
            (family::INET | family::IPV4 | family::IPV6, LOCAL_OUT) => Some("output"),
            (family::INET | family::IPV4 | family::IPV6, POST_ROUTING) => Some("postrouting"),
            _ => None,
        }
    }
}

/// `NF_ACCEPT`, also as a chain's policy.
pub const ACCEPT: u32 = 1;
/// `NF_DROP`, also as a chain's policy.
pub const DROP: u32 = 0;

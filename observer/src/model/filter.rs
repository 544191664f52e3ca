//! Which events are told. One value of a kind is enough; every kind that was given must match.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use observer_ebpf::abi::{FILTER_VALUES, FilterNetwork, KernelFilter};

use super::{
    dropped::{transport_name, transport_number},
    event::{Action, Event},
};

/// A filter that cannot be understood, with what would be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} `{value}`; known: {known}")]
pub struct FilterError {
    kind: &'static str,
    value: String,
    known: String,
}

/// A destination to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Addresses of a network.
    Network(IpNet),
    /// Addresses that a name had when observer started.
    Name {
        /// The name as typed.
        name: String,
        /// What it resolved to.
        addresses: Vec<IpAddr>,
    },
}

/// All filters of a command line; empty ones match everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The process or one of its parents.
    pub pids: Vec<u32>,
    /// Process name.
    pub comms: Vec<String>,
    /// Path of the executable.
    pub executables: Vec<String>,
    /// User id.
    pub users: Vec<String>,
    /// systemd unit, `.service` may be left out.
    pub units: Vec<String>,
    /// Container id or its beginning.
    pub containers: Vec<String>,
    /// Destination.
    pub destinations: Vec<Destination>,
    /// Destination port.
    pub ports: Vec<u16>,
    /// Transport, as the event names it.
    pub transports: Vec<String>,
    /// Cause, as the event names it.
    pub causes: Vec<String>,
    /// Action, as the event names it.
    pub actions: Vec<String>,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// A process whose tree the kernel half keeps track of; it leaves out nothing.
    pub follow: Option<u32>,
}

impl Filter {
    /// The part of it that the kernel half can apply. Kinds with too many values are left out: they are applied here only.
    pub fn in_kernel(&self) -> KernelFilter {
        let mut filter = KernelFilter { netns: self.netns.unwrap_or(0), ..KernelFilter::default() };
        if self.ports.len() <= FILTER_VALUES {
            filter.ports = self.ports.len() as u32;
            filter.port.iter_mut().zip(&self.ports).for_each(|(into, port)| *into = u32::from(*port));
        }
        if self.transports.len() <= FILTER_VALUES {
            filter.protocols = self.transports.len() as u32;
            let numbers = self.transports.iter().filter_map(|name| transport_number(name));
            filter.protocol.iter_mut().zip(numbers).for_each(|(into, number)| *into = u32::from(number));
        }
        let networks: Vec<IpNet> = self.destinations.iter().flat_map(Destination::networks).collect();
        if networks.len() <= FILTER_VALUES {
            // A name without addresses matches nothing, which user space sees to.
            filter.networks = networks.len() as u32;
            filter.network.iter_mut().zip(networks).for_each(|(into, network)| *into = words(network));
        }
        if self.pids.len() <= FILTER_VALUES {
            filter.pids = self.pids.len() as u32;
            filter.pid.iter_mut().zip(&self.pids).for_each(|(into, pid)| *into = *pid);
        }
        if let Some(pid) = self.follow {
            (filter.pid[0], filter.pids, filter.follow) = (pid, 1, 1);
        }
        let any = filter.netns
            | filter.ports
            | filter.protocols
            | filter.networks
            | (filter.pids * u32::from(filter.follow == 0));
        filter.active = u32::from(any != 0);
        filter
    }

    /// What is asked for but the namespace, in the words of the command line: `port 443 or 53`.
    pub fn words(&self) -> Vec<String> {
        let Self {
            pids,
            comms,
            executables,
            users,
            units,
            containers,
            destinations,
            ports,
            transports,
            causes,
            actions,
            netns: _,
            follow: _,
        } = self;
        let numbers = |all: &[u32]| all.iter().map(ToString::to_string).collect();
        let kinds: [(&str, Vec<String>); 11] = [
            ("process tree", numbers(pids)),
            ("name", comms.clone()),
            ("executable", executables.clone()),
            ("user", users.clone()),
            ("unit", units.clone()),
            ("container", containers.clone()),
            ("to", destinations.iter().map(ToString::to_string).collect()),
            ("port", ports.iter().map(ToString::to_string).collect()),
            ("protocol", transports.clone()),
            ("cause", causes.clone()),
            ("action", actions.clone()),
        ];
        kinds
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(kind, values)| format!("{kind} {}", values.join(" or ")))
            .collect()
    }

    /// The kernel half applies all that is asked of ports and destinations: what it lets pass needs not be looked at again.
    pub fn in_kernel_wholly(&self) -> bool {
        let networks = self.destinations.iter().flat_map(Destination::networks).count();
        let names = self.destinations.len() > networks;
        self.ports.len() <= FILTER_VALUES && networks <= FILTER_VALUES && !names
    }

    /// True when the event is to be told.
    pub fn matches_change(&self, netns: u32) -> bool {
        self.netns.is_none_or(|wanted| wanted == netns) && any(&self.actions, |wanted| wanted == "ruleset-changed")
    }

    /// Whether an event is told.
    pub fn matches(&self, event: &Event) -> bool {
        let egress = &event.egress;
        let process = event.process.as_ref();
        let name = process.map(|process| process.name.as_str());
        // A program that was replaced while it runs has a mark behind its path.
        let executable = process.and_then(|process| process.executable.as_deref());
        let executable = executable.map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
        // Ports and destinations of what was counted together matched before it was (`in_kernel_wholly`).
        let coarse = egress.coarse == Some(true);
        any(&self.pids, |pid| egress.ancestry.iter().any(|ancestor| ancestor.pid == *pid))
            && any(&self.comms, |wanted| name == Some(wanted))
            && any(&self.executables, |wanted| executable == Some(wanted))
            && any(&self.users, |wanted| event.user.as_ref().is_some_and(|user| user.id == *wanted))
            && any(&self.units, |wanted| {
                egress.unit.as_ref().is_some_and(|unit| {
                    unit == wanted || unit.strip_suffix(".service").is_some_and(|stem| stem == wanted)
                })
            })
            && any(&self.containers, |wanted| {
                event.container.as_ref().is_some_and(|container| container.id.starts_with(wanted.as_str()))
            })
            && (coarse
                || any(&self.destinations, |wanted| {
                    event.destination.as_ref().is_some_and(|destination| {
                        wanted.contains(destination.ip)
                            || destination.nat.as_ref().is_some_and(|nat| wanted.contains(nat.ip))
                    })
                }))
            && (coarse
                || any(&self.ports, |wanted| {
                    event.destination.as_ref().is_some_and(|destination| destination.port == Some(*wanted))
                }))
            && any(&self.transports, |wanted| event.network.transport.as_ref() == Some(wanted))
            && any(&self.causes, |wanted| egress.cause == Some(wanted))
            && any(&self.actions, |wanted| action_name(event.event.action) == wanted)
            && self.netns.is_none_or(|wanted| egress.netns == Some(wanted) || egress.origin_netns == Some(wanted))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                write!(formatter, "{}", network.addr())
            }
            Self::Network(network) => write!(formatter, "{network}"),
            Self::Name { name, .. } => write!(formatter, "{name}"),
        }
    }
}

impl Destination {
    fn networks(&self) -> Vec<IpNet> {
        match self {
            Self::Network(network) => vec![*network],
            Self::Name { addresses, .. } => addresses.iter().copied().map(IpNet::from).collect(),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Network(network) => network.contains(&address),
            Self::Name { addresses, .. } => addresses.contains(&address),
        }
    }
}

fn words(network: IpNet) -> FilterNetwork {
    let words = |address: IpAddr| {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => bytes = v6.octets(),
        }
        std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte])))
    };
    let v6 = u32::from(network.addr().is_ipv6());
    FilterNetwork { v6, address: words(network.network()), mask: words(network.netmask()) }
}

fn any<T>(wanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(matches)
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::EgressBlocked => "egress-blocked",
        Action::EgressAllowed => "egress-allowed",
        Action::EgressUnreachable => "egress-unreachable",
        Action::EgressUnknown => "egress-unknown",
        Action::EgressDropped => "egress-dropped",
        Action::EgressHanging => "egress-hanging",
        Action::EgressRule => "egress-rule",
        Action::EgressFix => "egress-fix",
        Action::EgressRestored => "egress-restored",
        Action::RulesetChanged => "ruleset-changed",
        Action::Summary => "summary",
    }
}

/// A transport by name or protocol number, as the event names it.
pub fn parse_transport(value: &str) -> Result<String, FilterError> {
    const NAMES: [&str; 5] = ["tcp", "udp", "icmp", "ipv6-icmp", "sctp"];
    if let Ok(number) = value.parse::<u8>() {
        return Ok(transport_name(number));
    }
    let lower = value.to_ascii_lowercase();
    let name = if lower == "icmpv6" { "ipv6-icmp" } else { &lower };
    known("protocol", name, &NAMES, "or a protocol number")
}

/// A cause that this version can report.
pub fn parse_cause(value: &str) -> Result<String, FilterError> {
    known(
        "cause",
        value,
        &["netfilter", "conntrack", "nat", "nfqueue", "netfilter-bpf", "lsm", "cgroup", "tc", "queue"],
        "",
    )
}

/// An action that this version can report.
pub fn parse_action(value: &str) -> Result<String, FilterError> {
    known(
        "action",
        value,
        &["egress-blocked", "egress-dropped", "egress-hanging", "egress-rule", "egress-fix", "ruleset-changed"],
        "",
    )
}

fn known(kind: &'static str, value: &str, names: &[&str], more: &str) -> Result<String, FilterError> {
    if names.contains(&value) {
        return Ok(value.to_owned());
    }
    let known = format!("{} {more}", names.join(", ")).trim_end().to_owned();
    Err(FilterError { kind, value: value.to_owned(), known })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(parse_transport("TCP").as_deref(), Ok("tcp"));
        assert_eq!(parse_transport("58").as_deref(), Ok("ipv6-icmp"));
        assert_eq!(parse_transport("47").as_deref(), Ok("47"));
        assert_eq!(
            parse_transport("tpc").unwrap_err().to_string(),
            "unknown protocol `tpc`; known: tcp, udp, icmp, ipv6-icmp, sctp or a protocol number"
        );
        assert!(parse_cause("weather").is_err());
    }

    #[test]
    fn the_kernels_part() {
        assert_eq!(Filter::default().in_kernel(), KernelFilter::default());
        let networks = ["203.0.113.0/24".parse().unwrap(), "2001:db8::/33".parse().unwrap()];
        let filter = Filter {
            ports: vec![443, 53],
            transports: vec!["udp".into(), "47".into()],
            destinations: networks.into_iter().map(Destination::Network).collect(),
            pids: vec![1, 7],
            ..Filter::default()
        };
        let kernel = filter.in_kernel();
        assert_eq!((kernel.active, kernel.ports, &kernel.port[..2]), (1, 2, &[443, 53][..]));
        assert_eq!((kernel.protocols, &kernel.protocol[..2]), (2, &[17, 47][..]));
        assert_eq!((kernel.pids, &kernel.pid[..2]), (2, &[1, 7][..]));
        let word = u32::from_ne_bytes;
        assert_eq!((kernel.network[0].v6, kernel.network[0].address[0]), (0, word([203, 0, 113, 0])));
        assert_eq!(kernel.network[0].mask, [word([255, 255, 255, 0]), 0, 0, 0]);
        assert_eq!(kernel.network[1].mask, [u32::MAX, word([0x80, 0, 0, 0]), 0, 0]);
        let follows = Filter { follow: Some(9), ..Filter::default() }.in_kernel();
        assert_eq!((follows.active, follows.pids, follows.pid[0], follows.follow), (0, 1, 9, 1));
        let many = Filter { ports: (1..=9).collect(), ..Filter::default() };
        assert_eq!(many.in_kernel(), KernelFilter::default(), "left to user space");
    }

    #[test]
    fn what_is_asked_for_in_words() {
        let filter = Filter {
            ports: vec![443, 53],
            destinations: vec![
                Destination::Network("203.0.113.10/32".parse().unwrap()),
                Destination::Name { name: "example.com".into(), addresses: Vec::new() },
            ],
            netns: Some(1),
            ..Filter::default()
        };
        assert_eq!(filter.words(), ["to 203.0.113.10 or example.com", "port 443 or 53"]);
        assert!(Filter::default().words().is_empty());
    }

    #[test]
    fn destinations_match_by_network_or_by_name() {
        let network = Destination::Network("203.0.113.0/24".parse().unwrap());
        assert!(network.contains("203.0.113.10".parse().unwrap()));
        assert!(!network.contains("2001:db8::1".parse().unwrap()));
        let name = Destination::Name { name: "x".into(), addresses: vec!["2001:db8::1".parse().unwrap()] };
        assert!(name.contains("2001:db8::1".parse().unwrap()));
    }
}

//! Which lines are reported. One value of a kind is enough; every kind that was given must match.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use observer_ebpf::abi::{FILTER_VALUES, FilterNetwork, KernelFilter};

use super::{
    attempt::Attempt,
    dropped::{transport_name, transport_number},
    line::{Kind, Line},
    names::{Action, Cause},
    sender::Sender,
};

/// A filter that cannot be understood, with what would be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} `{value}`; known: {known}")]
pub struct FilterError {
    kind: &'static str,
    value: String,
    known: String,
}

impl FilterError {
    /// What was typed.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Values that are known.
    pub fn known(&self) -> impl Iterator<Item = &str> {
        self.known.split([',', ' ']).filter(|word| !word.is_empty())
    }
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The process or one of its parents.
    pub pids: Vec<u32>,
    /// Process name.
    pub comms: Vec<String>,
    /// Path of the executable.
    pub executables: Vec<String>,
    /// User id.
    pub users: Vec<u32>,
    /// systemd unit, `.service` may be left out.
    pub units: Vec<String>,
    /// Container id or its beginning.
    pub containers: Vec<String>,
    /// Destination.
    pub destinations: Vec<Destination>,
    /// Destination port.
    pub ports: Vec<u16>,
    /// IP protocol number.
    pub protocols: Vec<u8>,
    /// Cause.
    pub causes: Vec<Cause>,
    /// Action.
    pub actions: Vec<Action>,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// Its name, where it was typed.
    pub netns_name: Option<String>,
    /// A process whose tree the eBPF side keeps track of; it leaves out nothing.
    pub follow: Option<u32>,
}

impl Filter {
    /// The part of it that the eBPF side can apply. Kinds with too many values are left out: they are applied here only.
    pub fn in_kernel(&self) -> KernelFilter {
        let mut filter = KernelFilter { netns: self.netns.unwrap_or(0), ..KernelFilter::default() };
        if self.ports.len() <= FILTER_VALUES {
            filter.ports = self.ports.len() as u32;
            filter.port.iter_mut().zip(&self.ports).for_each(|(into, port)| *into = u32::from(*port));
        }
        if self.protocols.len() <= FILTER_VALUES {
            filter.protocols = self.protocols.len() as u32;
            filter.protocol.iter_mut().zip(&self.protocols).for_each(|(into, number)| *into = u32::from(*number));
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
            protocols,
            causes,
            actions,
            netns: _,
            netns_name: _,
            follow: _,
        } = self;
        let numbers = |all: &[u32]| all.iter().map(ToString::to_string).collect();
        let kinds: [(&str, Vec<String>); 11] = [
            ("process tree", numbers(pids)),
            ("name", comms.clone()),
            ("executable", executables.clone()),
            ("user", numbers(users)),
            ("unit", units.clone()),
            ("container", containers.clone()),
            ("to", destinations.iter().map(ToString::to_string).collect()),
            ("port", ports.iter().map(ToString::to_string).collect()),
            ("protocol", protocols.iter().map(|number| transport_name(*number)).collect()),
            ("cause", causes.iter().map(|cause| cause.name().to_owned()).collect()),
            ("action", actions.iter().map(|action| action.name().to_owned()).collect()),
        ];
        kinds
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(kind, values)| format!("{kind} {}", values.join(" or ")))
            .collect()
    }

    /// The eBPF side applies all that is asked of ports and destinations: what it lets pass needs not be looked at again.
    pub fn in_kernel_wholly(&self) -> bool {
        let networks = self.destinations.iter().flat_map(Destination::networks).count();
        let names = self.destinations.len() > networks;
        self.ports.len() <= FILTER_VALUES && networks <= FILTER_VALUES && !names
    }

    /// Whether a change of a namespace's rules is reported.
    pub fn matches_change(&self, netns: u32) -> bool {
        self.netns.is_none_or(|wanted| wanted == netns)
            && any(&self.actions, |wanted| *wanted == Action::RulesetChanged)
    }

    /// Whether a line is reported. A change of rules matches by who made it, and by its namespace; what is about nobody matches only where
    /// nothing but actions is asked for.
    pub fn matches(&self, line: &Line) -> bool {
        let is_about = match (&line.kind, line.attempt()) {
            (_, Some(attempt)) => self.concerns(attempt) && any(&self.causes, |wanted| attempt.cause == Some(*wanted)),
            (Kind::RulesetChanged(change), _) => {
                let of_senders = Self {
                    destinations: Vec::new(),
                    ports: Vec::new(),
                    protocols: Vec::new(),
                    causes: Vec::new(),
                    ..self.clone()
                };
                of_senders == *self
                    && self.is_by(&change.sender)
                    && self.netns.is_none_or(|wanted| wanted == change.netns)
            }
            _ => *self == Self { actions: self.actions.clone(), follow: self.follow, ..Self::default() },
        };
        is_about && any(&self.actions, |wanted| line.action() == *wanted)
    }

    /// The same as far as it is known before anything is looked up: what will be reported of it later may match where this is so.
    pub fn concerns(&self, attempt: &Attempt) -> bool {
        // Ports and destinations of what was counted together matched before it was (`in_kernel_wholly`).
        let coarse = attempt.coarse;
        self.is_by(&attempt.sender)
            && (coarse
                || any(&self.destinations, |wanted| {
                    attempt
                        .destination
                        .is_some_and(|to| wanted.contains(to.ip) || to.nat.is_some_and(|(ip, _)| wanted.contains(ip)))
                }))
            && (coarse || any(&self.ports, |wanted| attempt.destination.is_some_and(|to| to.port == Some(*wanted))))
            && any(&self.protocols, |wanted| attempt.protocol == Some(*wanted))
            && self.netns.is_none_or(|wanted| attempt.netns == Some(wanted) || attempt.origin_netns == Some(wanted))
    }

    /// Whether it is a sender that is asked for.
    fn is_by(&self, sender: &Sender) -> bool {
        let process = sender.process.as_ref();
        // Of whoever changed rules and is gone only the ancestry is known.
        let first = sender.ancestry.first().map(|ancestor| ancestor.name.as_str());
        let name = process.map(|process| process.name.as_str()).or(first);
        // A program that was replaced while it runs has a mark behind its path.
        let executable = process.and_then(|process| process.executable.as_deref());
        let executable = executable.map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
        any(&self.pids, |pid| sender.descends_from(*pid))
            && any(&self.comms, |wanted| name == Some(wanted))
            && any(&self.executables, |wanted| executable == Some(wanted))
            && any(&self.users, |wanted| sender.user.as_ref().is_some_and(|user| user.id == *wanted))
            && any(&self.units, |wanted| {
                sender.unit.as_ref().is_some_and(|unit| {
                    unit == wanted || unit.strip_suffix(".service").is_some_and(|stem| stem == wanted)
                })
            })
            && any(&self.containers, |wanted| {
                sender.container.as_ref().is_some_and(|container| container.id.starts_with(wanted.as_str()))
            })
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

/// A protocol by its name or number.
pub fn parse_protocol(value: &str) -> Result<u8, FilterError> {
    const NAMES: [&str; 5] = ["tcp", "udp", "icmp", "ipv6-icmp", "sctp"];
    if let Ok(number) = value.parse::<u8>() {
        return Ok(number);
    }
    let lower = value.to_ascii_lowercase();
    let name = if lower == "icmpv6" { "ipv6-icmp" } else { &lower };
    NAMES
        .contains(&name)
        .then(|| transport_number(name))
        .flatten()
        .ok_or_else(|| unknown("protocol", value, &NAMES, "or a protocol number"))
}

/// A cause that lines of a stream can have.
pub fn parse_cause(value: &str) -> Result<Cause, FilterError> {
    let known = Cause::IN_A_STREAM;
    let found = known.into_iter().find(|cause| cause.name() == value);
    found.ok_or_else(|| unknown("cause", value, &known.map(Cause::name), ""))
}

/// An action that lines of a stream can have.
pub fn parse_action(value: &str) -> Result<Action, FilterError> {
    let known = Action::IN_A_STREAM;
    let found = known.into_iter().find(|action| action.name() == value);
    found.ok_or_else(|| unknown("action", value, &known.map(Action::name), ""))
}

fn unknown(kind: &'static str, value: &str, names: &[&str], more: &str) -> FilterError {
    let known = format!("{} {more}", names.join(", ")).trim_end().to_owned();
    FilterError { kind, value: value.to_owned(), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(parse_protocol("TCP"), Ok(6));
        assert_eq!(parse_protocol("icmpv6"), Ok(58));
        assert_eq!(parse_protocol("47"), Ok(47));
        assert_eq!(
            parse_protocol("tpc").unwrap_err().to_string(),
            "unknown protocol `tpc`; known: tcp, udp, icmp, ipv6-icmp, sctp or a protocol number"
        );
        assert_eq!(parse_cause("netfilter-bpf"), Ok(Cause::NetfilterBpf));
        assert!(parse_cause("weather").is_err() && parse_cause("route").is_err());
        assert_eq!(parse_action("egress-fix"), Ok(Action::EgressFix));
        assert!(parse_action("egress-allowed").is_err(), "only `check` says that");
    }

    #[test]
    fn a_change_of_rules_matches_by_its_namespace_and_who_made_it() {
        let ancestor = |pid, name: &str| crate::model::Ancestor { pid, name: name.to_owned() };
        let sender = Sender { ancestry: vec![ancestor(12, "nft"), ancestor(11, "bash")], ..Sender::default() };
        let ruleset = crate::model::ChangedRuleset {
            backend: crate::model::Backend::Nft,
            generation: None,
            changed_by: None,
            changes: 1,
            difference: None,
        };
        let share = crate::model::Share::Host;
        let change =
            crate::model::RulesetChange { netns: 7, entering: None, is_elsewhere: true, ruleset, sender, share };
        let line = |kind| Line { id: None, sequence: None, at: jiff::Timestamp::UNIX_EPOCH, kind };
        let (change, stopped) = (line(Kind::RulesetChanged(Box::new(change))), line(Kind::Stopped));
        let every = Filter::default;
        for filter in [
            every(),
            Filter { actions: vec![Action::RulesetChanged], ..every() },
            Filter { netns: Some(7), ..every() },
            Filter { comms: vec!["nft".to_owned()], ..every() },
            Filter { pids: vec![11], ..every() },
        ] {
            assert!(filter.matches(&change), "{filter:?}");
        }
        for filter in [
            Filter { actions: vec![Action::EgressBlocked], ..every() },
            Filter { netns: Some(8), ..every() },
            Filter { comms: vec!["bash".to_owned()], ..every() },
            Filter { pids: vec![13], ..every() },
            Filter { users: vec![0], ..every() },
            Filter { ports: vec![443], ..every() },
            Filter { causes: vec![Cause::Netfilter], ..every() },
        ] {
            assert!(!filter.matches(&change) && !filter.matches(&stopped), "{filter:?}");
        }
        assert!(Filter { actions: vec![Action::ObserverStopped], ..every() }.matches(&stopped));
    }

    #[test]
    fn the_kernels_part() {
        assert_eq!(Filter::default().in_kernel(), KernelFilter::default());
        let networks = ["203.0.113.0/24".parse().unwrap(), "2001:db8::/33".parse().unwrap()];
        let filter = Filter {
            ports: vec![443, 53],
            protocols: vec![17, 47],
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

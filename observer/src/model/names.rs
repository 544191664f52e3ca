//! The names that lines and filters share, each said once.

use observer_ebpf::abi;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};

/// `event.action`: what a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Action {
    /// A decision on this host stopped an outbound packet.
    EgressBlocked,
    /// Nothing on this host stops it (`check`).
    EgressAllowed,
    /// There is no way there, by nobody's decision (`check`).
    EgressUnreachable,
    /// It cannot be reported (`check`).
    EgressUnknown,
    /// An outbound packet was lost on this host by nobody's decision: a full queue.
    EgressDropped,
    /// A connection that waited for its first answer when observer started.
    EgressHanging,
    /// The rule of something that was reported before is known now.
    EgressRule,
    /// What would let something through that was reported before is known now.
    EgressFix,
    /// What became of something that was reported before: its connection was given up.
    EgressOutcome,
    /// What was blocked works again.
    EgressRestored,
    /// Firewall rules were changed.
    RulesetChanged,
    /// Recording began.
    ObserverStarted,
    /// Recording was ended.
    ObserverStopped,
    /// The account line.
    Summary,
}

impl Action {
    /// Those that lines of a stream can have, and that can be asked for.
    pub const IN_A_STREAM: [Self; 8] = [
        Self::EgressBlocked,
        Self::EgressDropped,
        Self::EgressHanging,
        Self::EgressRule,
        Self::EgressFix,
        Self::EgressOutcome,
        Self::EgressRestored,
        Self::RulesetChanged,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// `egress.cause`: which kind of decision stopped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Cause {
    /// A rule or policy of netfilter, or a function on one of its hooks.
    Netfilter,
    /// Connection tracking.
    Conntrack,
    /// Address translation.
    Nat,
    /// A program that a rule asks.
    Nfqueue,
    /// A BPF program on a netfilter hook.
    NetfilterBpf,
    /// A security module.
    Lsm,
    /// A BPF program of a cgroup.
    Cgroup,
    /// Traffic control.
    Tc,
    /// A full queue: nobody's decision.
    Queue,
    /// A route that forbids it (`check`).
    Route,
}

impl Cause {
    /// Those that lines of a stream can have, and that can be asked for.
    pub const IN_A_STREAM: [Self; 9] = [
        Self::Netfilter,
        Self::Conntrack,
        Self::Nat,
        Self::Nfqueue,
        Self::NetfilterBpf,
        Self::Lsm,
        Self::Cgroup,
        Self::Tc,
        Self::Queue,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl From<abi::Cause> for Cause {
    fn from(cause: abi::Cause) -> Self {
        match cause {
            abi::Cause::Netfilter => Self::Netfilter,
            abi::Cause::Cgroup => Self::Cgroup,
            abi::Cause::Tc => Self::Tc,
            abi::Cause::Queue => Self::Queue,
            abi::Cause::Nfqueue => Self::Nfqueue,
            // It is reported where a rule is behind it.
            abi::Cause::Neighbour => Self::Netfilter,
        }
    }
}

/// `egress.hook`: where on its way a packet died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Hook {
    /// Sent by a process here.
    Output,
    /// About to leave.
    Postrouting,
    /// At the interface by which it leaves, or at its cgroup.
    Egress,
    /// Forwarded.
    Forward,
    /// Came in, not routed yet.
    Prerouting,
    /// At the interface by which it came in.
    Ingress,
    /// Came in, for this host: an answer.
    Input,
}

impl Hook {
    /// As it is written.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Only packets that are forwarded get there.
    pub fn is_of_forwarded(self) -> bool {
        matches!(self, Self::Forward | Self::Prerouting | Self::Ingress)
    }
}

impl From<abi::Hook> for Hook {
    fn from(hook: abi::Hook) -> Self {
        match hook {
            abi::Hook::Output => Self::Output,
            abi::Hook::Postrouting => Self::Postrouting,
            abi::Hook::Egress => Self::Egress,
            abi::Hook::Forward => Self::Forward,
            abi::Hook::Prerouting => Self::Prerouting,
            abi::Hook::Ingress => Self::Ingress,
            abi::Hook::Input => Self::Input,
        }
    }
}

/// `network.type`: what kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP.
    Arp,
}

impl Family {
    /// As it is written.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_stream_has_can_be_asked_for() {
        let others = [
            "egress-allowed",
            "egress-unreachable",
            "egress-unknown",
            "observer-started",
            "observer-stopped",
            "summary",
        ];
        let asked = Action::IN_A_STREAM.map(Action::name);
        let missing: Vec<_> = Action::VARIANTS.iter().filter(|name| !asked.contains(name)).collect();
        assert_eq!(missing, others.iter().collect::<Vec<_>>(), "they are `check`'s, and what no filter concerns");
        let asked = Cause::IN_A_STREAM.map(Cause::name);
        let missing: Vec<_> = Cause::VARIANTS.iter().filter(|name| !asked.contains(name)).collect();
        assert_eq!(missing, [&"route"]);
    }
}

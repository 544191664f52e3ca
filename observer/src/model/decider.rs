//! What decided on a netfilter hook where no rule did, or none that is known: a function of the kernel, a BPF program, or a
//! program that is asked through a queue.

use serde::{Deserialize, Serialize};

use super::{
    names::Cause,
    rule::{Backend, NamedRule},
};

/// `egress.decided_by`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Decider {
    /// Function of the kernel on the hook.
    pub function: Option<String>,
    /// Module that it is of, where it is not the kernel's own.
    pub module: Option<String>,
    /// The BPF netfilter program that the function ran.
    pub program: Option<BpfProgram>,
    /// No program took it from its queue.
    pub untaken: Option<bool>,
    /// The process in whose call it was freed on its way back from a queue.
    pub process: Option<Actor>,
    /// How full the table of connections was a moment later.
    pub connections: Option<Connections>,
}

/// A BPF program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct BpfProgram {
    /// Its id, as bpftool shows it.
    pub id: u64,
    /// Its name; absent where it is gone or has none.
    pub name: Option<String>,
}

/// A process that did something, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Actor {
    /// Its id.
    pub pid: u32,
    /// Its name; absent where it is gone.
    pub name: Option<String>,
}

/// The table of connections of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Connections {
    /// Entries in it.
    pub entries: u64,
    /// Entries that it may have.
    pub limit: u64,
    /// How many could not be entered, since the namespace was made.
    pub insert_failed: Option<u64>,
}

impl Connections {
    /// Nothing more goes in.
    pub fn is_full(self) -> bool {
        self.limit != 0 && self.entries >= self.limit
    }
}

/// Who dropped a packet: a rule, something else, or something else of which a rule is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The rule, the policy, or the chain.
    pub rule: Option<NamedRule>,
    /// What is no rule.
    pub decider: Option<Decider>,
}

impl Decision {
    /// Whose rule or policy it is, whether it is known which or not; `None` for what is no rule.
    pub fn backend(&self) -> Option<Backend> {
        match (&self.rule, self.decider.as_ref().and_then(Decider::purpose)) {
            (_, Some(Purpose::Nftables)) => Some(Backend::Nft),
            (_, Some(Purpose::Xtables)) => Some(Backend::IptablesLegacy),
            (_, Some(_)) => None,
            (rule, None) => rule.as_ref().map(|rule| rule.backend),
        }
    }
}

/// What a function on a hook is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Walks a base chain of nftables.
    Nftables,
    /// Walks a table of iptables-legacy.
    Xtables,
    /// Runs a BPF program.
    Program,
    /// Looks up a packet's connection, or begins one.
    Tracking,
    /// Enters a connection into the table.
    Confirming,
    /// Puts fragments together.
    Defragmentation,
    /// Translates addresses.
    Translation,
    /// Balances load (IPVS).
    Ipvs,
    /// A security module.
    Security,
    /// Something else.
    Other,
}

impl Purpose {
    /// By the function's name in the kernel's source.
    pub fn of(function: &str) -> Self {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| function.starts_with(prefix));
        if begins(&["nft_do_chain", "nf_route_table_"]) {
            Self::Nftables
        } else if begins(&["ipt_do_table", "ip6t_do_table", "iptable_", "ip6table_"]) {
            Self::Xtables
        } else if begins(&["nf_hook_run_bpf"]) {
            Self::Program
        } else if begins(&["ipv4_conntrack_defrag", "ipv6_defrag"]) {
            Self::Defragmentation
        } else if begins(&["ipv4_conntrack_", "ipv6_conntrack_", "nf_conntrack_"]) {
            Self::Tracking
        } else if begins(&["nf_confirm", "ipv4_confirm", "ipv6_confirm"]) {
            Self::Confirming
        } else if begins(&["nf_nat_"]) {
            Self::Translation
        } else if begins(&["ip_vs_"]) {
            Self::Ipvs
        } else if begins(&["selinux_", "smack_"]) {
            Self::Security
        } else {
            Self::Other
        }
    }

    /// Which cause a packet has that it drops.
    pub fn cause(self) -> Cause {
        match self {
            Self::Program => Cause::NetfilterBpf,
            Self::Tracking | Self::Confirming => Cause::Conntrack,
            Self::Translation => Cause::Nat,
            Self::Security => Cause::Lsm,
            Self::Nftables | Self::Xtables | Self::Defragmentation | Self::Ipvs | Self::Other => Cause::Netfilter,
        }
    }
}

impl Decider {
    /// What it is there for; `None` for a queue.
    pub fn purpose(&self) -> Option<Purpose> {
        self.function.as_deref().map(Purpose::of)
    }

    /// It never tells the sender.
    pub fn only_drops(&self) -> bool {
        !matches!(self.purpose(), Some(Purpose::Nftables | Purpose::Xtables | Purpose::Other))
    }

    /// What it did, in a sentence.
    pub fn sentence(&self) -> String {
        let Some(function) = &self.function else {
            return match &self.process {
                Some(Actor { pid, name: Some(name) }) => {
                    format!(
                        "it was dropped on its way back from a queue (NFQUEUE), in a call of {name} (pid {pid}): the program that \
                         listens there refused it, or what comes next on the hook did"
                    )
                }
                Some(Actor { pid, name: None }) => {
                    format!(
                        "it was dropped on its way back from a queue (NFQUEUE), in a call of process {pid}: the program that \
                         listens there refused it, or what comes next on the hook did"
                    )
                }
                None => "a rule gives such packets to a program (NFQUEUE), and none took it: nobody listens to that queue, or \
                         it is full"
                    .to_owned(),
            };
        };
        match Purpose::of(function) {
            Purpose::Nftables => "a rule or the policy of an nftables chain dropped or rejected it".to_owned(),
            Purpose::Xtables => "a rule or policy of iptables-legacy dropped or rejected it".to_owned(),
            Purpose::Program => match &self.program {
                Some(BpfProgram { id, name: Some(name) }) => {
                    format!("BPF netfilter program {name} (id {id}) dropped it")
                }
                Some(BpfProgram { id, name: None }) => format!("BPF netfilter program with id {id} dropped it"),
                None => "a BPF netfilter program dropped it".to_owned(),
            },
            Purpose::Tracking => match self.connections {
                Some(table) if table.is_full() => format!(
                    "connection tracking dropped it: its table is full ({} of {} entries, net.netfilter.nf_conntrack_max)",
                    table.entries, table.limit
                ),
                _ => format!("connection tracking ({function}) dropped it"),
            },
            Purpose::Confirming => match self.connections {
                // The counter is the namespace's, and not this packet's alone.
                Some(Connections { insert_failed: Some(failed @ 1..), .. }) => format!(
                    "connection tracking ({function}) dropped it where its connection was to be entered into the table: \
                     {failed} could not be so far in this namespace (insert_failed), most often because another one has the \
                     same addresses and ports: where addresses are translated, no port is left"
                ),
                _ => format!("connection tracking ({function}) dropped it"),
            },
            Purpose::Defragmentation => format!(
                "connection tracking, which puts fragments together ({function}), did not take this one and dropped it"
            ),
            Purpose::Translation => {
                format!("address translation ({function}) dropped it")
            }
            Purpose::Ipvs => format!(
                "the load balancer IPVS ({function}) dropped it: `ipvsadm -Ln` shows its services and who is behind them"
            ),
            Purpose::Security if function.starts_with("selinux_") => {
                format!(
                    "SELinux ({function}) dropped it: the audit log may have the denial (`ausearch -m avc -ts recent`)"
                )
            }
            Purpose::Security => format!("a security module ({function}) dropped it"),
            Purpose::Other => format!("function {function} on a netfilter hook dropped it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_purposes() {
        let cases = [
            ("ipv4_conntrack_local", Purpose::Tracking),
            ("ipv4_conntrack_defrag", Purpose::Defragmentation),
            ("ipv6_defrag", Purpose::Defragmentation),
            ("nf_confirm", Purpose::Confirming),
            ("ipv4_confirm", Purpose::Confirming),
            ("nf_nat_ipv4_out", Purpose::Translation),
            ("ip_vs_out_hook", Purpose::Ipvs),
            ("selinux_ip_postroute", Purpose::Security),
            ("ipt_do_table", Purpose::Xtables),
            ("iptable_filter_hook", Purpose::Xtables),
            ("nft_do_chain_inet", Purpose::Nftables),
            ("nf_route_table_hook4", Purpose::Nftables),
            ("ipv4_synproxy_hook", Purpose::Other),
        ];
        for (function, purpose) in cases {
            assert_eq!(Purpose::of(function), purpose, "{function}");
        }
    }

    #[test]
    fn a_full_table_is_said_to_be_full() {
        let tracking = |entries| Decider {
            function: Some("ipv4_conntrack_local".to_owned()),
            connections: Some(Connections { entries, limit: 1, insert_failed: None }),
            ..Decider::default()
        };
        assert!(tracking(1).sentence().contains("full (1 of 1 entries"));
        assert!(!tracking(0).sentence().contains("full"));
    }
}

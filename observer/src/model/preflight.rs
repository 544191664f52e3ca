//! Whether destinations would be let out, asked before anything is sent.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use serde::{Deserialize, Serialize};

use super::{fix::Fix, rule::NamedRule};

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// `tcp` or `udp`.
    pub transport: String,
    /// Destination port.
    pub port: u16,
    /// Its addresses; where it has none that are known, one of each family stands for any.
    pub addresses: Vec<IpAddr>,
    /// It is known by its name, and the addresses may be others tomorrow.
    pub is_by_name: bool,
}

/// A change of rules that is only proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A command of a front end's, in words.
    Command(Vec<String>),
    /// A configuration in place of what is in force.
    Ruleset(String),
}

/// A unit that does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// What systemd will not let it reach once it runs.
    pub lists: AddressLists,
    /// Path of its slice.
    pub slice: String,
    /// Settings by which it may be stopped then, and that are not known to do what.
    pub unknown: Vec<String>,
}

/// Addresses that systemd lets a unit reach, or not (`IPAddressAllow=`, `IPAddressDeny=`): of one that does not run nobody can be
/// asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressLists {
    /// These, whatever the other list says.
    pub allow: Vec<IpNet>,
    /// Not these.
    pub deny: Vec<IpNet>,
}

impl AddressLists {
    /// An address is not to be reached.
    pub fn deny(&self, address: IpAddr) -> bool {
        let is_in = |list: &[IpNet]| list.iter().any(|net| net.contains(&address));
        !is_in(&self.allow) && is_in(&self.deny)
    }
}

/// Where BPF programs of a cgroup are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Programs {
    /// When a socket is made.
    Create,
    /// When it is connected.
    Connect,
    /// When a datagram is sent by one that is not.
    Send,
    /// When a packet is on its way out.
    Egress,
}

impl Programs {
    /// As a line names it.
    pub fn hook(self) -> &'static str {
        match self {
            Self::Create => "socket",
            Self::Connect => "connect",
            Self::Send => "sendmsg",
            Self::Egress => "egress",
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Inode number of the network namespace; without one, the host's own.
    pub netns: Option<u32>,
    /// User and group that would send.
    pub user: (u32, u32),
    /// The user's other groups.
    pub groups: Vec<u32>,
    /// Path of the sender's cgroup in the unified hierarchy; without one, observer's own.
    pub cgroup: Option<String>,
    /// It is a unit's, which does not run: nobody can be asked as it.
    pub later: Option<Later>,
    /// Where to.
    pub wishes: Vec<Wish>,
    /// What is tried in the private copy first.
    pub after: Option<Change>,
    /// What lets through what is stopped is looked for.
    pub finds_fix: bool,
    /// So are other commands that do it: for less, for more, for an hour.
    pub finds_others: bool,
    /// What was not tried by then is not known: seconds.
    pub limit: u64,
}

/// A real connection that is to be begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Inode number of the network namespace; without one, the host's own.
    pub netns: Option<u32>,
    /// User and group that would send.
    pub user: (u32, u32),
    /// The user's other groups.
    pub groups: Vec<u32>,
    /// Path of the sender's cgroup; without one, observer's own.
    pub cgroup: Option<String>,
    /// It is TCP's, and not a socket for datagrams.
    pub is_tcp: bool,
    /// Where to.
    pub to: SocketAddr,
}

/// What becomes of a packet to one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Nothing here stops it: the conversation completes.
    Passes,
    /// Nothing here stops it, as far as was tried; what was not, in words.
    PassesBut(String),
    /// Nothing here stops it as long as the neighbour by which it leaves is known. A rule stops what asks for that: its place among
    /// those of the answer.
    PassesByKnown(usize, Option<String>),
    /// A rule does: its place among those of the answer.
    Stopped(usize),
    /// A route does: it is there to stop packets.
    NoRoute {
        /// A route says so, and not its absence.
        is_decided: bool,
        /// In words.
        why: String,
    },
    /// Programs of the sender's cgroup do.
    Denied {
        /// Where they are asked.
        programs: Programs,
        /// Which, in words.
        why: String,
        /// A rule that would stop it likewise: its place among those of the answer.
        rule: Option<usize>,
    },
    /// It cannot be reported, and why.
    Unknown(String),
}

impl Fate {
    /// Nothing here stops it, as far as was tried.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Passes | Self::PassesBut(_) | Self::PassesByKnown(..))
    }

    /// Something on this host decides that it does not leave.
    pub fn is_blocked(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Denied { .. } | Self::NoRoute { is_decided: true, .. })
    }
}

/// What a command would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// What becomes of each packet then, as in [`Preflighted::fates`].
    pub fates: Vec<Vec<Fate>>,
    /// Rules that it makes.
    pub added: Vec<String>,
    /// Rules that it takes away.
    pub removed: Vec<String>,
    /// What is to be known of it.
    pub note: Option<String>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tried {
    /// It would change this.
    Is(After),
    /// It does nothing but say this.
    Refused(String),
    /// It cannot be reported, and why.
    Unknown(String),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflighted {
    /// Rules that stop anything.
    pub rules: Vec<NamedRule>,
    /// For each wish what becomes of a packet to each of its addresses.
    pub fates: Vec<Vec<Fate>>,
    /// What the command would change.
    pub after: Option<Tried>,
    /// One for all that is stopped by rules.
    pub fix: Option<Fix>,
    /// Words that go before a command for the namespace that was asked about, where it is not observer's own.
    pub entering: Option<String>,
}

//! Everything that can be asked of the helper, and its answers. One request, one answer, as JSON in one datagram.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    firewall::{denies::Denies, inventory::Inventory},
    model::{
        Connect, ContainerName, Decision, Difference, Facts, Packet, Preflight, Preflighted, Remedy, Replay, Stopped,
        Wanted, WantedRule,
    },
    probe::{
        proof::{Prepared, Unproven},
        selftest::Sent,
        symbols::Functions,
    },
};

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Facts about a process.
    Facts {
        /// Process id.
        pid: u32,
        /// Only if it started then, in clock ticks since boot.
        start_ticks: Option<u64>,
    },
    /// Whether a process has a socket open.
    Holds {
        /// Process id.
        pid: u32,
        /// Inode number of the socket file.
        inode: u64,
    },
    /// Processes that have a socket open.
    Holders {
        /// Inode number of the socket file.
        inode: u64,
    },
    /// Path of a cgroup.
    CgroupPath {
        /// Its id.
        id: u64,
    },
    /// What a container is called.
    ContainerName {
        /// Its full id.
        id: String,
    },
    /// Whether an interface of a network namespace has an address.
    Owns {
        /// Its inode number.
        netns: u32,
        /// The address.
        address: IpAddr,
    },
    /// Network namespaces that have an address.
    Homes {
        /// The address.
        address: IpAddr,
        /// The namespace that forwards for them, which is left out.
        forwarder: u32,
    },
    /// Sockets that can have sent a packet.
    Sockets {
        /// Its addresses.
        wanted: Wanted,
        /// Inode number of the namespace that they are in.
        netns: u32,
    },
    /// Which firewalls decide in a network namespace.
    Firewalls {
        /// Its inode number; without one, the host's own.
        netns: Option<u32>,
    },
    /// What can stop what goes out, in the host's own network namespace.
    Denies,
    /// Send one packet into a drop, in a namespace that is made for it.
    SelfTest,
    /// The rule that dropped a packet, found in the ruleset; or what else did.
    Rule(WantedRule),
    /// Listen to changes of a network namespace's rules. Two descriptors come with the answer.
    Listen {
        /// Its inode number.
        netns: u32,
    },
    /// What is otherwise in the rules of a network namespace than when they were read last.
    Difference {
        /// Its inode number.
        netns: u32,
    },
    /// Where the kernel's functions are that the kernel half must know.
    Functions {
        /// How often its modules have changed: asked again, the answer is the same.
        changes: u64,
    },
    /// Begin a real connection, or make a socket for datagrams that is connected. It comes with the answer.
    Connect(Box<Connect>),
    /// Keep the map, whose descriptor comes with this, by which the kernel half tells network namespaces' cookies.
    NetnsCookies,
    /// Keep two programs, whose descriptors come with this, for [`Request::ArmVerdicts`].
    VerdictPrograms,
    /// Keep the map, whose descriptor comes with this, that names observer's own namespaces; and copy the rules of this network
    /// namespace already.
    OwnNamespaces {
        /// Its inode number.
        netns: Option<u32>,
    },
    /// Whether packets can be replayed here.
    ProveReplay,
    /// Send a packet through a copy of a network namespace's rules.
    Replay {
        /// Its inode number.
        netns: u32,
        /// The packet.
        packet: Packet,
        /// A copy that is being made is waited for a moment.
        waits: bool,
    },
    /// What would let a packet through: asked again until it is known.
    Fix(Box<Stopped>),
    /// Look whether destinations would be let out.
    Preflight(Box<Preflight>),
    /// What came of that: asked again until it is known.
    Preflighted,
    /// Keep a program, whose descriptor comes with this, for [`Request::ArmAnswers`].
    AnswerProgram,
    /// Attach it where datagrams come in, for so long from now on.
    ArmAnswers {
        /// How long.
        time: Duration,
    },
    /// Attach them to the functions that give verdicts, for so long from now on.
    ArmVerdicts {
        /// Not at all when zero.
        time: Duration,
        /// Only what a proof needs, and wait for that.
        is_proof: bool,
    },
    /// Make a namespace with rules that drop, for a proof.
    PrepareProof {
        /// As in [`Request::Functions`], which is asked next.
        changes: u64,
    },
    /// Send the proof's packets.
    SendProof,
    /// The proof's namespace is not needed any more.
    EndProof,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Facts`].
    Facts(Option<Box<Facts>>),
    /// To [`Request::Holds`].
    Holds(bool),
    /// To [`Request::Holders`].
    Holders(Vec<u32>),
    /// To [`Request::CgroupPath`].
    CgroupPath(Option<String>),
    /// To [`Request::ContainerName`].
    ContainerName(Option<ContainerName>),
    /// To [`Request::Owns`]; `None` when that cannot be read.
    Owns(Option<bool>),
    /// To [`Request::Homes`]: inode numbers.
    Homes(Vec<u32>),
    /// To [`Request::Sockets`]: inode numbers.
    Sockets(Vec<u64>),
    /// To [`Request::Firewalls`].
    Firewalls(Result<Inventory, String>),
    /// To [`Request::Denies`].
    Denies(Result<Denies, String>),
    /// To any: the answer is longer than a message can be.
    TooLong,
    /// To [`Request::SelfTest`]: what was sent, or why nothing could be.
    SelfTest(Result<Sent, String>),
    /// To [`Request::Rule`].
    Rule(Result<Option<Box<Decision>>, String>),
    /// To [`Request::Connect`]; with the socket, unless that failed: with what number of an error, if with any, and in words.
    Connect(Result<(), (Option<i32>, String)>),
    /// To [`Request::Listen`]; with the socket and a process that lives in the namespace, unless that failed.
    Listen(Result<(), String>),
    /// To [`Request::Difference`]; `None` when they were not read before, or not of late.
    Difference(Result<Option<Difference>, String>),
    /// To [`Request::Functions`].
    Functions(Functions),
    /// To [`Request::NetnsCookies`].
    NetnsCookies(Result<(), String>),
    /// To [`Request::VerdictPrograms`].
    VerdictPrograms(Result<(), String>),
    /// To [`Request::AnswerProgram`].
    AnswerProgram(Result<(), String>),
    /// To [`Request::ArmAnswers`].
    ArmAnswers(Result<(), String>),
    /// To [`Request::ArmVerdicts`].
    ArmVerdicts(Result<(), String>),
    /// To [`Request::OwnNamespaces`]: whether this kernel has at hand what a copy takes.
    OwnNamespaces(Result<bool, String>),
    /// To [`Request::ProveReplay`]: how long a small copy takes.
    ProveReplay(Result<Duration, String>),
    /// To [`Request::Replay`]; or why there is no copy.
    Replay(Result<Replay, String>),
    /// To [`Request::Fix`]; or why it cannot be looked for.
    Fix(Result<Remedy, String>),
    /// To [`Request::Preflight`].
    Preflight(Result<(), String>),
    /// To [`Request::Preflighted`]; `None` as long as it goes on.
    Preflighted(Result<Option<Box<Preflighted>>, String>),
    /// To [`Request::PrepareProof`].
    PrepareProof(Result<Prepared, Unproven>),
    /// To [`Request::SendProof`].
    SendProof(Result<(), String>),
    /// To [`Request::EndProof`].
    EndProof,
}

//! The event record, schema 1: field names follow the Elastic Common Schema, the rest lives under `egress`.
//!
//! A field that is not known is absent, never guessed and never an empty string.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    account::Account,
    background::Background,
    decider::Decider,
    fix::Fix,
    restored::Restored,
    rule::{EgressRule, RuleName, Verdict},
};

/// Version of the record.
pub const SCHEMA: u32 = 1;
/// Version of the Elastic Common Schema that the names follow.
pub const ECS_VERSION: &str = "8.17.0";

/// `ecs`
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ecs {
    /// Schema version.
    pub version: &'static str,
}

/// `agent`
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    /// Always `observer`.
    pub r#type: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// Stable for this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
}

/// `host.boot`
#[derive(Clone, Debug, Serialize)]
pub struct HostBoot {
    /// The kernel's boot id.
    pub id: String,
}

/// `host`
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// This boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<HostBoot>,
}

/// `event.kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something happened.
    Event,
    /// A number, such as the account.
    Metric,
    /// How things stand.
    State,
}

/// `event.action`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A decision on this host stopped an outbound packet.
    EgressBlocked,
    /// Nothing on this host stops it (`check`).
    EgressAllowed,
    /// There is no way there, by nobody's decision (`check`).
    EgressUnreachable,
    /// It cannot be told (`check`).
    EgressUnknown,
    /// An outbound packet was lost on this host by nobody's decision: a full queue.
    EgressDropped,
    /// A connection that waited for its first answer when observer started.
    EgressHanging,
    /// The rule of something that was told before is known now.
    EgressRule,
    /// What would let something through that was told before is known now.
    EgressFix,
    /// What was blocked works again.
    EgressRestored,
    /// Firewall rules were changed.
    RulesetChanged,
    /// The account line.
    Summary,
}

/// `event`
#[derive(Clone, Debug, Serialize)]
pub struct EventMeta {
    /// Kind.
    pub kind: Kind,
    /// Data set.
    pub dataset: &'static str,
    /// Always `observer`.
    pub module: &'static str,
    /// Unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// ECS categories.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub category: &'static [&'static str],
    /// ECS types.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub r#type: &'static [&'static str],
    /// What happened.
    pub action: Action,
    /// ECS outcome: an enforced block succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<&'static str>,
    /// Number in this stream, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// First packet of this line, or start of the coverage.
    pub start: Timestamp,
    /// Last packet of this line, or end of the coverage.
    pub end: Timestamp,
    /// The finding in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `network`
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// Transport, or the protocol number as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// `ipv4`, `ipv6`, `arp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// Always `egress`.
    pub direction: &'static str,
}

/// `source.nat`, `destination.nat`: the address in the packet, where it was translated.
#[derive(Clone, Debug, Serialize)]
pub struct Nat {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// `source`
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// After translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
}

/// `destination`
#[derive(Clone, Debug, Serialize)]
pub struct Destination {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// After translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
    /// Its name, as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// `process.parent`
#[derive(Clone, Debug, Serialize)]
pub struct Parent {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Name; absent when the parent is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `process`
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Survives pid reuse: made of boot, pid and start.
    pub entity_id: Uuid,
    /// Name.
    pub name: String,
    /// Path of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// Arguments, secrets masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// The same as one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// The thread that connected or created the socket, where it is not the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread: Option<Thread>,
    /// Its parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// `user`: the socket's credential; the process's where it differs.
#[derive(Clone, Debug, Serialize)]
pub struct User {
    /// User id in the initial namespace.
    pub id: String,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The process's effective user, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective: Option<Box<User>>,
}

/// `container`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<&'static str>,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `orchestrator.resource`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// Always `pod`.
    pub r#type: &'static str,
    /// Name of the pod.
    pub name: String,
}

/// `orchestrator`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Orchestrator {
    /// Always `kubernetes`.
    pub r#type: &'static str,
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub resource: Resource,
}

/// One of the parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Name.
    pub name: String,
}

/// `egress.owner`: how the process is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerKnown {
    /// It owns the socket.
    Socket,
    /// It was inside a call on that very socket.
    Syscall,
    /// It is the only one whose socket can have sent the packet, which another namespace forwarded.
    Flow,
    /// No process: the kernel sends on a socket of its own or without one (a tunnel, a network file system, a reset).
    Kernel,
}

/// `egress.owner_by`: what made the process the owner of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerBy {
    /// It connected the socket.
    Connect,
    /// It created the socket; who uses it may be another, but that is not proven.
    Create,
    /// It had the socket open when observer started.
    Open,
    /// It was seen sending on the socket.
    Send,
    /// It is the only process that has the socket open.
    Holder,
    /// Its socket's addresses and ports are the packet's.
    Address,
}

/// `process.thread`
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Thread {
    /// Thread id in the initial namespace.
    pub id: u32,
}

/// `egress.namespaces`: present where they are not the host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessNamespaces {
    /// Inode number of its pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its process id in there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_pid: Option<u32>,
    /// Inode number of its user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

/// `egress.outcome`: what the application sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Milliseconds that it has waited.
    pub waited_ms: u64,
    /// Milliseconds after which TCP gives up at the latest; the application may before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gives_up_ms: Option<u64>,
    /// Its last packet left the network stack of its namespace; absent before anything was sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<bool>,
}

/// `egress`
#[derive(Clone, Debug, Serialize)]
pub struct Egress {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Stable id of the cause that is told as one story.
    pub incident: Uuid,
    /// Which kind of decision; absent where that is not known (a connection that hangs).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// What the decision did with the packet; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What decided where no rule did, or none that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Decider>,
    /// The rule or policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<EgressRule>,
    /// What would let it through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
    /// That it works again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// The running kernel's own name for the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
    /// Where on the way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<&'static str>,
    /// Outgoing interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Packets that this line adds.
    pub count: u64,
    /// Bytes that this line adds.
    pub bytes: u64,
    /// No packet of its connection has left this host so far: every one was seen to be dropped. Absent where that is not proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nothing_left: Option<bool>,
    /// Of a connection that hangs: SYNs that were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// What became of it, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Which kind of background it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<Background>,
    /// How the process is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerKnown>,
    /// What made it the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_by: Option<OwnerBy>,
    /// The packet carries another one, which that process sent: `destination` is a tunnel's other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulated: Option<bool>,
    /// Packets to several destinations stand together: there was no room to count them one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coarse: Option<bool>,
    /// The script that the process's executable interprets, as it was executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Fields of `process` that are cut short.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub truncated: Vec<&'static str>,
    /// Namespaces of the process that are not the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<ProcessNamespaces>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// systemd slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
    /// The program that carries other processes' traffic in its own name: a rootless container's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// cgroup path in the unified hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Inode number of the network namespace whose rules decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Inode number of the network namespace that it came from, where another one forwarded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_netns: Option<u32>,
    /// Inode number of the socket file, with which `ss` and /proc/PID/fd name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_inode: Option<u64>,
    /// The process and its parents, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestry: Vec<Ancestor>,
}

/// One line of the stream.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When it happened.
    #[serde(rename = "@timestamp")]
    pub timestamp: Timestamp,
    /// `ecs`
    pub ecs: Ecs,
    /// `agent`
    pub agent: Agent,
    /// `host`
    pub host: Host,
    /// `event`
    pub event: EventMeta,
    /// `network`
    pub network: Network,
    /// `source`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// `destination`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// `process`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// `user`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// `container`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// `orchestrator`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orchestrator: Option<Orchestrator>,
    /// `rule`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// `egress`
    pub egress: Egress,
}

/// The account as a line of the stream.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// End of the coverage.
    #[serde(rename = "@timestamp")]
    pub timestamp: Timestamp,
    /// `ecs`
    pub ecs: Ecs,
    /// `agent`
    pub agent: Agent,
    /// `host`
    pub host: Host,
    /// `event`, with the coverage as start and end.
    pub event: EventMeta,
    /// `egress`
    pub egress: Account,
}

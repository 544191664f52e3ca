//! The words that all rooms share: a dropped packet, a process, an event, the account. No I/O, and no knowledge of any
//! other room.

mod account;
mod background;
mod check;
mod command;
mod decider;
mod dropped;
mod event;
mod filter;
mod fix;
mod flow;
mod hanging;
mod preflight;
mod process;
mod replay;
mod restored;
mod rule;
mod ruleset;
mod span;

pub use account::{Account, Degraded, Lost};
pub use background::Background;
pub use check::{Check, Diagnosis, Status};
pub use command::Finished;
pub use decider::{BpfProgram, Connections, Decider, Decision, Doer, Purpose};
pub use dropped::{Captured, Dropped, Endpoints, Owner, Socket, transport_name, transport_number};
pub use event::{
    Action, Agent, Ancestor, Container, Destination, ECS_VERSION, Ecs, Egress, Event, EventMeta, Host, HostBoot, Kind,
    Nat, Network, Orchestrator, Outcome, OwnerBy, OwnerKnown, Parent, Process, ProcessNamespaces, Resource, SCHEMA,
    Source, Summary, Thread, User,
};
pub use filter::{Destination as DestinationFilter, Filter, FilterError, parse_action, parse_cause, parse_transport};
pub use fix::{Fix, Lasts, Remedy, Scope, Stopped};
pub use flow::{Flow, Wanted};
pub use hanging::Hanging;
pub use preflight::{
    AddressLists, After, Change as ProposedChange, Connect, Fate, Later, Preflight, Preflighted, Programs, Proposed,
    Tried, Wish,
};
pub use process::{Arguments, Born, ContainerName, Facts, Image, Life, Namespaces, ProcessId, Reached};
pub use replay::{End, Ends, Origin, Packet, Replay, ReplayCounts, Replayed};
pub use restored::{By, Preceding, Restored};
pub use rule::{
    Backend, Compared, Confirmation, EgressRule, NamedRule, RuleCounts, RuleName, RuleSource, RulesSeen, Statement,
    Translation, Verdict, WantedRule,
};
pub use ruleset::{Change, ChangeEgress, ChangedRuleset, Commit, Difference};
pub use span::span;

pub use observer_ebpf::abi::{Cause, Direction, Hook, OwnerSource};

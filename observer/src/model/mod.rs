//! The words that all rooms share: a dropped packet, an attempt with its sender, a line, the account. No I/O, and no knowledge of
//! any other room.

mod account;
#[cfg(test)]
mod arbitrary;
mod attempt;
mod background;
mod check;
mod command;
mod decider;
mod document;
mod dropped;
mod filter;
mod fix;
mod flow;
mod hanging;
mod host;
mod line;
mod names;
mod outcome;
mod packet_kind;
mod place;
mod preflight;
mod process;
mod recorded;
mod replay;
mod restored;
mod rule;
mod ruleset;
mod sender;
mod share;
mod span;

pub use account::{Account, Degraded, Lost};
pub use attempt::{Attempt, End as FlowEnd, Wait};
pub use background::Background;
pub use check::{Check, Diagnosis, Status};
pub use command::Finished;
pub use decider::{Actor, BpfProgram, Connections, Decider, Decision, Purpose};
pub use document::{Document, DocumentKind, DocumentPart};
pub use dropped::{Captured, Dropped, Endpoints, Owner, Socket};
pub use filter::{Destination as DestinationFilter, Filter, FilterError, parse_action, parse_cause, parse_protocol};
pub use fix::{Fix, Lasts, Other, OtherFix, Probe, ProbeDirection, Remedy, Scope, Stopped};
pub use flow::{Flow, Wanted};
pub use hanging::Hanging;
pub use host::{Agent, Host, HostBoot, Reporter};
pub use line::{Coverage, Kind, Line};
pub use names::{Action, Cause, Family, Hook};
pub use outcome::Outcome;
pub use packet_kind::PacketKind;
pub use place::NetnsPlace;
pub use preflight::{
    AddressLists, After, Change as ProposedChange, Connect, Fate, Later, Preflight, Preflighted, Programs, Tried, Wish,
};
pub use process::{Arguments, Born, ContainerName, Facts, Image, Namespaces, ProcessChange, ProcessId, Reached};
pub use recorded::Recorded;
pub use replay::{End, Ends, Origin, Packet, Replay, ReplayCounts, Replayed};
pub use restored::{Preceding, Restored, RestoredBy};
pub use rule::{
    Backend, Compared, Confirmation, EgressRule, Entrance, Jump, NamedRule, RuleCounts, RuleName, RuleSource,
    RulesSeen, Statement, Translation, Verdict, WantedRule,
};
pub use ruleset::{ChangedRuleset, Commit, Difference, RulesetChange};
pub use sender::{
    Ancestor, Container, OwnerBy, OwnerKnown, Parent, Pod, Process, ProcessNamespaces, Sender, Truncated, User,
};
pub use share::Share;
pub use span::span;

pub use observer_ebpf::abi::{Direction, OwnerSource};

/// Name of the helper process.
pub const HELPER: &str = "observer-helper";
/// Name of the process that forks it, which a helper has for a moment too.
pub const SPARE: &str = "observer-spare";

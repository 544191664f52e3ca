//! Parts of a record that the model keeps whole and a record tells as far as they are known.

use std::net::IpAddr;

use serde::Serialize;

use crate::model::{self, Backend, Lasts, Other, ProbeDirection, Scope};

/// `egress.decided_by`
#[derive(Serialize)]
pub(super) struct Decider<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<Program<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    untaken: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Actor<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Connections>,
}

#[derive(Serialize)]
struct Program<'a> {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Actor<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Connections {
    entries: u64,
    limit: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    insert_failed: Option<u64>,
}

impl<'a> From<&'a model::Decider> for Decider<'a> {
    fn from(decider: &'a model::Decider) -> Self {
        let model::Decider { function, module, program, untaken, process, connections } = decider;
        Self {
            function: function.as_deref(),
            module: module.as_deref(),
            program: program.as_ref().map(|program| Program { id: program.id, name: program.name.as_deref() }),
            untaken: *untaken,
            process: process.as_ref().map(Actor::from),
            connections: connections.map(|model::Connections { entries, limit, insert_failed }| Connections {
                entries,
                limit,
                insert_failed,
            }),
        }
    }
}

impl<'a> From<&'a model::Actor> for Actor<'a> {
    fn from(actor: &'a model::Actor) -> Self {
        Self { pid: actor.pid, name: actor.name.as_deref() }
    }
}

/// `egress.fix`
#[derive(Serialize)]
pub(crate) struct Fix<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    commands: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    undo: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lasts: Option<Lasts>,
    verified: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    verified_for: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    undo_verified: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unverified: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    probes: Vec<Probe<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opened: Option<Vec<Probe<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    narrow: Option<OtherFix<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broad: Option<OtherFix<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temporary: Option<OtherFix<'a>>,
}

/// An item of `egress.fix.probes` and `egress.fix.opened`
#[derive(Serialize)]
struct Probe<'a> {
    direction: ProbeDirection,
    protocol: &'a str,
    port: u16,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    one_way: bool,
}

impl<'a> From<&'a model::Probe> for Probe<'a> {
    fn from(probe: &'a model::Probe) -> Self {
        let model::Probe { direction, transport, port, address, user, interface, is_one_way } = probe;
        Self {
            direction: *direction,
            protocol: transport,
            port: *port,
            address: *address,
            // As `user.id` is.
            user: user.map(|user| user.to_string()),
            interface: interface.as_deref(),
            one_way: *is_one_way,
        }
    }
}

/// `egress.fix.narrow`, `egress.fix.broad`, `egress.fix.temporary`
#[derive(Serialize)]
struct OtherFix<'a> {
    commands: &'a [String],
    undo: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

impl<'a> From<&'a model::Fix> for Fix<'a> {
    fn from(fix: &'a model::Fix) -> Self {
        let model::Fix {
            commands,
            undo,
            scope,
            opens,
            lasts,
            verified,
            verified_for,
            undo_verified,
            unverified,
            note,
            place,
            probes,
            opened,
            others,
        } = fix;
        let other = |wanted: Other| others.iter().find(|other| other.other == wanted).map(OtherFix::from);
        Self {
            commands,
            undo,
            scope: *scope,
            opens: opens.as_deref(),
            lasts: *lasts,
            verified: *verified,
            verified_for,
            undo_verified: *undo_verified,
            unverified: unverified.as_deref(),
            note: note.as_deref(),
            place: place.as_deref(),
            probes: probes.iter().map(Probe::from).collect(),
            opened: opened.as_ref().map(|opened| opened.iter().map(Probe::from).collect()),
            narrow: other(Other::Narrow),
            broad: other(Other::Broad),
            temporary: other(Other::Temporary),
        }
    }
}

impl<'a> From<&'a model::OtherFix> for OtherFix<'a> {
    fn from(model::OtherFix { other: _, commands, undo, opens, note }: &'a model::OtherFix) -> Self {
        Self { commands, undo, opens: opens.as_deref(), note: note.as_deref() }
    }
}

/// `egress.ruleset`
#[derive(Serialize)]
pub(super) struct Ruleset<'a> {
    backend: Backend,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_by: Option<Actor<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference<'a>>,
}

#[derive(Serialize)]
struct Difference<'a> {
    since: u32,
    generation: u32,
    rules_added: usize,
    rules_removed: usize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    added: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    removed: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    policies: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    statements: &'a [String],
}

impl<'a> From<&'a model::ChangedRuleset> for Ruleset<'a> {
    fn from(ruleset: &'a model::ChangedRuleset) -> Self {
        let model::ChangedRuleset { backend, generation, changed_by, changes: _, difference } = ruleset;
        Self {
            backend: *backend,
            generation: *generation,
            changed_by: changed_by.as_ref().map(Actor::from),
            difference: difference.as_ref().map(|difference| Difference {
                since: difference.since,
                generation: difference.generation,
                rules_added: difference.rules_added,
                rules_removed: difference.rules_removed,
                added: &difference.added,
                removed: &difference.removed,
                policies: &difference.policies,
                statements: &difference.statements,
            }),
        }
    }
}

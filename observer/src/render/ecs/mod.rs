//! A line as JSON: field names follow the Elastic Common Schema, the rest lives under `egress` (schema 1).
//!
//! A field that is not known is absent, never guessed and never an empty string.

mod parts;

use std::{
    io::{self, Write},
    net::IpAddr,
};

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

pub(crate) use self::parts::Fix;
use self::parts::{Decider, Ruleset};
use super::json::write_line;
use crate::model::{
    Account, Action, Agent, Ancestor, Attempt, Background, Cause, Degraded, EgressRule, Family, FlowEnd, Hook, Host,
    Kind, Line, OwnerBy, OwnerKnown, PacketKind, Parent, ProcessNamespaces, Reporter, Restored, RuleName, Sender,
    Truncated, Verdict,
};

/// Version of the record.
pub(crate) const SCHEMA: u32 = 1;
/// Version of the Elastic Common Schema that the names follow.
const ECS_VERSION: &str = "8.17.0";
/// `event.module` and `agent.type`
const MODULE: &str = "observer";
/// `event.dataset` of everything that goes out.
pub(crate) const DATASET: &str = "observer.egress";

/// `ecs`
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ecs {
    version: &'static str,
}

impl Default for Ecs {
    fn default() -> Self {
        Self { version: ECS_VERSION }
    }
}

/// `event`
#[derive(Debug, Serialize)]
pub(crate) struct Meta {
    pub(crate) kind: &'static str,
    pub(crate) dataset: &'static str,
    pub(crate) module: &'static str,
    /// Unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<Uuid>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) category: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) r#type: &'static [&'static str],
    pub(crate) action: Action,
    /// An enforced block succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<&'static str>,
    /// Number in this stream, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sequence: Option<u64>,
    /// First packet of this line, or start of the coverage.
    pub(crate) start: Timestamp,
    /// Last packet of this line, or end of the coverage.
    pub(crate) end: Timestamp,
    /// The finding in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Meta {
    /// Of something that is so at one time.
    pub(crate) fn new(action: Action, kind: &'static str, at: Timestamp) -> Self {
        Self {
            kind,
            dataset: DATASET,
            module: MODULE,
            id: None,
            category: &[],
            r#type: &[],
            action,
            outcome: None,
            sequence: None,
            start: at,
            end: at,
            reason: None,
        }
    }
}

/// `network`
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) transport: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) r#type: Option<&'static str>,
    direction: &'static str,
}

impl Network {
    pub(crate) fn new(transport: Option<String>, family: Option<Family>) -> Self {
        Self { transport, r#type: family.map(Family::name), direction: "egress" }
    }
}

/// `source.nat`, `destination.nat`: the address in the packet, where it was translated.
#[derive(Debug, Serialize)]
struct Nat {
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

/// `source`, `destination`
#[derive(Debug, Serialize)]
pub(crate) struct End<'a> {
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<Nat>,
    /// Its name, as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
}

impl<'a> End<'a> {
    pub(crate) fn new(ip: IpAddr, port: Option<u16>, domain: Option<&'a str>) -> Self {
        Self { ip, port, nat: None, domain }
    }
}

impl From<FlowEnd> for End<'_> {
    fn from(FlowEnd { ip, port, nat }: FlowEnd) -> Self {
        Self { ip, port, nat: nat.map(|(ip, port)| Nat { ip, port }), domain: None }
    }
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    entity_id: Uuid,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_line: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread: Option<Thread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ParentProcess<'a>>,
}

#[derive(Serialize)]
struct Thread {
    id: u32,
}

#[derive(Serialize)]
struct ParentProcess<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct User<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effective: Option<Box<User<'a>>>,
}

#[derive(Serialize)]
struct Container<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Orchestrator<'a> {
    r#type: &'static str,
    namespace: &'a str,
    resource: Resource<'a>,
}

#[derive(Serialize)]
struct Resource<'a> {
    r#type: &'static str,
    name: &'a str,
}

#[derive(Serialize)]
struct AncestorProcess<'a> {
    pid: u32,
    name: &'a str,
}

/// `egress.outcome`: what the application sees.
#[derive(Serialize)]
struct Outcome {
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gives_up_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<bool>,
}

/// `egress` of what was tried. The meaning of each field stands at [`Attempt`] and [`Sender`].
#[derive(Serialize)]
struct Egress<'a> {
    schema: u32,
    incident: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<Decider<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a EgressRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<Fix<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<&'a Restored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    count: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "is_false")]
    nothing_left: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<PacketKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    background: Option<Background>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerKnown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner_by: Option<OwnerBy>,
    #[serde(skip_serializing_if = "is_false")]
    encapsulated: bool,
    #[serde(skip_serializing_if = "is_false")]
    coarse: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    truncated: &'a [Truncated],
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<ProcessNamespaces>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invocation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slice: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    entering: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_netns: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    profiles: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_inode: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ancestry: Vec<AncestorProcess<'a>>,
}

/// `egress` of a change of rules.
#[derive(Serialize)]
struct ChangeEgress<'a> {
    schema: u32,
    netns: u32,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    entering: Option<&'a str>,
    ruleset: Ruleset<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ancestry: Vec<AncestorProcess<'a>>,
}

/// `egress` of the beginning and the end of recording.
#[derive(Serialize)]
struct LifeEgress<'a> {
    schema: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'a [Degraded]>,
}

/// `egress`, by the kind of line.
#[derive(Serialize)]
#[serde(untagged)]
enum Details<'a> {
    Attempt(Box<Egress<'a>>),
    Change(Box<ChangeEgress<'a>>),
    Life(LifeEgress<'a>),
    Account(&'a Account),
}

/// The whole record.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Timestamp,
    ecs: Ecs,
    agent: &'a Agent,
    host: &'a Host,
    event: Meta,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<End<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<End<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Container<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orchestrator: Option<Orchestrator<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a RuleName>,
    egress: Details<'a>,
}

/// Writes one line.
pub(crate) fn write(writer: &mut impl Write, line: &Line, reporter: &Reporter) -> io::Result<()> {
    write_line(writer, &record(line, reporter))
}

fn record<'a>(line: &'a Line, reporter: &'a Reporter) -> Record<'a> {
    let attempt = line.attempt();
    let sender = match &line.kind {
        Kind::RulesetChanged(change) => Some(&change.sender),
        _ => attempt.map(|attempt| &attempt.sender),
    };
    Record {
        timestamp: line.at,
        ecs: Ecs::default(),
        agent: &reporter.agent,
        host: &reporter.host,
        event: meta(line),
        network: attempt.map(|attempt| Network::new(attempt.transport(), attempt.family)),
        source: attempt.and_then(|attempt| attempt.source).map(End::from),
        destination: attempt.and_then(|attempt| attempt.destination).map(End::from),
        process: sender.and_then(process),
        user: sender.and_then(user),
        container: sender.and_then(container),
        // Of whoever changes rules it is not told.
        orchestrator: attempt.and_then(|attempt| orchestrator(&attempt.sender)),
        rule: attempt.and_then(|attempt| attempt.rule_name.as_ref()),
        egress: details(line),
    }
}

fn meta(line: &Line) -> Meta {
    let meta = Meta { id: line.id, sequence: line.sequence, ..Meta::new(line.action(), "event", line.at) };
    match &line.kind {
        Kind::Summary(coverage) => Meta { kind: "metric", start: coverage.start, end: coverage.end, ..meta },
        Kind::Started(_) => Meta { category: &["process"], r#type: &["start"], ..meta },
        Kind::Stopped => Meta { category: &["process"], r#type: &["end"], ..meta },
        Kind::RulesetChanged(change) => Meta {
            category: &["configuration"],
            r#type: &["change"],
            outcome: Some("success"),
            reason: Some(change.ruleset.sentence()),
            ..meta
        },
        Kind::Outcome(attempt, outcome) => Meta {
            r#type: &["connection", "end"],
            outcome: Some("failure"),
            reason: Some(outcome.sentence()),
            ..of_an_attempt(&meta, attempt)
        },
        Kind::Restored(attempt, restored) => Meta {
            r#type: &["connection", "allowed"],
            outcome: Some("success"),
            reason: Some(restored.sentence()),
            ..of_an_attempt(&meta, attempt)
        },
        Kind::Blocked(attempt)
        | Kind::Dropped(attempt)
        | Kind::Hanging(attempt)
        | Kind::Rule(attempt)
        | Kind::Fix(attempt, _) => of_an_attempt(&meta, attempt),
    }
}

/// Of what was tried, and of news of it.
fn of_an_attempt(meta: &Meta, attempt: &Attempt) -> Meta {
    let (kind, r#type, outcome): (_, &[&str], _) = match (attempt.wait, attempt.cause) {
        (Some(_), _) => ("state", &["connection", "info"], "unknown"),
        // By nobody's decision.
        (None, Some(Cause::Queue)) => ("event", &["connection", "end"], "failure"),
        // An enforced block succeeded.
        (None, _) => ("event", &["connection", "denied"], "success"),
    };
    Meta {
        kind,
        category: &["network"],
        r#type,
        outcome: Some(outcome),
        start: attempt.start,
        end: attempt.end,
        reason: attempt.finding.clone(),
        ..*meta
    }
}

fn details(line: &Line) -> Details<'_> {
    match &line.kind {
        Kind::Summary(coverage) => Details::Account(&coverage.account),
        Kind::Started(degraded) => Details::Life(LifeEgress { schema: SCHEMA, degraded: Some(degraded) }),
        Kind::Stopped => Details::Life(LifeEgress { schema: SCHEMA, degraded: None }),
        Kind::RulesetChanged(change) => Details::Change(Box::new(ChangeEgress {
            schema: SCHEMA,
            netns: change.netns,
            entering: change.entering.as_deref(),
            ruleset: Ruleset::from(&change.ruleset),
            unit: change.sender.unit.as_deref(),
            cgroup: change.sender.cgroup.as_deref(),
            ancestry: ancestry(&change.sender.ancestry),
        })),
        Kind::Blocked(attempt) | Kind::Dropped(attempt) | Kind::Hanging(attempt) | Kind::Rule(attempt) => {
            Details::Attempt(Box::new(egress(attempt, None, None)))
        }
        Kind::Fix(attempt, fix) => Details::Attempt(Box::new(egress(attempt, Some(Fix::from(&**fix)), None))),
        Kind::Outcome(attempt, crate::model::Outcome { waited_ms }) => {
            let outcome = Outcome { waited_ms: *waited_ms, gives_up_ms: None, left: None };
            Details::Attempt(Box::new(Egress { outcome: Some(outcome), ..egress(attempt, None, None) }))
        }
        Kind::Restored(attempt, restored) => Details::Attempt(Box::new(egress(attempt, None, Some(restored)))),
    }
}

fn egress<'a>(attempt: &'a Attempt, fix: Option<Fix<'a>>, restored: Option<&'a Restored>) -> Egress<'a> {
    let sender = &attempt.sender;
    Egress {
        schema: SCHEMA,
        incident: attempt.incident,
        cause: attempt.cause,
        verdict: attempt.verdict,
        decided_by: attempt.decided_by.as_ref().map(Decider::from),
        rule: attempt.rule.as_ref(),
        fix,
        restored,
        drop_reason: attempt.drop_reason.as_deref(),
        hook: attempt.hook.map(Hook::name),
        interface: attempt.interface.as_deref(),
        count: attempt.packets,
        bytes: attempt.bytes,
        nothing_left: attempt.nothing_left,
        attempts: attempt.wait.map(|wait| wait.attempts),
        outcome: attempt.wait.map(|wait| Outcome {
            waited_ms: Some(wait.waited_ms),
            gives_up_ms: wait.gives_up_ms,
            left: wait.left,
        }),
        packet: attempt.packet,
        background: attempt.background,
        owner: sender.known,
        owner_by: sender.by,
        encapsulated: attempt.encapsulated,
        coarse: attempt.coarse,
        script: sender.script.as_deref(),
        truncated: &sender.truncated,
        namespaces: sender.namespaces,
        unit: sender.unit.as_deref(),
        invocation: sender.invocation.as_deref(),
        slice: sender.slice.as_deref(),
        relay: sender.relay.as_deref(),
        cgroup: sender.cgroup.as_deref(),
        netns: attempt.netns,
        entering: attempt.entering.as_deref(),
        origin_netns: attempt.origin_netns,
        profiles: &attempt.profiles,
        socket_inode: attempt.socket_inode,
        ancestry: ancestry(&sender.ancestry),
    }
}

fn process(sender: &Sender) -> Option<Process<'_>> {
    let process = sender.process.as_ref()?;
    let parent = process.parent.as_ref();
    Some(Process {
        pid: process.pid,
        entity_id: process.entity_id,
        name: &process.name,
        executable: process.executable.as_deref(),
        args: process.args.as_deref(),
        command_line: process.command_line(),
        start: process.start,
        thread: process.thread.map(|id| Thread { id }),
        parent: parent.map(|Parent { pid, name }| ParentProcess { pid: *pid, name: name.as_deref() }),
    })
}

fn user(sender: &Sender) -> Option<User<'_>> {
    let user = sender.user.as_ref()?;
    let effective = user
        .effective
        .as_ref()
        .map(|(id, name)| Box::new(User { id: id.to_string(), name: name.as_deref(), effective: None }));
    Some(User { id: user.id.to_string(), name: user.name.as_deref(), effective })
}

fn container(sender: &Sender) -> Option<Container<'_>> {
    let container = sender.container.as_ref()?;
    let (runtime, name) = (container.runtime.as_deref(), container.name.as_deref());
    Some(Container { id: &container.id, runtime, name })
}

fn orchestrator(sender: &Sender) -> Option<Orchestrator<'_>> {
    let pod = sender.pod.as_ref()?;
    let resource = Resource { r#type: "pod", name: &pod.name };
    Some(Orchestrator { r#type: "kubernetes", namespace: &pod.namespace, resource })
}

fn ancestry(ancestry: &[Ancestor]) -> Vec<AncestorProcess<'_>> {
    ancestry.iter().map(|ancestor| AncestorProcess { pid: ancestor.pid, name: &ancestor.name }).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Coverage;

    fn written(kind: Kind) -> Value {
        let line = Line { id: None, sequence: Some(3), at: Timestamp::UNIX_EPOCH, kind };
        let mut text = Vec::new();
        write(&mut text, &line, &Reporter::example()).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let record = written(Kind::Blocked(Box::new(Attempt::example())));
        assert_eq!(record["event"]["action"], "egress-blocked");
        assert_eq!(record["event"]["type"], json!(["connection", "denied"]));
        assert_eq!(record["destination"], json!({ "ip": "203.0.113.10", "port": 443 }));
        assert_eq!(record["user"], json!({ "id": "0" }));
        let fields: Vec<&str> = record["egress"].as_object().unwrap().keys().map(String::as_str).collect();
        let told = ["ancestry", "bytes", "cause", "count", "hook", "incident", "netns", "owner", "schema"];
        assert_eq!(fields, told);
    }

    #[test]
    fn each_kind_says_what_became_of_it() {
        let told = |kind| {
            let record = written(kind);
            let event = &record["event"];
            (event["kind"].clone(), event["outcome"].clone(), event["type"].clone())
        };
        let queue = Attempt { cause: Some(Cause::Queue), ..Attempt::example() };
        assert_eq!(
            told(Kind::Dropped(Box::new(queue))),
            (json!("event"), json!("failure"), json!(["connection", "end"]))
        );
        let wait = crate::model::Wait { attempts: 1, waited_ms: 9, gives_up_ms: None, left: None };
        let hangs = Attempt { wait: Some(wait), ..Attempt::example() };
        assert_eq!(
            told(Kind::Hanging(Box::new(hangs))),
            (json!("state"), json!("unknown"), json!(["connection", "info"]))
        );
        let end = Timestamp::UNIX_EPOCH;
        let coverage = Coverage { start: end, end, account: Account::default() };
        assert_eq!(told(Kind::Summary(Box::new(coverage))), (json!("metric"), Value::Null, Value::Null));
    }
}

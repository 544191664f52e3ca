//! An answer for a program: one object for each address and port.

use std::{
    borrow::Cow,
    io::{self, Write},
    net::IpAddr,
};

use jiff::Timestamp;
use serde::Serialize;

use super::Answer;
use crate::{
    check::{Known, Target, live::Live},
    model::{
        Action, Agent, Cause, EgressRule, Family, Fate, Host, NamedRule, PacketKind, Programs, RuleName, RuleSource,
        Tried, Verdict,
    },
    render::{
        ecs::{Ecs, End, Fix, Meta, Network, SCHEMA},
        json::write_line,
    },
};

#[derive(Serialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Timestamp,
    ecs: Ecs,
    agent: &'a Agent,
    host: &'a Host,
    event: Meta,
    network: Network,
    destination: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleName>,
    egress: Egress<'a>,
}

#[derive(Serialize)]
struct Egress<'a> {
    schema: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<&'static str>,
    /// Words that go before a command for the namespace that was asked about.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    place: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    /// Which packet of the conversation was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<PacketKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<EgressRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<Fix<'a>>,
    check: Checked<'a>,
}

#[derive(Serialize)]
struct Checked<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    required: Option<bool>,
    /// The address stands for any: the name has none that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    any_address: Option<&'a str>,
    /// The command that was tried before.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a str>,
    /// What became of a real connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a Live>,
    /// It cannot be reported, or there is no way.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<Cow<'a, str>>,
}

/// For a program: one object for each address and port.
pub fn json(writer: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let now = Timestamp::now();
    for (index, target, fates) in answer.told() {
        for (at, (address, fate)) in target.addresses.iter().zip(fates).enumerate() {
            let live = answer.live.get(index).and_then(|all| all.get(at));
            write_line(writer, &line(answer, target, *address, (fate, live), now))?;
        }
    }
    writer.flush()
}

pub(super) fn line<'a>(
    answer: &'a Answer,
    target: &'a Target,
    address: IpAddr,
    (fate, live): (&'a Fate, Option<&'a Live>),
    now: Timestamp,
) -> Line<'a> {
    let rule = match fate {
        Fate::Stopped(rule) => answer.answer.rules.get(*rule),
        _ => None,
    };
    let (action, outcome, why) = match fate {
        Fate::Passes => (Action::EgressAllowed, "success", None),
        Fate::PassesBut(why) => (Action::EgressAllowed, "success", Some(Cow::from(why.as_str()))),
        Fate::PassesByKnown(rule, but) => {
            (Action::EgressAllowed, "success", answer.by_known(*rule, but.as_deref()).map(Cow::from))
        }
        Fate::Stopped(_) => (Action::EgressBlocked, "success", None),
        Fate::NoRoute { is_decided: true, why } | Fate::Denied { why, .. } => {
            (Action::EgressBlocked, "success", Some(Cow::from(why.as_str())))
        }
        Fate::NoRoute { why, .. } => (Action::EgressUnreachable, "failure", Some(Cow::from(why.as_str()))),
        Fate::Unknown(why) => (Action::EgressUnknown, "unknown", Some(Cow::from(why.as_str()))),
    };
    let of = target.entry.profile.as_ref();
    let is_name = target.entry.host.parse::<IpAddr>().is_err() && !target.entry.host.contains('/');
    Line {
        timestamp: now,
        ecs: Ecs::default(),
        agent: &answer.identity.reporter.agent,
        host: &answer.identity.reporter.host,
        event: Meta {
            dataset: "observer.check",
            category: &["network"],
            r#type: match action {
                Action::EgressAllowed => &["connection", "allowed"],
                Action::EgressBlocked => &["connection", "denied"],
                _ => &["connection"],
            },
            outcome: Some(outcome),
            reason: rule.map(NamedRule::sentence).or_else(|| why.as_deref().map(str::to_owned)),
            ..Meta::new(action, "state", now)
        },
        network: Network::new(
            Some(target.entry.transport.to_owned()),
            Some(if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }),
        ),
        destination: End::new(address, Some(target.entry.port), is_name.then_some(target.entry.host.as_str())),
        rule: rule.and_then(NamedRule::name),
        egress: Egress {
            schema: SCHEMA,
            cause: match fate {
                Fate::Stopped(_) => Some(Cause::Netfilter),
                Fate::Denied { .. } => Some(Cause::Cgroup),
                Fate::NoRoute { is_decided: true, .. } => Some(Cause::Route),
                _ => None,
            },
            verdict: match fate {
                // To whoever connects it is not said that the first packet was dropped.
                Fate::Denied { programs: Programs::Egress, .. } if target.entry.transport == "tcp" => {
                    Some(Verdict::Drop)
                }
                Fate::Denied { .. } => Some(Verdict::Reject),
                _ => rule.and_then(|rule| rule.verdict),
            },
            hook: match fate {
                Fate::Denied { programs, .. } => Some(programs.hook()),
                _ => None,
            },
            place: answer.answer.entering.as_deref(),
            unit: answer.unit.as_deref(),
            cgroup: answer.cgroup.as_deref(),
            packet: rule.and_then(|rule| rule.packet),
            rule: rule.map(|rule| EgressRule { source: RuleSource::Replay, ..rule.seen() }),
            fix: rule.and(answer.answer.fix.as_ref()).map(Fix::from),
            check: Checked {
                profile: of.map(|of| of.name.as_str()),
                phase: of.map(|of| of.phase.as_str()),
                purpose: of.map(|of| of.purpose.as_str()),
                required: of.map(|of| of.is_required),
                any_address: match &target.known {
                    Known::Any(why) => Some(why),
                    _ => None,
                },
                after: answer.after.as_deref().filter(|_| matches!(answer.answer.after, Some(Tried::Is(_)))),
                live,
                why,
            },
        },
    }
}

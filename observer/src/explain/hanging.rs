//! Connections that hung already when observer started.

use std::{net::SocketAddr, time::Duration};

use observer_ebpf::logic::packet::protocol;
use uuid::Uuid;

use super::Explainer;
use crate::{
    attribute::{Attribution, Credentials, Found},
    model::{
        Attempt, Cause, EgressRule, Family, FlowEnd, Hanging, OwnerBy, OwnerKnown, ProcessId, RuleSource, Share,
        Stopped, Wait,
    },
    privilege::HostQueries,
};

impl Explainer {
    /// What stops a connection that hangs, where that is certain; it is entered then.
    pub fn stops<E: HostQueries>(
        &mut self,
        hanging: &Hanging,
        attempt: &mut Attempt,
        share: Share,
        attribution: &mut Attribution<E>,
    ) -> Option<Stopped> {
        attempt.profiles = (self.needs)(&attempt.sender);
        // Only of what the kernel says that something here stopped it.
        if hanging.left != Some(false) {
            return None;
        }
        let stopped = self.rules.replays.stops(hanging, share, attribution.queries())?;
        let rule = &stopped.rule;
        (attempt.cause, attempt.verdict) = (Some(Cause::Netfilter), rule.verdict);
        attempt.rule = Some(EgressRule { source: RuleSource::Replay, ..rule.seen() });
        attempt.rule_name = rule.name();
        // As the rules are now; what was sent met those that were in force then.
        attempt.finding = Some(format!("never left this host: {} (by replay of the current rules)", rule.sentence()));
        Some(stopped)
    }
}

/// How a connection that hangs stands, and on whose account more is looked up. Its owner is the only process that has its socket
/// open.
pub(crate) fn attempt<E: HostQueries>(hanging: &Hanging, attribution: &mut Attribution<E>) -> (Attempt, Share) {
    let end = attribution.wall(hanging.boot_ns);
    let age_ns = u64::try_from(hanging.age.as_nanos()).unwrap_or(0);
    let found = match hanging.holders.as_slice() {
        [only] => Some(Found {
            id: ProcessId::new(only.pid, only.start_ns),
            known: OwnerKnown::Socket,
            by: OwnerBy::Open,
            bound: Some((*only, hanging.boot_ns)),
        }),
        _ => None,
    };
    attribution.catch_up();
    let share = attribution.share(hanging.netns, 0, Some(hanging.uid));
    let credentials = Credentials { uid: Some(hanging.uid), cgroup: None };
    let sender = attribution.sender(found, credentials, hanging.boot_ns);
    let place = attribution.placed(hanging.netns);
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let flow_end = |address: SocketAddr| Some(FlowEnd { ip: address.ip(), port: Some(address.port()), nat: None });
    let attempt = Attempt {
        incident: Uuid::nil(),
        sender,
        start: attribution.wall(hanging.boot_ns.saturating_sub(age_ns)),
        end,
        packets: 0,
        bytes: 0,
        family: Some(if hanging.remote.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }),
        protocol: Some(protocol::TCP),
        source: flow_end(hanging.local),
        destination: flow_end(hanging.remote),
        cause: None,
        verdict: None,
        decided_by: None,
        rule: None,
        rule_name: None,
        finding: Some(finding(hanging.left).to_owned()),
        drop_reason: None,
        hook: None,
        interface: None,
        nothing_left: false,
        packet: None,
        background: None,
        encapsulated: false,
        coarse: false,
        netns: (hanging.netns != 0).then_some(hanging.netns),
        entering: place.entering,
        is_elsewhere: place.is_other,
        origin_netns: None,
        socket_inode: hanging.inode,
        wait: Some(Wait {
            attempts: u32::from(hanging.sent_again) + 1,
            waited_ms: milliseconds(hanging.age),
            gives_up_ms: hanging.gives_up_in().map(milliseconds),
            left: hanging.left,
        }),
        profiles: Vec::new(),
    };
    (attempt, share)
}

fn finding(left: Option<bool>) -> &'static str {
    match left {
        Some(true) => "its last packet left this namespace; no answer so far",
        Some(false) => "never left this host: something here stops it",
        None => "waits for its first answer",
    }
}

//! Events of connections that hung already when observer started.

use super::{
    assemble::{Assembler, incident},
    attribute::{Eyes, Found},
    sender::Credentials,
};
use crate::model::{
    Action, Destination, ECS_VERSION, Ecs, Egress, EgressRule, Event, EventMeta, Hanging, Kind, NamedRule, Network,
    Outcome, OwnerBy, OwnerKnown, ProcessId, RuleSource, SCHEMA, Source, Stopped,
};

impl<E: Eyes> Assembler<E> {
    /// How a connection that hangs stands. Its owner is the only process that has its socket open.
    pub fn hanging(&mut self, hanging: &Hanging) -> Event {
        let timestamp = self.clock.wall(hanging.boot_ns);
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
        self.catch_up();
        // Only of what the kernel says that something here stopped it.
        let is_stopped = hanging.left == Some(false);
        let stopped = is_stopped.then(|| self.rules.replays.stops(hanging, &mut self.attributor.eyes)).flatten();
        let rule = stopped.as_ref().map(|stopped| &stopped.rule);
        let credentials = Credentials { uid: Some(hanging.uid), cgroup: None };
        let sender = self.sender(found, credentials, hanging.boot_ns);
        let destination =
            Destination { ip: hanging.remote.ip(), port: Some(hanging.remote.port()), nat: None, domain: None };
        let milliseconds = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let event = Event {
            timestamp,
            ecs: Ecs { version: ECS_VERSION },
            agent: self.identity.agent.clone(),
            host: self.identity.host.clone(),
            event: EventMeta {
                kind: Kind::State,
                dataset: "observer.egress",
                module: "observer",
                id: Some(self.event_id()),
                category: &["network"],
                r#type: &["connection", "info"],
                action: Action::EgressHanging,
                outcome: Some("unknown"),
                sequence: None,
                start: self.clock.wall(hanging.boot_ns.saturating_sub(age_ns)),
                end: timestamp,
                reason: Some(match (hanging.left, rule) {
                    (Some(true), _) => {
                        "its last packet left this namespace, and nothing has come back so far".to_owned()
                    }
                    (Some(false), None) => {
                        "its last packet did not leave this namespace: something on this host stops it".to_owned()
                    }
                    // As the rules are now; what was sent met those that were in force then.
                    (Some(false), Some(rule)) => format!(
                        "its last packet did not leave this namespace, and in a copy of the rules as they are now {} (by replay)",
                        rule.sentence()
                    ),
                    (None, _) => "it waits for its first answer".to_owned(),
                }),
            },
            network: Network {
                r#type: Some(if hanging.remote.is_ipv4() { "ipv4" } else { "ipv6" }),
                direction: "egress",
                transport: Some("tcp".to_owned()),
            },
            source: Some(Source { ip: hanging.local.ip(), port: Some(hanging.local.port()), nat: None }),
            container: sender.container,
            orchestrator: sender.orchestrator,
            rule: rule.and_then(NamedRule::name),
            egress: Egress {
                verdict: rule.and_then(|rule| rule.verdict),
                decided_by: None,
                fix: None,
                restored: None,
                rule: rule.map(|rule| EgressRule { source: RuleSource::Replay, ..rule.seen() }),
                schema: SCHEMA,
                incident: incident(
                    sender.process.as_ref(),
                    sender.unit.as_deref(),
                    Some(&destination),
                    Some("tcp"),
                    "hanging",
                    None,
                ),
                cause: rule.map(|_| "netfilter"),
                drop_reason: None,
                hook: None,
                interface: None,
                nothing_left: None,
                count: 0,
                bytes: 0,
                attempts: Some(u32::from(hanging.sent_again) + 1),
                outcome: Some(Outcome {
                    waited_ms: milliseconds(hanging.age),
                    gives_up_ms: hanging.gives_up_in().map(milliseconds),
                    left: hanging.left,
                }),
                background: None,
                owner: sender.known,
                owner_by: sender.by,
                encapsulated: None,
                coarse: None,
                script: sender.script,
                truncated: sender.truncated,
                namespaces: sender.namespaces,
                unit: sender.unit,
                slice: sender.slice,
                relay: sender.relay,
                cgroup: sender.cgroup,
                netns: (hanging.netns != 0).then_some(hanging.netns),
                origin_netns: None,
                socket_inode: hanging.inode,
                ancestry: sender.ancestry,
            },
            destination: Some(destination),
            process: sender.process,
            user: sender.user,
        };
        if let Some(Stopped { rule, packet, netns_cookie, .. }) = stopped {
            self.fixes.consider(&event, &rule, Some(packet), netns_cookie);
        }
        event
    }
}

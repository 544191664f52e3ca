//! What stopped it: the rule that was seen, the result of a replay, or another cause.
//!
//! [`rules`] asks for what the eBPF side saw, [`replay`] sends the packet through a copy, [`finding`] says what came of both.
//! [`changes`] hears of changes of rules, [`hanging`] looks at connections that waited when observer started.

pub mod changes;
pub(crate) mod finding;
pub(crate) mod hanging;
mod neighbours;
mod replay;
pub mod rules;

use std::{
    sync::Arc,
    task::{Poll, ready},
};

use observer_ebpf::{
    abi::{FROM_QUEUE, RuleAnswer, UNTAKEN},
    logic::packet::protocol,
};

use self::{
    neighbours::Neighbours,
    replay::{Opinion, Step},
    rules::{Found, Rules, wanted},
};
use crate::{
    attribute::{Asking, Attribution},
    model::{
        Actor, Attempt, Cause, Confirmation, Decider, Decision, Dropped, EgressRule, Hook, NamedRule, NetnsPlace,
        Origin, Packet, PacketKind, Purpose, RuleSource, Sender, Share, WantedRule,
    },
    privilege::HostQueries,
};

/// An attempt whose cause is being looked up.
pub struct Begun {
    /// As far as it is known.
    pub attempt: Box<Attempt>,
    /// The packet.
    pub dropped: Box<Dropped>,
    share: Share,
    place: Option<NetnsPlace>,
    found: Option<Found>,
    step: Step,
    opinion: Option<Opinion>,
}

impl Begun {
    /// Nothing was looked up yet.
    pub fn new(attempt: Attempt, dropped: Dropped, share: Share) -> Self {
        Self {
            attempt: Box::new(attempt),
            dropped: Box::new(dropped),
            share,
            place: None,
            found: None,
            step: Step::default(),
            opinion: None,
        }
    }

    /// Netfilter dropped it, or a queue of a rule.
    pub(crate) fn is_by_rules(&self) -> bool {
        matches!(self.dropped.cause, Cause::Netfilter | Cause::Nfqueue) && self.dropped.netns != 0
    }

    /// Inode number of the namespace whose rules decided, and on whose account it is looked at.
    pub(crate) fn netns(&self) -> (u32, Share) {
        (self.dropped.netns, self.share)
    }
}

/// The evidence for what stopped an attempt, and what is still pending.
pub struct Sight {
    /// What the eBPF side saw.
    pub answer: Option<RuleAnswer>,
    /// What decided, where it is known.
    pub decision: Option<Arc<Decision>>,
    /// A copy of the rules named it.
    pub is_replayed: bool,
    /// The copy of the rules was not ready: a later packet may get its rule.
    pub is_copied_next: bool,
    /// What the eBPF side saw could not be looked up yet.
    pub is_unread: bool,
    /// What is asked to look it up.
    pub wanted: Option<WantedRule>,
    /// The packet that a fix must let through, if it can be replayed.
    pub packet: Option<Packet>,
    /// On whose account more is looked up.
    pub share: Share,
    /// Source port of the one packet that it is, if it is one.
    pub port: Option<u16>,
    /// Cause that the eBPF side told.
    pub cause: Cause,
    /// First and last packet, nanoseconds of `CLOCK_BOOTTIME`.
    pub times: (u64, u64),
    /// Group with which the socket's file was opened, where that is known.
    pub gid: Option<u32>,
    /// It begins a connection, or is a datagram: an answer to it can be recognised.
    pub begins: bool,
}

impl Sight {
    /// The rule, where one is known.
    pub fn rule(&self) -> Option<&NamedRule> {
        self.decision.as_ref().and_then(|decision| decision.rule.as_ref())
    }
}

/// Finds what stopped attempts.
pub struct Explainer {
    rules: Rules,
    neighbours: Neighbours,
    needs: Needs,
}

/// What `observer check` is to be asked for to find everything else that a sender will need.
pub type Needs = Box<dyn Fn(&Sender) -> Vec<String> + Send>;

impl Explainer {
    /// By rules that are seen live, and copies; `needs` knows agents, installers and package managers.
    pub fn new(rules: Rules, needs: Needs) -> Self {
        Self { rules, neighbours: Neighbours::default(), needs }
    }

    /// Rules that were asked about.
    pub(crate) fn rules(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// Remembers what asks for a neighbour; and finds what stopped a packet that has waited for one. False where that was nobody's decision.
    pub(crate) fn look_at_neighbours(&mut self, dropped: &mut Dropped, share: Share) -> bool {
        // At once: whoever waits may be given up before the line about the question is made.
        self.neighbours.note(dropped, share);
        self.neighbours.explain(dropped)
    }

    /// Looks up what decided, and what its namespace is. To be called again when answers have come, until it is ready; with
    /// `is_last` it always is. `Ready(false)`: another observer's replay, which is not reported.
    pub fn explain<E: HostQueries>(
        &mut self,
        begun: &mut Begun,
        attribution: &mut Attribution<E>,
        is_last: bool,
    ) -> Poll<bool> {
        let Begun { attempt, dropped, share, place, found, step, opinion } = begun;
        let (queries, places) = attribution.queries_and_places();
        let mut asking = Asking { queries, share: *share, is_last };
        let cookie = dropped.rule.map_or(0, |answer| answer.netns_cookie);
        // All questions go out at once.
        if place.is_none()
            && let Poll::Ready(known) = places.of(dropped.netns, cookie, &mut asking)
        {
            // In a copy only the kernel sends, and the helper. What has a user is somebody's, and is reported.
            let is_of_nobody = attempt.sender.process.is_none() && attempt.sender.user.is_none();
            let is_an_observers = known.is_an_observers || known.may_be_an_observers && is_of_nobody;
            (attempt.entering, attempt.is_elsewhere) = (known.entering.clone(), known.is_other);
            *place = Some(known);
            if is_an_observers {
                return Poll::Ready(false);
            }
        }
        if found.is_none()
            && let Poll::Ready(known) = self.rules.of(dropped, &mut asking)
        {
            *found = Some(known);
        }
        let Some(known) = found else { return Poll::Pending };
        if opinion.is_none() {
            *opinion = Some(ready!(self.rules.replays.of(dropped, known, step, &mut asking)));
        }
        if place.is_some() { Poll::Ready(true) } else { Poll::Pending }
    }

    /// Enters what was looked up.
    pub fn conclude<E: HostQueries>(
        &mut self,
        begun: Begun,
        attribution: &mut Attribution<E>,
    ) -> (Box<Attempt>, Sight) {
        let Begun { mut attempt, dropped, found, opinion, .. } = begun;
        let Found { decision, unread, disputed } = found.unwrap_or_default();
        let opinion = opinion.unwrap_or(Opinion::None);
        let is_replayed = matches!(opinion, Opinion::Is(_));
        let mut decision = if let Opinion::Is(decision) = &opinion { Some(Arc::clone(decision)) } else { decision };
        if dropped.cause == Cause::Nfqueue {
            let decider = queue(&dropped, attribution);
            decision = decider.map(|decider| Arc::new(Decision { rule: None, decider: Some(decider) }));
        }
        decision = decision.and_then(|decision| self.told(decision));
        if let Some(decision) = &decision {
            finding::enter(&mut attempt, decision);
        }
        if attempt.finding.is_none() {
            attempt.finding = Some(finding::without_a_decision(&dropped, &attempt, disputed));
        }
        if let Some(rule) = decision.as_ref().and_then(|decision| decision.rule.as_ref()) {
            attempt.rule = Some(as_told(rule, &dropped, &opinion));
        }
        if attempt.background.is_none() {
            attempt.profiles = (self.needs)(&attempt.sender);
        }
        let uid = dropped.socket.and_then(|socket| socket.uid);
        let cookie = dropped.rule.map_or(0, |answer| answer.netns_cookie);
        let packet = || self.rules.replays.packet(&dropped).and_then(first).or_else(|| answered(&dropped));
        let sight = Sight {
            answer: dropped.rule,
            wanted: dropped.rule.map(|answer| wanted(&dropped, answer)),
            decision,
            is_replayed,
            is_copied_next: matches!(opinion, Opinion::Later),
            is_unread: unread,
            packet: if attempt.background.is_none() { packet() } else { None },
            // The owner of its namespace may be known only now.
            share: attribution.share(dropped.netns, cookie, uid),
            port: dropped.endpoints.and_then(|endpoints| endpoints.source_port).filter(|_| dropped.packets == 1),
            cause: dropped.cause,
            times: (dropped.first_ns, dropped.boot_ns),
            gid: dropped.captured.as_ref().and_then(|captured| captured.opened_by).map(|(_, gid)| gid),
            begins: finding::begins(&attempt, dropped.tcp_flags),
        };
        (attempt, sight)
    }

    /// What decided about an attempt that was reported already.
    pub(crate) fn again<E: HostQueries>(
        &mut self,
        wanted: &WantedRule,
        asking: &mut Asking<'_, E>,
    ) -> Poll<Option<Arc<Decision>>> {
        let decision = ready!(self.rules.again(wanted, asking));
        Poll::Ready(decision.and_then(|decision| self.told(decision)))
    }

    /// The part of a decision that is reported.
    fn told(&self, decision: Arc<Decision>) -> Option<Arc<Decision>> {
        if self.is_told(&decision) {
            return Some(decision);
        }
        decision.rule.clone().map(|rule| Arc::new(Decision { rule: Some(rule), decider: None }))
    }

    /// Where `nf_hook_slow` frees the packet, a rule of a nat chain may have dropped it: the function is not reported then.
    fn is_told(&self, decision: &Decision) -> bool {
        let purpose = decision.decider.as_ref().and_then(Decider::purpose);
        purpose != Some(Purpose::Translation) || self.rules.are_live()
    }

    /// Modules of the kernel have come or gone, nftables' own among them or not.
    pub fn modules_changed<E: HostQueries>(&mut self, nftables: bool, queries: &mut E) {
        self.rules.modules_changed(nftables, queries);
    }
}

/// The rule as an attempt has it.
fn as_told(rule: &NamedRule, dropped: &Dropped, opinion: &Opinion) -> EgressRule {
    EgressRule {
        confirmed_by: match (dropped.verdict_agrees, opinion) {
            (Some(true), _) => Some(Confirmation::Verdict),
            (_, Opinion::Same(_)) => Some(Confirmation::Replay),
            _ => None,
        },
        source: if matches!(opinion, Opinion::Is(_)) { RuleSource::Replay } else { RuleSource::Probe },
        replay: opinion.words(),
        // Where several paths lead to the rule, the replay's is taken.
        path: match opinion {
            Opinion::Same(path) if rule.path.is_empty() => path.clone(),
            _ => rule.path.clone(),
        },
        ..rule.seen()
    }
}

/// The process that freed a queued packet, or that nobody listened; `None` where that is not known.
fn queue<E: HostQueries>(dropped: &Dropped, attribution: &mut Attribution<E>) -> Option<Decider> {
    let answer = dropped.rule?;
    let pid = u32::try_from(answer.rule).ok().filter(|pid| *pid != 0);
    match (answer.table, pid) {
        (UNTAKEN, _) => Some(Decider { untaken: Some(true), ..Decider::default() }),
        (FROM_QUEUE, Some(pid)) => {
            let process = Actor { pid, name: attribution.name_of(pid, dropped.boot_ns) };
            Some(Decider { process: Some(process), ..Decider::default() })
        }
        _ => None,
    }
}

/// The first packet of the conversation whose answer was blocked, or that waited for a neighbour, as its socket would send it, or as it
/// came in.
fn answered(dropped: &Dropped) -> Option<Packet> {
    let captured = dropped.captured.as_ref()?;
    let is_answer = dropped.packet == Some(PacketKind::Answer);
    let origin = match dropped.hook {
        Some(Hook::Forward | Hook::Postrouting) if is_answer && dropped.socket.is_none() => {
            Origin::Interface { index: captured.arrived_by? }
        }
        hook if hook == Some(Hook::Input) || dropped.waited_for.is_some() => {
            let (uid, gid) = captured.opened_by?;
            Origin::Socket { uid, gid, groups: Vec::new(), mark: captured.mark, cgroup: dropped.socket?.cgroup }
        }
        _ => return None,
    };
    let asked = dropped.original.or(dropped.endpoints)?;
    let from = (asked.source, asked.source_port?).into();
    let to = (asked.destination, asked.destination_port?).into();
    match asked.protocol {
        protocol::TCP => Packet::syn(from, to, origin),
        protocol::UDP => Packet::datagram(from, to, origin),
        _ => None,
    }
}

/// The SYN of a blocked packet's connection, which a fix must let through; other packets as they are.
fn first(packet: Packet) -> Option<Packet> {
    let Some(("tcp", address, port)) = packet.to() else { return Some(packet) };
    if packet.begins() || matches!(packet.origin, Origin::Interface { .. }) {
        return Some(packet);
    }
    let (source, source_port) = packet.from()?;
    let syn = Packet::syn((source, source_port).into(), (address, port).into(), packet.origin)?;
    Some(Packet { interface: packet.interface, ..syn })
}

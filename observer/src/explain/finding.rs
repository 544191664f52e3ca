//! What was found, entered and in words.

use crate::model::{Attempt, Cause, Decider, Decision, Dropped, Hook, NamedRule, PacketKind, Purpose, Verdict};
use observer_ebpf::logic::packet::protocol;

/// Flags of TCP.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Enters what decided.
pub(crate) fn enter(attempt: &mut Attempt, decision: &Decision) {
    let Decision { rule, decider } = decision;
    if rule.as_ref().is_some_and(|rule| rule.translates.is_some()) {
        attempt.cause = Some(Purpose::Translation.cause());
    } else if let Some(purpose) = decider.as_ref().and_then(Decider::purpose) {
        attempt.cause = Some(purpose.cause());
    }
    attempt.verdict = match (rule, decider) {
        (Some(rule), _) => rule.verdict,
        (None, Some(decider)) => decider.only_drops().then_some(Verdict::Drop),
        (None, None) => None,
    };
    // Of what asks for a neighbour, it is the packet itself.
    let packet = attempt.packet.filter(|_| attempt.background.is_none());
    let sentence = |rule: &NamedRule| NamedRule { packet, ..rule.clone() }.sentence();
    attempt.finding = rule.as_ref().map(sentence).or_else(|| decider.as_ref().map(Decider::sentence));
    attempt.decided_by = decider.clone().filter(|decider| *decider != Decider::default());
    attempt.rule = rule.as_ref().map(NamedRule::seen);
    attempt.rule_name = rule.as_ref().and_then(NamedRule::name);
}

/// What is known where it is not known what decided.
pub(super) fn without_a_decision(dropped: &Dropped, attempt: &Attempt, is_disputed: bool) -> String {
    let what = match dropped.cause {
        Cause::Cgroup => "a cgroup egress program (such as systemd's IPAddressDeny=) stopped it".to_owned(),
        Cause::Tc => format!("a traffic control action{} stopped it", on(attempt)),
        Cause::Queue => format!("a queue{} was full: nobody's decision", on(attempt)),
        Cause::Nfqueue => "a program that a rule asks (NFQUEUE) did not let it pass".to_owned(),
        // The eBPF side tells no other.
        Cause::Netfilter | Cause::Conntrack | Cause::Nat | Cause::NetfilterBpf | Cause::Lsm | Cause::Route => {
            let hook = dropped.hook.map(|hook| format!(" at hook {}", hook.name())).unwrap_or_default();
            let device = match dropped.hook {
                Some(Hook::Egress | Hook::Ingress) => on(attempt),
                _ => String::new(),
            };
            let disputed = if is_disputed { ", of which two ways of seeing it disagree" } else { "" };
            format!("netfilter stopped it{hook}{device}: a firewall rule or policy{disputed}")
        }
    };
    let named = match &attempt.drop_reason {
        Some(name) => format!("{what} ({name})"),
        None => what,
    };
    if attempt.coarse { format!("{named}; several destinations together, for want of room") } else { named }
}

fn on(attempt: &Attempt) -> String {
    attempt.interface.as_ref().map(|interface| format!(" on {interface}")).unwrap_or_default()
}

/// A packet that begins a connection by TCP's flags, or a datagram: what is answered to such a one can be reported.
pub(crate) fn begins(attempt: &Attempt, tcp_flags: Option<u8>) -> bool {
    // The answer to the first packet is of the same beginning.
    let wanted = if attempt.packet == Some(PacketKind::Answer) { SYN | ACK } else { SYN };
    let is_syn = || tcp_flags.is_some_and(|flags| flags & (SYN | ACK) == wanted);
    match attempt.protocol {
        Some(protocol::UDP) => true,
        Some(protocol::TCP) => is_syn(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decided_says_the_cause() {
        let mut attempt = Attempt::example();
        let decider = Decider { function: Some("ipv4_conntrack_local".to_owned()), ..Decider::default() };
        enter(&mut attempt, &Decision { rule: None, decider: Some(decider.clone()) });
        assert_eq!((attempt.cause, attempt.verdict), (Some(Cause::Conntrack), Some(Verdict::Drop)));
        assert_eq!(attempt.decided_by, Some(decider));
        assert!(attempt.finding.unwrap().starts_with("connection tracking"));
        let mut attempt = Attempt::example();
        enter(&mut attempt, &Decision { rule: Some(NamedRule::example("drop")), decider: None });
        assert_eq!((attempt.cause, attempt.verdict), (Some(Cause::Netfilter), Some(Verdict::Drop)));
        assert_eq!(attempt.rule_name.unwrap().name, "drop");
    }

    #[test]
    fn without_a_rule_it_is_said_where_it_died() {
        let said = |dropped: Dropped, is_disputed| without_a_decision(&dropped, &Attempt::example(), is_disputed);
        assert_eq!(said(Dropped::example(), false), "netfilter stopped it at hook output: a firewall rule or policy");
        assert!(said(Dropped::example(), true).ends_with("disagree"));
        let queue = Dropped { cause: Cause::Queue, ..Dropped::example() };
        assert_eq!(said(queue, false), "a queue was full: nobody's decision");
        let coarse = Attempt { coarse: true, drop_reason: Some("X".to_owned()), ..Attempt::example() };
        let said = without_a_decision(&Dropped::example(), &coarse, false);
        assert!(said.ends_with("(X); several destinations together, for want of room"), "{said}");
    }

    #[test]
    fn a_connection_begins_with_a_syn() {
        let tcp = |flags| begins(&Attempt::example(), flags);
        assert!(tcp(Some(SYN)) && !tcp(Some(SYN | ACK)) && !tcp(Some(ACK)) && !tcp(None));
        assert!(begins(&Attempt { protocol: Some(protocol::UDP), ..Attempt::example() }, None));
    }
}

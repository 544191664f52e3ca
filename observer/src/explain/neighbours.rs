//! Neighbour discovery that rules stop: whoever sends waits for the neighbour, and what waited dies when it is given up, without any
//! rule's doing. The rule is the one that stopped the question, or its answer.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use observer_ebpf::abi::{NEIGHBOUR_WAIT_NS, RuleAnswer};

use crate::model::{Decision, Dropped, PacketKind};

/// Neighbours that are remembered, and of one namespace.
const MAX: usize = 1024;
const MAX_OF_A_NETNS: usize = 64;

/// What was stopped of one.
#[derive(Clone)]
pub(super) struct Unasked {
    netns: u32,
    neighbour: IpAddr,
    at_ns: u64,
    /// Which packet it was.
    pub(super) kind: PacketKind,
    /// What stopped it.
    pub(super) decision: Arc<Decision>,
    /// The same as the eBPF side saw it.
    pub(super) answer: RuleAnswer,
}

/// Neighbours that could not be asked for, the eldest first.
#[derive(Default)]
pub(super) struct Neighbours(VecDeque<Unasked>);

impl Neighbours {
    /// A packet was stopped by a rule.
    pub(super) fn note(&mut self, dropped: &Dropped, decision: &Arc<Decision>) {
        let kind = dropped.packet.filter(|kind| matches!(kind, PacketKind::Arp | PacketKind::Solicitation));
        let (Some(kind), Some(neighbour), Some(answer)) = (kind, asked_for(dropped), dropped.rule) else { return };
        let (netns, at_ns) = (dropped.netns, dropped.boot_ns);
        self.0.retain(|known| (known.netns, known.neighbour) != (netns, neighbour));
        let of_it = self.0.iter().filter(|known| known.netns == netns).count();
        if of_it >= MAX_OF_A_NETNS
            && let Some(eldest) = self.0.iter().position(|known| known.netns == netns)
        {
            self.0.remove(eldest);
        } else if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(Unasked { netns, neighbour, at_ns, kind, decision: Arc::clone(decision), answer });
    }

    /// What stopped the discovery of the neighbour that a packet has waited for.
    pub(super) fn of(&self, dropped: &Dropped) -> Option<&Unasked> {
        let waited_for = dropped.waited_for?;
        self.0.iter().find(|known| {
            (known.netns, known.neighbour) == (dropped.netns, waited_for)
                && dropped.boot_ns.saturating_sub(known.at_ns) < NEIGHBOUR_WAIT_NS
        })
    }
}

/// The neighbour that a packet asks for, or that answers by it.
fn asked_for(dropped: &Dropped) -> Option<IpAddr> {
    /// Where an IPv6 packet has its message, and that its target.
    const TARGET: usize = 40 + 8;
    /// Where ARP has its operation, who sends, and who is asked for.
    const OPERATION: usize = 6;
    const SENDER: usize = 14;
    const ASKED: usize = 24;
    const REQUEST: [u8; 2] = [0, 1];
    let bytes = &dropped.captured.as_ref()?.bytes;
    if dropped.packet == Some(PacketKind::Arp) {
        let at = if bytes.get(OPERATION..OPERATION + 2)? == REQUEST { ASKED } else { SENDER };
        return Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into());
    }
    Some(<[u8; 16]>::try_from(bytes.get(TARGET..TARGET + 16)?).ok()?.into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Captured, NamedRule};

    fn dropped(packet: Option<PacketKind>, bytes: Vec<u8>, at_ns: u64) -> Dropped {
        let length = bytes.len() as u32;
        let bytes = Bytes::from(bytes);
        let captured = Captured { bytes, length, opened_by: None, mark: 0, arrived_by: None, segments: None };
        Dropped {
            packet,
            captured: Some(captured),
            rule: Some(RuleAnswer::default()),
            boot_ns: at_ns,
            netns: 7,
            ..Dropped::example()
        }
    }

    fn waited(netns: u32, address: &str, at_ns: u64) -> Dropped {
        Dropped { waited_for: address.parse().ok(), boot_ns: at_ns, netns, ..Dropped::example() }
    }

    #[test]
    fn who_waited_for_a_neighbour_was_stopped_by_what_stopped_the_question() {
        let decision = Arc::new(Decision { rule: Some(NamedRule::example("drop")), decider: None });
        let mut neighbours = Neighbours::default();
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([0; 16]);
        request.extend([10, 9, 0, 2]);
        neighbours.note(&dropped(Some(PacketKind::Arp), request, 1_000), &decision);
        let mut solicitation = vec![0; 48];
        solicitation.extend("fd00:9::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        neighbours.note(&dropped(Some(PacketKind::Solicitation), solicitation, 1_000), &decision);
        let of = |netns, address, at_ns| neighbours.of(&waited(netns, address, at_ns)).map(|known| known.kind);
        assert_eq!(of(7, "10.9.0.2", 3_000_000_000), Some(PacketKind::Arp));
        assert_eq!(of(7, "fd00:9::2", 3_000_000_000), Some(PacketKind::Solicitation));
        assert_eq!(of(7, "10.9.0.3", 3_000_000_000), None, "another one is dead by itself");
        assert_eq!(of(8, "10.9.0.2", 3_000_000_000), None);
        assert_eq!(of(7, "10.9.0.2", 60_000_000_000), None);
        assert!(neighbours.of(&dropped(None, Vec::new(), 2_000)).is_none(), "it waited for nobody");
    }

    #[test]
    fn one_namespace_does_not_push_out_the_others() {
        let decision = Arc::new(Decision { rule: Some(NamedRule::example("drop")), decider: None });
        let mut neighbours = Neighbours::default();
        let request = |last: u8, at_ns| {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
            bytes.extend([0; 16]);
            bytes.extend([10, 9, 0, last]);
            dropped(Some(PacketKind::Arp), bytes, at_ns)
        };
        neighbours.note(&Dropped { netns: 8, ..request(1, 1) }, &decision);
        (0..=200).for_each(|last| neighbours.note(&request(last, 2), &decision));
        assert!(neighbours.of(&waited(8, "10.9.0.1", 3)).is_some());
        assert!(neighbours.of(&waited(7, "10.9.0.200", 3)).is_some());
        assert!(neighbours.of(&waited(7, "10.9.0.1", 3)).is_none(), "it was the eldest");
    }
}

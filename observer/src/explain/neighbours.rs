//! Neighbour discovery that rules stop: whoever sends waits for the neighbour, and what waited dies when it is given up, without any
//! rule's doing. The rule is the one that stopped the question, or its answer.

use std::{collections::VecDeque, net::IpAddr};

use observer_ebpf::abi::{NEIGHBOUR_WAIT_NS, RuleAnswer};

use crate::model::{Dropped, Hook, PacketKind, Share};

/// Neighbours that are remembered, of one namespace, and of all that are on one account.
const MAX: usize = 1024;
const MAX_OF_A_NETNS: usize = 64;
const MAX_OF_A_SHARE: usize = 256;

/// What was stopped of one.
struct Unasked {
    share: Share,
    netns: u32,
    neighbour: IpAddr,
    at_ns: u64,
    kind: PacketKind,
    answer: Option<RuleAnswer>,
    hook: Option<Hook>,
}

/// Neighbours that could not be asked for, the eldest first.
#[derive(Default)]
pub(super) struct Neighbours(VecDeque<Unasked>);

impl Neighbours {
    /// A packet was stopped, which is looked at on that account.
    pub(super) fn note(&mut self, dropped: &Dropped, share: Share) {
        let kind = dropped.packet.filter(|kind| matches!(kind, PacketKind::Arp | PacketKind::Solicitation));
        // One that has waited is of the kind that it waited for.
        let kind = kind.filter(|_| dropped.waited_for.is_none());
        let (Some(kind), Some(neighbour)) = (kind, asked_for(dropped)) else { return };
        let (netns, at_ns) = (dropped.netns, dropped.boot_ns);
        self.0.retain(|known| (known.netns, known.neighbour) != (netns, neighbour));
        let is_full = |most: usize, of: &dyn Fn(&Unasked) -> bool| {
            (self.0.iter().filter(|known| of(known)).count() >= most).then(|| self.0.iter().position(of)).flatten()
        };
        // Whoever has many makes room among its own.
        let eldest = is_full(MAX_OF_A_NETNS, &|known| known.netns == netns)
            .or_else(|| is_full(MAX_OF_A_SHARE, &|known| known.share == share))
            .or_else(|| (self.0.len() >= MAX).then(|| self.0.iter().position(|known| known.share != Share::Host))?)
            .or_else(|| (self.0.len() >= MAX).then_some(0));
        eldest.map(|eldest| self.0.remove(eldest));
        self.0.push_back(Unasked { share, netns, neighbour, at_ns, kind, answer: dropped.rule, hook: dropped.hook });
    }

    /// What a packet that has waited for a neighbour was stopped by: what stopped the question, or its answer. False where that is not
    /// known: the neighbour is dead by itself.
    pub(super) fn explain(&self, dropped: &mut Dropped) -> bool {
        let Some(waited_for) = dropped.waited_for else { return true };
        let known = self.0.iter().find(|known| {
            (known.netns, known.neighbour) == (dropped.netns, waited_for)
                && dropped.boot_ns.saturating_sub(known.at_ns) < NEIGHBOUR_WAIT_NS
        });
        let Some(Unasked { kind, answer, hook, .. }) = known else { return false };
        (dropped.packet, dropped.rule, dropped.hook) = (Some(*kind), *answer, *hook);
        true
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
    use crate::model::Captured;

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
        let mut neighbours = Neighbours::default();
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([0; 16]);
        request.extend([10, 9, 0, 2]);
        neighbours.note(&dropped(Some(PacketKind::Arp), request, 1_000), Share::Host);
        let mut solicitation = vec![0; 48];
        solicitation.extend("fd00:9::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        neighbours.note(&dropped(Some(PacketKind::Solicitation), solicitation, 1_000), Share::Host);
        let of = |netns, address, at_ns| {
            let mut dropped = waited(netns, address, at_ns);
            neighbours.explain(&mut dropped).then_some(dropped.packet).flatten()
        };
        assert_eq!(of(7, "10.9.0.2", 3_000_000_000), Some(PacketKind::Arp));
        assert_eq!(of(7, "fd00:9::2", 3_000_000_000), Some(PacketKind::Solicitation));
        assert_eq!(of(7, "10.9.0.3", 3_000_000_000), None, "another one is dead by itself");
        assert_eq!(of(8, "10.9.0.2", 3_000_000_000), None);
        assert_eq!(of(7, "10.9.0.2", 60_000_000_000), None);
        let mut other = dropped(None, Vec::new(), 2_000);
        assert!(neighbours.explain(&mut other) && other.packet.is_none(), "it waited for nobody");
    }

    #[test]
    fn one_namespace_does_not_push_out_the_others() {
        let mut neighbours = Neighbours::default();
        let request = |last: u8, at_ns| {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
            bytes.extend([0; 16]);
            bytes.extend([10, 9, 0, last]);
            dropped(Some(PacketKind::Arp), bytes, at_ns)
        };
        neighbours.note(&Dropped { netns: 8, ..request(1, 1) }, Share::Host);
        (0..=200).for_each(|last| neighbours.note(&request(last, 2), Share::User(1000)));
        assert!(neighbours.explain(&mut waited(8, "10.9.0.1", 3)));
        assert!(neighbours.explain(&mut waited(7, "10.9.0.200", 3)));
        assert!(!neighbours.explain(&mut waited(7, "10.9.0.1", 3)), "it was the eldest");
        for netns in 100..400 {
            (0..20).for_each(|last| neighbours.note(&Dropped { netns, ..request(last, 2) }, Share::User(netns)));
        }
        assert!(neighbours.explain(&mut waited(8, "10.9.0.1", 3)), "nor do many");
    }
}

//! Whose packet it was that a namespace forwards for another: the socket is gone by then, the addresses are left.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use crate::model::{Flow, ProcessId, Wanted};

/// How long a flow is remembered: a connection is retransmitted for two minutes.
const KEPT: Duration = Duration::from_secs(180);
/// Flows remembered.
const MAX_FLOWS: usize = 65_536;

/// Protocol and local port.
type PortKey = (u8, u16);

/// Flows of other namespaces' sockets.
#[derive(Default)]
pub struct Flows {
    by_port: HashMap<PortKey, VecDeque<Flow>>,
    /// In the order in which they came, which is the order in every queue too.
    order: VecDeque<(Instant, PortKey)>,
}

impl Flows {
    /// Remembers one.
    pub fn add(&mut self, flow: Flow, now: Instant) {
        while let Some((when, key)) = self.order.front().copied()
            && (now.duration_since(when) > KEPT || self.order.len() >= MAX_FLOWS)
        {
            self.order.pop_front();
            if let Entry::Occupied(mut flows) = self.by_port.entry(key) {
                flows.get_mut().pop_front();
                if flows.get().is_empty() {
                    flows.remove();
                }
            }
        }
        let key = (flow.protocol, flow.local_port);
        self.by_port.entry(key).or_default().push_back(flow);
        self.order.push_back((now, key));
    }

    fn with_port(&self, wanted: &Wanted) -> impl Iterator<Item = &Flow> {
        self.by_port.get(&(wanted.protocol, wanted.source.1)).into_iter().flatten()
    }

    /// A socket that can have sent such a packet was closed between two times.
    pub fn closed_between(&self, wanted: &Wanted, homes: &[u32], from_ns: u64, to_ns: u64) -> bool {
        self.with_port(wanted)
            .filter(|flow| flow.until_ns.is_some_and(|until_ns| (from_ns..=to_ns).contains(&until_ns)))
            .any(|flow| fits(flow, wanted, homes))
    }

    /// The process that sent a packet at that time, when all sockets that can have sent it then belong to one. `homes` are
    /// the namespaces that have its source address.
    pub fn sender(&self, wanted: &Wanted, homes: &[u32], boot_ns: u64) -> Option<ProcessId> {
        let mut last: Vec<&Flow> = Vec::new();
        for flow in self.with_port(wanted).filter(|flow| fits(flow, wanted, homes) && was_open(flow, boot_ns)) {
            // A connection's addresses were another's before it, in the same namespace.
            match last.iter_mut().find(|known| known.netns == flow.netns && known.until_ns.is_none()) {
                Some(known) => *known = flow,
                None => last.push(flow),
            }
        }
        let first = last.first()?.process;
        last.iter().all(|flow| flow.process == first).then_some(first)
    }
}

fn was_open(flow: &Flow, boot_ns: u64) -> bool {
    flow.since_ns <= boot_ns && flow.until_ns.is_none_or(|until_ns| boot_ns <= until_ns)
}

fn fits(flow: &Flow, wanted: &Wanted, homes: &[u32]) -> bool {
    let home = || homes.contains(&flow.netns);
    flow.v6 == wanted.source.0.is_ipv6()
        && flow.local.map_or_else(home, |local| local == wanted.source.0 && (homes.is_empty() || home()))
        && flow.remote.is_none_or(|remote| remote == wanted.destination.0)
        && (flow.remote_port == 0 || flow.remote_port == wanted.destination.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_ticks: 1 }
    }

    fn connection(pid: u32, netns: u32, since_ns: u64) -> Flow {
        Flow {
            process: process(pid),
            netns,
            since_ns,
            until_ns: None,
            protocol: TCP,
            v6: false,
            local: Some("172.17.0.2".parse().unwrap()),
            remote: Some("203.0.113.10".parse().unwrap()),
            local_port: 5000,
            remote_port: 443,
        }
    }

    /// A socket that was open from one time to another.
    fn datagrams(pid: u32, netns: u32, since_ns: u64, until_ns: u64) -> Flow {
        let plain = connection(pid, netns, since_ns);
        Flow { until_ns: Some(until_ns), protocol: UDP, local: None, remote: None, remote_port: 0, ..plain }
    }

    fn wanted(protocol: u8) -> Wanted {
        Wanted {
            source: ("172.17.0.2".parse().unwrap(), 5000),
            destination: ("203.0.113.10".parse().unwrap(), 443),
            protocol,
        }
    }

    fn flows(all: &[Flow]) -> Flows {
        let mut flows = Flows::default();
        all.iter().for_each(|flow| flows.add(*flow, Instant::now()));
        flows
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut flows = flows(&[connection(1, 7, 10)]);
        flows.add(datagrams(2, 7, 20, 30), Instant::now() + KEPT * 2);
        assert_eq!((flows.by_port.len(), flows.order.len()), (1, 1));
    }

    #[test]
    fn a_connection_by_its_four_addresses() {
        let known = flows(&[connection(1, 7, 10)]);
        assert_eq!(known.sender(&wanted(TCP), &[], 20), Some(process(1)));
        assert_eq!(known.sender(&wanted(TCP), &[8], 20), None, "another namespace has the address");
        assert_eq!(known.sender(&wanted(UDP), &[], 20), None);
        assert_eq!(known.sender(&wanted(TCP), &[], 5), None, "not yet connected");
        let other = Wanted { destination: ("203.0.113.10".parse().unwrap(), 80), ..wanted(TCP) };
        assert_eq!(known.sender(&other, &[], 20), None);
    }

    #[test]
    fn the_same_addresses_later_are_another_connection() {
        let known = flows(&[connection(1, 7, 10), connection(2, 7, 30)]);
        assert_eq!(known.sender(&wanted(TCP), &[7], 20), Some(process(1)));
        assert_eq!(known.sender(&wanted(TCP), &[7], 40), Some(process(2)));
        let twins = flows(&[connection(1, 7, 10), connection(2, 8, 10)]);
        assert_eq!(twins.sender(&wanted(TCP), &[7, 8], 20), None, "two namespaces with one address");
    }

    #[test]
    fn a_datagram_by_the_socket_that_was_open_then() {
        let known = flows(&[datagrams(1, 7, 10, 20), datagrams(2, 7, 25, 30), datagrams(3, 8, 10, 40)]);
        assert_eq!(known.sender(&wanted(UDP), &[7], 15), Some(process(1)));
        assert_eq!(known.sender(&wanted(UDP), &[7], 27), Some(process(2)), "the same port, later");
        assert_eq!(known.sender(&wanted(UDP), &[7], 35), None, "closed by then");
        assert_eq!(known.sender(&wanted(UDP), &[], 15), None, "nobody is known to have the address");
        assert!(known.closed_between(&wanted(UDP), &[7], 15, 25) && !known.closed_between(&wanted(UDP), &[7], 21, 29));
    }
}

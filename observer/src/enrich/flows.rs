//! Whose packet it was that a namespace forwards for another: the socket is gone by then, the addresses are left.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::model::{Flow, ProcessId, Wanted};

/// How long a flow is remembered: a connection is retransmitted for two minutes.
const KEPT: Duration = Duration::from_secs(180);
/// Flows remembered.
const MAX_FLOWS: usize = 65_536;

/// Flows of other namespaces' sockets, the newest last.
#[derive(Default)]
pub struct Flows(VecDeque<(Instant, Flow)>);

impl Flows {
    /// Remembers one.
    pub fn add(&mut self, flow: Flow, now: Instant) {
        while self.0.front().is_some_and(|(when, _)| now.duration_since(*when) > KEPT) || self.0.len() >= MAX_FLOWS {
            self.0.pop_front();
        }
        self.0.push_back((now, flow));
    }

    /// The process that sent a packet, when all flows that fit belong to one.
    pub fn sender(&self, wanted: &Wanted) -> Option<ProcessId> {
        let mut fitting =
            self.0.iter().map(|(_, flow)| flow).filter(|flow| fits(flow, wanted)).map(|flow| flow.process);
        let first = fitting.next()?;
        fitting.all(|other| other == first).then_some(first)
    }
}

fn fits(flow: &Flow, wanted: &Wanted) -> bool {
    let same = |known: Option<IpAddr>, seen: IpAddr| known.is_none_or(|known| known == seen);
    flow.protocol == wanted.protocol
        && flow.local_port == wanted.source.1
        && flow.v6 == wanted.source.0.is_ipv6()
        && same(flow.local, wanted.source.0)
        && same(flow.remote, wanted.destination.0)
        && (flow.remote_port == 0 || flow.remote_port == wanted.destination.1)
        && wanted.netns.is_none_or(|netns| netns == flow.netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_ticks: 1 }
    }

    fn flow(pid: u32, netns: u32, local: Option<&str>, remote: Option<&str>, protocol: u8) -> Flow {
        Flow {
            process: process(pid),
            netns,
            protocol,
            v6: false,
            local: local.map(|text| text.parse().unwrap()),
            remote: remote.map(|text| text.parse().unwrap()),
            local_port: 5000,
            remote_port: if remote.is_some() { 443 } else { 0 },
        }
    }

    fn wanted(protocol: u8, netns: Option<u32>) -> Wanted {
        Wanted {
            source: ("172.17.0.2".parse().unwrap(), 5000),
            destination: ("203.0.113.10".parse().unwrap(), 443),
            protocol,
            netns,
        }
    }

    fn flows(all: &[Flow]) -> Flows {
        let mut flows = Flows::default();
        all.iter().for_each(|flow| flows.add(*flow, Instant::now()));
        flows
    }

    #[test]
    fn a_connection_by_its_four_addresses() {
        let known = flows(&[flow(1, 7, Some("172.17.0.2"), Some("203.0.113.10"), TCP)]);
        assert_eq!(known.sender(&wanted(TCP, None)), Some(process(1)));
        assert_eq!(known.sender(&wanted(TCP, Some(8))), None, "it came from another namespace");
        assert_eq!(known.sender(&wanted(UDP, None)), None);
        let other = Wanted { destination: ("203.0.113.10".parse().unwrap(), 80), ..wanted(TCP, None) };
        assert_eq!(known.sender(&other), None);
    }

    #[test]
    fn an_unconnected_socket_by_its_port() {
        let known = flows(&[flow(1, 7, None, None, UDP)]);
        assert_eq!(known.sender(&wanted(UDP, Some(7))), Some(process(1)));
    }

    #[test]
    fn two_senders_make_no_answer_unless_the_namespace_tells() {
        let known = flows(&[flow(1, 7, None, None, UDP), flow(2, 8, None, None, UDP), flow(1, 7, None, None, UDP)]);
        assert_eq!(known.sender(&wanted(UDP, None)), None);
        assert_eq!(known.sender(&wanted(UDP, Some(7))), Some(process(1)));
    }
}

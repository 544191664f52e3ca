use super::*;
use crate::model::{Born, Image, Life, Namespaces, Owner, Socket};
use crate::probe::{
    proof::{Prepared, Unproven},
    symbols::Functions,
};
use std::os::fd::OwnedFd;

const SECOND: u64 = 1_000_000_000;
const SHELL: u32 = 5;
const PARENT: u32 = 10;
const CHILD: u32 = 11;
const STRANGER: u32 = 20;

/// A host on which these processes hold socket 7, and /proc knows nobody.
struct Host {
    holders: Vec<u32>,
}

impl Proving for Host {
    fn functions(&mut self, _changes: u64) -> Result<Functions, String> {
        Err("nothing is shown".to_owned())
    }

    fn keep_netns_cookies(&mut self, _map: OwnedFd) -> Result<(), String> {
        Ok(())
    }

    fn keep_verdict_programs(&mut self, _programs: &[OwnedFd; 2]) -> Result<(), String> {
        Ok(())
    }

    fn arm_verdicts(&mut self, _time: Duration, _is_proof: bool) -> Result<(), String> {
        Ok(())
    }

    fn prepare_proof(&mut self, _changes: u64) -> Result<Prepared, Unproven> {
        Err(Unproven::NotLoaded)
    }

    fn send_proof(&mut self) -> Result<(), Unproven> {
        Err(Unproven::NotLoaded)
    }

    fn end_proof(&mut self) {}
}

impl Eyes for Host {
    fn facts(&mut self, _pid: u32, _start_ticks: Option<u64>) -> Option<Facts> {
        None
    }

    fn holds(&mut self, pid: u32, _inode: u64) -> bool {
        self.holders.contains(&pid)
    }

    fn holders(&mut self, _inode: u64) -> Vec<u32> {
        self.holders.clone()
    }

    fn fix(&mut self, _stopped: &Stopped) -> Result<Remedy, String> {
        Ok(Remedy::None)
    }

    fn cgroup_path(&mut self, _id: u64) -> Option<String> {
        None
    }

    fn container_name(&mut self, _id: &str) -> Option<ContainerName> {
        None
    }

    fn owns(&mut self, _netns: u32, address: IpAddr) -> Option<bool> {
        Some(address == IpAddr::from([10, 0, 0, 1]))
    }

    fn homes(&mut self, _address: IpAddr, _forwarder: u32) -> Vec<u32> {
        vec![1]
    }

    fn sockets(&mut self, _wanted: &Wanted, _netns: u32) -> Vec<u64> {
        vec![7]
    }

    fn rule(&mut self, _wanted: &WantedRule) -> Result<Option<Decision>, String> {
        Ok(None)
    }

    fn replay(&mut self, _netns: u32, _packet: &Packet, _: bool) -> Result<Replay, String> {
        Err("nobody replays".to_owned())
    }

    fn listen(&mut self, _netns: u32) -> Result<Listening, String> {
        Err("nobody listens".to_owned())
    }

    fn arm_answers(&mut self, _time: Duration) -> Result<(), String> {
        Err("nobody listens".to_owned())
    }

    fn difference(&mut self, _netns: u32) -> Result<Option<Difference>, String> {
        Ok(None)
    }

    fn failure(&self) -> Option<String> {
        None
    }
}

fn task(pid: u32) -> Task {
    Task { pid, start_ns: u64::from(pid) * SECOND, ..Task::default() }
}

fn id(pid: u32) -> ProcessId {
    ProcessId::new(pid, u64::from(pid) * SECOND)
}

/// A shell with a child, which has a child; and a stranger.
fn attributor(holders: &[u32]) -> Attributor<Host> {
    let mut processes = Processes::default();
    for (pid, parent) in [(SHELL, None), (PARENT, Some(SHELL)), (CHILD, Some(PARENT)), (STRANGER, None)] {
        let born = Born { boot_ns: 0, task: task(pid), parent: parent.map(id), namespaces: Namespaces::default() };
        processes.apply(Life::Exec(Box::new(born), Image::default()), Instant::now());
    }
    Attributor::new(Host { holders: holders.to_vec() }, processes, Box::new(|| None), 0)
}

fn bound(pid: u32, shared: bool) -> Option<Owner> {
    Some(Owner { task: task(pid), bound_ns: Some(0), source: OwnerSource::Connect, shared })
}

fn dropped(owner: Option<Owner>, current_pid: u32, locked: bool) -> Dropped {
    let example = Dropped::example();
    let socket = example.socket.map(|socket| Socket { locked, ..socket });
    Dropped { owner, current_pid, socket, ..example }
}

fn who(attributor: &mut Attributor<Host>, dropped: &Dropped) -> Option<(u32, OwnerKnown, OwnerBy)> {
    attributor.owner(dropped).map(|found| (found.id.pid, found.known, found.by))
}

#[test]
fn a_retransmit_belongs_to_the_owner_whoever_is_on_the_cpu() {
    for current in [0, STRANGER, CHILD] {
        // The child has the socket open too, and is on the CPU: that proves nothing.
        let found = who(&mut attributor(&[PARENT, CHILD]), &dropped(bound(PARENT, false), current, false));
        assert_eq!(found, Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
    }
}

#[test]
fn inside_a_call_a_child_of_the_owner_is_the_sender_also_of_what_follows() {
    let mut attributor = attributor(&[]);
    let found = who(&mut attributor, &dropped(bound(PARENT, false), CHILD, true));
    assert_eq!(found, Some((CHILD, OwnerKnown::Syscall, OwnerBy::Send)));
    let later = who(&mut attributor, &dropped(bound(PARENT, false), STRANGER, false));
    assert_eq!(later, Some((CHILD, OwnerKnown::Socket, OwnerBy::Send)));
}

#[test]
fn a_stranger_inside_some_call_is_the_sender_only_with_the_socket_in_hand() {
    let passed = dropped(bound(PARENT, false), STRANGER, true);
    assert_eq!(who(&mut attributor(&[STRANGER]), &passed), Some((STRANGER, OwnerKnown::Syscall, OwnerBy::Send)));
    let mut seen = passed.clone();
    seen.socket = seen.socket.map(|socket| Socket { held: true, ..socket });
    assert_eq!(who(&mut attributor(&[]), &seen), Some((STRANGER, OwnerKnown::Syscall, OwnerBy::Send)));
    assert_eq!(who(&mut attributor(&[]), &passed), Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
}

#[test]
fn a_datagram_leaves_inside_the_call_at_output_and_not_on_the_device() {
    let mut datagram = dropped(bound(PARENT, false), CHILD, false);
    datagram.socket = datagram.socket.map(|socket| Socket { datagram: true, ..socket });
    assert_eq!(who(&mut attributor(&[]), &datagram), Some((CHILD, OwnerKnown::Syscall, OwnerBy::Send)));
    datagram.hook = Some(Hook::Egress);
    assert_eq!(who(&mut attributor(&[]), &datagram), Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
}

#[test]
fn without_an_owner_one_holder_is_an_answer_and_two_are_none() {
    let holder = Some((CHILD, OwnerKnown::Socket, OwnerBy::Holder));
    assert_eq!(who(&mut attributor(&[CHILD]), &dropped(None, 0, false)), holder);
    assert_eq!(who(&mut attributor(&[CHILD]), &dropped(bound(PARENT, true), STRANGER, true)), holder);
    assert_eq!(who(&mut attributor(&[PARENT, CHILD]), &dropped(None, STRANGER, true)), None);
    assert_eq!(who(&mut attributor(&[PARENT, CHILD]), &dropped(bound(PARENT, true), CHILD, false)), None);
    assert_eq!(who(&mut attributor(&[]), &dropped(None, CHILD, true)), None, "on the CPU without the socket");
}

#[test]
fn an_owner_that_ended_left_the_socket_to_the_one_that_still_has_it() {
    let mut attributor = attributor(&[CHILD]);
    attributor.processes.apply(Life::Exit { id: id(PARENT), boot_ns: 30 * SECOND }, Instant::now());
    let found = who(&mut attributor, &dropped(bound(PARENT, false), 0, false));
    assert_eq!(found, Some((CHILD, OwnerKnown::Socket, OwnerBy::Holder)));
}

#[test]
fn an_owner_that_ended_with_its_socket_is_still_the_owner() {
    let mut attributor = attributor(&[]);
    attributor.processes.apply(Life::Exit { id: id(PARENT), boot_ns: 30 * SECOND }, Instant::now());
    let found = who(&mut attributor, &dropped(bound(PARENT, false), 0, false));
    assert_eq!(found, Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
}

#[test]
fn the_kernels_own_socket_belongs_to_no_process() {
    let mut own = dropped(bound(PARENT, false), PARENT, true);
    own.socket = own.socket.map(|socket| Socket { kernel: true, ..socket });
    assert_eq!(who(&mut attributor(&[PARENT]), &own), None);
}

/// A datagram that another namespace forwards, to this address.
fn forwarded(direction: Direction, to: &str) -> Dropped {
    let endpoints = crate::model::Endpoints {
        source: "172.17.0.2".parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: 17,
        source_port: Some(5000),
        destination_port: Some(53),
    };
    Dropped { direction, endpoints: Some(endpoints), socket: None, ..dropped(None, STRANGER, false) }
}

#[test]
fn a_forwarded_packet_belongs_to_the_only_socket_with_its_addresses() {
    let packet = forwarded(Direction::Forward, "203.0.113.10");
    let found = who(&mut attributor(&[CHILD]), &packet);
    assert_eq!(found, Some((CHILD, OwnerKnown::Flow, OwnerBy::Address)));
    assert_eq!(who(&mut attributor(&[CHILD, PARENT]), &packet), None);
    assert_eq!(who(&mut attributor(&[CHILD]), &forwarded(Direction::Local, "203.0.113.10")), None);
}

#[test]
fn without_a_route_it_is_forwarded_only_to_somebody_elses_address() {
    let mut attributor = attributor(&[CHILD]);
    assert!(attributor.is_forwarded(&forwarded(Direction::Unrouted, "203.0.113.10")));
    assert!(!attributor.is_forwarded(&forwarded(Direction::Unrouted, "10.0.0.1")), "inbound");
    assert!(!attributor.is_forwarded(&forwarded(Direction::Unrouted, "224.0.0.251")));
    attributor.eyes.holders.clear();
    let mut stranger = forwarded(Direction::Unrouted, "203.0.113.99");
    assert!(!attributor.is_forwarded(&stranger), "a bridge, and nobody here sent it");
    stranger.origin_netns = Some(7);
    assert!(attributor.is_forwarded(&stranger), "the other end of a veth");
}

use super::*;
use crate::{
    model::{Born, Image, Namespaces, Owner, ProcessChange, Socket},
    privilege::{
        fake::Fake,
        protocol::{Request, encode},
    },
};

const SECOND: u64 = 1_000_000_000;
const SHELL: u32 = 5;
const PARENT: u32 = 10;
const CHILD: u32 = 11;
const STRANGER: u32 = 20;

/// A host on which these processes hold socket 7, and /proc knows nobody.
fn host(holders: &[u32]) -> Fake {
    let holders = holders.to_vec();
    Fake(Box::new(move |request| {
        Some(match request {
            Request::FactsOf(_) => encode::<FactsOf>(&None),
            Request::Holds(holds) => encode::<Holds>(&holders.contains(&holds.pid)),
            Request::Holders(_) => encode::<Holders>(&holders),
            Request::CgroupPath(_) => encode::<CgroupPath>(&None),
            Request::NameOfContainer(_) => encode::<NameOfContainer>(&None),
            Request::Owns(owns) => encode::<Owns>(&Some(owns.address == IpAddr::from([10, 0, 0, 1]))),
            Request::Homes(_) => encode::<Homes>(&vec![1]),
            Request::Sockets(_) => encode::<Sockets>(&vec![7]),
            Request::IsAHelper(_) => encode::<IsAHelper>(&false),
            _ => return None,
        })
    }))
}

fn task(pid: u32) -> Task {
    Task { pid, start_ns: u64::from(pid) * SECOND, ..Task::default() }
}

fn id(pid: u32) -> ProcessId {
    ProcessId::new(pid, u64::from(pid) * SECOND)
}

/// A shell with a child, which has a child; and a stranger.
fn owners(holders: &[u32]) -> Owners<Fake> {
    let mut processes = Processes::default();
    for (pid, parent) in [(SHELL, None), (PARENT, Some(SHELL)), (CHILD, Some(PARENT)), (STRANGER, None)] {
        let born = Born { boot_ns: 0, task: task(pid), parent: parent.map(id), namespaces: Namespaces::default() };
        processes.apply(ProcessChange::Exec(Box::new(born), Image::default()), Instant::now());
    }
    Owners::new(host(holders), processes, Box::new(|| None), 0)
}

fn bound(pid: u32, shared: bool) -> Option<Owner> {
    Some(Owner { task: task(pid), bound_ns: Some(0), source: OwnerSource::Connect, shared })
}

fn dropped(owner: Option<Owner>, current_pid: u32, locked: bool) -> Dropped {
    let example = Dropped::example();
    let socket = example.socket.map(|socket| Socket { locked, ..socket });
    Dropped { owner, current_pid, socket, ..example }
}

fn who(owners: &mut Owners<Fake>, dropped: &Dropped) -> Option<(u32, OwnerKnown, OwnerBy)> {
    match owners.owner(dropped, &mut Search::default(), true) {
        Poll::Ready(found) => found.map(|found| (found.id.pid, found.known, found.by)),
        Poll::Pending => panic!("it was the last look"),
    }
}

/// Whether a packet is forwarded, looked at for the last time.
fn is_forwarded(owners: &mut Owners<Fake>, dropped: &Dropped) -> bool {
    owners.is_forwarded(dropped, &mut Search::default(), true) == Poll::Ready(true)
}

#[test]
fn a_retransmit_belongs_to_the_owner_whoever_is_on_the_cpu() {
    for current in [0, STRANGER, CHILD] {
        // The child has the socket open too, and is on the CPU: that proves nothing.
        let found = who(&mut owners(&[PARENT, CHILD]), &dropped(bound(PARENT, false), current, false));
        assert_eq!(found, Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
    }
}

#[test]
fn inside_a_call_a_child_of_the_owner_is_the_sender_also_of_what_follows() {
    let mut owners = owners(&[]);
    let found = who(&mut owners, &dropped(bound(PARENT, false), CHILD, true));
    assert_eq!(found, Some((CHILD, OwnerKnown::Syscall, OwnerBy::Send)));
    let later = who(&mut owners, &dropped(bound(PARENT, false), STRANGER, false));
    assert_eq!(later, Some((CHILD, OwnerKnown::Socket, OwnerBy::Send)));
}

#[test]
fn a_stranger_inside_some_call_is_the_sender_only_with_the_socket_in_hand() {
    let passed = dropped(bound(PARENT, false), STRANGER, true);
    assert_eq!(who(&mut owners(&[STRANGER]), &passed), Some((STRANGER, OwnerKnown::Syscall, OwnerBy::Send)));
    let mut seen = passed.clone();
    seen.socket = seen.socket.map(|socket| Socket { held: true, ..socket });
    assert_eq!(who(&mut owners(&[]), &seen), Some((STRANGER, OwnerKnown::Syscall, OwnerBy::Send)));
    assert_eq!(who(&mut owners(&[]), &passed), Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
}

#[test]
fn a_datagram_leaves_inside_the_call_at_output_and_not_on_the_device() {
    let mut datagram = dropped(bound(PARENT, false), CHILD, false);
    datagram.socket = datagram.socket.map(|socket| Socket { datagram: true, ..socket });
    assert_eq!(who(&mut owners(&[]), &datagram), Some((CHILD, OwnerKnown::Syscall, OwnerBy::Send)));
    datagram.hook = Some(Hook::Egress);
    assert_eq!(who(&mut owners(&[]), &datagram), Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
}

#[test]
fn without_an_owner_one_holder_is_an_answer_and_two_are_none() {
    let holder = Some((CHILD, OwnerKnown::Socket, OwnerBy::Holder));
    assert_eq!(who(&mut owners(&[CHILD]), &dropped(None, 0, false)), holder);
    assert_eq!(who(&mut owners(&[CHILD]), &dropped(bound(PARENT, true), STRANGER, true)), holder);
    assert_eq!(who(&mut owners(&[PARENT, CHILD]), &dropped(None, STRANGER, true)), None);
    assert_eq!(who(&mut owners(&[PARENT, CHILD]), &dropped(bound(PARENT, true), CHILD, false)), None);
    assert_eq!(who(&mut owners(&[]), &dropped(None, CHILD, true)), None, "on the CPU without the socket");
}

#[test]
fn an_owner_that_ended_left_the_socket_to_the_one_that_still_has_it() {
    let mut owners = owners(&[CHILD]);
    owners.processes.apply(ProcessChange::Exit { id: id(PARENT), boot_ns: 30 * SECOND }, Instant::now());
    let found = who(&mut owners, &dropped(bound(PARENT, false), 0, false));
    assert_eq!(found, Some((CHILD, OwnerKnown::Socket, OwnerBy::Holder)));
}

#[test]
fn an_owner_that_ended_with_its_socket_is_still_the_owner() {
    let mut owners = owners(&[]);
    owners.processes.apply(ProcessChange::Exit { id: id(PARENT), boot_ns: 30 * SECOND }, Instant::now());
    let found = who(&mut owners, &dropped(bound(PARENT, false), 0, false));
    assert_eq!(found, Some((PARENT, OwnerKnown::Socket, OwnerBy::Connect)));
}

#[test]
fn the_kernels_own_socket_belongs_to_no_process() {
    let mut own = dropped(bound(PARENT, false), PARENT, true);
    own.socket = own.socket.map(|socket| Socket { kernel: true, ..socket });
    assert_eq!(who(&mut owners(&[PARENT]), &own), None);
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
    let found = who(&mut owners(&[CHILD]), &packet);
    assert_eq!(found, Some((CHILD, OwnerKnown::Flow, OwnerBy::Address)));
    assert_eq!(who(&mut owners(&[CHILD, PARENT]), &packet), None);
    assert_eq!(who(&mut owners(&[CHILD]), &forwarded(Direction::Local, "203.0.113.10")), None);
}

#[test]
fn without_a_route_it_is_forwarded_only_to_somebody_elses_address() {
    let mut owners = owners(&[CHILD]);
    assert!(is_forwarded(&mut owners, &forwarded(Direction::Unrouted, "203.0.113.10")));
    assert!(!is_forwarded(&mut owners, &forwarded(Direction::Unrouted, "10.0.0.1")), "inbound");
    assert!(!is_forwarded(&mut owners, &forwarded(Direction::Unrouted, "224.0.0.251")));
    owners.queries = host(&[]);
    let mut stranger = forwarded(Direction::Unrouted, "203.0.113.99");
    assert!(!is_forwarded(&mut owners, &stranger), "a bridge, and nobody here sent it");
    stranger.origin_netns = Some(7);
    assert!(is_forwarded(&mut owners, &stranger), "the other end of a veth");
}

#[test]
fn a_forwarded_packets_sender_is_looked_for_again_without_waiting() {
    let mut owners = owners(&[]);
    let (packet, mut search) = (forwarded(Direction::Forward, "203.0.113.10"), Search::default());
    let began = Instant::now();
    assert!(owners.owner(&packet, &mut search, false).is_pending());
    assert!(owners.owner(&packet, &mut search, false).is_pending(), "it is too early");
    owners.queries = host(&[CHILD]);
    assert_eq!(
        owners.owner(&packet, &mut search, true).map(|found| found.map(|found| found.id.pid)),
        Poll::Ready(Some(CHILD))
    );
    assert!(began.elapsed() < Duration::from_secs(5));
}

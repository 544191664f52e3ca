//! A private namespace with a copy in it, and the packets that are sent there.

use std::{
    cell::Cell,
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, setfsuid},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    depends::Depends,
    netlink::{Body, Netlink},
    ruleset::{self, Listed, Place, TRACE, TRACER},
    surroundings::{self, Surroundings},
};
use crate::model::{Packet, Replayed};

/// Nothing that is asked of a stage takes longer.
const LIMIT: Duration = Duration::from_secs(1);
/// Nothing more is heard of a packet that was sent so long ago.
const QUIET: Duration = Duration::from_millis(20);
/// What is sent with a datagram.
const PAYLOAD: &[u8] = b"observer replay";
/// `NFT_TRACETYPE_POLICY` and `NFT_TRACETYPE_RULE`
const POLICY: u32 = 1;
const RULE: u32 = 3;
/// Codes of verdicts: `NF_DROP`, `NFT_JUMP`, `NFT_GOTO`.
const DROP: u32 = 0;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is in a namespace that packets depend on.
pub struct Copied {
    rules: Listed,
    around: Surroundings,
}

/// Reads the namespace of the calling thread.
pub fn copy() -> Result<Copied> {
    Ok(Copied { rules: ruleset::list()?, around: surroundings::list()? })
}

/// A packet to send, with a number, and what became of it.
type Order = (u64, Packet);
type Answer = (u64, Result<Option<Replayed>>);

/// A stage that is being made.
pub struct Building {
    /// Inode number of its namespace.
    pub netns: u32,
    made: Receiver<Result<Made>>,
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    thread: thread::JoinHandle<()>,
}

/// What is known of a stage once it was made.
struct Made {
    generation: u32,
    depends: Depends,
}

impl Building {
    /// Begins to make one of what arrives; `hide` is told the number of its namespace before there is anything in it.
    pub fn begin(copied: Receiver<Result<Copied>>, hide: impl FnOnce(u32) -> Result<()>) -> Result<Self> {
        let (orders, ordered) = channel::<Order>();
        let (answer, answers) = channel();
        let (enter, entered) = channel();
        let (hidden, go) = channel::<()>();
        let (ready, made) = channel();
        let thread = thread::spawn(move || {
            if enter.send(own_namespace()).is_err() || go.recv().is_err() {
                return;
            }
            let copied = copied.recv().context("the thread in the network namespace failed").and_then(|copied| copied);
            let inside = copied.and_then(|copied| Ok((Inside::make(&copied)?, copied)));
            let (inside, mut copied) = match inside {
                Ok(made) => made,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let known = Made { generation: copied.rules.generation, depends: copied.rules.depends.clone() };
            copied.rules.shrink();
            if ready.send(Ok(known)).is_err() {
                return;
            }
            while let Ok((number, packet)) = ordered.recv() {
                if answer.send((number, inside.send(&copied, &packet))).is_err() {
                    return;
                }
            }
        });
        let netns = entered.recv_timeout(LIMIT).context("no network namespace was made in time")??;
        hide(netns)?;
        let _ = hidden.send(());
        Ok(Self { netns, made, orders, answers, thread })
    }

    /// The stage, if it is there by then; itself if it is not.
    pub fn until(self, deadline: Instant) -> std::result::Result<Result<Stage>, Self> {
        match self.made.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(made) => Ok(made.map(|Made { generation, depends }| Stage {
                netns: self.netns,
                generation,
                depends,
                sent: Cell::new(0),
                orders: self.orders,
                answers: self.answers,
                thread: self.thread,
            })),
            Err(RecvTimeoutError::Disconnected) => Ok(Err(anyhow::anyhow!("the copy's thread failed"))),
            Err(RecvTimeoutError::Timeout) => Err(self),
        }
    }
}

/// A private namespace with a copy of another one's rules. It is gone with its thread, when this is.
pub struct Stage {
    /// Its inode number.
    pub netns: u32,
    /// Number of the ruleset that was copied.
    pub generation: u32,
    depends: Depends,
    /// Number of the last order.
    sent: Cell<u64>,
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    thread: thread::JoinHandle<()>,
}

impl Stage {
    /// What drops this packet there; `None` when it passes, an error where that cannot be told.
    pub fn replay(&self, packet: &Packet) -> Result<Option<Replayed>> {
        ensure!([TCP, UDP].contains(&packet.protocol), "only TCP and UDP are replayed");
        let number = self.sent.get() + 1;
        self.sent.set(number);
        self.orders.send((number, packet.clone())).context("the copy's thread has ended")?;
        loop {
            // One that came too late is an earlier packet's.
            let (of, answer) = self.answers.recv_timeout(LIMIT).context("the copy's thread does not answer")?;
            if of == number {
                return answer;
            }
        }
    }

    /// Why what is found is no proof of itself: something decides by more than the packet.
    pub fn doubt(&self, packet: &Packet) -> Option<&str> {
        let state = self.depends.by_state.as_deref().filter(|_| packet.protocol != TCP);
        self.depends.always.as_deref().or(state)
    }

    /// Ends it, and waits until nobody is in the namespace any more.
    pub fn end(self) {
        let Self { orders, answers, thread, .. } = self;
        drop((orders, answers));
        let _ = thread.join();
    }
}

/// Enters a new namespace; its inode number.
fn own_namespace() -> Result<u32> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let netns = fs::metadata("/proc/thread-self/ns/net").context("cannot read the namespace's number")?.ino();
    Ok(u32::try_from(netns)?)
}

/// What the thread in the namespace has.
struct Inside {
    trace: Netlink,
    /// The copy's rules by their handles.
    places: HashMap<(u8, String, u64), Place>,
    handles: HashMap<Place, u64>,
}

impl Inside {
    fn make(copied: &Copied) -> Result<Self> {
        // Without rules nothing else is needed.
        copied.rules.make()?;
        copied.around.make()?;
        Ok(Self { trace: ruleset::tracer(QUIET)?, places: ruleset::own_places()?, handles: copied.rules.handles() })
    }

    /// Sends one packet, and follows it.
    fn send(&self, copied: &Copied, packet: &Packet) -> Result<Option<Replayed>> {
        // Of an earlier one.
        self.trace.drain();
        let uid = Uid::from_raw(packet.uid);
        let before = setfsuid(uid);
        let is_user = setfsuid(uid) == uid;
        let sent = if is_user { knock(packet) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) };
        setfsuid(before);
        ensure!(is_user, "not allowed to send as user {}", packet.uid);
        let _socket = sent.context("the packet could not be sent in the copy")?;
        let mut own = None;
        let heard = self.trace.heard(|all| {
            own = own.or_else(|| all.iter().find_map(|(_, body)| id_of(body, packet)));
            own.is_some_and(|own| all.last().is_some_and(|(_, body)| id(body) == Some(own) && drops(body)))
        })?;
        let own = own.or_else(|| heard.iter().find_map(|(_, body)| id_of(body, packet)));
        let own = own.context("the packet was not seen in the copy")?;
        let way: Vec<&Body> =
            heard.iter().filter(|(kind, body)| *kind == TRACE && id(body) == Some(own)).map(|(_, body)| body).collect();
        if let (Some(interface), Some(index)) =
            (&packet.interface, way.iter().find_map(|body| body.attributes.number(12)))
        {
            ensure!(
                copied.around.index(interface) == Some(index),
                "the packet leaves by another interface in the copy"
            );
        }
        self.end(copied, &way)
    }

    /// The rule or policy at which it ended, in handles of the original.
    fn end(&self, copied: &Copied, way: &[&Body]) -> Result<Option<Replayed>> {
        // Chains that are being walked, the base chain first, and whose they are.
        let mut walked: Vec<String> = Vec::new();
        let mut of_table = (0, String::new());
        for body in way {
            let (family, of) = (body.fixed.first().copied().unwrap_or(0), &body.attributes);
            let (Some(table), Some(chain)) = (of.text(1), of.text(2)) else { continue };
            if table == TRACER {
                continue;
            }
            if of_table != (family, table.clone()) {
                walked.clear();
                of_table = (family, table.clone());
            }
            match walked.iter().position(|walked| *walked == chain) {
                Some(index) => walked.truncate(index + 1),
                None => walked = vec![chain.clone()],
            }
            let verdict = of.list(5);
            match (of.number(4), verdict.number(1)) {
                (Some(RULE), Some(JUMP | GOTO)) => walked.extend(verdict.text(2)),
                (Some(RULE), Some(DROP)) => {
                    let handle = of.long(3).context("a trace without a rule")?;
                    let place = self
                        .places
                        .get(&(family, table.clone(), handle))
                        .context("a rule that the copy does not have")?;
                    let rule = self.handles.get(place).context("a rule that the original does not have")?;
                    return copied.rules.replayed(family, &table, &walked, *rule).map(Some);
                }
                (Some(POLICY), _) if of.number(16) == Some(DROP) => {
                    return copied.rules.replayed(family, &table, &walked[..1], 0).map(Some);
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

fn id(body: &Body) -> Option<u32> {
    body.attributes.number(6)
}

fn drops(body: &Body) -> bool {
    let of = &body.attributes;
    match of.number(4) {
        Some(RULE) => of.list(5).number(1) == Some(DROP),
        Some(POLICY) => of.number(16) == Some(DROP),
        _ => false,
    }
}

/// The trace's number, when this is the beginning of this very packet's.
fn id_of(body: &Body, packet: &Packet) -> Option<u32> {
    let (network, transport) = (body.attributes.get(8)?, body.attributes.get(9)?);
    let (protocol, destination) = match packet.destination {
        IpAddr::V4(address) => (*network.get(9)?, network.get(16..20)? == address.octets()),
        IpAddr::V6(address) => (*network.get(6)?, network.get(24..40)? == address.octets()),
    };
    let port = u16::from_be_bytes(transport.get(2..4)?.try_into().ok()?);
    (protocol == packet.protocol && destination && port == packet.destination_port).then(|| id(body)).flatten()
}

/// Sends the packet; the socket stays open until it is followed to its end.
fn knock(packet: &Packet) -> io::Result<Socket> {
    let domain = if packet.destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let (kind, protocol) =
        if packet.protocol == TCP { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(packet.source, packet.source_port).into())?;
    let to = SocketAddr::new(packet.destination, packet.destination_port).into();
    let sent = if packet.protocol == TCP { socket.connect(&to) } else { socket.send_to(PAYLOAD, &to).map(drop) };
    match sent {
        Ok(()) => Ok(socket),
        // It is on its way, or was dropped; how it was rejected came at once.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(
                    libc::EINPROGRESS
                        | libc::EPERM
                        | libc::ECONNREFUSED
                        | libc::EHOSTUNREACH
                        | libc::ENETUNREACH
                        | libc::EACCES
                )
            ) =>
        {
            Ok(socket)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A namespace of a thread's own with rules, and the packet that they drop.
    fn staged(rules: &str, packet: &Packet) -> Result<Option<Replayed>> {
        let rules = rules.to_owned();
        let (send, receive) = channel();
        thread::spawn(move || {
            let read = || -> Result<Copied> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let mut nft =
                    std::process::Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn()?;
                io::Write::write_all(nft.stdin.as_mut().context("no input")?, rules.as_bytes())?;
                drop(nft.stdin.take());
                if !nft.wait()?.success() {
                    anyhow::bail!("nft refuses the rules");
                }
                copy()
            };
            let _ = send.send(read());
        });
        let stage = Building::begin(receive, |_| Ok(()))
            .unwrap()
            .until(Instant::now() + Duration::from_secs(10))
            .map_err(|_| anyhow::anyhow!("slow"))??;
        stage.replay(packet)
    }

    #[test]
    fn a_loopback_packet_meets_its_rule() {
        if !Uid::effective().is_root() {
            return;
        }
        let packet = Packet {
            protocol: UDP,
            source: "127.0.0.1".parse().unwrap(),
            source_port: 0,
            destination: "127.0.0.1".parse().unwrap(),
            destination_port: 7,
            uid: 0,
            interface: None,
        };
        let rules = "table inet t {\n chain x {\n udp dport 7 counter drop\n }\n chain o {\n type filter hook output priority 0;\n \
                     udp dport 8 drop\n jump x\n }\n}\n";
        let found = staged(rules, &packet).unwrap().unwrap();
        assert_eq!(found.path, ["o", "x"]);
        assert!(staged(rules, &Packet { destination_port: 9, ..packet.clone() }).unwrap().is_none());
        let by_policy =
            staged("table ip t {\n chain o {\n type filter hook output priority 0; policy drop;\n }\n}\n", &packet);
        assert_eq!(by_policy.unwrap().unwrap().rule, 0);
    }
}

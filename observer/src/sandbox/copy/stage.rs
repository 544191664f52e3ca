//! A private namespace with a copy in it, kept by a thread that lives there.

use std::{
    cell::Cell,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

use super::{
    choices::Choices,
    conntrack::Connection,
    copied::{Copied, Version},
    inside::{Ended, Inside},
    lab::{Caller, Held, Lab, Talk},
    listeners::Transport,
    marks::{Mark, Reason},
    packet::Whole,
    surroundings::Surroundings,
    ways::Ways,
};
use crate::{
    firewall::{files::Root, legacy::Table},
    model::{End, NamedRule, Origin, Packet, Statement},
    patience,
};

/// Nothing that a stage is asked takes longer: neither a conversation nor one packet, even if a second copy is made for it first.
const LIMIT_OF_TALKS: Duration = Duration::from_secs(8);
/// Keeps a namespace from being observed, by its inode number, as long as what it returns lives.
pub type Hide = Arc<dyn Fn(u32) -> Result<Box<dyn Send>> + Send + Sync>;
/// What the threads that live in copies are called.
const THREAD: &str = "replay";

/// A packet to send.
pub struct Order {
    /// The packet.
    pub packet: Packet,
    /// What its connection is.
    pub connection: Connection,
    /// The open `cgroup.procs` of the cgroup in which its socket is to be made, where that matters.
    pub cgroup: Option<File>,
}

/// What is done in a stage.
enum Task {
    Packet(Box<Order>),
    Talk(Box<Talk>),
}

/// What came of it.
enum Done {
    Packet(Ended),
    Talk(Held, Vec<Mark>),
}

/// With its number; and what became of it.
type Numbered = (u64, Task);
type Answer = (u64, Result<Done>);

/// A stage that is being made.
pub struct Building {
    made: Receiver<Result<KnownOfIt>>,
    orders: Sender<Numbered>,
    answers: Receiver<Answer>,
}

/// What is known of a stage once it was made.
struct KnownOfIt {
    took: Duration,
    version: Version,
    legacy: Vec<Table>,
    asks_for_cgroups: bool,
    around: Arc<Surroundings>,
    only_packets: Option<String>,
}

/// What the thread in a stage has.
struct Stage {
    hide: Hide,
    logs: bool,
    lab: Option<Lab>,
    /// The same with rules that go another way.
    ways: Ways,
    /// Why there is none, where there should be one.
    why: Option<String>,
    /// For single packets; beside a lab it has a namespace of its own.
    inside: Option<Inside>,
    namespaces: Option<(File, File, Box<dyn Send>)>,
}

impl Stage {
    fn new(copied: &Copied, talks: bool, logs: bool, hide: Hide) -> Result<Self> {
        let lab = talks.then(|| Lab::new(copied, &Choices::new(), logs, &*hide));
        let (lab, why) = match lab {
            None => (None, None),
            Some(Ok(lab)) => (Some(lab), None),
            Some(Err(error)) => {
                log::debug!("no conversations are held: {error:#}");
                (None, Some(format!("{error:#}")))
            }
        };
        let mut stage = Self { hide, logs, lab, ways: Ways::default(), why, inside: None, namespaces: None };
        if stage.lab.is_none() {
            // What was half made is left behind.
            if stage.why.is_some() {
                let hidden = (stage.hide)(own_namespace()?)?;
                let own = || File::open("/proc/thread-self/ns/net").context("cannot open the thread's namespace");
                stage.namespaces = Some((own()?, own()?, hidden));
            }
            stage.inside = Some(Inside::new(copied, logs)?);
        }
        Ok(stage)
    }

    fn carry_out(&mut self, copied: &mut Copied, task: &Task) -> Result<Done> {
        match task {
            Task::Talk(talk) => {
                let lab = self.lab.as_ref().context("no conversations are held here")?;
                let held = self.ways.hold(lab, (copied, talk), (&self.hide, self.logs));
                held.map(|(held, marks)| Done::Talk(held, marks))
            }
            Task::Packet(order) if self.lab.is_none() => {
                self.inside.as_ref().context("no packets are sent here")?.send(copied, order).map(Done::Packet)
            }
            Task::Packet(order) => {
                let own = || File::open("/proc/thread-self/ns/net").context("cannot open the thread's namespace");
                let (lab, packets, _) = match self.namespaces.take() {
                    Some(namespaces) => self.namespaces.insert(namespaces),
                    None => {
                        let home = own()?;
                        let made = || anyhow::Ok(((self.hide)(own_namespace()?)?, own()?));
                        match made() {
                            Ok((hidden, namespace)) => self.namespaces.insert((home, namespace, hidden)),
                            Err(error) => {
                                setns(&home, CloneFlags::CLONE_NEWNET).context("cannot return to the copy")?;
                                return Err(error);
                            }
                        }
                    }
                };
                setns(&*packets, CloneFlags::CLONE_NEWNET).context("cannot enter the copy")?;
                let mut send = || -> Result<Ended> {
                    if self.inside.is_none() {
                        self.inside = Some(Inside::new(copied, self.logs)?);
                    }
                    self.inside.as_ref().context("no packets are sent here")?.send(copied, order)
                };
                let sent = send();
                setns(&*lab, CloneFlags::CLONE_NEWNET).context("cannot return to the copy")?;
                sent.map(Done::Packet)
            }
        }
    }
}

impl Building {
    /// Begins to make one of what arrives, by a detached thread: for single packets, or for conversations, too (`talks`). `hide`
    /// gets the inode number of each of its namespaces before anything is in it; what it returns is dropped when
    /// nothing is done there any more. `logs`: see [`logs_everywhere`].
    pub fn begin(copied: Receiver<Result<Copied>>, (logs, talks): (bool, bool), hide: Hide) -> Result<Self> {
        let began = Instant::now();
        let (orders, ordered) = channel::<Numbered>();
        let (answer, answers) = channel();
        let (ready, made) = channel();
        thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
            let _hidden = match own_namespace().and_then(|number| hide(number)) {
                Ok(hidden) => hidden,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let copied = copied.recv().context("the thread in the network namespace failed").and_then(|copied| copied);
            let stage = copied.and_then(|mut copied| {
                let stage = Stage::new(&copied, talks, logs, hide)?;
                let known = KnownOfIt {
                    took: began.elapsed(),
                    version: copied.version()?,
                    legacy: copied.legacy.clone(),
                    asks_for_cgroups: copied.asks_for_cgroups(),
                    around: Arc::clone(&copied.around),
                    only_packets: stage.why.clone(),
                };
                if !talks {
                    copied.rules.shrink();
                }
                Ok((stage, copied, known))
            });
            let (mut stage, mut copied, known) = match stage {
                Ok(made) => made,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            if ready.send(Ok(known)).is_err() {
                return;
            }
            while let Ok((number, task)) = ordered.recv() {
                let done = stage.carry_out(&mut copied, &task);
                if answer.send((number, done)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { made, orders, answers })
    }

    /// The stage, if it is there by then; itself if it is not.
    pub fn until(self, deadline: Instant) -> std::result::Result<Result<Sandbox>, Self> {
        match self.made.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(made) => {
                Ok(made.map(|KnownOfIt { took, version, legacy, asks_for_cgroups, around, only_packets }| Sandbox {
                    took,
                    version,
                    legacy,
                    asks_for_cgroups,
                    around,
                    only_packets,
                    sent: Cell::new(0),
                    until: Cell::new(None),
                    orders: self.orders,
                    answers: self.answers,
                }))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(Err(anyhow::anyhow!("the copy's thread failed"))),
            Err(RecvTimeoutError::Timeout) => Err(self),
        }
    }
}

/// A private namespace with a copy of another one's rules. It is gone with its thread, when this is.
pub struct Sandbox {
    /// How long it took to make.
    pub took: Duration,
    /// The rules that were copied.
    pub version: Version,
    legacy: Vec<Table>,
    asks_for_cgroups: bool,
    around: Arc<Surroundings>,
    only_packets: Option<String>,
    /// Number of the last order.
    sent: Cell<u64>,
    /// Nothing is waited for behind this.
    until: Cell<Option<Instant>>,
    orders: Sender<Numbered>,
    answers: Receiver<Answer>,
}

impl Sandbox {
    /// What drops this packet there, `None` when it passes; and why the original may decide differently: something looks at more than
    /// the packet. An error where it cannot be reported.
    pub fn replay(&self, order: Order) -> Result<(Option<End>, Option<String>)> {
        let whole = Whole::of(&order.packet)?;
        let is_cut = whole.bytes.len() < order.packet.length as usize;
        let is_known = whole.begins() || !matches!(order.connection, Connection::Unknown);
        let (is_in_cgroup, is_made) = (order.cgroup.is_some(), order.packet.is_made);
        let is_forwarded = matches!(order.packet.origin, Origin::Interface { .. });
        let Done::Packet((end, marks)) = self.done(Task::Packet(Box::new(order)), patience::here(LIMIT_OF_TALKS))?
        else {
            bail!("the copy's thread has done something else");
        };
        let matters = |mark: &&Mark| match mark.reason {
            Reason::Anything => true,
            Reason::State => !is_known,
            Reason::Cgroup => !is_in_cgroup,
            Reason::Header | Reason::Length | Reason::Content => is_made,
            Reason::SourcePort | Reason::DestinationPort => is_made,
            Reason::Forwarded => is_forwarded,
            Reason::Socket => !is_made,
            Reason::Unheard => false,
        };
        let by_length = is_cut.then(|| "it is longer than what is sent again".to_owned());
        Ok((end, by_length.or(marks.iter().find(matters).map(|mark| mark.words.clone()))))
    }

    /// What becomes of a conversation there. `is_made`: nobody has begun one like it, so its sender is what it is said to be;
    /// `is_later`: but for its cgroup, which is not there yet.
    pub(crate) fn hold(&self, talk: Talk, (is_made, is_later): (bool, bool)) -> Result<Talked> {
        // What an application would say is not known, and a datagram is as long as that.
        let is_datagram = talk.transport == Transport::Udp;
        let (is_in_cgroup, is_forwarded) = match &talk.from {
            Caller::Here { cgroup, .. } => (cgroup.is_some() || is_made && !is_later, false),
            Caller::Behind { .. } => (false, true),
        };
        let limit = patience::here(LIMIT_OF_TALKS);
        let Done::Talk(held, marks) = self.done(Task::Talk(Box::new(talk)), limit)? else {
            bail!("the copy's thread has done something else");
        };
        let is_held = held.is_completed();
        let matters = |mark: &&Mark| match mark.reason {
            Reason::Anything => true,
            Reason::Cgroup => !is_in_cgroup,
            Reason::Forwarded => is_forwarded,
            Reason::Socket => !is_made,
            Reason::Length => is_made && is_datagram,
            // By TCP something else is said than what its sender would say.
            Reason::Content => is_made || !is_datagram,
            Reason::SourcePort | Reason::DestinationPort => is_made,
            Reason::State | Reason::Header | Reason::Unheard => false,
        };
        // A part of another length may be stopped where none was here, and so may be what another end writes.
        let is_usual = |mark: &&Mark| is_made && is_held && matches!(mark.reason, Reason::Length | Reason::Header);
        let first = |which: &dyn Fn(&&Mark) -> bool| marks.iter().find(which).map(|mark| mark.words.clone());
        let unheard = first(&|mark| mark.reason == Reason::Unheard);
        Ok(Talked { doubt: first(&matters), usual: first(&is_usual), unheard, held })
    }

    /// Nothing that is asked is waited for behind this.
    pub(crate) fn not_after(&self, until: Instant) {
        self.until.set(Some(until));
    }

    fn done(&self, task: Task, limit: Duration) -> Result<Done> {
        let left = self.until.get().map(|until| until.saturating_duration_since(Instant::now()));
        let limit = left.map_or(limit, |left| left.min(limit));
        let number = self.sent.get() + 1;
        self.sent.set(number);
        self.orders.send((number, task)).context("the copy's thread has ended")?;
        loop {
            // One that came too late is an earlier packet's.
            let (of, answer) = self.answers.recv_timeout(limit).context("the test took too long")?;
            if of == number {
                return answer;
            }
        }
    }

    /// A rule or policy of iptables-legacy in the words of its front end, whose files are looked for below `roots`.
    pub fn statement(&self, named: &NamedRule, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
        self.legacy.iter().find(|table| table.has(named))?.statement(named, roots)
    }

    /// Why no conversations are held in it; nothing where they are.
    pub(crate) fn only_packets(&self) -> Option<&str> {
        self.only_packets.as_deref()
    }

    /// What is around the rules.
    pub(crate) fn around(&self) -> &Surroundings {
        &self.around
    }

    /// It is to be sent from its sender's cgroup.
    pub fn asks_for_cgroups(&self) -> bool {
        self.asks_for_cgroups
    }
}

/// What became of a conversation in a copy.
pub(crate) struct Talked {
    pub(crate) held: Held,
    /// Why the original may decide differently, in words.
    pub(crate) doubt: Option<String>,
    /// What else one that is held depends on, which is the same for most packets, in words.
    pub(crate) usual: Option<String>,
    /// Where it comes to on this host itself nobody listens, in words.
    pub(crate) unheard: Option<String>,
}

/// Enters a new namespace; its inode number.
pub fn own_namespace() -> Result<u32> {
    crate::sys::name_copy_thread();
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let netns = fs::metadata("/proc/thread-self/ns/net").context("cannot read the namespace's number")?.ino();
    Ok(u32::try_from(netns)?)
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;
    use crate::sandbox::copy::{
        copied::{logs_everywhere, take},
        packet::datagram,
        shape::Shape,
    };

    /// A namespace of a thread's own with rules, and the packet that they drop.
    fn staged(program: &'static str, rules: &str, packet: &Packet) -> Result<Option<End>> {
        let rules = rules.to_owned();
        let (send, receive) = channel();
        thread::spawn(move || {
            let read = || -> Result<Copied> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let mut child = std::process::Command::new("sh")
                    .args(["-c", program])
                    .stdin(std::process::Stdio::piped())
                    .spawn()?;
                std::io::Write::write_all(child.stdin.as_mut().context("no input")?, rules.as_bytes())?;
                drop(child.stdin.take());
                ensure!(child.wait()?.success(), "the rules are refused");
                take(usize::MAX)
            };
            let _ = send.send(read());
        });
        let stage = Building::begin(receive, (logs_everywhere(), false), Arc::new(|_| Ok(Box::new(()))))
            .unwrap()
            .until(Instant::now() + Duration::from_secs(10))
            .map_err(|_| anyhow::anyhow!("slow"))??;
        Ok(stage.replay(Order { packet: packet.clone(), connection: Connection::New, cgroup: None })?.0)
    }

    #[test]
    fn a_loopback_packet_meets_its_rule() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let rules = "table inet t {\n chain x {\n udp dport 7 counter drop\n }\n chain o {\n type filter hook output priority 0;\n \
                     udp dport 8 drop\n jump x\n }\n}\n";
        let nft = |rules: &str, port: u16| match staged("nft -f -", rules, &datagram(port)).unwrap() {
            Some(End::Nft(end)) => Some((end.rule, end.path)),
            None => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(nft(rules, 7).unwrap().1, ["o", "x"]);
        assert!(nft(rules, 9).is_none());
        let policy = "table ip t {\n chain o {\n type filter hook output priority 0; policy drop;\n }\n}\n";
        assert_eq!(nft(policy, 7).unwrap().0, 0);
    }

    #[test]
    fn a_loopback_packet_meets_its_rule_of_iptables_legacy() {
        let has_legacy = std::process::Command::new("iptables-legacy-save").output().is_ok();
        if !nix::unistd::Uid::effective().is_root() || !has_legacy {
            return;
        }
        let legacy = |rules: &str, port: u16| match staged("iptables-legacy-restore", rules, &datagram(port)).unwrap() {
            Some(End::Legacy(rule)) => Some((rule.chain, rule.position, rule.path, rule.verdict, rule.text)),
            None => None,
            other => panic!("{other:?}"),
        };
        let rules = "*filter\n:OUTPUT ACCEPT\n:a -\n:b -\n-A OUTPUT -p udp --dport 5 -j RETURN\n-A OUTPUT -p udp --dport 5 -j DROP\n\
                     -A OUTPUT -p tcp -j DROP\n-A OUTPUT -p udp -j a\n-A OUTPUT -p udp --dport 9 -j DROP\n\
                     -A a -p udp --dport 6 -j RETURN\n-A a -p udp -m comment --comment x\n-A a -p udp -g b\n-A a -j DROP\n\
                     -A b -p udp --dport 7 -j REJECT\n-A b -p udp --dport 8 -j DROP\nCOMMIT\n";
        let (chain, position, path, verdict, text) = legacy(rules, 7).unwrap();
        assert_eq!((chain.as_str(), position, verdict), ("b", Some(1), Some(crate::model::Verdict::Reject)));
        assert_eq!(path, ["OUTPUT", "a", "b"]);
        assert_eq!(text.as_deref(), Some("-p udp -m udp --dport 7 -j REJECT --reject-with icmp-port-unreachable"));
        assert_eq!(legacy(rules, 8).unwrap().1, Some(2));
        let (chain, position, path, ..) = legacy(rules, 9).unwrap();
        assert_eq!((chain.as_str(), position, path), ("OUTPUT", Some(5), vec!["OUTPUT".to_owned()]));
        assert!(legacy(rules, 5).is_none() && legacy(rules, 6).is_none());
        let policy = legacy("*filter\n:OUTPUT DROP\nCOMMIT\n", 7).unwrap();
        assert_eq!((policy.0.as_str(), policy.1), ("OUTPUT", None));
    }

    /// A copy does what its original does, whatever its rules and sets are called.
    #[test]
    fn a_copy_has_the_same_shape() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        const RULES: &str = "table inet t {\n set s {\n type ipv4_addr; flags interval; elements = { 203.0.113.0/24, 198.51.100.1 }\n }\n \
            chain x {\n udp dport { 53, 123 } drop\n }\n chain o {\n type filter hook output priority 0;\n \
            ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24, 2002:a00::/24 } log prefix \"a \" drop\n ct state { established, related } counter accept\n \
            ip daddr @s log\n ip daddr @s limit rate 3/minute drop\n udp dport vmap { 1 : drop, 2 : jump x }\n }\n}\n";
        let both = thread::spawn(|| -> Result<(Shape, Shape)> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let mut child =
                std::process::Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn()?;
            std::io::Write::write_all(child.stdin.as_mut().context("no input")?, RULES.as_bytes())?;
            drop(child.stdin.take());
            ensure!(child.wait()?.success(), "the rules are refused");
            let mut original = take(usize::MAX)?;
            let shape = original.shape()?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            original.make_anew(logs_everywhere())?;
            Ok((shape, original.again()?.shape()?))
        });
        let (original, copied) = both.join().unwrap().unwrap();
        assert_eq!(original, copied);
    }
}

//! Everything that can be asked of the helper: a type for each question, which names the type of its answer. One question, one
//! answer, in one datagram each, as postcard writes them.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::channel::MAX_MESSAGE;
use crate::{
    firewall::{denies::Denies, inventory::Inventory},
    kernel::symbols::Functions,
    model::{
        Connect, ContainerName, Decision, Difference, DocumentPart, Facts, NetnsPlace, Packet, Preflight, Preflighted,
        Remedy, Replay, Share, Stopped, Wanted, WantedRule,
    },
    probe::calibrate::{
        proof::{Prepared, Unproven},
        selftest::Sent,
    },
};

/// A question, and what answers it.
pub trait Question: Into<Request> {
    /// Type of the answer.
    type Answer: Serialize + DeserializeOwned;
}

/// A question that can be asked without waiting, by [`HostQueries::poll`](super::HostQueries::poll): `Shared::answer` knows its answer.
pub trait Polled: Question {}

impl Polled for Rule {}
impl Polled for Listen {}
impl Polled for Differ {}
impl Polled for Resend {}
impl Polled for FixOf {}
impl Polled for Place {}
impl Polled for RulesetText {}
impl Polled for RoutesText {}
impl Polled for UnitText {}

impl Request {
    /// It takes long, because something is tried: others are not to wait behind it.
    pub(super) fn is_trial(&self) -> bool {
        matches!(self, Self::Resend(_) | Self::FixOf(_))
    }
}

/// What is sent: a number that the answer has too, on whose account it is asked, and the question.
#[derive(Debug, Serialize, Deserialize)]
pub struct Message {
    /// Number of the question.
    pub id: u64,
    /// For whom the helper works.
    pub share: Share,
    /// The question.
    pub request: Request,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply<A> {
    /// The answer.
    Is(A),
    /// It is longer than a message can be.
    TooLong,
}

/// A message as it is sent.
pub(super) fn encode_message(id: u64, share: Share, request: &Request) -> Result<Vec<u8>> {
    Ok(postcard::to_stdvec(&Message { id, share, request: request.clone() })?)
}

/// The message that was sent.
pub(super) fn decode_message(bytes: &[u8]) -> Result<Message> {
    postcard::from_bytes(bytes).context("a message of another kind")
}

/// An answer, before it has a number.
pub(crate) fn encode<Q: Question>(answer: &Q::Answer) -> Vec<u8> {
    postcard::to_stdvec(answer).unwrap_or_default()
}

/// The reply with that number to be sent: whole, or that it is too long. Written in pieces, for whoever sends it does not know the
/// answer's type.
pub(super) fn reply(id: u64, answer: &[u8]) -> Vec<u8> {
    let mut whole = postcard::to_stdvec(&(id, &Reply::Is(()))).unwrap_or_default();
    whole.extend_from_slice(answer);
    if whole.len() <= MAX_MESSAGE {
        return whole;
    }
    postcard::to_stdvec(&(id, &Reply::<()>::TooLong)).unwrap_or_default()
}

/// Number of the question that a reply answers.
pub(super) fn number(reply: &[u8]) -> Option<u64> {
    postcard::take_from_bytes(reply).ok().map(|(id, _)| id)
}

/// A reply: the number of its question, and the answer.
pub(super) fn decode<Q: Question>(reply: &[u8]) -> Result<(u64, Result<Q::Answer>)> {
    let (id, reply): (u64, Reply<Q::Answer>) = postcard::from_bytes(reply).context("it answered something else")?;
    let answer = match reply {
        Reply::Is(answer) => Ok(answer),
        Reply::TooLong => Err(anyhow::anyhow!("the answer is too long")),
    };
    Ok((id, answer))
}

/// Types of questions, the list of all of them, and their answers' types.
macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? } => $answer:ty;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Serialize, Deserialize)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $kind,)*
            }

            impl Question for $name {
                type Answer = $answer;
            }

            impl From<$name> for Request {
                fn from(question: $name) -> Self {
                    Self::$name(Box::new(question))
                }
            }
        )*

        /// Any question.
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub enum Request {
            $(
                #[doc = concat!("See [`struct@", stringify!($name), "`].")]
                $name(Box<$name>),
            )*
        }
    };
}

questions! {
    /// Facts about a process; nothing when it is gone or another one.
    FactsOf {
        /// Process id.
        pid: u32,
        /// Only if it started then, in clock ticks since boot.
        start_ticks: Option<u64>,
    } => Option<Facts>;
    /// Whether a process has a socket open.
    Holds {
        /// Process id.
        pid: u32,
        /// Inode number of the socket file.
        inode: u64,
    } => bool;
    /// Processes that have a socket open.
    Holders {
        /// Inode number of the socket file.
        inode: u64,
    } => Vec<u32>;
    /// Path of a cgroup.
    CgroupPath {
        /// Its id.
        id: u64,
    } => Option<String>;
    /// What a container is called.
    NameOfContainer {
        /// Its full id.
        id: String,
    } => Option<ContainerName>;
    /// Whether an interface of a network namespace has an address; nothing when that cannot be read.
    Owns {
        /// Its inode number.
        netns: u32,
        /// The address.
        address: IpAddr,
    } => Option<bool>;
    /// Network namespaces that have an address, by their inode numbers.
    Homes {
        /// The address.
        address: IpAddr,
        /// The namespace that forwards for them, which is left out.
        forwarder: u32,
    } => Vec<u32>;
    /// Sockets that can have sent a packet, by their inode numbers.
    Sockets {
        /// Its addresses.
        wanted: Wanted,
        /// Inode number of the namespace that they are in.
        netns: u32,
    } => Vec<u64>;
    /// Which firewalls decide in a network namespace.
    Firewalls {
        /// Its inode number; without one, the host's own.
        netns: Option<u32>,
    } => Result<Inventory, String>;
    /// What can block outbound traffic, in the host's own network namespace.
    AllDenies {} => Result<Denies, String>;
    /// Send one packet into a drop, in a namespace that is made for it: what was sent, or why nothing could be.
    SelfTest {} => Result<Sent, String>;
    /// The rule that dropped a packet, found in the ruleset; or what else did.
    Rule {
        /// What the eBPF side saw.
        wanted: WantedRule,
    } => Result<Option<Decision>, String>;
    /// Listen to changes of a network namespace's rules. Two descriptors come with the answer: a socket, and a process that lives
    /// there.
    Listen {
        /// Its inode number.
        netns: u32,
    } => Result<(), String>;
    /// What differs in the rules of a network namespace from an earlier ruleset; nothing when they were not read before, or not of
    /// late.
    Differ {
        /// Its inode number.
        netns: u32,
        /// The ruleset's number after the change: an answer to an earlier question is none to this one.
        generation: Option<u32>,
        /// Number of the earlier ruleset: that of the last difference; without one the first that was read.
        since: Option<u32>,
    } => Result<Option<Difference>, String>;
    /// A part of a ruleset that was read, compressed; nothing when it is not kept any more.
    RulesetText {
        /// Inode number of its network namespace.
        netns: u32,
        /// SHA-256 of its text.
        sha256: String,
        /// The part begins with this byte.
        from: u64,
    } => Result<Option<DocumentPart>, String>;
    /// Routes of a network namespace, as text.
    RoutesText {
        /// Its inode number.
        netns: u32,
    } => Result<String, String>;
    /// What a systemd unit of the system says of networks; nothing where it has no file.
    UnitText {
        /// Its name.
        unit: String,
    } => Option<String>;
    /// Where the kernel's functions are that the eBPF side must know.
    FunctionsNow {
        /// How often its modules have changed: asked again, the answer is the same.
        changes: u64,
    } => Functions;
    /// Begin a real connection, or make a socket for datagrams that is connected. It comes with the answer, unless that failed:
    /// with what number of an error, if with any, and in words.
    Begin {
        /// Where to, and as whom.
        wanted: Connect,
    } => Result<(), (Option<i32>, String)>;
    /// Keep the map, whose descriptor comes with this, by which the eBPF side tells network namespaces' cookies.
    NetnsCookies {} => Result<(), String>;
    /// Keep two programs, whose descriptors come with this, for [`struct@ArmVerdicts`].
    VerdictPrograms {} => Result<(), String>;
    /// Keep the map, whose descriptor comes with this, that names observer's own namespaces; and copy the rules of this network
    /// namespace already. Whether this kernel has at hand what a copy takes.
    OwnNamespaces {
        /// Its inode number.
        netns: Option<u32>,
    } => Result<bool, String>;
    /// Whether packets can be replayed here: how long a small copy takes.
    ProveReplay {} => Result<Duration, String>;
    /// Send a packet through a copy of a network namespace's rules; or why there is no copy.
    Resend {
        /// Its inode number.
        netns: u32,
        /// The packet.
        packet: Packet,
        /// A copy that is being made is waited for a moment.
        waits: bool,
    } => Result<Replay, String>;
    /// What would let a packet through: asked again until it is known; or why it cannot be looked for.
    FixOf {
        /// What is stopped.
        stopped: Stopped,
        /// Whatever else is being tried is given up for it.
        is_urgent: bool,
    } => Result<Remedy, String>;
    /// Whether a process is the helper of an observer.
    IsAHelper {
        /// Its process id.
        pid: u32,
    } => bool;
    /// What a network namespace is, and how to get into it.
    Place {
        /// Its inode number.
        netns: u32,
        /// Its cookie, or 0: an answer about another one that had the number before is none to this question.
        cookie: u64,
    } => NetnsPlace;
    /// Look whether destinations would be let out.
    BeginPreflight {
        /// They.
        asked: Preflight,
    } => Result<(), String>;
    /// What came of that: asked again until it is known.
    EndPreflight {} => Result<Option<Preflighted>, String>;
    /// End the programs of trials: the caller skipped the fix.
    SkipTrials {} => ();
    /// Keep a program, whose descriptor comes with this, for [`struct@ArmAnswers`].
    AnswerProgram {} => Result<(), String>;
    /// Attach it where datagrams come in, for so long from now on.
    ArmAnswers {
        /// How long.
        time: Duration,
    } => Result<(), String>;
    /// Attach them to the functions that give verdicts, for so long from now on.
    ArmVerdicts {
        /// Not at all when zero.
        time: Duration,
        /// Only what a proof needs, and wait for that.
        is_proof: bool,
    } => Result<(), String>;
    /// Make a namespace with rules that drop, for a proof.
    PrepareProof {
        /// As in [`struct@FunctionsNow`], which is asked next.
        changes: u64,
    } => Result<Prepared, Unproven>;
    /// Send the proof's packets.
    SendProof {} => Result<(), String>;
    /// The proof's namespace is not needed any more.
    EndProof {} => ();
    /// Keep the other end of a second connection, whose descriptor comes with this: asynchronous questions come by it.
    SecondConnection {} => ();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Decider, Fix, NamedRule};

    fn answered<Q: Question>(answer: &Q::Answer) -> Result<Q::Answer> {
        let (id, answer) = decode::<Q>(&reply(7, &encode::<Q>(answer)))?;
        anyhow::ensure!(id == 7, "the number is {id}");
        answer
    }

    proptest! {
        #[test]
        fn answers_arrive_as_they_are(fix: Fix, decider: Decider, difference: Option<Difference>) {
            let remedy = Ok(Remedy::Is(Box::new(fix)));
            prop_assert_eq!(answered::<FixOf>(&remedy).unwrap(), remedy);
            let decision = Ok(Some(Decision { rule: Some(NamedRule::example("drop")), decider: Some(decider) }));
            prop_assert_eq!(answered::<Rule>(&decision).unwrap(), decision);
            let difference = Ok(difference);
            prop_assert_eq!(answered::<Differ>(&difference).unwrap(), difference);
        }
    }

    #[test]
    fn questions_arrive_as_they_are() {
        let request = Request::from(Place { netns: 5, cookie: u64::MAX });
        let message = decode_message(&encode_message(3, Share::User(1000), &request).unwrap()).unwrap();
        assert_eq!((message.id, message.share), (3, Share::User(1000)));
        assert!(matches!(message.request, Request::Place(place) if (place.netns, place.cookie) == (5, u64::MAX)));
        assert!(decode_message(&[255, 255]).is_err());
    }

    #[test]
    fn what_is_too_long_is_said_to_be() {
        let answer = encode::<NameOfContainer>(&Some(ContainerName { name: "x".repeat(MAX_MESSAGE), pod: None }));
        let sent = reply(u64::MAX, &answer);
        assert!(sent.len() < 20 && number(&sent) == Some(u64::MAX));
        let (_, answer) = decode::<NameOfContainer>(&sent).unwrap();
        assert_eq!(answer.unwrap_err().to_string(), "the answer is too long");
        assert!(decode::<NameOfContainer>(&[]).is_err() && number(&[]).is_none());
    }
}

//! The helper process: started first, asked one question at a time, gone with its parent.

use std::{
    ffi::CString,
    io::{IoSlice, IoSliceMut},
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::{
        prctl,
        signal::{SigHandler, Signal},
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socketpair,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
    unistd::ForkResult,
};

use super::{
    protocol::{Request, Response},
    server,
};
use crate::{
    enrich::{assemble::HELPER, attribute::Eyes, changes::Listening},
    firewall::{denies::Denies, inventory::Inventory},
    model::{
        Connect, ContainerName, Decision, Difference, Facts, Packet, Preflight, Preflighted, Remedy, Replay, Stopped,
        Wanted, WantedRule,
    },
    patience,
    probe::{
        proof::{Prepared, Unproven},
        rules::Proving,
        selftest::Sent,
        symbols::Functions,
    },
};

/// Longest message; arguments are cut well below it.
const MAX_MESSAGE: usize = 128 * 1024;
/// Descriptors that come with an answer at most.
const MAX_DESCRIPTORS: usize = 2;
/// An answer that takes longer is given up. Walking /proc on a large host takes milliseconds; a process that hangs in the
/// kernel can hold up whoever reads its command line.
const PATIENCE: Duration = Duration::from_secs(3);
/// What goes on is asked about so often.
const STEP: Duration = Duration::from_millis(10);
/// The same at start, when nothing waits behind a question and some answers take their time.
const START_SECONDS: i64 = 30;

/// The helper does not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the helper process does not answer: {0}")]
pub struct HelperError(String);

/// This side's end of the helper.
pub struct Helper {
    socket: OwnedFd,
    /// Process id of the helper.
    pub pid: u32,
    /// Number of the last question.
    asked: u64,
    /// The answer to the last question is still out.
    waiting: bool,
    /// A proof is being prepared.
    begun: bool,
    /// What came with the last answer.
    descriptors: Vec<OwnedFd>,
    /// The first time it did not answer.
    failure: Option<HelperError>,
}

impl Helper {
    /// Starts the helper. Must be called before any thread is started.
    pub fn start() -> Result<Self> {
        Self::start_that(false)
    }

    /// The same; one that begins real connections when it is asked to, as whoever is named.
    pub fn start_for_connections() -> Result<Self> {
        Self::start_that(true)
    }

    fn start_that(may_connect: bool) -> Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .context("cannot make a socket pair")?;
        match crate::sys::fork_single_threaded().context("cannot start the helper process")? {
            ForkResult::Parent { child } => {
                drop(theirs);
                setsockopt(&ours, ReceiveTimeout, &TimeVal::seconds(START_SECONDS))
                    .context("cannot set a time limit")?;
                Ok(Self {
                    socket: ours,
                    pid: child.as_raw().unsigned_abs(),
                    asked: 0,
                    waiting: false,
                    begun: false,
                    descriptors: Vec::new(),
                    failure: None,
                })
            }
            ForkResult::Child => {
                drop(ours);
                let status = i32::from(serve(&theirs, may_connect).is_err());
                std::process::exit(status);
            }
        }
    }

    /// Asks. While an answer is overdue every further question fails at once; once it has come, all is well again.
    pub fn ask(&mut self, request: &Request) -> Result<Response, HelperError> {
        self.exchange(request).map_err(|error| {
            let error = HelperError(format!("{error:#}"));
            if self.failure.is_none() {
                self.failure = Some(error.clone());
                log::error!("{error}; until it does, processes are known by what the kernel told alone");
            }
            error
        })
    }

    /// From now on others wait behind every question.
    pub fn hurry(&mut self) -> Result<()> {
        let seconds = i64::try_from(patience::here(PATIENCE).as_secs()).unwrap_or(i64::MAX);
        setsockopt(&self.socket, ReceiveTimeout, &TimeVal::seconds(seconds)).context("cannot set a time limit")
    }

    /// Firewalls of a network namespace, by its inode number; without one, of the host's own.
    pub fn firewalls(&mut self, netns: Option<u32>) -> Result<Result<Inventory, String>, HelperError> {
        match self.ask(&Request::Firewalls { netns })? {
            Response::Firewalls(inventory) => Ok(inventory),
            other => Err(unexpected(&other)),
        }
    }

    /// What can stop what goes out of the host's own network namespace.
    pub fn denies(&mut self) -> Result<Result<Denies, String>, HelperError> {
        match self.ask(&Request::Denies)? {
            Response::Denies(denies) => Ok(denies),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends one packet into a drop.
    pub fn self_test(&mut self) -> Result<Result<Sent, String>, HelperError> {
        match self.ask(&Request::SelfTest)? {
            Response::SelfTest(sent) => Ok(sent),
            other => Err(unexpected(&other)),
        }
    }

    /// Has it prepare a proof while this process goes on; what it made of it is taken by the next question, which must be
    /// [`Proving::prepare_proof`].
    pub fn begin_proof(&mut self) {
        self.begun = self.send(&Request::PrepareProof { changes: 0 }, &[]).is_ok();
    }

    /// Gives it the map that names observer's own namespaces, without which nothing is replayed. The rules of `netns` are copied
    /// soon after, so that the first packet that is dropped there is known to have met them. False where this kernel has
    /// nothing at hand to make a copy of.
    pub fn keep_own_namespaces(&mut self, map: OwnedFd, netns: Option<u32>) -> Result<bool, String> {
        let answer = self.send(&Request::OwnNamespaces { netns }, &[map]).and_then(|()| self.receive());
        match answer.map_err(|error| format!("{error:#}"))? {
            Response::OwnNamespaces(kept) => kept,
            other => Err(unexpected(&other).to_string()),
        }
    }

    /// How long a small copy of rules takes, if packets can be replayed.
    pub fn prove_replay(&mut self) -> Result<Result<Duration, String>, HelperError> {
        match self.ask(&Request::ProveReplay)? {
            Response::ProveReplay(proven) => Ok(proven),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether destinations would be let out. Takes as long as trying commands does.
    pub fn preflight(&mut self, asked: &Preflight) -> Result<Result<Preflighted, String>, HelperError> {
        match self.ask(&Request::Preflight(Box::new(asked.clone())))? {
            Response::Preflight(Ok(())) => {}
            Response::Preflight(Err(why)) => return Ok(Err(why)),
            other => return Err(unexpected(&other)),
        }
        loop {
            match self.ask(&Request::Preflighted)? {
                Response::Preflighted(Ok(None)) => std::thread::sleep(STEP),
                Response::Preflighted(Ok(Some(answer))) => return Ok(Ok(*answer)),
                Response::Preflighted(Err(why)) => return Ok(Err(why)),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Hands over the program that runs where datagrams come in.
    pub fn keep_answer_program(&mut self, program: OwnedFd) -> Result<(), String> {
        let answer = self.send(&Request::AnswerProgram, &[program]).and_then(|()| self.receive());
        match answer.map_err(|error| format!("{error:#}"))? {
            Response::AnswerProgram(kept) => kept,
            other => Err(unexpected(&other).to_string()),
        }
    }

    /// Begins a real connection. The inner error has the kernel's number, where it is one of those, and words.
    pub fn connect(&mut self, wanted: &Connect) -> Result<Result<OwnedFd, (Option<i32>, String)>, HelperError> {
        match self.ask(&Request::Connect(Box::new(wanted.clone())))? {
            Response::Connect(Ok(())) => {}
            Response::Connect(Err(why)) => return Ok(Err(why)),
            other => return Err(unexpected(&other)),
        }
        Ok(self.descriptors.pop().ok_or_else(|| (None, "the socket did not come".to_owned())))
    }

    fn exchange(&mut self, request: &Request) -> Result<Response> {
        self.send(request, &[])?;
        self.receive()
    }

    fn send(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<()> {
        self.begun = false;
        let overdue = std::mem::replace(&mut self.waiting, true);
        if overdue && receive(&self.socket, MsgFlags::MSG_DONTWAIT).is_err() {
            anyhow::bail!("an answer is overdue");
        }
        self.asked += 1;
        send(&self.socket, &serde_json::to_vec(&(self.asked, request))?, descriptors)
    }

    fn receive(&mut self) -> Result<Response> {
        let (answer, descriptors) = receive(&self.socket, MsgFlags::empty())?.context("it is gone")?;
        self.descriptors = descriptors;
        let (number, response): (u64, Response) = serde_json::from_slice(&answer)?;
        anyhow::ensure!(number == self.asked, "it answered another question");
        self.waiting = false;
        Ok(response)
    }
}

impl Proving for Helper {
    fn functions(&mut self, changes: u64) -> Result<Functions, String> {
        match self.ask(&Request::Functions { changes }).map_err(|error| error.to_string())? {
            Response::Functions(functions) => Ok(functions),
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn prepare_proof(&mut self, changes: u64) -> Result<Prepared, Unproven> {
        let prepared = if std::mem::take(&mut self.begun) {
            self.receive().map_err(|error| HelperError(format!("{error:#}")))
        } else {
            self.ask(&Request::PrepareProof { changes })
        };
        match prepared {
            Ok(Response::PrepareProof(prepared)) => prepared,
            Ok(other) => Err(Unproven::Other(unexpected(&other).to_string())),
            Err(error) => Err(Unproven::Later(error.to_string())),
        }
    }

    fn keep_netns_cookies(&mut self, map: OwnedFd) -> Result<(), String> {
        let answer = self.send(&Request::NetnsCookies, &[map]).and_then(|()| self.receive());
        match answer.map_err(|error| format!("{error:#}"))? {
            Response::NetnsCookies(kept) => kept,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn keep_verdict_programs(&mut self, programs: &[OwnedFd; 2]) -> Result<(), String> {
        let answer = self.send(&Request::VerdictPrograms, programs).and_then(|()| self.receive());
        match answer.map_err(|error| format!("{error:#}"))? {
            Response::VerdictPrograms(kept) => kept,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn arm_verdicts(&mut self, time: Duration, is_proof: bool) -> Result<(), String> {
        match self.ask(&Request::ArmVerdicts { time, is_proof }).map_err(|error| error.to_string())? {
            Response::ArmVerdicts(armed) => armed,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn send_proof(&mut self) -> Result<(), Unproven> {
        match self.ask(&Request::SendProof) {
            Ok(Response::SendProof(sent)) => sent.map_err(Unproven::Later),
            Ok(other) => Err(Unproven::Other(unexpected(&other).to_string())),
            Err(error) => Err(Unproven::Later(error.to_string())),
        }
    }

    fn end_proof(&mut self) {
        // Without an answer it ends with the helper.
        let _ = self.ask(&Request::EndProof);
    }
}

impl Eyes for Helper {
    fn facts(&mut self, pid: u32, start_ticks: Option<u64>) -> Option<Facts> {
        match self.ask(&Request::Facts { pid, start_ticks }) {
            Ok(Response::Facts(facts)) => facts.map(|facts| *facts),
            _ => None,
        }
    }

    fn holds(&mut self, pid: u32, inode: u64) -> bool {
        matches!(self.ask(&Request::Holds { pid, inode }), Ok(Response::Holds(true)))
    }

    fn holders(&mut self, inode: u64) -> Vec<u32> {
        match self.ask(&Request::Holders { inode }) {
            Ok(Response::Holders(pids)) => pids,
            _ => Vec::new(),
        }
    }

    fn cgroup_path(&mut self, id: u64) -> Option<String> {
        match self.ask(&Request::CgroupPath { id }) {
            Ok(Response::CgroupPath(path)) => path,
            _ => None,
        }
    }

    fn container_name(&mut self, id: &str) -> Option<ContainerName> {
        match self.ask(&Request::ContainerName { id: id.to_owned() }) {
            Ok(Response::ContainerName(name)) => name,
            _ => None,
        }
    }

    fn owns(&mut self, netns: u32, address: IpAddr) -> Option<bool> {
        match self.ask(&Request::Owns { netns, address }) {
            Ok(Response::Owns(owns)) => owns,
            _ => None,
        }
    }

    fn homes(&mut self, address: IpAddr, forwarder: u32) -> Vec<u32> {
        match self.ask(&Request::Homes { address, forwarder }) {
            Ok(Response::Homes(homes)) => homes,
            _ => Vec::new(),
        }
    }

    fn sockets(&mut self, wanted: &Wanted, netns: u32) -> Vec<u64> {
        match self.ask(&Request::Sockets { wanted: *wanted, netns }) {
            Ok(Response::Sockets(inodes)) => inodes,
            _ => Vec::new(),
        }
    }

    fn rule(&mut self, wanted: &WantedRule) -> Result<Option<Decision>, String> {
        match self.ask(&Request::Rule(wanted.clone())).map_err(|error| error.to_string())? {
            Response::Rule(decision) => decision.map(|decision| decision.map(|decision| *decision)),
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn replay(&mut self, netns: u32, packet: &Packet, waits: bool) -> Result<Replay, String> {
        let request = Request::Replay { netns, packet: packet.clone(), waits };
        match self.ask(&request).map_err(|error| error.to_string())? {
            Response::Replay(outcome) => outcome,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn fix(&mut self, stopped: &Stopped) -> Result<Remedy, String> {
        match self.ask(&Request::Fix(Box::new(stopped.clone()))).map_err(|error| error.to_string())? {
            Response::Fix(remedy) => remedy,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn arm_answers(&mut self, time: Duration) -> Result<(), String> {
        match self.ask(&Request::ArmAnswers { time }).map_err(|error| error.to_string())? {
            Response::ArmAnswers(armed) => armed,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn listen(&mut self, netns: u32) -> Result<Listening, String> {
        match self.ask(&Request::Listen { netns }).map_err(|error| error.to_string())? {
            Response::Listen(begun) => begun?,
            other => return Err(unexpected(&other).to_string()),
        }
        let [socket, resident] = <[OwnedFd; 2]>::try_from(std::mem::take(&mut self.descriptors))
            .map_err(|_| "the descriptors did not come".to_owned())?;
        Ok(Listening { netns, socket, resident })
    }

    fn difference(&mut self, netns: u32) -> Result<Option<Difference>, String> {
        match self.ask(&Request::Difference { netns }).map_err(|error| error.to_string())? {
            Response::Difference(difference) => difference,
            other => Err(unexpected(&other).to_string()),
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.as_ref().map(ToString::to_string)
    }
}

fn unexpected(response: &Response) -> HelperError {
    HelperError(format!("it gave the wrong kind of answer: {response:?}"))
}

/// The child: gives up what it does not need, then answers until its parent is gone.
fn serve(socket: &OwnedFd, may_connect: bool) -> Result<()> {
    // The parent gives up the right to signal this process, so its death is told by the socket: the next read finds it
    // closed. Until the parent has, the signal is quicker.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let _ = prctl::set_name(&CString::new(HELPER)?);
    // Ctrl-C and a service manager's stop reach the whole group; the parent still has questions then.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        ignore(signal)?;
    }
    release_standard_streams()?;
    server::keep_needed_capabilities()?;
    let mut server = server::Server::new(may_connect);
    loop {
        // What is attached for a while is taken away in time, and what nobody has asked for yet is done when nobody asks.
        let due = [server.verdicts.expire(), server.answers.expire(), server.replays.prepare()];
        let wait =
            due.into_iter().flatten().min().map_or(0, |wait| i64::try_from(wait.as_millis() + 1).unwrap_or(i64::MAX));
        // 0 is for ever.
        setsockopt(socket, ReceiveTimeout, &TimeVal::milliseconds(wait))?;
        let message = match receive(socket, MsgFlags::empty()) {
            Ok(Some((message, received))) => {
                server.received = received;
                message
            }
            Ok(None) => {
                crate::fix::end_all();
                return Ok(());
            }
            Err(error) if error.downcast_ref() == Some(&nix::Error::EAGAIN) => continue,
            Err(error) => return Err(error),
        };
        let (number, request): (u64, Request) = serde_json::from_slice(&message)?;
        let mut answer = serde_json::to_vec(&(number, server.answer(&request)))?;
        if answer.len() > MAX_MESSAGE {
            answer = serde_json::to_vec(&(number, Response::TooLong))?;
        }
        // Whoever asks has its own of each when they are sent.
        send(socket, &answer, &std::mem::take(&mut server.descriptors))?;
    }
}

fn ignore(signal: Signal) -> Result<()> {
    crate::sys::set_signal_handler(signal, SigHandler::SigIgn)?;
    Ok(())
}

/// A reader at the other end of a pipe must not wait for the helper.
fn release_standard_streams() -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let Ok(null) = null else { return Ok(()) };
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

fn send(socket: &OwnedFd, message: &[u8], descriptors: &[OwnedFd]) -> Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The next message, and what came with it; `None` when the other end is closed.
fn receive(socket: &OwnedFd, flags: MsgFlags) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        loop {
            let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Ok(message) => {
                    let descriptors = crate::sys::received_descriptors(&message)?;
                    anyhow::ensure!(!message.flags.contains(MsgFlags::MSG_TRUNC), "a message is too long");
                    break (message.bytes, descriptors);
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    };
    buffer.truncate(length);
    Ok((length > 0).then_some((buffer, descriptors)))
}

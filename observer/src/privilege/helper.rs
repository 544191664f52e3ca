//! The helper process as it is asked: by one connection a question at a time, whose answer is waited for; by another one as many as
//! there are, whose answers are taken when they have come ([`polled`]). When it has died another one is started.
//!
//! [`polled`]: super::polled

use std::{
    os::fd::OwnedFd,
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use nix::sys::{
    socket::{MsgFlags, setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

use super::{
    HostQueries, Listening,
    channel::{self, receive, send},
    polled::{Polled, Wake},
    protocol::{
        AllDenies, AnswerProgram, ArmVerdicts, Begin, BeginPreflight, EndPreflight, EndProof, Firewalls, FunctionsNow,
        Listen, NetnsCookies, OwnNamespaces, Polled as Polls, PrepareProof, ProveReplay, Question, Request,
        SecondConnection, SelfTest, SendProof, SkipTrials, VerdictPrograms, decode, encode_message,
    },
    spare::Spare,
};
use crate::{
    firewall::{denies::Denies, inventory::Inventory},
    kernel::symbols::Functions,
    model::{Connect, Preflight, Preflighted, Share},
    patience,
    probe::{
        calibrate::{
            proof::{Prepared, Unproven},
            selftest::Sent,
        },
        rules::Proving,
    },
};

/// An answer that takes longer is given up. Walking /proc on a large host takes milliseconds; a process that hangs in the
/// kernel can hold up whoever reads its command line.
const PATIENCE: Duration = Duration::from_secs(3);
/// What must end by a time ends a little later.
const GRACE: Duration = Duration::from_secs(10);
/// What goes on is asked about so often.
const STEP: Duration = Duration::from_millis(10);
/// So many helpers are started at most, and none sooner than this after another.
const MAX_STARTED: usize = 20;
const BETWEEN: Duration = Duration::from_millis(200);
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
    spare: Spare,
    /// When the last one was started, and how many were.
    started: (Instant, usize),
    /// Helpers that have died: when that was found, and whether another one took over.
    deaths: Vec<(Timestamp, bool)>,
    /// How long an answer is waited for, in seconds.
    limit: i64,
    /// What was given to it, with descriptors that every further one is given too.
    given: Vec<(Request, Vec<OwnedFd>)>,
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
    /// That was said, and not yet that it answers again.
    is_silent: bool,
    /// What nobody waits for.
    polled: Polled,
}

/// The other end is closed: whoever was there has died.
#[derive(Debug, thiserror::Error)]
#[error("it is gone")]
struct Gone;

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
        let spare = Spare::start(may_connect)?;
        let (socket, pid) = spare.helper()?;
        let helper = Self {
            socket,
            pid,
            spare,
            started: (Instant::now(), 1),
            deaths: Vec::new(),
            limit: START_SECONDS,
            given: Vec::new(),
            asked: 0,
            waiting: false,
            begun: false,
            descriptors: Vec::new(),
            failure: None,
            is_silent: false,
            polled: Polled::default(),
        };
        helper.set_limit()?;
        Ok(helper)
    }

    fn set_limit(&self) -> Result<()> {
        setsockopt(&self.socket, ReceiveTimeout, &TimeVal::seconds(self.limit)).context("cannot set a time limit")
    }

    /// Asks on observer's own account, and waits. While an answer is overdue every further question fails at once; once it has
    /// come, all is well again. Where the helper has died, the question goes to another one.
    fn wait_for<Q: Question>(&mut self, question: Q) -> Result<Q::Answer, HelperError> {
        let request = question.into();
        let mut answer = self.exchange::<Q>(&request, &[]);
        if answer.as_ref().is_err_and(anyhow::Error::is::<Gone>) {
            answer = self.start_again().and_then(|()| self.exchange::<Q>(&request, &[]));
        }
        if answer.is_ok() && std::mem::take(&mut self.is_silent) {
            log::error!("the helper answers again");
        }
        answer.map_err(|error| {
            let is_late = matches!(error.downcast_ref(), Some(nix::Error::EAGAIN));
            let error = if is_late { format!("no answer within {} s", self.limit) } else { format!("{error:#}") };
            let error = HelperError(error);
            if self.failure.is_none() && self.deaths.is_empty() {
                self.failure = Some(error.clone());
                self.is_silent = true;
                log::error!("{error}; names, rules and fixes are missing until it does");
            }
            error
        })
    }

    /// Takes another helper in place of one that has died, and gives it what that one had been given.
    fn start_again(&mut self) -> Result<()> {
        // After one that was not replaced none is started any more.
        if self.deaths.last().is_some_and(|(_, is_replaced)| !is_replaced) {
            return Err(Gone.into());
        }
        self.deaths.push((Timestamp::now(), false));
        let started = self.start_another();
        match &started {
            Ok(()) => log::error!("the helper process died and was started again"),
            Err(error) => log::error!(
                "the helper process died and cannot be started again ({error:#}): rules, fixes and names of namespaces are missing \
                 from now on; start observer again"
            ),
        }
        started
    }

    fn start_another(&mut self) -> Result<()> {
        anyhow::ensure!(self.started.1 < MAX_STARTED, "it died {MAX_STARTED} times");
        std::thread::sleep(BETWEEN.saturating_sub(self.started.0.elapsed()));
        (self.socket, self.pid) = self.spare.helper()?;
        self.started = (Instant::now(), self.started.1 + 1);
        self.waiting = false;
        self.begun = false;
        self.set_limit()?;
        let given = std::mem::take(&mut self.given);
        let all = given.iter().try_for_each(|(request, descriptors)| {
            // Whether it takes it is the same as the last time.
            self.send(request, descriptors).context("it could not be given what it needs")?;
            self.receive_any().context("it could not be given what it needs").map(drop)
        });
        self.given = given;
        all?;
        if self.polled.is_open() {
            self.open_second()?;
        }
        if let Some(death) = self.deaths.last_mut() {
            death.1 = true;
        }
        Ok(())
    }

    /// Gives it something that every further helper is given too.
    fn give<Q: Question>(&mut self, question: Q, descriptors: Vec<OwnedFd>) -> Result<Q::Answer, String> {
        let request = question.into();
        let answer = self.exchange::<Q>(&request, &descriptors).map_err(|error| format!("{error:#}"));
        self.given.push((request, descriptors));
        answer
    }

    /// From now on others wait behind every question.
    pub fn hurry(&mut self) -> Result<()> {
        self.limit = i64::try_from(patience::here(PATIENCE).as_secs()).unwrap_or(i64::MAX);
        self.set_limit()
    }

    /// A second connection, whose answers a thread takes in.
    fn open_second(&mut self) -> Result<()> {
        let (ours, theirs) = channel::pair()?;
        let request = SecondConnection {}.into();
        self.exchange::<SecondConnection>(&request, &[theirs])?;
        self.polled.open(ours)
    }

    /// Firewalls of a network namespace, by its inode number; without one, of the host's own.
    pub fn firewalls(&mut self, netns: Option<u32>) -> Result<Result<Inventory, String>, HelperError> {
        self.wait_for(Firewalls { netns })
    }

    /// What can block outbound traffic of the host's own network namespace.
    pub fn denies(&mut self) -> Result<Result<Denies, String>, HelperError> {
        self.wait_for(AllDenies {})
    }

    /// Sends one packet into a drop.
    pub fn self_test(&mut self) -> Result<Result<Sent, String>, HelperError> {
        self.wait_for(SelfTest {})
    }

    /// Has it prepare a proof while this process goes on; what it made of it is taken by the next question, which must be
    /// [`Proving::prepare_proof`].
    pub fn begin_proof(&mut self) {
        self.begun = self.send(&PrepareProof { changes: 0 }.into(), &[]).is_ok();
    }

    /// Gives it the map that names observer's own namespaces, without which nothing is replayed. The rules of `netns` are copied
    /// soon after, so that the first packet that is dropped there is known to have met them. False where this kernel has
    /// nothing at hand to make a copy of.
    pub fn keep_own_namespaces(&mut self, map: OwnedFd, netns: Option<u32>) -> Result<bool, String> {
        self.give(OwnNamespaces { netns }, vec![map])?
    }

    /// How long a small copy of rules takes, if packets can be replayed.
    pub fn prove_replay(&mut self) -> Result<Result<Duration, String>, HelperError> {
        self.wait_for(ProveReplay {})
    }

    /// Whether destinations would be let out. Takes as long as trying commands does.
    pub fn preflight(
        &mut self,
        asked: &Preflight,
        mut is_skipped: impl FnMut(Duration) -> bool,
    ) -> Result<Result<Preflighted, String>, HelperError> {
        if let Err(why) = self.wait_for(BeginPreflight { asked: asked.clone() })? {
            return Ok(Err(why));
        }
        let (began, mut has_skipped) = (Instant::now(), false);
        let limit = patience::here(Duration::from_secs(asked.limit));
        loop {
            if began.elapsed() > limit + GRACE {
                let seconds = asked.limit;
                return Ok(Err(format!("there was no answer within {seconds} s; --timeout gives it more time")));
            }
            match self.wait_for(EndPreflight {})? {
                Ok(None) => std::thread::sleep(STEP),
                Ok(Some(answer)) => return Ok(Ok(answer)),
                Err(why) => return Ok(Err(why)),
            }
            if (is_skipped(began.elapsed()) || began.elapsed() > limit) && !has_skipped {
                has_skipped = true;
                self.wait_for(SkipTrials {})?;
            }
        }
    }

    /// Hands over the program that runs where datagrams come in.
    pub fn keep_answer_program(&mut self, program: OwnedFd) -> Result<(), String> {
        self.give(AnswerProgram {}, vec![program])?
    }

    /// Begins a real connection. The inner error has the kernel's number, where it is one of those, and words.
    pub fn connect(&mut self, wanted: &Connect) -> Result<Result<OwnedFd, (Option<i32>, String)>, HelperError> {
        if let Err(why) = self.wait_for(Begin { wanted: wanted.clone() })? {
            return Ok(Err(why));
        }
        Ok(self.descriptors.pop().ok_or_else(|| (None, "the socket did not come".to_owned())))
    }

    /// Listens to changes of a namespace's rules; waits for that, before anybody waits for anything else.
    pub fn listen(&mut self, netns: u32) -> Result<Listening, String> {
        self.wait_for(Listen { netns }).map_err(|error| error.to_string())??;
        Listening::of(netns, std::mem::take(&mut self.descriptors))
    }

    fn exchange<Q: Question>(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<Q::Answer> {
        self.send(request, descriptors)?;
        self.receive::<Q>()
    }

    fn send(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<()> {
        self.begun = false;
        let overdue = std::mem::replace(&mut self.waiting, true);
        if overdue {
            match receive(&self.socket, MsgFlags::MSG_DONTWAIT) {
                Ok(Some(_)) => {}
                Ok(None) => return Err(Gone.into()),
                Err(error) => return Err(gone(error).context("an answer is overdue")),
            }
        }
        self.asked += 1;
        let message = encode_message(self.asked, Share::Host, request)?;
        send(&self.socket, &message, descriptors).map_err(gone)
    }

    /// An answer's bytes.
    fn receive_any(&mut self) -> Result<Vec<u8>> {
        let (answer, descriptors) = receive(&self.socket, MsgFlags::empty()).map_err(gone)?.ok_or(Gone)?;
        self.descriptors = descriptors;
        self.waiting = false;
        Ok(answer)
    }

    fn receive<Q: Question>(&mut self) -> Result<Q::Answer> {
        let answer = self.receive_any()?;
        let (number, reply) = decode::<Q>(&answer)?;
        anyhow::ensure!(number == self.asked, "it answered another question");
        reply
    }
}

impl Proving for Helper {
    fn functions(&mut self, changes: u64) -> Result<Functions, String> {
        self.wait_for(FunctionsNow { changes }).map_err(|error| error.to_string())
    }

    fn prepare_proof(&mut self, changes: u64) -> Result<Prepared, Unproven> {
        let prepared = if std::mem::take(&mut self.begun) {
            self.receive::<PrepareProof>().map_err(|error| HelperError(format!("{error:#}")))
        } else {
            self.wait_for(PrepareProof { changes })
        };
        prepared.unwrap_or_else(|error| Err(Unproven::Later(error.to_string())))
    }

    fn keep_netns_cookies(&mut self, map: OwnedFd) -> Result<(), String> {
        self.give(NetnsCookies {}, vec![map])?
    }

    fn keep_verdict_programs(&mut self, programs: &[OwnedFd; 2]) -> Result<(), String> {
        let programs = programs.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>();
        self.give(VerdictPrograms {}, programs.map_err(|error| error.to_string())?)?
    }

    fn arm_verdicts(&mut self, time: Duration, is_proof: bool) -> Result<(), String> {
        self.wait_for(ArmVerdicts { time, is_proof }).map_err(|error| error.to_string())?
    }

    fn send_proof(&mut self) -> Result<(), Unproven> {
        self.wait_for(SendProof {}).map_err(|error| Unproven::Later(error.to_string()))?.map_err(Unproven::Later)
    }

    fn end_proof(&mut self) {
        // Without an answer it ends with the helper.
        let _ = self.wait_for(EndProof {});
    }
}

impl HostQueries for Helper {
    fn ask<Q: Question>(&mut self, question: Q) -> Result<Q::Answer, HelperError> {
        self.wait_for(question)
    }

    fn poll<Q: Polls>(&mut self, share: Share, question: Q) -> Poll<Q::Answer> {
        let request = question.into();
        self.polled.poll::<Q>(share, &request)
    }

    fn poll_listen(&mut self, share: Share, netns: u32) -> Poll<Result<Listening, String>> {
        let answer = std::task::ready!(self.poll(share, Listen { netns }));
        let descriptors = std::mem::take(&mut self.polled.descriptors);
        Poll::Ready(answer.and_then(|()| Listening::of(netns, descriptors)))
    }

    fn begin_polling(&mut self, wake: Wake) -> Result<(), HelperError> {
        self.polled.wake = Some(wake);
        self.open_second().map_err(|error| HelperError(format!("{error:#}")))
    }

    fn take_answers(&mut self) -> bool {
        let any = self.polled.take_answers();
        if std::mem::take(&mut self.polled.is_gone)
            && let Err(error) = self.start_again()
        {
            log::debug!("{error:#}");
        }
        any
    }

    fn used_up(&self) -> Vec<(Share, u64)> {
        self.polled.used_up()
    }

    fn failure(&self) -> Option<String> {
        if self.deaths.is_empty() {
            return self.failure.as_ref().map(ToString::to_string);
        }
        let times: Vec<String> = self
            .deaths
            .iter()
            .map(|(when, replaced)| format!("at {when} ({})", if *replaced { "started again" } else { "not replaced" }))
            .collect();
        Some(format!("the helper process died {}", times.join(", ")))
    }
}

/// An error that says that the other end is gone, as such.
fn gone(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(nix::Error::EPIPE | nix::Error::ECONNRESET | nix::Error::ENOTCONN) => Gone.into(),
        _ => error,
    }
}

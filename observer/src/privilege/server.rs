//! The helper's answers: a fixed set, each by the room that knows.

use std::{
    collections::HashSet,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use caps::{CapSet, Capability};

use super::{
    answers::Answers,
    containers, lanes, netns,
    preflights::Preflights,
    proc,
    programs::Cgroup,
    protocol::{
        AllDenies, AnswerProgram, ArmAnswers, ArmVerdicts, Begin, BeginPreflight, CgroupPath, EndPreflight, EndProof,
        FactsOf, Firewalls, FunctionsNow, Holders, Holds, Homes, IsAHelper, NameOfContainer, NetnsCookies,
        OwnNamespaces, Owns, PrepareProof, ProveReplay, Request, SecondConnection, SelfTest, SendProof, SkipTrials,
        Sockets, VerdictPrograms, encode,
    },
    shared::{Shared, lock},
    trials::Place,
    verdicts::Verdicts,
};
use crate::{
    confinement::child,
    confinement::{process::bound, syscalls},
    firewall::{denies, files::Root, inventory},
    kernel::{ask_ebpf_side, cgroup, netns_cookie, symbols::Functions},
    model::{Connect, Preflight, Share},
    patience,
    probe::calibrate::{
        proof::{self, Prover},
        selftest,
    },
    sandbox::copy,
};

/// Reading other users' processes; entering and making namespaces, those of mounts among them; a firewall and an interface in those it made; reading
/// firewall files that only root may; addresses of the kernel's functions; sending a packet as it was, as the user and group
/// whose it was; taking capabilities from what it starts.
const NEEDED: [Capability; 10] = [
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SYSLOG,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETPCAP,
];

/// Texts of all rules that deny are waited for so long.
const TEXTS: Duration = Duration::from_millis(500);

/// Gives up every capability that is not needed, and system calls that nothing here needs.
pub(super) fn confine() -> Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read own capabilities")?;
    let kept: HashSet<Capability> = NEEDED.into_iter().filter(|needed| permitted.contains(needed)).collect();
    bound(&kept)?;
    caps::clear(None, CapSet::Ambient).ok();
    caps::clear(None, CapSet::Inheritable).context("cannot give up capabilities")?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).context("cannot give up capabilities")?;
    }
    rustix::thread::set_no_new_privs(true).context("cannot forbid new privileges")?;
    syscalls::apply(&syscalls::of_the_helper()?)
}

/// Answers what is waited for.
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    holders: proc::Holders,
    /// Keeps a private mount alive.
    _hierarchy: Option<std::fs::File>,
    initial_pids: bool,
    prover: Option<Prover>,
    /// As they are since modules changed for that time: an answer that came too late is asked for again.
    functions: Option<(u64, Functions)>,
    /// Read once: it takes long.
    xtable_name: Option<u32>,
    /// Real connections may be begun: whoever took over the main process of `watch` must not have root's.
    may_connect: bool,
    pub(super) answers: Answers,
    pub(super) verdicts: Verdicts,
    preflights: Preflights,
    /// What came with the question.
    pub(super) received: Vec<OwnedFd>,
    /// What goes with the next answer.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// An error in words.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
pub(super) fn told(error: anyhow::Error) -> String {
    format!("{error:#}")
}

impl Server {
    pub(super) fn new(may_connect: bool) -> Self {
        let hierarchy = cgroup::open().ok();
        let root = match cgroup::find() {
            Ok(cgroup::Hierarchy::Mounted { path, .. }) => Some(path),
            _ => hierarchy.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))),
        };
        Self {
            shared: Arc::new(Shared::new(root)),
            holders: proc::Holders::default(),
            _hierarchy: hierarchy,
            initial_pids: proc::sees_initial_pids(),
            prover: None,
            functions: None,
            xtable_name: None,
            may_connect,
            answers: Answers::default(),
            verdicts: Verdicts::default(),
            preflights: Preflights::default(),
            received: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    fn functions(&mut self, changes: u64) -> Functions {
        match &self.functions {
            Some((of, known)) if *of == changes => known.clone(),
            _ => {
                let functions = self.read_functions();
                self.functions = Some((changes, functions.clone()));
                functions
            }
        }
    }

    fn read_functions(&mut self) -> Functions {
        let (mut functions, names) = Functions::read();
        lock(&self.shared.deciders).learn(names);
        if functions.has_xtables() {
            self.xtable_name = self.xtable_name.or_else(proof::xtable_name);
            functions.xtable_name = self.xtable_name;
        }
        functions
    }

    /// Whoever would send, by the path of a cgroup; this process's own without one, where there is any.
    fn sender(&self, path: Option<&str>) -> Result<Option<Cgroup>> {
        let own = || {
            let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
        };
        let Some(of) = path.map(str::to_owned).or_else(own) else { return Ok(None) };
        let cgroups = lock(&self.shared.cgroups);
        match (cgroups.folder("/"), cgroups.folder(&of)) {
            (Ok(root), Ok(folder)) => Ok(Some(Cgroup { root, folder, is_own: path.is_none() })),
            (Err(why), _) | (_, Err(why)) if path.is_some() => Err(why),
            _ => Ok(None),
        }
    }

    fn preflight(&mut self, asked: &Preflight) -> Result<()> {
        let number = match asked.netns {
            Some(number) => number,
            None => u32::try_from(std::fs::metadata("/proc/self/ns/net")?.ino())?,
        };
        // Kernels without cookies are believed.
        let cookie = netns::inside(Some(number), netns_cookie)?.unwrap_or(0);
        let place = Place::open(number, cookie, self.shared.replays.own().ok())?;
        // Reading rules would load it.
        let has_rules = self.shared.knows_nftables();
        let cgroup = match &asked.later {
            None => self.sender(asked.cgroup.as_deref())?,
            // A slice without units may not be there.
            Some(later) => self.sender(Some(&later.slice)).ok().flatten(),
        };
        self.preflights.begin(asked.clone(), place, cgroup, has_rules)
    }

    /// A connection that goes on by itself; its descriptor comes with the answer.
    fn connect(&mut self, wanted: &Connect) -> Result<(), (Option<i32>, String)> {
        let told = |error: anyhow::Error| (None, format!("{error:#}"));
        if !self.may_connect {
            return Err((None, "real connections were not asked for when this began".to_owned()));
        }
        let cgroup = self.sender(wanted.cgroup.as_deref()).map_err(told)?;
        let procs = cgroup.filter(|cgroup| !cgroup.is_own).map(|cgroup| cgroup.procs()).transpose().map_err(told)?;
        let (to, is_tcp, (uid, gid), groups) = (wanted.to, wanted.is_tcp, wanted.user, wanted.groups.clone());
        let begin = move || copy::connecting(to, is_tcp, (uid, gid, &groups), procs.as_ref());
        let socket = netns::inside(wanted.netns, begin).and_then(|begun| begun).map_err(told)?;
        let socket = socket.map_err(|error| (error.raw_os_error(), error.to_string()))?;
        self.descriptors.push(socket.into());
        Ok(())
    }

    /// The answer to a question.
    pub(super) fn answer(&mut self, request: &Request, share: Share) -> Vec<u8> {
        if let Some((bytes, descriptors)) = self.shared.answer(request, share) {
            self.descriptors = descriptors;
            return bytes;
        }
        match request {
            // In another pid namespace the kernel's pids would name somebody else here.
            Request::FactsOf(_) if !self.initial_pids => encode::<FactsOf>(&None),
            Request::Holds(_) if !self.initial_pids => encode::<Holds>(&false),
            Request::Holders(_) if !self.initial_pids => encode::<Holders>(&Vec::new()),
            Request::FactsOf(of) => encode::<FactsOf>(&proc::facts(of.pid, of.start_ticks)),
            Request::Holds(holds) => encode::<Holds>(&proc::holds(holds.pid, holds.inode)),
            Request::Holders(holders) => encode::<Holders>(&self.holders.of(holders.inode)),
            Request::CgroupPath(path) => encode::<CgroupPath>(&lock(&self.shared.cgroups).path(path.id)),
            Request::NameOfContainer(of) => encode::<NameOfContainer>(&containers::name(Path::new("/"), &of.id)),
            Request::Owns(owns) => encode::<Owns>(&lock(&self.shared.residents).owns(owns.netns, owns.address)),
            Request::Homes(homes) => {
                encode::<Homes>(&lock(&self.shared.residents).homes(homes.address, homes.forwarder))
            }
            Request::Sockets(sockets) => {
                encode::<Sockets>(&lock(&self.shared.residents).sockets(&sockets.wanted, sockets.netns))
            }
            Request::Firewalls(of) => {
                encode::<Firewalls>(&netns::inside(of.netns, inventory::read).and_then(|read| read).map_err(told))
            }
            Request::AllDenies(_) => encode::<AllDenies>(
                &denies::read(patience::here(TEXTS), &mut || Root::open(Path::new("/")).into_iter().collect())
                    .map_err(told),
            ),
            Request::Begin(begin) => encode::<Begin>(&self.connect(&begin.wanted)),
            Request::FunctionsNow(now) => encode::<FunctionsNow>(&self.functions(now.changes)),
            Request::OwnNamespaces(own) => {
                let kept = self.shared.replays.keep(std::mem::take(&mut self.received));
                // Reading rules would load nftables.
                let wanted = own.netns.filter(|_| kept.is_ok() && self.shared.knows_nftables());
                self.shared.replays.prepare_later(wanted);
                let is_possible = copy::surroundings::kind().is_ok();
                encode::<OwnNamespaces>(&kept.map(|()| is_possible).map_err(told))
            }
            Request::ProveReplay(_) => encode::<ProveReplay>(&copy::prove().map_err(told)),
            Request::IsAHelper(is) => encode::<IsAHelper>(&netns::is_a_helper(is.pid)),
            Request::BeginPreflight(begin) => encode::<BeginPreflight>(&self.preflight(&begin.asked).map_err(told)),
            Request::SkipTrials(_) => {
                child::end_trials();
                encode::<SkipTrials>(&())
            }
            Request::EndPreflight(_) => encode::<EndPreflight>(&self.preflights.finished().map_err(told)),
            Request::AnswerProgram(_) => {
                encode::<AnswerProgram>(&self.answers.take(std::mem::take(&mut self.received)).map_err(told))
            }
            Request::ArmAnswers(arm) => encode::<ArmAnswers>(&self.answers.arm(arm.time).map_err(told)),
            Request::NetnsCookies(_) => {
                let map = std::mem::take(&mut self.received).pop().context("the map did not come along");
                encode::<NetnsCookies>(&map.and_then(ask_ebpf_side).map_err(told))
            }
            Request::VerdictPrograms(_) => {
                encode::<VerdictPrograms>(&self.verdicts.take(std::mem::take(&mut self.received)).map_err(told))
            }
            Request::ArmVerdicts(arm) => {
                let maps = self.shared.rulesets.have_maps();
                encode::<ArmVerdicts>(&self.verdicts.arm(arm.time, arm.is_proof, maps).map_err(told))
            }
            Request::PrepareProof(prepare) => {
                // It is what is asked next, and whoever asked does something else meanwhile.
                self.functions(prepare.changes);
                encode::<PrepareProof>(&Prover::prepare().map(|(prover, prepared)| {
                    self.prover = Some(prover);
                    prepared
                }))
            }
            Request::SendProof(_) => encode::<SendProof>(&match &self.prover {
                Some(prover) => prover.send().map_err(told),
                None => Err("no proof was prepared".to_owned()),
            }),
            Request::EndProof(_) => {
                self.prover = None;
                encode::<EndProof>(&())
            }
            Request::SelfTest(_) => encode::<SelfTest>(&selftest::send().map_err(told)),
            Request::SecondConnection(_) => {
                if let Some(socket) = std::mem::take(&mut self.received).pop()
                    && let Err(error) = lanes::open(socket, &self.shared)
                {
                    log::debug!("{error:#}");
                }
                encode::<SecondConnection>(&())
            }
            // Answered above.
            Request::Rule(_)
            | Request::Listen(_)
            | Request::Differ(_)
            | Request::RulesetText(_)
            | Request::RoutesText(_)
            | Request::UnitText(_)
            | Request::Resend(_)
            | Request::Place(_)
            | Request::FixOf(_) => Vec::new(),
        }
    }
}

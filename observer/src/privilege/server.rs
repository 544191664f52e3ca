//! The helper's answers: a fixed set, each by the room that knows.

use std::{
    collections::HashSet,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use caps::{CapSet, Capability};

use super::{
    answers::Answers,
    deciders::Deciders,
    fixes::Fixes,
    listening, netns,
    preflights::Preflights,
    programs::Cgroup,
    protocol::{Request, Response},
    replays::Replays,
    rulesets::Rulesets,
    sockets,
    trials::Place,
    verdicts::Verdicts,
};
use crate::{
    enrich::{cgroups::Cgroups, containers, proc},
    firewall::{denies, files::Root, inventory},
    model::{Connect, Preflight},
    patience,
    probe::{
        ask_kernel_half, cgroup, netns_cookie,
        proof::{self, Prover},
        selftest,
        symbols::Functions,
    },
    replay,
};

/// Reading other users' processes; entering and making namespaces, those of mounts among them; a firewall and an interface in those it made; reading
/// firewall files that only root may; addresses of the kernel's functions; sending a packet as it was, as the user and group
/// whose it was.
const NEEDED: [Capability; 9] = [
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SYSLOG,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_NET_RAW,
];

/// Texts of all rules that deny are waited for so long.
const TEXTS: Duration = Duration::from_millis(500);

/// Gives up every capability that is not needed.
pub(super) fn keep_needed_capabilities() -> Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read own capabilities")?;
    let kept: HashSet<Capability> = NEEDED.into_iter().filter(|needed| permitted.contains(needed)).collect();
    caps::clear(None, CapSet::Ambient).ok();
    caps::clear(None, CapSet::Inheritable).context("cannot give up capabilities")?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).context("cannot give up capabilities")?;
    }
    rustix::thread::set_no_new_privs(true).context("cannot forbid new privileges")?;
    Ok(())
}

/// Answers requests.
pub(super) struct Server {
    cgroups: Cgroups,
    holders: proc::Holders,
    residents: sockets::Residents,
    /// Keeps a private mount alive.
    _hierarchy: Option<std::fs::File>,
    initial_pids: bool,
    rulesets: Rulesets,
    prover: Option<Prover>,
    deciders: Deciders,
    /// As they are since modules changed for that time: an answer that came too late is asked for again.
    functions: Option<(u64, Functions)>,
    /// Read once: it takes long.
    xtable_name: Option<u32>,
    /// Real connections may be begun: whoever took over the main process of `watch` must not have root's.
    may_connect: bool,
    pub(super) answers: Answers,
    pub(super) verdicts: Verdicts,
    pub(super) replays: Replays,
    fixes: Fixes,
    preflights: Preflights,
    /// What came with the question.
    pub(super) received: Vec<OwnedFd>,
    /// What goes with the next answer.
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Server {
    pub(super) fn new(may_connect: bool) -> Self {
        let hierarchy = cgroup::open().ok();
        let root = match cgroup::find() {
            Ok(cgroup::Hierarchy::Mounted { path, .. }) => Some(path),
            _ => hierarchy.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))),
        };
        Self {
            cgroups: Cgroups::new(root),
            holders: proc::Holders::default(),
            residents: sockets::Residents::default(),
            _hierarchy: hierarchy,
            initial_pids: proc::sees_initial_pids(),
            rulesets: Rulesets::default(),
            prover: None,
            deciders: Deciders::default(),
            functions: None,
            xtable_name: None,
            may_connect,
            answers: Answers::default(),
            verdicts: Verdicts::default(),
            replays: Replays::default(),
            fixes: Fixes::default(),
            preflights: Preflights::default(),
            received: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    fn knows_nftables(&mut self) -> bool {
        if self.deciders.is_empty() {
            self.read_functions();
        }
        self.deciders.know_nftables()
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
        self.deciders.learn(names);
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
        match (self.cgroups.folder("/"), self.cgroups.folder(&of)) {
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
        let place = Place { number, cookie, own: self.replays.own().ok() };
        // Reading rules would load it.
        let has_rules = self.knows_nftables();
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
        let (to, is_tcp, user) = (wanted.to, wanted.is_tcp, wanted.user);
        let begin = move || replay::connecting(to, is_tcp, user, procs.as_ref());
        let socket = netns::inside(wanted.netns, begin).and_then(|begun| begun).map_err(told)?;
        let socket = socket.map_err(|error| (error.raw_os_error(), error.to_string()))?;
        self.descriptors.push(socket.into());
        Ok(())
    }

    pub(super) fn answer(&mut self, request: &Request) -> Response {
        match *request {
            // In another pid namespace the kernel's pids would name somebody else here.
            Request::Facts { .. } if !self.initial_pids => Response::Facts(None),
            Request::Holds { .. } if !self.initial_pids => Response::Holds(false),
            Request::Holders { .. } if !self.initial_pids => Response::Holders(Vec::new()),
            Request::Facts { pid, start_ticks } => Response::Facts(proc::facts(pid, start_ticks).map(Box::new)),
            Request::Holds { pid, inode } => Response::Holds(proc::holds(pid, inode)),
            Request::Holders { inode } => Response::Holders(self.holders.of(inode)),
            Request::CgroupPath { id } => Response::CgroupPath(self.cgroups.path(id)),
            Request::ContainerName { ref id } => Response::ContainerName(containers::name(Path::new("/"), id)),
            Request::Owns { netns, address } => Response::Owns(self.residents.owns(netns, address)),
            Request::Homes { address, forwarder } => Response::Homes(self.residents.homes(address, forwarder)),
            Request::Sockets { wanted, netns } => Response::Sockets(self.residents.sockets(&wanted, netns)),
            Request::Firewalls { netns } => Response::Firewalls(
                netns::inside(netns, inventory::read).and_then(|read| read).map_err(|error| format!("{error:#}")),
            ),
            Request::Denies => Response::Denies(
                denies::read(patience::here(TEXTS), &mut || Root::open(Path::new("/")).into_iter().collect())
                    .map_err(|error| format!("{error:#}")),
            ),
            Request::Rule(ref wanted) => Response::Rule(
                self.deciders
                    .decision(wanted, &mut self.rulesets)
                    .map(|decision| decision.map(Box::new))
                    .map_err(|error| format!("{error:#}")),
            ),
            Request::Connect(ref wanted) => Response::Connect(self.connect(wanted)),
            Request::Listen { .. } if !self.knows_nftables() => {
                Response::Listen(Err("nftables is not loaded".to_owned()))
            }
            Request::Listen { netns } => Response::Listen(
                listening::begin(netns)
                    .map(|descriptors| self.descriptors.extend(descriptors))
                    .map_err(|error| format!("{error:#}")),
            ),
            Request::Difference { netns } => {
                Response::Difference(self.rulesets.difference(netns).map_err(|error| format!("{error:#}")))
            }
            Request::Functions { changes } => Response::Functions(self.functions(changes)),
            Request::OwnNamespaces { netns } => {
                let kept = self.replays.keep(std::mem::take(&mut self.received));
                // Reading rules would load nftables.
                let wanted = netns.filter(|_| kept.is_ok() && self.knows_nftables());
                self.replays.prepare_later(wanted);
                let is_possible = replay::surroundings::kind().is_ok();
                Response::OwnNamespaces(kept.map(|()| is_possible).map_err(|error| format!("{error:#}")))
            }
            Request::ProveReplay => Response::ProveReplay(replay::prove().map_err(|error| format!("{error:#}"))),
            // Reading rules would load it.
            Request::Replay { .. } if !self.knows_nftables() => {
                Response::Replay(Err("nftables is not loaded".to_owned()))
            }
            Request::Replay { netns, ref packet, waits } => Response::Replay(
                self.replays.replay(netns, packet, waits, &mut self.cgroups).map_err(|error| format!("{error:#}")),
            ),
            Request::Fix(ref stopped) => Response::Fix(
                self.replays
                    .own()
                    .and_then(|own| self.fixes.of(stopped, own, &mut self.cgroups))
                    .map_err(|error| format!("{error:#}")),
            ),
            Request::Preflight(ref asked) => {
                Response::Preflight(self.preflight(asked).map_err(|error| format!("{error:#}")))
            }
            Request::Preflighted => Response::Preflighted(
                self.preflights.finished().map(|answer| answer.map(Box::new)).map_err(|error| format!("{error:#}")),
            ),
            Request::AnswerProgram => Response::AnswerProgram(
                self.answers.take(std::mem::take(&mut self.received)).map_err(|error| format!("{error:#}")),
            ),
            Request::ArmAnswers { time } => {
                Response::ArmAnswers(self.answers.arm(time).map_err(|error| format!("{error:#}")))
            }
            Request::NetnsCookies => {
                let map = std::mem::take(&mut self.received).pop().context("the map did not come along");
                Response::NetnsCookies(map.and_then(ask_kernel_half).map_err(|error| format!("{error:#}")))
            }
            Request::VerdictPrograms => Response::VerdictPrograms(
                self.verdicts.take(std::mem::take(&mut self.received)).map_err(|error| format!("{error:#}")),
            ),
            Request::ArmVerdicts { time, is_proof } => {
                let maps = self.rulesets.have_maps();
                Response::ArmVerdicts(self.verdicts.arm(time, is_proof, maps).map_err(|error| format!("{error:#}")))
            }
            Request::PrepareProof { changes } => {
                // It is what is asked next, and whoever asked does something else meanwhile.
                self.functions(changes);
                Response::PrepareProof(Prover::prepare().map(|(prover, prepared)| {
                    self.prover = Some(prover);
                    prepared
                }))
            }
            Request::SendProof => Response::SendProof(match &self.prover {
                Some(prover) => prover.send().map_err(|error| format!("{error:#}")),
                None => Err("no proof was prepared".to_owned()),
            }),
            Request::EndProof => {
                self.prover = None;
                Response::EndProof
            }
            Request::SelfTest => Response::SelfTest(selftest::send().map_err(|error| format!("{error:#}"))),
        }
    }
}

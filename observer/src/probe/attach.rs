//! Loads the BPF object and attaches its programs.

use std::{any::Any, io::Read, os::fd::OwnedFd};

use anyhow::{Context, ensure};
use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, Iter, KProbe, Program, ProgramError, RawTracePoint, SockOps,
    },
};
use aya_log::EbpfLogger;
use bytes::Bytes;
use observer_ebpf::abi::{ABSENT, KernelFilter, Owner, map, program};
use zerocopy::IntoBytes;

use super::{
    Attachment, HOOKS, HookState, Totals,
    hooks::{CONNECT, Hook, PROCESSES},
    memory,
    object::object,
    totals,
};
use crate::kernel::{
    btf, cgroup,
    layout::{self, Kernel, LayoutError, Reasons, Symbols},
    sock_diag,
};

/// Environment variable with ways to attach that are not to be tried (`tp_btf,cgroup`): for a kernel on which one of them
/// misbehaves, and to compare them.
pub(super) const AVOID: &str = "OBSERVER_AVOID";

/// What stands in it for seeing rules live.
pub(super) const RULES: &str = "rules";

/// What stands in it for reading the kernel's memory by casts.
const CASTS: &str = "casts";

/// Environment variable with what is to be seen in two ways (`verdicts`): rules where they give their verdicts too, although
/// they are reported where packets are freed. For a new kernel; it costs passing packets something.
pub(super) const COMPARE: &str = "OBSERVER_COMPARE";

/// Whether a way is not to be tried.
pub(super) fn is_avoided(name: &str) -> bool {
    names(AVOID, name)
}

/// Whether a comma-separated environment variable names something.
pub(super) fn names(variable: &str, name: &str) -> bool {
    crate::developer::variable(variable).unwrap_or_default().split(',').any(|named| named.trim() == name)
}

/// Why nothing can be observed here. Each is one sentence; [`AttachError::hint`] is the remedy.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// So many bytes of memory are too few.
    #[error(
        "observer needs {} MB of memory, and its control group allows {} MB",
        memory::LEAST >> 20,
        .0 >> 20
    )]
    Memory(u64),
    /// Not privileged enough.
    #[error("observer must run as root here (it lacks {0})")]
    Privilege(String),
    /// No BTF.
    #[error("this kernel does not describe its own types: {0}")]
    NoBtf(#[from] btf::BtfError),
    /// BTF lacks something.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Lockdown forbids reading kernel memory.
    #[error("the kernel is locked down (confidentiality): BPF programs may not read kernel memory")]
    Lockdown,
    /// The object or a required program was refused.
    #[error("the kernel refused `{what}`: {why}")]
    Refused {
        /// Program or step.
        what: String,
        /// The kernel's word, in one line.
        why: String,
    },
}

impl AttachError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Memory(_) => {
                "raise MemoryMax= of its unit, `--memory` of its container, or run it outside of that group"
            }
            Self::Privilege(_) => "run it with sudo; in a container it needs `--privileged --pid=host`",
            Self::NoBtf(_) => "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; every current distribution's is",
            Self::Layout(LayoutError::NoReason) => {
                "boot Linux 5.18 or later, or run observer with CAP_SYSLOG and kernel.kptr_restrict at 0 or 1"
            }
            Self::Layout(_) => "report it, with what `observer doctor` says of this kernel",
            Self::Lockdown => {
                "boot with `lockdown=integrity` or without Secure Boot's confidentiality mode; see `man kernel_lockdown`"
            }
            Self::Refused { .. } => "`observer doctor` shows what this kernel takes and what it refuses",
        }
    }
}

/// Attached programs. Dropping it detaches everything.
pub struct Probes {
    pub(super) ebpf: Ebpf,
    links: Vec<Box<dyn Any + Send>>,
    /// What stays until the end: what is reported by then may still be asked about, by sockets that are made for it.
    lasting: Vec<Box<dyn Any + Send>>,
    counters: PerCpuArray<MapData, u64>,
    /// What became of each hook.
    pub states: Vec<HookState>,
    /// Names of this kernel's drop reasons.
    pub reasons: Reasons,
    /// See [`layout::Kernel::grows_maps`].
    grows_maps: bool,
    /// Routes that forward are recognised.
    pub forwarding: bool,
    /// Sockets that were found at start and have an owner.
    pub seeded: usize,
    /// Of them, records of connections that hang, as they were written.
    pub(super) hanging: Bytes,
}

impl Probes {
    /// Attaches everything, or nothing. `log_level` is how much the eBPF side may say (an `aya_log` level, 0 for nothing);
    /// what `filter` leaves out is only counted.
    pub fn attach(log_level: u8, filter: &KernelFilter) -> Result<Self, AttachError> {
        check_privilege()?;
        let sizes = memory::sizes(memory::limit()).map_err(AttachError::Memory)?;
        if lockdown().as_deref() == Some("confidentiality") {
            return Err(AttachError::Lockdown);
        }
        // Two large files, one on each of two cores.
        let (btf, symbols) = std::thread::scope(|scope| {
            let symbols = scope.spawn(Symbols::of_kernel);
            (btf::Btf::of_kernel(), symbols.join().unwrap_or_default())
        });
        let mut kernel = layout::resolve(&btf?, symbols)?;
        // Whether casts can be used is known by trying: it takes the compiler for programs, and a verifier that follows them.
        if kernel.cast.is_some() && !is_avoided(CASTS) {
            match Self::attach_as(&kernel, &sizes, log_level, filter) {
                Ok((probes, false)) => return Ok(probes),
                Ok((_, true)) => log::debug!("a program was refused: memory is read by the helper"),
                Err(error) => log::debug!("memory is read by the helper: {error}"),
            }
        }
        kernel.cast = None;
        kernel.layout.cast_words = ABSENT;
        Self::attach_as(&kernel, &sizes, log_level, filter).map(|(probes, _)| probes)
    }

    /// Attaches everything by the numbers of that kernel, or nothing; and whether its verifier has refused one that is wanted.
    fn attach_as(
        kernel: &Kernel,
        sizes: &memory::Sizes,
        log_level: u8,
        filter: &KernelFilter,
    ) -> Result<(Self, bool), AttachError> {
        let types = AyaBtf::from_sys_fs().map_err(|error| refused("BTF", &error))?;
        let object = object(kernel.cast);
        let mut is_refused = false;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&types))
            .override_global(map::LAYOUT, kernel.layout.as_bytes(), true)
            .override_global(map::FILTER, filter.as_bytes(), true)
            .override_global(map::KEY_ROOM, &sizes.keys, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries(map::KEYS[0], sizes.keys)
            .map_max_entries(map::KEYS[1], sizes.keys)
            .map_max_entries(map::EVENTS, sizes.ring)
            .load(&object)
            .map_err(|error| refused("the BPF object", &error))?;
        let counters = ebpf
            .take_map(map::COUNTERS)
            .and_then(|map| PerCpuArray::try_from(map).ok())
            .ok_or_else(|| missing(map::COUNTERS))?;
        let mut probes = Self {
            ebpf,
            links: Vec::new(),
            lasting: Vec::new(),
            counters,
            states: Vec::new(),
            reasons: kernel.reasons.clone(),
            grows_maps: kernel.grows_maps,
            forwarding: kernel.forwarding,
            seeded: 0,
            hanging: Bytes::new(),
        };
        for hook in &HOOKS {
            let (mut errors, mut has_refused) = (Vec::new(), false);
            let way = hook.programs.iter().find_map(|(name, way, _)| {
                if is_avoided(way.name()) {
                    errors.push(format!("{}: not tried, because {AVOID} names it", way.name()));
                    return None;
                }
                match probes.attach_program(name, *way, hook.symbol, &types) {
                    Ok(()) => Some(*way),
                    Err(error) => {
                        has_refused |= matches!(error.downcast_ref(), Some(ProgramError::LoadError { .. }));
                        errors.push(format!("{}: {}", way.name(), one_line(&error)));
                        None
                    }
                }
            });
            // A second way is as good, but for the drops themselves.
            is_refused |= has_refused && (way.is_none() || hook.required);
            let result = way.ok_or_else(|| errors.join("; "));
            if let (true, Err(why)) = (hook.required, &result) {
                return Err(AttachError::Refused { what: hook.symbol.to_owned(), why: why.clone() });
            }
            probes.states.push(HookState { hook, result });
        }
        if !is_avoided(RULES)
            && let Err(error) = probes.attach_inner()
        {
            log::debug!("rules will be told only as long as nobody else looks at drops: {error:#}");
        }
        let connects = probes.states.iter().any(|state| state.hook.name == CONNECT && state.result.is_ok());
        if connects {
            probes
                .rely_on_connects()
                .map_err(|error| AttachError::Refused { what: "the BPF object".to_owned(), why: one_line(&error) })?;
        }
        Ok((probes, is_refused))
    }

    /// From now on a TCP socket is bound when it connects, and not before.
    fn rely_on_connects(&mut self) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut(map::CONNECTS).with_context(|| format!("it has no map {}", map::CONNECTS))?;
        let mut connects: Array<_, u32> = map.try_into()?;
        connects.set(0, 1, 0).context("cannot write a map")
    }

    /// Fails where the kernel would warn of a probe that uses our maps.
    pub fn may_probe(&self) -> anyhow::Result<()> {
        ensure!(self.grows_maps, "before Linux 6.1 the kernel would write a warning into its log");
        Ok(())
    }

    fn attach_program(&mut self, name: &str, way: Attachment, symbol: &str, types: &AyaBtf) -> anyhow::Result<()> {
        match way {
            Attachment::Kprobe(_) => self.may_probe()?,
            // Without it nothing can be observed.
            Attachment::RawTracepoint if panics_on_warnings() => self.may_probe()?,
            _ => {}
        }
        let program = self.ebpf.program_mut(name).with_context(|| format!("the BPF object has no program `{name}`"))?;
        let link: Box<dyn Any + Send> = match way {
            Attachment::Kprobe(function) => {
                let program: &mut KProbe = program.try_into()?;
                program.load()?;
                let id = program.attach(function, 0)?;
                Box::new(program.take_link(id)?)
            }
            Attachment::BtfTracepoint => {
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load(symbol, types)?;
                let id = program.attach()?;
                Box::new(program.take_link(id)?)
            }
            Attachment::RawTracepoint => {
                let program: &mut RawTracePoint = program.try_into()?;
                program.load()?;
                let id = program.attach(symbol)?;
                Box::new(program.take_link(id)?)
            }
            Attachment::Cgroup => {
                let root = cgroup::open()?;
                let program: &mut CgroupSock = program.try_into()?;
                program.load()?;
                let id = program.attach(root, CgroupAttachMode::Single)?;
                Box::new(program.take_link(id)?)
            }
            Attachment::SockOps => {
                let root = cgroup::open()?;
                let program: &mut SockOps = program.try_into()?;
                program.load()?;
                let id = program.attach(root, CgroupAttachMode::Single)?;
                Box::new(program.take_link(id)?)
            }
            Attachment::Iterator | Attachment::IteratorWithDiag => {
                let program: &mut Iter = program.try_into()?;
                program.load(symbol.trim_start_matches("iter/"), types)?;
                if way == Attachment::IteratorWithDiag {
                    sock_diag::give_cookies()?;
                }
                let id = program.attach()?;
                // The kernel runs the program while its file is read.
                let mut written = Vec::new();
                program.take_link(id)?.into_file()?.read_to_end(&mut written).context("cannot walk the open files")?;
                self.hanging = written.into();
                self.seeded = self.count_owners();
                return Ok(());
            }
        };
        if name == program::CREATE {
            self.lasting.push(link);
        } else {
            self.links.push(link);
        }
        Ok(())
    }

    fn count_owners(&self) -> usize {
        const OWNER_BYTES: usize = size_of::<Owner>();
        self.ebpf
            .map(map::OWNERS)
            .and_then(|map| HashMap::<_, u64, [u8; OWNER_BYTES]>::try_from(map).ok())
            .map_or(0, |owners| owners.keys().filter(Result::is_ok).count())
    }

    /// The program for packets that interrupt the one at the drops' tracepoint, behind that. Also, a tracepoint with one program calls it
    /// directly, one with several by way of a list: so the stack below a drop is always as deep, whoever else looks at drops or ceases to.
    fn attach_inner(&mut self) -> anyhow::Result<()> {
        let program = self.ebpf.program_mut(program::INNER).context("the BPF object has no inner program")?;
        let program: &mut RawTracePoint = program.try_into()?;
        program.load()?;
        let id = program.attach("kfree_skb")?;
        self.links.push(Box::new(program.take_link(id)?));
        Ok(())
    }

    /// What the eBPF side says for diagnosis; once, and only when a log level was given.
    pub fn take_log(&mut self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// Stops observing: from here on the counters stand still, and what is in the ring is all there will be.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// The counters now.
    pub fn totals(&self) -> Result<Totals, MapError> {
        totals::read(&self.counters)
    }

    /// Upper bound of the drops that no program saw because the kernel skipped the run; `None` where it does not say.
    pub fn missed_max(&self) -> Option<u64> {
        let skipped = self.skipped_runs(|hook| hook.required)?;
        Some(skipped.saturating_sub(self.totals().map_or(0, |totals| totals.inner)))
    }

    /// Upper bound of the processes' beginnings and programs that were not told because the kernel skipped the run; `None`
    /// where it does not say.
    pub fn untold_processes(&self) -> Option<u64> {
        self.skipped_runs(|hook| PROCESSES.contains(&hook.name))
    }

    fn skipped_runs(&self, wanted: impl Fn(&Hook) -> bool) -> Option<u64> {
        self.states
            .iter()
            .filter(|state| wanted(state.hook))
            .filter_map(|state| {
                let way = state.result.as_ref().ok()?;
                let (name, ..) = state.hook.programs.iter().find(|(_, candidate, _)| candidate == way)?;
                totals::skipped_runs(&program_descriptor(self.ebpf.program(name)?)?)
            })
            .reduce(|sum, runs| sum + runs)
    }
}

fn program_descriptor(program: &Program) -> Option<OwnedFd> {
    use std::os::fd::AsFd;
    program.fd().ok()?.as_fd().try_clone_to_owned().ok()
}

/// The kernel was told to panic where it would only warn.
fn panics_on_warnings() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/panic_on_warn").is_ok_and(|value| value.trim() != "0")
}

/// What this process may; an error names what it lacks.
pub fn check_privilege() -> Result<(), AttachError> {
    use caps::{CapSet, Capability};
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    if effective.contains(&Capability::CAP_SYS_ADMIN) {
        return Ok(());
    }
    let missing: Vec<String> = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN]
        .into_iter()
        .filter(|needed| !effective.contains(needed))
        .map(|needed| needed.to_string())
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(AttachError::Privilege(missing.join(", "))) }
}

/// The kernel's lockdown mode; `None` when it has none or does not say.
pub fn lockdown() -> Option<String> {
    let modes = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, mode) = modes.split_once('[')?;
    Some(mode.split_once(']')?.0.to_owned())
}

/// Names of all BPF programs that are loaded on this host.
pub fn program_names() -> Result<Vec<String>, String> {
    aya::programs::loaded_programs()
        .map(|program| {
            program
                .map(|program| program.name_as_str().unwrap_or_default().to_owned())
                .map_err(|error| error.to_string())
        })
        .collect()
}

fn refused(what: &str, error: &dyn std::error::Error) -> AttachError {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = inner.source();
    }
    log::debug!("{what}: {why}");
    AttachError::Refused { what: what.to_owned(), why: last_line(&why) }
}

fn missing(name: &str) -> AttachError {
    AttachError::Refused { what: "the BPF object".to_owned(), why: format!("it has no map `{name}`") }
}

/// An error with its causes in one line; a verifier's log is reduced to its last line (the whole goes to the debug log).
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let whole = format!("{error:#}");
    log::debug!("{whole}");
    last_line(&whole)
}

fn last_line(text: &str) -> String {
    const KEEP: usize = 300;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("processed "));
    let first = lines.next().unwrap_or_default();
    let last = lines.next_back();
    let joined = last.map_or_else(|| first.to_owned(), |last| format!("{first} … {last}"));
    joined.chars().take(KEEP).collect()
}

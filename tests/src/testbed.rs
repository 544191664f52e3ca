//! BPF programs that block on purpose, from the object `testbed-bpf`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkbAttachType, Program, SchedClassifier, TcAttachType, tc},
};
use nix::sched::{CloneFlags, setns};

use crate::namespace::Namespace;

/// Path of the object, from the environment variable `OBSERVER_TESTBED`.
pub fn object() -> PathBuf {
    std::env::var_os("OBSERVER_TESTBED")
        .map_or_else(|| PathBuf::from("target/bpf/bpfel-unknown-none/bpf/testbed-bpf"), PathBuf::from)
}

/// The product's programs without a logger, for another loader: beside the testbed's object.
pub fn unlogged_object() -> PathBuf {
    object().with_file_name("unlogged-bpf")
}

/// Loads the object.
pub fn load() -> Result<Ebpf> {
    Ebpf::load_file(object()).context("cannot load the testbed's BPF object")
}

/// Where the unified cgroup hierarchy is mounted; `None` when it is not.
pub fn cgroup_root() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    }))
}

/// A cgroup whose program denies something; gone when dropped.
pub struct DenyingCgroup {
    path: PathBuf,
    _ebpf: Ebpf,
}

impl DenyingCgroup {
    /// Makes one that lets nothing out below the hierarchy's root.
    pub fn new(root: &Path, name: &str) -> Result<Self> {
        Self::with(root, name, "deny_egress")
    }

    /// Makes one with this program of the testbed's.
    pub fn with(root: &Path, name: &str, program: &str) -> Result<Self> {
        let path = root.join(name);
        fs::create_dir_all(&path)?;
        let mut ebpf = load()?;
        let (cgroup, mode) = (File::open(&path)?, CgroupAttachMode::Single);
        match ebpf.program_mut(program).context("no such program")? {
            Program::CgroupSkb(program) => {
                program.load()?;
                program.attach(cgroup, CgroupSkbAttachType::Egress, mode)?;
            }
            Program::CgroupSock(program) => {
                program.load()?;
                program.attach(cgroup, mode)?;
            }
            Program::CgroupSockAddr(program) => {
                program.load()?;
                program.attach(cgroup, mode)?;
            }
            _ => bail!("`{program}` is no program of a cgroup"),
        }
        Ok(Self { path, _ebpf: ebpf })
    }

    /// File that takes the ids of its processes.
    pub fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for DenyingCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// A traffic control action that drops what leaves a namespace by `interface`; gone when the result is dropped.
pub fn deny_tc(namespace: &Namespace, interface: &str) -> Result<Ebpf> {
    attach_tc(namespace, interface, TcAttachType::Egress)
}

/// The same for what comes in by it.
pub fn deny_tc_ingress(namespace: &Namespace, interface: &str) -> Result<Ebpf> {
    attach_tc(namespace, interface, TcAttachType::Ingress)
}

fn attach_tc(namespace: &Namespace, interface: &str, way: TcAttachType) -> Result<Ebpf> {
    let (path, interface) = (namespace.path(), interface.to_owned());
    // A thread of its own: it stays in the namespace that it enters.
    thread::spawn(move || {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
        let mut ebpf = load()?;
        tc::qdisc_add_clsact(&interface).context("cannot add a clsact qdisc")?;
        let program: &mut SchedClassifier = ebpf.program_mut("deny_tc").context("deny_tc")?.try_into()?;
        program.load()?;
        program.attach(&interface, way)?;
        Ok(ebpf)
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread failed"))?
}

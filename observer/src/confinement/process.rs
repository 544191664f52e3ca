//! Gives up everything that observing no longer needs.
//!
//! The order is a contract:
//! 1. every descriptor that needs privilege to open is open: probes, ring, output files, the helper's socket;
//! 2. there is one thread;
//! 3. capabilities are tried without: before Linux 5.19 reading the counters takes CAP_BPF, which is then kept alone;
//! 4. supplementary groups, group and user become ones that are nobody's, so that root's files are out of reach too;
//! 5. permitted, effective, inheritable, ambient and bounding capabilities go, then new privileges are forbidden;
//! 6. system calls that are not needed are refused.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::syscalls;

/// A user and group that no distribution gives to anybody: another process of the same user, such as one of nobody's,
/// could stop this one.
const NOBODY: u32 = 65533;

/// What is left.
#[derive(Clone, Debug)]
pub struct Confined {
    /// Capabilities that were kept.
    pub kept: Vec<String>,
    /// Why the user is still root, where it is.
    pub still_root: Option<String>,
}

/// Confines this process for good, but for the capabilities in `keep`. `still_works` is tried without capabilities; when it
/// fails, CAP_BPF stays.
/// `may_connect`: it may still make sockets of the Internet's families.
pub fn confine(keep: &[Capability], may_connect: bool, still_works: impl Fn() -> bool) -> Result<Confined> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read own capabilities")?;
    let effective = caps::read(None, CapSet::Effective).context("cannot read own capabilities")?;
    caps::clear(None, CapSet::Effective).context("cannot lower capabilities")?;
    let bare = still_works();
    caps::set(None, CapSet::Effective, &effective).context("cannot raise capabilities")?;
    let wanted = keep.iter().copied().chain((!bare).then_some(Capability::CAP_BPF));
    let kept: CapsHashSet = wanted.filter(|capability| permitted.contains(capability)).collect();

    bound(&kept)?;
    let still_root =
        Uid::effective().is_root().then(|| become_nobody(&permitted).err()).flatten().map(|error| format!("{error:#}"));
    caps::clear(None, CapSet::Ambient).ok();
    caps::clear(None, CapSet::Inheritable).context("cannot give up capabilities")?;
    caps::set(None, CapSet::Effective, &kept).context("cannot give up capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("cannot give up capabilities")?;
    rustix::thread::set_no_new_privs(true).context("cannot forbid new privileges")?;
    syscalls::apply(&syscalls::of_the_main_process(may_connect)?).context("cannot filter system calls")?;
    Ok(Confined { kept: kept.iter().map(ToString::to_string).collect(), still_root })
}

/// Takes all other capabilities out of the bounding set: no program that is executed from now on gets them.
pub fn bound(kept: &CapsHashSet) -> Result<()> {
    let bounding = caps::read(None, CapSet::Bounding).context("cannot read own capabilities")?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for capability in bounding.difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability).context("cannot give up capabilities")?;
        }
    }
    Ok(())
}

fn become_nobody(permitted: &CapsHashSet) -> Result<()> {
    anyhow::ensure!(
        permitted.contains(&Capability::CAP_SETUID) && permitted.contains(&Capability::CAP_SETGID),
        "may not change the user"
    );
    // Otherwise the permitted set would go with the user, and with it what is to be kept.
    rustix::thread::set_keep_capabilities(true)?;
    let (group, user) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    rustix::thread::set_keep_capabilities(false)?;
    Ok(())
}

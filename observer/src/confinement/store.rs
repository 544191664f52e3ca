//! The process that keeps the store: it stays its user, without any privilege, and reaches the files of one folder alone.

use std::path::Path;

use anyhow::{Context, Result};
use caps::{CapSet, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, path_beneath_rules,
};

use super::{process::bound, syscalls};

/// The newest version of Landlock that is asked for; older kernels take what they have.
const LANDLOCK: ABI = ABI::V5;

/// Confines this process for good. Root without capabilities may write root's files: in `folder`, and nowhere else where the kernel
/// has Landlock (5.13).
pub fn confine(folder: &Path) -> Result<()> {
    bound(&CapsHashSet::new())?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).context("cannot give up capabilities")?;
    }
    rustix::thread::set_no_new_privs(true).context("cannot forbid new privileges")?;
    let all = AccessFs::from_all(LANDLOCK);
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
    let inside = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock);
    ruleset.add_rules(path_beneath_rules([folder], inside))?.restrict_self()?;
    syscalls::apply(&syscalls::of_the_helper()?)?;
    for filter in syscalls::of_a_child(false)? {
        syscalls::apply(&filter)?;
    }
    Ok(())
}

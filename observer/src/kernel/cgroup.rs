//! Finds the root of the unified cgroup hierarchy, wherever it is mounted.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The unified hierarchy.
pub enum Hierarchy {
    /// Mounted here; not always `/sys/fs/cgroup`.
    Mounted {
        /// Mount point.
        path: PathBuf,
        /// The mount shows the whole hierarchy (inside a container it can be a part).
        whole: bool,
    },
    /// Not mounted in this mount namespace.
    NotMounted,
}

/// Looks in this process's mounts.
pub fn find() -> Result<Hierarchy> {
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .context("cannot read /proc/self/mountinfo")?;
    Ok(mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2").max_by_key(|mount| mount.root == "/").map_or(
        Hierarchy::NotMounted,
        |mount| Hierarchy::Mounted { whole: mount.root == "/", path: mount.mount_point },
    ))
}

/// Opens the root. Where it is not mounted, a mount of its own is made that no path leads to and that is gone with its
/// descriptor: nothing on the host changes.
pub fn open() -> Result<File> {
    match find()? {
        Hierarchy::Mounted { path, .. } => open_path(&path),
        Hierarchy::NotMounted => {
            let context =
                fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).context("cannot open the cgroup2 file system")?;
            fsconfig_create(&context).context("cannot create a cgroup2 mount")?;
            let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
                .context("cannot make a private cgroup2 mount")?;
            Ok(mount.into())
        }
    }
}

fn open_path(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open the cgroup root {}", path.display()))
}

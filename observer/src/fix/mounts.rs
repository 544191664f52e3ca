//! A thread's own view of the host's files: everything only to be read, but private copies of what front ends write, an empty
//! `/run`, and the settings of its own network namespace.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use procfs::{FromRead, process::MountInfos};

use crate::firewall::files::{Kept, Root};

/// Folders of front ends' files, which they write.
const COPIED: [&str; 3] = ["/etc/ufw", "/etc/firewalld", "/etc/default"];
/// What is empty there: nothing of the host listens in it.
const EMPTY: [&str; 3] = ["/run", "/tmp", "/var/tmp"];
/// File systems that are the kernel's own; of these only `/proc/sys` could change what is the host's.
const OF_THE_KERNEL: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// Programs that ufw runs whenever it loads its rules: what they do is not known.
const PROGRAMS: [&str; 2] = ["/etc/ufw/before.init", "/etc/ufw/after.init"];

/// What front ends keep, to be put into a private copy.
pub struct Files(Vec<(&'static str, Vec<Kept>)>);

impl Files {
    /// Below a root folder.
    pub fn read(root: &Root) -> Result<Self> {
        let all: Vec<_> = COPIED.into_iter().map(|folder| Ok((folder, root.keep(folder)?))).collect::<Result<_>>()?;
        let is_program =
            |file: &&Kept| PROGRAMS.contains(&file.path.as_str()) && file.mode & 0o111 != 0 && file.content.is_some();
        let program = all.iter().flat_map(|(_, files)| files).find(is_program);
        ensure!(program.is_none(), "{} is run with the rules, and what it does is not tried", PROGRAMS[0]);
        Ok(Self(all))
    }
}

/// Gives the calling thread such a view, of another mount namespace where one is given; it cannot be given back.
pub(super) fn enter(files: &Files, of: Option<File>) -> Result<()> {
    if let Some(of) = of {
        // Threads share what they see of files until then.
        unshare(CloneFlags::CLONE_FS)?;
        setns(of, CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace of the firewall's files")?;
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    set("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE).context("cannot keep mounts to itself")?;
    let mounts = MountInfos::from_file("/proc/thread-self/mountinfo").context("cannot list mounts")?;
    for point in mounts.0.iter().map(|mount| mount.mount_point.as_path()) {
        let is_kernels = OF_THE_KERNEL.iter().any(|folder| point.starts_with(folder));
        if !is_kernels && let Err(error) = only_read(point) {
            // What lies below another mount cannot be reached anyway.
            ensure!(point != Path::new("/"), "cannot keep the host's files from being written: {error:#}");
        }
    }
    bind("/proc/sys")?;
    bind("/proc/sys/net")?;
    only_read(Path::new("/proc/sys")).context("cannot keep the host's settings from being written")?;
    for folder in EMPTY.into_iter().filter(|folder| Path::new(folder).is_dir()) {
        empty(folder)?;
    }
    fs::create_dir_all("/run/lock")?;
    for (folder, kept) in &files.0 {
        if !Path::new(folder).is_dir() {
            continue;
        }
        empty(folder)?;
        for Kept { path, mode, content } in kept {
            match content {
                Some(content) => fs::write(path, content)?,
                None => fs::create_dir_all(path)?,
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
        }
    }
    Ok(())
}

fn set(path: &str, flags: MsFlags) -> Result<()> {
    Ok(mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?)
}

fn bind(path: &str) -> Result<()> {
    mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount {path} privately"))
}

fn empty(path: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("observer"), path, Some("tmpfs"), flags, Some("mode=0755,size=64m"))
        .with_context(|| format!("cannot mount {path} privately"))
}

/// Nothing is written there; what else its mount is set to stays.
fn only_read(path: &Path) -> Result<()> {
    let now = nix::sys::statvfs::statvfs(path)?.flags();
    let kept = [
        (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (nix::sys::statvfs::FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (nix::sys::statvfs::FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (nix::sys::statvfs::FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (nix::sys::statvfs::FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.into_iter().filter(|(flag, _)| now.contains(*flag)).map(|(_, flag)| flag);
    let flags = kept.fold(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, |all, flag| all | flag);
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot make {} read-only", path.display()))
}

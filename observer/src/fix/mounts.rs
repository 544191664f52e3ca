//! A thread's own view of the host's files: everything only to be read, but private copies of what front ends write, an empty
//! `/run`, and the settings of its own network namespace.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    firewall::files::{Content, Kept, Root},
    sys,
};

/// Folders of front ends' files, which they write.
const COPIED: [&str; 3] = ["/etc/ufw", "/etc/firewalld", "/etc/default"];
/// What is empty there: nothing of the host listens in it.
const EMPTY: [&str; 4] = ["/run", "/var/run", "/tmp", "/var/tmp"];
/// Programs that ufw runs whenever it loads its rules: what they do is not known.
const PROGRAMS: [&str; 2] = ["/etc/ufw/before.init", "/etc/ufw/after.init"];
/// What rules in front ends' files would do to the host itself: its log of security, timers that all namespaces share, lamps.
const ON_THE_HOST: [&str; 4] = ["-j AUDIT", "-j IDLETIMER", "-j LED", "<audit"];
/// Where the system's programs are: they must be the same to whoever lives in the firewall's mount namespace.
const OF_THE_SYSTEM: [&str; 9] = ["/", "/usr", "/usr/bin", "/usr/sbin", "/usr/lib", "/bin", "/sbin", "/lib", "/lib64"];

/// What front ends keep, to be put into a private copy.
pub struct Files(Vec<(&'static str, Vec<Kept>)>);

impl Files {
    /// Below a root folder.
    pub fn read(root: &Root) -> Result<Self> {
        let all: Vec<_> = COPIED.into_iter().map(|folder| Ok((folder, root.keep(folder)?))).collect::<Result<_>>()?;
        for file in all.iter().flat_map(|(_, files)| files) {
            let Content::File(text) = &file.content else { continue };
            let is_program = PROGRAMS.contains(&file.path.as_str()) && file.mode & 0o111 != 0;
            ensure!(!is_program, "{} is run with the rules, and what it does is not tried", file.path);
            harmless(text).with_context(|| format!("{} is not tried", file.path))?;
        }
        Ok(Self(all))
    }
}

/// Rules of a file or command that would do something to the host, though they are another namespace's.
pub(super) fn harmless(text: &str) -> Result<()> {
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let found = lines.find_map(|line| ON_THE_HOST.into_iter().find(|word| line.contains(word)));
    ensure!(found.is_none(), "a rule in it would do something to the host (`{}`)", found.unwrap_or_default());
    Ok(())
}

/// Gives the calling thread such a view, of another mount namespace where one is given; it cannot be given back.
pub(super) fn enter(files: &Files, of: Option<File>) -> Result<()> {
    if let Some(of) = of {
        let own = OF_THE_SYSTEM.map(place);
        // Threads share what they see of files until then.
        unshare(CloneFlags::CLONE_FS)?;
        setns(of, CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace of the firewall's files")?;
        ensure!(
            OF_THE_SYSTEM.map(place) == own,
            "the rules are managed from a root folder of its own: its programs and files are not tried"
        );
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // What the host takes away is taken away here too.
    set("/", MsFlags::MS_REC | MsFlags::MS_SLAVE).context("cannot keep mounts to itself")?;
    sys::mount_read_only(c"/", true).context("cannot keep the host's files from being written (Linux 5.12 can)")?;
    bind("/proc/sys/net")?;
    sys::mount_read_only(c"/proc/sys/net", false).context("cannot set up the copy's own settings")?;
    if fs::symlink_metadata("/dev/log").is_ok_and(|meta| meta.file_type().is_socket()) {
        mount(Some("/dev/null"), "/dev/log", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("cannot keep the host's log from being written")?;
    }
    let is_folder = |folder: &&str| fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir());
    for folder in EMPTY.iter().filter(|folder| is_folder(folder)) {
        empty(folder)?;
    }
    fs::create_dir_all("/run/lock")?;
    for (folder, kept) in files.0.iter().filter(|(folder, _)| is_folder(folder)) {
        empty(folder)?;
        for Kept { path, mode, content } in kept {
            match content {
                Content::File(text) => fs::write(path, text)?,
                Content::Folder => fs::create_dir_all(path)?,
                Content::Link(to) => {
                    symlink(to, path)?;
                    continue;
                }
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
        }
    }
    Ok(())
}

/// What is at a path.
fn place(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok()
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

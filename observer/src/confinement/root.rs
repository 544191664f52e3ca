//! The root folder of a confined program: the host's programs and libraries to read, a few files of `/etc`, empty folders in
//! memory for all else. No socket of the host's, no device but the harmless ones, and no file that only root may read is in it.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::sys::jail::Step;

/// Where it is built, in the child's own mount namespace: it hides this folder there, which nothing in it comes from.
const PLACES: [&str; 4] = ["/mnt", "/media", "/srv", "/tmp"];
/// Programs and libraries.
const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libexec"];
/// What programs need of `/etc`; nothing in it is secret.
const SETTINGS: [&str; 24] = [
    "alternatives",
    "connlabel.conf",
    "crypto-policies",
    "dbus-1",
    "ethertypes",
    "gai.conf",
    "group",
    "host.conf",
    "hosts",
    "iproute2",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "networks",
    "nftables",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "protocols",
    "rpc",
    "services",
    "xtables",
];
/// The same for programs that only list rules, which are started for every change: each mount takes its time.
const TO_LIST: [&str; 8] = [
    "alternatives",
    "connlabel.conf",
    "ethertypes",
    "iproute2",
    "ld.so.cache",
    "nsswitch.conf",
    "protocols",
    "xtables",
];
/// Devices.
const DEVICES: [&str; 5] = ["full", "null", "random", "urandom", "zero"];
/// Empty folders.
const EMPTY: [&str; 5] = ["run", "tmp", "var", "var/log", "var/tmp"];

/// Bytes that a program may write into its root folder.
const ROOM: &str = "mode=0755,size=16m";

const PRIVATE: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Folders of the caller's own that are put into the root folder of several programs, to be written: the path here, and there.
pub type Shared = Vec<(PathBuf, String)>;

/// The steps that build it, and where it then is. With `shared` the program may write, and set what the kernel lets its network
/// namespace set; without, everything is read-only.
pub fn plan(shared: Option<&Shared>) -> Result<(CString, Vec<Step>)> {
    let root = PLACES.into_iter().find(|place| fs::symlink_metadata(place).is_ok_and(|meta| meta.is_dir()));
    let root = root.with_context(|| format!("none of {} is a folder", PLACES.join(", ")))?;
    let mut plan = Plan { root: root.to_owned(), steps: Vec::new() };
    plan.mount("tmpfs", "", Some("tmpfs"), PRIVATE, ROOM)?;
    for path in SYSTEM {
        plan.show(path)?;
    }
    plan.folder("/etc")?;
    let (settings, devices) =
        if shared.is_some() { (&SETTINGS[..], &DEVICES[..]) } else { (&TO_LIST[..], &["null"][..]) };
    for name in settings {
        plan.mirror(&format!("/etc/{name}"), libc::MS_RDONLY | PRIVATE)?;
    }
    plan.folder("/dev")?;
    for name in devices {
        plan.mirror(&format!("/dev/{name}"), libc::MS_NOSUID | libc::MS_NOEXEC)?;
    }
    for folder in EMPTY {
        plan.folder(&format!("/{folder}"))?;
    }
    plan.link("/run", "/var/run")?;
    for (from, to) in shared.into_iter().flatten() {
        if !EMPTY.contains(&to.trim_start_matches('/')) {
            plan.folder(to)?;
        }
        plan.bind(from, to, PRIVATE)?;
    }
    plan.folder("/proc")?;
    plan.mount("proc", "/proc", Some("proc"), PRIVATE, "")?;
    if shared.is_some() {
        // What is in it belongs to the network namespace of whoever looks.
        plan.bind_inside("/proc/sys/net")?;
    }
    plan.remount("/proc", libc::MS_RDONLY | PRIVATE)?;
    if shared.is_none() {
        plan.remount("", libc::MS_RDONLY | PRIVATE)?;
    }
    Ok((text(root)?, plan.steps))
}

struct Plan {
    root: String,
    steps: Vec<Step>,
}

impl Plan {
    fn at(&self, path: &str) -> Result<CString> {
        text(&format!("{}{path}", self.root))
    }

    fn folder(&mut self, path: &str) -> Result<()> {
        self.steps.push(Step::Folder(self.at(path)?));
        Ok(())
    }

    fn link(&mut self, to: &str, path: &str) -> Result<()> {
        self.steps.push(Step::Link(text(to)?, self.at(path)?));
        Ok(())
    }

    fn mount(&mut self, source: &str, path: &str, kind: Option<&str>, flags: u64, data: &str) -> Result<()> {
        let target = self.at(path)?;
        let kind = text(kind.unwrap_or_default())?;
        self.steps.push(Step::Mount { source: text(source)?, target, kind, flags, data: text(data)? });
        Ok(())
    }

    fn remount(&mut self, path: &str, flags: u64) -> Result<()> {
        self.mount("", path, None, libc::MS_REMOUNT | libc::MS_BIND | flags, "")
    }

    fn bind(&mut self, from: &Path, to: &str, flags: u64) -> Result<()> {
        self.mount(from.to_str().context("a path that is no text")?, to, None, libc::MS_BIND, "")?;
        self.remount(to, flags)
    }

    /// A folder of the root folder itself, with the flags of a mount of its own.
    fn bind_inside(&mut self, path: &str) -> Result<()> {
        let inside = format!("{}{path}", self.root);
        self.mount(&inside, path, None, libc::MS_BIND, "")
    }

    /// A folder of programs as it is on the host, where it is there; a link stays a link.
    fn show(&mut self, path: &str) -> Result<()> {
        let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
        if meta.is_symlink() {
            let to = fs::read_link(path).with_context(|| format!("cannot read the link {path}"))?;
            return self.link(to.to_str().context("a link that is no text")?, path);
        }
        self.folder(path)?;
        self.steps.push(Step::Show(text(path)?, self.at(path)?));
        Ok(())
    }

    /// A file or folder as it is on the host, where it is there; what a link leads to is mounted in its place.
    fn mirror(&mut self, path: &str, flags: u64) -> Result<()> {
        let Ok(meta) = fs::metadata(path) else { return Ok(()) };
        if meta.is_dir() {
            self.folder(path)?;
        } else {
            self.steps.push(Step::File(self.at(path)?));
        }
        self.bind(Path::new(path), path, flags)
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).context("a path with a zero in it")
}

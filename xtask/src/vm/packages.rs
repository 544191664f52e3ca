//! A kernel's packages: found and fetched by apt, with a configuration of its own, from the mirrors that this machine uses
//! already. apt verifies signatures and checksums. Nothing is installed, and the machine's package lists stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::kernels::Kernel;
use crate::{command, root, setup};

/// A kernel on this machine's disk.
pub(crate) struct Unpacked {
    /// What `modprobe -d` takes: modules are in `lib/modules/VERSION` below it.
    pub(crate) folder: PathBuf,
    /// As `uname -r` says it.
    pub(crate) version: String,
    /// The kernel itself.
    pub(crate) image: PathBuf,
    /// A statically linked busybox of its architecture.
    pub(crate) busybox: PathBuf,
}

/// Why a kernel cannot be had.
pub(crate) enum Fetched {
    /// It is there.
    Kernel(Unpacked),
    /// No package source of this machine has it; what would help.
    Unavailable(String),
}

/// Fetches and unpacks a kernel once; a later call finds it, unless the catalogue says something else by then. To fetch a
/// newer one of the same line, remove the folder.
pub(crate) fn fetch(kernel: &Kernel) -> Result<Fetched> {
    let folder = root().join("target/vm").join(&kernel.name);
    let marker = folder.join("whole");
    let origin = format!("{} {} {} {}\n", kernel.distribution, kernel.suites.join(","), kernel.package, kernel.arch);
    if fs::read_to_string(&marker).ok().as_ref() != Some(&origin) {
        let Some(sources) = sources(&kernel.distribution, &kernel.suites)? else {
            return Ok(Fetched::Unavailable(format!(
                "none of this machine's package sources is {}'s: name a mirror in OBSERVER_MIRROR_{}",
                kernel.distribution,
                kernel.distribution.to_uppercase()
            )));
        };
        let _ = fs::remove_dir_all(&folder);
        let apt = Apt::new(folder.join("apt"), kernel.debian_arch()?, &sources)?;
        let mut packages = apt.kernel_packages(&kernel.package)?;
        packages.push("busybox-static".to_owned());
        println!("xtask: fetching {} for kernel {}", packages.join(", "), kernel.name);
        for archive in apt.download(&packages)? {
            command::check(command::new("dpkg").arg("-x").arg(&archive).arg(&folder))?;
        }
        fs::remove_dir_all(folder.join("apt"))?;
        if !folder.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", folder.join("lib"))?;
        }
        command::check(command::new("depmod").arg("-b").arg(&folder).arg(version(&folder)?))?;
        fs::write(&marker, origin)?;
    }
    let version = version(&folder)?;
    let find = |candidates: &[String]| {
        candidates
            .iter()
            .map(|candidate| folder.join(candidate))
            .find(|path| path.exists())
            .with_context(|| format!("kernel {} has none of {}", kernel.name, candidates.join(", ")))
    };
    let image = find(&[format!("boot/vmlinuz-{version}"), format!("usr/lib/modules/{version}/vmlinuz")])?;
    let busybox = find(&["bin/busybox".into(), "usr/bin/busybox".into()])?;
    Ok(Fetched::Kernel(Unpacked { folder, version, image, busybox }))
}

/// Fetches one package of another architecture from the suites of this machine's own release, and unpacks it.
pub(crate) fn unpack_foreign(package: &str, arch: &'static str, into: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_matches('"').to_owned())
    };
    let distribution = field("ID=").context("/etc/os-release has no ID")?;
    let codename = field("VERSION_CODENAME=").context("/etc/os-release has no VERSION_CODENAME")?;
    unpack(package, arch, &distribution, &[codename.clone(), format!("{codename}-security")], into)
}

/// The keys of a distribution's archive, where this machine's own release has no package of them: Debian's newest has.
fn foreign_keyring(distribution: &str) -> Result<PathBuf> {
    let folder = root().join("target/vm/keys");
    let keyring = folder.join(format!("usr/share/keyrings/{distribution}-archive-keyring.gpg"));
    if !keyring.exists() {
        unpack(&format!("{distribution}-keyring"), "amd64", "debian", &["sid".to_owned()], &folder)?;
    }
    ensure!(keyring.exists(), "no keys are known for packages of {distribution}");
    Ok(keyring)
}

fn unpack(package: &str, arch: &'static str, distribution: &str, suites: &[String], into: &Path) -> Result<()> {
    let sources = sources(distribution, suites)?.with_context(|| format!("no package source of {distribution}"))?;
    let apt = Apt::new(into.join("apt"), arch, &sources)?;
    for archive in apt.download(&[package.to_owned()])? {
        command::check(command::new("dpkg").arg("-x").arg(&archive).arg(into))?;
    }
    fs::remove_dir_all(into.join("apt")).context("cannot tidy up")
}

/// The one version whose modules are in a folder.
fn version(folder: &Path) -> Result<String> {
    let modules = folder.join("lib/modules");
    let mut names = fs::read_dir(&modules)
        .with_context(|| format!("cannot read {}", modules.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<String>>>()?;
    ensure!(names.len() == 1, "not one kernel in {}", modules.display());
    Ok(names.remove(0))
}

/// Lines for apt's `sources.list`; `None` when no mirror of the distribution is known.
fn sources(distribution: &str, suites: &[String]) -> Result<Option<String>> {
    let mut lines = String::new();
    for suite in suites {
        let security = distribution == "debian" && suite.ends_with("-security");
        let label = if security { format!("{distribution}-security") } else { distribution.to_owned() };
        let Some(mirror) = mirror(&label) else { return Ok(None) };
        let keyring = match setup::keyring(distribution)? {
            Some(installed) => installed.into(),
            None => foreign_keyring(distribution)?,
        };
        lines.push_str(&format!("deb [signed-by={}] {mirror} {suite} main\n", keyring.display()));
    }
    Ok(Some(lines))
}

/// URL of a mirror: from the environment, or one that this machine's apt uses.
fn mirror(label: &str) -> Option<String> {
    let variable = format!("OBSERVER_MIRROR_{}", label.to_uppercase().replace('-', "_"));
    if let Ok(url) = std::env::var(variable) {
        return Some(url);
    }
    // Labels are known once the lists are there.
    used(label).or_else(|| {
        command::check(command::new("apt-get").args(["-qq", "update"])).ok()?;
        used(label)
    })
}

fn used(label: &str) -> Option<String> {
    let mut targets = command::new("apt-get");
    targets.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    command::output(&mut targets)?.lines().find_map(|line| {
        let (found, url) = line.split_once(' ')?;
        found.eq_ignore_ascii_case(label).then(|| url.to_owned())
    })
}

/// apt with sources, lists and a cache of its own; proxies and the like are the machine's.
struct Apt {
    folder: PathBuf,
    arch: &'static str,
}

impl Apt {
    fn new(folder: PathBuf, arch: &'static str, sources: &str) -> Result<Self> {
        for name in ["state/lists/partial", "cache/archives/partial", "fetched", "preferences.d"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(folder.join("status"), "")?;
        fs::write(folder.join("sources.list"), sources)?;
        let apt = Self { folder, arch };
        command::check(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command = command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "-".to_owned()),
            ("Dir::Etc::preferences", "-".to_owned()),
            ("Dir::Etc::preferencesparts", path("preferences.d")),
            ("Dir::State", path("state")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("cache")),
            ("APT::Architecture", self.arch.to_owned()),
            ("APT::Architectures", self.arch.to_owned()),
            // It runs as root in a folder of its own, which apt's own user may not write.
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
        ] {
            command.args(["-o", &format!("{option}={value}")]);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// The packages with the kernel and its modules, to which a package leads by its dependencies.
    fn kernel_packages(&self, package: &str) -> Result<Vec<String>> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]);
        depends.args(["--no-replaces", "--no-enhances", package]);
        let tree = command::output(&mut depends).unwrap_or_default();
        let mut packages: Vec<String> = tree
            .lines()
            .filter(|line| !line.starts_with([' ', '|', '<']))
            .filter(|name| {
                let part =
                    |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(char::is_numeric));
                ["linux-image-", "linux-binary-", "linux-base-", "linux-modules-", "linux-modules-extra-"]
                    .iter()
                    .any(|prefix| part(prefix))
            })
            .filter(|name| *name != package)
            .map(str::to_owned)
            .collect();
        packages.sort();
        packages.dedup();
        ensure!(!packages.is_empty(), "{package} leads to no kernel");
        Ok(packages)
    }

    /// Fetches packages, without what they depend on; returns the archives.
    fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let fetched = self.folder.join("fetched");
        command::check(self.command("apt-get").args(["-qq", "download"]).args(packages).current_dir(&fetched))?;
        let archives = fs::read_dir(&fetched)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
        ensure!(archives.len() == packages.len(), "apt fetched {} of {} packages", archives.len(), packages.len());
        Ok(archives)
    }
}

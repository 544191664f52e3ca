//! Finds what building and testing need, and installs what is missing: by apt on Debian and Ubuntu as root, by rustup and
//! cargo elsewhere. What it cannot install it names, with the command for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::command;

/// Version of the BPF linker that the project is built with.
const LINKER_VERSION: &str = "0.13.0";
/// Major versions of LLVM that this linker can be built with.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// The oldest compiler with the language that the eBPF side is written in.
const OLDEST: (u32, u32) = (1, 88);
/// Programs that tests and the demo run, with the Debian package that brings each.
const TEST_TOOLS: [(&str, &str); 21] = [
    ("nft", "nftables"),
    ("iptables-nft", "iptables"),
    ("iptables-legacy", "iptables"),
    ("ufw", "ufw"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("chroot", "coreutils"),
    ("python3", "python3"),
    ("pip3", "python3-pip"),
    ("ipset", "ipset"),
    ("sqlite3", "sqlite3"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("dnsmasq", "dnsmasq-base"),
    ("slirp4netns", "slirp4netns"),
    ("openssl", "openssl"),
    ("dpkg-deb", "dpkg"),
    ("update-ca-certificates", "ca-certificates"),
];
/// Programs without which a scenario is skipped: not every release has a package of that name.
const WELCOME_TOOLS: [(&str, &str); 5] =
    [("bpftool", "bpftool"), ("ipvsadm", "ipvsadm"), ("secilc", "secilc"), ("tmux", "tmux"), ("dnf", "dnf")];
/// The same whose packages start a service: only where no systemd runs that would. A firewall that nobody asked for is the last
/// thing that a test may bring.
const SERVICES: [(&str, &str); 2] = [("firewalld", "firewalld"), ("dbus-daemon", "dbus-daemon")];

/// Programs that make packages.
const PACKAGE_TOOLS: [(&str, &str); 5] =
    [("dpkg-deb", "dpkg"), ("rpmbuild", "rpm"), ("strip", "binutils"), ("tar", "tar"), ("xz", "xz-utils")];

/// Programs that boot other kernels, whatever their architecture.
const MACHINE_TOOLS: [(&str, &str); 8] = [
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("timeout", "coreutils"),
    ("systemd-run", "systemd"),
    ("systemctl", "systemd"),
];
/// The emulators.
const EMULATORS: [(&str, &str); 2] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("qemu-system-aarch64", "qemu-system-arm")];
/// Linkers and emulators for other architectures.
const CROSS_TOOLS: [(&str, &str); 2] =
    [("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), ("qemu-aarch64-static", "qemu-user-static")];
/// Packages with the static C library for them.
const CROSS_LIBRARIES: [(&str, &str); 1] = [("aarch64", "libc6-dev-arm64-cross")];
/// The package with the standard library of the compiler that Debian brings for the eBPF side.
const FOREIGN_STD: &str = "libstd-rust-web-dev";
/// Keys of the distributions' package archives.
const KEYRINGS: [(&str, &str, &str); 2] = [
    ("debian", "/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("ubuntu", "/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu-keyring"),
];

/// A compiler with the library sources that the BPF target is built from.
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// Major version of its LLVM.
    llvm: u32,
    nightly: bool,
}

impl Toolchain {
    /// Cargo of this toolchain, allowed to build the core library.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = command::new(&self.cargo);
        command.env("RUSTC", &self.rustc).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTDOC");
        if !self.nightly {
            // `-Z build-std` is all that is asked of it.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

/// The toolchain for the eBPF side, with its linker; installed when missing.
pub(crate) fn toolchain() -> Result<Toolchain> {
    let toolchain = match find_toolchain() {
        Some(toolchain) => toolchain,
        None => {
            install_toolchain()?;
            match find_toolchain() {
                Some(toolchain) => toolchain,
                None => bail!("a toolchain was installed, but its library sources are not where they should be"),
            }
        }
    };
    linker(&toolchain)?;
    Ok(toolchain)
}

/// Programs for tests and the demo; installed when missing.
pub(crate) fn test_tools() -> Result<()> {
    tools(&TEST_TOOLS, "tests and the demo")?;
    let services = SERVICES.into_iter().filter(|_| !Path::new("/run/systemd/system").exists());
    let welcome: Vec<(&str, &'static str)> = WELCOME_TOOLS
        .into_iter()
        .chain(services)
        .filter(|(program, package)| find_program(program).is_none() && debian() && known_to_apt(package))
        .collect();
    tools(&welcome, "tests")
}

/// Programs for a virtual machine of an architecture; installed when missing.
pub(crate) fn machine_tools(arch: &str) -> Result<()> {
    let emulator = format!("qemu-system-{arch}");
    let mut wanted: Vec<(&str, &'static str)> = EMULATORS.into_iter().filter(|(name, _)| *name == emulator).collect();
    wanted.extend(MACHINE_TOOLS);
    tools(&wanted, "virtual machines")
}

/// Programs that make packages; installed when missing.
pub(crate) fn package_tools() -> Result<()> {
    tools(&PACKAGE_TOOLS, "packages")
}

/// A tool that cargo brings, in one version; installed when missing.
pub(crate) fn cargo_tool(name: &str, version: &str) -> Result<()> {
    let installed = command::output(command::cargo().args(["install", "--list"]));
    if installed.is_some_and(|list| list.contains(&format!("{name} v{version}:"))) {
        return Ok(());
    }
    println!("xtask: installing {name} {version}");
    command::check(command::cargo().args(["install", "--quiet", "--locked", name, "--version", version]))
}

/// What builds for another architecture, and runs it.
pub(crate) struct Cross {
    pub(crate) linker: String,
    pub(crate) emulator: String,
    /// Where the standard library is, unless the compiler has it.
    pub(crate) sysroot: Option<PathBuf>,
}

/// Tools and a standard library for another architecture; installed or fetched when missing.
pub(crate) fn cross(toolchain: &Toolchain, arch: &str) -> Result<Cross> {
    let (linker, emulator) = (format!("{arch}-linux-gnu-gcc"), format!("qemu-{arch}-static"));
    let mut wanted: Vec<(&str, &'static str)> =
        CROSS_TOOLS.into_iter().filter(|(name, _)| [&linker, &emulator].iter().any(|needed| needed == name)).collect();
    wanted.sort_unstable();
    tools(&wanted, "building for another architecture")?;
    if !Path::new(&format!("/usr/{arch}-linux-gnu/lib/libc.a")).exists() {
        let libraries = CROSS_LIBRARIES.iter().find(|(name, _)| *name == arch).map(|(_, package)| *package);
        let Some(libraries) = libraries else { bail!("no C library is known for {arch}") };
        apt_install(&[libraries], "linking for another architecture")?;
    }
    let triple = format!("{arch}-unknown-linux-gnu");
    let own = command::output(command::new(&toolchain.rustc).args(["--print", "sysroot"])).unwrap_or_default();
    let has = |sysroot: &Path| sysroot.join("lib/rustlib").join(&triple).exists();
    let added = || {
        // rustup names a toolchain by the last part of its folder.
        let name = Path::new(&own).file_name().unwrap_or_default().to_string_lossy().into_owned();
        command::output(&mut rustup(&["target", "add", "--toolchain", &name, &triple])).is_some()
    };
    if has(Path::new(&own)) || added() && has(Path::new(&own)) {
        return Ok(Cross { linker, emulator, sysroot: None });
    }
    let version = command::output(command::new("dpkg-query").args(["-W", "-f", "${Version}", FOREIGN_STD]));
    let Some(version) = version else {
        bail!("no standard library for {triple}: `rustup target add {triple}`");
    };
    // One for each version: an upgraded compiler takes no older library.
    let folder = crate::root().join("target/cross/std").join(&version);
    let sysroot = folder.join("usr");
    if !has(&sysroot) {
        println!("xtask: fetching a standard library for {arch}");
        let debian = if arch == "aarch64" { "arm64" } else { "amd64" };
        crate::vm::unpack_foreign(&format!("{FOREIGN_STD}={version}"), debian, &folder)?;
    }
    Ok(Cross { linker, emulator, sysroot: Some(sysroot) })
}

/// The file with the keys by which a distribution's packages are verified, installed when missing; `None` when this
/// release has no package of them.
pub(crate) fn keyring(distribution: &str) -> Result<Option<&'static str>> {
    let Some((_, path, package)) = KEYRINGS.iter().find(|(name, ..)| *name == distribution) else {
        bail!("no keys are known for packages of {distribution}");
    };
    if !Path::new(path).exists() {
        if !known_to_apt(package) {
            return Ok(None);
        }
        apt_install(&[package], "verifying another distribution's packages")?;
    }
    Ok(Some(path))
}

/// Programs, each with the package that brings it; installed when missing.
pub(crate) fn tools(wanted: &[(&str, &'static str)], purpose: &str) -> Result<()> {
    let mut packages: Vec<&str> =
        wanted.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { apt_install(&packages, purpose) }
}

/// Candidates: the compiler that runs this, every rustup toolchain, the distribution's own. The first with sources.
fn find_toolchain() -> Option<Toolchain> {
    let mut compilers = Vec::new();
    if let Some(path) = command::output(&mut rustup(&["which", "rustc"])) {
        compilers.push(PathBuf::from(path));
    }
    for name in command::output(&mut rustup(&["toolchain", "list", "--quiet"])).unwrap_or_default().lines() {
        compilers.extend(command::output(&mut rustup(&["which", "rustc", "--toolchain", name])).map(PathBuf::from));
    }
    compilers.extend(find_program("rustc"));
    compilers.push(PathBuf::from("/usr/bin/rustc"));
    compilers.iter().find_map(|rustc| inspect(rustc))
}

fn rustup(args: &[&str]) -> Command {
    let mut command = command::new("rustup");
    command.args(args);
    command
}

/// Looks whether a compiler has the sources, a cargo beside it, and a language and LLVM that fit.
fn inspect(rustc: &Path) -> Option<Toolchain> {
    let sysroot = command::output(command::new(rustc).args(["--print", "sysroot"]))?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    let cargo = rustc.with_file_name("cargo");
    if !sources.exists() || !cargo.exists() {
        return None;
    }
    let version = command::output(command::new(rustc).arg("-vV"))?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:")?;
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    let language = (numbers.next()?, numbers.next()?);
    let llvm: u32 = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    if language < OLDEST || !LINKER_LLVM.contains(&llvm) {
        return None;
    }
    Some(Toolchain { cargo, rustc: rustc.to_owned(), llvm, nightly: release.contains("nightly") })
}

fn install_toolchain() -> Result<()> {
    const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
    if debian() && known_to_apt(PACKAGES[2]) {
        return apt_install(&PACKAGES, "the eBPF side: a compiler with the sources of its library");
    }
    if find_program("rustup").is_some() {
        println!("xtask: installing a nightly toolchain with its library sources, for the eBPF side");
        let installed = command::check(&mut rustup(&[
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]));
        if installed.is_ok() {
            return Ok(());
        }
    }
    bail!(
        "the eBPF side needs a compiler with the sources of its library: `rustup toolchain install nightly --component \
         rust-src`, or on Debian 12 `apt-get install {}`",
        PACKAGES.join(" ")
    )
}

/// bpf-linker, built against the LLVM of the compiler: it must read what the compiler writes.
fn linker(toolchain: &Toolchain) -> Result<()> {
    let installed =
        command::output(command::new("bpf-linker").arg("--version")).is_some_and(|text| text.ends_with(LINKER_VERSION));
    if installed {
        return Ok(());
    }
    let llvm = toolchain.llvm;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("bin/llvm-config").exists() {
        apt_install(&[&format!("llvm-{llvm}-dev"), &format!("libpolly-{llvm}-dev")], "building bpf-linker")?;
    }
    println!("xtask: installing bpf-linker {LINKER_VERSION} with LLVM {llvm} (about a minute)");
    command::check(
        command::cargo()
            .args(["install", "--quiet", "bpf-linker", "--version", LINKER_VERSION, "--no-default-features", "--force"])
            .args(["--features", &format!("llvm-{llvm}")])
            .env("LLVM_PREFIX", &prefix)
            .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix),
    )
}

fn apt_install(packages: &[&str], purpose: &str) -> Result<()> {
    let list = packages.join(" ");
    let by_hand = format!("`apt-get install {list}`");
    if !debian() {
        bail!("{purpose} need packages that Debian calls {list}: install them with this system's package manager");
    }
    if command::output(command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!("{purpose} need packages that are not installed: run {by_hand} as root");
    }
    println!("xtask: installing {list}, for {purpose}");
    let apt = |args: &[&str]| {
        let mut command = command::new("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command.stdout(std::process::Stdio::null());
        command
    };
    // Old lists lead to old versions, or to files that the server no longer has.
    command::check(&mut apt(&["update"]))?;
    command::check(apt(&["install", "-y", "--no-install-recommends"]).args(packages))
        .map_err(|error| error.context(format!("cannot install packages for {purpose}; try {by_hand}")))
}

/// apt knows the package; a fresh machine has no lists yet.
fn known_to_apt(package: &str) -> bool {
    let known = || {
        command::output(command::new("apt-cache").args(["policy", package])).is_some_and(|text| {
            text.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
        })
    };
    if known() {
        return true;
    }
    let lists = fs::read_dir("/var/lib/apt/lists").is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with("_Packages")))
    });
    if !lists {
        let _ = command::check(command::new("apt-get").args(["-qq", "update"]));
    }
    known()
}

fn debian() -> bool {
    find_program("apt-get").is_some()
}

/// Path of a program, looked for where root's programs are too.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

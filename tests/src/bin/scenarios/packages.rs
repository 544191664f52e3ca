//! The packages: installed, started, upgraded, stopped by the brake, removed and purged, with a real apt and a real systemd.
//!
//! Those that change the machine run only in a virtual machine that ends afterwards.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, Lab},
    traffic, wait_for,
};

use crate::{Outcome, Scenario, systemd::in_a_machine};

pub(crate) const ALL: &[Scenario] =
    &[("a_debs_whole_life", || in_a_machine(whole_life)), ("an_rpm_in_a_root_of_its_own", in_a_root_of_its_own)];

const UNIT: &str = "observer.service";
const STORE: &str = "/var/lib/observer/observer.db";
const DROP: &str = "table inet t { chain c { type filter hook output priority 0; udp dport 53 counter drop } }";

/// Packages that were made for the tests, the oldest first.
fn made(ending: &str) -> Result<Vec<String>> {
    let Some(folder) = env::var_os("OBSERVER_PACKAGES").map(PathBuf::from) else { return Ok(Vec::new()) };
    let paths = fs::read_dir(&folder)?.flatten().map(|entry| entry.path().display().to_string());
    let mut packages: Vec<String> = paths.filter(|path| path.ends_with(ending)).collect();
    packages.sort();
    Ok(packages)
}

/// Runs a command to its end: what it printed, with its errors.
fn said(program: &str, args: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(program)
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).trim().to_owned()))
}

/// The same where it must end well.
fn must(program: &str, args: &[&str]) -> Result<String> {
    let (is_well, text) = said(program, args)?;
    ensure!(is_well, "{program} {args:?}: {text}");
    Ok(text)
}

fn state(of: &str) -> Result<String> {
    Ok(said("systemctl", &[of, UNIT])?.1)
}

fn apt(args: &[&str]) -> Result<String> {
    let fixed = ["-y", "-o", "Dpkg::Use-Pty=0", "-o", "APT::Sandbox::User=root", "--no-install-recommends"];
    must("apt-get", &[&fixed[..], args].concat())
}

/// Asks nftables for the number of the last change of rules.
const GENERATION: &str = "
import socket, struct
nftables = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
nftables.send(struct.pack('=IHHII4x', 20, 10 << 8 | 16, 1, 1, 0))
print(struct.unpack_from('>I', nftables.recv(4096), 24)[0])
";

/// What of the host's settings observer could have changed.
fn settings() -> Result<[String; 5]> {
    Ok([
        must("python3", &["-IS", "-c", GENERATION])?,
        must("sh", &["-c", "nft list ruleset"])?,
        must("sh", &["-c", "iptables-nft-save | grep -v ^#; iptables-legacy-save | grep -v ^#; true"])?,
        // These count, or are different each time that they are read.
        must(
            "sh",
            &[
                "-c",
                "sysctl -a 2>/dev/null | grep -v -e random -e 'fs\\.\\(dentry\\|inode\\|file\\|aio\\|quota\\)' -e conntrack_count -e perf_event_max_sample_rate -e tainted -e max_newidle -e ns_last_pid -e pty.nr -e domainname -e ipc_next_id",
            ],
        )?,
        must("sh", &["-c", "cut -d' ' -f1 /proc/modules | sort"])?,
    ])
}

/// BPF programs but those of systemd itself, and namespaces of networks.
fn kernel_side() -> Result<[String; 2]> {
    Ok([
        must(
            "sh",
            &["-c", "bpftool prog list | grep -o 'name [^ ]*' | grep -v -e 'name sd_' -e 'name restrict' | sort"],
        )?,
        must("sh", &["-c", "lsns --noheadings --type net --output NS"])?,
    ])
}

/// What an observer said when it was ready.
fn ready_line(said: &str) -> Result<String> {
    let line = said.lines().find(|line| line.starts_with("observer: ready"));
    line.map(str::to_owned).with_context(|| format!("it was not ready: {said}"))
}

/// What of it works worse than it could.
fn shortcomings(ready: &str) -> Option<&str> {
    ready.split(" · ").find(|part| part.starts_with("degraded: "))
}

fn number(sql: &str) -> Result<u32> {
    must("sqlite3", &["-cmd", ".timeout 10000", STORE, sql])?.parse().with_context(|| format!("{sql} gives no number"))
}

/// Something is blocked, and the store has it.
fn records(lab: &Lab) -> Result<()> {
    let sql = "SELECT coalesce(sum(packets), 0) FROM lines";
    let before = number(sql)?;
    traffic::run(&lab.client, &["udp", FAR_V4, "53"])?;
    wait_for("a stored line", || Ok((number(sql)? > before).then_some(())))
}

fn whole_life() -> Result<Outcome> {
    let packages = made(".deb")?;
    let [older, newer] = packages.as_slice() else {
        return Ok(Outcome::Skipped("no packages of two versions were made: `cargo xtask vm` makes them".to_owned()));
    };

    // An image of a container forbids that packages start services: this is a machine.
    let _ = fs::remove_file("/usr/sbin/policy-rc.d");
    // A first attempt may have left it.
    let _ = apt(&["purge", "egress-observer"]);
    // Installed is not started.
    apt(&["install", older])?;
    let installed = (state("is-active")?, state("is-enabled")?);
    ensure!(installed == ("inactive".to_owned(), "disabled".to_owned()), "{installed:?}");
    ensure!(must("observer", &["--version"])?.starts_with("observer "));
    must("systemd-analyze", &["verify", "/usr/lib/systemd/system/observer.service"])?;
    let about = fs::metadata("/var/lib/observer")?;
    let group: u32 = must("sh", &["-c", "getent group _observer | cut -d: -f3"])?.parse()?;
    ensure!(about.mode() & 0o7777 == 0o2750 && (about.uid(), about.gid()) == (0, group), "{about:?}");

    // Started, it records, and changes nothing of the host.
    let (before, kernel) = (settings()?, kernel_side()?);
    must("systemctl", &["enable", "--now", UNIT])?;
    let lab = Lab::new()?;
    lab.client.nft(DROP)?;
    records(&lab)?;
    ensure!(fs::metadata(STORE)?.permissions().mode() & 0o777 == 0o640 && fs::metadata(STORE)?.gid() == group);
    let degraded = must("journalctl", &["-u", UNIT, "-o", "cat", "--no-pager"])?;
    let of_a_service = ready_line(&degraded)?;
    // By hand it has all privileges: the unit takes away nothing that it needs.
    let (_, by_hand) = said("observer", &["record", "--store", "/run/by-hand/observer.db", "--for", "1s"])?;
    fs::remove_dir_all("/run/by-hand")?;
    ensure!(shortcomings(&of_a_service) == shortcomings(&ready_line(&by_hand)?), "{of_a_service}\n{by_hand}");
    println!("packages: {}", must("sh", &["-c", "systemd-analyze security --no-pager observer.service | tail -n 1"])?);

    // Killed, it is started again; after three times within ten minutes it stays down, and says why.
    for runs in 2..=3 {
        must("systemctl", &["kill", "--signal=KILL", UNIT])?;
        wait_for("another run", || Ok((number("SELECT count(*) FROM runs")? >= runs).then_some(())))?;
        wait_for("the service", || Ok((state("is-active")? == "active").then_some(())))?;
        records(&lab)?;
    }
    must("systemctl", &["kill", "--signal=KILL", UNIT])?;
    wait_for("the brake", || Ok((state("is-failed")? == "failed").then_some(())))?;
    let log = must("journalctl", &["-u", UNIT, "-o", "cat", "--no-pager"])?;
    ensure!(log.contains("was ended by force three times within ten minutes"), "{log}");
    // As if ten minutes had gone by.
    must(
        "sqlite3",
        &["-cmd", ".timeout 10000", STORE, "UPDATE runs SET started_ns = 1, alive_ns = 1 WHERE ended_ns IS NULL"],
    )?;
    must("systemctl", &["start", UNIT])?;
    records(&lab)?;

    // The configuration is read again.
    fs::write("/etc/observer/observer.toml", "keep = \"7d\"\n")?;
    must("systemctl", &["reload", UNIT])?;
    wait_for("the configuration", || {
        let log = must("journalctl", &["-u", UNIT, "-o", "cat", "--no-pager"])?;
        Ok(log.contains("/etc/observer/observer.toml was read again").then_some(()))
    })?;

    // An upgrade restarts it, and so does the way back; the store shows how long nothing was recorded.
    for (runs, package) in [(5, newer), (6, older)] {
        apt(&["--allow-downgrades", "-o", "Dpkg::Options::=--force-confold", "install", package])?;
        wait_for("the service", || Ok((state("is-active")? == "active").then_some(())))?;
        wait_for("a run", || Ok((number("SELECT count(*) FROM runs")? >= runs).then_some(())))?;
        records(&lab)?;
    }
    let between = "SELECT count(*) FROM runs a JOIN runs b ON b.id = a.id + 1 WHERE a.ended_ns > b.started_ns";
    ensure!(number(between)? == 0 && number("SELECT count(*) FROM runs WHERE ended_ns IS NULL")? == 4);
    ensure!(
        fs::read_to_string("/etc/observer/observer.toml")? == "keep = \"7d\"\n",
        "an administrator's file was changed"
    );

    // The brake of a fleet.
    fs::write("/etc/observer/disabled", "")?;
    wait_for("the end", || Ok((state("is-active")? == "inactive").then_some(())))?;
    let _ = said("systemctl", &["start", UNIT])?;
    ensure!(state("is-active")? == "inactive" && state("is-failed")? == "inactive", "{}", state("status")?);
    fs::remove_file("/etc/observer/disabled")?;
    must("systemctl", &["start", UNIT])?;
    records(&lab)?;
    must("systemctl", &["stop", UNIT])?;
    drop(lab);
    let after = settings()?;
    ensure!(before == after, "{before:#?}\n{after:#?}");

    // Removed, the store stays; purged, it goes, and that is said.
    must("systemctl", &["start", UNIT])?;
    apt(&["remove", "egress-observer"])?;
    ensure!(Path::new(STORE).exists() && !Path::new("/usr/bin/observer").exists());
    let gone = apt(&["purge", "egress-observer"])?;
    ensure!(gone.contains("deleting /var/lib/observer: everything that was recorded"), "{gone}");
    let left = must(
        "sh",
        &[
            "-c",
            &format!(
                "getent group _observer; pgrep -x 'observer.*'; systemctl list-unit-files --no-legend observer.service; \
             find /var /etc /run -xdev -gid {group}; ls -d /var/lib/observer /etc/systemd/system/*/observer.service; \
             bpftool prog list 2>/dev/null | grep -o 'name observer[^ ]*'; true"
            ),
        ],
    )?;
    let left: Vec<&str> = left.lines().filter(|line| !line.contains("No such file")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    let now = kernel_side()?;
    ensure!(now == kernel, "left in the kernel: {now:#?}\nbefore: {kernel:#?}");
    Ok(Outcome::Passed)
}

/// What the package's scripts need, as a package: no distribution of the Red Hat family is in reach.
const SHELL: &str = "
%global __os_install_post %{nil}
Name: a-shell
Version: 1
Release: 1
Summary: A shell for a root of its own
License: MIT
AutoReqProv: no
Provides: /bin/sh
Provides: systemd
%description
A shell.
%install
for file in $(ldd /bin/dash | grep -o '/[^ ]*'); do install -D -m 755 $file %{buildroot}$file; done
install -D -m 755 /bin/dash %{buildroot}/bin/sh
%files
/*
";

/// Debian's dnf installs it, checks it, and removes it again.
fn in_a_root_of_its_own() -> Result<Outcome> {
    let packages = made(".rpm")?;
    let [package] = packages.as_slice() else {
        return Ok(Outcome::Skipped("no package was made: `cargo xtask test` makes it".to_owned()));
    };
    if said("dnf", &["--version"]).is_err() || said("rpmbuild", &["--version"]).is_err() {
        return Ok(Outcome::Skipped("dnf or rpmbuild is not installed".to_owned()));
    }
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let root = path("root");
    fs::write(path("shell.spec"), SHELL)?;
    must("rpmbuild", &["--quiet", "-bb", "--define", &format!("_topdir {}", path("build")), &path("shell.spec")])?;
    let shell = must("sh", &["-c", &format!("ls {}/RPMS/*/*.rpm", path("build"))])?;
    let dnf = |args: &[&str]| {
        let installroot = format!("--installroot={root}");
        let fixed = [&installroot, "--releasever=9", "--setopt=reposdir=/nonexistent", "--nogpgcheck", "--assumeyes"];
        must("dnf", &[&fixed[..], args].concat())
    };
    dnf(&["install", &shell, package])?;
    ensure!(must("chroot", &[&root, "/usr/bin/observer", "--version"])?.starts_with("observer "));
    let verified = must("rpm", &["--root", &root, "--verify", "egress-observer"])?;
    ensure!(verified.is_empty(), "{verified}");
    let unit = fs::read_to_string(format!("{root}/usr/lib/systemd/system/observer.service"))?;
    ensure!(unit.contains("ExecStart=/usr/bin/observer record"), "{unit}");
    ensure!(!Path::new(&format!("{root}/etc/systemd/system/multi-user.target.wants")).exists(), "it is enabled");
    // What an administrator wrote, and what was recorded, stays.
    fs::write(format!("{root}/etc/observer/observer.toml"), "keep = \"7d\"\n")?;
    fs::create_dir_all(format!("{root}/var/lib/observer"))?;
    fs::write(format!("{root}/var/lib/observer/observer.db"), "")?;
    let removed = dnf(&["remove", "egress-observer"])?;
    ensure!(removed.contains("/var/lib/observer stays"), "{removed}");
    ensure!(Path::new(&format!("{root}/var/lib/observer/observer.db")).exists());
    ensure!(
        !Path::new(&format!("{root}/usr/bin/observer")).exists()
            && !Path::new(&format!("{root}/usr/lib/systemd/system/observer.service")).exists()
    );
    ensure!(fs::read_to_string(format!("{root}/etc/observer/observer.toml.rpmsave"))? == "keep = \"7d\"\n");
    Ok(Outcome::Passed)
}

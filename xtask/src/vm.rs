//! Scenarios on other kernels, in virtual machines without hardware support: the distribution's kernel packages, on this
//! machine's own root file system, so that what was just built runs there as it is.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, command, root, setup, test::Count};

/// Kernels, each with the distribution's package that leads to the newest one of it.
const KERNELS: [(&str, &str); 2] = [("6.1", "linux-image-amd64"), ("6.12", "linux-image-6.12-amd64")];
/// Version of the program that boots them.
const BOOTER: &str = "virtme-ng==1.42";
/// What a machine may take, in seconds: software emulation is slow.
const PATIENCE: &str = "1800";
/// What a kernel says when it is broken.
const BROKEN: [&str; 4] = ["Oops:", "BUG:", "Kernel panic", "soft lockup"];
/// Modules that are not loaded by what the scenarios do.
const MODULES: &str = "nf_tables veth bridge br_netfilter vxlan nfsv4";

/// Names of the kernels.
pub(crate) fn names() -> Vec<&'static str> {
    KERNELS.iter().map(|(name, _)| *name).collect()
}

/// Runs scenarios whose name contains one of `filters`, or all, on one kernel or on all of them.
pub(crate) fn run(kernel: Option<&str>, filters: &[String]) -> Result<ExitCode> {
    ensure!(std::env::consts::ARCH == "x86_64", "the kernels that are known are for x86_64");
    setup::test_tools()?;
    setup::machine_tools()?;
    let booter = booter()?;
    let observer = build::release()?;
    let testbed = build::kernel_half()?.with_file_name("testbed-bpf");
    let scenarios = build::test_program("scenarios")?;
    let filters: Vec<&str> = if filters.is_empty() { vec![""] } else { filters.iter().map(String::as_str).collect() };
    let mut clean = true;
    let mut all = Count::default();
    for (name, package) in KERNELS.iter().filter(|(name, _)| kernel.is_none_or(|wanted| wanted == *name)) {
        let (folder, version) = unpacked(package)?;
        let script = guest_script(&observer, &testbed, &scenarios, &filters)?;
        println!("kernel {version}");
        let (count, broken) = boot(&booter, &folder, &version, &script)?;
        println!("kernel {name} ({version}): {count}");
        if let Some(line) = &broken {
            println!("kernel {name} ({version}) is broken: {line}");
        }
        clean &= broken.is_none() && count.failed == 0 && count.passed > 0;
        all.add(count);
    }
    println!("{all}");
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where kernels and their tools are kept.
fn store() -> Result<PathBuf> {
    let store = root().join("target/vm");
    fs::create_dir_all(&store).with_context(|| format!("cannot make {}", store.display()))?;
    Ok(store)
}

/// The program that boots kernels, in a folder of its own.
fn booter() -> Result<PathBuf> {
    let folder = store()?.join("venv");
    let program = folder.join("bin/vng");
    if !program.exists() {
        println!("xtask: installing {BOOTER} into {}, for virtual machines", folder.display());
        command::check(command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        command::check(command::new(folder.join("bin/pip")).args(["install", "--quiet", BOOTER]))?;
    }
    Ok(program)
}

/// Folder and version of a kernel, fetched and unpacked once. apt checks what it fetches.
fn unpacked(package: &str) -> Result<(PathBuf, String)> {
    setup::refresh_unless_known(package)?;
    let depends = command::output(command::new("apt-cache").args(["depends", package])).unwrap_or_default();
    let image = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("apt knows no kernel by the name {package}"))?;
    let version = image.trim_start_matches("linux-image-").to_owned();
    let folder = store()?.join(&version);
    let kernel = folder.join("boot").join(format!("vmlinuz-{version}"));
    if !folder.join("whole").exists() {
        println!("xtask: fetching {image}");
        let fresh = store()?.join("fresh");
        let _ = fs::remove_dir_all(&fresh);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&fresh)?;
        command::check(command::new("apt-get").args(["-qq", "download", image]).current_dir(&fresh))?;
        let archive = fs::read_dir(&fresh)?.next().context("apt fetched nothing")??.path();
        command::check(command::new("dpkg").arg("-x").arg(&archive).arg(&folder))?;
        fs::remove_dir_all(&fresh)?;
        command::check(command::new("depmod").arg("-b").arg(&folder).arg(&version))?;
        fs::write(folder.join("whole"), "")?;
    }
    ensure!(kernel.exists(), "{image} has no {}", kernel.display());
    Ok((folder, version))
}

/// What runs inside.
fn guest_script(observer: &Path, testbed: &Path, scenarios: &Path, filters: &[&str]) -> Result<PathBuf> {
    let path = store()?.join("guest.sh");
    let mut script = format!(
        "#!/bin/sh\n\
         export PATH='{}' HOME=/root TMPDIR=/run OBSERVER='{}' OBSERVER_TESTBED='{}'\n\
         for module in {MODULES}; do modprobe -q $module; done\n\
         cd '{}'\n",
        std::env::var("PATH").unwrap_or_default(),
        observer.display(),
        testbed.display(),
        root().display()
    );
    for filter in filters {
        script.push_str(&format!("'{}' --color never --test-threads 2 {filter}\n", scenarios.display()));
    }
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Boots, shows what the scenarios say, and counts; with what the kernel said if it broke.
fn boot(booter: &Path, folder: &Path, version: &str, script: &Path) -> Result<(Count, Option<String>)> {
    // The console comes by either stream.
    let mut machine = command::new("sh");
    machine
        .args(["-c", "exec \"$@\" 2>&1", "sh", "timeout", PATIENCE])
        .arg(booter)
        .args(["--disable-kvm", "--force-9p", "--cpus", "2", "-m", "2G", "-v", "-r"])
        .arg(format!("boot/vmlinuz-{version}"))
        .arg("--")
        .arg(script)
        .current_dir(folder);
    let text = command::text(&machine);
    let mut child =
        machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{text}`"))?;
    let stdout = child.stdout.take().context("the machine has no console")?;
    let mut log = fs::File::create(folder.join("console.log"))?;
    let (mut count, mut broken, mut ended) = (Count::default(), None, false);
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end_matches('\r').to_owned();
        writeln!(log, "{line}")?;
        count.take(&line);
        ended |= line.contains("script exited with code");
        if broken.is_none() && BROKEN.iter().any(|word| line.contains(word)) {
            broken = Some(line.clone());
        }
        // The kernel's own lines begin with a time.
        if !line.starts_with('[') {
            println!("{line}");
        }
    }
    child.wait().with_context(|| format!("cannot wait for `{text}`"))?;
    if !ended {
        bail!("the machine did not come to its end: see {}", folder.join("console.log").display());
    }
    Ok((count, broken))
}

//! A virtual machine: qemu, started, read to its end, and judged.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    kernels::{Init, Kernel},
    packages::Unpacked,
};
use crate::{
    command, speed,
    test::{Count, Failures},
};

/// Seconds after which a kernel has said something, where KVM works.
const SPEAKS: f64 = 10.0;
/// What a machine may take, in seconds, on a host as fast as [`speed::slowness`] takes for one.
const LIMIT: f64 = 2400.0;
/// What a kernel says when it is broken.
const BROKEN: [&str; 9] = [
    "Oops:",
    "[#1]",
    "BUG:",
    "kernel BUG at",
    "Kernel panic",
    "soft lockup",
    "hard LOCKUP",
    "detected stall",
    "detected expedited stalls",
];
/// What the guest's last line begins with.
const ENDED: &str = "observer-vm: ended with ";

/// Lines of the console that are shown of a kernel that is broken.
const SHOWN: usize = 60;

/// What became of it.
pub(crate) struct Ended {
    pub(crate) count: Count,
    /// Names of scenarios that came to their end, however that was.
    pub(crate) done: Vec<String>,
    /// Names of those that failed.
    pub(crate) failed: Vec<String>,
    /// Why they failed, and which ones failed at first.
    pub(crate) failures: Failures,
    /// What is wrong with the machine itself.
    pub(crate) broken: Option<Broken>,
    pub(crate) took: Duration,
}

/// What is wrong with a machine.
pub(crate) struct Broken {
    pub(crate) why: String,
    /// Its kernel says so itself: what the console shows from there on.
    pub(crate) console: Vec<String>,
}

/// The program that is the machine, of one architecture.
pub(crate) fn emulator(arch: &str) -> String {
    format!("qemu-system-{arch}")
}

/// Whether machines run on this processor itself, by the first kernel that is asked about; else they are emulated. Neither /dev/kvm nor a machine that
/// starts says so: there are hosts on which its kernel never gets a word out. So one is started, once.
pub(crate) fn accelerated(kernel: &Kernel, unpacked: &Unpacked) -> bool {
    static IS_SO: OnceLock<bool> = OnceLock::new();
    kernel.arch == std::env::consts::ARCH && *IS_SO.get_or_init(|| speaks(&kernel.arch, &unpacked.image))
}

/// The kernel says its version soon, by KVM.
fn speaks(arch: &str, image: &Path) -> bool {
    let console = if arch == "x86_64" { "ttyS0 earlyprintk=serial" } else { "ttyAMA0 earlycon" };
    let limit = (SPEAKS * speed::slowness()).ceil().to_string();
    let mut probe = command::new("timeout");
    // It ends with `timeout`, however that ends.
    probe.args(["--signal", "KILL", &limit, "setpriv", "--pdeathsig", "KILL", &emulator(arch)]);
    probe.args(["-accel", "kvm", "-cpu", "max", "-machine", board(arch)]);
    probe.args(["-m", "512M", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    probe.arg("-kernel").arg(image).args(["-append", &format!("console={console} panic=-1")]);
    let Ok(mut child) = probe.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() else {
        return false;
    };
    let lines = child.stdout.take().map(|said| BufReader::new(said).split(b'\n').map_while(Result::ok));
    let speaks = lines.into_iter().flatten().any(|line| String::from_utf8_lossy(&line).contains("Linux version"));
    let _ = child.kill();
    let _ = child.wait();
    speaks
}

fn board(arch: &str) -> &'static str {
    if arch == "x86_64" { "q35" } else { "virt" }
}

fn machine(kernel: &Kernel, unpacked: &Unpacked, initramfs: &Path, shell: bool) -> Result<Command> {
    let accelerated = accelerated(kernel, unpacked);
    let (model, console) = match kernel.arch.as_str() {
        _ if accelerated => ("max", if kernel.arch == "x86_64" { "ttyS0" } else { "ttyAMA0" }),
        // Five levels of page tables only cost, where memory is emulated.
        "x86_64" => ("max,-la57", "ttyS0"),
        "aarch64" => ("cortex-a72", "ttyAMA0"),
        other => bail!("no machine for the architecture {other}"),
    };
    let native = kernel.arch == std::env::consts::ARCH;
    let init = if kernel.init == Init::Systemd && !shell { "systemd" } else { "plain" };
    let limit = (LIMIT * speed::slowness()).ceil().to_string();
    // The machine dies with whoever started it, and with its watch; a terminal's stays in the foreground and has no limit.
    let mut command = command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if !shell {
        command.args(["timeout", "--signal", "KILL", &limit, "setpriv", "--pdeathsig", "KILL"]);
    }
    command.arg(emulator(&kernel.arch));
    // One thread for all emulated processors: with one each, a processor may still meet a breakpoint that the kernel has put
    // into its own code and taken out again while it switched a tracepoint (`Oops: int3`).
    command.args(["-accel", if accelerated { "kvm" } else { "tcg,thread=single,tb-size=512" }]);
    command.args(["-machine", board(&kernel.arch), "-m", "2G"]);
    command.args(["-cpu", model, "-smp", &kernel.cpus.to_string()]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-net", "none"]);
    command.arg("-kernel").arg(&unpacked.image).arg("-initrd").arg(initramfs);
    command.args([
        "-append",
        &format!(
            "console={console} panic=-1 oops=panic loglevel=6 VM_ROOT={} VM_INIT={init} systemd.show_status=no {}",
            if native { "host" } else { "own" },
            kernel.arguments
        ),
    ]);
    command.arg("-serial").arg(format!("file:{}", unpacked.folder.join("console.log").display()));
    command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", if shell { "stdio,id=out,signal=off" } else { "file,id=out,path=/dev/stdout" }]);
    command.args(["-device", if shell { "virtconsole,chardev=out" } else { "virtserialport,chardev=out,name=out" }]);
    Ok(command)
}

/// The program of a machine that runs a job.
pub(super) fn command(kernel: &Kernel, unpacked: &Unpacked, initramfs: &Path) -> Result<Command> {
    machine(kernel, unpacked, initramfs, false)
}

/// A terminal inside; returns when it ends.
pub(crate) fn shell(kernel: &Kernel, unpacked: &Unpacked, initramfs: &Path) -> Result<()> {
    let mut machine = machine(kernel, unpacked, initramfs, true)?;
    let text = command::text(&machine);
    machine.status().with_context(|| format!("cannot run `{text}`"))?;
    Ok(())
}

/// Boots, shows what the job says line by line with the kernel's name in front, and counts.
pub(crate) fn run(kernel: &Kernel, unpacked: &Unpacked, initramfs: &Path) -> Result<Ended> {
    let began = Instant::now();
    let console = unpacked.folder.join("console.log");
    let _ = fs::remove_file(&console);
    let mut machine = machine(kernel, unpacked, initramfs, false)?;
    let text = command::text(&machine);
    let mut child = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(unpacked.folder.join("emulator.log"))?)
        .spawn()
        .with_context(|| format!("cannot run `{text}`"))?;
    let Read { count, done, failed, failures, status } = read(&mut child, kernel, &unpacked.folder.join("job.log"))?;
    child.wait().with_context(|| format!("cannot wait for `{text}`"))?;
    let console = fs::read(console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let complains = |line: &&str| BROKEN.iter().any(|word| line.contains(word));
    let complaint: Vec<&str> = console.lines().skip_while(|line| !complains(line)).take(SHOWN).collect();
    let why = match (complaint.first(), status) {
        (Some(complaint), _) => Some(*complaint),
        (None, None) => Some("the machine did not come to its end"),
        (None, Some(0)) if count.passed == 0 => Some("nothing ran"),
        (None, Some(status)) if status != 0 && count.failed == 0 => Some("the job failed without naming a test"),
        _ => None,
    };
    let broken = why.map(|why| Broken {
        why: format!("{why}: see console.log, emulator.log and job.log in {}", unpacked.folder.display()),
        console: complaint.iter().map(|line| (*line).to_owned()).collect(),
    });
    Ok(Ended { count, done, failed, failures, broken, took: began.elapsed() })
}

/// What a machine's job said.
#[derive(Default)]
struct Read {
    count: Count,
    done: Vec<String>,
    failed: Vec<String>,
    failures: Failures,
    status: Option<i32>,
}

fn read(child: &mut Child, kernel: &Kernel, log: &Path) -> Result<Read> {
    let stdout = child.stdout.take().context("the machine has no output")?;
    let mut log = File::create(log)?;
    let mut read = Read::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end_matches('\r').to_owned();
        writeln!(log, "{line}")?;
        // A machine that breaks writes no sum, so each scenario's line is counted.
        if let Some((name, end)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            let name = name.trim_end().to_owned();
            read.count.take_one(end);
            if end == "FAILED" {
                read.failed.push(name.clone());
            }
            read.done.push(name);
        }
        read.failures.take(&format!("[{}] ", kernel.name), &line);
        match line.strip_prefix(ENDED) {
            Some(code) => read.status = code.parse().ok(),
            None => println!("[{}] {line}", kernel.name),
        }
    }
    Ok(read)
}

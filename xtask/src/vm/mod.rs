//! Scenarios on other kernels, in virtual machines: the distributions' kernel packages on this machine's own root file
//! system, so that what was just built runs there as it is. With KVM where it works, by emulation elsewhere.

mod initramfs;
mod kernels;
mod machine;
mod packages;
mod power;

use std::{
    fs::{self, File},
    path::Path,
    process::ExitCode,
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use kernels::{Init, Job, Kernel};
use machine::Ended;
pub(crate) use packages::unpack_foreign;
use packages::{Fetched, Unpacked};

use crate::{
    build, command, package, root, setup, speed,
    test::{self, Count, Failures},
};

/// How many times longer an emulated machine may take for everything, on a machine as fast as [`speed::slowness`] takes for one.
const SLOWNESS: f64 = 12.0;
/// Scenarios that run at the same time: most of them wait most of the time.
const AT_ONCE: u32 = 3;
/// In a short run one of so many rulesets of a table: all of them run on this machine's kernel.
const SAMPLE: u32 = 8;
/// Modules that are not loaded by what the scenarios do.
const MODULES: &str = "nf_tables veth bridge br_netfilter vxlan nfsv4";

/// What is wanted.
#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// This kernel, or several; without it, those that every test run has
    #[arg(long, value_parser = kernels::known)]
    kernel: Vec<String>,
    /// All kernels of the catalogue, `xtask/kernels.toml`
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// Only what a test run has
    #[arg(long, conflicts_with = "scenarios")]
    short: bool,
    /// So many processors, instead of what the catalogue says
    #[arg(long)]
    cpus: Option<u32>,
    /// The machine's first program, instead of what the catalogue says
    #[arg(long)]
    init: Option<Init>,
    /// A shell inside instead of scenarios
    #[arg(long, requires = "kernel", conflicts_with = "scenarios")]
    shell: bool,
    /// Cut the machine's power so many times while it records a storm, instead of scenarios
    #[arg(long, requires = "kernel", conflicts_with_all = ["shell", "scenarios"])]
    power_cuts: Option<u32>,
    /// Only scenarios whose name contains one of these
    scenarios: Vec<String>,
}

/// `cargo xtask vm`.
pub(crate) fn run(wanted: &Wanted) -> Result<ExitCode> {
    let catalogue = kernels::catalogue()?;
    let mut chosen = catalogue.kernels;
    chosen.retain(|kernel| match wanted.kernel.as_slice() {
        [] => wanted.all || kernel.every_run,
        names => names.contains(&kernel.name),
    });
    for kernel in &mut chosen {
        kernel.cpus = wanted.cpus.unwrap_or(kernel.cpus);
        kernel.init = wanted.init.unwrap_or(kernel.init);
    }
    setup::test_tools()?;
    if wanted.shell {
        let [kernel] = chosen.as_slice() else { bail!("a shell is in one machine") };
        return shell(kernel);
    }
    if let Some(rounds) = wanted.power_cuts {
        let [kernel] = chosen.as_slice() else { bail!("the power of one machine is cut") };
        setup::machine_tools(&kernel.arch)?;
        let built = Built::new()?;
        let unpacked = match packages::fetch(kernel)? {
            Fetched::Kernel(unpacked) => unpacked,
            Fetched::Unavailable(why) => bail!("{why}"),
        };
        power::cuts(&built, kernel, &unpacked, rounds)?;
        return Ok(ExitCode::SUCCESS);
    }
    let only = if wanted.short { catalogue.in_every_run } else { wanted.scenarios.clone() };
    let mut failures = Failures::default();
    let (count, clean) = scenarios(&chosen, &only, wanted.short, &mut failures)?;
    print!("{failures}");
    println!("{count}");
    ensure!(count.passed + count.failed > 0, "nothing ran");
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The kernels of every test run.
pub(crate) fn every_run(failures: &mut Failures) -> Result<(Count, bool)> {
    let catalogue = kernels::catalogue()?;
    let chosen: Vec<Kernel> = catalogue.kernels.into_iter().filter(|kernel| kernel.every_run).collect();
    scenarios(&chosen, &catalogue.in_every_run, true, failures)
}

/// Runs scenarios on kernels, two machines at a time, and prints a table; the sum, and whether all is well. `only`: parts of
/// their names; all when there is none. `is_short`: of a table of rulesets a sample is enough.
fn scenarios(chosen: &[Kernel], only: &[String], is_short: bool, failures: &mut Failures) -> Result<(Count, bool)> {
    let built = Built { is_short, ..Built::new()? };
    built.knows(only)?;
    let mut clean = true;
    let mut ready = Vec::new();
    let mut lines = Vec::new();
    let mut total = Count::default();
    for kernel in chosen {
        setup::machine_tools(&kernel.arch)?;
        match packages::fetch(kernel) {
            Ok(Fetched::Kernel(unpacked)) => ready.push((kernel, unpacked)),
            Ok(Fetched::Unavailable(why)) => {
                lines.push(format!("kernel {}: skipped: {why}", kernel.name));
                total.skip();
            }
            Err(error) => {
                lines.push(format!("kernel {}: BROKEN: {error:#}", kernel.name));
                clean = false;
            }
        }
    }
    for kernel in chosen.iter().filter(|kernel| kernel.job == Job::Load) {
        let mut count = Count::default();
        clean &= test::count(&mut build::foreign(&kernel.arch)?.tests, &mut count, failures)?;
        lines.push(format!("unit tests for {}, emulated: {count}", kernel.arch));
        total.add(count);
    }
    for pair in ready.chunks(2) {
        let ended: Vec<Result<Vec<Ended>>> = thread::scope(|scope| {
            let running: Vec<_> = pair
                .iter()
                .map(|(kernel, unpacked)| scope.spawn(|| built.to_the_end(kernel, unpacked, only)))
                .collect();
            running.into_iter().map(|thread| thread.join().expect("a machine's thread does not panic")).collect()
        });
        for ((kernel, unpacked), ended) in pair.iter().zip(ended) {
            let name = &kernel.name;
            match ended {
                Ok(ended) => {
                    clean &= ended.last().is_some_and(|last| last.broken.is_none());
                    for ended in ended {
                        clean &= ended.count.failed == 0;
                        lines.extend(told(kernel, unpacked, &ended));
                        total.add(ended.count);
                        failures.add(ended.failures);
                    }
                }
                Err(error) => {
                    lines.push(format!("kernel {name}: BROKEN: {error:#}"));
                    clean = false;
                }
            }
        }
    }
    println!("\n{}", lines.join("\n"));
    Ok((total, clean))
}

/// What became of a machine, in lines.
fn told(kernel: &Kernel, unpacked: &Unpacked, ended: &Ended) -> Vec<String> {
    let name = &kernel.name;
    let mut lines = vec![format!(
        "kernel {name} ({}, CPUs {}, init {}): {} in {} s",
        unpacked.version,
        kernel.cpus,
        kernel.init,
        ended.count,
        ended.took.as_secs()
    )];
    lines.extend(ended.failed.iter().map(|scenario| format!("kernel {name}: failed: {scenario}")));
    if let Some(broken) = &ended.broken {
        lines.push(format!("kernel {name}: BROKEN: {}", broken.why));
        lines.extend(broken.console.iter().map(|line| format!("kernel {name}: console: {line}")));
    }
    lines
}

fn shell(kernel: &Kernel) -> Result<ExitCode> {
    setup::machine_tools(&kernel.arch)?;
    let built = Built::new()?;
    let unpacked = match packages::fetch(kernel)? {
        Fetched::Kernel(unpacked) => unpacked,
        Fetched::Unavailable(why) => bail!("{why}"),
    };
    let job = format!("VM_SHELL=yes\n{}", built.job(kernel, &unpacked, &[])?);
    println!("xtask: `$OBSERVER` is the program; the machine ends with the shell, and keeps nothing");
    machine::shell(kernel, &unpacked, &initramfs::make(&unpacked, &job)?)?;
    Ok(ExitCode::SUCCESS)
}

/// What runs inside. Machines of two runs would share their folders: the second waits.
struct Built {
    _lock: File,
    observer: String,
    testbed: String,
    scenarios: String,
    /// Folder with the .deb of two versions.
    packages: String,
    is_short: bool,
}

impl Built {
    /// Builds, and puts copies aside: a machine reads them while it runs, whatever is built meanwhile.
    fn new() -> Result<Self> {
        let folder = root().join("target/vm/programs");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(root().join("target/vm/lock")).context("cannot make target/vm/lock")?;
        if lock.try_lock().is_err() {
            println!("xtask: machines of another run are at work: waiting for their end");
            lock.lock().context("cannot wait for target/vm/lock")?;
        }
        let scenarios = build::test_program("scenarios")?;
        let testbed = build::ebpf_side()?.with_file_name("testbed-bpf");
        let aside = |path: &Path| -> Result<String> {
            let name = path.file_name().context("a program without a name")?;
            let (copy, fresh) = (folder.join(name), folder.join("fresh"));
            fs::copy(path, &fresh).with_context(|| format!("cannot copy {}", path.display()))?;
            fs::rename(&fresh, &copy).with_context(|| format!("cannot make {}", copy.display()))?;
            Ok(quote(&copy.display().to_string()))
        };
        for neighbour in ["client", "demo"] {
            aside(&scenarios.with_file_name(neighbour))?;
        }
        aside(&testbed.with_file_name("unlogged-bpf"))?;
        let observer = build::release()?;
        let packages = root().join("target/vm/packages");
        let _ = fs::remove_dir_all(&packages);
        setup::package_tools()?;
        for version in ["0.0.1", "0.0.2"] {
            package::deb(&observer, version, &packages)?;
        }
        Ok(Self {
            packages: quote(&packages.display().to_string()),
            observer: aside(&observer)?,
            testbed: aside(&testbed)?,
            scenarios: aside(&scenarios)?,
            _lock: lock,
            is_short: false,
        })
    }

    /// Fails when a part of a name is in no scenario's name.
    fn knows(&self, parts: &[String]) -> Result<()> {
        let names = self.names()?;
        for part in parts {
            ensure!(names.iter().any(|name| name.contains(part)), "no scenario has `{part}` in its name");
        }
        Ok(())
    }

    /// Runs a machine to its end. Where its kernel broke, what is left runs in another one, once: an emulated processor can break
    /// a kernel too. What the first one said stays in what is reported.
    fn to_the_end(&self, kernel: &Kernel, unpacked: &Unpacked, only: &[String]) -> Result<Vec<Ended>> {
        let run = |only: &[String]| {
            machine::run(kernel, unpacked, &initramfs::make(unpacked, &self.job(kernel, unpacked, only)?)?)
        };
        let first = run(only)?;
        let is_broken = first.broken.as_ref().is_some_and(|broken| !broken.console.is_empty());
        if !is_broken || kernel.job != Job::Scenarios {
            return Ok(vec![first]);
        }
        let left = self.names()?.into_iter().filter(|name| {
            (only.is_empty() || only.iter().any(|part| name.contains(part))) && !first.done.contains(name)
        });
        let left: Vec<String> = left.map(|name| format!("={name}")).collect();
        println!(
            "xtask: the kernel {} broke: another machine runs the {} scenarios that are left",
            kernel.name,
            left.len()
        );
        Ok(vec![first, run(&left)?])
    }

    /// Names of all scenarios.
    fn names(&self) -> Result<Vec<String>> {
        let listed = command::output(command::new("sh").args(["-c", &format!("{} --list", self.scenarios)]));
        let listed = listed.context("the scenarios cannot be listed")?;
        Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// The machine's script: what `guest.sh` reads.
    fn job(&self, kernel: &Kernel, unpacked: &Unpacked, only: &[String]) -> Result<String> {
        let modules = unpacked.folder.join("lib/modules").join(&unpacked.version);
        match kernel.job {
            Job::Scenarios => Ok(self.job_of_scenarios(&modules, only, machine::accelerated(kernel, unpacked))),
            Job::Load => Ok(load(&build::foreign(&kernel.arch)?.program, &modules)),
        }
    }

    fn job_of_scenarios(&self, modules: &Path, only: &[String], is_accelerated: bool) -> String {
        let slowness = (if is_accelerated { 1.0 } else { SLOWNESS } * speed::slowness()).ceil();
        format!(
            "VM_MODULES={}\nexport OBSERVER={} OBSERVER_TESTBED={} OBSERVER_SLOWNESS={slowness} OBSERVER_SAMPLE={} OBSERVER_MACHINE=yes OBSERVER_PACKAGES={}\n\
             prepare() {{ for module in {MODULES}; do modprobe -q $module; done; cd {}; }}\n\
             job() {{ OBSERVER_ONLY={} {} --color never --test-threads {AT_ONCE}; }}\n",
            quote(&modules.display().to_string()),
            self.observer,
            self.testbed,
            if self.is_short { SAMPLE } else { 1 },
            self.packages,
            quote(&root().display().to_string()),
            quote(&only.join(",")),
            self.scenarios,
        )
    }
}

/// The program is asked what it finds, which includes that everything is loaded and that a dropped packet is seen; told as
/// one test is reported. The outside's root is at /host. busybox's modprobe knows no soft dependencies: the first is nf_tables' own.
fn load(program: &Path, modules: &Path) -> String {
    let inside = |path: &Path| quote(&format!("/host{}", path.display()));
    format!(
        "VM_MODULES={}\nexport OBSERVER={program}\nprepare() {{ for module in crc32c_generic {MODULES}; do modprobe -q $module; done; }}\n\
         job() {{\n{program} doctor\n\
         if {program} doctor -o json | grep -q '\"observable\":true.*\"name\":\"self-test\",\"status\":\"ok\"'\n\
         then echo 'test load::observable ... ok'; echo 'test result: ok. 1 passed; 0 failed; 0 ignored'\n\
         else echo 'test load::observable ... FAILED'; echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored'; return 1\n\
         fi\n}}\n",
        inside(modules),
        program = inside(program),
    )
}

/// A word for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

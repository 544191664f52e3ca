//! What observer costs. Every figure comes from runs that are interleaved with unobserved ones and with the least program
//! that can be attached, in changing order, so that what else happens on the machine meets all of them alike.

mod load;
mod report;
mod watch;

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use clap::Parser;
use harness::namespace::Namespace;
use jiff::Timestamp;
use load::Load;
use nix::unistd::{SysconfVar, sysconf};
use report::{Report, Samples};
use tempfile::TempDir;
use watch::Watcher;

/// Ports that the firewall drops on the way out and on the way in, and rejects, and one that nothing listens on.
const DROPPED: u16 = 9999;
const DROPPED_INBOUND: u16 = 9998;
const REJECTED: u16 = 9997;
const CLOSED: u16 = 9;

const fn load(title: &'static str, kind: &'static str, port: u16, packets: u32, threads: u32) -> Load {
    Load { title, kind, port, packets, threads }
}

const LOADS: [Load; 12] = [
    load("UDP flood into a drop, one thread", "datagrams", DROPPED, 600_000, 1),
    load("UDP flood into a drop, two threads", "datagrams", DROPPED, 400_000, 2),
    load("UDP into a drop, a thousand destinations in turn", "destinations", DROPPED, 400_000, 1),
    load("UDP into a drop, each to another destination: first packets", "firsts", DROPPED, 10_000, 1),
    load("UDP into a drop, a hundred processes in turn", "owners", DROPPED, 400_000, 1),
    load("TCP connects into a drop, each from another port", "connects", DROPPED, 100_000, 1),
    load("TCP connects that are rejected with a reset", "connects", REJECTED, 60_000, 1),
    load("UDP flood that is dropped as it comes in: nobody's answer", "datagrams", DROPPED_INBOUND, 400_000, 1),
    load("UDP flood to a closed port: every freed packet has another reason", "datagrams", CLOSED, 400_000, 1),
    load("UDP that passes, by a socket that is not connected", "unconnected", 0, 300_000, 1),
    load("TCP connections that pass, opened and closed", "short", 0, 20_000, 1),
    load("TCP in bulk, blocks of 64 kB", "bulk", 0, 40_000, 1),
];
/// Of a run under the kernel's statistics, which cost time themselves, so many times fewer packets.
const MEASURED: u32 = 4;
/// Where a kernel says that it has kprobes.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";
/// How long is waited until verdicts are probed: an emulated machine is slow.
const PROBED: Duration = Duration::from_secs(60);
/// When a first block has been dealt with, and verdicts are still probed.
const SETTLED: Duration = Duration::from_secs(4);
/// How long an idle observer is looked at.
const IDLE: Duration = Duration::from_secs(10);

/// Measures what observer costs, against unobserved runs and an empty program.
#[derive(Parser)]
struct Args {
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only what has this in its title.
    #[arg(long, default_value = "")]
    only: String,
    /// A table, or one JSON object.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((first, rest)) if first == "load" => load::inside(rest),
        _ => bench(&Args::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes namespaces and loads BPF programs: run it as root");
    let namespace = Namespace::new()?;
    namespace.nft(&format!(
        "table inet bench {{\n chain out {{\n type filter hook output priority 0;\n meta l4proto {{ tcp, udp }} th dport {DROPPED} counter \
         drop\n tcp dport {REJECTED} counter reject with tcp reset\n }}\n chain in {{\n type filter hook input priority 0; udp dport \
         {DROPPED_INBOUND} counter drop\n }}\n}}"
    ))?;
    let mut groups = Vec::new();
    let wanted = |title: &str| title.to_lowercase().contains(&args.only.to_lowercase());
    namespace.set("ipv4/ip_local_port_range", "1024 65535")?;
    for load in &LOADS {
        let title = load.title;
        let measured = wanted(title).then(|| traffic(&namespace, load, args.rounds)).transpose()?;
        groups.extend(measured.map(|samples| (title.to_owned(), samples.figures())));
    }
    let mut others = |title: &str, measure: &mut dyn FnMut() -> Result<Samples>| -> Result<()> {
        if wanted(title) {
            groups.push((title.to_owned(), measure()?.figures()));
        }
        Ok(())
    };
    if fs::exists(KPROBES)? {
        others("UDP that passes by a rule's verdict, while verdicts are probed", &mut || probed(args.rounds))?;
    } else {
        others("Probed verdicts: not measured, this kernel has no kprobes", &mut || Ok(Samples::default()))?;
    }
    others("Starting a program, 300 at a time", &mut || processes(args.rounds))?;
    others("observer run: from the block to its announcement", &mut || announced(&namespace, args.rounds))?;
    others("Start and idle", &mut || idle(args.rounds))?;
    let report = Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cpus: std::thread::available_parallelism()?.get(),
        groups,
    };
    if args.output == "json" {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", report.text());
    }
    Ok(())
}

/// One kind of traffic under each watcher, round by round.
fn traffic(namespace: &Namespace, load: &Load, rounds: u64) -> Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..rounds {
        let mut order = Watcher::ALL;
        order.rotate_left(usize::try_from(round)? % Watcher::ALL.len());
        let mut spent = HashMap::new();
        let mut inside = HashMap::new();
        for watcher in order {
            let _running = watcher.start()?;
            spent.insert(watcher.name(), load::run(namespace, load, load.packets)?);
            if watcher != Watcher::Nobody {
                let _statistics = enable_stats(Stats::RunTime).context("the kernel counts no program times")?;
                let before = watcher.program_time()?;
                load::run(namespace, load, load.packets / MEASURED)?;
                let after = watcher.program_time()?;
                let runs = after.1 - before.1;
                // Traffic that passes frees next to nothing; of sends to a closed port every other one only takes the error.
                if runs > u64::from(load.packets / MEASURED / 4) {
                    inside.insert(watcher.name(), (after.0 - before.0) as f64 / runs as f64);
                }
            }
        }
        let unobserved = spent[Watcher::Nobody.name()];
        samples.add("sender's CPU a packet, unobserved", "ns", unobserved.cpu_ns);
        for watcher in [Watcher::Empty, Watcher::Observer] {
            let observed = spent[watcher.name()];
            samples.add(format!("CPU, unobserved ÷ {}", watcher.name()), "×", unobserved.cpu_ns / observed.cpu_ns);
            samples.add(format!("rate, {} ÷ unobserved", watcher.name()), "×", unobserved.wall_ns / observed.wall_ns);
        }
        if let (Some(empty), Some(observer)) = (inside.get(Watcher::Empty.name()), inside.get(Watcher::Observer.name()))
        {
            samples.add("in the empty program, a freed packet", "ns", *empty);
            samples.add("in observer's program, over the empty one", "ns", observer - empty);
        }
    }
    Ok(samples)
}

/// What probed verdicts cost packets that a rule accepts.
fn probed(rounds: u64) -> Result<Samples> {
    const PASSING: Load = load("", "unconnected", 0, 20_000, 1);
    const BLOCKED: Load = load("", "datagrams", DROPPED, 1, 1);
    let namespace = Namespace::new()?;
    namespace.nft(&format!(
        "table inet bench {{ chain out {{ type filter hook output priority 0; udp dport {DROPPED} drop; meta l4proto udp accept; }} }}"
    ))?;
    let mut samples = Samples::default();
    for round in 0..rounds {
        let mut order = [Watcher::Nobody, Watcher::Observer, Watcher::Probing];
        order.rotate_left(usize::try_from(round)? % 3);
        let mut spent = HashMap::new();
        for watcher in order {
            let _running = watcher.start()?;
            load::run(&namespace, &BLOCKED, 1)?;
            if watcher == Watcher::Probing {
                let started = Instant::now();
                while verdicts(&namespace, &PASSING, 10)?.1 == 0 {
                    ensure!(started.elapsed() < PROBED, "verdicts are not probed");
                    load::run(&namespace, &BLOCKED, 1)?;
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
            // What observer does about the block is not the passing packets' cost.
            std::thread::sleep(SETTLED);
            spent.insert(watcher.name(), load::run(&namespace, &PASSING, PASSING.packets)?);
            if watcher == Watcher::Probing {
                let packets = PASSING.packets / MEASURED;
                let (time, runs) = verdicts(&namespace, &PASSING, packets)?;
                samples.add("probed verdicts a packet", "", runs as f64 / f64::from(packets));
                samples.add("in the program at a verdict's beginning", "ns", time as f64 / runs.max(1) as f64);
            }
        }
        let unobserved = spent[Watcher::Nobody.name()];
        samples.add("CPU to send and receive one, unobserved", "ns", unobserved.cpu_ns);
        for watcher in [Watcher::Observer, Watcher::Probing] {
            let observed = spent[watcher.name()];
            samples.add(format!("CPU, unobserved ÷ {}", watcher.name()), "×", unobserved.cpu_ns / observed.cpu_ns);
        }
    }
    Ok(samples)
}

/// Nanoseconds in the program where a verdict begins, and runs of it, while so many packets are sent.
fn verdicts(namespace: &Namespace, load: &Load, packets: u32) -> Result<(u64, u64)> {
    const PROGRAM: &str = "verdict_begin";
    // They cost time themselves.
    let _statistics = enable_stats(Stats::RunTime).context("the kernel counts no program times")?;
    let before = watch::program_time(PROGRAM)?;
    load::run(namespace, load, packets)?;
    let after = watch::program_time(PROGRAM)?;
    Ok((after.0 - before.0, after.1 - before.1))
}

/// What it costs to start programs while observer takes their facts.
fn processes(rounds: u64) -> Result<Samples> {
    const COUNT: u32 = 300;
    let client = std::env::current_exe()?.with_file_name("client");
    let start = || -> Result<f64> {
        let started = Instant::now();
        let status = Command::new(&client).args(["forks", &COUNT.to_string()]).status()?;
        ensure!(status.success(), "the client ended with {status}");
        Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(COUNT))
    };
    let mut samples = Samples::default();
    for round in 0..rounds {
        let mut order = [Watcher::Nobody, Watcher::Observer];
        order.rotate_left(usize::try_from(round)? % 2);
        let mut spent = HashMap::new();
        for watcher in order {
            let _running = watcher.start()?;
            spent.insert(watcher.name(), start()?);
            if watcher == Watcher::Observer {
                let _statistics = enable_stats(Stats::RunTime).context("the kernel counts no program times")?;
                for name in ["proc_fork", "proc_exec", "proc_exit"] {
                    let before = watch::program_time(name)?;
                    start()?;
                    let after = watch::program_time(name)?;
                    let each = (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
                    samples.add(format!("in {name}"), "ns", each);
                }
            }
        }
        let (unobserved, observed) = (spent[Watcher::Nobody.name()], spent[Watcher::Observer.name()]);
        samples.add("a program, unobserved", "µs", unobserved);
        samples.add("rate, observer ÷ unobserved", "×", unobserved / observed);
    }
    Ok(samples)
}

/// How long after a packet died `observer run` has said so.
fn announced(namespace: &Namespace, rounds: u64) -> Result<Samples> {
    let folder = TempDir::new()?;
    let load = std::env::current_exe()?.display().to_string();
    let mut samples = Samples::default();
    for round in 0..rounds {
        let events = folder.path().join(round.to_string());
        let mut child = namespace
            .command(std::path::absolute(harness::observer::program())?)
            .args(["run", "--settle", "0s", "--events"])
            .arg(&events)
            .args(["-c", &format!("sleep 0.3; {load} load datagrams {DROPPED} 1 1; sleep 0.2")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        lines.by_ref().map_while(Result::ok).find(|line| line.contains("BLOCKED")).context("nothing was announced")?;
        let said = Timestamp::now();
        lines.map_while(Result::ok).for_each(drop);
        ensure!(child.wait()?.success(), "the command failed");
        let text = fs::read_to_string(&events)?;
        let event: serde_json::Value = serde_json::from_str(text.lines().next().context("no event")?)?;
        let died: Timestamp = event["@timestamp"].as_str().context("no time")?.parse()?;
        samples.add("announced after", "ms", said.duration_since(died).as_secs_f64() * 1e3);
    }
    Ok(samples)
}

/// Time to ready, memory, and what a watching observer does when nothing happens.
fn idle(rounds: u64) -> Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..rounds {
        let running = Watcher::Observer.start()?;
        let observer = running.observer().context("no observer runs")?;
        samples.add("from start to ready", "ms", observer.ready_after.as_secs_f64() * 1e3);
        let processes = observer.processes()?;
        for (field, what) in [("VmRSS:", "resident, with its helper"), ("RssAnon:", "of that, its own")] {
            let sum: f64 = processes.iter().map(|pid| status(*pid, field)).sum::<Result<f64>>()?;
            samples.add(what, "MB", sum / 1e3);
        }
        if round == 0 {
            let before = usage(&processes)?;
            std::thread::sleep(IDLE);
            let after = usage(&processes)?;
            let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the system does not say how long a clock tick is")?;
            samples.add("CPU while idle", "%", (after.0 - before.0) / ticks as f64 / IDLE.as_secs_f64() * 100.0);
            samples.add("wake-ups while idle", "1/s", (after.1 - before.1) / IDLE.as_secs_f64());
        }
    }
    Ok(samples)
}

/// Clock ticks of user and system time, and voluntary context switches of all threads.
fn usage(processes: &[u32]) -> Result<(f64, f64)> {
    let (mut ticks, mut switches) = (0.0, 0.0);
    for pid in processes {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        ticks += fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(thread?.path().join("status"))?;
            switches += field(&text, "voluntary_ctxt_switches:")?;
        }
    }
    Ok((ticks, switches))
}

fn status(pid: u32, name: &str) -> Result<f64> {
    field(&fs::read_to_string(format!("/proc/{pid}/status"))?, name)
}

fn field(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("no {name}"))
}

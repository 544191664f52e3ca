//! `observer doctor` tells the truth about this kernel.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::{
    kernel,
    namespace::Namespace,
    observer::{self, Observer},
    testbed,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("observable_with_a_self_test", observable),
    ("every_hook_in_its_best_way", hooks),
    ("the_verifier_does_not_walk_far", verified),
    ("another_loader_takes_every_program", libbpf),
    ("markdown_for_a_ticket", markdown),
    ("knows_the_firewalls", firewalls),
    ("in_a_pid_namespace_of_its_own", pid_namespace),
    ("variables_for_developers_are_nothing_to_a_service", variables),
];

fn json(command: &mut std::process::Command) -> Result<Value> {
    let output = command.args(["doctor", "-o", "json"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.lines().count() == 1, "{text} {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_str(&text)?)
}

/// systemd says to every process of a unit that it is one.
fn variables() -> Result<Outcome> {
    for (invocation, is_heard) in [(None, true), (Some("6b1d"), false)] {
        let mut command = observer::command();
        command.env("OBSERVER_AVOID", "tp_btf").envs(invocation.map(|id| ("INVOCATION_ID", id)));
        let answer = json(&mut command)?.to_string();
        ensure!(answer.contains("OBSERVER_AVOID names it") == is_heard, "{invocation:?}: {answer}");
    }
    Ok(Outcome::Passed)
}

fn check<'a>(answer: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = answer["egress"]["checks"].as_array().context("no checks")?;
    checks.iter().find(|check| check["name"] == name).with_context(|| format!("no check `{name}` in {answer}"))
}

fn observable() -> Result<Outcome> {
    let answer = json(&mut observer::command())?;
    ensure!(answer["egress"]["observable"] == true, "{answer}");
    for name in ["kernel", "btf", "lockdown", "privilege", "cgroup2", "drops", "reasons", "forwarding", "self-test"] {
        check(&answer, name)?;
    }
    ensure!(check(&answer, "self-test")?["status"] == "ok", "{answer}");
    for check in answer["egress"]["checks"].as_array().context("no checks")? {
        let complete = check["status"] == "ok" || check["consequence"].is_string() && check["remedy"].is_string();
        ensure!(complete, "a shortcoming without consequence or remedy: {check}");
    }
    Ok(Outcome::Passed)
}

/// The ways in which each hook is attached on a kernel that takes everything, best first: some kernels refuse the first. Older ones lack
/// what the last column names.
const BEST: [(&str, &[&str], Option<&str>); 10] = [
    ("fork", &["tp_btf"], None),
    ("exec", &["tp_btf"], None),
    ("exit", &["tp_btf"], None),
    ("cgroups", &["tp_btf"], None),
    ("connect", &["tp_btf"], None),
    ("create", &["cgroup"], None),
    ("close", &["cgroup"], None),
    ("flows", &["sock_ops"], None),
    ("seed", &["iter", "iter+diag"], Some("bpf_sock_from_file")),
    ("drops", &["tp_btf"], None),
];

/// The truth about this kernel, known here from its types: nothing less, and nothing that it does not have.
fn hooks() -> Result<Outcome> {
    let answer = json(&mut observer::command())?;
    let mut refused = 0;
    for (name, ways, needs) in BEST {
        let found = check(&answer, name)?;
        let detail = found["detail"].as_str().unwrap_or_default();
        if needs.is_none_or(kernel::knows) {
            let way = ways.iter().position(|way| detail.contains(&format!(" as {way}: ")));
            ensure!(found["status"] == "ok" && way.is_some(), "{found}");
            refused += way.unwrap_or(0);
        } else {
            refused += ways.len();
            ensure!(found["status"] == "degraded" && detail.contains("cannot be attached"), "{found}");
        }
    }
    let named = ["NETFILTER_DROP", "BPF_CGROUP_EGRESS", "TC_EGRESS", "QDISC_DROP"].into_iter().all(kernel::names);
    let reasons = check(&answer, "reasons")?;
    ensure!(reasons["status"] == if named { "ok" } else { "degraded" }, "{reasons}");
    ensure!(check(&answer, "forwarding")?["status"] == "ok", "{answer}");
    let rules = check(&answer, "rules")?;
    // Before, nftables may have learnt to free what it drops by a later stable release.
    let possible: &[&str] = if kernel::is_at_least(6, 7) { &["ok"] } else { &["ok", "degraded"] };
    ensure!(possible.iter().any(|status| rules["status"] == *status), "{rules}");

    // What is said for diagnosis costs no hook.
    let loud = Observer::start(["-vv", "watch"])?;
    let (status, _, said) = loud.end(Signal::SIGINT)?;
    ensure!(status.success(), "{status}: {said}");
    let complaints = said.matches("BPF_PROG_LOAD syscall returned").count();
    ensure!(complaints == refused, "{complaints} programs were refused, {refused} expected: {said}");
    Ok(Outcome::Passed)
}

/// Steps of the verifier that each program may take: about twice what it takes today, of the million that a kernel allows.
const BUDGET: [(&str, u32); 13] = [
    ("proc_fork", 2_000),
    ("proc_exec", 20_000),
    ("proc_exit", 2_000),
    ("proc_mkdir", 2_000),
    ("own_sock_state", 30_000),
    ("own_sock_create", 5_000),
    ("own_sock_close", 5_000),
    ("flow_sock_ops", 2_000),
    ("flow_connect", 4_000),
    ("seed_task_file", 5_000),
    ("seed_with_diag", 5_000),
    ("drop_kfree_skb", 45_000),
    ("rdrop_kfree_skb", 45_000),
];
/// Programs that not every kernel takes, or that are gone when everything is attached.
const OPTIONAL: [&str; 3] = ["flow_connect", "seed_task_file", "seed_with_diag"];

/// As many as are looked at in the kernel, and everything that is said of it.
const FILTERS: &str = "-vv --netns /proc/self/ns/net --pid 1 --port 1 --port 2 --port 3 --port 4 --port 5 --port 6 --port 7 --port 8 --proto tcp --proto udp \
                       --dst 10.0.0.0/8 --dst 11.0.0.0/8 --dst 12.0.0.0/8 --dst 13.0.0.0/8 --dst 2001:db8::/32";

/// Ids of the programs that a process has.
fn programs(process: u32) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        let facts = std::fs::read_to_string(entry?.path())?;
        let id = facts.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.map(|id| id.trim().parse::<u32>()).transpose()?);
    }
    Ok(ids)
}

/// As it is, as it is where the best ways are not to be had, and with much to leave out and to say.
fn verified() -> Result<Outcome> {
    let mut seen = Vec::new();
    for (avoided, filters) in [("", ""), ("tp_btf,sock_ops", ""), ("", FILTERS), ("tp_btf", FILTERS)] {
        let mut command = observer::command();
        command.arg("watch").args(filters.split_whitespace()).env("OBSERVER_AVOID", avoided);
        let observer = Observer::start_command(&mut command)?;
        // Other scenarios' observers have the same programs, with other filters.
        let own = programs(observer.child.id())?;
        for program in aya::programs::loaded_programs().filter_map(Result::ok) {
            if !own.contains(&program.id()) {
                continue;
            }
            let known = BUDGET.iter().find(|(name, _)| program.name_as_str() == Some(name));
            let Some((name, budget)) = known else { continue };
            let Some(steps) = program.verified_instruction_count() else {
                return Ok(Outcome::Skipped("this kernel does not count the verifier's steps".to_owned()));
            };
            ensure!(steps <= *budget, "{name} took the verifier {steps} steps, budget {budget}");
            seen.push(*name);
        }
        let (status, _, said) = observer.end(Signal::SIGINT)?;
        ensure!(status.success(), "{status}: {said}");
    }
    for (name, _) in BUDGET {
        ensure!(seen.contains(&name) || OPTIONAL.contains(&name), "{name} was not found among {seen:?}");
    }
    Ok(Outcome::Passed)
}

/// libbpf, by bpftool, is a second opinion about the object: it forgives nothing. Pinned in a namespace that ends with it.
fn libbpf() -> Result<Outcome> {
    if !kernel::knows("bpf_sock_from_file") {
        return Ok(Outcome::Skipped("bpftool loads all or nothing, and this kernel refuses one program".to_owned()));
    }
    let room = tempfile::tempdir()?;
    let script = "command -v bpftool >/dev/null || exit 77
                  mount -t bpf bpf \"$1\" && bpftool prog loadall \"$2\" \"$1/programs\" && ls \"$1/programs\"";
    let loaded = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(room.path())
        .arg(testbed::unlogged_object())
        .output()?;
    if loaded.status.code() == Some(77) {
        return Ok(Outcome::Skipped("no package of this system has a bpftool".to_owned()));
    }
    let (names, said) = (String::from_utf8(loaded.stdout)?, String::from_utf8_lossy(&loaded.stderr));
    ensure!(loaded.status.success(), "{said}");
    let missing: Vec<&str> =
        BUDGET.iter().map(|(name, _)| *name).filter(|name| !names.lines().any(|line| line == *name)).collect();
    ensure!(missing.is_empty(), "{missing:?} not among {names}: {said}");
    Ok(Outcome::Passed)
}

fn markdown() -> Result<Outcome> {
    let output = observer::command().args(["doctor", "-o", "markdown"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && text.contains("| self-test | ok |"), "{text}");
    Ok(Outcome::Passed)
}

/// Inside a namespace with rules of two kinds.
fn firewalls() -> Result<Outcome> {
    let namespace = Namespace::new()?;
    let inside = || {
        let mut command = namespace.command(observer::program());
        json(&mut command)
    };
    ensure!(
        check(&inside()?, "firewalls")?["detail"].as_str().is_some_and(|detail| detail.starts_with("none")),
        "not none"
    );
    namespace.nft("table inet mine { chain out { type filter hook output priority 0; } }")?;
    let detail = check(&inside()?, "firewalls")?["detail"].to_string();
    ensure!(detail.contains("nftables") && detail.contains("mine"), "{detail}");
    namespace.run("iptables-legacy", &["-A", "OUTPUT", "-j", "ACCEPT"])?;
    let answer = inside()?;
    let found = check(&answer, "firewalls")?;
    ensure!(found["status"] == "note" && found["detail"].to_string().contains("iptables-legacy"), "{found}");
    Ok(Outcome::Passed)
}

/// Where the kernel's process numbers mean somebody else: said, and nobody is named wrongly.
fn pid_namespace() -> Result<Outcome> {
    let mut command = std::process::Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--"]).arg(observer::program());
    let answer = json(&mut command)?;
    ensure!(check(&answer, "container")?["status"] == "degraded", "{answer}");
    ensure!(answer["egress"]["observable"] == true, "{answer}");
    Ok(Outcome::Passed)
}

//! What this kernel and host support: looks, tries, and proves it with one dropped packet.

use std::{
    fs,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    firewall::inventory::nftables_in_use,
    intake::{decode::decode, hanging},
    kernel::{
        btf::{self, Btf},
        cgroup,
        clock::boot_ns,
    },
    model::{Check, Degraded, Diagnosis, Status},
    privilege::{Helper, KPROBES, proc},
    probe::{AttachError, HookState, Probes, attach, calibrate::proof::Unproven, memory, program_names, rules::Proof},
};

/// How long the self-test waits for its packet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks at everything. Attaches for a moment; nothing stays.
pub fn examine(mut helper: Helper) -> Diagnosis {
    let mut checks = vec![kernel(), types(), lockdown(), privilege(), container(), hierarchy(), memory_limit()];
    let others = others();
    match Probes::attach(0, &observer_ebpf::abi::KernelFilter::default()) {
        Ok(mut probes) => {
            checks.extend(probes.states.iter().map(hook));
            checks.push(reasons(&probes));
            checks.push(forwarding(&probes));
            checks.push(owners(&mut probes));
            checks.push(self_test(&mut probes, &mut helper));
            checks.extend(rules(&mut probes, &mut helper));
            checks.push(replay(&mut helper));
            checks.push(answers(&probes));
        }
        Err(error) => checks.push(refused(&error)),
    }
    checks.push(firewalls(&mut helper));
    checks.push(others);
    Diagnosis { checks }
}

/// Shortcomings of attached probes and of this place, for the account of a run.
pub fn shortcomings(probes: &Probes) -> Vec<Degraded> {
    [container(), hierarchy(), memory_limit(), reasons(probes), forwarding(probes)]
        .into_iter()
        .chain(probes.states.iter().map(hook))
        .filter(|check| check.status == Status::Degraded)
        .map(|check| Degraded {
            what: check.name.to_owned(),
            why: check.detail,
            consequence: check.consequence.unwrap_or_default(),
        })
        .collect()
}

fn memory_limit() -> Check {
    let (status, limit, consequence) = match memory::sizes(memory::limit()) {
        Ok(memory::Sizes { shrunk_to: None, .. }) => return Check::fine("memory", "no limit that matters"),
        Ok(memory::Sizes { shrunk_to: Some(limit), .. }) => (
            Status::Degraded,
            limit,
            "tables are smaller: in a storm, packets to different destinations may be counted together",
        ),
        Err(limit) => (Status::Failed, limit, "nothing can be observed"),
    };
    let detail = format!("its control group allows {} MB", limit >> 20);
    let remedy = "allow 256 MB (MemoryMax= of its unit, `--memory` of its container)";
    Check::short("memory", status, detail, consequence, remedy)
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Check::fine("kernel", format!("{} {}", release.trim(), std::env::consts::ARCH))
}

fn types() -> Check {
    match Btf::of_kernel() {
        Ok(btf) => Check::fine("btf", format!("{} types in {}", btf.len(), btf::VMLINUX)),
        Err(error) => {
            let error = AttachError::from(error);
            Check::short("btf", Status::Failed, error.to_string(), "nothing can be observed", error.hint())
        }
    }
}

fn lockdown() -> Check {
    match attach::lockdown() {
        Some(mode) if mode == "confidentiality" => {
            let error = AttachError::Lockdown;
            Check::short("lockdown", Status::Failed, mode, "BPF programs may not read kernel memory", error.hint())
        }
        Some(mode) => Check::fine("lockdown", mode),
        None => Check::fine("lockdown", "not in this kernel, or securityfs is not mounted"),
    }
}

fn privilege() -> Check {
    match attach::check_privilege() {
        Ok(()) => Check::fine("privilege", "may load and attach BPF programs"),
        Err(error) => {
            Check::short("privilege", Status::Failed, error.to_string(), "nothing can be observed", error.hint())
        }
    }
}

fn container() -> Check {
    let own_mounts = fs::read_link("/proc/1/ns/mnt").ok() != fs::read_link("/proc/self/ns/mnt").ok();
    let marker = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")]
        .into_iter()
        .find(|(path, _)| own_mounts && fs::exists(path).unwrap_or(false))
        .map(|(_, runtime)| runtime);
    match (proc::sees_initial_pids(), marker) {
        (true, None) => Check::fine("container", "no: this is the host"),
        (true, Some(runtime)) => {
            Check::fine("container", format!("inside {runtime}, with the host's processes in view"))
        }
        (false, marker) => Check::short(
            "container",
            Status::Degraded,
            format!("inside {}, in a pid namespace of its own", marker.unwrap_or("a container")),
            "processes are known by name and number only, without executable, arguments and parents",
            "run observer on the host, or the container with `--pid=host`",
        ),
    }
}

fn answers(probes: &Probes) -> Check {
    let (why, remedy) = match probes.may_probe() {
        Ok(()) if fs::exists(KPROBES).unwrap_or(false) => {
            return Check::fine("answers", "it is told when blocked datagrams are answered again");
        }
        Ok(()) => (
            "this kernel has no kprobes".to_owned(),
            "boot a kernel built with CONFIG_KPROBE_EVENTS=y; every current distribution's is",
        ),
        Err(why) => (why.to_string(), "boot Linux 6.1 or later"),
    };
    let without = "it is not told when blocked datagrams are answered again; of connections it is";
    Check::short("answers", Status::Degraded, why, without, remedy)
}

fn hierarchy() -> Check {
    match cgroup::find() {
        Ok(cgroup::Hierarchy::Mounted { path, whole: true }) => {
            Check::fine("cgroup2", format!("mounted at {}", path.display()))
        }
        Ok(cgroup::Hierarchy::Mounted { path, whole: false }) => Check::short(
            "cgroup2",
            Status::Degraded,
            format!("only a part of the hierarchy is mounted, at {}", path.display()),
            "sockets that are created outside that part get their owner late or not at all",
            "run observer on the host, or the container with `--cgroupns=host`",
        ),
        Ok(cgroup::Hierarchy::NotMounted) => Check::fine("cgroup2", "not mounted; observer uses a private mount"),
        Err(error) => Check::short(
            "cgroup2",
            Status::Degraded,
            format!("{error:#}"),
            "short-lived senders of UDP and ICMP stay without a name",
            "mount /proc",
        ),
    }
}

fn hook(state: &HookState) -> Check {
    let hook = state.hook;
    match &state.result {
        Ok(way) => Check::fine(hook.name, format!("{} as {}: {}", hook.symbol, way.name(), hook.purpose)),
        Err(why) => Check::short(
            hook.name,
            if hook.required { Status::Failed } else { Status::Degraded },
            format!("{} cannot be attached: {why}", hook.symbol),
            hook.without,
            "run `observer -vv doctor` for the kernel's own words, and report them with the kernel's version",
        ),
    }
}

fn reasons(probes: &Probes) -> Check {
    let missing: Vec<&str> = [
        ("netfilter", "NETFILTER_DROP"),
        ("cgroup programs", "BPF_CGROUP_EGRESS"),
        ("traffic control", "TC_EGRESS"),
        ("full queues", "QDISC_DROP"),
    ]
    .into_iter()
    .filter(|(_, reason)| !probes.reasons.has(reason))
    .map(|(what, _)| what)
    .collect();
    match missing.as_slice() {
        [] => Check::fine("reasons", "netfilter, cgroup programs, traffic control and queues are told apart"),
        ["netfilter", unseen @ ..] => {
            let unseen = unseen.join(", ");
            Check::short(
                "reasons",
                Status::Degraded,
                "this kernel names no drop reasons; netfilter's drops are told by the function that frees the packet",
                format!("drops by {unseen} are not seen"),
                "boot Linux 5.18 or later",
            )
        }
        unseen => {
            let unseen = unseen.join(" and ");
            Check::short(
                "reasons",
                Status::Degraded,
                format!("this kernel does not name drops by {unseen}"),
                format!("drops by {unseen} are not seen"),
                "boot Linux 5.18 or later",
            )
        }
    }
}

fn forwarding(probes: &Probes) -> Check {
    if probes.forwarding {
        return Check::fine("forwarding", "what this host forwards for containers is seen too");
    }
    Check::short(
        "forwarding",
        Status::Degraded,
        "/proc/kallsyms shows no address of `ip_forward`",
        "what this host forwards for containers is not seen",
        "run observer with CAP_SYSLOG and with kernel.kptr_restrict at 0 or 1",
    )
}

fn owners(probes: &mut Probes) -> Check {
    let hanging = hanging::decode(probes.take_hanging()).len();
    Check::fine(
        "sockets",
        format!("{} sockets that are older than observer have an owner, {hanging} of them hang", probes.seeded),
    )
}

fn refused(error: &AttachError) -> Check {
    Check::short("drops", Status::Failed, error.to_string(), "nothing can be observed", error.hint())
}

/// Drops one packet and looks for exactly it, with the right owner.
fn self_test(probes: &mut Probes, helper: &mut Helper) -> Check {
    match try_self_test(probes, helper) {
        Ok(delay) => Check::fine(
            "self-test",
            format!(
                "dropped 1 packet in a private namespace, seen after {:.1} ms with the right owner",
                delay.as_secs_f64() * 1e3
            ),
        ),
        Err(NotProven::Wrong(why)) => Check::short(
            "self-test",
            Status::Failed,
            why,
            "what observer says on this kernel cannot be relied on",
            "run `observer -vv doctor` and report what it says, with the kernel's version",
        ),
        Err(NotProven::NotTried(why)) => Check::short(
            "self-test",
            Status::Degraded,
            why,
            "it is not proven that drops are seen here",
            "run `observer doctor` as root on the host, where nftables is in use",
        ),
    }
}

/// Why the self-test proves nothing.
enum NotProven {
    /// The packet was dropped, and not seen as it was.
    Wrong(String),
    /// No packet could be dropped.
    NotTried(String),
}

fn try_self_test(probes: &mut Probes, helper: &mut Helper) -> Result<Duration, NotProven> {
    if !nftables_in_use() {
        return Err(NotProven::NotTried("not tried: it would load nftables, which this host does not use".to_owned()));
    }
    let mut ring = probes.take_ring().map_err(|error| NotProven::NotTried(format!("{error:#}")))?;
    let sent =
        helper.self_test().map_err(|error| error.to_string()).and_then(|sent| sent).map_err(NotProven::NotTried)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        while let Some(item) = ring.next() {
            let Ok(dropped) = decode(Bytes::copy_from_slice(&item)).map(|first| first.dropped) else { continue };
            let port = dropped.endpoints.and_then(|endpoints| endpoints.source_port);
            if dropped.netns != sent.netns || port != Some(sent.port) {
                continue;
            }
            let seen_ns = boot_ns();
            let pid = dropped.owner.map(|owner| owner.task.pid);
            let initial = proc::sees_initial_pids();
            return match pid {
                Some(pid) if pid == sent.pid || !initial => {
                    Ok(Duration::from_nanos(seen_ns.saturating_sub(sent.boot_ns)))
                }
                Some(pid) => {
                    Err(NotProven::Wrong(format!("the packet of process {} was named as process {pid}'s", sent.pid)))
                }
                None => Err(NotProven::Wrong("the packet was seen, but without its owner".to_owned())),
            };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(NotProven::Wrong(format!("the packet was dropped, but not seen within {} s", PATIENCE.as_secs())))
}

/// Drops packets by known rules and programs, and looks whether they are told apart: by rule, and by what else decides.
fn rules(probes: &mut Probes, helper: &mut Helper) -> [Check; 2] {
    const RULES: &str = "rules";
    const DECIDERS: &str = "deciders";
    let armed = probes
        .take_rules()
        .map_err(|error| Unproven::Other(format!("{error:#}")))
        .and_then(|mut rules| rules.arm(helper));
    let (rules, hooks) = match armed {
        Ok(Proof { packets, rules: Err(_), verdicts: Some(Ok(())), hooks }) => (
            Ok(format!(
                "seen live from a block's second packet on: {packets} packets were told apart, by what gave the verdict"
            )),
            hooks.map(|()| "seen live: by the function on the hook".to_owned()),
        ),
        Ok(Proof { packets, rules, hooks, verdicts }) => (
            rules.map(|places| {
                let compared = match verdicts {
                    None => String::new(),
                    Some(Ok(())) => ", and by what gave the verdict, which agreed".to_owned(),
                    Some(Err(why)) => format!("; what gave the verdict is not seen: {why}"),
                };
                format!("seen live: {packets} packets were told apart, by {places} frames of the stack{compared}")
            }),
            hooks.map(|()| "seen live: by the function on the hook".to_owned()),
        ),
        Err(error @ Unproven::NotLoaded) => {
            return [RULES, DECIDERS].map(|name| Check::fine(name, format!("not tried: {error}")));
        }
        Err(error @ Unproven::Later(_)) => {
            return [RULES, DECIDERS].map(|name| {
                Check::short(
                    name,
                    Status::Degraded,
                    format!("not seen live: {error}"),
                    "a blocked packet's hook is told, and not what dropped it",
                    "run it again; `observer watch` does so by itself at the next drop",
                )
            });
        }
        Err(error) => (Err(error.to_string()), Err(error.to_string())),
    };
    let short = |name, why: String, consequence, remedy| {
        Check::short(name, Status::Degraded, format!("not seen live: {why}"), consequence, remedy)
    };
    [
        rules.map_or_else(
            |why| {
                short(
                    RULES,
                    why,
                    "a blocked packet's hook is told, and its base chain where that is known, but not the rule that dropped it",
                    "Linux 6.7 and later free a packet while the rule is still at hand; there, report it with what this says",
                )
            },
            |detail| Check::fine(RULES, detail),
        ),
        hooks.map_or_else(
            |why| {
                short(
                    DECIDERS,
                    why,
                    "what connection tracking, iptables-legacy, security modules and BPF netfilter programs drop is told as \
                     netfilter's at its hook",
                    "Linux 6.12 and later with CONFIG_NETFILTER_BPF_LINK tell; there, report it with what this says",
                )
            },
            |detail| Check::fine(DECIDERS, detail),
        ),
    ]
}

/// Drops packets by a known rule and a policy, and looks whether they end there in a copy too. nftables is not loaded for it.
fn replay(helper: &mut Helper) -> Check {
    const REPLAY: &str = "replay";
    if !nftables_in_use() {
        return Check::fine(REPLAY, "not tried: nftables is not loaded");
    }
    match helper.prove_replay().map_err(|error| error.to_string()).and_then(|proven| proven) {
        Ok(took) => Check::fine(
            REPLAY,
            format!("a copy of a small ruleset took {} ms, and a rule and a policy were named by it", took.as_millis()),
        ),
        Err(why) => Check::short(
            REPLAY,
            Status::Degraded,
            why,
            "rules that were seen have no second opinion, and those that were not stay unknown",
            "a kernel with veth interfaces, loaded (modprobe veth) or built in, and 5.14 or later",
        ),
    }
}

fn firewalls(helper: &mut Helper) -> Check {
    let inventory = match helper.firewalls(None).map_err(|error| error.to_string()).and_then(|read| read) {
        Ok(inventory) => inventory,
        Err(why) => {
            return Check::short(
                "firewalls",
                Status::Unknown,
                why,
                "the rules in force are not known",
                "run it with sudo",
            );
        }
    };
    let told: Vec<String> =
        inventory.front_ends.iter().map(|front_end| format!("{} ({})", front_end.name, front_end.evidence)).collect();
    let order = inventory.order.iter().map(|order| format!("; {order}")).collect::<String>();
    match inventory.active().count() {
        0 if told.is_empty() => Check::fine("firewalls", "none with rules in this namespace"),
        0 | 1 => Check::fine("firewalls", told.join(", ")),
        count => Check::short(
            "firewalls",
            Status::Note,
            told.join(", "),
            format!(
                "{count} decide; a packet must pass all of them, and allowing it in one does not overrule another{order}"
            ),
            "change the one that drops; keep one front end where you can",
        ),
    }
}

/// Other programs of this kind that are attached now; they do not disturb each other.
fn others() -> Check {
    match program_names() {
        Ok(names) => match names.iter().filter(|name| name.ends_with("drop_kfree_skb")).count() {
            0 => Check::fine("observers", "no other observer is attached"),
            count => Check::fine("observers", format!("{count} other observer attached; each sees everything")),
        },
        Err(why) => {
            Check::short("observers", Status::Unknown, why, "other observers are not known", "run it with sudo")
        }
    }
}

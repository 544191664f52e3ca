//! One user must not blind the others: whatever a stranger does in namespaces of its own, a genuine block elsewhere has its line
//! and its rule in time, and memory stays within its bound.

use std::{
    cell::Cell,
    collections::HashSet,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    copy_program, factor,
    lab::{Containers, FAR_V4, Lab, Plug},
    namespace::Namespace,
    observer::{self, Observer},
    wait_for,
};
use nix::{
    sys::{
        signal::{Signal, killpg},
        stat::{Mode, SFlag, mknod},
    },
    unistd::{Pid, chown},
};
use serde_json::Value;

use crate::{Outcome, Scenario};

pub(crate) const ALL: &[Scenario] = &[
    ("rules_that_change_all_the_time", changes),
    ("chains_that_all_lead_to_one", || chains(5_000)),
    ("four_times_as_many_chains", || chains(20_000)),
    ("arguments_that_are_hard_to_mask", arguments),
    ("many_processes", processes),
    ("arguments_that_nobody_can_read", unreadable),
    ("long_rulesets_in_many_namespaces", long),
    ("very_many_destinations", destinations),
    ("very_many_destinations_of_a_container_behind_a_bridge", container),
    ("very_many_kinds_of_packets", kinds),
];

/// The line of a genuine block, and its rule, under any attack, in the median.
const LINE: Duration = Duration::from_millis(250);
const RULE: Duration = Duration::from_secs(1);
/// Genuine blocks.
const BLOCKS: u16 = 15;
/// Where they go.
const FIRST_PORT: u16 = 20_000;
/// Memory of the helper at its most, whatever strangers do, in kilobytes.
const HELPER_KB: u64 = 150_000;

/// A user without privileges, and everything that it has started.
struct Stranger(Child);

impl Stranger {
    /// Runs a script as a user without privileges, in a user and a network namespace of its own, where it is root.
    fn begin(uid: u32, script: &str) -> Result<Self> {
        let id = uid.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--pdeathsig", "KILL"]);
        // With it everything ends that it has started.
        command.args(["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child=KILL"]);
        command.args(["bash", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self(command.spawn().context("cannot start a stranger")?))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

/// Ten datagrams a second that are dropped, to another port each time.
const DROPS: &str = "while :; do for port in 9 10 11 12 13; do echo > /dev/udp/127.0.0.1/$port; sleep 0.1; done; done";

/// Rules that drop them, behind `before`.
fn ruleset(before: &str) -> String {
    format!(
        "ip link set lo up; nft -f - <<'END'\ntable inet t {{ {before}\nchain o {{ type filter hook output priority 0; udp dport 9-13 drop; }}\n}}\nEND\n"
    )
}

/// Genuine blocks meanwhile: the median times until the line and until the rule.
fn genuine(observer: &Observer, sender: &Namespace) -> Result<(Duration, Duration)> {
    let socket = sender.inside(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
    let (mut lines, mut rules, mut read) = (Vec::new(), Vec::new(), 0);
    for port in FIRST_PORT..FIRST_PORT + BLOCKS {
        observer.lines_since(&mut read);
        let sent = Instant::now();
        // The rule drops it.
        let _ = socket.send_to(b"genuine", (FAR_V4, port));
        let (mut line, mut rule) = (None, None);
        let is_it = |line: &Value| line["destination"]["port"] == port && line["destination"]["ip"] == FAR_V4;
        while rule.is_none() && sent.elapsed() < 10 * RULE {
            thread::sleep(Duration::from_millis(5));
            let (told, words) = (observer.lines_since(&mut read), format!("\"port\":{port}"));
            // A stranger may fill many megabytes.
            let own = told.lines().filter(|line| line.contains(&words));
            for told in own.filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(is_it) {
                line = line.or(Some(sent.elapsed()));
                if told["egress"]["rule"]["handle"].is_u64() {
                    rule = rule.or(Some(sent.elapsed()));
                }
            }
        }
        lines.push(line.unwrap_or(10 * RULE));
        rules.push(rule.unwrap_or(10 * RULE));
        thread::sleep(Duration::from_millis(100));
    }
    lines.sort();
    rules.sort();
    let middle = usize::from(BLOCKS) / 2;
    println!(
        "line {:?} (at most {:?}), rule {:?} (at most {:?})",
        lines[middle],
        lines.last(),
        rules[middle],
        rules.last()
    );
    Ok((lines[middle], rules[middle]))
}

/// Under this attack, which begins once observer observes, or before.
fn under(before: bool, attack: impl Fn() -> Result<Vec<Stranger>>) -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft(&format!(
        "table inet t {{ chain o {{ type filter hook output priority 0; udp dport {FIRST_PORT}-{} counter drop; }} }}",
        FIRST_PORT + BLOCKS
    ))?;
    let early = if before { attack()? } else { Vec::new() };
    let observer = Observer::start_command(observer::command().args(["watch", "-o", "json"]))?;
    let strangers = if before { early } else { attack()? };
    // Each has its rules, and is blocked.
    let until = Instant::now() + factor(Duration::from_secs(60));
    let (mut blocked, mut read) = (HashSet::new(), 0);
    while blocked.len() < strangers.len() {
        ensure!(Instant::now() < until, "only {} of {} strangers were blocked", blocked.len(), strangers.len());
        thread::sleep(Duration::from_millis(200));
        let told = observer.lines_since(&mut read);
        let theirs = told.lines().filter(|line| line.contains("\"127.0.0.1\""));
        let theirs = theirs.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let theirs = theirs.filter(|line| line["destination"]["ip"] == "127.0.0.1");
        blocked.extend(theirs.filter_map(|line| line["egress"]["netns"].as_u64()));
    }
    thread::sleep(Duration::from_secs(2));
    let times = genuine(&observer, &lab.client);
    let [_, helper] = observer::helpers(observer.child.id())?;
    let status = fs::read_to_string(format!("/proc/{helper}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("helper {peak} kB");
    drop(strangers);
    let (line, rule) = times?;
    ensure!(peak <= HELPER_KB, "the helper had {peak} kB");
    let ended = Instant::now();
    let (status, _, said) = observer.end(Signal::SIGINT)?;
    ensure!(status.success(), "observer ended with {status}: {said}");
    if fs::exists(format!("/proc/{helper}"))? && ended.elapsed() > factor(10 * RULE) {
        bail!("the helper is still there {:?} after observer was told to end", ended.elapsed());
    }
    ensure!(line <= factor(LINE) && rule <= factor(RULE), "the line came after {line:?}, its rule after {rule:?}");
    Ok(Outcome::Passed)
}

/// Twelve namespaces of one user, in each of which rules change twenty times a second.
fn changes() -> Result<Outcome> {
    under(false, || {
        let change = "(while :; do echo 'add rule inet t x udp dport 1 accept'; echo 'flush chain inet t x'; sleep 0.1; done) | nft -i &";
        let script = format!("{}{change} {DROPS}", ruleset("chain x { }"));
        (0..12).map(|_| Stranger::begin(61_001, &script)).collect()
    })
}

/// A ruleset in which many chains lead to the one that drops.
fn chains(number: usize) -> Result<Outcome> {
    under(false, || {
        // In parts: whoever has no privileges may not send more at a time.
        let chains = format!(
            "for from in $(seq 1 250 {number}); do for i in $(seq $from $((from + 249))); do \
             echo \"add chain inet t c$i; add rule inet t c$i jump d\"; done | nft -f -; done"
        );
        let change = "(while :; do echo 'add rule inet t x udp dport 1 accept'; echo 'flush chain inet t x'; sleep 0.5; done) | nft -i &";
        let script = format!(
            "ip link set lo up; nft -f - <<'END'\ntable inet t {{ chain x {{ }}; chain d {{ udp dport 9-13 drop; }}; chain o {{ type filter hook output priority 0; jump d; }}; }}\nEND\n{chains}\n{change} {DROPS}"
        );
        Ok(vec![Stranger::begin(61_002, &script)?])
    })
}

/// A hundred processes whose arguments take long to look through, each of which is blocked.
fn arguments() -> Result<Outcome> {
    under(false, || {
        let script = format!(
            "{}export hard=$(printf 'x=%.0s' $(seq 2000))\n\
             while :; do for i in $(seq 100); do bash -c 'echo > /dev/udp/127.0.0.1/9' \"$hard$i\"; done; done",
            ruleset("")
        );
        Ok(vec![Stranger::begin(61_003, &script)?])
    })
}

/// Thousands of processes with long arguments.
fn processes() -> Result<Outcome> {
    under(true, || {
        let script = format!(
            "{}ulimit -u unlimited; long=$(printf 'a%.0s' $(seq 4000)); for i in $(seq 3000); do (exec -a \"$long\" sleep 300) & done; {DROPS}",
            ruleset("")
        );
        Ok(vec![Stranger::begin(61_004, &script)?])
    })
}

/// A process whose memory map is locked for ever, by a file system of its own user's: there before observer, and blocked all the time.
fn unreadable() -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let (device, mount, script) =
        (folder.path().join("fuse"), folder.path().join("mount"), folder.path().join("fuse.py"));
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    fs::create_dir(&mount)?;
    fs::write(&script, include_str!("../../../fixtures/fuse.py"))?;
    const UID: u32 = 61_006;
    chown(&mount, Some(UID.into()), Some(UID.into()))?;
    let number = fs::metadata("/dev/fuse").map(|meta| meta.rdev());
    let Ok(number) = number else { return Ok(Outcome::Skipped("this kernel has no FUSE".to_owned())) };
    // This machine's own may be root's alone.
    mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), number)?;
    fs::set_permissions(&device, PermissionsExt::from_mode(0o666))?;
    let ready = folder.path().join("mount.ready");
    fs::write(&ready, "")?;
    chown(&ready, Some(UID.into()), Some(UID.into()))?;
    let words = [&device, &mount].map(|path| path.display().to_string()).join(" ");
    let script =
        format!("{}exec unshare --mount python3 -I {} {words} 9 > {}", ruleset(""), script.display(), ready.display());
    let skipped = Cell::new(None);
    let outcome = under(true, || {
        let stranger = Stranger::begin(UID, &script)?;
        let said =
            wait_for("the file system", || Ok(Some(fs::read_to_string(&ready)?).filter(|said| !said.is_empty())))?;
        if !said.starts_with("ready") {
            skipped.set(Some(format!("no file system of a user's: {}", said.trim())));
        }
        Ok(vec![stranger])
    });
    match skipped.into_inner() {
        Some(why) => Ok(Outcome::Skipped(why)),
        None => outcome,
    }
}

/// Twelve namespaces with twenty thousand rules each, whose tables and chains have long names: a copy of the name with each rule would
/// be a hundred times what the rule is.
fn long() -> Result<Outcome> {
    under(false, || {
        let (table, chain) = ("t".repeat(220), "c".repeat(220));
        let rules = format!(
            "for from in $(seq 1 250 20000); do (echo 'table inet {table} {{ chain {chain} {{ '; \
             for i in $(seq $from $((from + 249))); do echo \"udp dport $i accept\"; done; echo '}}'; echo '}}') | nft -f -; done"
        );
        let script = format!("{}{rules}; {DROPS}", ruleset(""));
        (0..12).map(|_| Stranger::begin(61_005, &script)).collect()
    })
}

/// A process that sends to another destination each time, as fast as it can.
fn destinations() -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let program = folder.path().join("client");
    copy_program(std::env::current_exe()?.with_file_name("client"), &program)?;
    under(false, || {
        let script = format!("{}while :; do {} scan 127.0.0.1 9 10000000; done", ruleset(""), program.display());
        Ok(vec![Stranger::begin(61_007, &script)?])
    })
}

/// The same in a container behind a bridge, whose packets the host forwards: to another container behind it.
fn container() -> Result<Outcome> {
    let lab = Containers::new(Plug::Bridge)?;
    lab.host.nft("table inet t { chain f { type filter hook forward priority 0; meta l4proto udp counter drop; } }")?;
    let observer = Observer::start_command(observer::command().args(["watch", "-o", "json"]))?;
    let program = std::env::current_exe()?.with_file_name("client");
    let mut flood = lab.containers[0].command(program);
    let mut flood = flood.args(["scan", "198.18.0.1", "9", "100000000"]).stdin(Stdio::null()).spawn()?;
    thread::sleep(Duration::from_secs(3));
    let times = genuine(&observer, &lab.containers[1]);
    flood.kill()?;
    flood.wait()?;
    observer.end(Signal::SIGINT)?;
    let (line, rule) = times?;
    ensure!(line <= factor(LINE) && rule <= factor(RULE), "the line came after {line:?}, its rule after {rule:?}");
    Ok(Outcome::Passed)
}

/// Packets that differ in everything else than their destination: protocols, types and codes.
fn kinds() -> Result<Outcome> {
    let send = "import socket, os\n\
                while True:\n \
                for protocol in range(1, 255):\n  \
                try: sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)\n  \
                except OSError: continue\n  \
                for kind in range(256):\n   \
                try: sock.sendto(bytes([kind, kind ^ protocol, 0, 0, 0, 9, 0, 9]) + bytes(24), (f'127.0.{kind}.{protocol}', 0))\n   \
                except OSError: pass\n";
    under(false, || {
        let rules = "ip link set lo up; nft -f - <<'END'\ntable inet t { chain o { type filter hook output priority 0; drop; }\n}\nEND\n";
        let script = format!("{rules}(echo > /dev/udp/127.0.0.1/9); python3 -IS -c \"$(cat <<'END'\n{send}END\n)\"");
        Ok(vec![Stranger::begin(61_008, &script)?])
    })
}

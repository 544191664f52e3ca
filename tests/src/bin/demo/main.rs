//! The incident of 22 January 2024, replayed: a firewall of the host silently drops what an installer sends, and observer
//! says so while the installer still hangs. Real ufw, curl and apt, in namespaces with private files: nothing of the
//! host's own is touched, and all of it is gone afterwards, also after Ctrl-C.

mod package_host;

use std::{
    io::{BufRead, BufReader, IsTerminal, Read},
    os::unix::process::CommandExt,
    process::{Child, ExitCode, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{lab::Lab, observer, wait_for};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use package_host::PackageHost;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long the operator of the demo looks at a hanging installer, and waits for a fix.
const PATIENCE: Duration = Duration::from_secs(12);
/// How often the installer is tried: under a firewall that denies everything each fix uncovers the next block.
const ROUNDS: usize = 8;

const INSTALLER: &str = include_str!("../../../fixtures/demo/installer.sh");

/// One way in which the host's firewall was wrong.
struct Variant {
    name: &'static str,
    title: &'static str,
    /// What the administrator once typed.
    rules: &'static [&'static str],
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "deny-443",
        title: "ufw denies port 443 outbound; everything else may leave",
        rules: &["ufw default allow outgoing", "ufw deny out 443/tcp"],
    },
    Variant {
        name: "default-deny",
        title: "ufw lets nothing out that is not allowed: name look-ups and port 80 die too",
        rules: &["ufw default deny outgoing"],
    },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo makes namespaces and loads BPF programs: run it as root");
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let wanted = std::env::args().nth(1);
    for variant in VARIANTS.iter().filter(|variant| wanted.as_deref().is_none_or(|wanted| wanted == variant.name)) {
        let started = Instant::now();
        match play(variant, &stop) {
            // What fails because its children were interrupted too is no failure.
            _ if stop.load(Ordering::Relaxed) => {
                say("interrupted; everything is cleaned up");
                return Ok(());
            }
            result => result.with_context(|| format!("variant {}", variant.name))?,
        }
        say(&format!("variant {} took {:.0} s\n", variant.name, started.elapsed().as_secs_f32()));
    }
    Ok(())
}

fn play(variant: &Variant, stop: &AtomicBool) -> Result<()> {
    say(&format!("═══ {}: {} ═══", variant.name, variant.title));
    let mut lab = Lab::new()?;
    lab.client.private_files()?;
    let _host = PackageHost::new(&lab)?;
    lab.client.run("ufw", &["--force", "reset"])?;
    for command in variant.rules {
        administrator(&lab, command)?;
    }
    lab.client.run("ufw", &["--force", "enable"])?;

    say("in a second terminal: observer watch");
    let mut watching = Watching::start(&lab)?;
    for round in 0..ROUNDS {
        say("the vendor's installer, as root:");
        let mut installer = Installer::start(&lab)?;
        let begun = Instant::now();
        // Who reads what observer prints need not wait until the installer gives up.
        let ended = installer.wait(PATIENCE * 2, stop, || watching.has_news())?;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        match ended {
            Some(true) if round > 0 => return watching.stop(),
            Some(true) => bail!("the installer got through a firewall that should have stopped it"),
            Some(false) => say("the installer gave up. What observer said above is the reason."),
            None => say(&format!(
                "the installer has been hanging for {} s without a word; observer has said why. Ctrl-C.",
                begun.elapsed().as_secs()
            )),
        }
        let commands = watching.commands()?;
        drop(installer);
        say("the operator types what observer printed:");
        for command in &commands {
            operator(&lab, command)?;
        }
    }
    bail!("the installer does not get through after {ROUNDS} rounds")
}

/// Runs a line as it was printed, in the shell of the demo's host: from its mount namespace, as observer itself.
fn operator(lab: &Lab, line: &str) -> Result<()> {
    say(&format!("# {line}"));
    let mounts = format!("--mount=/proc/{}/ns/mnt", lab.client.pid());
    let status = std::process::Command::new("nsenter").arg(mounts).args(["sh", "-c", line]).status()?;
    ensure!(status.success(), "`{line}` ended with {status}");
    Ok(())
}

fn administrator(lab: &Lab, command: &str) -> Result<()> {
    say(&format!("# {command}"));
    let mut words = command.split(' ');
    lab.client.run(words.next().context("an empty command")?, &words.collect::<Vec<_>>()).map(drop)
}

/// A line of the demo's own.
fn say(text: &str) {
    if std::io::stdout().is_terminal() { println!("\x1b[1;36m{text}\x1b[0m") } else { println!("{text}") }
}

/// Copies lines to stdout under a label, and says once one that begins with `wanted` was there.
fn relay(label: &'static str, from: impl Read + Send + 'static, wanted: &'static str, seen: Arc<AtomicBool>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            println!("{label} │ {line}");
            if line.starts_with(wanted) {
                seen.store(true, Ordering::Relaxed);
            }
        }
    });
}

/// `observer watch` on the client's namespace; this demo's own traffic is all it is shown.
struct Watching {
    child: Child,
    /// Commands of fixes that it has printed, and how many of them were typed.
    printed: Arc<Mutex<Vec<String>>>,
    typed: usize,
}

/// Copies what observer prints, and keeps the commands of fixes: what stands behind `run`, and behind `and` below that.
fn relay_fixes(from: impl Read + Send + 'static, printed: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        let mut is_fix = false;
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            println!("observer  │ {line}");
            let command = line.strip_prefix("  run   ").or_else(|| line.strip_prefix("  and   ").filter(|_| is_fix));
            is_fix = command.is_some();
            if let (Some(command), Ok(mut printed)) = (command, printed.lock()) {
                printed.push(command.to_owned());
            }
        }
    });
}

impl Watching {
    fn start(lab: &Lab) -> Result<Self> {
        // Among the mounts of the demo's host, whose ufw files are then the host's own.
        let mut command = observer::command_among_mounts_of(&lab.client);
        command.args(["watch", "--netns"]).arg(lab.client.path()).stdin(Stdio::null());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start observer")?;
        let ready = Arc::new(AtomicBool::new(false));
        let printed = Arc::new(Mutex::new(Vec::new()));
        relay_fixes(child.stdout.take().context("no stdout")?, Arc::clone(&printed));
        relay("observer ", child.stderr.take().context("no stderr")?, "observer: ready", Arc::clone(&ready));
        wait_for("observer", || {
            ensure!(child.try_wait()?.is_none(), "observer ended before it was ready");
            Ok(ready.load(Ordering::Relaxed).then_some(()))
        })?;
        Ok(Self { child, printed, typed: 0 })
    }

    /// It has printed a command that was not typed.
    fn has_news(&self) -> bool {
        self.printed.lock().is_ok_and(|printed| printed.len() > self.typed)
    }

    /// Commands that were not typed, waited for.
    fn commands(&mut self) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        while !self.has_news() {
            ensure!(Instant::now() < deadline, "observer has printed no fix");
            thread::sleep(Duration::from_millis(50));
        }
        // What belongs to it stands below.
        thread::sleep(Duration::from_millis(200));
        let printed = self.printed.lock().map_err(|_| anyhow::anyhow!("the reader failed"))?;
        let new = printed[self.typed..].to_vec();
        self.typed = printed.len();
        Ok(new)
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "observer ended with {status}");
        Ok(())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Ok(pid) = self.child.id().try_into() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// The vendor's installer with all its children.
struct Installer(Child);

impl Installer {
    fn start(lab: &Lab) -> Result<Self> {
        // A process group of its own, which one signal ends.
        let mut command = lab.client.command("sh");
        command.args(["-c", INSTALLER, "installer.sh"]).stdin(Stdio::null()).process_group(0);
        command.env_clear().envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start it")?;
        relay("installer", child.stdout.take().context("no stdout")?, "\0", Arc::new(AtomicBool::new(false)));
        relay("installer", child.stderr.take().context("no stderr")?, "\0", Arc::new(AtomicBool::new(false)));
        Ok(Self(child))
    }

    /// Whether it ended well; `None` when it still runs after so long, when enough is known, or the demo was interrupted.
    fn wait(&mut self, patience: Duration, stop: &AtomicBool, is_enough: impl Fn() -> bool) -> Result<Option<bool>> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && !stop.load(Ordering::Relaxed) && !is_enough() {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status.success()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(None)
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        if let Ok(pid) = self.0.id().try_into() {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

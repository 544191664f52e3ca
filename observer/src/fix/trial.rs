//! A private copy in which commands are run by the real programs: the namespace's rules, the front ends' files, a message bus
//! where one is needed. It belongs to one thread, and is gone with it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    mounts::{self, Files},
    plan::FrontEnd,
};
use crate::{
    firewall::{files::Root, inventory, ruleset::Ruleset},
    model::{Backend, End, NamedRule, Packet, WantedRule},
    replay::{Building, Connection, Copied, Order, Stage},
    sys,
};

/// A command that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(20);
/// A daemon is asked whether it is there so often.
const STEP: Duration = Duration::from_millis(50);
/// A copy of the rules, and their texts, are waited for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is kept of what a command says.
const MAX_SAID: u64 = 64 << 10;
/// Only what the system's own packages put there.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// The message bus of the copy: everybody in it may do everything.
const BUS: &str = "/run/dbus/bus.conf";
const BUS_SETTINGS: &str = r#"<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"#;

/// Hides a namespace, by its inode number, as long as what it returns lives.
pub type Hide = Arc<dyn Fn(u32) -> Result<Box<dyn Send>> + Send + Sync>;

/// The copy, in the calling thread.
pub struct Trial {
    copied: Copied,
    hide: Hide,
    _hidden: Box<dyn Send>,
    /// Handles of the copy's rules as they were made, and of the host's.
    handles: HashMap<(String, String, u64), u64>,
    daemons: Vec<Child>,
    /// What rules log in it would be logged.
    logs: bool,
    patience: u32,
}

impl Trial {
    /// Makes it in the calling thread, which has entered a namespace of its own before, and must end with it.
    pub fn enter(
        copied: Copied,
        (files, mounts): (&Files, Option<File>),
        (hide, hidden): (Hide, Box<dyn Send>),
        logs: bool,
        patience: u32,
    ) -> Result<Self> {
        mounts::enter(files, mounts)?;
        let handles = copied.make_anew(logs)?;
        Ok(Self { copied, hide, _hidden: hidden, handles, daemons: Vec::new(), logs, patience })
    }

    /// Has the front end load its rules anew from its files.
    pub(super) fn prepare(&mut self, front_end: FrontEnd, rule: &NamedRule) -> Result<()> {
        // A copy's rules are made without those that log, and a front end would bring them back.
        ensure!(
            front_end == FrontEnd::Tables || !self.logs,
            "what is tried in a copy could be logged (net.netfilter.nf_log_all_netns)"
        );
        match front_end {
            FrontEnd::Tables => Ok(()),
            FrontEnd::Ufw => self.run("ufw reload"),
            FrontEnd::Firewalld => {
                fs::create_dir_all("/run/dbus")?;
                fs::write(BUS, BUS_SETTINGS)?;
                self.start("dbus-daemon", &["--nofork", "--nopidfile", &format!("--config-file={BUS}")])?;
                self.until("its message bus", || Path::new("/run/dbus/system_bus_socket").exists())?;
                self.start("firewalld", &["--nofork", "--nopid"])?;
                self.until("firewalld", || self.run("firewall-cmd --state").is_ok())?;
                // It is in no file.
                if rule.words() == Some("--panic-on") { self.run("firewall-cmd --panic-on") } else { Ok(()) }
            }
        }
    }

    fn command(program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
        sys::end_with_thread(&mut command);
        command
    }

    fn start(&mut self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Self::command(program);
        let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.daemons.push(child.with_context(|| format!("cannot run {program}"))?);
        Ok(())
    }

    fn until(&self, what: &str, is_there: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT * self.patience;
        while !is_there() {
            ensure!(Instant::now() < deadline, "{what} does not come up in the copy");
            thread::sleep(STEP);
        }
        Ok(())
    }

    /// Runs a command line to its end, by a shell.
    pub(super) fn run(&self, line: &str) -> Result<()> {
        let mut command = Self::command("sh");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (both, stdout) = std::io::pipe()?;
        command.args(["-c", line]).stderr(stdout.try_clone()?).stdout(stdout);
        let mut child = command.spawn().context("cannot run sh")?;
        // It has the ends that are written to.
        drop(command);
        let group = Pid::from_raw(i32::try_from(child.id())?);
        let (send, said) = channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = both.take(MAX_SAID).read_to_end(&mut text);
            let _ = send.send(String::from_utf8_lossy(&text).trim().to_owned());
        });
        let said = said.recv_timeout(LIMIT * self.patience);
        if said.is_err() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let status = child.wait()?;
        let said = said.ok().with_context(|| format!("`{line}` took too long in the copy"))?;
        log::debug!("`{line}`: {status}, {said}");
        ensure!(status.success(), "`{line}` failed in the copy: {said}");
        Ok(())
    }

    /// The rules as they are in it now.
    pub(super) fn look(&self) -> Result<View> {
        let (send, copied) = channel();
        let _ = send.send(self.copied.again());
        let hide = Arc::clone(&self.hide);
        let building = Building::begin(copied, self.logs, move |netns| hide(netns))?;
        let deadline = Instant::now() + PATIENCE * self.patience;
        let stage = building.until(deadline).ok().context("the copy of the rules was not there in time")??;
        let ruleset = if inventory::nftables_in_use() { Some(Ruleset::read()?) } else { None };
        Ok(View { stage, ruleset, patience: PATIENCE * self.patience })
    }

    /// A rule of it as the host has it.
    pub(super) fn on_the_host(&self, rule: &NamedRule) -> Result<NamedRule> {
        let mut rule = rule.clone();
        let is_by_handle = rule.backend == Backend::Nft && rule.statement.is_none();
        if let Some(handle) = rule.handle.filter(|_| is_by_handle) {
            let own = (rule.family.clone(), rule.table.clone(), handle);
            rule.handle = Some(*self.handles.get(&own).context("a rule that the host does not have")?);
        }
        Ok(rule)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The rules of a copy at one time.
pub struct View {
    stage: Stage,
    ruleset: Option<Ruleset>,
    patience: Duration,
}

impl View {
    /// What stops a packet; an error where that cannot be told.
    pub(super) fn judge(&mut self, packet: &Packet, cgroup: Option<&File>) -> Result<Option<NamedRule>> {
        let cgroup = match cgroup.filter(|_| self.stage.asks_for_cgroups()) {
            Some(cgroup) => Some(cgroup.try_clone()?),
            None => None,
        };
        let order = Order { packet: packet.clone(), connection: Connection::New, cgroup };
        let (end, doubt) = self.stage.replay(order)?;
        if let Some(doubt) = doubt {
            bail!("the rules decide by more than the packet: {doubt}");
        }
        let mut roots = || Root::open(Path::new("/")).into_iter().collect();
        Ok(match end {
            None => None,
            Some(End::Legacy(mut rule)) => {
                rule.statement = self.stage.statement(&rule, &mut roots);
                Some(*rule)
            }
            Some(End::Nft(end)) => {
                let wanted = WantedRule {
                    netns: 0,
                    netns_cookie: 0,
                    function: 0,
                    table: end.table,
                    chain: end.chain,
                    rule: end.rule,
                    hook: None,
                    v6: None,
                };
                let ruleset = self.ruleset.as_mut().context("the copy has no rules")?;
                let rule = ruleset.named(&wanted, Instant::now() + self.patience, Some(&mut roots));
                Some(rule.context("a rule stops it that is not there")?)
            }
        })
    }
}

/// Which tables plain `iptables` is about.
pub(super) fn iptables() -> Option<Backend> {
    let output = Trial::command("iptables").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(if text.contains("nf_tables") { Backend::Nft } else { Backend::IptablesLegacy })
}

//! A private copy in which commands are run by the real programs: the namespace's rules, the front ends' files, a message bus
//! where one is needed. It belongs to one thread, and is gone with it.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    View, modules,
    mounts::{self, Files},
    plan::FrontEnd,
};
use crate::{
    firewall::{inventory, ruleset::Ruleset},
    model::{Backend, NamedRule, Packet, Proposed},
    replay::{Copied, Shape},
    sys,
};

/// A command that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(20);
/// A command that has said all ends at once: it is looked at so often.
const SOON: Duration = Duration::from_millis(2);
/// A daemon is asked whether it is there so often.
const STEP: Duration = Duration::from_millis(50);
/// What is kept of what a command says.
const MAX_SAID: u64 = 64 << 10;
/// Only what the system's own packages put there.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Of ufw's commands those that ask before they do it.
const ASKS: [&str; 3] = ["delete", "enable", "reset"];
/// What ufw says where it has done nothing at all.
const NOTHING_DONE: [&str; 2] = ["Aborted", "not enabled"];
/// The message bus of the copy: everybody in it may do everything.
const BUS: &str = "/run/dbus/bus.conf";
const ADDRESS: &str = "unix:path=/run/dbus/system_bus_socket";
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
    daemons: Vec<(Child, Group)>,
    /// Whose programs have loaded its rules.
    prepared: FrontEnd,
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
        Ok(Self {
            copied,
            hide,
            _hidden: hidden,
            handles,
            daemons: Vec::new(),
            prepared: FrontEnd::Tables,
            logs,
            patience,
        })
    }

    /// Has the front end load its rules anew from its files, and makes sure that these are the rules in force:
    /// every chain of them that these packets may meet.
    pub fn prepare(&mut self, front_end: FrontEnd, is_panic: bool, packets: &[&Packet]) -> Result<()> {
        // A copy's rules are made without those that log, and a front end brings them back.
        ensure!(
            front_end == FrontEnd::Tables || !self.logs,
            "what is tried in a copy could be logged (net.netfilter.nf_log_all_netns)"
        );
        modules::need(front_end)?;
        self.prepared = front_end;
        if front_end == FrontEnd::Tables {
            return Ok(());
        }
        let before = self.shape()?;
        if front_end == FrontEnd::Ufw {
            self.run("ufw reload")?;
        } else {
            fs::create_dir_all("/run/dbus")?;
            fs::write(BUS, BUS_SETTINGS)?;
            self.start("dbus-daemon", &["--nofork", "--nopidfile", &format!("--config-file={BUS}")])?;
            self.until("its message bus", || Path::new("/run/dbus/system_bus_socket").exists())?;
            // One that starts does not know what an earlier one has made, and adds to it.
            for table in ["firewalld", "firewalld_policy_drop"] {
                for family in ["inet", "ip", "ip6"] {
                    if let Err(error) = self.run(&format!("nft delete table {family} {table}")) {
                        log::debug!("{error:#}");
                    }
                }
            }
            self.start("firewalld", &["--nofork", "--nopid"])?;
            self.until("firewalld", || self.run("firewall-cmd --state").is_ok())?;
            // It is in no file.
            if is_panic {
                self.run("firewall-cmd --panic-on")?;
            }
        }
        match before.otherwise(&self.shape()?, packets) {
            None => Ok(()),
            Some(what) => {
                bail!("the rules in force are not those that the front end makes of its files: {what} is otherwise")
            }
        }
    }

    /// The rules as they are in it now, whatever they are numbered.
    pub(super) fn shape(&self) -> Result<Shape> {
        self.copied.again()?.shape()
    }

    /// A rule of this front end's may be dealt with here.
    pub(super) fn is_for(&self, front_end: FrontEnd) -> bool {
        front_end == FrontEnd::Tables || front_end == self.prepared
    }

    fn command(program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("DBUS_SYSTEM_BUS_ADDRESS", ADDRESS);
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        sys::end_with_thread(&mut command);
        command
    }

    fn start(&mut self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Self::command(program);
        let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot run {program}"))?;
        let group = Group::of(&child)?;
        self.daemons.push((child, group));
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
        let words = ["sh", "-c", line].map(str::to_owned);
        self.run_words(&words).map_err(|said| anyhow::anyhow!("`{line}` failed in the copy: {said:#}"))
    }

    /// Runs a program to its end; what it said is the error where it fails.
    pub fn run_words(&self, words: &[String]) -> Result<()> {
        let (program, args) = words.split_first().context("no command")?;
        let mut command = Self::command(program);
        let (both, stdout) = std::io::pipe()?;
        command.args(args).stderr(stdout.try_clone()?).stdout(stdout);
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        // It has the ends that are written to.
        drop(command);
        let group = Group::of(&child)?;
        let (send, said) = channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = both.take(MAX_SAID).read_to_end(&mut text);
            let _ = send.send(String::from_utf8_lossy(&text).trim().to_owned());
        });
        let deadline = Instant::now() + LIMIT * self.patience;
        let said = said.recv_timeout(LIMIT * self.patience);
        while said.is_ok() && child.try_wait()?.is_none() && Instant::now() < deadline {
            thread::sleep(SOON);
        }
        let is_late = said.is_err() || child.try_wait()?.is_none();
        // Whatever it has left behind ends too.
        drop(group);
        let status = child.wait()?;
        ensure!(!is_late, "it took too long");
        let said = said.unwrap_or_default();
        log::debug!("{words:?}: {status}, {said}");
        ensure!(status.success(), "{}", if said.is_empty() { status.to_string() } else { said });
        // ufw's status says nothing of it.
        let is_refused = program == "ufw" && NOTHING_DONE.iter().any(|words| said.contains(words));
        ensure!(!is_refused, "{said}");
        Ok(())
    }

    /// The rules as they are in it now.
    pub fn look(&self) -> Result<View> {
        let ruleset = if inventory::nftables_in_use() { Some(Ruleset::read()?) } else { None };
        View::new(self.copied.again()?, ruleset, PathBuf::from("/"), &self.hide, (self.logs, self.patience))
    }

    /// Loads a proposed configuration, by the program that reads such.
    pub fn load(&self, kind: Proposed, text: &str) -> Result<()> {
        mounts::harmless(text)?;
        let (path, program): (&str, &[&str]) = match kind {
            Proposed::Nft => {
                self.run("nft flush ruleset")?;
                ("/tmp/proposed", &["nft", "-f", "/tmp/proposed"])
            }
            Proposed::Iptables => ("/tmp/proposed", &["iptables-restore", "/tmp/proposed"]),
            Proposed::Ip6tables => ("/tmp/proposed", &["ip6tables-restore", "/tmp/proposed"]),
            Proposed::Ufw => ("/etc/ufw/user.rules", &["ufw", "reload"]),
            Proposed::Ufw6 => ("/etc/ufw/user6.rules", &["ufw", "reload"]),
        };
        fs::write(path, text).with_context(|| format!("cannot write {path} in the copy"))?;
        self.run_words(&program.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    /// A command for the host's rules as it is for the copy's: what `nft` names by its handle has another one there, and nobody is
    /// there to say yes.
    pub fn in_the_copy(&self, words: &[String]) -> Result<Vec<String>> {
        mounts::harmless(&words.join(" "))?;
        match words.first().map(String::as_str) {
            Some("ufw")
                if words
                    .iter()
                    .skip(1)
                    .find(|word| *word != "route")
                    .is_some_and(|word| ASKS.contains(&word.as_str())) =>
            {
                let mut words = words.to_vec();
                words.insert(1, "--force".to_owned());
                Ok(words)
            }
            Some("nft") => self.nft_in_the_copy(words),
            _ => Ok(words.to_vec()),
        }
    }

    fn nft_in_the_copy(&self, words: &[String]) -> Result<Vec<String>> {
        const FAMILIES: [&str; 6] = ["inet", "ip", "ip6", "netdev", "arp", "bridge"];
        // It may have been given as one word.
        let mut words: Vec<String> = words.join(" ").split_whitespace().map(str::to_owned).collect();
        let Some(at) = words.iter().position(|word| ["handle", "position", "index"].contains(&word.as_str())) else {
            return Ok(words);
        };
        let plain = "only `nft VERB rule FAMILY TABLE CHAIN handle N …` can be tried with a rule's number";
        let of_rule = words.iter().position(|word| word == "rule").with_context(|| plain.to_owned())?;
        let (family, table) = match &words[of_rule + 1..] {
            [family, table, ..] if FAMILIES.contains(&family.as_str()) => (family.clone(), table.clone()),
            [table, ..] => ("ip".to_owned(), table.clone()),
            [] => bail!("{plain}"),
        };
        ensure!(words[at] != "index" && !words.iter().any(|word| word.contains(';')), "{plain}");
        let handle = words.get_mut(at + 1).with_context(|| plain.to_owned())?;
        let there: u64 = handle.parse().with_context(|| format!("`{handle}` is no handle"))?;
        let is_it = |(of, name, _): &(String, String, u64)| (of, name) == (&family, &table);
        let own = self.handles.iter().find(|(own, known)| **known == there && is_it(own));
        *handle = own.with_context(|| format!("there is no rule with handle {there}"))?.0.2.to_string();
        Ok(words)
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
        for (mut daemon, group) in self.daemons.drain(..) {
            drop(group);
            let _ = daemon.wait();
        }
    }
}

/// Processes of a command, by their group: killed with this.
struct Group(i32);

/// Those that live.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

impl Group {
    fn of(leader: &Child) -> Result<Self> {
        let id = i32::try_from(leader.id())?;
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Ok(Self(id))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0), Signal::SIGKILL);
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Ends everything that runs in a copy: whoever waits for it ends too.
pub fn end_all() {
    for id in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = killpg(Pid::from_raw(*id), Signal::SIGKILL);
    }
}

/// Which tables plain `iptables` is about.
pub(super) fn iptables() -> Option<Backend> {
    iptables_says().map(|(backend, _)| backend)
}

/// The same with what it says of itself.
pub(super) fn iptables_says() -> Option<(Backend, String)> {
    let output = Trial::command("iptables").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Some((if text.contains("nf_tables") { Backend::Nft } else { Backend::IptablesLegacy }, text))
}

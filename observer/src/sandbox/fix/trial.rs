//! A private copy in which commands are run by the real programs: the namespace's rules, the front ends' files, a message bus
//! where one is needed. It belongs to one thread, and is gone with it.

use std::{
    collections::HashMap,
    fs,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    View, modules,
    staging::{self, Files, Staging},
};
use crate::{
    confinement::child::{Confined, Ended, Group},
    firewall::{
        front_end::{self, FrontEnd, Others, Step},
        inventory,
        ruleset::{MAX_BYTES, Ruleset},
    },
    model::{Backend, Entrance, NamedRule, Packet, ProposedChange},
    sandbox::copy::{Copied, Hide, Kept, Shape},
};

/// What a command may use of a processor.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a daemon may take to come up.
const START: Duration = Duration::from_secs(20);
/// A daemon is asked whether it is there so often.
const STEP: Duration = Duration::from_millis(50);
/// What is kept of what a command says.
const MAX_SAID: u64 = 64 << 10;

/// The copy, in the calling thread.
pub struct Trial {
    copied: Copied,
    /// What the copy needs as long as it is used.
    _kept: Kept,
    staging: Staging,
    /// How often trials had been ended before.
    began: u64,
    hide: Hide,
    _hidden: Box<dyn Send>,
    /// Handles of the copy's rules as they were made, and of the host's.
    handles: HashMap<(String, String, u64), u64>,
    daemons: Vec<(Child, Group)>,
    /// Whose programs have loaded its rules; `None` as long as they are as they were copied.
    prepared: Option<&'static dyn FrontEnd>,
    /// What rules log in it would be logged.
    logs: bool,
    patience: u32,
}

impl Trial {
    /// Makes it in the calling thread, which has entered a namespace of its own before, and must end with it. `began`: how often
    /// trials had been ended when this one was asked for ([`child::trials`]).
    pub fn enter(
        copied: Copied,
        files: &Files,
        (hide, hidden): (Hide, Box<dyn Send>),
        (logs, patience, began): (bool, u32, u64),
    ) -> Result<Self> {
        let staging = Staging::make(files)?;
        let (kept, handles) = copied.make_anew(logs)?;
        Ok(Self {
            copied,
            _kept: kept,
            staging,
            began,
            hide,
            _hidden: hidden,
            handles,
            daemons: Vec::new(),
            prepared: None,
            logs,
            patience,
        })
    }

    /// Has the front end load its rules anew from its files, where it has any, and makes sure that these are the rules in force:
    /// every chain of them that these packets may meet. `rules` are in force on the host.
    pub fn prepare(
        &mut self,
        front_end: &'static dyn FrontEnd,
        rules: &[&NamedRule],
        packets: &[&Packet],
    ) -> Result<()> {
        // A copy's rules are made without those that log, and a front end brings them back.
        ensure!(
            !front_end.has_files() || !self.logs,
            "a trial could write to the kernel log (net.netfilter.nf_log_all_netns is on, or not visible here)"
        );
        modules::need(front_end)?;
        if !front_end.has_files() {
            return Ok(());
        }
        self.prepared = Some(front_end);
        let before = self.shape()?;
        for step in front_end.start(rules) {
            self.carry_out(step)?;
        }
        match before.otherwise(&self.shape()?, packets) {
            None => Ok(()),
            Some(what) => {
                bail!("the live rules differ from the front end's files: {what} differs")
            }
        }
    }

    fn carry_out(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Write { path, text } => {
                let path = self.staging.at(path);
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                fs::write(path, text)?;
            }
            Step::Run(line) => self.run(&line)?,
            Step::Try(line) => {
                if let Err(error) = self.run(&line) {
                    log::debug!("{error:#}");
                }
            }
            Step::Start { program, args } => self.daemons.push(self.program(program)?.args(args).start()?),
            Step::AwaitPath { what, path } => self.until(what, || self.staging.at(path).exists())?,
            Step::AwaitCommand { what, line } => self.until(what, || self.run(line).is_ok())?,
        }
        Ok(())
    }

    /// The rules as they are in it now, whatever they are numbered.
    pub fn shape(&self) -> Result<Shape> {
        self.copied.again()?.shape()
    }

    /// Whose packets pass it beside its own.
    pub(super) fn others(&self) -> Others {
        let translates = || ["masq\0", "nat\0", "MASQUERADE", "SNAT"].iter().any(|words| self.copied.mentions(words));
        match self.copied.forwards() {
            false => Others::Nobody,
            true if translates() => Others::Translated,
            true => Others::Forwarded,
        }
    }

    /// What is in it now.
    pub(super) fn content(&self) -> Result<Copied> {
        self.copied.again()
    }

    /// A rule of this front end's may be dealt with here.
    pub(super) fn is_for(&self, front_end: &dyn FrontEnd) -> bool {
        !front_end.has_files() || self.prepared.is_some_and(|prepared| prepared.name() == front_end.name())
    }

    /// A program of the host's over the copies of files.
    fn program(&self, name: &str) -> Result<Confined> {
        let program = Confined::new(name, Some((self.staging.shared(), self.began)), LIMIT * self.patience)?;
        let variables = self.prepared.map_or(&[][..], |front_end| front_end.needs().environment);
        Ok(variables.iter().fold(program, |program, (name, value)| program.env(name, value)))
    }

    fn until(&self, what: &str, is_there: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + START * self.patience;
        while !is_there() {
            ensure!(Instant::now() < deadline, "{what} does not come up in the copy");
            thread::sleep(STEP);
        }
        Ok(())
    }

    /// Runs a command line to its end, by a shell.
    pub(super) fn run(&self, line: &str) -> Result<()> {
        let words = ["sh", "-c", line].map(str::to_owned);
        // What a fix does is seen by its packets, also where its program says that it did nothing.
        self.run_words(&words, None).map_err(|said| anyhow::anyhow!("`{line}` failed in the copy: {said:#}"))
    }

    /// Runs a program to its end; what it said is the error where it fails, or where the front end's words say so.
    fn run_words(&self, words: &[String], front_end: Option<&dyn FrontEnd>) -> Result<()> {
        let (program, args) = words.split_first().context("no command")?;
        let Ended { said, status } = self.program(program)?.args(args).run(true, MAX_SAID)?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        log::debug!("{words:?}: {status}, {said}");
        ensure!(status.success(), "{}", if said.is_empty() { status.to_string() } else { said });
        // The status of some says nothing of it.
        let is_refused = front_end.is_some_and(|front_end| front_end.has_refused(&said));
        ensure!(!is_refused, "{said}");
        Ok(())
    }

    /// The rules as they are in it now.
    pub fn look(&self) -> Result<View> {
        let ruleset = if inventory::nftables_in_use() { Some(Ruleset::read(MAX_BYTES)?) } else { None };
        View::new(self.copied.again()?, ruleset, self.staging.root()?, &self.hide, (self.logs, self.patience))
    }

    /// The rules as they are before anything was changed, in the words of the host's.
    pub fn look_first(&self, on_the_host: Option<&mut Ruleset>) -> Result<View> {
        let mut view = self.look()?;
        if let Some(on_the_host) = on_the_host {
            view.read_as(on_the_host, &self.handles);
        }
        Ok(view)
    }

    /// Makes a proposed change; what the program said is the error where it fails.
    pub fn make(&self, change: &ProposedChange) -> Result<()> {
        match change {
            ProposedChange::Command(words) => {
                let front_end = front_end::of_change(change).context("it is no front end's command")?;
                staging::harmless(&words.join(" "))?;
                // What is named by its handle has another one in the copy.
                let handle = |family: &str, table: &str, there: u64| {
                    let mut own = self.handles.iter().filter(|(_, known)| **known == there).map(|(own, _)| own);
                    own.find(|(of, name, _)| (of.as_str(), name.as_str()) == (family, table)).map(|own| own.2)
                };
                let by = words.first().and_then(|program| front_end::of_command(program));
                self.run_words(&front_end.in_the_copy(words, &handle)?, by)
            }
            ProposedChange::Ruleset(text) => {
                staging::harmless(text)?;
                let read =
                    front_end::configuration(text).map_err(|unjudged| anyhow::anyhow!("it is {}", unjudged.why))?;
                let (_, load) = read.context("it is no front end's configuration")?;
                if let Some(line) = load.before {
                    self.run(line)?;
                }
                let path = load.path;
                fs::write(self.staging.at(path), text).with_context(|| format!("cannot write {path} in the copy"))?;
                let by = load.command.first().and_then(|program| front_end::of_command(program));
                self.run_words(&load.command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), by)
            }
        }
    }

    /// A rule of it as the host has it.
    pub(super) fn on_the_host(&self, rule: &NamedRule) -> Result<NamedRule> {
        let mut rule = rule.clone();
        let is_by_handle = rule.backend == Backend::Nft && rule.statement.is_none();
        if let Some(handle) = rule.handle.filter(|_| is_by_handle) {
            let own = (rule.family.clone(), rule.table.clone(), handle);
            rule.handle = Some(*self.handles.get(&own).context("a rule that the host does not have")?);
        }
        // A front end's own commands name no handle, and its rules may have been made anew.
        if let Entrance::Before(jump) = &mut rule.entrance
            && is_by_handle
        {
            let own = (rule.family.clone(), rule.table.clone(), jump.handle);
            jump.handle = *self.handles.get(&own).context("a rule that the host does not have")?;
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

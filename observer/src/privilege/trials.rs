//! Private copies in which front ends' programs are run, each by a thread that lives in it.

use std::{fs::File, sync::Arc, thread};

use anyhow::{Context, Result, ensure};

use super::{
    netns,
    replays::{Hidden, Own},
};
use crate::{
    firewall::{files::Root, front_end::FrontEnd, inventory, ruleset::Ruleset},
    kernel::netns_cookie,
    model::Fix,
    patience,
    sandbox::{
        copy::{self, Copied, Hide},
        fix::{Files, Trial, View},
    },
};

/// Bytes of a ruleset that is copied for it.
const MAX_BYTES: usize = 16 << 20;
/// What runs for it comes after everything else (`nice`).
const NICE: i32 = 5;

/// The namespace whose rules are tried, and how copies of it are kept from being seen.
#[derive(Clone)]
pub(super) struct Place {
    /// Its inode number.
    pub(super) number: u32,
    /// Itself: a trial hides the paths by which it would be found.
    namespace: Arc<File>,
    /// Its cookie: inode numbers are used again.
    pub(super) cookie: u64,
    /// The map that names observer's own namespaces, where anything is observed.
    pub(super) own: Option<Own>,
}

impl Place {
    pub(super) fn open(number: u32, cookie: u64, own: Option<Own>) -> Result<Self> {
        Ok(Self { number, namespace: Arc::new(netns::open(number)?), cookie, own })
    }

    pub(super) fn hide(&self) -> Hide {
        let own = self.own.clone();
        Arc::new(move |netns| match &own {
            Some(own) => Ok(Box::new(Hidden::new(Own::clone(own), netns)?) as Box<dyn Send>),
            None => Ok(Box::new(())),
        })
    }

    /// Does something in the namespace, by a thread of its own.
    pub(super) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let cookie = self.cookie;
        let namespace = self.namespace.try_clone().context("cannot keep the network namespace open")?;
        let begun = netns::begin_in(namespace, move || {
            ensure!(netns_cookie().unwrap_or(0) == cookie, "the namespace is gone, and its number another one's");
            work()
        });
        begun.recv().context("the thread in the network namespace failed")?
    }

    /// A fix as it is to be typed where observer runs: with the words before each command that enter the namespace. `own_files`:
    /// the front end has others there than the host; `None` where its programs are other ones too, as in a container.
    pub(super) fn placed(&self, fix: Fix, front_end: &dyn FrontEnd, own_files: Option<bool>) -> Fix {
        if fix.commands.is_empty() {
            return fix;
        }
        if netns::is_in(std::process::id(), self.number) {
            return match netns::entering_own(self.number) {
                Some(entering) => fix.with_prefix(&entering),
                None => fix,
            };
        }
        match (front_end.has_files(), own_files, netns::entering(self.number)) {
            // Its programs are the host's own, and its files are not: whoever manages these rules runs it there.
            (true, Some(true), _) if fix.verified => {
                fix.at("the mount namespace from which these rules are managed, with files of its own".to_owned())
            }
            // It would run in a mount namespace whose programs may be anybody's: nothing that root could paste is printed.
            (true, None | Some(true), _) => {
                fix.into_note("by whoever manages these rules, with the files of their own mount namespace")
            }
            (_, _, Some(entering)) => fix.with_prefix(&entering),
            (_, _, None) => fix.into_note(&format!("in network namespace {}", self.number)),
        }
    }

    fn copied(&self) -> Result<Copied> {
        self.inside(|| copy::take(MAX_BYTES))
    }

    /// The rules as they are in force.
    pub(super) fn view(&self, root: Root) -> Result<View> {
        let read = || if inventory::nftables_in_use() { Ruleset::read(MAX_BYTES as u64).map(Some) } else { Ok(None) };
        let ruleset = self.inside(read)?;
        View::new(self.copied()?, ruleset, root, &self.hide(), (copy::logs_everywhere(), patience::times()))
    }

    /// Does something in a private copy, by a thread that lives there and ends with it; waits for that.
    /// `began`: how often trials had been ended when this one was asked for.
    pub(super) fn tried<T: Send>(
        &self,
        home: Root,
        began: u64,
        work: impl FnOnce(Trial) -> Result<T> + Send,
    ) -> Result<T> {
        let (logs, patience) = (copy::logs_everywhere(), patience::times());
        let enter = move || -> Result<T> {
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
            let files = Files::read(&home)?;
            let hide = self.hide();
            let hidden = hide(copy::own_namespace()?)?;
            let copied = self.copied()?;
            let version = copied.version()?;
            let done = work(Trial::enter(copied, &files, (hide, hidden), (logs, patience, began))?)?;
            // What was tried is of rules that may not be in force any more.
            ensure!(self.inside(copy::version)? == version, "the rules were changed while it was tried");
            Ok(done)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("fix".to_owned()).spawn_scoped(scope, enter)?;
            thread.join().map_err(|_| anyhow::anyhow!("the thread in the copy failed"))?
        })
    }
}

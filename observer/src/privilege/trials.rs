//! Private copies in which front ends' programs are run, each by a thread that lives in it.

use std::{fs::File, path::PathBuf, sync::Arc, thread};

use anyhow::{Context, Result, ensure};

use super::{
    netns::{self, Home},
    replays::{Hidden, Own},
};
use crate::{
    firewall::{inventory, ruleset::Ruleset},
    fix::{Files, Hide, Trial, View},
    patience,
    probe::netns_cookie,
    replay::{self, Copied},
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
    /// Its cookie: inode numbers are used again.
    pub(super) cookie: u64,
    /// The map that names observer's own namespaces, where anything is observed.
    pub(super) own: Option<Own>,
}

impl Place {
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
        let begun = netns::begin(self.number, move || {
            ensure!(netns_cookie().unwrap_or(0) == cookie, "the namespace is gone, and its number another one's");
            work()
        })?;
        begun.recv().context("the thread in the network namespace failed")?
    }

    fn copied(&self) -> Result<Copied> {
        self.inside(|| replay::copy(MAX_BYTES))
    }

    /// The rules as they are in force.
    pub(super) fn view(&self, root: PathBuf) -> Result<View> {
        let read = || if inventory::nftables_in_use() { Ruleset::read().map(Some) } else { Ok(None) };
        let ruleset = self.inside(read)?;
        View::new(self.copied()?, ruleset, root, &self.hide(), (replay::logs_everywhere(), patience::times()))
    }

    /// Does something in a private copy, by a thread that lives there and ends with it; waits for that.
    pub(super) fn tried<T: Send>(&self, home: Home, work: impl FnOnce(Trial) -> Result<T> + Send) -> Result<T> {
        let (logs, patience) = (replay::logs_everywhere(), patience::times());
        let enter = move || -> Result<T> {
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
            let files = Files::read(&home.root)?;
            let hide = self.hide();
            let hidden = hide(replay::own_namespace()?)?;
            let mounts: (&Files, Option<File>) = (&files, home.mounts);
            let copied = self.copied()?;
            let version = copied.version()?;
            let done = work(Trial::enter(copied, mounts, (hide, hidden), logs, patience)?)?;
            // What was tried is of rules that may not be in force any more.
            ensure!(self.inside(replay::version)? == version, "the rules were changed while it was tried");
            Ok(done)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("fix".to_owned()).spawn_scoped(scope, enter)?;
            thread.join().map_err(|_| anyhow::anyhow!("the thread in the copy failed"))?
        })
    }
}

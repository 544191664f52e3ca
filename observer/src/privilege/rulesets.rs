//! Rulesets of the namespaces in which something was blocked: read at the first question, and kept as long as nftables
//! announces no change.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::netns;
use crate::{
    firewall::ruleset::Ruleset,
    model::{NamedRule, WantedRule},
};

/// How long a question waits for the text of a rule.
const PATIENCE: Duration = Duration::from_millis(80);
/// Namespaces whose rulesets are kept, those asked about last.
const MAX_NAMESPACES: usize = 256;
/// Rulesets of a namespace that are kept beside the one in force, and rules in them: a rule that is gone is still named.
const MAX_OLDER: usize = 8;
const MAX_OLDER_RULES: usize = 50_000;
/// `NFNLGRP_NFTABLES`: the group to which nftables announces every change.
const GROUP: u32 = 7;

/// What is known of one namespace.
struct Space {
    /// Announced changes.
    changes: OwnedFd,
    /// In force, as of the last announcement.
    now: Ruleset,
    /// Before, the newest first.
    older: VecDeque<Ruleset>,
    asked: Instant,
}

/// All of them.
#[derive(Default)]
pub(super) struct Rulesets(HashMap<u32, Space>);

impl Rulesets {
    /// The rule that the kernel half saw, if the ruleset has it, or had it, and it can have dropped that packet.
    pub(super) fn named(&mut self, wanted: &WantedRule) -> Result<Option<NamedRule>> {
        let deadline = Instant::now() + PATIENCE;
        let space = match self.0.entry(wanted.netns) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => vacant.insert(Space::adopt(wanted.netns)?),
        };
        space.asked = Instant::now();
        let named = space.named(wanted, deadline);
        if self.0.len() > MAX_NAMESPACES {
            let eldest = self.0.iter().min_by_key(|(_, space)| space.asked).map(|(netns, _)| *netns);
            eldest.map(|netns| self.0.remove(&netns));
        }
        Ok(named)
    }
}

impl Space {
    /// Listens first, and then reads: no change falls in between.
    fn adopt(netns: u32) -> Result<Self> {
        netns::inside(Some(netns), move || {
            Ok(Self { changes: listen()?, now: Ruleset::read()?, older: VecDeque::new(), asked: Instant::now() })
        })?
    }

    fn named(&mut self, wanted: &WantedRule, deadline: Instant) -> Option<NamedRule> {
        if self.has_changed() {
            let netns = wanted.netns;
            match netns::inside(Some(netns), Ruleset::read).and_then(|read| read) {
                Ok(fresh) => {
                    self.older.push_front(std::mem::replace(&mut self.now, fresh));
                    while self.older.len() > MAX_OLDER
                        || self.older.len() > 1
                            && self.older.iter().map(Ruleset::rules).sum::<usize>() > MAX_OLDER_RULES
                    {
                        self.older.pop_back();
                    }
                }
                // A namespace that has ended has no other rules any more.
                Err(error) => log::debug!("the ruleset of namespace {netns} cannot be read again: {error:#}"),
            }
        }
        // A handle is never used twice: whichever snapshot has the rule has the right one.
        std::iter::once(&mut self.now).chain(&mut self.older).find_map(|ruleset| ruleset.named(wanted, deadline))
    }

    /// Whether a change was announced, or announcements were lost.
    fn has_changed(&self) -> bool {
        let mut changed = false;
        let mut message = [0; 64];
        loop {
            match recv(self.changes.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => changed = true,
                Err(nix::Error::EAGAIN) => return changed,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ENOBUFS) => changed = true,
                Err(_) => return true,
            }
        }
    }
}

/// A socket that hears of every change in this thread's network namespace.
fn listen() -> Result<OwnedFd> {
    let listen = || -> io::Result<OwnedFd> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (GROUP - 1)))?;
        Ok(socket)
    };
    listen().context("cannot listen for changes of nftables")
}

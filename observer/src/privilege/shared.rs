//! Answers to questions about network namespaces, by whichever thread is asked: what is kept of each namespace has a lock of its
//! own, so that one that takes long holds up no other.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    cgroups::Cgroups,
    deciders::Deciders,
    fixes::Fixes,
    listening, netns,
    protocol::{Differ, FixOf, Listen, Place, Request, Resend, RoutesText, Rule, RulesetText, UnitText, encode},
    replays::Replays,
    rulesets::Rulesets,
    server::told,
    sockets::Residents,
    texts,
};
use crate::{kernel::symbols::Functions, model::Share};

/// A lock, whoever has failed while it held it: what it protects is a cache.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the threads of the helper share.
pub(super) struct Shared {
    pub(super) cgroups: Mutex<Cgroups>,
    pub(super) residents: Mutex<Residents>,
    pub(super) deciders: Mutex<Deciders>,
    pub(super) rulesets: Rulesets,
    pub(super) replays: Replays,
    fixes: Mutex<Fixes>,
}

impl Shared {
    /// Nothing is known yet; cgroups are looked for below `root`.
    pub(super) fn new(root: Option<PathBuf>) -> Self {
        Self {
            cgroups: Mutex::new(Cgroups::new(root)),
            residents: Mutex::default(),
            deciders: Mutex::default(),
            rulesets: Rulesets::default(),
            replays: Replays::default(),
            fixes: Mutex::default(),
        }
    }

    /// nftables is there: whoever asks for its rules otherwise would load it.
    pub(super) fn knows_nftables(&self) -> bool {
        if lock(&self.deciders).is_empty() {
            let (_, names) = Functions::read();
            lock(&self.deciders).learn(names);
        }
        lock(&self.deciders).know_nftables()
    }

    /// The answer to a question about a network namespace, with what goes along; `None` where it is another one.
    pub(super) fn answer(&self, request: &Request, share: Share) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut descriptors = Vec::new();
        let bytes = match request {
            Request::Rule(rule) => {
                // Others learn of new functions meanwhile.
                let deciders = lock(&self.deciders).clone();
                let decision = deciders.decision(&rule.wanted, (&self.rulesets, share));
                encode::<Rule>(&decision.map_err(told))
            }
            Request::Listen(_) if !self.knows_nftables() => encode::<Listen>(&Err("nftables is not loaded".to_owned())),
            Request::Listen(listen) => {
                let begun = listening::begin(listen.netns).map(|both| descriptors.extend(both));
                encode::<Listen>(&begun.map_err(told))
            }
            Request::Differ(differ) => {
                encode::<Differ>(&self.rulesets.difference(differ.netns, differ.since).map_err(told))
            }
            Request::RulesetText(wanted) => {
                let part = self.rulesets.text(wanted.netns, &wanted.sha256, wanted.from);
                encode::<RulesetText>(&part.map_err(told))
            }
            Request::RoutesText(wanted) => {
                let text = netns::inside(Some(wanted.netns), texts::routes).and_then(|text| text);
                encode::<RoutesText>(&text.map_err(told))
            }
            Request::UnitText(wanted) => encode::<UnitText>(&texts::unit(&wanted.unit)),
            // Reading rules would load it.
            Request::Resend(_) if !self.knows_nftables() => encode::<Resend>(&Err("nftables is not loaded".to_owned())),
            Request::Resend(resend) => {
                let packet = (&resend.packet, resend.waits);
                encode::<Resend>(&self.replays.replay(resend.netns, packet, &self.cgroups, share).map_err(told))
            }
            Request::Place(place) => {
                let resident = lock(&self.residents).resident(place.netns);
                encode::<Place>(&netns::place(place.netns, resident))
            }
            Request::FixOf(fix) => {
                let remedy = self
                    .replays
                    .own()
                    .and_then(|own| lock(&self.fixes).of((&fix.stopped, share, fix.is_urgent), own, &self.cgroups));
                encode::<FixOf>(&remedy.map_err(told))
            }
            _ => return None,
        };
        Some((bytes, descriptors))
    }
}

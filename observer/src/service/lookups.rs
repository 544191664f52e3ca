//! What incidents ask, answered by the helper and the eBPF side.

use std::{sync::Arc, task::Poll, time::Duration};

use observer_ebpf::abi::AwaitedKey;

use crate::{
    attribute::{Asking, Attribution},
    explain::Explainer,
    incident::Lookup,
    model::{Attempt, Decision, Remedy, Share, Stopped, WantedRule},
    privilege::{
        HostQueries,
        protocol::{ArmAnswers, FixOf},
    },
};

/// Tells the eBPF side that a destination is waited for from now on, or not any more.
pub type Await = Box<dyn FnMut(&AwaitedKey, bool) -> Result<(), String> + Send>;

/// Everything that answers.
pub(super) struct Lookups<'a, E> {
    pub(super) attribution: &'a mut Attribution<E>,
    pub(super) explainer: &'a mut Explainer,
    pub(super) tell: &'a mut Await,
}

impl<E: HostQueries> Lookup for Lookups<'_, E> {
    fn rule(&mut self, share: Share, wanted: &WantedRule, is_last: bool) -> Poll<Option<Arc<Decision>>> {
        let mut asking = Asking { queries: self.attribution.queries(), share, is_last };
        self.explainer.again(wanted, &mut asking)
    }

    fn fix(&mut self, share: Share, stopped: &Stopped, is_urgent: bool) -> Poll<Result<Remedy, String>> {
        self.attribution.queries().poll(share, FixOf { stopped: stopped.clone(), is_urgent })
    }

    fn await_destination(&mut self, key: &AwaitedKey, is_awaited: bool) -> Result<(), String> {
        (self.tell)(key, is_awaited)
    }

    fn await_answers(&mut self, time: Duration) {
        let armed = self.attribution.queries().ask(ArmAnswers { time });
        if let Err(why) = armed.unwrap_or_else(|error| Err(error.to_string())) {
            log::debug!("answers to datagrams are not seen: {why}");
        }
    }

    fn home(&mut self, attempt: &Attempt) -> Option<u32> {
        self.attribution.home(attempt)
    }
}

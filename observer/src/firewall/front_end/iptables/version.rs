//! What the host's plain `iptables` says of itself.

use std::time::Duration;

use crate::{confinement::child::Confined, model::Backend};

/// What it may use of a processor.
const LIMIT: Duration = Duration::from_secs(5);
/// What is kept of what it says.
const MAX_SAID: u64 = 64 << 10;

/// The version of `iptables`.
pub(in crate::firewall::front_end) struct Version {
    /// Which tables it is about.
    pub(in crate::firewall::front_end) backend: Backend,
    /// `iptables v1.8.9 (nf_tables)`
    words: String,
}

impl Version {
    /// Runs it; `None` where it is not installed.
    pub(in crate::firewall::front_end) fn read() -> Option<Self> {
        let said = Confined::new("iptables", None, LIMIT).ok()?.args(["--version"]).run(false, MAX_SAID).ok()?.said;
        Some(Self::of(String::from_utf8_lossy(&said).trim()))
    }

    /// Of what it said.
    pub(super) fn of(words: &str) -> Self {
        let backend = if words.contains("nf_tables") { Backend::Nft } else { Backend::IptablesLegacy };
        Self { backend, words: words.to_owned() }
    }

    /// Its numbers; none where it said something else.
    pub(super) fn numbers(&self) -> Vec<u32> {
        let numbers = self.words.split(" v").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        numbers.split('.').filter_map(|part| part.parse().ok()).collect()
    }
}

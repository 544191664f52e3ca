//! What would let a blocked packet through.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{replay::Packet, rule::NamedRule};

/// How much a fix lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// One port of single addresses.
    Address,
    /// One port of every destination.
    Port,
    /// All that the rule stopped.
    Rule,
    /// Everything.
    All,
}

/// How long a fix lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Lasts {
    /// Its front end keeps it.
    Permanent,
    /// Until the rules are loaded anew, at the latest at the next start of the host.
    Reload,
    /// One hour, or until the rules are loaded anew.
    Hour,
}

/// `egress.fix`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Fix {
    /// Command lines for a shell of root's, in this order; empty where no command of the front end's does it: then `note` says what
    /// does.
    pub commands: Vec<String>,
    /// What takes it back, likewise.
    pub undo: Vec<String>,
    /// How much it lets through.
    pub scope: Option<Scope>,
    /// The same in words.
    pub opens: Option<String>,
    /// How long it lasts.
    pub lasts: Option<Lasts>,
    /// In a private copy of the rules the commands were run by the real programs, and the packet passed then.
    pub verified: bool,
    /// Addresses to which it passed.
    pub verified_for: Vec<IpAddr>,
    /// The undo was run there too, and the same statement stopped the packet again.
    pub undo_verified: Option<bool>,
    /// Why it is not verified.
    pub unverified: Option<String>,
    /// What is to be known of it.
    pub note: Option<String>,
    /// Where the commands are to be run, where no words before them lead there.
    pub place: Option<String>,
    /// What was tried beside, before and after the commands: other destinations, ports and users, and what comes from outside.
    pub probes: Vec<Probe>,
    /// Those of them that were closed before, and were open afterwards; `None` where none were made.
    pub opened: Option<Vec<Probe>>,
    /// Other commands that do it, too. They were tried likewise.
    #[cfg_attr(test, proptest(strategy = "proptest::collection::vec(proptest::prelude::any::<OtherFix>(), 0..3)"))]
    pub others: Vec<OtherFix>,
}

/// Which way a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum ProbeDirection {
    /// From this host.
    Egress,
    /// To this host.
    Ingress,
    /// Through this host.
    Forward,
}

/// A conversation that was tried beside what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Probe {
    /// Which way it goes.
    pub direction: ProbeDirection,
    /// `tcp` or `udp`.
    pub transport: String,
    /// Destination port.
    pub port: u16,
    /// Destination address.
    pub address: IpAddr,
    /// User number of its sender, where that is one of this host's.
    pub user: Option<u32>,
    /// Interface by which it comes, where it comes from outside.
    pub interface: Option<String>,
    /// Its first packet gets there, and what belongs to it is stopped then, such as the answer.
    pub is_one_way: bool,
}

impl Probe {
    /// `443/tcp to 198.51.100.77`, `inbound 443/tcp by eth0`.
    pub fn words(&self) -> String {
        let Self { transport, port, address, user, interface, is_one_way, .. } = self;
        let by = interface.as_ref().map(|name| format!(" by {name}")).unwrap_or_default();
        let words = match (self.direction, user) {
            (ProbeDirection::Ingress, _) => {
                let family = if address.is_ipv6() { " over IPv6" } else { "" };
                format!("inbound {port}/{transport}{by}{family}")
            }
            (ProbeDirection::Forward, _) => format!("forwarded {port}/{transport} to {address}{by}"),
            (ProbeDirection::Egress, Some(user)) => format!("{port}/{transport} to {address} for user {user}"),
            (ProbeDirection::Egress, None) => format!("{port}/{transport} to {address}"),
        };
        if *is_one_way { format!("{words} (one way: answers do not get through)") } else { words }
    }
}

/// How other commands differ from those of a fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Other {
    /// They are for the addresses alone that were asked about, and the fix opens more.
    Narrow,
    /// They are for the port of every destination, and the fix is for addresses alone.
    Broad,
    /// They end by themselves after an hour.
    Temporary,
}

/// Commands beside those of a fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct OtherFix {
    /// How they differ.
    pub other: Other,
    /// See [`Fix::commands`].
    pub commands: Vec<String>,
    /// See [`Fix::undo`].
    pub undo: Vec<String>,
    /// What it opens, in words.
    pub opens: Option<String>,
    /// What is to be known of it.
    pub note: Option<String>,
}

impl Fix {
    /// The same with these words before every command, such as `ip netns exec NAME`.
    pub fn with_prefix(mut self, words: &str) -> Self {
        let others = self.others.iter_mut().flat_map(|other| other.commands.iter_mut().chain(&mut other.undo));
        for line in self.commands.iter_mut().chain(&mut self.undo).chain(others) {
            *line = format!("{words} {}", line.replace("$(", &format!("$({words} ")));
        }
        self
    }

    /// The same, to be run at a place that no words before a command lead to.
    pub fn at(self, place: String) -> Self {
        Self { place: Some(place), ..self }
    }

    /// No command that can be typed as it is: what is to be done, and where, is said in the note.
    pub fn into_note(mut self, place: &str) -> Self {
        let commands = std::mem::take(&mut self.commands);
        self.undo.clear();
        self.others.clear();
        (self.verified, self.undo_verified) = (false, None);
        self.verified_for.clear();
        let what =
            format!("{place}: {}", commands.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", then "));
        self.note = Some(self.note.map_or(what.clone(), |note| format!("{what}; {note}")));
        self
    }
}

/// A packet that is to get through, and what stops it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Inode number of the network namespace whose rules decide.
    pub netns: u32,
    /// Its cookie: inode numbers are used again.
    pub netns_cookie: u64,
    /// What stops it, in the front end's words where there are any.
    pub rule: NamedRule,
    /// The packet.
    pub packet: Packet,
    /// The destination is known by its name, and the address may be another one tomorrow.
    pub is_by_name: bool,
}

/// What is known of a fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remedy {
    /// It is being tried.
    NotYet,
    /// This.
    Is(Box<Fix>),
    /// None is known.
    None,
}

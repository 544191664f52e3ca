//! What would let a blocked packet through.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{replay::Packet, rule::NamedRule};

/// How much a fix lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
#[serde(rename_all = "lowercase")]
pub enum Lasts {
    /// Its front end keeps it.
    Permanent,
    /// Until the rules are loaded anew, at the latest at the next start of the host.
    Reload,
}

/// `egress.fix`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    /// Command lines for a shell of root's, in this order; empty where no command of the front end's does it: then `note` says what
    /// does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// What takes it back, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<String>,
    /// How much it lets through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opens: Option<String>,
    /// How long it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Lasts>,
    /// In a private copy of the rules the commands were run by the real programs, and the packet passed then.
    pub verified: bool,
    /// Addresses to which it passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verified_for: Vec<IpAddr>,
    /// The undo was run there too, and the same statement stopped the packet again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo_verified: Option<bool>,
    /// Why it is not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unverified: Option<String>,
    /// What is to be known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
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

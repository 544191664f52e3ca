//! Texts that surround what was reported, and that are kept once: rulesets, routes, what units say of networks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use super::share::Share;

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum DocumentKind {
    /// A ruleset as `nft` lists it, without handles and counters. Lines have its digest in `egress.rule.ruleset_sha256`.
    Ruleset,
    /// Rules of routing and routes of a network namespace.
    Routes,
    /// What the files of a systemd unit say of networks, users and confinement.
    Unit,
}

/// A text as it stood when something was reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What it is.
    pub kind: DocumentKind,
    /// Of what: inode number of a network namespace, or the name of a unit.
    pub subject: String,
    /// When it was so.
    pub at: Timestamp,
    /// SHA-256 of the text, in hexadecimal digits.
    pub sha256: String,
    /// Bytes of the text.
    pub bytes: u64,
    /// The text, compressed (zlib, RFC 1950).
    pub packed: Vec<u8>,
    /// Whose it is.
    pub share: Share,
}

/// A part of [`Document::packed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentPart {
    /// Bytes of the text.
    pub bytes: u64,
    /// Bytes of all parts.
    pub packed: u64,
    /// These.
    pub part: Vec<u8>,
}

//! A text that lines refer to, and that is kept once: a ruleset.

use serde::{Deserialize, Serialize};

use super::share::Share;

/// A ruleset as it stood when something was reported, as `nft` lists it, without handles and counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// SHA-256 of the text, in hexadecimal digits: what lines have in `egress.rule.ruleset_sha256`.
    pub sha256: String,
    /// Bytes of the text.
    pub bytes: u64,
    /// The text, compressed (zlib, RFC 1950).
    pub packed: Vec<u8>,
    /// Whose namespace it is of.
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

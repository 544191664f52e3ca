//! Where lines come from: this program, on this host.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `agent`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Always `observer`.
    pub r#type: String,
    /// Version of the program.
    pub version: String,
    /// Stable for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
}

/// `host.boot`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBoot {
    /// The kernel's boot id.
    pub id: String,
}

/// `host`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Machine id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// This boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<HostBoot>,
}

/// Both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporter {
    /// This program.
    pub agent: Agent,
    /// This host.
    pub host: Host,
}

#[cfg(test)]
impl Reporter {
    /// A host of which nothing is known.
    pub(crate) fn example() -> Self {
        let agent = Agent { r#type: "observer".to_owned(), version: "0".to_owned(), id: None };
        Self { agent, host: Host::default() }
    }
}

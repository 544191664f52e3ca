//! What `doctor` finds.

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Could not be looked at, for want of privilege.
    Unknown,
    /// Worth knowing; nothing is lost.
    Note,
    /// Works, with less than could be had.
    Degraded,
    /// Nothing can be observed.
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What that means for the answers; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consequence: Option<String>,
    /// What the operator can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// A check without a shortcoming.
    pub fn fine(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), consequence: None, remedy: None }
    }

    /// A check with one: its consequence and its remedy.
    pub fn short(
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, status, detail: detail.into(), consequence: Some(consequence.into()), remedy: Some(remedy.into()) }
    }
}

/// All checks of one host.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// In the order in which they are reported.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// The worst of them.
    pub fn worst(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }

    /// In one sentence.
    pub fn verdict(&self) -> String {
        let count = |status| self.checks.iter().filter(|check| check.status == status).count();
        match (self.worst(), count(Status::Degraded)) {
            (Status::Failed, _) => "not observable".to_owned(),
            (Status::Unknown, _) => "unknown: not everything could be looked at".to_owned(),
            (_, 0) => "observable".to_owned(),
            (_, 1) => "observable, 1 shortcoming".to_owned(),
            (_, more) => format!("observable, {more} shortcomings"),
        }
    }
}

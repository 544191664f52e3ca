//! What observer has to say, one thing a line, whatever reads it: ECS, a terminal, a store.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    account::{Account, Degraded},
    attempt::Attempt,
    fix::Fix,
    names::Action,
    outcome::Outcome,
    restored::Restored,
    ruleset::RulesetChange,
};

/// One thing that observer has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Line {
    /// Unique; `None` of the account, which each stream has once.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::some_uuid()"))]
    pub id: Option<Uuid>,
    /// Number in its stream, from 1; `None` before it has one, and of the account.
    pub sequence: Option<u64>,
    /// When it happened.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub at: Timestamp,
    /// What.
    pub kind: Kind,
}

/// What a line tells, with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Kind {
    /// A decision stopped packets.
    Blocked(Box<Attempt>),
    /// Packets died by nobody's decision.
    Dropped(Box<Attempt>),
    /// A connection waited for its first answer when observer started.
    Hanging(Box<Attempt>),
    /// The rule of something that was reported is known now. The attempt is of no packet, as in all news.
    Rule(Box<Attempt>),
    /// What would let something through that was reported.
    Fix(Box<Attempt>, Box<Fix>),
    /// A connection that was blocked ended without an answer.
    Outcome(Box<Attempt>, Outcome),
    /// What was blocked works again; the attempt's sender is who reached it.
    Restored(Box<Attempt>, Box<Restored>),
    /// Firewall rules were changed.
    RulesetChanged(Box<RulesetChange>),
    /// Recording began, with what worked worse than it could then.
    Started(Vec<Degraded>),
    /// Recording was ended.
    Stopped,
    /// The end of a stream: what became of every packet.
    Summary(Box<Coverage>),
}

/// A time that was observed, and the account of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Coverage {
    /// When observing began.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub start: Timestamp,
    /// When it ended.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub end: Timestamp,
    /// What became of every packet.
    pub account: Account,
}

impl Kind {
    /// What it is about, where that is something that was tried.
    pub fn attempt_mut(&mut self) -> Option<&mut Attempt> {
        match self {
            Self::Blocked(attempt)
            | Self::Dropped(attempt)
            | Self::Hanging(attempt)
            | Self::Rule(attempt)
            | Self::Fix(attempt, _)
            | Self::Outcome(attempt, _)
            | Self::Restored(attempt, _) => Some(attempt),
            Self::RulesetChanged(_) | Self::Started(_) | Self::Stopped | Self::Summary(_) => None,
        }
    }
}

impl Line {
    /// What kind of line it is.
    pub fn action(&self) -> Action {
        match self.kind {
            Kind::Blocked(_) => Action::EgressBlocked,
            Kind::Dropped(_) => Action::EgressDropped,
            Kind::Hanging(_) => Action::EgressHanging,
            Kind::Rule(_) => Action::EgressRule,
            Kind::Fix(..) => Action::EgressFix,
            Kind::Outcome(..) => Action::EgressOutcome,
            Kind::Restored(..) => Action::EgressRestored,
            Kind::RulesetChanged(_) => Action::RulesetChanged,
            Kind::Started(_) => Action::ObserverStarted,
            Kind::Stopped => Action::ObserverStopped,
            Kind::Summary(_) => Action::Summary,
        }
    }

    /// Whether it reports something that happened, and is not news of what was reported: those are counted, and shown. Background is not,
    /// unless that is asked for.
    pub fn is_event(&self, with_background: bool) -> bool {
        match &self.kind {
            Kind::Blocked(attempt) => with_background || attempt.background.is_none(),
            Kind::Dropped(_) => with_background,
            Kind::Hanging(_) => true,
            Kind::Rule(_)
            | Kind::Fix(..)
            | Kind::Outcome(..)
            | Kind::Restored(..)
            | Kind::RulesetChanged(_)
            | Kind::Started(_)
            | Kind::Stopped
            | Kind::Summary(_) => false,
        }
    }

    /// What it is about, where that is something that was tried.
    pub fn attempt(&self) -> Option<&Attempt> {
        match &self.kind {
            Kind::Blocked(attempt)
            | Kind::Dropped(attempt)
            | Kind::Hanging(attempt)
            | Kind::Rule(attempt)
            | Kind::Fix(attempt, _)
            | Kind::Outcome(attempt, _)
            | Kind::Restored(attempt, _) => Some(attempt),
            Kind::RulesetChanged(_) | Kind::Started(_) | Kind::Stopped | Kind::Summary(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::TestRunner};

    use super::*;

    /// A line has many fields, and proptest keeps what makes them on the stack.
    const STACK: usize = 64 << 20;
    const CASES: u32 = 48;

    fn all_are_read_back() {
        let result = TestRunner::new(ProptestConfig::with_cases(CASES)).run(&any::<Line>(), |line| {
            let text = serde_json::to_string(&line).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let read = serde_json::from_str::<Line>(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(read, line);
            Ok(())
        });
        assert!(result.is_ok(), "{}", result.unwrap_err());
    }

    /// Whatever a line says, it says the same when it is read back.
    #[test]
    fn what_is_written_can_be_read() {
        std::thread::Builder::new().stack_size(STACK).spawn(all_are_read_back).unwrap().join().unwrap();
    }
}

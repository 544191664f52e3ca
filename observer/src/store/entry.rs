//! A line as the store has it: numbers and times in columns, and what many lines share in two texts that are stored once.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::model::{Attempt, Kind, Line, Sender, Share};

/// Nanoseconds since 1970.
pub(super) fn nanoseconds(time: Timestamp) -> i64 {
    // Reaches until the year 2262.
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// The time of so many nanoseconds since 1970.
pub(super) fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}

/// Who sent what a line tells of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Process id in the initial namespace.
    pub(super) pid: Option<u32>,
    pub(super) name: Option<String>,
    pub(super) executable: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) unit: Option<String>,
    pub(super) container: Option<String>,
    /// [`Sender`], JSON.
    pub(super) body: String,
}

/// The story that a line belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    pub(super) story: Uuid,
    pub(super) incident: Uuid,
    /// Hash of the rule's statement.
    pub(super) rule: Option<Uuid>,
    /// Nobody misses what was blocked.
    pub(super) is_background: bool,
}

/// A line, ready to be stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub(super) line: Option<Uuid>,
    pub(super) sequence: Option<u64>,
    pub(super) action: String,
    pub(super) at_ns: i64,
    /// First and last packet.
    pub(super) span_ns: Option<(i64, i64)>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// Where from, JSON.
    pub(super) source: Option<String>,
    pub(super) of: Option<Of>,
    /// Who fills the store with it.
    pub(super) share: String,
    pub(super) who: Option<Who>,
    pub(super) destination: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) protocol: Option<u8>,
    /// SHA-256 of the ruleset that its rule is in.
    pub(super) ruleset: Option<String>,
    /// [`Kind`] without all that, JSON.
    pub(super) body: String,
}

impl Entry {
    /// Of a line; `story` is what it belongs to, `share` who fills the store with it.
    pub fn of(line: &Line, story: Option<Uuid>, share: Share) -> serde_json::Result<Self> {
        let mut kind = line.kind.clone();
        let attempt = kind.attempt_mut().map(|attempt| std::mem::replace(attempt, shared(attempt)));
        let of = attempt.as_ref().zip(story).map(|(attempt, story)| Of {
            story,
            incident: attempt.incident,
            rule: attempt.rule_name.as_ref().map(|name| name.id),
            is_background: attempt.background.is_some(),
        });
        let destination = attempt.as_ref().and_then(|attempt| attempt.destination);
        Ok(Self {
            line: line.id,
            sequence: line.sequence,
            action: line.action().name().to_owned(),
            at_ns: nanoseconds(line.at),
            span_ns: attempt.as_ref().map(|attempt| (nanoseconds(attempt.start), nanoseconds(attempt.end))),
            packets: attempt.as_ref().map_or(0, |attempt| attempt.packets),
            bytes: attempt.as_ref().map_or(0, |attempt| attempt.bytes),
            source: attempt
                .as_ref()
                .and_then(|attempt| attempt.source)
                .map(|end| serde_json::to_string(&end))
                .transpose()?,
            of,
            share: share_name(share, line.attempt()),
            destination: destination.map(|end| end.ip.to_string()),
            port: destination.and_then(|end| end.port),
            protocol: attempt.as_ref().and_then(|attempt| attempt.protocol),
            ruleset: attempt.as_ref().and_then(|attempt| attempt.rule.as_ref()?.ruleset_sha256.clone()),
            who: attempt.map(|attempt| Who::of(&attempt.sender)).transpose()?,
            body: serde_json::to_string(&kind)?,
        })
    }

    /// The line that it was made of.
    pub fn into_line(self) -> serde_json::Result<Line> {
        let mut kind: Kind = serde_json::from_str(&self.body)?;
        if let Some(attempt) = kind.attempt_mut() {
            if let Some((start, end)) = self.span_ns {
                (attempt.start, attempt.end) = (time(start), time(end));
            }
            (attempt.packets, attempt.bytes) = (self.packets, self.bytes);
            attempt.source = self.source.map(|source| serde_json::from_str(&source)).transpose()?;
            if let Some(who) = self.who {
                attempt.sender = serde_json::from_str(&who.body)?;
            }
        }
        Ok(Line { id: self.line, sequence: self.sequence, at: time(self.at_ns), kind })
    }
}

impl Who {
    fn of(sender: &Sender) -> serde_json::Result<Self> {
        Ok(Self {
            pid: sender.process.as_ref().map(|process| process.pid),
            name: sender.process.as_ref().map(|process| process.name.clone()),
            executable: sender.process.as_ref().and_then(|process| process.executable.clone()),
            uid: sender.user.as_ref().map(|user| user.id),
            unit: sender.unit.clone(),
            container: sender.container.as_ref().map(|container| container.id.clone()),
            body: serde_json::to_string(sender)?,
        })
    }
}

/// What lines of the same sender, destination and cause have in common.
fn shared(attempt: &Attempt) -> Attempt {
    Attempt {
        sender: Sender::default(),
        start: Timestamp::UNIX_EPOCH,
        end: Timestamp::UNIX_EPOCH,
        packets: 0,
        bytes: 0,
        source: None,
        ..attempt.clone()
    }
}

/// Who fills the store with it. A share of the host's is one for each user, since any of them can cause as many lines as it likes; what
/// belongs to no sender, as an account, is the host's own.
pub(super) fn share_name(share: Share, attempt: Option<&Attempt>) -> String {
    // Whoever makes user namespaces has many users.
    let maker = attempt.and_then(|attempt| attempt.sender.namespaces?.user_owner).filter(|uid| *uid != 0);
    let user = attempt.map(|attempt| maker.or_else(|| attempt.sender.user.as_ref().map(|user| user.id)));
    match (share, user) {
        (Share::Host, Some(Some(uid))) if uid != 0 => Share::User(uid).to_string(),
        (Share::Host, Some(None)) => "unknown users".to_owned(),
        // Of these there are so many that one takes the place of another.
        (Share::Forwarded(_), _) => "forwarded".to_owned(),
        _ => share.to_string(),
    }
}

/// The key under which a text is stored once.
pub(super) fn hash(text: &str) -> [u8; 16] {
    let digest = Sha256::digest(text);
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::TestRunner};

    use super::*;
    use crate::model::ProcessNamespaces;

    /// A line has many fields, and proptest keeps what makes them on the stack.
    const STACK: usize = 64 << 20;

    fn all_come_back() {
        let result = TestRunner::new(ProptestConfig::with_cases(48)).run(&any::<Line>(), |line| {
            let entry = Entry::of(&line, Some(Uuid::from_u128(1)), Share::Host);
            let entry = entry.map_err(|error| TestCaseError::fail(error.to_string()))?;
            let read = entry.into_line().map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(read, line);
            Ok(())
        });
        assert!(result.is_ok(), "{}", result.unwrap_err());
    }

    #[test]
    fn whatever_is_stored_is_read_as_it_was() {
        std::thread::Builder::new().stack_size(STACK).spawn(all_come_back).unwrap().join().unwrap();
    }

    #[test]
    fn lines_that_repeat_share_their_texts() {
        let line = |packets, seconds| {
            let start = Timestamp::from_second(seconds).unwrap();
            let kind = Kind::Blocked(Box::new(Attempt { packets, start, end: start, ..Attempt::example() }));
            Line { id: None, sequence: Some(1), at: start, kind }
        };
        let entry = |line: &Line| Entry::of(line, Some(Uuid::from_u128(1)), Share::Host).unwrap();
        let (one, other) = (entry(&line(1, 5)), entry(&line(7, 9)));
        assert_eq!((&one.body, one.who.as_ref()), (&other.body, other.who.as_ref()));
        assert_eq!((other.packets, other.at_ns, other.port), (7, 9_000_000_000, Some(443)));
        assert_eq!(hash(&one.body), hash(&other.body));
    }

    #[test]
    fn each_user_of_the_host_has_a_share() {
        let mut attempt = Attempt::example();
        let named = |attempt: &Attempt| share_name(Share::Host, Some(attempt));
        attempt.sender.user = Some(crate::model::User { id: 1000, name: None, effective: None });
        assert_eq!(named(&attempt), "user 1000");
        assert_eq!(share_name(Share::Namespace(7), Some(&attempt)), "network namespace 7");
        attempt.sender.user = Some(crate::model::User { id: 0, name: None, effective: None });
        assert_eq!(named(&attempt), "root");
        attempt.sender.namespaces =
            Some(ProcessNamespaces { pid: None, inner_pid: None, user: Some(7), user_owner: Some(1001) });
        assert_eq!(named(&attempt), "user 1001");
        (attempt.sender.user, attempt.sender.namespaces) = (None, None);
        assert_eq!(named(&attempt), "unknown users");
        assert_eq!(share_name(Share::Host, None), "root");
        assert_eq!(share_name(Share::Forwarded(3), Some(&attempt)), "forwarded");
    }
}

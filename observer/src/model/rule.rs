//! The rule or policy that dropped a packet.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{names::Hook, packet_kind::PacketKind, replay::ReplayCounts};

/// What it does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Drops it silently.
    Drop,
    /// Tells the sender.
    Reject,
}

/// Which part of the kernel has a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Backend {
    /// nftables, whoever wrote the rule.
    #[default]
    #[serde(rename = "nft")]
    Nft,
    /// The tables of iptables-legacy.
    #[serde(rename = "iptables-legacy")]
    IptablesLegacy,
}

/// Which rule is wanted, or what else decided: what the eBPF side saw, and what must fit to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WantedRule {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Its cookie: inode numbers are used again.
    pub netns_cookie: u64,
    /// As the eBPF side has it: address of the function on the hook, or 0.
    pub function: u64,
    /// Handle of the table; of iptables-legacy the first bytes of its name.
    pub table: u64,
    /// Handle of the base chain.
    pub chain: u64,
    /// Handle of the rule; 0 for the base chain's policy, `UNKNOWN_RULE` where only the chain is known. A BPF program's id.
    pub rule: u64,
    /// Hook at which the packet died; `None` when it is not known.
    pub hook: Option<Hook>,
    /// The packet is IPv6, or IPv4; `None` for neither.
    pub v6: Option<bool>,
}

/// What a rule is in the words of the front end that manages it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The front end: `ufw`, `firewalld`, `docker`, `iptables`, …
    pub ruleset: String,
    /// Which of its statements, for a sentence: `ufw rule 3`.
    pub what: String,
    /// The statement: `deny out 443/tcp`.
    pub name: String,
    /// Its number, as the front end counts; it changes when rules come and go.
    pub number: Option<u32>,
    /// What the administrator wrote beside it.
    pub comment: Option<String>,
    /// What is wrong about it, such as that the front end's files say otherwise.
    pub note: Option<String>,
}

/// A rule that the ruleset in force has, or a policy, and that can have dropped the packet; or, without text, a chain in which
/// something did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRule {
    /// Which part of the kernel has it.
    pub backend: Backend,
    /// Family of its table, as `nft` writes it.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Its handle; `None` for a chain's policy, or where it is not known.
    pub handle: Option<u64>,
    /// Its place in the chain, from 1 on.
    pub position: Option<usize>,
    /// As `nft` writes it; `None` where `nft` cannot be asked.
    pub text: Option<String>,
    /// Chains from the base chain to its own, where there is one way only.
    pub path: Vec<String>,
    /// What it did; `None` where it is not known.
    pub verdict: Option<Verdict>,
    /// SHA-256 of the ruleset in which it was found.
    pub ruleset_sha256: Option<String>,
    /// The same in its front end's words; `None` where no front end is known for it.
    pub statement: Option<Statement>,
    /// All that it does is to translate addresses: what it drops it could not translate.
    pub translates: Option<Translation>,
    /// Where an exception from it belongs.
    pub entrance: Entrance,
    /// Which packet of a conversation it stopped, where that was not the first one.
    pub packet: Option<PacketKind>,
    /// The rule does not drop the packet: it sends it to this address of the host, where no program listens.
    pub leads_to: Option<SocketAddr>,
    /// Where the packet went as the rule saw it: an earlier one had sent it to another address or port.
    pub translated: Option<SocketAddr>,
    /// Its hook is one that forwarded packets pass, too, where that is known.
    pub sees_forwarded: bool,
}

/// Where an exception from a rule belongs, so that it holds for packets of the same hook alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entrance {
    /// In front of the rule, in its own chain.
    Own,
    /// In front of a rule that leads to its chain: that chain is reached from other hooks too, or takes no rules.
    Before(Jump),
    /// No command can put it anywhere, and why.
    Nowhere(String),
}

/// A rule that leads to another chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// The chain that it is in.
    pub chain: String,
    /// Its handle; of iptables-legacy its position.
    pub handle: u64,
    /// Its place in that chain, from 1 on.
    pub position: usize,
}

/// How a rule translates addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Translation {
    /// To an address of the interface that the packet leaves or came in by.
    Interfaces,
    /// To one that the rule names.
    Named,
}

/// Name space of rule ids.
const RULES: Uuid = Uuid::from_u128(0x6f62_7365_7276_6572_2072_756c_6520_6964);

/// `rule`, as ECS has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RuleName {
    /// Whose ruleset it is: the front end's, or `nftables`.
    pub ruleset: String,
    /// Stable hash of the statement and its place.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::uuid()"))]
    pub id: Uuid,
    /// The statement.
    pub name: String,
    /// What the administrator wrote beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// How a rule is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum RuleSource {
    /// Seen in the kernel as it happened.
    Probe,
    /// The same packet, sent through a private copy of the rules, ends there.
    Replay,
}

/// How a rule is known a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Confirmation {
    /// Seen where it gave its verdict too, and not only where the packet was freed.
    Verdict,
    /// The same packet, sent through a private copy of the rules, ends there too.
    Replay,
}

/// `egress.rule`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct EgressRule {
    /// Which part of the kernel has it.
    pub backend: Backend,
    /// Family of its table, as `nft` writes it.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Its handle; absent for a chain's policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// Its place in the chain, from 1 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// Its number, as the front end counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// What a copy of the rules does otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    /// What is wrong about it: its front end says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// As the backend's own tool writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Chains from the base chain to its own, where there is one way only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<String>,
    /// How it is known.
    pub source: RuleSource,
    /// What gave the same answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<Confirmation>,
    /// SHA-256 of the ruleset in which it was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ruleset_sha256: Option<String>,
}

impl NamedRule {
    /// What it is known by: the statement, else its text.
    pub fn words(&self) -> Option<&str> {
        self.statement.as_ref().map(|statement| statement.name.as_str()).or(self.text.as_deref())
    }

    /// It tells senders apart: by user, group or cgroup.
    pub fn asks_for_users(&self) -> bool {
        const WORDS: [&str; 6] = ["skuid", "skgid", "cgroupv2", "--uid-owner", "--gid-owner", "--path"];
        self.words().is_some_and(|words| words.split(' ').any(|word| WORDS.contains(&word)))
    }

    /// It is a chain's policy.
    pub fn is_policy(&self) -> bool {
        self.handle.is_none() && self.position.is_none() && self.text.is_some()
    }

    /// `rule`: known by its statement.
    pub fn name(&self) -> Option<RuleName> {
        let id = |parts: &[&str]| Uuid::new_v5(&RULES, parts.join("\0").as_bytes());
        if let Some(statement) = &self.statement {
            let (ruleset, name) = (statement.ruleset.clone(), statement.name.clone());
            let id = id(&[&ruleset, &name]);
            return Some(RuleName { ruleset, id, name, description: statement.comment.clone() });
        }
        let name = self.text.clone()?;
        let id = id(&[&self.family, &self.table, &self.chain, &name]);
        let ruleset = match self.backend {
            Backend::Nft => "nftables",
            Backend::IptablesLegacy => "iptables",
        };
        Some(RuleName { ruleset: ruleset.to_owned(), id, name, description: None })
    }

    /// `egress.rule`, seen live.
    pub fn seen(&self) -> EgressRule {
        EgressRule {
            backend: self.backend,
            family: self.family.clone(),
            table: self.table.clone(),
            chain: self.chain.clone(),
            handle: self.handle,
            position: self.position,
            number: self.statement.as_ref().and_then(|statement| statement.number),
            note: self.statement.as_ref().and_then(|statement| statement.note.clone()),
            text: self.text.clone(),
            path: self.path.clone(),
            source: RuleSource::Probe,
            confirmed_by: None,
            replay: None,
            ruleset_sha256: self.ruleset_sha256.clone(),
        }
    }

    /// What it did, in a sentence.
    pub fn sentence(&self) -> String {
        let did = match self.verdict {
            _ if self.translates == Some(Translation::Interfaces) => {
                "could not translate it (most often its interface has no address for that) and dropped"
            }
            _ if self.translates.is_some() => "could not translate it and dropped",
            Some(Verdict::Drop) => "dropped",
            Some(Verdict::Reject) => "rejected",
            None => "dropped or rejected",
        };
        let done = match self.leads_to {
            Some(to) => format!("sends it to {to} on this host, where nothing listens"),
            None => format!("{did} {}", self.packet.map_or("it", PacketKind::words)),
        };
        if let Some(Statement { what, name, comment, note, .. }) = &self.statement {
            let end = if self.is_policy() { ": no rule accepts it" } else { "" };
            let note = note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
            let comment = comment.as_ref().map(|comment| format!(", “{comment}”,")).unwrap_or_default();
            return format!("{what} `{name}`{comment} {done}{end}{note}");
        }
        let place = format!("{} {} {}", self.family, self.table, self.chain);
        match (self.handle, &self.text) {
            (None, text) if self.backend == Backend::IptablesLegacy => match (self.position, text) {
                (Some(position), text) => {
                    let text = text.as_ref().map(|text| format!(" `{text}`")).unwrap_or_default();
                    format!("iptables-legacy rule{text} at place {position} of {place} {done}")
                }
                (None, Some(_)) => {
                    format!("the policy of iptables-legacy's chain {place} {done}: no rule accepts it")
                }
                (None, None) => format!(
                    "a rule or policy of iptables-legacy, table {} from chain {} on, {done}",
                    self.table, self.chain
                ),
            },
            (None, None) => format!("a rule or the policy of chain {place}, or of one that it leads to, {done}"),
            (None, Some(_)) => format!("the policy of chain {place} {done}: no rule accepts it"),
            (Some(handle), Some(text)) => format!("nft rule `{text}` in {place} (handle {handle}) {done}"),
            (Some(handle), None) => format!("nft rule with handle {handle} in {place} {done}"),
        }
    }
}

/// How often a method named a rule, and what came of it; in lines, not packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RuleCounts {
    /// It named one.
    pub answered: u64,
    /// Of these, found in the ruleset.
    pub confirmed: u64,
    /// Of these, not found there, or not able to drop that packet: not told.
    pub discarded: u64,
    /// Of these, not looked for: the namespace was gone, or its ruleset could not be read. Not told either.
    pub unread: u64,
}

/// The same by method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RulesSeen {
    /// Rules are seen in the kernel as they drop.
    pub live: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Causes other than rules are named by their function on the hook.
    pub hooks: bool,
    /// Rules are reported from the second packet of a block on: what gives verdicts is probed while something is being blocked.
    pub verdicts: bool,
    /// Seen where the packet was freed.
    pub probe: RuleCounts,
    /// Seen where the verdict was given.
    pub verdict: RuleCounts,
    /// Seen in both ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// Packets that were sent through a copy of the rules.
    pub replay: ReplayCounts,
}

/// What came of rules that were seen in two ways; in lines, not packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Compared {
    /// They were the same.
    pub agreed: u64,
    /// They were not: neither is reported.
    pub disagreed: u64,
}

#[cfg(test)]
impl NamedRule {
    /// A rule with this text in `inet filter output`, which drops.
    pub(crate) fn example(text: &str) -> Self {
        Self {
            backend: Backend::Nft,
            family: "inet".to_owned(),
            table: "filter".to_owned(),
            chain: "output".to_owned(),
            handle: Some(4),
            position: Some(1),
            text: Some(text.to_owned()),
            path: Vec::new(),
            verdict: Some(Verdict::Drop),
            ruleset_sha256: None,
            statement: None,
            translates: None,
            entrance: Entrance::Own,
            packet: None,
            leads_to: None,
            translated: None,
            sees_forwarded: false,
        }
    }
}

//! What in rules decides by more than a packet, and whether that matters to one: a rule that it cannot match does not. Pure.

use serde::{Deserialize, Serialize};

use super::{
    depends::{Judged, NETWORK, is_address_or_port},
    packet::Whole,
    ruleset::{DATA, NAME, RULE_EXPRESSIONS},
};
use crate::firewall::netfilter::family;
use crate::kernel::netlink::Attributes;

/// By what a rule decides, beside the packet, the addresses and the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DoubtReason {
    /// A rate, a set that changes by itself, a time of day.
    Anything,
    /// A connection's state.
    State,
    /// The same, and all that it does is to accept.
    AcceptedState,
    /// The sender's cgroup.
    Cgroup,
    /// More of the packet than addresses, ports and flags.
    Header,
}

/// A rule that decides by more than the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Doubt {
    by: DoubtReason,
    words: String,
    /// Family of its table and what it is made of, where that is known.
    rule: Option<(u8, Attributes)>,
}

/// Rules of each kind that are kept apart; with more of them every packet is in doubt.
const MAX_DOUBTS: usize = 256;

/// What in rules decides by more than a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depends {
    doubts: Vec<Doubt>,
    /// Chains that hang on the way.
    pub(super) chains: usize,
    /// Something may give a packet other addresses or ports.
    pub(super) translates: bool,
}

/// The same for one packet, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubts {
    /// Whatever is known of it.
    pub(super) always: Option<String>,
    /// Unless it is the first of its connection, or that is known. What one chain accepts by it another may still drop: only where
    /// there is one chain does that not matter to a packet that was dropped.
    pub(super) by_state: Option<String>,
    /// Unless it is sent from its sender's cgroup.
    pub(super) by_cgroup: Option<String>,
    /// Unless the packet is there, and not only what it is said to be.
    pub(super) by_header: Option<String>,
}

impl Depends {
    /// Nothing so far, where so many chains hang on the way.
    pub(super) fn on(chains: usize) -> Self {
        Self { chains, ..Self::default() }
    }

    /// One more rule.
    pub(super) fn add(&mut self, judged: Judged, rule: Option<(u8, &Attributes)>, told: impl Fn(&str) -> String) {
        if !judged.decides {
            return;
        }
        let state = if judged.accepts { DoubtReason::AcceptedState } else { DoubtReason::State };
        let all = [
            judged.uncertain.map(|what| (DoubtReason::Anything, told(&what))),
            judged.by_state.then(|| (state, told("a connection's state"))),
            judged.by_header.then(|| (DoubtReason::Header, told("a field of the packet"))),
            judged.by_cgroup.then(|| (DoubtReason::Cgroup, told("a cgroup"))),
        ];
        for (by, words) in all.into_iter().flatten() {
            let known = self.doubts.iter().filter(|doubt| doubt.by == by).count();
            if known <= MAX_DOUBTS {
                let rule =
                    rule.filter(|_| known < MAX_DOUBTS).map(|(family, of)| (family, of.only(&[RULE_EXPRESSIONS])));
                self.doubts.push(Doubt { by, words, rule });
            }
        }
    }

    /// Something that could not be looked at.
    pub(super) fn unknown(what: &str) -> Self {
        let doubt = Doubt { by: DoubtReason::Anything, words: what.to_owned(), rule: None };
        Self { doubts: vec![doubt], chains: 0, translates: true }
    }

    /// Both rulesets' together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.doubts.extend(other.doubts);
        let translates = self.translates || other.translates;
        Self { doubts: self.doubts, chains: self.chains + other.chains, translates }
    }

    /// Something asks for a cgroup.
    pub(super) fn asks_for_cgroups(&self) -> bool {
        self.doubts.iter().any(|doubt| doubt.by == DoubtReason::Cgroup)
    }

    /// What matters to a packet: rules that it cannot match do not.
    pub(super) fn of(&self, whole: &Whole) -> Doubts {
        let matters = |doubt: &&Doubt| {
            doubt.rule.as_ref().is_none_or(|(family, rule)| may_match(*family, rule, whole, self.translates))
        };
        let first = |by: DoubtReason| {
            let mut all = self.doubts.iter().filter(|doubt| doubt.by == by);
            all.find(matters).map(|doubt| doubt.words.clone())
        };
        Doubts {
            always: first(DoubtReason::Anything),
            by_state: first(DoubtReason::State)
                .or_else(|| first(DoubtReason::AcceptedState).filter(|_| self.chains > 1)),
            by_cgroup: first(DoubtReason::Cgroup),
            by_header: first(DoubtReason::Header),
        }
    }
}

/// False where a rule compares something that is known of the packet, its protocol, an address, a port, with something else.
/// Of one that may be translated on its way only the protocol is known.
pub(super) fn may_match(of: u8, rule: &Attributes, whole: &Whole, is_translated: bool) -> bool {
    const PROTOCOL_OF_FAMILY: u32 = 15;
    const PROTOCOL: u32 = 16;
    const EQUAL: u32 = 0;
    const UNEQUAL: u32 = 1;
    let own = whole.family();
    // Frames of an interface have a protocol family of their own.
    let is_of_frames = of == family::NETDEV;
    if [family::IPV4, family::IPV6].contains(&of) && of != own {
        return false;
    }
    // What was loaded last, and where: whatever else a register holds is not known.
    let mut loaded: Option<(u32, Vec<u8>)> = None;
    for expression in rule.list(RULE_EXPRESSIONS).lists() {
        let (name, data) = (expression.text(NAME).unwrap_or_default(), expression.list(DATA));
        let known =
            |register: Option<u32>| loaded.as_ref().filter(|(of, _)| Some(*of) == register).map(|(_, bytes)| bytes);
        match name.as_str() {
            "payload" => {
                let is_asked = is_address_or_port(&data) && whole.has(&data) && (!is_translated || is_protocol(&data));
                let bytes = is_asked.then(|| whole.field(data.number(2)?, data.number(3)?, data.number(4)?));
                loaded = data.number(1).zip(bytes.flatten().map(<[u8]>::to_vec));
            }
            "meta" => {
                let byte = match data.number(2) {
                    Some(PROTOCOL_OF_FAMILY) if !is_of_frames => Some(own),
                    Some(PROTOCOL) => Some(whole.protocol),
                    _ => None,
                };
                loaded = data.number(1).zip(byte.map(|byte| vec![byte]));
            }
            "bitwise" => {
                let (mask, flip) = (data.list(4).get(1).map(<[u8]>::to_vec), data.list(5).get(1).map(<[u8]>::to_vec));
                let of = known(data.number(1))
                    .zip(mask.zip(flip))
                    .filter(|(bytes, (mask, flip))| bytes.len() == mask.len() && bytes.len() == flip.len());
                let bytes = of.map(|(bytes, (mask, flip))| {
                    bytes.iter().zip(mask.iter().zip(&flip)).map(|(byte, (mask, flip))| byte & mask ^ flip).collect()
                });
                loaded = data.number(2).zip(bytes);
            }
            "cmp" => {
                let compared = known(data.number(1)).zip(data.list(3).get(1).map(<[u8]>::to_vec));
                let Some((bytes, with)) = compared.filter(|(bytes, with)| bytes.len() == with.len()) else { continue };
                let is_same = *bytes == with;
                match data.number(2) {
                    Some(EQUAL) if !is_same => return false,
                    Some(UNEQUAL) if is_same => return false,
                    _ => {}
                }
            }
            // They write nowhere.
            "counter" | "match" | "target" | "log" | "limit" | "reject" => {}
            _ => loaded = None,
        }
    }
    true
}

/// It is the protocol of what IP carries.
fn is_protocol(payload: &Attributes) -> bool {
    payload.number(2) == Some(NETWORK)
        && [Some((9, 1)), Some((6, 1))].contains(&payload.number(3).zip(payload.number(4)))
}

//! Where on the stack the eBPF side must look for what dropped a packet: at one and the same word for every packet of a proof.
//! Pure.

use std::fmt;

use observer_ebpf::abi::{
    FRAME_WORDS, FrameWord, HookSite, NO_WORD, RuleAnswer, RuleConfig, RuleProof, RuleSite, VerdictSite,
};
use zerocopy::transmute;

use super::proof::{By, Expected};

/// Words of a [`RuleProof`].
pub(in crate::probe) const PROOF_WORDS: usize = size_of::<RuleProof>() / size_of::<u64>();
/// Arguments that the tracepoint has at most, which come first: where the packet was freed is one of them.
const ARGUMENTS: usize = 4;
/// Bit of a rule's first word that marks the end of its chain.
const IS_LAST: u64 = 1;

/// What the eBPF side said of one packet.
#[derive(Clone, Debug)]
pub(in crate::probe) struct Seen {
    /// What it had to be.
    pub(in crate::probe) expected: Expected,
    /// Address that freed it.
    pub(in crate::probe) location: u64,
    /// What the sites gave that were known.
    pub(in crate::probe) answer: RuleAnswer,
    /// Rule that gave the verdict, as [`RuleProof::given`] has it.
    pub(in crate::probe) given: u64,
    frame: Vec<FrameWord>,
}

impl fmt::Display for By {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { rule: 0, .. } => formatter.write_str("the policy"),
            Self::Rule { rule, .. } => write!(formatter, "rule {rule}"),
            Self::Program => formatter.write_str("a BPF program"),
        }
    }
}

impl Expected {
    /// What the eBPF side must say of a packet that nftables drops.
    pub(in crate::probe) fn rule(&self) -> Option<RuleAnswer> {
        match self.by {
            By::Rule { table, chain, rule } => {
                Some(RuleAnswer { netns_cookie: self.cookie, function: 0, table, chain, rule })
            }
            By::Program => None,
        }
    }
}

impl Seen {
    /// From the words of a [`RuleProof`].
    pub(in crate::probe) fn read(expected: Expected, words: &[u64; PROOF_WORDS]) -> Self {
        let RuleProof { location, answer, given, frame } = transmute!(*words);
        Self { expected, location, answer, given, frame: frame.to_vec() }
    }

    /// Why it is not right.
    pub(in crate::probe) fn complaint(&self) -> String {
        let Self { expected, answer, given, .. } = self;
        format!(
            "of a packet that {} dropped the eBPF side said chain {:x}, rule {}, by verdict {given}",
            expected.by, answer.chain, answer.rule
        )
    }
}

/// The first word of the stack that is so for every packet.
fn common(all: &[&Seen], holds: impl Fn(&Seen, &FrameWord) -> bool) -> Option<u64> {
    (ARGUMENTS..FRAME_WORDS)
        .find(|index| all.iter().all(|seen| seen.frame.get(*index).is_some_and(|word| holds(seen, word))))
        .map(|index| index as u64)
}

/// For each place that freed a packet, where on the stack return address, rule and base chain are: at one and the same word
/// for every packet. Pure.
pub(in crate::probe) fn rules(all: &[Seen], config: &RuleConfig) -> Result<Vec<RuleSite>, String> {
    let all: Vec<(&Seen, RuleAnswer)> = all.iter().filter_map(|seen| Some((seen, seen.expected.rule()?))).collect();
    let mut locations: Vec<u64> = all.iter().map(|(seen, _)| seen.location).collect();
    locations.sort_unstable();
    locations.dedup();
    let mut sites = Vec::new();
    for location in locations {
        let here: Vec<&Seen> =
            all.iter().filter(|(seen, _)| seen.location == location).map(|(seen, _)| *seen).collect();
        let wanted = |seen: &Seen| seen.expected.rule().unwrap_or_default();
        let by_rule = here.iter().filter(|seen| wanted(seen).rule != 0).count();
        let missing = |what: &str| format!("the stack of {location:#x} holds no {what} at one place");
        let return_word = common(&here, |_, word| word.value == location).ok_or_else(|| missing("return address"))?;
        let chain_word = common(&here, |seen, word| {
            word.chain_handle == wanted(seen).chain && word.table_handle == wanted(seen).table
        })
        .ok_or_else(|| missing("chain"))?;
        let mut rule_word = NO_WORD;
        if by_rule > 0 {
            rule_word = common(&here, |seen, word| {
                let handle = (word.target >> config.rule_handle_bit) & config.rule_handle_mask;
                match wanted(seen).rule {
                    // A policy drops once the last rule is passed.
                    0 => word.target & IS_LAST != 0,
                    rule => word.target & IS_LAST == 0 && handle == rule,
                }
            })
            .ok_or_else(|| missing("rule"))?;
        }
        let last_is_policy = u64::from(by_rule > 0 && by_rule < here.len());
        sites.push(RuleSite { location, return_word, rule_word, chain_word, last_is_policy });
    }
    Ok(sites)
}

/// Where on the stack of the function that walks the hooks its return address, its list and the place in that are, if so many
/// functions of others come `before` those that are known. Pure.
pub(in crate::probe) fn hook(all: &[&Seen], before: u32) -> Result<HookSite, String> {
    let first = all.first().ok_or("this kernel has no BPF netfilter programs, by which it could be proven")?;
    let location = first.location;
    if all.iter().any(|seen| seen.location != location) {
        return Err("packets are freed at several places".to_owned());
    }
    let missing = |what: &str| format!("the stack of {location:#x} holds no {what} at one place");
    let return_word = common(all, |_, word| word.value == location).ok_or_else(|| missing("return address"))?;
    let entries_word = common(all, |seen, word| {
        word.value >> USER_BITS != 0 && word.target & 0xffff == u64::from(seen.expected.entry.1 + before)
    })
    .ok_or_else(|| missing("list of hooks"))?;
    let index_word = common(all, |seen, word| word.value & 0xffff_ffff == u64::from(seen.expected.entry.0 + before))
        .ok_or_else(|| missing("place in the list of hooks"))?;
    Ok(HookSite { location, return_word, entries_word, index_word })
}

/// Where among registers and stack the rule is, at once or by way of another word, and the base chain. Pure.
pub(in crate::probe) fn verdict(all: &[Seen], config: &RuleConfig, distance: u64) -> Result<VerdictSite, String> {
    let by_rule: Vec<&Seen> =
        all.iter().filter(|seen| seen.expected.rule().is_some_and(|expected| expected.rule != 0)).collect();
    let wanted = |seen: &Seen| seen.expected.rule().unwrap_or_default();
    let handle = |head: u64| (head >> config.verdict.handle_bit) & config.verdict.handle_mask;
    // Arguments of the walker come first here too.
    let find = |holds: &dyn Fn(&Seen, &FrameWord) -> bool| {
        (0..FRAME_WORDS)
            .find(|index| by_rule.iter().all(|seen| seen.frame.get(*index).is_some_and(|word| holds(seen, word))))
            .map(|index| index as u64)
    };
    if by_rule.is_empty() {
        return Err("no rule dropped a packet".to_owned());
    }
    let chain_word =
        find(&|seen, word| word.chain_handle == wanted(seen).chain && word.table_handle == wanted(seen).table)
            .ok_or("neither registers nor stack hold the base chain at one place")?;
    let at_once = find(&|seen, word| handle(word.target) == wanted(seen).rule);
    let by_way = find(&|seen, word| handle(word.value) == wanted(seen).rule);
    let (rule_word, indirect) = match (at_once, by_way) {
        (Some(index), _) => (index, 0),
        (None, Some(index)) => (index, 1),
        (None, None) => return Err("neither registers nor stack hold the rule at one place".to_owned()),
    };
    Ok(VerdictSite { rule_word, indirect, chain_word, distance, learnt: 1 })
}

/// Addresses of user space have no more bits.
const USER_BITS: u32 = 56;

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RuleConfig {
        RuleConfig { rule_handle_bit: 13, rule_handle_mask: (1 << 42) - 1, ..RuleConfig::default() }
    }

    const BY_RULE: u64 = 0xffff_ffff_8100_0010;
    const BY_POLICY: u64 = 0xffff_ffff_8100_0020;

    /// A packet that rule `rule` dropped (0: the policy): the rule's address at word 8 points to its head, the return
    /// address is at 11, the chain at 12; the location is an argument too.
    fn packet(location: u64, rule: u64) -> Seen {
        let mut frame = vec![FrameWord { value: 7 + rule, ..FrameWord::default() }; FRAME_WORDS];
        frame[1].value = location;
        // The mark of the last is not set, and what lies above the handle is anything.
        frame[8].target = 0xff80_0000_0000_0000 | rule << 13 | 24 << 1;
        frame[11].value = location;
        frame[12] = FrameWord { value: 1, target: 2, chain_handle: 3, table_handle: 4 };
        Seen {
            expected: Expected { port: 1, cookie: 5, by: By::Rule { table: 4, chain: 3, rule }, entry: (0, 3) },
            location,
            answer: RuleAnswer::default(),
            given: 0,
            frame,
        }
    }

    #[test]
    fn the_words_are_those_that_are_right_every_time() {
        let mut seen = vec![packet(BY_RULE, 5), packet(BY_RULE, 6), packet(BY_POLICY, 0)];
        // Right once, and by chance.
        seen[0].frame[5].target = 5 << 13;
        let mut sites = rules(&seen, &config()).unwrap();
        sites.sort_by_key(|site| site.location);
        let site =
            |location, rule_word| RuleSite { location, return_word: 11, rule_word, chain_word: 12, last_is_policy: 0 };
        assert_eq!(sites, [site(BY_RULE, 8), site(BY_POLICY, NO_WORD)]);
    }

    #[test]
    fn nothing_is_learnt_from_a_frame_that_is_gone() {
        let mut seen = vec![packet(BY_RULE, 5), packet(BY_RULE, 6)];
        seen[1].frame[8].target |= 1;
        assert!(rules(&seen, &config()).is_err(), "the end of a chain is no rule");
        let mut both = [packet(BY_RULE, 5), packet(BY_RULE, 0)];
        assert!(rules(&both, &config()).is_err(), "rule and policy cannot be told apart");
        both[1].frame[8].target |= 1;
        let [site] = rules(&both, &config()).unwrap()[..] else { panic!("one place") };
        assert_eq!((site.rule_word, site.last_is_policy), (8, 1), "by the mark behind the last rule they can");
        let mut seen = vec![packet(BY_RULE, 5)];
        seen[0].frame[11].value = 0;
        assert!(rules(&seen, &config()).is_err(), "an argument is no return address");
    }

    /// A packet that the function at `index` of a hook's list of four dropped: the list is at word 13, the place at 12.
    fn packet_of_hook(index: u32) -> Seen {
        let mut frame = vec![FrameWord { value: 9, ..FrameWord::default() }; FRAME_WORDS];
        frame[1].value = BY_RULE;
        // As small as an address of user space may be, and by chance of the right number.
        frame[6].target = 4;
        frame[12].value = 0x55 << 32 | u64::from(index);
        frame[13] = FrameWord { value: 0xffff_8881_6835_1d00, target: 7 << 16 | 4, ..FrameWord::default() };
        frame[17].value = BY_RULE;
        Seen {
            expected: Expected { port: 13, cookie: 5, by: By::Program, entry: (index, 4) },
            location: BY_RULE,
            answer: RuleAnswer::default(),
            given: 0,
            frame,
        }
    }

    #[test]
    fn a_hooks_function_is_a_place_in_a_list() {
        let mut seen: Vec<Seen> = (0..4).map(packet_of_hook).collect();
        let site = HookSite { location: BY_RULE, return_word: 17, entries_word: 13, index_word: 12 };
        assert_eq!(hook(&seen.iter().collect::<Vec<_>>(), 0), Ok(site));
        assert!(hook(&seen.iter().collect::<Vec<_>>(), 1).is_err(), "nobody else is on that hook");
        let mut behind_another: Vec<Seen> = (1..5).map(packet_of_hook).collect();
        for seen in &mut behind_another {
            seen.frame[13].target += 1;
            seen.expected.entry.0 -= 1;
        }
        assert_eq!(hook(&behind_another.iter().collect::<Vec<_>>(), 1), Ok(site), "a security module is");
        seen[2].frame[12].value = 3;
        assert!(hook(&seen.iter().collect::<Vec<_>>(), 0).is_err(), "one place is another one's");
        seen[2] = Seen { location: BY_POLICY, ..packet_of_hook(2) };
        assert!(hook(&seen.iter().collect::<Vec<_>>(), 0).is_err(), "two places that free");
        assert!(hook(&[], 0).is_err());
    }

    #[test]
    fn programs_say_nothing_of_rules() {
        let seen = [packet(BY_RULE, 5), packet_of_hook(1), packet(BY_RULE, 6)];
        assert_eq!(rules(&seen, &config()).unwrap().len(), 1);
    }

    #[test]
    fn a_proofs_words_are_in_the_order_of_its_fields() {
        let words: [u64; PROOF_WORDS] = std::array::from_fn(|index| index as u64);
        let seen = Seen::read(packet(BY_RULE, 1).expected, &words);
        let answer = RuleAnswer { netns_cookie: 1, function: 2, table: 3, chain: 4, rule: 5 };
        assert_eq!((seen.location, seen.answer, seen.given), (0, answer, 6));
        assert_eq!(seen.frame[1], FrameWord { value: 11, target: 12, chain_handle: 13, table_handle: 14 });
        assert_eq!(seen.frame.len(), FRAME_WORDS);
    }
}

//! Whether, and from where on the stack, the kernel half can tell which rule dropped a packet: learnt from packets that
//! known rules drop ([`proof`](super::proof)), tried with them again, and believed only when every answer is right.

use std::fmt;

use aya::maps::{Array, MapData};
use observer_ebpf::abi::{
    FRAME_WORDS, FrameWord, MAX_SITES, NO_WORD, RULE_CONFIG_WORDS, RuleAnswer, RuleConfig, RuleProof, RuleSite,
};

use super::proof::{Expected, Prepared, Unproven};

const PROOF_WORDS: usize = size_of::<RuleProof>() / size_of::<u64>();
const WORDS_OF_FRAME_WORD: usize = size_of::<FrameWord>() / size_of::<u64>();
/// Words before the frame in a [`RuleProof`].
const FIXED: usize = PROOF_WORDS - FRAME_WORDS * WORDS_OF_FRAME_WORD;
/// Arguments that the tracepoint has at most, which come first: where the packet was freed is one of them.
const ARGUMENTS: usize = 4;
/// Bit of a rule's first word that marks the end of its chain.
const IS_LAST: u64 = 1;

/// Who makes and sends a proof's packets.
pub trait Proving {
    /// Makes the namespace.
    fn prepare_proof(&mut self) -> Result<Prepared, Unproven>;
    /// Sends one packet to every port.
    fn send_proof(&mut self) -> Result<(), Unproven>;
    /// The namespace is not needed any more.
    fn end_proof(&mut self);
}

/// The maps by which the kernel half is told what to look at.
pub struct RuleMaps {
    config: Array<MapData, [u64; RULE_CONFIG_WORDS]>,
    proofs: Array<MapData, [u64; PROOF_WORDS]>,
    /// Why it is not to be tried.
    avoided: Option<String>,
    /// What the kernel half was told last.
    told: RuleConfig,
    /// Sites that are proven.
    proven: Vec<RuleSite>,
}

/// A proof that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Packets, each of which was named right.
    pub packets: usize,
    /// Frames that are known: by the place that frees, and by their depth.
    pub places: usize,
}

impl fmt::Display for Proof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, places } = self;
        write!(formatter, "{packets} packets that known rules dropped were told apart, by {places} frames of the stack")
    }
}

/// What the kernel half said of one packet.
#[derive(Clone, Debug)]
struct Seen {
    expected: Expected,
    location: u64,
    answer: RuleAnswer,
    frame: Vec<FrameWord>,
}

impl RuleMaps {
    pub(super) fn new(
        config: Array<MapData, [u64; RULE_CONFIG_WORDS]>,
        proofs: Array<MapData, [u64; PROOF_WORDS]>,
        avoided: Option<String>,
    ) -> Self {
        Self { config, proofs, avoided, told: RuleConfig::default(), proven: Vec::new() }
    }

    /// Learns, tries, and from then on tells rules; or leaves everything as it was, and says why.
    pub fn arm(&mut self, prover: &mut impl Proving) -> Result<Proof, Unproven> {
        if let Some(why) = &self.avoided {
            return Err(Unproven::Other(why.clone()));
        }
        let prepared = prover.prepare_proof()?;
        let proven = self.learn_and_try(&prepared, prover);
        if let Ok(proven) = &proven {
            self.proven.clone_from(proven);
        }
        // Before the namespace is gone: its number may be another one's then.
        let told = self.tell(RuleConfig { proof_netns: 0, wants_frames: 0, ..self.told }, &[]);
        prover.end_proof();
        told?;
        proven.map(|_| Proof { packets: prepared.expected.len(), places: self.proven.len() })
    }

    fn learn_and_try(&mut self, prepared: &Prepared, prover: &mut impl Proving) -> Result<Vec<RuleSite>, Unproven> {
        let config = RuleConfig { proof_netns: prepared.netns.into(), ..prepared.config() };
        let seen = self.round(RuleConfig { wants_frames: 1, ..config }, &[], prepared, prover)?;
        let learnt = learn(&seen, &config).map_err(Unproven::Other)?;
        log::debug!("learnt from the stack: {learnt:x?}");
        if learnt.len() > MAX_SITES {
            return Err(Unproven::Other("packets are freed at too many places".to_owned()));
        }
        for seen in self.round(config, &learnt, prepared, prover)? {
            if seen.answer != seen.expected.answer() {
                return Err(Unproven::Other(format!(
                    "of a packet that {} dropped the kernel half said {:?}",
                    name(&seen.expected),
                    seen.answer
                )));
            }
        }
        Ok(learnt)
    }

    /// Sends every packet, and reads what was said of it.
    fn round(
        &mut self,
        config: RuleConfig,
        trial: &[RuleSite],
        prepared: &Prepared,
        prover: &mut impl Proving,
    ) -> Result<Vec<Seen>, Unproven> {
        self.tell(config, trial)?;
        for expected in &prepared.expected {
            self.proofs.set(expected.port.into(), [0; PROOF_WORDS], 0).map_err(other)?;
        }
        prover.send_proof()?;
        prepared
            .expected
            .iter()
            .map(|expected| {
                let words = self.proofs.get(&expected.port.into(), 0).map_err(other)?;
                let seen = seen(*expected, &words);
                if seen.location == 0 {
                    return Err(Unproven::Later(format!("a packet that {} dropped was not seen", name(expected))));
                }
                Ok(seen)
            })
            .collect()
    }

    /// Tells the kernel half, with the proven sites first and those to be tried behind them.
    fn tell(&mut self, mut config: RuleConfig, trial: &[RuleSite]) -> Result<(), Unproven> {
        config.proven = self.proven.len() as u64;
        config.sites = [RuleSite::default(); MAX_SITES];
        for (into, site) in config.sites.iter_mut().zip(self.proven.iter().chain(trial)) {
            *into = *site;
        }
        self.told = config;
        self.config.set(0, config.words(), 0).map_err(other)
    }
}

fn other(error: impl fmt::Display) -> Unproven {
    Unproven::Other(error.to_string())
}

fn name(expected: &Expected) -> String {
    match expected.answer().rule {
        0 => "the policy".to_owned(),
        handle => format!("rule {handle}"),
    }
}

/// The words of a [`RuleProof`], in the order of its fields.
fn seen(expected: Expected, words: &[u64; PROOF_WORDS]) -> Seen {
    let [location, netns_cookie, table, chain, rule] = [words[0], words[1], words[2], words[3], words[4]];
    let frame = words[FIXED..]
        .chunks_exact(WORDS_OF_FRAME_WORD)
        .map(|word| FrameWord { value: word[0], target: word[1], chain_handle: word[2], table_handle: word[3] })
        .collect();
    Seen { expected, location, answer: RuleAnswer { netns_cookie, table, chain, rule }, frame }
}

/// For each place that freed a packet, where on the stack return address, rule and base chain are: at one and the same word
/// for every packet. Pure.
fn learn(all: &[Seen], config: &RuleConfig) -> Result<Vec<RuleSite>, String> {
    let mut locations: Vec<u64> = all.iter().map(|seen| seen.location).collect();
    locations.sort_unstable();
    locations.dedup();
    let mut sites = Vec::new();
    for location in locations {
        let here: Vec<&Seen> = all.iter().filter(|seen| seen.location == location).collect();
        let common = |holds: &dyn Fn(&Seen, &FrameWord) -> bool| {
            (ARGUMENTS..FRAME_WORDS)
                .find(|index| here.iter().all(|seen| seen.frame.get(*index).is_some_and(|word| holds(seen, word))))
                .map(|index| index as u64)
        };
        let by_rule = here.iter().filter(|seen| seen.expected.answer().rule != 0).count();
        let missing = |what: &str| format!("the stack of {location:#x} holds no {what} at one place");
        let return_word = common(&|_, word| word.value == location).ok_or_else(|| missing("return address"))?;
        let chain_word = common(&|seen, word| {
            let answer = seen.expected.answer();
            word.chain_handle == answer.chain && word.table_handle == answer.table
        })
        .ok_or_else(|| missing("chain"))?;
        let mut rule_word = NO_WORD;
        if by_rule > 0 {
            rule_word = common(&|seen, word| {
                let handle = (word.target >> config.rule_handle_bit) & config.rule_handle_mask;
                match seen.expected.answer().rule {
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

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: RuleConfig = RuleConfig {
        rule_handle_bit: 13,
        rule_handle_mask: (1 << 42) - 1,
        proof_netns: 0,
        wants_frames: 0,
        chain_table: 0,
        chain_handle: 0,
        table_handle: 0,
        proven: 0,
        sites: [RuleSite { location: 0, return_word: 0, rule_word: 0, chain_word: 0, last_is_policy: 0 }; MAX_SITES],
    };
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
            expected: Expected { port: 1, cookie: 5, handles: (4, 3, rule) },
            location,
            answer: RuleAnswer::default(),
            frame,
        }
    }

    #[test]
    fn the_words_are_those_that_are_right_every_time() {
        let mut seen = vec![packet(BY_RULE, 5), packet(BY_RULE, 6), packet(BY_POLICY, 0)];
        // Right once, and by chance.
        seen[0].frame[5].target = 5 << 13;
        let mut sites = learn(&seen, &CONFIG).unwrap();
        sites.sort_by_key(|site| site.location);
        let site =
            |location, rule_word| RuleSite { location, return_word: 11, rule_word, chain_word: 12, last_is_policy: 0 };
        assert_eq!(sites, [site(BY_RULE, 8), site(BY_POLICY, NO_WORD)]);
    }

    #[test]
    fn nothing_is_learnt_from_a_frame_that_is_gone() {
        let mut seen = vec![packet(BY_RULE, 5), packet(BY_RULE, 6)];
        seen[1].frame[8].target |= 1;
        assert!(learn(&seen, &CONFIG).is_err(), "the end of a chain is no rule");
        let mut both = [packet(BY_RULE, 5), packet(BY_RULE, 0)];
        assert!(learn(&both, &CONFIG).is_err(), "rule and policy cannot be told apart");
        both[1].frame[8].target |= 1;
        let [site] = learn(&both, &CONFIG).unwrap()[..] else { panic!("one place") };
        assert_eq!((site.rule_word, site.last_is_policy), (8, 1), "by the mark behind the last rule they can");
        let mut seen = vec![packet(BY_RULE, 5)];
        seen[0].frame[11].value = 0;
        assert!(learn(&seen, &CONFIG).is_err(), "an argument is no return address");
    }

    #[test]
    fn a_proofs_words_are_in_the_order_of_its_fields() {
        let words: [u64; PROOF_WORDS] = std::array::from_fn(|index| index as u64);
        let seen = seen(Expected { port: 1, cookie: 0, handles: (0, 0, 0) }, &words);
        assert_eq!((seen.location, seen.answer), (0, RuleAnswer { netns_cookie: 1, table: 2, chain: 3, rule: 4 }));
        assert_eq!(seen.frame[1], FrameWord { value: 9, target: 10, chain_handle: 11, table_handle: 12 });
        assert_eq!(seen.frame.len(), FRAME_WORDS);
    }
}

//! Whether, and from where on the stack, the kernel half can tell what dropped a packet: learnt from packets that known
//! rules and programs drop ([`proof`](super::proof)), tried with them again, and believed only when every answer is right.

use std::{fmt, os::fd::OwnedFd, time::Duration};

use aya::maps::{Array, MapData};
use observer_ebpf::abi::{
    FRAME_WORDS, FRAMES_OF_FREE, FRAMES_OF_VERDICT, FrameWord, HookFunction, HookKind, HookSite, MAX_FUNCTIONS,
    MAX_SITES, NO_WORD, RULE_CONFIG_WORDS, RuleAnswer, RuleConfig, RuleProof, RuleSite, UNKNOWN_RULE, VerdictSite,
};

use super::{
    proof::{By, Expected, Prepared, Unproven},
    symbols::Functions,
};

const PROOF_WORDS: usize = size_of::<RuleProof>() / size_of::<u64>();
const WORDS_OF_FRAME_WORD: usize = size_of::<FrameWord>() / size_of::<u64>();
/// Words before the frame in a [`RuleProof`].
const FIXED: usize = PROOF_WORDS - FRAME_WORDS * WORDS_OF_FRAME_WORD;
/// Arguments that the tracepoint has at most, which come first: where the packet was freed is one of them.
const ARGUMENTS: usize = 4;
/// Longer than a proof takes.
const PROOF: Duration = Duration::from_secs(10);
/// Bit of a rule's first word that marks the end of its chain.
const IS_LAST: u64 = 1;

/// Who makes and sends a proof's packets.
pub trait Proving {
    /// Where this kernel's functions are now.
    fn functions(&mut self) -> Result<Functions, String>;
    /// Makes the namespace.
    fn prepare_proof(&mut self) -> Result<Prepared, Unproven>;
    /// Keeps the programs that run where a verdict begins and ends.
    fn keep_verdict_programs(&mut self, programs: &[OwnedFd; 2]) -> Result<(), String>;
    /// Probes the functions that give verdicts for so long from now on: all of them in a moment, or those of a proof at once.
    fn arm_verdicts(&mut self, time: Duration, is_proof: bool) -> Result<(), String>;
    /// Sends one packet to every port.
    fn send_proof(&mut self) -> Result<(), Unproven>;
    /// The namespace is not needed any more.
    fn end_proof(&mut self);
}

/// The maps by which the kernel half is told what to look at.
pub struct RuleMaps {
    config: Array<MapData, [u64; RULE_CONFIG_WORDS]>,
    proofs: Array<MapData, [u64; PROOF_WORDS]>,
    distance: Array<MapData, u64>,
    /// Those that run where a verdict begins and ends; or why they are not there.
    programs: Result<[OwnedFd; 2], String>,
    /// Why it is not to be tried.
    avoided: Option<String>,
    /// What the kernel half was told last.
    told: RuleConfig,
    functions: Functions,
    /// What chains are like is known.
    knows_chains: bool,
    /// Sites that are proven.
    proven: Vec<RuleSite>,
    hook: Option<HookSite>,
    verdict: Option<VerdictSite>,
}

/// What succeeded of a proof, in which something did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Packets that were dropped.
    pub packets: usize,
    /// Rules are told, by so many frames of the stack: by the place that frees, and by their depth. Or why not.
    pub rules: Result<usize, String>,
    /// Functions on hooks are told; or why not.
    pub hooks: Result<(), String>,
    /// Rules are told while the functions that give verdicts are probed; or why not. Tried only where they are not told
    /// otherwise.
    pub verdicts: Result<(), String>,
}

impl fmt::Display for Proof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rules {
            Ok(places) => write!(
                formatter,
                "of {} packets every one that a rule dropped was told by its rule, from {places} frames of the stack",
                self.packets
            )?,
            Err(why) => write!(formatter, "rules are not told: {why}")?,
        }
        match &self.verdicts {
            Ok(()) => write!(formatter, "; they are once something is blocked, by what gives the verdict")?,
            Err(why) => write!(formatter, "; {why}")?,
        }
        match &self.hooks {
            Ok(()) => write!(formatter, "; what else drops is told by its function on the hook"),
            Err(why) => write!(formatter, "; what else drops is not told apart: {why}"),
        }
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
        distance: Array<MapData, u64>,
        programs: Result<[OwnedFd; 2], String>,
        avoided: Option<String>,
    ) -> Self {
        Self {
            config,
            proofs,
            distance,
            programs,
            avoided,
            told: RuleConfig::default(),
            functions: Functions::default(),
            knows_chains: false,
            proven: Vec::new(),
            hook: None,
            verdict: None,
        }
    }

    /// Learns, tries, and from then on tells rules; or leaves everything as it was, and says why.
    pub fn arm(&mut self, prover: &mut impl Proving) -> Result<Proof, Unproven> {
        if let Some(why) = &self.avoided {
            let why = why.clone();
            self.find_functions(prover)?;
            return Err(Unproven::Other(why));
        }
        // What was learnt may be of a module that was loaded anew since.
        (self.proven, self.hook, self.verdict) = (Vec::new(), None, None);
        let prepared = prover.prepare_proof();
        if let Err(error) = self.find_functions(prover) {
            prover.end_proof();
            return Err(error);
        }
        let prepared = prepared?;
        self.knows_chains = prepared.knows_chains();
        let proof = self.learn_and_try(&prepared, prover);
        // Before the namespace is gone: its number may be another one's then.
        let told = self.tell(RuleConfig { proof_netns: 0, wants_frames: 0, ..self.told }, Trial::Nothing);
        prover.end_proof();
        told?;
        proof
    }

    /// Looks up anew where the kernel's functions are: those of modules may have come.
    pub fn find_functions(&mut self, prover: &mut impl Proving) -> Result<(), Unproven> {
        self.functions = prover.functions().map_err(Unproven::Later)?;
        self.tell(self.told, Trial::Nothing)
    }

    fn learn_and_try(&mut self, prepared: &Prepared, prover: &mut impl Proving) -> Result<Proof, Unproven> {
        let config = RuleConfig { proof_netns: prepared.netns.into(), ..prepared.config() };
        let frames =
            self.round(RuleConfig { wants_frames: FRAMES_OF_FREE, ..config }, Trial::Nothing, prepared, prover)?;
        let rules = self.learn_rules(&frames, config, prepared, prover)?;
        if let Ok(sites) = &rules {
            self.proven.clone_from(sites);
        }
        // What is told already stays so, whatever becomes of the rest.
        let hooks = self.learn_hook(&frames, rules.is_ok(), config, prepared, prover);
        let hooks = if rules.is_ok() { hooks.unwrap_or_else(|error| Err(error.to_string())) } else { hooks? };
        if let Ok(site) = &hooks {
            self.hook = Some(*site);
        }
        let verdicts = match (&rules, &hooks) {
            (Ok(_), _) => Err("no other way is needed".to_owned()),
            (_, Err(_)) => Err("without the function on the hook the base chain is not known".to_owned()),
            (Err(_), Ok(_)) => {
                self.learn_verdict(config, prepared, prover).unwrap_or_else(|error| Err(error.to_string()))
            }
        };
        if let Ok(site) = &verdicts {
            self.verdict = Some(*site);
        }
        match (rules, hooks) {
            (Err(why), Err(_)) => Err(Unproven::Other(why)),
            (rules, hooks) => Ok(Proof {
                packets: prepared.expected.len(),
                rules: rules.map(|sites| sites.len()),
                hooks: hooks.map(drop),
                verdicts: verdicts.map(drop),
            }),
        }
    }

    /// Where rules are, if all are told right.
    fn learn_rules(
        &mut self,
        frames: &[Seen],
        config: RuleConfig,
        prepared: &Prepared,
        prover: &mut impl Proving,
    ) -> Result<Result<Vec<RuleSite>, String>, Unproven> {
        if !prepared.knows_chains() {
            return Ok(Err("this kernel does not describe nftables' types".to_owned()));
        }
        if config.rule_handle_mask == 0 {
            return Ok(Err("this kernel's rules do not carry their handles".to_owned()));
        }
        let learnt = match learn(frames, &config) {
            Ok(learnt) if learnt.len() <= MAX_SITES => learnt,
            Ok(_) => return Ok(Err("packets are freed at too many places".to_owned())),
            Err(why) => return Ok(Err(why)),
        };
        log::debug!("learnt of rules from the stack: {learnt:x?}");
        let seen = self.round(config, Trial::Rules(&learnt), prepared, prover)?;
        Ok(match seen.iter().find(|seen| seen.expected.rule().is_some_and(|expected| seen.answer != expected)) {
            Some(wrong) => Err(wrong.complaint()),
            None => Ok(learnt),
        })
    }

    /// Where the function on the hook is, if all are told right that no rule tells.
    fn learn_hook(
        &mut self,
        frames: &[Seen],
        rules: bool,
        config: RuleConfig,
        prepared: &Prepared,
        prover: &mut impl Proving,
    ) -> Result<Result<HookSite, String>, Unproven> {
        let of_hook = |seen: &Seen| !rules || seen.expected.by == By::Program;
        let frames: Vec<&Seen> = frames.iter().filter(|seen| of_hook(seen)).collect();
        let learnt = match learn_hook(&frames) {
            Ok(learnt) => learnt,
            Err(why) => return Ok(Err(why)),
        };
        log::debug!("learnt of hooks from the stack: {learnt:x?}");
        let seen = self.round(config, Trial::Hook(learnt), prepared, prover)?;
        let wrong = seen.iter().filter(|seen| of_hook(seen)).find(|seen| !self.is_of_hook(seen));
        Ok(match wrong {
            Some(wrong) => Err(wrong.complaint()),
            None => Ok(learnt),
        })
    }

    /// Where the walker of the rules has what, when it has called a function that gives a verdict.
    fn learn_verdict(
        &mut self,
        config: RuleConfig,
        prepared: &Prepared,
        prover: &mut impl Proving,
    ) -> Result<Result<VerdictSite, String>, Unproven> {
        if config.verdict.handle_mask == 0 || !self.knows_chains {
            return Ok(Err("this kernel does not describe what verdicts are given by".to_owned()));
        }
        let armed = match &self.programs {
            Ok(programs) => prover.keep_verdict_programs(programs).and_then(|()| prover.arm_verdicts(PROOF, true)),
            Err(why) => Err(why.clone()),
        };
        if let Err(why) = armed {
            return Ok(Err(why));
        }
        let learnt = self.learn_armed(config, prepared, prover);
        // Nothing is being blocked yet.
        prover.arm_verdicts(Duration::ZERO, true).map_err(Unproven::Later)?;
        learnt
    }

    fn learn_armed(
        &mut self,
        config: RuleConfig,
        prepared: &Prepared,
        prover: &mut impl Proving,
    ) -> Result<Result<VerdictSite, String>, Unproven> {
        self.distance.set(0, 0, 0).map_err(other)?;
        let wants = RuleConfig { wants_frames: FRAMES_OF_VERDICT, ..config };
        let seen = self.round(wants, Trial::Nothing, prepared, prover)?;
        let distance = self.distance.get(&0, 0).map_err(other)?;
        let learnt = match learn_verdict(&seen, &config, distance) {
            Ok(learnt) => learnt,
            Err(why) => return Ok(Err(why)),
        };
        log::debug!("learnt of verdicts from registers and stack: {learnt:x?}");
        let seen = self.round(config, Trial::Verdict(learnt), prepared, prover)?;
        let of_rule = |seen: &Seen| seen.expected.rule().unwrap_or_default();
        let right = |seen: &&Seen| match of_rule(seen) {
            // A policy is no rule's verdict.
            expected if expected.rule == 0 => seen.answer.rule == UNKNOWN_RULE || seen.expected.by == By::Program,
            expected => RuleAnswer { function: 0, ..seen.answer } == expected,
        };
        Ok(match seen.iter().find(|seen| !right(seen)) {
            Some(wrong) => Err(wrong.complaint()),
            None => Ok(learnt),
        })
    }

    /// Whether a packet is told by the function that dropped it.
    fn is_of_hook(&self, seen: &Seen) -> bool {
        let answer = seen.answer;
        let fits = match seen.expected.by {
            By::Rule { table, chain, .. } => {
                let of_chain = if self.knows_chains { (table, chain, UNKNOWN_RULE) } else { (0, 0, 0) };
                self.functions.has(answer.function, HookKind::Nftables)
                    && (answer.table, answer.chain, answer.rule) == of_chain
            }
            By::Program => self.functions.has(answer.function, HookKind::Program) && answer.rule != 0,
        };
        // Before Linux 5.14 user space cannot ask for the cookie.
        fits && (seen.expected.cookie == 0 || answer.netns_cookie == seen.expected.cookie)
    }

    /// Sends every packet, and reads what was said of it.
    fn round(
        &mut self,
        config: RuleConfig,
        trial: Trial<'_>,
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
                    return Err(Unproven::Later(format!("a packet that {} dropped was not seen", expected.by)));
                }
                Ok(seen)
            })
            .collect()
    }

    /// Tells the kernel half what is proven, and what is to be tried.
    fn tell(&mut self, mut config: RuleConfig, trial: Trial<'_>) -> Result<(), Unproven> {
        let tried = if let Trial::Rules(sites) = trial { sites } else { &[] };
        config.proven = self.proven.len() as u64;
        config.sites = [RuleSite::default(); MAX_SITES];
        for (into, site) in config.sites.iter_mut().zip(self.proven.iter().chain(tried)) {
            *into = *site;
        }
        config.hook_proven = u64::from(self.hook.is_some());
        config.hook_site = match trial {
            Trial::Hook(site) => self.hook.unwrap_or(site),
            _ => self.hook.unwrap_or_default(),
        };
        config.verdict_proven = u64::from(self.verdict.is_some());
        config.verdict_site = match trial {
            Trial::Verdict(site) => self.verdict.unwrap_or(site),
            _ => self.verdict.unwrap_or_default(),
        };
        config.functions = [HookFunction::default(); MAX_FUNCTIONS];
        let knows_chains = self.knows_chains;
        let knows_tables = self.functions.xtable_name.is_some();
        let usable = self.functions.hooks().filter(|known| {
            let without = |kind: HookKind, known_how: bool| known.kind == kind as u64 && !known_how;
            !without(HookKind::Nftables, knows_chains) && !without(HookKind::Xtables, knows_tables)
        });
        for (into, function) in config.functions.iter_mut().zip(usable) {
            *into = function;
        }
        config.xtable_name = self.functions.xtable_name.unwrap_or(0).into();
        [config.refused, config.untaken] = self.functions.queues();
        self.told = config;
        self.config.set(0, config.words(), 0).map_err(other)
    }
}

/// What is to be tried, on the proof's packets alone.
#[derive(Clone, Copy)]
enum Trial<'a> {
    Nothing,
    Rules(&'a [RuleSite]),
    Hook(HookSite),
    Verdict(VerdictSite),
}

fn other(error: impl fmt::Display) -> Unproven {
    Unproven::Other(error.to_string())
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
    /// What the kernel half must say of a packet that nftables drops.
    fn rule(&self) -> Option<RuleAnswer> {
        match self.by {
            By::Rule { table, chain, rule } => {
                Some(RuleAnswer { netns_cookie: self.cookie, function: 0, table, chain, rule })
            }
            By::Program => None,
        }
    }
}

impl Seen {
    fn complaint(&self) -> String {
        format!("of a packet that {} dropped the kernel half said {:?}", self.expected.by, self.answer)
    }
}

/// The words of a [`RuleProof`], in the order of its fields.
fn seen(expected: Expected, words: &[u64; PROOF_WORDS]) -> Seen {
    let (location, netns_cookie, function) = (words[0], words[1], words[2]);
    let (table, chain, rule) = (words[3], words[4], words[5]);
    let frame = words[FIXED..]
        .chunks_exact(WORDS_OF_FRAME_WORD)
        .map(|word| FrameWord { value: word[0], target: word[1], chain_handle: word[2], table_handle: word[3] })
        .collect();
    Seen { expected, location, answer: RuleAnswer { netns_cookie, function, table, chain, rule }, frame }
}

/// The first word of the stack that is so for every packet.
fn common(all: &[&Seen], holds: impl Fn(&Seen, &FrameWord) -> bool) -> Option<u64> {
    (ARGUMENTS..FRAME_WORDS)
        .find(|index| all.iter().all(|seen| seen.frame.get(*index).is_some_and(|word| holds(seen, word))))
        .map(|index| index as u64)
}

/// For each place that freed a packet, where on the stack return address, rule and base chain are: at one and the same word
/// for every packet. Pure.
fn learn(all: &[Seen], config: &RuleConfig) -> Result<Vec<RuleSite>, String> {
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

/// Where on the stack of the function that walks the hooks its return address, its list and the place in that are. Pure.
fn learn_hook(all: &[&Seen]) -> Result<HookSite, String> {
    let first = all.first().ok_or("this kernel has no BPF netfilter programs, by which it could be proven")?;
    let location = first.location;
    if all.iter().any(|seen| seen.location != location) {
        return Err("packets are freed at several places".to_owned());
    }
    let missing = |what: &str| format!("the stack of {location:#x} holds no {what} at one place");
    let return_word = common(all, |_, word| word.value == location).ok_or_else(|| missing("return address"))?;
    let entries_word = common(all, |seen, word| {
        word.value >> USER_BITS != 0 && word.target & 0xffff == u64::from(seen.expected.entry.1)
    })
    .ok_or_else(|| missing("list of hooks"))?;
    let index_word = common(all, |seen, word| word.value & 0xffff_ffff == u64::from(seen.expected.entry.0))
        .ok_or_else(|| missing("place in the list of hooks"))?;
    Ok(HookSite { location, return_word, entries_word, index_word })
}

/// Where among registers and stack the rule is, at once or by way of another word, and the base chain. Pure.
fn learn_verdict(all: &[Seen], config: &RuleConfig, distance: u64) -> Result<VerdictSite, String> {
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
            frame,
        }
    }

    #[test]
    fn the_words_are_those_that_are_right_every_time() {
        let mut seen = vec![packet(BY_RULE, 5), packet(BY_RULE, 6), packet(BY_POLICY, 0)];
        // Right once, and by chance.
        seen[0].frame[5].target = 5 << 13;
        let mut sites = learn(&seen, &config()).unwrap();
        sites.sort_by_key(|site| site.location);
        let site =
            |location, rule_word| RuleSite { location, return_word: 11, rule_word, chain_word: 12, last_is_policy: 0 };
        assert_eq!(sites, [site(BY_RULE, 8), site(BY_POLICY, NO_WORD)]);
    }

    #[test]
    fn nothing_is_learnt_from_a_frame_that_is_gone() {
        let mut seen = vec![packet(BY_RULE, 5), packet(BY_RULE, 6)];
        seen[1].frame[8].target |= 1;
        assert!(learn(&seen, &config()).is_err(), "the end of a chain is no rule");
        let mut both = [packet(BY_RULE, 5), packet(BY_RULE, 0)];
        assert!(learn(&both, &config()).is_err(), "rule and policy cannot be told apart");
        both[1].frame[8].target |= 1;
        let [site] = learn(&both, &config()).unwrap()[..] else { panic!("one place") };
        assert_eq!((site.rule_word, site.last_is_policy), (8, 1), "by the mark behind the last rule they can");
        let mut seen = vec![packet(BY_RULE, 5)];
        seen[0].frame[11].value = 0;
        assert!(learn(&seen, &config()).is_err(), "an argument is no return address");
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
            frame,
        }
    }

    #[test]
    fn a_hooks_function_is_a_place_in_a_list() {
        let mut seen: Vec<Seen> = (0..4).map(packet_of_hook).collect();
        let site = HookSite { location: BY_RULE, return_word: 17, entries_word: 13, index_word: 12 };
        assert_eq!(learn_hook(&seen.iter().collect::<Vec<_>>()), Ok(site));
        seen[2].frame[12].value = 3;
        assert!(learn_hook(&seen.iter().collect::<Vec<_>>()).is_err(), "one place is another one's");
        seen[2] = Seen { location: BY_POLICY, ..packet_of_hook(2) };
        assert!(learn_hook(&seen.iter().collect::<Vec<_>>()).is_err(), "two places that free");
        assert!(learn_hook(&[]).is_err());
    }

    #[test]
    fn programs_say_nothing_of_rules() {
        let seen = [packet(BY_RULE, 5), packet_of_hook(1), packet(BY_RULE, 6)];
        assert_eq!(learn(&seen, &config()).unwrap().len(), 1);
    }

    #[test]
    fn a_proofs_words_are_in_the_order_of_its_fields() {
        let words: [u64; PROOF_WORDS] = std::array::from_fn(|index| index as u64);
        let seen = seen(packet(BY_RULE, 1).expected, &words);
        let answer = RuleAnswer { netns_cookie: 1, function: 2, table: 3, chain: 4, rule: 5 };
        assert_eq!((seen.location, seen.answer), (0, answer));
        assert_eq!(seen.frame[1], FrameWord { value: 10, target: 11, chain_handle: 12, table_handle: 13 });
        assert_eq!(seen.frame.len(), FRAME_WORDS);
    }
}

//! Whether the eBPF side can tell what dropped a packet: where on the stack it must look is learnt ([`learn`]) from packets
//! that known rules and programs drop ([`proof`](crate::probe::calibrate::proof)), tried with them again, and believed only when every answer is
//! right.

use std::{fmt, os::fd::OwnedFd, time::Duration};

use aya::maps::{Array, MapData};
use observer_ebpf::abi::{
    FRAMES_OF_FREE, FRAMES_OF_VERDICT, HookFunction, HookKind, HookSite, MAX_FUNCTIONS, MAX_SITES, RULE_CONFIG_WORDS,
    RuleAnswer, RuleConfig, RuleSite, UNKNOWN_RULE, VerdictSite,
};
use zerocopy::transmute;

use super::calibrate::{
    learn::{self, PROOF_WORDS, Seen},
    proof::{By, Prepared, Unproven},
};
use crate::kernel::symbols::Functions;

/// Functions of others that every network namespace may have on the hook, before all that a proof brings: of a security module,
/// such as SELinux's or Smack's.
const MAX_BEFORE: u32 = 2;
/// Longer than a proof takes.
const PROOF: Duration = Duration::from_secs(10);

/// Who makes and sends a proof's packets.
pub trait Proving {
    /// Where this kernel's functions are, since its modules changed for the so-many-th time: looked up once for each.
    fn functions(&mut self, changes: u64) -> Result<Functions, String>;
    /// Makes the namespace; functions are looked up meanwhile, as by [`Self::functions`].
    fn prepare_proof(&mut self, changes: u64) -> Result<Prepared, Unproven>;
    /// Has the eBPF side asked for network namespaces' cookies, by this map of its, where the kernel does not tell them.
    fn keep_netns_cookies(&mut self, map: OwnedFd) -> Result<(), String>;
    /// Keeps the programs that run where a verdict begins and ends.
    fn keep_verdict_programs(&mut self, programs: &[OwnedFd; 2]) -> Result<(), String>;
    /// Probes the functions that give verdicts for so long from now on: all of them in a moment, or those of a proof at once.
    fn arm_verdicts(&mut self, time: Duration, is_proof: bool) -> Result<(), String>;
    /// Sends one packet to every port.
    fn send_proof(&mut self) -> Result<(), Unproven>;
    /// The namespace is not needed any more.
    fn end_proof(&mut self);
}

/// The maps that say what the eBPF side looks at.
pub struct RuleMaps {
    config: Array<MapData, [u64; RULE_CONFIG_WORDS]>,
    proofs: Array<MapData, [u64; PROOF_WORDS]>,
    distance: Array<MapData, u64>,
    /// Network namespaces' cookies, until they are handed over.
    cookies: Option<OwnedFd>,
    /// Those that run where a verdict begins and ends; or why they are not there.
    programs: Result<[OwnedFd; 2], String>,
    /// Why it is not to be tried.
    avoided: Option<String>,
    /// Verdicts are probed where rules are reported otherwise, too.
    compares: bool,
    /// What these said last.
    told: RuleConfig,
    functions: Functions,
    /// How often the kernel's modules have changed.
    changes: u64,
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
    /// Rules are reported, by so many frames of the stack: by the place that frees, and by their depth. Or why not.
    pub rules: Result<usize, String>,
    /// Functions on hooks are reported; or why not.
    pub hooks: Result<(), String>,
    /// Rules are reported while the functions that give verdicts are probed; or why not. `None` where that was not tried: they are
    /// told otherwise.
    pub verdicts: Option<Result<(), String>>,
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
            None => {}
            Some(Ok(())) => write!(formatter, "; they are once something is blocked, by what gives the verdict")?,
            Some(Err(why)) => write!(formatter, "; not by what gives the verdict: {why}")?,
        }
        match &self.hooks {
            Ok(()) => write!(formatter, "; what else drops is told by its function on the hook"),
            Err(why) => write!(formatter, "; what else drops is not told apart: {why}"),
        }
    }
}

impl RuleMaps {
    pub(super) fn new(
        config: Array<MapData, [u64; RULE_CONFIG_WORDS]>,
        proofs: Array<MapData, [u64; PROOF_WORDS]>,
        distance: Array<MapData, u64>,
        cookies: OwnedFd,
        programs: Result<[OwnedFd; 2], String>,
        avoided: Option<String>,
        compares: bool,
    ) -> Self {
        Self {
            config,
            proofs,
            distance,
            cookies: Some(cookies),
            programs,
            avoided,
            compares,
            told: RuleConfig::default(),
            functions: Functions::default(),
            changes: 0,
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
        let prepared = prover.prepare_proof(self.changes);
        if let Err(error) = self.find_functions(prover) {
            prover.end_proof();
            return Err(error);
        }
        if let Some(cookies) = self.cookies.take() {
            prover.keep_netns_cookies(cookies).unwrap_or_else(|why| log::warn!("namespaces are not told apart: {why}"));
        }
        let prepared = prepared?;
        self.knows_chains = prepared.knows_chains();
        let proof = self.learn_and_try(&prepared, prover);
        // Before the namespace is gone: its number may be another one's then.
        let told = self.tell(RuleConfig { proof_netns: 0, wants_frames: 0, ..self.told }, CalibrationRun::Nothing);
        prover.end_proof();
        told?;
        proof
    }

    /// Modules have come or gone: what was looked up before does not hold.
    pub fn modules_changed(&mut self) {
        self.changes += 1;
    }

    /// Looks up where the kernel's functions are.
    pub fn find_functions(&mut self, prover: &mut impl Proving) -> Result<(), Unproven> {
        self.functions = prover.functions(self.changes).map_err(Unproven::Later)?;
        self.tell(self.told, CalibrationRun::Nothing)
    }

    fn learn_and_try(&mut self, prepared: &Prepared, prover: &mut impl Proving) -> Result<Proof, Unproven> {
        let config = RuleConfig { proof_netns: prepared.netns.into(), ..prepared.config() };
        let frames = self.round(
            RuleConfig { wants_frames: FRAMES_OF_FREE, ..config },
            CalibrationRun::Nothing,
            prepared,
            prover,
        )?;
        let rules = self.learn_rules(&frames, config, prepared, prover)?;
        if let Ok(sites) = &rules {
            self.proven.clone_from(sites);
        }
        // What is reported already stays so, whatever becomes of the rest.
        let hooks = self.learn_hook(&frames, rules.is_ok(), config, prepared, prover);
        let hooks = if rules.is_ok() { hooks.unwrap_or_else(|error| Err(error.to_string())) } else { hooks? };
        if let Ok(site) = &hooks {
            self.hook = Some(*site);
        }
        let verdicts = match (&rules, &hooks) {
            (Ok(_), _) if !self.compares => None,
            (Err(_), Err(_)) => Some(Err("without the function on the hook the base chain is not known".to_owned())),
            _ => Some(self.learn_verdict(config, prepared, prover).unwrap_or_else(|error| Err(error.to_string()))),
        };
        if let Some(Ok(site)) = &verdicts {
            self.verdict = Some(*site);
        }
        match (rules, hooks) {
            (Err(why), Err(_)) => Err(Unproven::Other(why)),
            (rules, hooks) => Ok(Proof {
                packets: prepared.expected.len(),
                rules: rules.map(|sites| sites.len()),
                hooks: hooks.map(drop),
                verdicts: verdicts.map(|learnt| learnt.map(drop)),
            }),
        }
    }

    /// Where rules are, if all are reported right.
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
            return Ok(Err("this kernel does not describe its rules, or they do not carry their handles".to_owned()));
        }
        let learnt = match learn::rules(frames, &config) {
            Ok(learnt) if learnt.len() <= MAX_SITES => learnt,
            Ok(_) => return Ok(Err("packets are freed at too many places".to_owned())),
            Err(why) => return Ok(Err(why)),
        };
        log::debug!("learnt of rules from the stack: {learnt:x?}");
        let seen = self.round(config, CalibrationRun::Rules(&learnt), prepared, prover)?;
        Ok(match seen.iter().find(|seen| seen.expected.rule().is_some_and(|expected| !is(seen.answer, expected))) {
            Some(wrong) => Err(wrong.complaint()),
            None => Ok(learnt),
        })
    }

    /// Where the function on the hook is, if all are reported right that no rule tells.
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
        let mut why = None;
        for before in 0..=MAX_BEFORE {
            let learnt = match learn::hook(&frames, before) {
                Ok(learnt) => learnt,
                Err(missing) => {
                    why.get_or_insert(missing);
                    continue;
                }
            };
            log::debug!("learnt of hooks from the stack: {learnt:x?}, if {before} of others come first");
            let seen = self.round(config, CalibrationRun::Hook(learnt), prepared, prover)?;
            match seen.iter().filter(|seen| of_hook(seen)).find(|seen| !self.is_of_hook(seen)) {
                Some(wrong) => why.replace(wrong.complaint()),
                None => return Ok(Ok(learnt)),
            };
        }
        Ok(Err(why.unwrap_or_default()))
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
        let seen = self.round(wants, CalibrationRun::Nothing, prepared, prover)?;
        let distance = self.distance.get(&0, 0).map_err(other)?;
        let learnt = match learn::verdict(&seen, &config, distance) {
            Ok(learnt) => learnt,
            Err(why) => return Ok(Err(why)),
        };
        log::debug!("learnt of verdicts from registers and stack: {learnt:x?}");
        let seen = self.round(config, CalibrationRun::Verdict(learnt), prepared, prover)?;
        let right = |seen: &&Seen| match seen.expected.rule() {
            // A policy is no rule's verdict, and a program's is nobody's.
            Some(RuleAnswer { rule: 0, .. }) | None => seen.given == 0,
            Some(expected) => seen.given == expected.rule && is(RuleAnswer { function: 0, ..seen.answer }, expected),
        };
        Ok(match seen.iter().find(|seen| !right(seen)) {
            Some(wrong) => Err(wrong.complaint()),
            None => Ok(learnt),
        })
    }

    /// Whether a packet is reported by the function that dropped it.
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
        // Before Linux 5.14 user space cannot ask for the cookie so early.
        fits && (seen.expected.cookie == 0 || answer.netns_cookie == seen.expected.cookie)
    }

    /// Sends every packet, and reads what was said of it.
    fn round(
        &mut self,
        config: RuleConfig,
        trial: CalibrationRun<'_>,
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
                let seen = Seen::read(*expected, &words);
                if seen.location == 0 {
                    return Err(Unproven::Later(format!("a packet that {} dropped was not seen", expected.by)));
                }
                Ok(seen)
            })
            .collect()
    }

    /// Tells the eBPF side what is proven, and what is to be tried.
    fn tell(&mut self, mut config: RuleConfig, trial: CalibrationRun<'_>) -> Result<(), Unproven> {
        let tried = if let CalibrationRun::Rules(sites) = trial { sites } else { &[] };
        config.proven = self.proven.len() as u64;
        config.sites = [RuleSite::default(); MAX_SITES];
        for (into, site) in config.sites.iter_mut().zip(self.proven.iter().chain(tried)) {
            *into = *site;
        }
        config.hook_proven = u64::from(self.hook.is_some());
        config.hook_site = match trial {
            CalibrationRun::Hook(site) => self.hook.unwrap_or(site),
            _ => self.hook.unwrap_or_default(),
        };
        config.verdict_proven = u64::from(self.verdict.is_some());
        config.verdict_site = match trial {
            CalibrationRun::Verdict(site) => self.verdict.unwrap_or(site),
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
        let words: [u64; RULE_CONFIG_WORDS] = transmute!(config);
        self.config.set(0, words, 0).map_err(other)
    }
}

/// An answer is what it had to be. Where the namespace's cookie could not be asked for so early, there must be one: without
/// it nothing is reported.
fn is(answer: RuleAnswer, expected: RuleAnswer) -> bool {
    let is_unknown = expected.netns_cookie == 0;
    let netns_cookie = if is_unknown { 0 } else { answer.netns_cookie };
    RuleAnswer { netns_cookie, ..answer } == expected && !(is_unknown && answer.netns_cookie == 0)
}

/// What is to be tried, on the proof's packets alone.
#[derive(Clone, Copy)]
enum CalibrationRun<'a> {
    Nothing,
    Rules(&'a [RuleSite]),
    Hook(HookSite),
    Verdict(VerdictSite),
}

fn other(error: impl fmt::Display) -> Unproven {
    Unproven::Other(error.to_string())
}

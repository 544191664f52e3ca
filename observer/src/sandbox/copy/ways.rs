//! Holds a conversation once for each combination of outcomes of the rules that decide by more than a packet. Each combination needs a
//! copy of its own, which is kept for the next conversation.

use std::{
    collections::VecDeque,
    fs::File,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::{
    choices::Choices,
    copied::Copied,
    lab::{Caller, GIVEN, Held, Lab, Talk, Undecided},
    marks::{Mark, Reason},
    stage::{Hide, own_namespace},
    surroundings,
};
use crate::patience;

/// Namespaces of copies that are kept.
const MAX_NAMESPACES: usize = 48;
/// The kernel's memory that elements of their sets take, together.
const MAX_MEMORY: u64 = 64 << 20;
/// Ways of one conversation.
const MAX_WAYS: usize = 48;
/// They take no longer together: a service of twenty servers has forty.
const LIMIT: Duration = Duration::from_secs(4);

/// The copies that were made, the eldest first.
#[derive(Default)]
pub(super) struct Ways(VecDeque<Way>);

struct Way {
    choices: Choices,
    lab: Lab,
    namespace: File,
    _hidden: Box<dyn Send>,
}

impl Ways {
    /// Holds a conversation; what came of it, and the marks that its packets met, without those whose every way comes to the same end.
    /// Where one way comes to another end than the others, it is one that was stopped.
    pub(super) fn hold(
        &mut self,
        base: &Lab,
        (copied, talk): (&mut Copied, &Talk),
        (hide, logs): (&Hide, bool),
    ) -> Result<(Held, Vec<Mark>)> {
        let until = Instant::now() + patience::here(LIMIT);
        let first = from_any_port(base.hold(copied, talk), base, copied, talk);
        let marks: &[Mark] = match &first {
            Ok((_, marks)) => marks,
            Err(error) => error.downcast_ref::<Undecided>().map_or(&[], |undecided| &undecided.0),
        };
        let next = next(marks, &Choices::new(), copied);
        let Some(next) = next.filter(|next| !next.is_empty()) else { return first };
        let home = File::open("/proc/thread-self/ns/net").context("cannot open the thread's namespace")?;
        let agreed = self.agree((next, until), (copied, talk), (hide, logs));
        setns(&home, CloneFlags::CLONE_NEWNET).context("cannot return to the copy")?;
        match agreed {
            Ok(Agreed::Yes(held, met)) => match first {
                // What happened most probably happens again: another rule may stop it in another way.
                Ok((first, marks)) if is_alike(&first, &held) => {
                    let others = marks.into_iter().filter(|mark| mark.reason != Reason::Anything);
                    Ok((first, others.chain(met).collect()))
                }
                Ok((_, marks)) => Ok((held, marks)),
                Err(_) => Ok((held, met)),
            },
            Ok(Agreed::No(stopped)) => Ok((stopped, marks.to_vec())),
            Ok(Agreed::Unknown) => first,
            Err(error) => {
                log::debug!("not every way of the rules is tried: {error:#}");
                first
            }
        }
    }

    /// Tries each of these ways, and those that follow from them.
    fn agree(
        &mut self,
        (mut waiting, until): (Vec<Choices>, Instant),
        (copied, talk): (&mut Copied, &Talk),
        (hide, logs): (&Hide, bool),
    ) -> Result<Agreed> {
        let (mut held, mut met, mut count) = (None::<Held>, Vec::new(), 0);
        while let Some(choices) = waiting.pop() {
            count += 1;
            if count > MAX_WAYS || Instant::now() > until {
                return Ok(Agreed::Unknown);
            }
            let lab = self.lab(&choices, copied, (hide, logs))?;
            let came = from_any_port(lab.hold(copied, talk), lab, copied, talk);
            let marks = match came {
                Ok((other, marks)) => {
                    let earlier = held.get_or_insert_with(|| other.clone());
                    if !is_alike(earlier, &other) {
                        return Ok(Agreed::No(if other.is_completed() { earlier.clone() } else { other }));
                    }
                    marks
                }
                Err(error) => match error.downcast::<Undecided>() {
                    Ok(undecided) => undecided.0,
                    Err(error) => return Err(error),
                },
            };
            let Some(next) = next(&marks, &choices, copied) else { return Ok(Agreed::Unknown) };
            waiting.extend(next);
            met.extend(marks.into_iter().filter(|mark| mark.reason != Reason::Anything));
        }
        Ok(held.map_or(Agreed::Unknown, |held| Agreed::Yes(held, met)))
    }

    /// The copy in which rules go so; the calling thread lives in it from here on.
    fn lab(&mut self, choices: &Choices, copied: &Copied, (hide, logs): (&Hide, bool)) -> Result<&Lab> {
        let at = self.0.iter().position(|way| way.choices == *choices);
        let at = match at {
            Some(at) => {
                setns(&self.0[at].namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a copy")?;
                at
            }
            None => {
                let hidden = hide(own_namespace()?)?;
                let namespace = File::open("/proc/thread-self/ns/net").context("cannot open the thread's namespace")?;
                let lab = Lab::new(copied, choices, logs, &**hide)?;
                // Each has as many namespaces as interfaces, and one more.
                let by_count = MAX_NAMESPACES / (copied.around.indexes().count() + 1);
                let by_memory = usize::try_from(MAX_MEMORY / copied.weight().max(1)).unwrap_or(usize::MAX);
                let kept = by_count.min(by_memory).max(1);
                while self.0.len() >= kept {
                    self.0.pop_front();
                }
                self.0.push_back(Way { choices: choices.clone(), lab, namespace, _hidden: hidden });
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].lab)
    }
}

/// It is about the sender's port, which is another one each time.
fn is_of_ports(mark: &Mark) -> bool {
    matches!(mark.reason, Reason::SourcePort | Reason::DestinationPort)
}

/// The ports from which a conversation is held again, over all that the kernel gives.
const PORTS: u32 = 8;

/// What came of a conversation in which rules asked for ranges of its sender's port: if it comes to the same from other ports, too, those
/// marks are left out. Otherwise it is one that was stopped.
fn from_any_port(
    first: Result<(Held, Vec<Mark>)>,
    base: &Lab,
    copied: &mut Copied,
    talk: &Talk,
) -> Result<(Held, Vec<Mark>)> {
    let (held, mut marks) = first?;
    let range = surroundings::setting("ipv4/ip_local_port_range");
    let range: Vec<u32> =
        range.iter().flat_map(|range| range.split_whitespace()).filter_map(|port| port.parse().ok()).collect();
    let [low, high] = range[..] else { return Ok((held, marks)) };
    // A sender with a port of its own has that one each time.
    let source = match &talk.from {
        Caller::Here { source, .. } => *source,
        Caller::Behind { source, .. } => Some(*source),
    };
    let is_own = source.is_some_and(|source| (1..GIVEN).contains(&source.port()));
    if !marks.iter().any(is_of_ports) || talk.is_probe || is_own || source.is_none() {
        return Ok((held, marks));
    }
    let ports = (0..PORTS).map(|step| low + high.saturating_sub(low) * step / (PORTS - 1));
    // Where both ends are on this host it is the server's.
    for port in ports.filter(|port| *port != u32::from(talk.to.port())) {
        let talk = Talk { own_port: u16::try_from(port).ok(), ..talk.again()? };
        let (other, _) = base.hold(copied, &talk)?;
        let is_same_stop = match (&held, &other) {
            (Held::Stopped(one), Held::Stopped(other)) => one.packet == other.packet,
            _ => false,
        };
        if !is_same_stop && !is_alike(&held, &other) {
            return Ok((if held.is_completed() { other } else { held }, marks));
        }
    }
    marks.retain(|mark| !is_of_ports(mark));
    Ok((held, marks))
}

/// Both are held, or both stop at the first packet. Each packet may go another way: of two that stop at other packets nothing follows.
fn is_alike(one: &Held, other: &Held) -> bool {
    let is_at_once = |held: &Held| matches!(held, Held::Stopped(stop) if stop.packet.is_none());
    one.is_completed() && other.is_completed() || is_at_once(one) && is_at_once(other)
}

/// Whether all ways come to the same end.
enum Agreed {
    /// To this one, with the other marks that were met.
    Yes(Held, Vec<Mark>),
    /// Some do not: one was stopped.
    No(Held),
    Unknown,
}

/// The ways of the first rule for which none was chosen yet; `None` if they cannot be listed.
fn next(marks: &[Mark], choices: &Choices, copied: &Copied) -> Option<Vec<Choices>> {
    let mut of_anything = marks.iter().filter(|mark| mark.reason == Reason::Anything);
    let Some(first) = of_anything.next() else { return Some(Vec::new()) };
    of_anything.all(|mark| mark.rule.is_some()).then_some(())?;
    let rule = first.rule?;
    let ways = copied.count_ways(rule)?;
    let chosen = (0..ways).map(|way| {
        let mut choices = choices.clone();
        choices.insert(rule, way);
        choices
    });
    Some(chosen.collect())
}

//! Plans that are run one after another until every packet passes, and are taken back.

use anyhow::{Context, Result, bail};

use super::{
    Asked, modules,
    probes::{Outcomes, Probes},
    same::is_same,
    trial::Trial,
    view::{Judged, View},
};
use crate::{
    firewall::front_end::{self, Known, Packets, Plan, plans},
    model::{Lasts, NamedRule, Other, Packet, PacketKind, Probe, ProbeDirection, Scope},
};

/// Rules that are dealt with one by one.
pub(super) const MAX_STEPS: usize = 32;

/// Commands were tried, and do not let it through; in words, and the rule that still stops it.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(super) struct InVain {
    pub(super) words: String,
    pub(super) rule: Option<Box<NamedRule>>,
    /// Every command that is known for the rule was tried; else there are too many rules, or none is known.
    pub(super) was_tried: bool,
}

/// What came of some commands is not known.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(super) struct Undecided {
    words: String,
    /// Commands of plans that did not let it through, or opened something else.
    pub(super) refuted: Vec<Vec<String>>,
}

/// A statement that was let through, and how: as it is run in the copy, and as it is for the host.
struct Step {
    here: Plan,
    there: Plan,
}

/// What came of plans.
pub(super) struct Walk {
    /// The plans for the host.
    pub(super) plans: Vec<Plan>,
    /// What each of them lets through, in the copy.
    pub(super) rules: Vec<NamedRule>,
    /// Everything is as it was once they are taken back.
    pub(super) is_restored: bool,
    /// What became of probes while they were in force.
    pub(super) outcomes: Outcomes,
    /// What was not tried while they were in force, or may become otherwise.
    pub(super) notes: Vec<String>,
}

/// Runs such plans until every packet passes, and takes them back: the plans for the host, and whether everything is then as it was.
pub(super) fn walked(
    asked: &Asked<'_>,
    known: &Known,
    trial: &Trial,
    before: &[Option<NamedRule>],
    (probes, closed): (&Probes, &Outcomes),
    wanted: Option<Other>,
) -> Result<Walk> {
    let shape = trial.shape()?;
    let (mut outcomes, mut notes) = (closed.clone(), Vec::new());
    let mut steps: Vec<Step> = Vec::new();
    let mut rules: Vec<NamedRule> = Vec::new();
    let mut blocked = before.to_vec();
    let mut walk = || -> Result<()> {
        while let Some(index) = blocked.iter().position(Option::is_some) {
            let done: Vec<&str> = steps.iter().flat_map(|step| &step.there.commands).map(String::as_str).collect();
            let behind = if done.is_empty() { String::new() } else { format!("after `{}` ", done.join("; ")) };
            if steps.len() >= MAX_STEPS {
                let words = format!("more than {MAX_STEPS} rules stop it; no more were tried {behind}");
                return Err(InVain { words: words.trim_end().to_owned(), rule: None, was_tried: false }.into());
            }
            // What an earlier exception had to open is not this one's.
            let next = step(asked, known, trial, (index, &blocked), (probes, &outcomes), wanted);
            let (step, Seen { rules: after, notes: said }, now) =
                next.map_err(|error| match error.downcast::<InVain>() {
                    Ok(in_vain) => InVain { words: format!("{behind}{}", in_vain.words), ..in_vain }.into(),
                    Err(error) => error,
                })?;
            steps.push(step);
            rules.extend(blocked.get(index).cloned().flatten());
            (blocked, notes, outcomes) = (after, said, now);
        }
        Ok(())
    };
    let walked = walk();
    // What takes it back is worth as much only if it does.
    let undone = steps.iter().rev().flat_map(|step| &step.here.undo).try_for_each(|line| trial.run(line));
    walked?;
    let is_restored =
        undone.and_then(|()| stops(asked, &mut trial.look()?)).is_ok_and(|Seen { rules: after, .. }| {
            // Which of several rules that is may be another one each time: their shape says whether they are as they were.
            after.iter().zip(before).all(|(after, before)| after.is_some() == before.is_some())
        });
    let is_restored = is_restored && trial.shape().is_ok_and(|now| now == shape);
    Ok(Walk { plans: steps.into_iter().map(|step| step.there).collect(), rules, is_restored, outcomes, notes })
}

/// Lets the packet at `index` through what stops it now, by the first plan that does; and what stops each packet then.
fn step(
    asked: &Asked<'_>,
    known: &Known,
    trial: &Trial,
    (index, blocked): (usize, &[Option<NamedRule>]),
    (probes, before): (&Probes, &Outcomes),
    wanted: Option<Other>,
) -> Result<(Step, Seen, Outcomes)> {
    let rule = blocked.get(index).and_then(Option::as_ref).context("no packet")?;
    let in_vain =
        |words: String, was_tried| InVain { words, rule: trial.on_the_host(rule).ok().map(Box::new), was_tried };
    let maker = front_end::of(rule);
    if !trial.is_for(maker) {
        let words = format!("{}; rules of {} were not changed together with the others", rule.sentence(), maker.name());
        return Err(in_vain(words, false).into());
    }
    let target = asked.target(index, rule, blocked).context("it has no port")?;
    let shape = trial.shape()?;
    let here = plans(rule, &target, known).map_err(|advice| {
        let advice = advice.map(|advice| format!(": {advice}")).unwrap_or_default();
        in_vain(format!("{}, for which no command is known{advice}", rule.sentence()), false)
    })?;
    let there = plans(&trial.on_the_host(rule)?, &target, known).unwrap_or_default();
    let mut why = None;
    let mut is_in_vain = true;
    let mut refuted = Vec::new();
    // Of what was sent elsewhere nobody has asked for every destination of that port.
    let is_by_address = rule.translated.is_some() && here.iter().any(|plan| plan.scope == Scope::Address);
    // Without some of them nothing is reached, whatever it is for: there is no other scope.
    let scope = here.first().map(|plan| plan.scope);
    let is_only = here.iter().all(|plan| plan.lasts == Lasts::Hour || Some(plan.scope) == scope);
    let has_temporary = here.iter().any(|plan| plan.lasts == Lasts::Hour);
    let is_wanted = |plan: &Plan| {
        let is_such = match wanted {
            // What has no such form stays as long as it does otherwise.
            Some(Other::Temporary) => plan.lasts == Lasts::Hour || !has_temporary,
            Some(other) => is_such(plan, other) || is_only && plan.lasts != Lasts::Hour,
            None => plan.lasts != Lasts::Hour,
        };
        is_such && (!is_by_address || plan.scope == Scope::Address)
    };
    // What is sent to one of several servers at random may be let through to one, and not yet to the others.
    let is_still = |now: &NamedRule| is_same(now, rule) && now.translated == rule.translated;
    for (here, there) in here.into_iter().zip(there).filter(|(here, _)| is_wanted(here)) {
        if let Err(error) = here.commands.iter().try_for_each(|line| modules::line_loads_nothing(line)) {
            why = Some(format!("{error:#}"));
            is_in_vain = false;
            continue;
        }
        let done = here.commands.iter().try_for_each(|line| trial.run(line));
        let after = done.and_then(|()| {
            let mut view = trial.look()?;
            let after = stops(asked, &mut view)?;
            Ok((after, probes.tried(&mut view, asked, Some(before))?))
        });
        match after {
            Ok((after, now)) if !after.rules.get(index).and_then(Option::as_ref).is_some_and(is_still) => {
                // A fix for outbound traffic must not open inbound traffic. Neighbour discovery is the exception: without it nothing
                // passes.
                let are_neighbours = rule.packet == Some(PacketKind::Solicitation);
                let is_unwanted = |probe: &Probe| match probe.direction {
                    ProbeDirection::Ingress => true,
                    ProbeDirection::Forward => !target.is_forwarded || probe.interface != target.comes_by,
                    ProbeDirection::Egress => false,
                };
                let opened = probes.opened(before, &now).into_iter().find(is_unwanted);
                let is_opened = opened.is_some();
                let unwanted = opened.or_else(|| probes.maybe_opened(before, &now).into_iter().find(is_unwanted));
                let Some(unwanted) = unwanted.filter(|_| !are_neighbours) else {
                    return Ok((Step { here, there }, after, now));
                };
                // What was not seen either way is no finding.
                is_in_vain &= is_opened;
                if is_opened {
                    refuted.push(there.commands.clone());
                }
                let does = if is_opened { "opens" } else { "may open" };
                why = Some(format!("`{}` also {does} {}", here.commands.join("; "), unwanted.words()));
            }
            Ok(_) => {
                refuted.push(there.commands.clone());
                why = Some(format!("after `{}` the same rule still stops it", here.commands.join("; ")));
            }
            Err(error) => {
                why = Some(format!("{error:#}"));
                is_in_vain = false;
            }
        }
        log::debug!("not a fix: {why:?}");
        for line in &here.undo {
            if let Err(error) = trial.run(line) {
                log::debug!("{error:#}");
            }
        }
        // The next one is to be judged by itself.
        if trial.shape()? != shape {
            bail!("{}, and it cannot be taken back in the copy", why.unwrap_or_default());
        }
    }
    let words = why.context("no command is known")?;
    Err(if is_in_vain { in_vain(words, true).into() } else { Undecided { words, refuted }.into() })
}

/// What becomes of packets.
pub(super) struct Seen {
    /// What stops each of them.
    pub(super) rules: Vec<Option<NamedRule>>,
    /// What was not tried of those that are to get through, or may become otherwise.
    pub(super) notes: Vec<String>,
}

/// What stops each packet; an error where that cannot be reported. One that is to get through is stopped, too, if it passes only as
/// long as its neighbour is known.
pub(super) fn stops(asked: &Asked<'_>, view: &mut View) -> Result<Seen> {
    let mut notes = Vec::new();
    let mut one = |(packet, on_the_host): &(Packet, Option<NamedRule>)| {
        asked.goes_on()?;
        let Judged { rule, by_known, but } = view.may_stop(packet, (asked.cgroup, asked.is_later))?;
        if on_the_host.is_none() || rule.is_some() {
            return Ok(rule);
        }
        let mut note = |words: String| {
            if !notes.contains(&words) {
                notes.push(words);
            }
        };
        but.into_iter().for_each(&mut note);
        let Some(search) = by_known else { return Ok(None) };
        if Packets::of(&search).is_some() {
            return Ok(Some(search));
        }
        note(format!("only while its neighbour is known: {}", search.sentence()));
        Ok(None)
    };
    let rules = asked.packets.iter().map(&mut one).collect::<Result<_>>()?;
    Ok(Seen { rules, notes })
}

/// A plan is one that differs so.
pub(super) fn is_such(plan: &Plan, other: Other) -> bool {
    let is_temporary = plan.lasts == Lasts::Hour;
    match other {
        Other::Narrow => !is_temporary && plan.scope == Scope::Address,
        Other::Broad => !is_temporary && plan.scope == Scope::Port,
        Other::Temporary => is_temporary,
    }
}

//! Plans that are run one after another until every packet passes, and are taken back.

use anyhow::{Context, Result, bail};

use super::{
    Asked,
    probes::{Outcomes, Probes},
    same::is_same,
    trial::Trial,
    view::View,
};
use crate::{
    firewall::front_end::{self, Known, Plan, plans},
    model::{Lasts, NamedRule, Other, Packet, PacketKind, Probe, ProbeDirection, Scope},
};

/// Rules that are dealt with one by one.
pub(super) const MAX_STEPS: usize = 32;

/// Commands were tried, and do not let it through; in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct InVain(pub(super) String);

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
    let mut outcomes = closed.clone();
    let mut steps: Vec<Step> = Vec::new();
    let mut rules: Vec<NamedRule> = Vec::new();
    let mut blocked = before.to_vec();
    let mut walk = || -> Result<()> {
        while let Some(index) = blocked.iter().position(Option::is_some) {
            let done: Vec<&str> = steps.iter().flat_map(|step| &step.there.commands).map(String::as_str).collect();
            let behind = if done.is_empty() { String::new() } else { format!("after `{}` ", done.join("; ")) };
            if steps.len() >= MAX_STEPS {
                return Err(InVain(format!("{behind}more rules stop it than are tried")).into());
            }
            let next = step(asked, known, trial, (index, &blocked), (probes, closed), wanted);
            let (step, after, now) = next.map_err(|error| match error.downcast::<InVain>() {
                Ok(InVain(words)) => InVain(format!("{behind}{words}")).into(),
                Err(error) => error,
            })?;
            steps.push(step);
            rules.extend(blocked.get(index).cloned().flatten());
            (blocked, outcomes) = (after, now);
        }
        Ok(())
    };
    let walked = walk();
    // What takes it back is worth as much only if it does.
    let undone = steps.iter().rev().flat_map(|step| &step.here.undo).try_for_each(|line| trial.run(line));
    walked?;
    let is_restored = undone.and_then(|()| stops(asked, &mut trial.look()?)).is_ok_and(|after| {
        // Which of several rules that is may be another one each time: their shape says whether they are as they were.
        after.iter().zip(before).all(|(after, before)| after.is_some() == before.is_some())
    });
    let is_restored = is_restored && trial.shape().is_ok_and(|now| now == shape);
    Ok(Walk { plans: steps.into_iter().map(|step| step.there).collect(), rules, is_restored, outcomes })
}

/// Lets the packet at `index` through what stops it now, by the first plan that does; and what stops each packet then.
fn step(
    asked: &Asked<'_>,
    known: &Known,
    trial: &Trial,
    (index, blocked): (usize, &[Option<NamedRule>]),
    (probes, closed): (&Probes, &Outcomes),
    wanted: Option<Other>,
) -> Result<(Step, Vec<Option<NamedRule>>, Outcomes)> {
    let (packet, rule) =
        asked.packets.get(index).zip(blocked.get(index).and_then(Option::as_ref)).context("no packet")?;
    if !trial.is_for(front_end::of(rule)) {
        return Err(InVain(format!("{}, which another front end has made", rule.sentence())).into());
    }
    let target = asked.target(&packet.0, rule).context("it has no port")?;
    let shape = trial.shape()?;
    let here = plans(rule, &target, known).map_err(|advice| {
        let advice = advice.map(|advice| format!(": {advice}")).unwrap_or_default();
        InVain(format!("{}, for which no command is known{advice}", rule.sentence()))
    })?;
    let there = plans(&trial.on_the_host(rule)?, &target, known).unwrap_or_default();
    let mut why = None;
    let mut is_in_vain = true;
    // Of what was sent elsewhere nobody has asked for every destination of that port.
    let is_by_address = rule.translated.is_some() && here.iter().any(|plan| plan.scope == Scope::Address);
    // Without some of them nothing is reached, whatever it is for: there is no other scope.
    let scope = here.first().map(|plan| plan.scope);
    let is_only = here.iter().all(|plan| plan.lasts == Lasts::Hour || Some(plan.scope) == scope);
    let is_wanted = |plan: &Plan| {
        let is_such = match wanted {
            Some(Other::Temporary) => plan.lasts == Lasts::Hour,
            Some(other) => is_such(plan, other) || is_only && plan.lasts != Lasts::Hour,
            None => plan.lasts != Lasts::Hour,
        };
        is_such && (!is_by_address || plan.scope == Scope::Address)
    };
    // What is sent to one of several servers at random may be let through to one, and not yet to the others.
    let is_still = |now: &NamedRule| is_same(now, rule) && now.translated == rule.translated;
    for (here, there) in here.into_iter().zip(there).filter(|(here, _)| is_wanted(here)) {
        let done = here.commands.iter().try_for_each(|line| trial.run(line));
        let after = done.and_then(|()| {
            let mut view = trial.look()?;
            let after = stops(asked, &mut view)?;
            Ok((after, probes.tried(&mut view, asked, Some(closed))?))
        });
        match after {
            Ok((after, now)) if !after.get(index).and_then(Option::as_ref).is_some_and(is_still) => {
                // Nobody who wants to send has asked to be sent to; but without neighbours there was nobody who could.
                let are_neighbours = rule.packet == Some(PacketKind::Solicitation);
                let is_unwanted = |probe: &Probe| match probe.direction {
                    ProbeDirection::Ingress => true,
                    ProbeDirection::Forward => !target.is_forwarded,
                    ProbeDirection::Egress => false,
                };
                let Some(unwanted) =
                    probes.maybe_opened(closed, &now).into_iter().find(is_unwanted).filter(|_| !are_neighbours)
                else {
                    return Ok((Step { here, there }, after, now));
                };
                // What was not seen either way is no finding.
                is_in_vain &= probes.opened(closed, &now).contains(&unwanted);
                why = Some(format!("`{}` may open {}, too", here.commands.join("; "), unwanted.words()));
            }
            Ok(_) => why = Some(format!("after `{}` the same rule still stops it", here.commands.join("; "))),
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
    let why = why.context("no command is known")?;
    if is_in_vain { Err(InVain(why).into()) } else { bail!("{why}") }
}

/// What stops each packet; an error where that cannot be reported.
pub(super) fn stops(asked: &Asked<'_>, view: &mut View) -> Result<Vec<Option<NamedRule>>> {
    let one = |(packet, _): &(Packet, Option<NamedRule>)| {
        asked.goes_on()?;
        Ok(view.may_stop(packet, (asked.cgroup, asked.is_later))?.rule)
    };
    asked.packets.iter().map(one).collect()
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

//! What would let a blocked packet through: planned in the words of the front end in charge, and tried by its own programs in a
//! private copy of the namespace and of the front end's files. Nothing is ever done to the host itself.

mod firewalld;
mod mounts;
mod plan;
mod tables;
mod trial;
mod ufw;

use std::{fs::File, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};

pub use mounts::Files;
use plan::{FrontEnd, Plan, plans};
pub use plan::{Known, Target};
use trial::View;
pub use trial::{Hide, Trial};

use crate::{
    firewall::{files::Root, front_ends},
    model::{Backend, Fix, Lasts, NamedRule, Packet},
};

/// What stands behind each other on one way, and is let through one by one.
const MAX_STEPS: usize = 4;

/// What is to get through.
pub struct Asked<'a> {
    /// What stops it on the host.
    pub rule: &'a NamedRule,
    /// The packets, one for each address, each in its family's own words.
    pub packets: &'a [Packet],
    /// Protocol, port, and how the destination is known.
    pub target: &'a Target,
    /// The sender's cgroup, where it may be sent from there.
    pub cgroup: Option<&'a File>,
}

/// What the files below a root folder, and the host's programs, say.
pub fn known(root: &Root) -> Known {
    Known { iptables: trial::iptables(), ufw: front_ends::entries(root) }
}

/// A statement that was let through, and how: as it is run in the copy, and as it is for the host.
struct Step {
    here: Plan,
    there: Plan,
}

/// Looks for the commands, and tries them. `enter` makes the private copy, when there is something to try.
pub fn find(asked: &Asked<'_>, known: &Known, enter: impl FnOnce() -> Result<Trial>) -> Option<Fix> {
    let front_end = FrontEnd::of(asked.rule);
    let planned = match plans(asked.rule, asked.target, known) {
        Ok(planned) => planned,
        Err(advice) => return advice.map(advised),
    };
    let first = planned.into_iter().next()?;
    let tried = enter().and_then(|mut trial| {
        trial.prepare(front_end, asked.rule)?;
        attempt(asked, known, &trial)
    });
    Some(match tried {
        Ok(fix) => fix,
        Err(error) => Fix { unverified: Some(format!("{error:#}")), ..whole(std::slice::from_ref(&first)) },
    })
}

/// No command does it; this does.
fn advised(advice: String) -> Fix {
    Fix { note: Some(advice), unverified: None, ..whole(&[]) }
}

/// Steps as one fix that was not tried.
fn whole(plans: &[Plan]) -> Fix {
    let mut opens: Vec<&str> = plans.iter().map(|plan| plan.opens.as_str()).collect();
    opens.dedup();
    let mut notes: Vec<&str> = plans.iter().filter_map(|plan| plan.note.as_deref()).collect();
    notes.dedup();
    let is_permanent = plans.iter().all(|plan| plan.lasts == Lasts::Permanent);
    Fix {
        commands: plans.iter().flat_map(|plan| plan.commands.clone()).collect(),
        undo: plans.iter().rev().flat_map(|plan| plan.undo.clone()).collect(),
        scope: plans.iter().map(|plan| plan.scope).max(),
        opens: (!opens.is_empty()).then(|| opens.join("; ")),
        lasts: (!plans.is_empty()).then_some(if is_permanent { Lasts::Permanent } else { Lasts::Reload }),
        verified: false,
        verified_for: Vec::new(),
        undo_verified: None,
        unverified: None,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    }
}

/// Runs what is planned in the copy until every packet passes, then takes it back.
fn attempt(asked: &Asked<'_>, known: &Known, trial: &Trial) -> Result<Fix> {
    let mut view = trial.look()?;
    let before = stops(asked, &mut view)?;
    if !before.iter().flatten().any(|rule| is_that(rule, asked.rule, trial)) {
        let now = before.iter().flatten().next().map_or_else(|| "it passes".to_owned(), NamedRule::sentence);
        match FrontEnd::of(asked.rule) {
            FrontEnd::Tables => bail!("in the copy {now}"),
            _ => bail!("the rules in force are not those of the front end's files: loaded from these, {now}"),
        }
    }
    let mut steps: Vec<Step> = Vec::new();
    let mut blocked = before.clone();
    while let Some(rule) = blocked.iter().flatten().next() {
        ensure!(steps.len() < MAX_STEPS, "behind it there are more rules that stop it than are tried");
        let (step, after) = step(asked, known, trial, rule)?;
        steps.push(step);
        blocked = after;
    }
    let addresses: Vec<IpAddr> = asked.packets.iter().filter_map(|packet| Some(packet.to()?.1)).collect();
    // What takes it back is worth as much only if it does.
    let undone = steps.iter().rev().flat_map(|step| &step.here.undo).try_for_each(|line| trial.run(line));
    let restored = undone.and_then(|()| stops(asked, &mut trial.look()?)).is_ok_and(|after| {
        after.iter().zip(&before).all(|(after, before)| match (after, before) {
            (Some(after), Some(before)) => is_same(after, before),
            (after, before) => after.is_none() && before.is_none(),
        })
    });
    let plans: Vec<Plan> = steps.into_iter().map(|step| step.there).collect();
    Ok(Fix { verified: true, verified_for: addresses, undo_verified: Some(restored), ..whole(&plans) })
}

/// Lets one statement's packets through, by the first plan that does.
fn step(asked: &Asked<'_>, known: &Known, trial: &Trial, rule: &NamedRule) -> Result<(Step, Vec<Option<NamedRule>>)> {
    let here = plans(rule, asked.target, known).map_err(|advice| {
        let advice = advice.map(|advice| format!(": {advice}")).unwrap_or_default();
        anyhow::anyhow!("behind it {}, for which no command is known{advice}", rule.sentence())
    })?;
    let there = plans(&trial.on_the_host(rule)?, asked.target, known).unwrap_or_default();
    let mut why = None;
    for (here, there) in here.into_iter().zip(there) {
        let done = here.commands.iter().try_for_each(|line| trial.run(line));
        let after = done.and_then(|()| stops(asked, &mut trial.look()?));
        match after {
            Ok(after) if !after.iter().flatten().any(|after| is_same(after, rule)) => {
                return Ok((Step { here, there }, after));
            }
            Ok(_) => why = Some(format!("after `{}` it is still stopped by the same rule", here.commands.join("; "))),
            Err(error) => why = Some(format!("{error:#}")),
        }
        log::debug!("not a fix: {why:?}");
        for line in &here.undo {
            if let Err(error) = trial.run(line) {
                log::debug!("{error:#}");
            }
        }
    }
    bail!("{}", why.context("no command is known")?)
}

/// What stops each packet; an error where that cannot be told.
fn stops(asked: &Asked<'_>, view: &mut View) -> Result<Vec<Option<NamedRule>>> {
    asked.packets.iter().map(|packet| view.judge(packet, asked.cgroup)).collect()
}

/// It is the same statement, whatever number it has now; or the same rule of the copy.
fn is_same(one: &NamedRule, other: &NamedRule) -> bool {
    let words = |rule: &NamedRule| rule.statement.as_ref().map(|of| (of.ruleset.clone(), of.name.clone()));
    match (words(one), words(other)) {
        (Some(one), Some(other)) => one == other,
        _ => {
            (&one.family, &one.table, &one.chain, one.handle)
                == (&other.family, &other.table, &other.chain, other.handle)
        }
    }
}

/// A rule of the copy, as it was made, is this one of the host.
fn is_that(rule: &NamedRule, on_the_host: &NamedRule, trial: &Trial) -> bool {
    // What rejects there drops in the copy, whose text is another one then.
    let is_in_place = rule.backend == Backend::IptablesLegacy
        && (&rule.family, &rule.table, &rule.chain, rule.position)
            == (&on_the_host.family, &on_the_host.table, &on_the_host.chain, on_the_host.position);
    is_in_place || trial.on_the_host(rule).is_ok_and(|rule| is_same(&rule, on_the_host))
}

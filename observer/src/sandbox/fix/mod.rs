//! What would let a blocked packet through: planned by the front end of the rule ([`front_end`]), and tried by its own programs in a
//! private copy of the namespace and of the front end's files. Nothing is ever done to the host itself.

mod asked;
mod modules;
mod probes;
mod same;
mod staging;
mod trial;
mod view;
mod walk;

use std::{
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
};

use anyhow::{Result, ensure};

pub use self::{
    asked::Asked,
    modules::loads_nothing,
    same::differs,
    staging::Files,
    trial::Trial,
    view::{Judged, View},
};
use self::{
    probes::{Outcomes, Probes},
    same::{is_same, is_that},
    walk::{InVain, MAX_STEPS, Undecided, Walk, is_such, stops, walked},
};
use crate::{
    firewall::front_end::{self, Known, MARK, Others, Plan, plans},
    model::{Fix, Lasts, NamedRule, Other, OtherFix, Packet, Probe, ProbeDirection, Scope},
};

/// What is done in a private copy.
pub type Attempt<'a> = Box<dyn FnOnce(Trial) -> Result<Fix> + Send + 'a>;

/// Looks for the commands, and tries them: `enter` does what it is given in a private copy, when there is something to try.
pub fn find(asked: &Asked<'_>, known: &Known, enter: impl FnOnce(Attempt<'_>) -> Result<Fix>) -> Option<Fix> {
    let rules = asked.rules();
    // The first that a command is known for; where there is none, what is known instead.
    let (mut planned, mut advice) = (None, None);
    for (index, rule) in asked.packets.iter().enumerate().filter_map(|(index, (_, rule))| Some((index, rule.as_ref()?)))
    {
        match asked.target(index, rule, &rules).map(|target| plans(rule, &target, known)) {
            Some(Ok(_)) => {
                planned = Some(rule);
                break;
            }
            Some(Err(words)) => advice = advice.or(words),
            None => {}
        }
    }
    let Some(rule) = planned else { return advice.map(advised) };
    let front_end = front_end::of(rule);
    // Until the copy tells, others' packets may pass this host: an untested command is for its own alone.
    let others = OnceLock::new();
    let tried = enter(Box::new(|mut trial| {
        let packets: Vec<&Packet> = asked.packets.iter().map(|(packet, _)| packet).collect();
        trial.prepare(front_end, &[rule], &packets)?;
        let asked =
            Asked { others: *others.get_or_init(|| trial.others()), comes_by: asked.comes_by.clone(), ..*asked };
        attempt(&asked, known, &trial)
    }));
    // Of several rules one may be hopeless, and a command for the others not.
    let is_one_rule = asked.packets.iter().filter_map(|(_, rule)| rule.as_ref()).all(|other| is_same(other, rule));
    Some(match tried {
        Ok(fix) => fix,
        // What was tried in vain is no fix.
        Err(error) if error.downcast_ref::<InVain>().is_some_and(|in_vain| in_vain.was_tried) && is_one_rule => {
            advised(format!(
                "every known command was tried, and none lets it through without opening something else: {error}"
            ))
        }
        Err(error) => {
            let hopeless = error.downcast_ref::<InVain>().and_then(|in_vain| in_vain.rule.as_deref());
            let refuted = error.downcast_ref::<Undecided>().map_or(&[][..], |undecided| &undecided.refuted);
            let others = *others.get().unwrap_or(&Others::Translated);
            let asked = Asked { others, comes_by: asked.comes_by.clone(), ..*asked };
            Fix { unverified: Some(format!("{error:#}")), ..untried(&asked, known, hopeless, refuted) }
        }
    })
}

/// The best plan for every rule and port that stops anything, where none could be tried; none for a rule that is hopeless, and none of
/// those that were `refuted`.
fn untried(asked: &Asked<'_>, known: &Known, hopeless: Option<&NamedRule>, refuted: &[Vec<String>]) -> Fix {
    let (mut steps, mut uncovered): (Vec<Plan>, Vec<String>) = (Vec::new(), Vec::new());
    let mut has_more = false;
    let rules = asked.rules();
    for (index, (packet, rule)) in asked.packets.iter().enumerate() {
        let Some(rule) = rule else { continue };
        let is_hopeless = hopeless.is_some_and(|hopeless| is_same(hopeless, rule));
        let target = asked.target(index, rule, &rules).filter(|_| !is_hopeless);
        let planned = target.and_then(|target| plans(rule, &target, known).ok());
        match planned.and_then(|planned| planned.into_iter().find(|plan| !refuted.contains(&plan.commands))) {
            Some(plan) if steps.iter().any(|step| step.commands == plan.commands) => {}
            Some(plan) if steps.len() < MAX_STEPS => steps.push(plan),
            Some(_) => has_more = true,
            None => {
                let to = packet
                    .to()
                    .map(|(transport, address, port)| format!("{}/{transport}", SocketAddr::new(address, port)));
                uncovered.extend(to.filter(|to| !uncovered.contains(to)));
            }
        }
    }
    let fix = whole(&steps);
    let rest = (!uncovered.is_empty()).then(|| format!("no command is known for {}", some(&uncovered)));
    let more = has_more.then(|| format!("more than {MAX_STEPS} commands are needed"));
    let notes: Vec<String> = fix.note.clone().into_iter().chain(rest).chain(more).collect();
    Fix { note: (!notes.is_empty()).then(|| notes.join("; ")), ..fix }
}

/// The first of many, in words.
fn some(all: &[String]) -> String {
    const MOST: usize = 3;
    let more = all.len().saturating_sub(MOST);
    let named = all.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

/// No command does it; this does.
fn advised(advice: String) -> Fix {
    Fix { note: Some(advice), unverified: None, ..whole(&[]) }
}

/// Steps as one fix that was not tried.
fn whole(plans: &[Plan]) -> Fix {
    let mut opens: Vec<&str> = Vec::new();
    for plan in plans {
        if !opens.contains(&plan.opens.as_str()) {
            opens.push(&plan.opens);
        }
    }
    let mut notes: Vec<&str> = plans.iter().filter_map(|plan| plan.note.as_deref()).collect();
    notes.dedup();
    // As long as the one that ends first.
    let lasts = [Lasts::Hour, Lasts::Reload, Lasts::Permanent];
    let lasts = lasts.into_iter().find(|lasts| plans.iter().any(|plan| plan.lasts == *lasts));
    Fix {
        commands: plans.iter().flat_map(|plan| plan.commands.clone()).collect(),
        undo: plans.iter().rev().flat_map(|plan| plan.undo.clone()).collect(),
        scope: plans.iter().map(|plan| plan.scope).max(),
        opens: (!opens.is_empty()).then(|| opens.join("; ")),
        lasts,
        verified: false,
        verified_for: Vec::new(),
        undo_verified: None,
        unverified: None,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        place: None,
        probes: Vec::new(),
        opened: None,
        others: Vec::new(),
    }
}

/// Addresses for which other commands are looked for, too; for more of them it would be a list that nobody reads.
const MAX_FOR_OTHERS: usize = 2;

/// Runs what is planned in the copy until every packet passes, then takes it back; and the same by other commands.
fn attempt(asked: &Asked<'_>, known: &Known, trial: &Trial) -> Result<Fix> {
    let content = trial.content()?;
    let mut view = trial.look()?;
    let before = stops(asked, &mut view)?.rules;
    let other = differs(asked.packets.iter().map(|(_, rule)| rule.as_ref()), &before, trial);
    if let Some(words) = &other {
        // Without files of a front end's the copy has the rules that are in force: what stops a connection from its beginning is another
        // rule than the one that was seen, such as one for packets of connections that are there already.
        let has_files = asked.first().is_some_and(|(_, rule)| front_end::of(rule).has_files());
        ensure!(!has_files && before.iter().any(Option::is_some), "{words}");
    }
    let stopped = asked.packets.iter().zip(&before).filter(|(_, rule)| rule.is_some());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (_, address, _) in stopped.filter_map(|((packet, _), _)| packet.to()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let probes = Probes::of(asked, &view);
    let closed = probes.tried(&mut view, asked, None)?;
    drop(view);
    let Walk { plans, rules, is_restored, outcomes, notes } =
        walked(asked, known, trial, &before, (&probes, &closed), None)?;
    // What was seen must have been met on the way: the sender of a copy may lack what a rule asks for, such as a group.
    let is_met = |seen: &NamedRule| {
        let is_it = |met: &NamedRule| is_that(&NamedRule { packet: seen.packet, ..met.clone() }, seen, trial);
        rules.iter().any(is_it)
    };
    if let Some(words) = other {
        ensure!(asked.packets.iter().filter_map(|(_, rule)| rule.as_ref()).all(is_met), "{words}");
    }
    // A rule that has observer's own mark already may be somebody's trap: the undo would find that one, and take it away.
    let marked = |plans: &[Plan]| {
        let words = plans.iter().flat_map(|plan| &plan.undo).flat_map(|line| line.split(['"', ' ']));
        words.filter(|word| word.starts_with(MARK)).find(|mark| content.mentions(mark)).map(str::to_owned)
    };
    if let Some(mark) = marked(&plans) {
        let why = format!("a rule has the mark `{mark}` already, by which the exception would be found again");
        return Ok(Fix { unverified: Some(why), ..whole(&[]) });
    }
    let opens_more = plans.iter().any(|plan| plan.scope > Scope::Address);
    let mut others = Vec::new();
    if asked.finds_others && is_restored && addresses.len() <= MAX_FOR_OTHERS {
        // For what is stopped alone.
        let all = asked.packets.iter().zip(asked.by_name).zip(&before).filter(|(_, rule)| rule.is_some());
        let (packets, before): (Vec<_>, Vec<_>) = all.map(|(packet, rule)| (packet, rule.clone())).unzip();
        let (packets, by_name): (Vec<_>, Vec<bool>) =
            packets.into_iter().map(|(of, by_name)| (of.clone(), by_name)).unzip();
        let stopped = Asked { packets: &packets, by_name: &by_name, comes_by: asked.comes_by.clone(), ..*asked };
        for other in [if opens_more { Other::Narrow } else { Other::Broad }, Other::Temporary] {
            let is_planned = stopped.first().is_some_and(|(first, rule)| {
                let target = stopped.target(first, rule, &before);
                let planned = target.and_then(|target| front_end::plans(rule, &target, known).ok());
                planned.is_some_and(|planned| planned.iter().any(|plan| is_such(plan, other)))
            });
            if !is_planned {
                continue;
            }
            let tried = walked(&stopped, known, trial, &before, (&probes, &closed), Some(other));
            let walk = match tried {
                Ok(walk) if walk.is_restored && marked(&walk.plans).is_none() => walk,
                Ok(_) => break,
                Err(why) => {
                    log::debug!("not {other:?}: {why:#}");
                    continue;
                }
            };
            let Fix { commands, undo, opens, note, .. } = noted(whole(&walk.plans), walk.notes);
            let opens = opens.map(|opens| measured(opens, asked, &walk.plans, (&probes, &closed, &walk.outcomes)));
            others.push(OtherFix { other, commands, undo, opens, note });
        }
    }
    let fix = noted(whole(&plans), notes);
    Ok(Fix {
        opens: fix.opens.map(|opens| measured(opens, asked, &plans, (&probes, &closed, &outcomes))),
        verified: true,
        verified_for: addresses,
        undo_verified: Some(is_restored),
        probes: probes.known(&closed, &outcomes),
        opened: (!probes.known(&closed, &outcomes).is_empty()).then(|| probes.opened(&closed, &outcomes)),
        others,
        ..fix
    })
}

/// A fix with more notes.
fn noted(fix: Fix, notes: Vec<String>) -> Fix {
    let notes: Vec<String> = fix.note.clone().into_iter().chain(notes).collect();
    Fix { note: (!notes.is_empty()).then(|| notes.join("; ")), ..fix }
}

/// What a change opens, in words: what its plans say of it, and what probes say.
fn measured(
    opens: String,
    asked: &Asked<'_>,
    plans: &[Plan],
    (probes, before, after): (&Probes, &Outcomes, &Outcomes),
) -> String {
    let (opened, known) = (probes.opened(before, after), probes.known(before, after).len());
    let is_for_addresses = plans.iter().all(|plan| plan.scope == Scope::Address);
    let asks_for_users = asked.packets.iter().filter_map(|(_, rule)| rule.as_ref()).any(NamedRule::asks_for_users);
    // Whoever may send where the plan says is what its words mean, unless the rule tells users apart.
    let is_meant = |probe: &Probe| {
        let is_another = asked
            .packets
            .iter()
            .all(|(packet, _)| packet.to().is_none_or(|(_, to, port)| (to, port) != (probe.address, probe.port)));
        probe.direction == ProbeDirection::Egress && if is_another { !is_for_addresses } else { !asks_for_users }
    };
    let beside: Vec<String> = opened.iter().filter(|probe| !is_meant(probe)).map(Probe::words).collect();
    match (known, opened.is_empty(), beside.as_slice()) {
        (0, ..) => opens,
        (1, true, _) => format!("{opens}; the one probe listed did not open"),
        (all, true, _) => format!("{opens}; none of the {all} probes listed opened"),
        (_, false, []) => opens,
        (_, false, beside) => format!("{opens}; also {}", beside.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::{
        firewall::front_end::Others,
        model::{Origin, Statement},
    };

    fn stopped(to: &str) -> (Packet, Option<NamedRule>) {
        let origin = Origin::Socket { uid: 0, gid: 0, groups: Vec::new(), mark: 0, cgroup: None };
        let statement = Statement {
            ruleset: "ufw".to_owned(),
            what: "ufw's default policy".to_owned(),
            name: "default deny outgoing".to_owned(),
            number: None,
            comment: None,
            note: None,
        };
        let rule = NamedRule { statement: Some(statement), ..NamedRule::example("policy drop") };
        let packet = Packet::syn("192.0.2.1:40000".parse().unwrap(), to.parse().unwrap(), origin);
        (packet.unwrap(), Some(rule))
    }

    #[test]
    fn what_was_not_tried_is_planned_for_every_port() {
        let packets = [stopped("203.0.113.1:443"), stopped("203.0.113.2:443"), stopped("203.0.113.3:80")];
        let asked = Asked {
            packets: &packets,
            by_name: &[true; 3],
            comes_by: None,
            cgroup: None,
            others: Others::Nobody,
            is_later: false,
            finds_others: true,
            began: 0,
        };
        let fix = find(&asked, &Known::default(), |_| bail!("no copy")).unwrap();
        assert_eq!(fix.commands, ["ufw allow out 443/tcp", "ufw allow out 80/tcp"]);
        assert_eq!(fix.undo, ["ufw delete allow out 80/tcp", "ufw delete allow out 443/tcp"]);
        assert_eq!((fix.verified, fix.unverified.as_deref()), (false, Some("no copy")));
    }

    #[test]
    fn what_no_command_is_known_for_is_said() {
        let (packet, rule) = stopped("203.0.113.3:80");
        let in_a_file =
            Statement { name: "-A ufw-before-output -j DROP".to_owned(), ..rule.clone().unwrap().statement.unwrap() };
        let other = NamedRule { statement: Some(in_a_file), ..rule.unwrap() };
        let packets = [stopped("203.0.113.1:443"), (packet, Some(other))];
        let asked = Asked {
            packets: &packets,
            by_name: &[true; 3],
            comes_by: None,
            cgroup: None,
            others: Others::Nobody,
            is_later: false,
            finds_others: true,
            began: 0,
        };
        let fix = find(&asked, &Known::default(), |_| bail!("no copy")).unwrap();
        assert_eq!(fix.commands, ["ufw allow out 443/tcp"]);
        assert_eq!(fix.note.as_deref(), Some("no command is known for 203.0.113.3:80/tcp"));
    }
}

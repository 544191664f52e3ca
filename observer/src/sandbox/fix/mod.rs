//! What would let a blocked packet through: planned by the front end of the rule ([`front_end`]), and tried by its own programs in a
//! private copy of the namespace and of the front end's files. Nothing is ever done to the host itself.

mod modules;
mod probes;
mod staging;
mod trial;
mod view;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};

pub use super::fix::modules::loads_nothing;
pub use super::fix::staging::Files;
pub use super::fix::trial::Trial;
pub use super::fix::view::{Judged, View};

use crate::{
    confinement::child,
    firewall::front_end::{self, Known, MARK, Plan, Target, plans},
    model::{
        Backend, Fix, Lasts, NamedRule, Origin, Other, OtherFix, Packet, PacketKind, Probe, ProbeDirection, Scope,
    },
};

use self::probes::{Outcomes, Probes};

/// Rules that are dealt with one by one.
const MAX_STEPS: usize = 32;

/// What is to get through.
pub struct Asked<'a> {
    /// The packets, one for each address and port, and what stops each of them on the host.
    pub packets: &'a [(Packet, Option<NamedRule>)],
    /// Destinations are known by name, and the addresses may be others tomorrow.
    pub is_by_name: bool,
    /// The sender's cgroup, where it may be sent from there.
    pub cgroup: Option<&'a File>,
    /// The sender does not run yet, and its cgroup is not there.
    pub is_later: bool,
    /// Other commands are looked for, too: for single addresses, for the port, for an hour.
    pub finds_others: bool,
    /// How often trials had been ended when this was asked ([`child::trials`]).
    pub began: u64,
}

impl Asked<'_> {
    /// What is to get through where this packet is stopped by that rule: all addresses of its port that are stopped.
    fn target(&self, packet: &Packet, rule: &NamedRule) -> Option<Target> {
        let (transport, address, port) = packet.to()?;
        let is_forwarded = matches!(packet.origin, Origin::Interface { .. });
        if let Some(to) = rule.translated {
            let addresses = vec![to.ip()];
            return Some(Target { transport, port: to.port(), addresses, is_by_name: false, is_forwarded });
        }
        let stopped = self.packets.iter().filter(|(_, rule)| rule.is_some());
        let all = stopped.filter_map(|(packet, _)| packet.to()).chain([(transport, address, port)]);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (_, address, _) in all.filter(|to| (to.0, to.2) == (transport, port)) {
            // Names may share an address.
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Some(Target { transport, port, addresses, is_by_name: self.is_by_name, is_forwarded })
    }

    /// It was not skipped meanwhile.
    fn goes_on(&self) -> Result<()> {
        ensure!(child::trials() == self.began, "the test was skipped");
        Ok(())
    }

    /// The first that is stopped, and by what.
    fn first(&self) -> Option<(&Packet, &NamedRule)> {
        self.packets.iter().find_map(|(packet, rule)| Some((packet, rule.as_ref()?)))
    }
}

/// A statement that was let through, and how: as it is run in the copy, and as it is for the host.
struct Step {
    here: Plan,
    there: Plan,
}

/// What is done in a private copy.
pub type Attempt<'a> = Box<dyn FnOnce(Trial) -> Result<Fix> + Send + 'a>;

/// Looks for the commands, and tries them: `enter` does what it is given in a private copy, when there is something to try.
pub fn find(asked: &Asked<'_>, known: &Known, enter: impl FnOnce(Attempt<'_>) -> Result<Fix>) -> Option<Fix> {
    let (packet, rule) = asked.first()?;
    let front_end = front_end::of(rule);
    if let Err(advice) = plans(rule, &asked.target(packet, rule)?, known) {
        return advice.map(advised);
    }
    let tried = enter(Box::new(|mut trial| {
        let packets: Vec<&Packet> = asked.packets.iter().map(|(packet, _)| packet).collect();
        trial.prepare(front_end, &[rule], &packets)?;
        attempt(asked, known, &trial)
    }));
    // Of several rules one may be hopeless, and a command for the others not.
    let is_one_rule = asked.packets.iter().filter_map(|(_, rule)| rule.as_ref()).all(|other| is_same(other, rule));
    Some(match tried {
        Ok(fix) => fix,
        // What was tried in vain is no fix.
        Err(error) if error.is::<InVain>() && is_one_rule => {
            advised(format!("no command was found that lets it through and opens nothing else: {error}"))
        }
        Err(error) => Fix { unverified: Some(format!("{error:#}")), ..untried(asked, known) },
    })
}

/// Commands were tried, and do not let it through; in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InVain(String);

/// The best plan for every rule and port that stops anything, where none could be tried.
fn untried(asked: &Asked<'_>, known: &Known) -> Fix {
    let (mut steps, mut uncovered): (Vec<Plan>, Vec<String>) = (Vec::new(), Vec::new());
    let mut has_more = false;
    for (packet, rule) in asked.packets.iter().filter_map(|(packet, rule)| Some((packet, rule.as_ref()?))) {
        let planned = asked.target(packet, rule).and_then(|target| plans(rule, &target, known).ok());
        match planned.and_then(|planned| planned.into_iter().next()) {
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
    let before = stops(asked, &mut view)?;
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
    let Walk { plans, rules, is_restored, outcomes } = walked(asked, known, trial, &before, (&probes, &closed), None)?;
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
        let all = asked.packets.iter().zip(&before).filter(|(_, rule)| rule.is_some());
        let (packets, before): (Vec<_>, Vec<_>) = all.map(|(packet, rule)| (packet.clone(), rule.clone())).unzip();
        let stopped = Asked { packets: &packets, ..*asked };
        for other in [if opens_more { Other::Narrow } else { Other::Broad }, Other::Temporary] {
            let is_planned = stopped.first().is_some_and(|(packet, rule)| {
                let planned =
                    stopped.target(packet, rule).and_then(|target| front_end::plans(rule, &target, known).ok());
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
            let Fix { commands, undo, opens, note, .. } = whole(&walk.plans);
            let opens = opens.map(|opens| measured(opens, &probes, &closed, &walk.outcomes));
            others.push(OtherFix { other, commands, undo, opens, note });
        }
    }
    let fix = whole(&plans);
    Ok(Fix {
        opens: fix.opens.map(|opens| measured(opens, &probes, &closed, &outcomes)),
        verified: true,
        verified_for: addresses,
        undo_verified: Some(is_restored),
        probes: probes.known(&closed, &outcomes),
        opened: (!probes.known(&closed, &outcomes).is_empty()).then(|| probes.opened(&closed, &outcomes)),
        others,
        ..fix
    })
}

/// A plan is one that differs so.
fn is_such(plan: &Plan, other: Other) -> bool {
    let is_temporary = plan.lasts == Lasts::Hour;
    match other {
        Other::Narrow => !is_temporary && plan.scope == Scope::Address,
        Other::Broad => !is_temporary && plan.scope == Scope::Port,
        Other::Temporary => is_temporary,
    }
}

/// What a change opens, in words: what its plan says of it, and what probes say.
fn measured(opens: String, probes: &Probes, before: &Outcomes, after: &Outcomes) -> String {
    let (opened, known) = (probes.opened(before, after), probes.known(before, after).len());
    // That others may send there, too, is what these words mean.
    let beside: Vec<String> =
        opened.iter().filter(|probe| probe.direction != ProbeDirection::Egress).map(Probe::words).collect();
    match (known, opened.is_empty(), beside.as_slice()) {
        (0, ..) => opens,
        (1, true, _) => format!("{opens}; the one probe listed did not open"),
        (all, true, _) => format!("{opens}; none of the {all} probes listed opened"),
        (_, false, []) => opens,
        (_, false, beside) => format!("{opens}; also {}", beside.join(", ")),
    }
}

/// What came of plans.
struct Walk {
    /// The plans for the host.
    plans: Vec<Plan>,
    /// What each of them lets through, in the copy.
    rules: Vec<NamedRule>,
    /// Everything is as it was once they are taken back.
    is_restored: bool,
    /// What became of probes while they were in force.
    outcomes: Outcomes,
}

/// Runs such plans until every packet passes, and takes them back: the plans for the host, and whether everything is then as it was.
fn walked(
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
fn stops(asked: &Asked<'_>, view: &mut View) -> Result<Vec<Option<NamedRule>>> {
    let one = |(packet, _): &(Packet, Option<NamedRule>)| {
        asked.goes_on()?;
        Ok(view.may_stop(packet, (asked.cgroup, asked.is_later))?.rule)
    };
    asked.packets.iter().map(one).collect()
}

/// What stops packets in the copy, before anything was changed there, where that is not what stops them on the host; in words.
pub fn differs<'a>(
    on_the_host: impl Iterator<Item = Option<&'a NamedRule>>,
    in_the_copy: &[Option<NamedRule>],
    trial: &Trial,
) -> Option<String> {
    on_the_host.zip(in_the_copy).find_map(|(there, here)| {
        let is_that = match (here, there) {
            (Some(here), Some(there)) => is_that(here, there, trial),
            (here, there) => here.is_none() && there.is_none(),
        };
        let rule = there.or(here.as_ref());
        let of_files = rule.map(front_end::of).filter(|front_end| front_end.has_files()).map(front_end::FrontEnd::name);
        match (is_that, of_files, here) {
            (true, ..) => None,
            (false, Some(name), None) => {
                Some(format!("the live rules differ from {name}'s files, which already allow this; {}", reload(name)))
            }
            (false, Some(name), Some(here)) => Some(format!(
                "the live rules differ from {name}'s files, by which {}; {}",
                here.sentence(),
                reload(name)
            )),
            (false, None, None) => Some("in the copy it passes".to_owned()),
            (false, None, Some(here)) => Some(format!("in the copy {}", here.sentence())),
        }
    })
}

/// What has a front end load its files.
fn reload(name: &str) -> &'static str {
    match name {
        "ufw" => "`ufw reload` loads them where ufw is enabled",
        "firewalld" => "`firewall-cmd --reload` loads them",
        _ => "reload them",
    }
}

/// It is the same statement, whatever number it has now, or the same rule of the copy; and it stops the same packet.
fn is_same(one: &NamedRule, other: &NamedRule) -> bool {
    if one.packet != other.packet || one.leads_to != other.leads_to {
        return false;
    }
    let words =
        |rule: &NamedRule| rule.statement.as_ref().map(|of| (of.ruleset.clone(), of.name.clone(), of.comment.clone()));
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
    // Of a packet that was seen later it is not known whether its connection would begin.
    let rule = &NamedRule {
        packet: if on_the_host.packet == Some(PacketKind::Segment) { on_the_host.packet } else { rule.packet },
        ..rule.clone()
    };
    let is_in_place = rule.backend == Backend::IptablesLegacy
        && (&rule.family, &rule.table, &rule.chain, rule.position)
            == (&on_the_host.family, &on_the_host.table, &on_the_host.chain, on_the_host.position);
    is_in_place || trial.on_the_host(rule).is_ok_and(|rule| is_same(&rule, on_the_host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Statement;

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
        let asked =
            Asked { packets: &packets, is_by_name: true, cgroup: None, is_later: false, finds_others: true, began: 0 };
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
        let asked =
            Asked { packets: &packets, is_by_name: true, cgroup: None, is_later: false, finds_others: true, began: 0 };
        let fix = find(&asked, &Known::default(), |_| bail!("no copy")).unwrap();
        assert_eq!(fix.commands, ["ufw allow out 443/tcp"]);
        assert_eq!(fix.note.as_deref(), Some("no command is known for 203.0.113.3:80/tcp"));
    }
}

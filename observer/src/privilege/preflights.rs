//! Whether destinations would be let out: asked of a copy of the rules, with the routes of the namespace itself.

use std::{
    collections::HashMap,
    fs::File,
    net::{IpAddr, SocketAddr},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    netns,
    programs::{Answer, Cgroup},
    routes::{self, Route, Wanted},
    trials::Place,
};
use crate::{
    confinement::child,
    firewall::{
        front_end::{self, Known},
        ruleset::Ruleset,
    },
    model::{After, Fate, Fix, NamedRule, Origin, Packet, Preflight, Preflighted, Programs, ProposedChange, Tried},
    patience,
    sandbox::{
        copy,
        fix::{self, Asked, Judged, Trial},
    },
};

/// The port that a packet is said to come from: one of those that a kernel gives.
const FROM: u16 = 40_000;

/// One that goes on.
#[derive(Default)]
pub(super) struct Preflights {
    going_on: Option<Receiver<Result<Preflighted>>>,
}

impl Preflights {
    /// Begins with one; what was asked before is given up. `has_rules`: nftables is loaded, by which packets are followed.
    pub(super) fn begin(
        &mut self,
        asked: Preflight,
        place: Place,
        cgroup: Option<Cgroup>,
        has_rules: bool,
    ) -> Result<()> {
        let (send, coming) = channel();
        thread::Builder::new().name("preflight".to_owned()).spawn(move || {
            let _ = send.send(examine(&asked, &place, cgroup.as_ref(), has_rules));
        })?;
        self.going_on = Some(coming);
        Ok(())
    }

    /// What came of it; `None` as long as it goes on.
    pub(super) fn finished(&mut self) -> Result<Option<Preflighted>> {
        let coming = self.going_on.as_ref().context("nothing was asked")?;
        match coming.try_recv() {
            Ok(answer) => {
                self.going_on = None;
                answer.map(Some)
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("it failed"),
        }
    }
}

/// Does it, unless that time is over.
fn within<T>((until, seconds): (Instant, u64), work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = || format!("it was not tried within {seconds} s; --timeout gives it more time");
    ensure!(Instant::now() < until, is_over());
    work().map_err(|error| if Instant::now() < until { error } else { anyhow::anyhow!(is_over()) })
}

/// Where a packet stands among what was asked: the wish, and the address.
type Spot = (usize, usize);

fn examine(asked: &Preflight, place: &Place, cgroup: Option<&Cgroup>, has_rules: bool) -> Result<Preflighted> {
    // What is skipped while the rules are judged is skipped too.
    let began = child::trials();
    let until = (Instant::now() + patience::here(Duration::from_secs(asked.limit)), asked.limit);
    let (wishes, uid) = (asked.wishes.clone(), asked.user.0);
    let ways = place.inside(move || {
        Ok(wishes
            .iter()
            .map(|wish| {
                let wanted = |to: &IpAddr| Wanted { to: *to, is_tcp: wish.transport == "tcp", port: wish.port, uid };
                wish.addresses.iter().map(|to| routes::of(wanted(to))).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>())
    })?;
    let mut fates: Vec<Vec<Fate>> = Vec::new();
    let mut packets: Vec<(Spot, Packet)> = Vec::new();
    for (index, (wish, ways)) in asked.wishes.iter().zip(ways).enumerate() {
        let mut of = Vec::new();
        for (at, (address, way)) in wish.addresses.iter().zip(ways).enumerate() {
            of.push(match way {
                Ok(Route { source, interface }) => {
                    let (from, to) = (SocketAddr::new(source, FROM), SocketAddr::new(*address, wish.port));
                    let origin = Origin::Socket {
                        uid: asked.user.0,
                        gid: asked.user.1,
                        groups: asked.groups.clone(),
                        mark: 0,
                        cgroup: None,
                    };
                    let packet = match wish.transport.as_str() {
                        "tcp" => Packet::syn(from, to, origin),
                        _ => Packet::datagram(from, to, origin),
                    };
                    packets.extend(packet.map(|packet| ((index, at), Packet { interface, ..packet })));
                    Fate::Passes
                }
                Err((is_decided, why)) => Fate::NoRoute { is_decided, why },
            });
        }
        fates.push(of);
    }
    let mut answer =
        Preflighted { rules: Vec::new(), fates, after: None, fix: None, entering: netns::entering(place.number) };
    // Never report the state as it is for the state after the change.
    let untried = |why: &str| asked.after.as_ref().map(|_| Tried::Unknown(why.to_owned()));
    if packets.is_empty() {
        answer.after = untried("no route leads to any of these destinations");
        return Ok(answer);
    }
    let programs = said_by_programs(asked, place, cgroup, &packets);
    if !has_rules {
        let others: Vec<Option<IpAddr>> = packets.iter().map(|(_, packet)| Some(packet.to()?.1)).collect();
        let untested = place.inside(move || copy::under_ipsec(&others))?;
        for (((wish, at), _), why) in packets.iter().zip(untested) {
            if let Some(why) = why {
                answer.fates[*wish][*at] = Fate::Unknown(why);
            }
        }
        // Without nftables only iptables-legacy could stop anything, and it could not be asked.
        let tables = place.inside(crate::firewall::legacy::tables)?;
        if !tables.is_empty() {
            for ((wish, at), _) in &packets {
                answer.fates[*wish][*at] = Fate::Unknown(
                    "there are tables of iptables-legacy, and nftables is not loaded to follow a packet".to_owned(),
                );
            }
        }
        programs.enter(&mut answer.fates);
        answer.after = untried("nftables is not loaded, and a packet is followed by it");
        return Ok(answer);
    }
    let home = netns::home(place.number);
    let root = netns::root(place.number)?;
    let mut view = place.view(root)?;
    view.not_after(until.0);
    // Rules may ask for it.
    let is_there = |cgroup: &&Cgroup| !cgroup.is_own && asked.later.is_none();
    let procs = cgroup.filter(is_there).map(Cgroup::procs).transpose()?;
    let judged: Vec<Result<Judged>> = packets
        .iter()
        .map(|(_, packet)| within(until, || view.judge(packet, (procs.as_ref(), asked.later.is_some()))))
        .collect();
    let mut on_the_host = view.into_ruleset();
    set(&mut answer.fates, &mut answer.rules, &packets, &judged);
    programs.enter(&mut answer.fates);
    // What cannot be reported takes no part in the rest.
    let all = packets.clone();
    let told: Vec<JudgedPacket> = packets
        .into_iter()
        .zip(judged)
        .filter(|((spot, _), _)| !programs.0.contains_key(spot))
        .filter_map(|((spot, packet), judged)| Some((spot, packet, judged.ok()?.rule)))
        .collect();
    let stopped_by = told.iter().find_map(|(_, _, rule)| rule.as_ref());
    if let Some(stopped_by) = stopped_by.filter(|_| asked.finds_fix) {
        let known = home.as_ref().map(Known::read).unwrap_or_default();
        let all: Vec<(Packet, Option<NamedRule>)> =
            told.iter().map(|(_, packet, rule)| (packet.clone(), rule.clone())).collect();
        let is_later = asked.later.is_some();
        let is_by_name = |((wish, _), ..): &JudgedPacket| asked.wishes.get(*wish).is_some_and(|wish| wish.is_by_name);
        let by_name: Vec<bool> = told.iter().map(is_by_name).collect();
        let wanted = Asked {
            packets: &all,
            by_name: &by_name,
            comes_by: None,
            cgroup: procs.as_ref(),
            others: front_end::Others::Nobody,
            is_later,
            finds_others: asked.finds_others,
            began,
        };
        let front_end = front_end::of(stopped_by);
        let own_files = home.as_ref().ok().map(|home| netns::has_own_files(home, front_end));
        let fix = fix::find(&wanted, &known, |attempt| place.tried(netns::home(place.number)?, began, attempt));
        let is_skipped = child::trials() != began;
        let fix = fix.map(|fix| match fix.unverified {
            Some(_) if is_skipped && Instant::now() >= until.0 => {
                let seconds = until.1;
                let why = format!("it was not tested within {seconds} s; --timeout gives it more time");
                Fix { unverified: Some(why), ..fix }
            }
            Some(_) if is_skipped => Fix { unverified: Some("the test was skipped".to_owned()), ..fix },
            _ => fix,
        });
        answer.fix = fix.map(|fix| place.placed(fix, front_end, own_files));
    }
    if let Some(change) = &asked.after {
        let fates = answer.fates.clone();
        let rules = &mut answer.rules;
        let after = home.and_then(|home| {
            place.tried(home, began, |trial| {
                let sender = (procs.as_ref(), asked.later.is_some());
                after(change, (&told, &all), (sender, until), (trial, on_the_host.as_mut()))
            })
        });
        let blocked = |fates: &[Vec<Fate>]| fates.iter().flatten().map(Fate::is_blocked).collect::<Vec<_>>();
        answer.after = Some(match after {
            Ok(Err(said)) => Tried::Refused(said),
            Ok(Ok(Made { judged, added, removed, is_idle })) => {
                let mut fates = fates;
                set(&mut fates, rules, &all, &judged);
                programs.enter(&mut fates);
                let is_same = added.is_empty() && removed.is_empty() && blocked(&fates) == blocked(&answer.fates);
                let idle = (is_idle && is_same).then_some(match change {
                    ProposedChange::Command(_) => "it adds no rule and removes none",
                    ProposedChange::Ruleset(_) => "it has no other rules than those in force",
                });
                let notes: Vec<String> = idle.map(str::to_owned).into_iter().chain(in_force(change)).collect();
                let note = (!notes.is_empty()).then(|| notes.join("; "));
                Tried::Is(After { fates, added, removed, note })
            }
            Err(error) => Tried::Unknown(format!("{error:#}")),
        });
    }
    Ok(answer)
}

/// What is otherwise where a proposed ruleset is loaded on the host.
fn in_force(change: &ProposedChange) -> Option<String> {
    let ProposedChange::Ruleset(text) = change else { return None };
    let (_, load) = front_end::configuration(text).ok()??;
    load.note.map(str::to_owned)
}

/// What programs of the sender's cgroup have against packets.
struct OfPrograms(HashMap<Spot, Answer>);

impl OfPrograms {
    /// Enters it over what rules do.
    fn enter(&self, fates: &mut [Vec<Fate>]) {
        for ((wish, at), answer) in &self.0 {
            let fate = &mut fates[*wish][*at];
            let rule = match fate {
                Fate::Stopped(rule) => Some(*rule),
                _ => None,
            };
            match (answer, rule) {
                (Answer::Denied(programs, why), rule) => {
                    *fate = Fate::Denied { programs: *programs, why: why.clone(), rule };
                }
                // A rule stops it anyhow.
                (Answer::Unknown(_), Some(_)) | (Answer::Passes, _) => {}
                (Answer::Unknown(why), None) => *fate = Fate::Unknown(why.clone()),
            }
        }
    }
}

fn said_by_programs(
    asked: &Preflight,
    place: &Place,
    cgroup: Option<&Cgroup>,
    packets: &[(Spot, Packet)],
) -> OfPrograms {
    let mut said = HashMap::new();
    match (&asked.later, cgroup) {
        (None, None) => {}
        (None, Some(cgroup)) => {
            let only: Vec<&Packet> = packets.iter().map(|(_, packet)| packet).collect();
            let answers = place.ask_programs(cgroup, &only);
            let spots = packets.iter().map(|(spot, _)| *spot);
            said.extend(spots.zip(answers).filter(|(_, answer)| !matches!(answer, Answer::Passes)));
        }
        // Nobody is in its cgroup yet.
        (Some(later), slice) => {
            let mut unknown = later.unknown.clone();
            unknown.extend(slice.iter().flat_map(|slice| slice.foreign()).map(|name| format!("BPF program `{name}`")));
            for (spot, packet) in packets {
                if packet.to().is_some_and(|(_, address, _)| later.lists.deny(address)) {
                    let why = "the unit's IPAddressDeny=, which holds once it runs".to_owned();
                    said.insert(*spot, Answer::Denied(Programs::Egress, why));
                } else if !unknown.is_empty() {
                    let why = format!("the unit does not run, and {} may stop it then", unknown.join(", "));
                    said.insert(*spot, Answer::Unknown(why));
                }
            }
        }
    }
    OfPrograms(said)
}

/// Enters what became of packets.
fn set(fates: &mut [Vec<Fate>], rules: &mut Vec<NamedRule>, packets: &[(Spot, Packet)], judged: &[Result<Judged>]) {
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut place = |rule: &NamedRule| {
        let key = postcard::to_stdvec(rule).unwrap_or_default();
        *places.entry(key).or_insert_with(|| {
            rules.iter().position(|known| known == rule).unwrap_or_else(|| {
                rules.push(rule.clone());
                rules.len() - 1
            })
        })
    };
    for (((wish, at), _), judged) in packets.iter().zip(judged) {
        fates[*wish][*at] = match judged {
            Ok(Judged { rule: Some(rule), .. }) => Fate::Stopped(place(rule)),
            Ok(Judged { by_known: Some(rule), but, .. }) => Fate::PassesByKnown(place(rule), but.clone()),
            Ok(Judged { but: Some(words), .. }) => Fate::PassesBut(words.clone()),
            Ok(_) => Fate::Passes,
            Err(error) => Fate::Unknown(format!("{error:#}")),
        };
    }
}

/// A packet, and what stops it now.
type JudgedPacket = (Spot, Packet, Option<NamedRule>);
/// What the command makes of packets, and which rules it makes and takes away.
struct Made {
    judged: Vec<Result<Judged>>,
    added: Vec<String>,
    removed: Vec<String>,
    /// The rules are as they were, of iptables-legacy and in sets too.
    is_idle: bool,
}

/// Runs the command in the copy; the inner error is what it says where it fails.
fn after(
    change: &ProposedChange,
    (told, all): (&[JudgedPacket], &[(Spot, Packet)]),
    (sender, until): ((Option<&File>, bool), (Instant, u64)),
    (mut trial, on_the_host): (Trial, Option<&mut Ruleset>),
) -> Result<Result<Made, String>> {
    let front_end = front_end::of_change(change).context("it is no front end's change")?;
    let rules: Vec<&NamedRule> = told.iter().filter_map(|(_, _, rule)| rule.as_ref()).collect();
    let packets: Vec<&Packet> = told.iter().map(|(_, packet, _)| packet).collect();
    fix::loads_nothing(change)?;
    trial.prepare(front_end, &rules, &packets)?;
    let mut before = trial.look_first(on_the_host)?;
    before.not_after(until.0);
    let here: Vec<Option<NamedRule>> = told
        .iter()
        .map(|(_, packet, _)| Ok(within(until, || before.judge(packet, sender))?.rule))
        .collect::<Result<_>>()?;
    if let Some(words) = fix::differs(told.iter().map(|(_, _, rule)| rule.as_ref()), &here, &trial) {
        bail!("{words}");
    }
    let shape = trial.shape()?;
    if let Err(said) = trial.make(change) {
        return Ok(Err(format!("{said:#}")));
    }
    let mut view = trial.look()?;
    view.not_after(until.0);
    let judged = all.iter().map(|(_, packet)| within(until, || view.judge(packet, sender))).collect();
    let (added, removed) = view.difference(&mut before);
    Ok(Ok(Made { judged, added, removed, is_idle: trial.shape()? == shape }))
}

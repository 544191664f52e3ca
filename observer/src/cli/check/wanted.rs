//! What is to be reached, and by which addresses.

use std::{net::IpAddr, path::Path};

use anyhow::Result;
use ipnet::IpNet;

use super::{Args, did_you_mean, usage};
use crate::{
    check::resolve,
    check::{ANY, Entry, Known, Target, Values, ask, host, profiles, proxy::Proxies},
    model::{Fate, Preflighted, Tried},
    sink::notice::note,
};

/// Why a name has no address, by `--no-dns`.
pub(super) const NOT_LOOKED_UP: &str = "names are not looked up (--no-dns)";

/// What was asked for, in the order of the words; without any what this host depends on.
pub(super) fn entries(args: &Args, known: &profiles::Profiles, shell: Option<&Proxies>) -> Result<Vec<Entry>> {
    let values: Values = args.set.iter().cloned().collect();
    let has_profile =
        args.wanted.iter().any(|word| !ask::is_destination(word) && !host::SOURCES.contains(&word.as_str()));
    if let Some((name, _)) = args.set.first().filter(|_| !has_profile) {
        return Err(usage(
            &format!("`--set {name}=` is for a profile, and none is named"),
            "name one, as in `observer check datadog --set site=datadoghq.eu`",
        ));
    }
    let mut entries = Vec::new();
    if args.wanted.is_empty() && args.steps.is_none() {
        let (all, unread) = host::dependencies(Path::new("/"), known, shell);
        for words in unread {
            note(&format!("observer: {words}"));
        }
        entries = all;
    }
    for word in &args.wanted {
        if host::SOURCES.contains(&word.as_str()) {
            let sources = host::sources(Path::new("/"), word, shell);
            if sources.is_empty() {
                return Err(usage(
                    &format!("this host has no package sources of {word}"),
                    "name a profile or HOST:PORT",
                ));
            }
            entries.extend(sources);
            continue;
        }
        if ask::is_destination(word) {
            let entry = ask::destination(word).map_err(|error| {
                usage(
                    &error.to_string(),
                    "write HOST, HOST:PORT, HOST:PORT/udp, [2001:db8::1]:443 or 203.0.113.0/24:443",
                )
            })?;
            entries.push(entry);
            continue;
        }
        let profile = known.get(word).map_err(|error| no_profile(&error, word, known))?;
        if let Some((name, _)) = args.set.iter().find(|(name, _)| !profile.variables().any(|(known, ..)| known == name))
        {
            let all: Vec<&str> = profile.variables().map(|(name, ..)| name).collect();
            let hint = if all.is_empty() { "it has none".to_owned() } else { format!("it has {}", all.join(", ")) };
            return Err(usage(&format!("profile {word} has no variable `{name}`"), &hint));
        }
        entries.extend(
            profile.entries(&values).map_err(|error| usage(&format!("{error:#}"), "see `observer check --list`"))?,
        );
    }
    Ok(entries)
}

/// What to write instead of a name that no profile has.
pub(super) fn no_profile(error: &anyhow::Error, name: &str, known: &profiles::Profiles) -> anyhow::Error {
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return usage(&format!("`{name}` is a port without a destination"), &format!("write HOST:{name}, as one word"));
    }
    let nearest = did_you_mean(name, known.names());
    let more = "`observer check --list` shows the profiles; a destination is written HOST:PORT";
    usage(&format!("{error:#}"), &if nearest.is_empty() { more.to_owned() } else { format!("{nearest} {more}") })
}

/// Says which name was given an address in vain: a typing error would be looked up instead.
pub(super) fn mention_stray_addresses(args: &Args, entries: &[Entry]) {
    let names = || entries.iter().map(|entry| entry.probe.as_ref().unwrap_or(&entry.host).as_str());
    for (name, _) in args.resolve.iter().filter(|(name, _)| !names().any(|known| known == name)) {
        let nearest = did_you_mean(name, names());
        let sentence = format!("observer: no destination is called `{name}`, for which `--resolve` has an address");
        note(if nearest.is_empty() { sentence } else { format!("{sentence}; {nearest}") }.as_str());
    }
}

/// Addresses of all; and how many names were looked up.
pub(super) fn targets(args: &Args, entries: Vec<Entry>) -> Result<(Vec<Target>, usize)> {
    let given = |host: &str| -> Vec<IpAddr> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return vec![address];
        }
        if let Ok(network) = host.parse::<IpNet>() {
            // Rules are about networks: its first and its last address stand for it.
            let mut ends = vec![
                network.hosts().next().unwrap_or(network.addr()),
                network.hosts().last().unwrap_or(network.broadcast()),
            ];
            ends.dedup();
            return ends;
        }
        args.resolve.iter().filter(|(name, _)| name == host).map(|(_, address)| *address).collect()
    };
    let mut names: Vec<String> = Vec::new();
    for entry in &entries {
        let name = entry.probe.as_ref().unwrap_or(&entry.host);
        if given(name).is_empty() && !args.no_dns && !names.contains(name) {
            names.push(name.clone());
        }
    }
    let look_ups = names.len();
    let mut found = resolve::all(names)?;
    let targets = entries.into_iter().map(|entry| {
        let name = entry.probe.clone().unwrap_or_else(|| entry.host.clone());
        let addresses = given(&name);
        let any = |why: String| (ANY.to_vec(), Known::Any(why));
        let (addresses, known) = match (addresses.is_empty(), found.get_mut(&name)) {
            (false, _) => (addresses, Known::Given),
            (true, Some(Ok(addresses))) => (addresses.clone(), Known::Resolved),
            (true, Some(Err(why))) => any(why.clone()),
            (true, None) => any(NOT_LOOKED_UP.to_owned()),
        };
        Target { entry, addresses, known }
    });
    Ok((targets.collect(), look_ups))
}

/// The resolvers of this host, but for those that were asked about.
pub(super) fn resolvers(asked: &[Target]) -> Vec<Target> {
    let place = |entry: &Entry| (entry.host.clone(), entry.port, entry.transport);
    let known: Vec<_> = asked.iter().map(|target| place(&target.entry)).collect();
    let mut entries = host::resolvers(&mut Vec::new());
    // By TCP they are asked when an answer is long.
    entries.retain(|entry| entry.transport == "udp" && !known.contains(&place(entry)));
    let target = |entry: Entry| {
        let addresses = vec![entry.host.parse().ok()?];
        Some(Target { entry, addresses, known: Known::Given })
    };
    entries.into_iter().filter_map(target).collect()
}

/// Of what nobody asked about only what is blocked is reported.
pub(super) fn keep_blocked(targets: &mut Vec<Target>, answer: &mut Preflighted, asked_for: usize) {
    let is_told: Vec<bool> = (0..targets.len())
        .map(|index| {
            let after = match &answer.after {
                Some(Tried::Is(after)) => after.fates.get(index),
                _ => None,
            };
            let all = answer.fates.get(index).into_iter().chain(after).flatten();
            index < asked_for || { all }.any(Fate::is_blocked)
        })
        .collect();
    let told = |index: &mut usize| {
        *index += 1;
        is_told[*index - 1]
    };
    let (mut of_targets, mut of_fates, mut of_after) = (0, 0, 0);
    targets.retain(|_| told(&mut of_targets));
    answer.fates.retain(|_| told(&mut of_fates));
    if let Some(Tried::Is(after)) = &mut answer.after {
        after.fates.retain(|_| told(&mut of_after));
    }
}

//! `observer check`

mod change;
mod live;
mod sender;
mod wanted;

use std::{
    ffi::OsString,
    io::{self, BufWriter},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{
    ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};

use self::{
    change::{after, proposed},
    live::{has_failed, tried},
    sender::sender,
    wanted::{entries, keep_blocked, resolvers, targets},
};
use super::{Exit, did_you_mean, exit::UsageError, progress::Progress, session::is_own_netns, written};
use crate::{
    attribute::host::Identity,
    check::{
        ANY, Known, host, profiles,
        proxy::{self, Proxies},
    },
    confinement::process::confine,
    firewall::front_end::{self, Page},
    model::{Fate, Preflight, Preflighted, ProposedChange, Tried, Wish},
    privilege::Helper,
    probe::attach::check_privilege,
    render::{
        check::{self as render, Answer, Kept},
        screen::{self, Screen},
        steps,
    },
    sink::notice::note,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Destinations to test
    ///
    /// Each is a profile (see --list); apt or dnf, for this host's package sources; HOST, HOST:PORT, HOST:PORT/udp,
    /// [2001:db8::1]:443 or 203.0.113.0/24:443 (of a network its first and its last address are tested); or a URL. The default
    /// port is 443. With none: what this host already depends on.
    #[arg(value_name = "PROFILE|HOST[:PORT][/udp]|URL")]
    wanted: Vec<String>,
    /// Choose the output format
    #[arg(short, long, value_enum, default_value = "human")]
    output: Format,
    /// List the profiles
    #[arg(long)]
    list: bool,
    /// Print a profile's needs and commands for this front end
    ///
    /// Needs no root.
    #[arg(long, value_parser = pages(), value_name = "FRONT-END")]
    steps: Option<&'static Page>,
    /// Save the answer to FILE, for --against (never overwrites)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Report what got worse since --save; status 1 if anything
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Set a profile's variable: site=datadoghq.eu
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Read your own profiles from this folder
    #[arg(long, value_name = "DIR", default_value = profiles::FOLDER)]
    profiles: PathBuf,
    /// Use this address for a name (repeatable)
    #[arg(long, value_name = "NAME:ADDR", value_parser = resolved)]
    resolve: Vec<(String, IpAddr)>,
    /// Skip DNS; test unresolved names with a placeholder address
    #[arg(long)]
    no_dns: bool,
    /// Test as this user
    #[arg(long = "as", alias = "user", value_name = "USER")]
    user: Option<String>,
    /// Test as this systemd unit, or in this cgroup
    ///
    /// A unit is tested from its cgroup and as its user. A cgroup is a path: /system.slice/x.service.
    #[arg(long, alias = "unit", value_name = "UNIT|CGROUP")]
    as_unit: Option<String>,
    /// Test in this network namespace [default: the current one]
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<String>,
    /// Test again after this firewall command, in a copy
    ///
    /// A command of ufw, firewall-cmd, nft or iptables. It runs in a private copy of the ruleset only.
    #[arg(long, value_name = "COMMAND")]
    after: Option<String>,
    /// Test this ruleset file instead of the live rules
    ///
    /// A file for `nft -f`; of `iptables-save` or `ip6tables-save`; ufw's user.rules or user6.rules.
    #[arg(long, value_name = "FILE", conflicts_with = "after")]
    ruleset: Option<PathBuf>,
    /// Same as --ruleset, but show only what changes
    #[arg(long, value_name = "FILE", conflicts_with_all = ["after", "ruleset"])]
    diff: Option<PathBuf>,
    /// Connect to the destinations too; this sends packets
    ///
    /// TLS connections are checked up to the name in the certificate.
    #[arg(long, conflicts_with_all = ["after", "ruleset", "diff"])]
    live: bool,
    /// Do not look for a fix
    #[arg(long)]
    no_fix: bool,
    /// Give up what was not tried after so long
    ///
    /// It is reported as not known.
    #[arg(long, value_name = "DURATION", value_parser = super::duration, default_value = "60s")]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Text for a person
    Human,
    /// One JSON object for each address and port
    Json,
    /// A table for a ticket
    Markdown,
}

/// Front ends by the names of their pages.
fn pages() -> impl TypedValueParser<Value = &'static Page> {
    let names = front_end::pages().map(|(name, page)| PossibleValue::new(page.name).help(name));
    let named = |name: String| front_end::pages().find(|(_, page)| page.name == name).map(|(_, page)| page);
    PossibleValuesParser::new(names).try_map(move |name| named(name).ok_or("this front end has no page"))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn resolved(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once(':').ok_or("write NAME:ADDR")?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse().map_err(|_| format!("`{address}` is not an address"))?;
    Ok((name.trim_end_matches('.').to_owned(), address))
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    let has_profiles = args.profiles == Path::new(profiles::FOLDER) || args.profiles.is_dir();
    if !has_profiles {
        let sentence = format!("--profiles {}: there is no such folder", args.profiles.display());
        return Err(usage(&sentence, "name the folder that has your profiles"));
    }
    if args.timeout < Duration::from_secs(1) {
        return Err(usage("--timeout is shorter than a second", "give it time: the default is 60s"));
    }
    let known = profiles::Profiles::read(&args.profiles)
        .map_err(|error| usage(&format!("{error:#}"), "mend the file, or name another folder with --profiles"))?;
    let is_text = matches!(args.output, Format::Human) && args.steps.is_none();
    let width = if is_text { screen::stdout_width } else { screen::unlimited };
    let mut stdout = Screen::new(BufWriter::new(anstream::AutoStream::auto(io::stdout())), width);
    if args.list {
        return written(render::list(&mut stdout, &known)).map(|()| Exit::Done);
    }
    // What is no text is no proxy's address.
    let texts = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let shell: Vec<(String, String)> = std::env::vars_os().filter_map(texts).collect();
    let shell = Proxies::of_variables(&shell, "the environment");
    let mut entries = entries(args, &known, shell.as_ref())?;
    if let Some(steps) = args.steps {
        let [name] = args.wanted.as_slice() else {
            return Err(usage("`--steps` is for one profile", "write observer check --steps ufw datadog"));
        };
        let profile = known.get(name).map_err(|error| wanted::no_profile(&error, name, &known))?;
        return written(steps::write(&mut stdout, steps, profile, &entries)).map(|()| Exit::Done);
    }
    let earlier = args
        .against
        .as_deref()
        .map(Kept::read)
        .transpose()
        .map_err(|error| usage(&format!("{error:#}"), "name a file that `observer check --save` wrote"))?;
    let save = args.save.as_deref().map(super::run::create).transpose()?;
    let after = match (&args.after, args.ruleset.as_ref().or(args.diff.as_ref())) {
        (Some(command), _) => Some(ProposedChange::Command(after(command, args.netns.as_deref())?)),
        (None, Some(path)) => Some(proposed(path)?),
        (None, None) => None,
    };
    wanted::mention_stray_addresses(args, &entries);
    let sender = sender(args)?;
    let is_direct = entries.iter().any(|entry| entry.profile.is_none());
    if let Some(proxies) = sender.proxies.as_ref().or(shell.as_ref()).filter(|_| is_direct) {
        let from = proxies.from();
        note(&format!("observer: {from} names a proxy; HOST:PORT is tested without it"));
    }
    let asked: Vec<&str> =
        entries.iter().filter_map(|entry| entry.profile.as_ref()).map(|of| of.name.as_str()).collect();
    let proxies = host::HostProxies::read(Path::new("/"), shell, sender.proxies.clone(), &asked);
    entries = proxy::in_place(entries, |profile| proxies.of(profile));
    check_privilege().map_err(|error| super::exit::with_hint(&error))?;
    let mut helper = if args.live { Helper::start_for_connections()? } else { Helper::start()? };
    // What resolvers answer is read without privileges.
    if let Err(error) = confine(&[], true, || true) {
        log::warn!("{error:#}");
    }
    let (mut targets, look_ups) = targets(args, entries)?;
    // Whoever asks by name asks them first.
    let asked_for = targets.len();
    if look_ups > 0 && !args.wanted.is_empty() && is_own_netns(sender.netns) {
        targets.extend(resolvers(&targets));
    }
    let asked = Preflight {
        netns: sender.netns,
        user: sender.user,
        groups: sender.groups.clone(),
        cgroup: sender.cgroup.clone(),
        later: sender.later.clone(),
        wishes: targets
            .iter()
            .map(|target| Wish {
                transport: target.entry.transport.to_owned(),
                port: target.entry.port,
                addresses: target.addresses.clone(),
                is_by_name: target.known != Known::Given,
            })
            .collect(),
        after: after.clone(),
        finds_fix: !args.no_fix && after.is_none(),
        // Addresses that stand for any are nobody's.
        finds_others: targets.iter().all(|target| !matches!(target.known, Known::Any(_))),
        limit: args.timeout.as_secs().max(1),
    };
    let words = if asked.finds_fix {
        "testing the rules, and a fix in a private copy (Ctrl-C skips the fix)"
    } else {
        "testing the rules in a private copy"
    };
    let mut progress = Progress::new(words, asked.finds_fix).context("cannot listen for signals")?;
    let answer = helper.preflight(&asked, |elapsed| progress.goes_on(elapsed) && asked.finds_fix)?;
    drop(progress);
    let mut answer = answer.map_err(anyhow::Error::msg)?;
    let what = match (&args.after, args.ruleset.as_ref().or(args.diff.as_ref())) {
        (Some(command), _) => Some(command.clone()),
        (None, path) => path.map(|path| path.display().to_string()),
    };
    if let (Some(Tried::Refused(said)), Some(what)) = (&answer.after, &what) {
        let sentence = format!("`{what}` is refused: {said}");
        return Err(usage(&sentence, "it was tried in a private copy alone; nothing was changed"));
    }
    if let (Some(Tried::Unknown(why)), Some(what)) = (&answer.after, &what) {
        anyhow::bail!("what `{what}` would change cannot be told: {why}");
    }
    keep_blocked(&mut targets, &mut answer, asked_for);
    let live = if args.live { tried(&mut helper, &sender, &targets)? } else { Vec::new() };
    // Addresses that stand for any are nobody's.
    if let Some(fix) = &mut answer.fix {
        fix.verified_for.retain(|address| !ANY.contains(address));
    }
    let is_stopped = is_stopped(&answer) || live.iter().any(|tried| has_failed(tried));
    let told = Answer {
        identity: Identity::read(),
        user: sender.name,
        unit: sender.unit,
        cgroup: sender.cgroup,
        targets,
        answer,
        live,
        after: what,
        is_ruleset: args.after.is_none(),
        only_changes: args.diff.is_some(),
        look_ups,
    };
    written(match args.output {
        Format::Human => render::human(&mut stdout, &told),
        Format::Json => render::json(&mut stdout, &told),
        Format::Markdown => render::markdown(&mut stdout, &told),
    })?;
    if let Some(file) = save {
        let mut file = BufWriter::new(file);
        render::json(&mut file, &told).context("cannot write the file to save")?;
    }
    if let Some(earlier) = earlier {
        let changes = earlier
            .compare(&told)
            .map_err(|error| usage(&format!("{error:#}"), "ask for the same destinations as then"))?;
        written(render::changes(&mut stdout, &changes))?;
        return Ok(if changes.iter().any(|change| change.is_worse) { Exit::Finding } else { Exit::Done });
    }
    Ok(if is_stopped { Exit::Finding } else { Exit::Done })
}

/// Something is stopped; after the command, where one was tried.
fn is_stopped(answer: &Preflighted) -> bool {
    let fates = match &answer.after {
        Some(Tried::Is(after)) => &after.fates,
        _ => &answer.fates,
    };
    fates.iter().flatten().any(Fate::is_blocked)
}

fn usage(sentence: &str, hint: &str) -> anyhow::Error {
    let (sentence, hint) = sentence.split_once("\nhint: ").unwrap_or((sentence, hint));
    UsageError { sentence: sentence.to_owned(), hint: hint.to_owned() }.into()
}

//! `observer check`

use std::{
    ffi::OsString,
    io::{self, BufWriter, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use ipnet::IpNet;

use super::{Exit, exit::UsageError, filters};
use crate::{
    check::{
        ANY, Entry, Known, Target, Values, ask, host,
        live::{self, Live, Step, Trial},
        profiles,
        proxy::{self, Proxies},
        unit::Unit,
    },
    enrich::{host::Identity, resolve},
    launch::User,
    model::{Connect, Fate, Later, Preflight, Preflighted, Proposed, ProposedChange, Tried, Wish},
    output::{
        check::{self as render, Answer, Kept},
        notice::say,
        steps::{self, By},
    },
    privilege::{Helper, confine},
    probe::attach::check_privilege,
};

/// A proposed configuration goes to the helper in one message.
const MAX_RULESET: usize = 96 << 10;
/// Why a name has no address, by `--no-dns`.
const NOT_LOOKED_UP: &str = "names are not looked up (--no-dns)";
/// Programs whose commands are tried by `--after`.
const FRONT_ENDS: [&str; 9] = [
    "ufw",
    "firewall-cmd",
    "nft",
    "iptables",
    "ip6tables",
    "iptables-nft",
    "ip6tables-nft",
    "iptables-legacy",
    "ip6tables-legacy",
];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is to be reached: a profile (see --list), apt or dnf for the host's package sources, HOST:PORT, HOST:PORT/udp,
    /// [2001:db8::1]:443 or 203.0.113.0/24:443. Without: what this host depends on already.
    #[arg(value_name = "PROFILE|HOST:PORT[/udp]")]
    wanted: Vec<String>,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value = "human")]
    output: Format,
    /// Show the profiles that are known.
    #[arg(long)]
    list: bool,
    /// Print the page for a profile: what it needs and how to let it out by this front end. Needs no root.
    #[arg(long, value_enum, value_name = "FRONT-END")]
    steps: Option<Steps>,
    /// Write the answer to this new file too, for a later `--against`.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with an answer that was kept by `--save`: what is worse now is told, with status 1.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// A value that a profile asks for: `--set site=datadoghq.eu`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Folder of own profiles.
    #[arg(long, value_name = "DIR", default_value = profiles::FOLDER)]
    profiles: PathBuf,
    /// Take this address for a name; may be given several times.
    #[arg(long, value_name = "NAME:ADDR", value_parser = resolved)]
    resolve: Vec<(String, IpAddr)>,
    /// Look up no name: those without `--resolve` are judged for any address.
    #[arg(long)]
    no_dns: bool,
    /// Judge what this user would send.
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// Judge what this unit of systemd would send, from its cgroup and as its user; or the path of a cgroup: /system.slice/x.service.
    #[arg(long, value_name = "UNIT|CGROUP")]
    as_unit: Option<String>,
    /// Network namespace: the path of one, or a name that `ip netns` knows; the own one without.
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<String>,
    /// Try this command of ufw, firewall-cmd, nft or iptables in a private copy, and tell what is let out then.
    #[arg(long, value_name = "COMMAND")]
    after: Option<String>,
    /// Judge this proposed configuration in place of what is in force: a file for `nft -f`, of `iptables-save` or `ip6tables-save`,
    /// ufw's user.rules or user6.rules.
    #[arg(long, value_name = "FILE", conflicts_with = "after")]
    ruleset: Option<PathBuf>,
    /// The same, and tell only which destinations change by it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["after", "ruleset"])]
    diff: Option<PathBuf>,
    /// Connect to all destinations too, up to the name in their certificate, and tell where that fails. This sends packets.
    #[arg(long, conflicts_with_all = ["after", "ruleset", "diff"])]
    live: bool,
    /// Do not look for commands that let through what is stopped.
    #[arg(long)]
    no_fix: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For a person.
    Human,
    /// One JSON object an address and port.
    Json,
    /// A table for a ticket.
    Markdown,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Steps {
    /// ufw.
    Ufw,
    /// firewalld.
    Firewalld,
    /// nftables.
    Nft,
    /// iptables.
    Iptables,
}

impl Steps {
    fn by(self) -> By {
        match self {
            Self::Ufw => By::Ufw,
            Self::Firewalld => By::Firewalld,
            Self::Nft => By::Nft,
            Self::Iptables => By::Iptables,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn resolved(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once(':').ok_or("write NAME:ADDR")?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse().map_err(|_| format!("`{address}` is no address"))?;
    Ok((name.trim_end_matches('.').to_owned(), address))
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    let known = profiles::Profiles::read(&args.profiles)
        .map_err(|error| usage(&format!("{error:#}"), "mend the file, or name another folder with --profiles"))?;
    let mut stdout = BufWriter::new(anstream::AutoStream::auto(io::stdout()));
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
        let profile = known.get(name).map_err(|error| usage(&format!("{error:#}"), ""))?;
        return written(steps::write(&mut stdout, steps.by(), profile, &entries)).map(|()| Exit::Done);
    }
    let earlier = args
        .against
        .as_deref()
        .map(Kept::read)
        .transpose()
        .map_err(|error| usage(&format!("{error:#}"), "name a file that `observer check --save` wrote"))?;
    let save = args.save.as_deref().map(super::run::create).transpose()?;
    let after = match (&args.after, args.ruleset.as_ref().or(args.diff.as_ref())) {
        (Some(command), _) => Some(ProposedChange::Command(after(command)?)),
        (None, Some(path)) => Some(proposed(path)?),
        (None, None) => None,
    };
    let sender = sender(args)?;
    let is_direct = entries.iter().any(|entry| entry.profile.is_none());
    if let Some(proxies) = sender.proxies.as_ref().or(shell.as_ref()).filter(|_| is_direct) {
        let from = proxies.from();
        say(&format!("observer: {from} names a proxy; HOST:PORT is judged as it is reached without"));
    }
    let asked: Vec<&str> =
        entries.iter().filter_map(|entry| entry.profile.as_ref()).map(|of| of.name.as_str()).collect();
    let proxies = host::HostProxies::read(Path::new("/"), shell, sender.proxies.clone(), &asked);
    entries = proxy::in_place(entries, |profile| proxies.of(profile));
    check_privilege().map_err(|error| super::exit::with_hint(&error))?;
    let mut helper = if args.live { Helper::start_for_connections()? } else { Helper::start()? };
    // What resolvers answer is read without privileges.
    if let Err(error) = confine(&[], || true) {
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
        cgroup: sender.cgroup.clone(),
        later: sender.later.clone(),
        wishes: targets
            .iter()
            .map(|target| Wish {
                transport: target.entry.transport.to_owned(),
                port: target.entry.port,
                addresses: target.addresses.clone(),
            })
            .collect(),
        are_by_name: targets.iter().any(|target| target.known != Known::Given),
        after: after.clone(),
        finds_fix: !args.no_fix && after.is_none(),
    };
    let mut answer = helper.preflight(&asked)?.map_err(anyhow::Error::msg)?;
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

/// What becomes of real connections to all addresses of all destinations, where these are known.
fn tried(helper: &mut Helper, sender: &Sender, targets: &[Target]) -> Result<Vec<Vec<Live>>> {
    let mut found: Vec<Vec<Live>> = Vec::new();
    let mut trials = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let entry = &target.entry;
        if let Known::Any(why) = &target.known {
            let untried = if why == NOT_LOOKED_UP { Live::untried(why) } else { Live::failed(Step::Dns, why) };
            found.push(target.addresses.iter().map(|_| untried.clone()).collect());
            continue;
        }
        if entry.host.parse::<IpNet>().is_ok() {
            found.push(target.addresses.iter().map(|_| Live::untried("a network is not tried")).collect());
            continue;
        }
        let name = entry.probe.as_ref().unwrap_or(&entry.host);
        let mut of = Vec::new();
        for (at, address) in target.addresses.iter().enumerate() {
            let wanted = Connect {
                netns: sender.netns,
                user: sender.user,
                cgroup: sender.cgroup.clone(),
                is_tcp: entry.transport == "tcp",
                to: SocketAddr::new(*address, entry.port),
            };
            let since = Instant::now();
            of.push(match helper.connect(&wanted)? {
                Ok(socket) => {
                    // What a proxy speaks first is not known.
                    let name = (name.parse::<IpAddr>().is_err() && !entry.is_proxy).then(|| name.clone());
                    let trial = Trial { socket, since, transport: entry.transport, port: entry.port, name };
                    trials.push(((index, at), trial));
                    Live::default()
                }
                Err((number, why)) => {
                    let words = number.map(|number| live::words(&io::Error::from_raw_os_error(number)));
                    words.map_or_else(|| Live::untried(&why), |words| Live::failed(Step::Connect, words))
                }
            });
        }
        found.push(of);
    }
    for ((index, at), live) in live::follow(trials)? {
        found[index][at] = live;
    }
    Ok(found)
}

/// No address of a destination was reached, though one could have been.
fn has_failed(tried: &[Live]) -> bool {
    tried.iter().any(|live| live.failed.is_some())
        && !tried.iter().any(|live| live.failed.is_none() && live.has_connected())
}

/// What is asked is asked where observer itself looks up names.
fn is_own_netns(netns: Option<u32>) -> bool {
    let own = std::fs::metadata("/proc/self/ns/net").map(|own| own.ino());
    netns.is_none_or(|netns| own.is_ok_and(|own| own == u64::from(netns)))
}

/// The resolvers of this host, but for those that were asked about.
fn resolvers(asked: &[Target]) -> Vec<Target> {
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

/// Of what nobody asked about only what is blocked is told.
fn keep_blocked(targets: &mut Vec<Target>, answer: &mut Preflighted, asked_for: usize) {
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

/// Who would send.
#[derive(Default)]
struct Sender {
    /// User and group.
    user: (u32, u32),
    /// The user's name, where that is not root.
    name: Option<String>,
    unit: Option<String>,
    cgroup: Option<String>,
    later: Option<Later>,
    netns: Option<u32>,
    /// Those of the unit.
    proxies: Option<Proxies>,
}

/// By `--as`, `--as-unit` and `--netns`; what is said of itself goes before what a unit says.
fn sender(args: &Args) -> Result<Sender> {
    let unit = match args.as_unit.as_deref() {
        Some(path) if path.starts_with('/') => {
            return Ok(Sender { cgroup: Some(format!("/{}", path.trim_matches('/'))), ..plain(args, None)? });
        }
        Some(name) => {
            Unit::find(name).map_err(|error| usage(&format!("{error:#}"), "name a unit as systemctl does"))?
        }
        None => return plain(args, None),
    };
    if args.live && unit.later.is_some() {
        let sentence = format!("{} does not run: nobody can connect as it", unit.name);
        return Err(usage(&sentence, "start it, or ask without --live"));
    }
    let mut sender = plain(args, unit.user.as_deref())?;
    if let (Some(group), None) = (&unit.group, &args.user) {
        sender.user.1 = filters::group(group)?;
    }
    if args.netns.is_none() && (unit.has_own_network || unit.namespace.is_some()) {
        let path = unit.pid.map(|pid| format!("/proc/{pid}/ns/net")).or(unit.namespace);
        let path = path.ok_or_else(|| {
            let sentence =
                format!("{} has a network namespace of its own, which is there only while it runs", unit.name);
            usage(&sentence, "start it, and ask again")
        })?;
        sender.netns = filters::namespace(&path)?;
    }
    let proxies = Proxies::of_variables(&unit.environment, &unit.name);
    Ok(Sender { unit: Some(unit.name), cgroup: unit.cgroup, later: unit.later, proxies, ..sender })
}

fn plain(args: &Args, user: Option<&str>) -> Result<Sender> {
    let name = args.user.as_deref().or(user);
    let user = match name {
        Some(text) => User::find(text)?
            .map(|user| (user.uid(), user.gid()))
            .ok_or_else(|| usage(&format!("there is no user `{text}`"), "`getent passwd` lists them"))?,
        None => (0, 0),
    };
    let netns = args.netns.as_deref().map(filters::namespace).transpose()?.flatten();
    Ok(Sender { user, name: name.map(str::to_owned), netns, ..Sender::default() })
}

fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the answer"),
        _ => Ok(()),
    }
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

fn entries(args: &Args, known: &profiles::Profiles, shell: Option<&Proxies>) -> Result<Vec<Entry>> {
    let values: Values = args.set.iter().cloned().collect();
    let mut entries = Vec::new();
    if args.wanted.is_empty() && args.steps.is_none() {
        let (all, unread) = host::dependencies(Path::new("/"), known, shell);
        for words in unread {
            say(&format!("observer: {words}"));
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
                usage(&error.to_string(), "write HOST:PORT, HOST:PORT/udp, [2001:db8::1]:443 or 203.0.113.0/24:443")
            })?;
            entries.push(entry);
            continue;
        }
        let profile = known.get(word).map_err(|error| usage(&format!("{error:#}"), ""))?;
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

/// The words of a front end's command.
fn after(command: &str) -> Result<Vec<String>> {
    let words = shlex::split(command).unwrap_or_default();
    let words: Vec<String> = words.into_iter().skip_while(|word| word == "sudo").collect();
    match words.first() {
        Some(program) if FRONT_ENDS.contains(&program.as_str()) => Ok(words),
        Some(program) => Err(usage(
            &format!("`{program}` is no command of a firewall that can be tried"),
            "ufw, firewall-cmd, nft, iptables and ip6tables are",
        )),
        None => Err(usage("there is no command in `--after`", "write --after 'ufw allow out 443/tcp'")),
    }
}

/// A proposed configuration, and whose it is by what is in it.
fn proposed(path: &Path) -> Result<ProposedChange> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        usage(
            &format!("cannot read {}: {error}", path.display()),
            "name a file for `nft -f`, of `iptables-save`, or ufw's user.rules",
        )
    })?;
    if text.len() > MAX_RULESET {
        return Err(usage(&format!("{} is longer than {MAX_RULESET} bytes", path.display()), "name a shorter one"));
    }
    let header = |name: &str| text.lines().any(|line| line.starts_with("# Generated by ") && line.contains(name));
    let is_v6 = header("ip6tables") || text.contains("ufw6-") || !header("iptables") && text.contains("icmpv6");
    if ["ufw-before-", "ufw6-before-", "ufw-after-", "ufw6-after-"].iter().any(|chain| text.contains(chain))
        && !header("tables")
        && !text.contains("### RULES ###")
    {
        return Err(usage(
            &format!("{} is one of ufw's files beside its rules, which are not judged alone", path.display()),
            "name its user.rules or user6.rules",
        ));
    }
    let is_tables = text.lines().any(|line| line.starts_with('*')) && text.contains("COMMIT");
    let kind = match (text.contains("### tuple ###") || text.contains("### RULES ###"), is_tables, is_v6) {
        (true, _, false) => Proposed::Ufw,
        (true, _, true) => Proposed::Ufw6,
        (false, true, false) => Proposed::Iptables,
        (false, true, true) => Proposed::Ip6tables,
        (false, false, _) => Proposed::Nft,
    };
    Ok(ProposedChange::Ruleset(kind, text))
}

/// Addresses of all; and how many names were looked up.
fn targets(args: &Args, entries: Vec<Entry>) -> Result<(Vec<Target>, usize)> {
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

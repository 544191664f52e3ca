//! Filters as typed, and what they mean.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;

use super::{did_you_mean, exit::UsageError};
use crate::{
    attribute::users::Users,
    check::{resolve, services},
    confinement::programs,
    model::{Action, Cause, DestinationFilter, Filter, FilterError, parse_action, parse_cause, parse_protocol},
    sink::notice::note,
};

/// Where `ip netns add` keeps its names.
const NAMED: &str = "/run/netns";

/// Which events are reported. The same option again: one of them is enough; different options: all must match.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Filters (repeat one: any matches; use several: all must match)")]
pub struct Filters {
    /// Report this process and its children
    #[arg(long, value_name = "PID", value_parser = pid)]
    pid: Vec<u32>,
    /// Report processes with this name
    #[arg(long, value_name = "NAME")]
    comm: Vec<String>,
    /// Report processes that run this executable
    #[arg(long, value_name = "PATH")]
    exe: Vec<String>,
    /// Report what this user sends, by name or number
    #[arg(long, value_name = "USER")]
    user: Vec<String>,
    /// Report processes of this systemd unit
    #[arg(long, value_name = "UNIT")]
    unit: Vec<String>,
    /// Report this container, by id or the beginning of it
    #[arg(long, value_name = "ID")]
    container: Vec<String>,
    /// Report packets to this address, network or host
    #[arg(long, value_name = "CIDR|NAME")]
    dst: Vec<String>,
    /// Report packets to this port, by number or name
    #[arg(long, value_name = "PORT", value_parser = services::port)]
    port: Vec<u16>,
    /// Report tcp, udp, icmp, ipv6-icmp, sctp or a number
    #[arg(long, value_name = "PROTO", value_parser = protocol)]
    proto: Vec<u8>,
    /// Report blocks with this cause
    ///
    /// One of: netfilter, conntrack, nat, nfqueue, netfilter-bpf, lsm, cgroup, tc; queue is a loss in a full queue.
    #[arg(long, value_name = "CAUSE", value_parser = cause)]
    cause: Vec<Cause>,
    /// Report this kind of line
    ///
    /// One of: egress-blocked, egress-dropped, egress-hanging; later news of them: egress-rule, egress-fix, egress-outcome, egress-restored;
    /// and ruleset-changed.
    #[arg(long, value_name = "ACTION", value_parser = action)]
    action: Vec<Action>,
    /// Only of this network namespace, by path or name
    #[arg(long, default_value = "all", value_name = "all|PATH|NAME")]
    netns: String,
}

fn pid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("write the number of a process: `{text}` is none"))
}

fn protocol(text: &str) -> Result<u8, String> {
    parse_protocol(text).map_err(|error| suggested(&error))
}

fn cause(text: &str) -> Result<Cause, String> {
    parse_cause(text).map_err(|error| suggested(&error))
}

fn action(text: &str) -> Result<Action, String> {
    parse_action(text).map_err(|error| suggested(&error))
}

/// The sentence of a wrong value, with the nearest right one.
fn suggested(error: &FilterError) -> String {
    let nearest = did_you_mean(error.value(), error.known());
    if nearest.is_empty() { error.to_string() } else { format!("{error}; {nearest}") }
}

impl Filters {
    /// The namespace's file and its number, where one was named that can go away or be made again under the same name.
    pub fn named_namespace(&self) -> Option<(PathBuf, u32)> {
        let path = namespace_path(&self.netns)?;
        let number = namespace(&self.netns).ok()??;
        (!path.starts_with("/proc")).then_some((path, number))
    }

    /// What is meant of what happens from now on. Resolves names by the host's resolver, before anything is observed.
    pub fn plan(self) -> Result<Filter> {
        for words in absent(&self.pid, &self.exe, &self.unit, &self.container) {
            note(&format!("observer: warning: {words}"));
        }
        self.of_the_past()
    }

    /// The same of what was recorded: whom it is about may be gone.
    pub fn of_the_past(self) -> Result<Filter> {
        self.resolved_by(|name| {
            resolve::addresses(name).map_err(|error| {
                // Nothing is wrong with the command line: another time the name may resolve.
                anyhow!(
                    "cannot resolve `{name}` to filter by it: {error:#}\nhint: filter by address or network instead, or leave \
                     this filter out: a blocked resolver is shown too"
                )
            })
        })
    }

    /// Fails where of_the_past would, except that no name is resolved.
    pub fn verify(self) -> Result<()> {
        self.resolved_by(|_| Ok(Vec::new())).map(drop)
    }

    fn resolved_by(self, resolve: impl Fn(&str) -> Result<Vec<IpAddr>>) -> Result<Filter> {
        let Self { pid, comm, exe, user, unit, container, dst, port, proto, cause, action, netns } = self;
        Ok(Filter {
            pids: pid,
            comms: comm.into_iter().map(kernel_name).collect(),
            executables: exe.into_iter().map(real_path).collect(),
            users: user.iter().map(|text| user_id(text)).collect::<Result<_>>()?,
            units: unit,
            containers: container,
            destinations: dst.iter().map(|text| destination(text, &resolve)).collect::<Result<_>>()?,
            ports: port,
            protocols: proto,
            causes: cause,
            actions: action,
            netns: namespace(&netns)?,
            netns_name: (netns != "all" && !netns.contains('/')).then_some(netns),
            follow: None,
        })
    }
}

/// Of what is asked for, what is not there now, in a sentence each.
fn absent(pids: &[u32], executables: &[String], units: &[String], containers: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    for pid in pids.iter().filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
        words.push(format!("no process has the id {pid} now"));
    }
    for path in executables.iter().filter(|path| !Path::new(path.as_str()).exists()) {
        words.push(format!("there is no file {path} on this host"));
    }
    if units.is_empty() && containers.is_empty() {
        return words;
    }
    let groups = groups();
    for unit in units {
        let is_it = |name: &String| name == unit || name.strip_suffix(".service") == Some(unit);
        if !groups.iter().any(is_it) {
            words.push(format!("no process of the unit {unit} runs now"));
        }
    }
    for id in containers.iter().filter(|id| !groups.iter().any(|name| is_container(name, id))) {
        words.push(format!("no container with the id {id} runs now"));
    }
    words
}

/// A control group's name is a container's whose id begins so: `docker-ID.scope`, `ID`.
fn is_container(group: &str, id: &str) -> bool {
    let stem = group.strip_suffix(".scope").unwrap_or(group);
    stem.rsplit(['-', '.', ':']).next().is_some_and(|own| own.starts_with(id)) || stem.starts_with(id)
}

/// Names of the control groups in which processes are, of either version.
fn groups() -> HashSet<String> {
    let processes = procfs::process::all_processes().into_iter().flatten().flatten();
    let paths = processes.filter_map(|process| process.cgroups().ok()).flatten().map(|group| group.pathname);
    paths.flat_map(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn destination(text: &str, resolve: impl Fn(&str) -> Result<Vec<IpAddr>>) -> Result<DestinationFilter> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Ok(DestinationFilter::Network(network));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(DestinationFilter::Network(address.into()));
    }
    let is_numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if text.contains(['/', ':']) || is_numeric {
        let sentence = format!("`{text}` is neither an address, a network nor a host name");
        return Err(
            UsageError { sentence, hint: "write 203.0.113.10, 203.0.113.0/24 or install.example.com".into() }.into()
        );
    }
    Ok(DestinationFilter::Name { name: text.to_owned(), addresses: resolve(text)? })
}

/// The kernel keeps 15 bytes of a name.
fn kernel_name(mut name: String) -> String {
    const KEPT: usize = 15;
    let end = (0..=KEPT.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name.truncate(end);
    name
}

/// The kernel knows a program by its file, not by a link to it.
fn real_path(path: String) -> String {
    std::fs::canonicalize(&path).ok().and_then(|real| real.into_os_string().into_string().ok()).unwrap_or(path)
}

pub(super) fn user_id(text: &str) -> Result<u32> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    Users::default().id(text).ok_or_else(|| {
        UsageError {
            sentence: format!("there is no user `{text}` in /etc/passwd"),
            hint: format!("give the number of a user from elsewhere, as `id -u {text}` prints it"),
        }
        .into()
    })
}

/// Number of a group by its name or number.
pub(super) fn group(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    programs::group_number(text)?.ok_or_else(|| {
        UsageError { sentence: format!("there is no group `{text}`"), hint: "`getent group` lists them".into() }.into()
    })
}

/// The file of a network namespace; `None` for all.
fn namespace_path(text: &str) -> Option<PathBuf> {
    let path = if text.contains('/') { PathBuf::from(text) } else { Path::new(NAMED).join(text) };
    (text != "all").then_some(path)
}

/// What became of the file of a namespace, where it is not that of this number any more.
fn fate(path: &Path, number: u32) -> io::Result<Option<&'static str>> {
    match std::fs::metadata(path) {
        Ok(about) => Ok((about.ino() != u64::from(number)).then_some("was made again")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some("was removed")),
        Err(error) => Err(error),
    }
}

/// Says once that a namespace that was named is gone, or was made again; never returns.
pub(super) async fn watch_namespace(named: Option<(PathBuf, u32)>) {
    /// It is looked for so often.
    const LOOK: Duration = Duration::from_secs(10);
    let Some((path, number)) = named else { return std::future::pending().await };
    let said = loop {
        tokio::time::sleep(LOOK).await;
        match fate(&path, number) {
            Ok(None) => {}
            Ok(Some(said)) => break said,
            // By now this process is an unprivileged user's.
            Err(_) => return std::future::pending().await,
        }
    };
    note(&format!(
        "observer: warning: the network namespace {} {said}: nothing more of it is observed until observer is restarted",
        path.display()
    ));
    std::future::pending::<()>().await;
}

/// Inode number of a network namespace; `None` for all.
pub(super) fn namespace(text: &str) -> Result<Option<u32>> {
    let Some(path) = namespace_path(text) else { return Ok(None) };
    let metadata = std::fs::metadata(&path).map_err(|error| UsageError {
        sentence: format!("there is no network namespace `{text}`: {}: {error}", path.display()),
        hint: "`ip netns` lists the names; a process's own is /proc/PID/ns/net".into(),
    })?;
    // Namespaces are files of a file system of their own.
    let own = std::fs::metadata("/proc/self/ns/net").context("cannot read the own network namespace")?;
    if metadata.dev() != own.dev() {
        return Err(UsageError {
            sentence: format!("{} is no network namespace", path.display()),
            hint: "`ip netns` lists the names; a process's own is /proc/PID/ns/net".into(),
        }
        .into());
    }
    let number = u32::try_from(metadata.ino()).context("the namespace's number is too large")?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_gone_or_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("name"), folder.path().join("other"));
        std::fs::write(&path, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let number = u32::try_from(std::fs::metadata(&path).unwrap().ino()).unwrap();
        assert_eq!(fate(&path, number).unwrap(), None);
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(fate(&path, number).unwrap(), Some("was made again"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(fate(&path, number).unwrap(), Some("was removed"));
    }

    #[test]
    fn a_destination_that_is_none_is_not_looked_up() {
        let never = |name: &str| -> Result<Vec<IpAddr>> { panic!("{name} is looked up") };
        for text in ["300.1.1.1", "1.2.3", "203.0.113.0/33", "fe80::g", ""] {
            let error = destination(text, never).unwrap_err();
            assert!(error.to_string().contains("neither an address, a network nor a host name"), "{text}: {error}");
        }
        assert!(destination("203.0.113.0/24", never).is_ok() && destination("::1", never).is_ok());
    }
}

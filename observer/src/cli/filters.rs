//! Filters as typed, and what they mean.

use std::{
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::exit::UsageError;
use crate::{
    attribute::users::Users,
    check::resolve,
    confinement::programs,
    model::{Action, Cause, DestinationFilter, Filter, parse_action, parse_cause, parse_protocol},
};

/// Where `ip netns add` keeps its names.
const NAMED: &str = "/run/netns";

/// Which events are told. The same option again: one of them is enough; different options: all must match.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// The process with this id, or any of its children.
    #[arg(long)]
    pid: Vec<u32>,
    /// Processes with this name.
    #[arg(long, value_name = "NAME")]
    comm: Vec<String>,
    /// Processes that run this executable.
    #[arg(long, value_name = "PATH")]
    exe: Vec<String>,
    /// Sockets of this user, by name or number.
    #[arg(long)]
    user: Vec<String>,
    /// Processes of this systemd unit.
    #[arg(long)]
    unit: Vec<String>,
    /// Processes of this container, by id or its beginning.
    #[arg(long, value_name = "ID")]
    container: Vec<String>,
    /// Packets to this address, network or host name.
    #[arg(long, value_name = "CIDR|NAME")]
    dst: Vec<String>,
    /// Packets to this port.
    #[arg(long)]
    port: Vec<u16>,
    /// Packets of this protocol: tcp, udp, icmp, ipv6-icmp, sctp or a number.
    #[arg(long, value_parser = parse_protocol)]
    proto: Vec<u8>,
    /// What decided: netfilter, conntrack, nat, nfqueue, netfilter-bpf, lsm, cgroup, tc; or queue, a full one.
    #[arg(long, value_parser = parse_cause)]
    cause: Vec<Cause>,
    /// What happened: egress-blocked, egress-dropped, egress-hanging; or news of what was told: egress-rule, egress-fix,
    /// egress-restored, ruleset-changed.
    #[arg(long, value_parser = parse_action)]
    action: Vec<Action>,
    /// Network namespace: all, the path of one, or a name that `ip netns` knows.
    #[arg(long, default_value = "all", value_name = "all|PATH|NAME")]
    netns: String,
}

impl Filters {
    /// What is meant. Resolves names by the host's resolver, before anything is observed.
    pub fn plan(self) -> Result<Filter> {
        let Self { pid, comm, exe, user, unit, container, dst, port, proto, cause, action, netns } = self;
        Ok(Filter {
            pids: pid,
            comms: comm.into_iter().map(kernel_name).collect(),
            executables: exe.into_iter().map(real_path).collect(),
            users: user.iter().map(|text| user_id(text)).collect::<Result<_>>()?,
            units: unit,
            containers: container,
            destinations: dst.iter().map(|text| destination(text)).collect::<Result<_>>()?,
            ports: port,
            protocols: proto,
            causes: cause,
            actions: action,
            netns: namespace(&netns)?,
            follow: None,
        })
    }
}

fn destination(text: &str) -> Result<DestinationFilter> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Ok(DestinationFilter::Network(network));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(DestinationFilter::Network(address.into()));
    }
    if text.contains('/') || text.is_empty() {
        let sentence = format!("`{text}` is neither an address, a network nor a host name");
        return Err(
            UsageError { sentence, hint: "write 203.0.113.10, 203.0.113.0/24 or install.example.com".into() }.into()
        );
    }
    let addresses = resolve::addresses(text).map_err(|error| UsageError {
        sentence: format!("cannot resolve `{text}` to filter by it: {error:#}"),
        hint: "filter by address or network instead, or watch without this filter: a blocked resolver is shown too"
            .into(),
    })?;
    Ok(DestinationFilter::Name { name: text.to_owned(), addresses })
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

fn user_id(text: &str) -> Result<u32> {
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

/// Number of a group by its name or number; asks `getent`, which knows groups of directories too.
pub(super) fn group(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let output = programs::command("getent")?.args(["group", "--", text]).output().context("cannot run getent")?;
    let entry = String::from_utf8_lossy(&output.stdout);
    let number = entry.trim().split(':').nth(2).and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        UsageError { sentence: format!("there is no group `{text}`"), hint: "`getent group` lists them".into() }.into()
    })
}

/// Inode number of a network namespace; `None` for all.
pub(super) fn namespace(text: &str) -> Result<Option<u32>> {
    if text == "all" {
        return Ok(None);
    }
    let path = if text.contains('/') { PathBuf::from(text) } else { Path::new(NAMED).join(text) };
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

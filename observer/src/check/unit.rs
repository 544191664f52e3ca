//! A unit of systemd that would send, as its manager says: where its processes are, as whom they run, which addresses they may reach.

use std::{collections::HashMap, os::unix::fs::MetadataExt};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use procfs::process::Process;

use crate::{
    confinement::programs,
    model::{AddressLists, Later},
};

/// What is asked of the manager.
const PROPERTIES: &str = "Id,LoadState,ActiveState,ControlGroup,Slice,User,Group,MainPID,PrivateNetwork,NetworkNamespacePath,\
                          IPAddressAllow,IPAddressDeny,Environment,RestrictNetworkInterfaces,IPEgressFilterPath";
/// Slices within each other.
const MAX_SLICES: usize = 16;

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its whole name.
    pub name: String,
    /// Path of its cgroup, while it runs.
    pub cgroup: Option<String>,
    /// User and group, where it names them.
    pub user: Option<String>,
    /// See `user`.
    pub group: Option<String>,
    /// Its first process, while it runs.
    pub pid: Option<u32>,
    /// It has a network namespace of its own.
    pub has_own_network: bool,
    /// It runs in this one.
    pub namespace: Option<String>,
    /// It does not run: what is known of how it will.
    pub later: Option<Later>,
    /// Variables that it gives to its processes.
    pub environment: Vec<(String, String)>,
}

impl Unit {
    /// Asks the manager.
    pub fn find(name: &str) -> Result<Self> {
        let own = show(name)?;
        let state = own.get("LoadState").map(String::as_str);
        ensure!(state != Some("not-found"), "there is no unit `{name}`\nhint: `systemctl list-unit-files` lists them");
        ensure!(state == Some("loaded"), "unit `{name}` is {}", state.unwrap_or("not known"));
        let said = |name: &str| own.get(name).filter(|value| !value.is_empty()).cloned();
        let is_running = said("ControlGroup").is_some();
        let later = if is_running { None } else { Some(later(&own)?) };
        Ok(Self {
            name: said("Id").unwrap_or_else(|| name.to_owned()),
            cgroup: said("ControlGroup"),
            user: said("User"),
            group: said("Group"),
            pid: said("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0),
            has_own_network: said("PrivateNetwork").as_deref() == Some("yes"),
            namespace: said("NetworkNamespacePath"),
            later,
            environment: said("Environment").map(|text| variables(&text)).unwrap_or_default(),
        })
    }
}

impl Unit {
    /// Inode number of the network namespace of its main process, if that still is the unit's: its number may be another process's
    /// by now.
    pub fn netns(&self) -> Result<Option<u32>> {
        let Some(pid) = self.pid.and_then(|pid| i32::try_from(pid).ok()) else { return Ok(None) };
        let gone = || format!("the main process of {} has ended", self.name);
        // An open folder of /proc stays this process's.
        let process = Process::new(pid).with_context(gone)?;
        let number = process.open_relative("ns/net").map(|namespace| namespace.metadata().map(|meta| meta.ino()));
        let number = number.with_context(gone)?.with_context(gone)?;
        let cgroups = process.cgroups().with_context(gone)?;
        let is_its = |path: &String| {
            // In a namespace of control groups they are relative.
            let is_relative = path.starts_with("/..");
            is_relative || self.cgroup.as_ref().is_none_or(|of| path == of || path.starts_with(&format!("{of}/")))
        };
        let mut unified = cgroups.0.iter().filter(|cgroup| cgroup.hierarchy == 0).map(|cgroup| &cgroup.pathname);
        ensure!(unified.all(is_its), "{}", gone());
        Ok(u32::try_from(number).ok())
    }
}

/// Properties of a unit, by name.
fn show(name: &str) -> Result<HashMap<String, String>> {
    let output = programs::command("systemctl")?
        .args(["show", "--no-pager", "--property", PROPERTIES, "--", name])
        .output()
        .context("cannot run systemctl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "systemd does not tell of unit `{name}`: {}", said.trim());
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// A unit's own addresses and those of all slices that it is in: systemd looks at all of them together, at the unit.
fn later(own: &HashMap<String, String>) -> Result<Later> {
    let mut all = AddressLists::default();
    let mut unknown = Vec::new();
    let slice = own.get("Slice").map(|slice| path_of_slice(slice)).unwrap_or_default();
    let mut of = own.clone();
    for _ in 0..MAX_SLICES {
        for (name, into) in [("IPAddressAllow", &mut all.allow), ("IPAddressDeny", &mut all.deny)] {
            let words = of.get(name).map(String::as_str).unwrap_or_default().split_ascii_whitespace();
            let nets =
                words.map(|word| word.parse::<IpNet>().with_context(|| format!("{name}={word} is not understood")));
            into.extend(nets.collect::<Result<Vec<_>>>()?);
        }
        for name in ["RestrictNetworkInterfaces", "IPEgressFilterPath"] {
            // A list of what is not meant, and nothing in it.
            let is_set = of.get(name).is_some_and(|value| !value.trim_matches(['~', ' ']).is_empty());
            if is_set && !unknown.contains(&format!("{name}=")) {
                unknown.push(format!("{name}="));
            }
        }
        match of.get("Slice").filter(|slice| !slice.is_empty()) {
            Some(slice) => of = show(&slice.clone())?,
            None => break,
        }
    }
    Ok(Later { lists: all, slice, unknown })
}

/// `a-b.slice` is in `a.slice`.
fn path_of_slice(slice: &str) -> String {
    let stem = slice.trim_end_matches(".slice");
    if stem == "-" {
        return "/".to_owned();
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("/{}.slice", &stem[..end])).collect()
}

/// `A=1 "B=2 3"`, as systemd quotes them.
fn variables(text: &str) -> Vec<(String, String)> {
    let words = shlex::split(text).unwrap_or_default();
    words
        .iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_folders() {
        assert_eq!(path_of_slice("system.slice"), "/system.slice");
        assert_eq!(path_of_slice("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(path_of_slice("-.slice"), "/");
    }

    #[test]
    fn what_is_allowed_comes_first() {
        let own = HashMap::from(
            [("IPAddressAllow", "10.0.0.0/8 ::1/128"), ("IPAddressDeny", "0.0.0.0/0 ::/0")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let Later { lists, slice, unknown } = later(&own).unwrap();
        assert!(slice.is_empty() && unknown.is_empty());
        let denies = |address: &str| lists.deny(address.parse().unwrap());
        assert!(denies("203.0.113.1") && denies("2001:db8::1") && !denies("10.1.2.3") && !denies("::1"));
        assert!(!AddressLists::default().deny("203.0.113.1".parse().unwrap()));
    }

    #[test]
    fn variables_are_quoted() {
        let all = variables("A=1 \"B=2 3\" C");
        assert_eq!(all, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2 3".to_owned())]);
    }
}

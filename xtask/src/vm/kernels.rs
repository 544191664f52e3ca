//! The catalogue: `xtask/kernels.toml`, read.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

/// The file.
const CATALOGUE: &str = include_str!("../../kernels.toml");

/// What the machine's first program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Init {
    /// A shell that starts the job.
    Plain,
    /// A real systemd, which has the job as a unit.
    Systemd,
}

impl fmt::Display for Init {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Plain => "plain",
            Self::Systemd => "systemd",
        })
    }
}

/// What is done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Job {
    /// The scenarios.
    Scenarios,
    /// The program is loaded and asked.
    Load,
}

/// One kernel; what each field is says the file's head.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) distribution: String,
    pub(crate) suites: Vec<String>,
    pub(crate) package: String,
    pub(crate) arch: String,
    #[serde(default)]
    pub(crate) every_run: bool,
    pub(crate) cpus: u32,
    pub(crate) init: Init,
    pub(crate) job: Job,
    #[serde(default)]
    pub(crate) arguments: String,
}

impl Kernel {
    /// The architecture as Debian calls it.
    pub(crate) fn debian_arch(&self) -> Result<&'static str> {
        match self.arch.as_str() {
            "x86_64" => Ok("amd64"),
            "aarch64" => Ok("arm64"),
            other => bail!("kernels.toml: no machine for the architecture {other}"),
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    /// Parts of names of the scenarios that a short run has.
    pub(crate) in_every_run: Vec<String>,
    /// The kernels, in the file's order.
    #[serde(rename = "kernel")]
    pub(crate) kernels: Vec<Kernel>,
}

/// Reads it.
pub(crate) fn catalogue() -> Result<Catalogue> {
    toml::from_str(CATALOGUE).context("xtask/kernels.toml")
}

/// A name that is in the catalogue, for the command line.
pub(crate) fn known(name: &str) -> Result<String> {
    let names: Vec<String> = catalogue()?.kernels.into_iter().map(|kernel| kernel.name).collect();
    ensure!(names.iter().any(|known| known == name), "xtask/kernels.toml has {}", names.join(", "));
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_can_be_read_and_names_are_unique() {
        let mut names: Vec<String> = catalogue().unwrap().kernels.into_iter().map(|kernel| kernel.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn every_architecture_has_a_machine() {
        for kernel in catalogue().unwrap().kernels {
            kernel.debian_arch().unwrap();
        }
    }
}

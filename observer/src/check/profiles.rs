//! What agents need to reach: built in, and an administrator's own, as TOML.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Entry, OfProfile, Values, ask};

/// Where an administrator keeps own profiles; one of the same name hides the one that is built in.
pub const FOLDER: &str = "/etc/observer/profiles";

/// Those that are built in.
const BUILT_IN: [&str; 20] = [
    include_str!("../../profiles/aws-ssm.toml"),
    include_str!("../../profiles/azure-monitor.toml"),
    include_str!("../../profiles/cloudwatch.toml"),
    include_str!("../../profiles/crowdstrike.toml"),
    include_str!("../../profiles/datadog.toml"),
    include_str!("../../profiles/dynatrace.toml"),
    include_str!("../../profiles/elastic-agent.toml"),
    include_str!("../../profiles/gcp-ops-agent.toml"),
    include_str!("../../profiles/github-runner.toml"),
    include_str!("../../profiles/grafana-alloy.toml"),
    include_str!("../../profiles/honeycomb.toml"),
    include_str!("../../profiles/newrelic-eu.toml"),
    include_str!("../../profiles/newrelic.toml"),
    include_str!("../../profiles/opentelemetry.toml"),
    include_str!("../../profiles/sentry.toml"),
    include_str!("../../profiles/splunk.toml"),
    include_str!("../../profiles/tailscale.toml"),
    include_str!("../../profiles/teleport.toml"),
    include_str!("../../profiles/wazuh.toml"),
    include_str!("../../profiles/zabbix.toml"),
];

/// A profile.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// By which it is asked for.
    pub name: String,
    /// What it is of.
    pub title: String,
    /// Page of whoever makes the agent.
    pub source: String,
    /// When that was read: `2026-08`.
    pub as_of: String,
    /// What differs from host to host.
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
    /// Where it goes.
    #[serde(rename = "destination")]
    destinations: Vec<Destination>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    /// Without one it is to be given.
    #[serde(default)]
    default: Option<String>,
    about: String,
    /// Those that exist; any where there are none.
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    /// A name, maybe with `{variable}` and a `*`.
    host: String,
    /// What is looked up in place of a name with a `*`.
    #[serde(default)]
    probe: Option<String>,
    port: u16,
    #[serde(default)]
    transport: Transport,
    phase: Phase,
    purpose: String,
    #[serde(default = "yes")]
    required: bool,
    /// The source says it; else it is reported by others.
    #[serde(default = "yes")]
    verified: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    Install,
    Run,
}

fn yes() -> bool {
    true
}

impl Profile {
    fn parse(text: &str) -> Result<Self> {
        let profile: Self = toml::from_str(text)?;
        ensure!(ask::is_name(&profile.name), "its name `{}` is none that can be typed", profile.name);
        ensure!(profile.source.starts_with("https://"), "its source is no page");
        let texts = profile.destinations.iter().flat_map(|of| [&of.host, &of.purpose]);
        let own = [&profile.title, &profile.as_of, &profile.source].into_iter().chain(texts);
        let is_plain = |text: &str| !text.contains(['|', '`', '<', '>']) && !text.chars().any(char::is_control);
        let odd = own.into_iter().find(|text| !is_plain(text));
        ensure!(
            odd.is_none(),
            "`{}` has characters that are markup",
            odd.map_or("", |text| text.as_str()).escape_debug()
        );
        ensure!(!profile.destinations.is_empty(), "it has no destination");
        for destination in &profile.destinations {
            let wildcard = destination.host.contains('*');
            ensure!(
                !wildcard || destination.probe.is_some(),
                "`{}` needs a `probe` that can be looked up",
                destination.host
            );
            ensure!(destination.port != 0, "`{}` has no port", destination.host);
            for text in std::iter::once(&destination.host).chain(&destination.probe) {
                for name in names(text)? {
                    ensure!(
                        profile.variables.contains_key(name),
                        "`{text}` names a variable `{name}` that is not there"
                    );
                }
            }
        }
        Ok(profile)
    }

    /// Variables, each with its default, what it is, and the values that exist.
    pub fn variables(&self) -> impl Iterator<Item = (&str, Option<&str>, &str)> {
        self.variables.iter().map(|(name, of)| (name.as_str(), of.default.as_deref(), of.about.as_str()))
    }

    /// Its destinations with these values; what is optional and has a variable without value is left out.
    pub fn entries(&self, values: &Values) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for destination in &self.destinations {
            let filled = |text: &str| self.fill(text, values);
            let host = match filled(&destination.host) {
                Ok(host) => host,
                Err(_) if !destination.required => continue,
                Err(error) => return Err(error),
            };
            let probe = destination.probe.as_deref().map(filled).transpose()?;
            let looked_up = probe.as_ref().unwrap_or(&host);
            ensure!(
                ask::is_name(looked_up) || looked_up.parse::<std::net::IpAddr>().is_ok(),
                "`{looked_up}` is no host name"
            );
            let doubt = if destination.verified { "" } else { " (not on the vendor's page)" };
            entries.push(Entry {
                host,
                probe,
                transport: match destination.transport {
                    Transport::Tcp => "tcp",
                    Transport::Udp => "udp",
                },
                port: destination.port,
                is_proxy: false,
                profile: Some(OfProfile {
                    name: self.name.clone(),
                    phase: match destination.phase {
                        Phase::Install => "install",
                        Phase::Run => "run",
                    }
                    .to_owned(),
                    purpose: format!("{}{doubt}", destination.purpose),
                    is_required: destination.required,
                }),
            });
        }
        Ok(entries)
    }

    fn fill(&self, text: &str, values: &Values) -> Result<String> {
        let mut filled = text.to_owned();
        for name in names(text)? {
            let variable = self.variables.get(name).with_context(|| format!("there is no variable `{name}`"))?;
            let value = values.get(name).or(variable.default.as_ref());
            let value = value.with_context(|| {
                format!("profile {} needs {}\nhint: add --set {name}=VALUE", self.name, variable.about)
            })?;
            let is_known = variable.values.is_empty() || variable.values.contains(value);
            ensure!(
                is_known,
                "`{value}` is no {name} of profile {}: there is {}",
                self.name,
                variable.values.join(", ")
            );
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        Ok(filled)
    }
}

/// Variables in a text.
fn names(text: &str) -> Result<Vec<&str>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').with_context(|| format!("`{text}` has a brace without an end"))?;
        found.push(name);
        rest = after;
    }
    Ok(found)
}

/// All that are known: an administrator's own first.
#[derive(Debug)]
pub struct Profiles(BTreeMap<String, (Profile, Option<PathBuf>)>);

impl Profiles {
    /// Those that are built in, and those in a folder, where it is there.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut all = BTreeMap::new();
        for text in BUILT_IN {
            let profile = Profile::parse(text)?;
            all.insert(profile.name.clone(), (profile, None));
        }
        let mut files: Vec<PathBuf> = match fs::read_dir(folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
        };
        files.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
        files.sort();
        for path in files {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let profile = Profile::parse(&text).with_context(|| format!("{} is no profile", path.display()))?;
            all.insert(profile.name.clone(), (profile, Some(path)));
        }
        Ok(Self(all))
    }

    /// One by its name.
    pub fn get(&self, name: &str) -> Result<&Profile> {
        match self.0.get(name) {
            Some((profile, _)) => Ok(profile),
            None => bail!("there is no profile `{name}`"),
        }
    }

    /// The names of all of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// All of them, and the file that each was read from where it is not built in.
    pub fn all(&self) -> impl Iterator<Item = (&Profile, Option<&Path>)> {
        self.0.values().map(|(profile, path)| (profile, path.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_that_is_built_in_is_whole() {
        let profiles = Profiles::read(Path::new("/nonexistent")).unwrap();
        assert!(profiles.all().count() >= 15);
        for (profile, path) in profiles.all() {
            assert!(path.is_none());
            let values: Values = profile
                .variables()
                .filter(|(_, default, _)| default.is_none())
                .map(|(name, ..)| (name.to_owned(), "host.example".to_owned()))
                .collect();
            let entries = profile.entries(&values).unwrap_or_else(|error| panic!("{}: {error:#}", profile.name));
            assert!(!entries.is_empty() && !profile.as_of.is_empty(), "{}", profile.name);
            assert!(entries.iter().all(|entry| !entry.host.contains('{')), "{}", profile.name);
        }
        let datadog = profiles.get("datadog").unwrap();
        let hosts = |values: &Values| -> Vec<String> {
            datadog.entries(values).unwrap().into_iter().map(|entry| entry.host).collect()
        };
        assert!(hosts(&Values::new()).contains(&"api.datadoghq.com".to_owned()));
        let site = Values::from([("site".to_owned(), "datadoghq.eu".to_owned())]);
        assert!(hosts(&site).contains(&"api.datadoghq.eu".to_owned()));
        let wrong = Values::from([("site".to_owned(), "example.com".to_owned())]);
        assert!(datadog.entries(&wrong).is_err());
        let missing = profiles.get("wazuh").unwrap().entries(&Values::new()).unwrap_err();
        assert!(format!("{missing:#}").contains("--set manager=VALUE"), "{missing:#}");
    }

    #[test]
    fn a_broken_profile_says_what_is_wrong() {
        let head = "name = \"mine\"\ntitle = \"Mine\"\nsource = \"https://example.com\"\nas_of = \"2026-01\"\n";
        let one = "[[destination]]\nhost = \"example.com\"\nport = 443\nphase = \"run\"\npurpose = \"data\"\n";
        assert!(Profile::parse(&format!("{head}{one}")).is_ok());
        for (wrong, what) in [
            (head.to_owned(), "destination"),
            (format!("{head}{}", one.replace("example.com", "*.example.com")), "probe"),
            (format!("{head}{}", one.replace("example.com", "{site}.example.com")), "variable"),
            (format!("{head}{}", one.replace("443", "70000")), "port"),
            (format!("{head}{}", one.replace("phase", "fase")), "fase"),
            (format!("{}{one}", head.replace("https", "ftp")), "source"),
        ] {
            let error = format!("{:#}", Profile::parse(&wrong).unwrap_err());
            assert!(error.contains(what), "{error}");
        }
    }
}

//! What this host depends on already, by its own files: resolvers, time servers, package sources, agents that are installed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use hickory_resolver::system_conf::read_system_conf;
use url::Url;

use super::{
    Entry, OfProfile, Values,
    profiles::Profiles,
    proxy::{self, Proxies},
};

/// systemd's own resolver, and where it says which servers it asks.
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];
const BEHIND: &str = "/run/systemd/resolve/resolv.conf";

/// The name of `apt`'s and `dnf`'s package sources, as they are asked for.
pub const SOURCES: [&str; 2] = ["apt", "dnf"];

/// An agent that is known by a file of its own.
struct Agent {
    /// Its profile.
    profile: &'static str,
    file: &'static str,
    /// A variable of the profile's, and the word behind which the file has its value.
    value: Option<(&'static str, &'static str)>,
    /// The unit that runs it.
    unit: &'static str,
}

const AGENTS: [Agent; 6] = [
    Agent {
        profile: "datadog",
        file: "/etc/datadog-agent/datadog.yaml",
        value: Some(("site", "site:")),
        unit: "datadog-agent.service",
    },
    Agent { profile: "newrelic", file: "/etc/newrelic-infra.yml", value: None, unit: "newrelic-infra.service" },
    Agent { profile: "wazuh", file: "/var/ossec/etc/ossec.conf", value: None, unit: "wazuh-agent.service" },
    Agent {
        profile: "zabbix",
        file: "/etc/zabbix/zabbix_agentd.conf",
        value: Some(("server", "ServerActive=")),
        unit: "zabbix-agent.service",
    },
    Agent {
        profile: "tailscale",
        file: "/var/lib/tailscale/tailscaled.state",
        value: None,
        unit: "tailscaled.service",
    },
    Agent { profile: "crowdstrike", file: "/opt/CrowdStrike/falconctl", value: None, unit: "falcon-sensor.service" },
];

/// The profile of the agent that a unit runs.
pub(super) fn agent_of(unit: &str) -> Option<&'static str> {
    AGENTS.iter().find(|agent| agent.unit == unit).map(|agent| agent.profile)
}

/// Agents whose file is YAML.
const YAML: [&str; 2] = ["datadog", "newrelic"];
/// A file that is longer is none that a person wrote; it may belong to the agent's user.
const MAX_FILE: u64 = 1 << 20;

/// The text of a plain file that is not too long.
fn small(path: &Path) -> Option<String> {
    let is_plain = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_FILE);
    is_plain.then(|| fs::read_to_string(path).ok()).flatten()
}

fn entry(host: &str, (port, transport): (u16, &'static str), of: &str, purpose: &str) -> Entry {
    let of = OfProfile { name: of.to_owned(), phase: of.to_owned(), purpose: purpose.to_owned(), is_required: true };
    Entry {
        host: host.trim_end_matches('.').to_owned(),
        probe: None,
        transport,
        port,
        is_proxy: false,
        profile: Some(of),
    }
}

/// Proxies of what runs on a host, by profile; and of what is started by a shell there.
pub struct HostProxies {
    agents: Vec<(&'static str, Proxies)>,
    shell: Option<Proxies>,
    /// Of the unit as which everything is asked.
    unit: Option<Proxies>,
}

impl HostProxies {
    /// By an agent's own file, else by its unit's, of the profiles that are asked about; `shell` and `unit` are variables that were
    /// found elsewhere.
    pub fn read(root: &Path, shell: Option<Proxies>, unit: Option<Proxies>, asked: &[&str]) -> Self {
        let of = |agent: &Agent| {
            let own = YAML.contains(&agent.profile).then(|| small(&below(root, agent.file))).flatten();
            let own = own.and_then(|text| Proxies::of_yaml(&text, agent.file));
            let by_unit = || Proxies::of_variables(&proxy::variables_of_unit(root, agent.unit), agent.unit);
            Some((agent.profile, own.or_else(by_unit)?))
        };
        let asked = AGENTS.iter().filter(|agent| asked.contains(&agent.profile));
        Self { agents: asked.filter_map(of).collect(), shell, unit }
    }

    /// Those of a program that a profile is about: what is installed is started by a shell, what runs is not. Package managers have
    /// been asked for theirs.
    pub fn of(&self, profile: &OfProfile) -> Option<&Proxies> {
        if self.unit.is_some() {
            return self.unit.as_ref();
        }
        if profile.phase == "install" {
            return self.shell.as_ref();
        }
        self.agents.iter().find(|(name, _)| *name == profile.name).map(|(_, proxies)| proxies)
    }
}

/// All of it, below a root folder; and what could not be read of it, in words.
pub fn dependencies(root: &Path, profiles: &Profiles, shell: Option<&Proxies>) -> (Vec<Entry>, Vec<String>) {
    let mut unread = Vec::new();
    let mut entries = resolvers(&mut unread);
    entries.extend(time_servers(root));
    for (host, port) in shell.iter().flat_map(|proxies| proxies.all()) {
        entries.push(Entry { is_proxy: true, ..entry(&host, (port, "tcp"), "proxy", "proxy by the environment") });
    }
    for kind in SOURCES {
        entries.extend(sources(root, kind, shell));
    }
    for Agent { profile: name, file, value, .. } in AGENTS {
        let Ok(profile) = profiles.get(name) else { continue };
        let path = below(root, file);
        if !path.exists() {
            continue;
        }
        let mut values = Values::new();
        if let Some((variable, word)) = value {
            let text = small(&path).unwrap_or_default();
            let found = text
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(word))
                .map(|rest| rest.trim().trim_matches('"'));
            let first = found.and_then(|rest| rest.split([',', ' ', '#']).next()).filter(|value| !value.is_empty());
            values.extend(first.map(|value| (variable.to_owned(), value.to_owned())));
        }
        match profile.entries(&values) {
            Ok(all) => entries.extend(all),
            Err(error) => {
                unread.push(format!("{name} is installed: {}", error.to_string().lines().next().unwrap_or_default()));
            }
        }
    }
    let mut seen: Vec<(String, u16, &str)> = Vec::new();
    entries.retain(|entry| {
        let key = (entry.host.clone(), entry.port, entry.transport);
        let is_new = !seen.contains(&key);
        seen.push(key);
        is_new
    });
    (entries, unread)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Of `/etc/resolv.conf`, over both transports; and what could not be read of it, in words.
pub fn resolvers(unread: &mut Vec<String>) -> Vec<Entry> {
    match read_system_conf() {
        Ok((config, _)) => {
            let mut servers: Vec<String> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
            // Behind it are others.
            if servers.iter().any(|server| STUBS.contains(&server.as_str())) {
                let text = fs::read_to_string(BEHIND).unwrap_or_default();
                let behind = text.lines().filter_map(|line| line.strip_prefix("nameserver "));
                let before = servers.len();
                servers.extend(behind.map(|server| server.trim().to_owned()));
                if servers.len() == before {
                    unread.push("which servers are behind the resolver of this host itself is not known".to_owned());
                }
            }
            let ports = [(53, "udp"), (53, "tcp")];
            servers.iter().flat_map(|host| ports.map(|port| entry(host, port, "dns", "resolver"))).collect()
        }
        Err(error) => {
            unread.push(format!("/etc/resolv.conf cannot be read: {error}"));
            Vec::new()
        }
    }
}

/// Files of a folder with this ending, and a file beside.
fn files(root: &Path, file: &str, folder: &str, ending: &str) -> Vec<String> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(below(root, folder)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|of| of == ending));
    paths.sort();
    paths.insert(0, below(root, file));
    paths.iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
}

/// Of systemd's time service, chrony and ntpd.
fn time_servers(root: &Path) -> Vec<Entry> {
    let mut names: Vec<String> = Vec::new();
    for text in files(root, "/etc/systemd/timesyncd.conf", "/etc/systemd/timesyncd.conf.d", "conf") {
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("NTP=").or(line.trim().strip_prefix("FallbackNTP=")));
        names.extend(lines.flat_map(str::split_whitespace).map(str::to_owned));
    }
    for (file, folder, ending) in [
        ("/etc/chrony/chrony.conf", "/etc/chrony/sources.d", "sources"),
        ("/etc/chrony.conf", "/etc/chrony.d", "conf"),
        ("/etc/ntp.conf", "/etc/ntpsec", "conf"),
    ] {
        for text in files(root, file, folder, ending) {
            let servers = text.lines().filter_map(|line| {
                let mut words = line.split_whitespace();
                ["server", "pool"].contains(&words.next()?).then(|| words.next()).flatten()
            });
            names.extend(servers.map(str::to_owned));
        }
    }
    names.iter().map(|name| entry(name, (123, "udp"), "time", "time server")).collect()
}

/// Package sources of `apt` or `dnf`; through a proxy of theirs, or of the shell's, where one is set.
pub fn sources(root: &Path, kind: &str, shell: Option<&Proxies>) -> Vec<Entry> {
    let texts = |file, folder, ending| files(root, file, folder, ending);
    let mut urls: Vec<String> = Vec::new();
    if kind == "apt" {
        for text in texts("/etc/apt/sources.list", "/etc/apt/sources.list.d", "list") {
            let lines = text.lines().map(str::trim).filter(|line| line.starts_with("deb"));
            urls.extend(
                lines.filter_map(|line| line.split_whitespace().find(|word| word.contains("://"))).map(str::to_owned),
            );
        }
        for text in texts("/nonexistent", "/etc/apt/sources.list.d", "sources") {
            // A stanza that is switched off is not asked.
            let stanzas = text.split("\n\n").filter(|stanza| !stanza.to_lowercase().contains("enabled: no"));
            let lines = stanzas.flat_map(str::lines).filter_map(|line| line.strip_prefix("URIs:"));
            urls.extend(lines.flat_map(str::split_whitespace).map(str::to_owned));
        }
    } else {
        for text in texts("/nonexistent", "/etc/yum.repos.d", "repo") {
            let stanzas = text.split("\n[").filter(|stanza| !stanza.replace(' ', "").contains("\nenabled=0"));
            let lines = stanzas.flat_map(str::lines).filter_map(|line| {
                ["baseurl", "mirrorlist", "metalink"]
                    .iter()
                    .find_map(|word| line.strip_prefix(word)?.trim_start().strip_prefix('='))
            });
            urls.extend(lines.flat_map(str::split_whitespace).map(str::to_owned));
        }
    }
    let own = if kind == "apt" { apt_proxies(root) } else { dnf_proxy(root) };
    let proxies = own.as_ref().or(shell);
    let mut entries: Vec<Entry> = Vec::new();
    for url in urls.iter().filter_map(|url| Url::parse(url).ok()) {
        let Some((host, port)) = url.host_str().zip(url.port_or_known_default()) else { continue };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let proxy = proxies.and_then(|proxies| proxies.for_scheme(url.scheme(), host).map(|of| (proxies.from(), of)));
        let (purpose, (host, port), is_proxy) = match proxy {
            Some((from, of)) => (format!("proxy by {from}, to {host}"), of, true),
            None => ("package source".to_owned(), (host.to_owned(), port), false),
        };
        if !entries.iter().any(|known| known.host == host && known.port == port) {
            entries.push(Entry { is_proxy, ..entry(&host, (port, "tcp"), kind, &purpose) });
        }
    }
    entries
}

/// `proxy=` of dnf's or yum's own file.
fn dnf_proxy(root: &Path) -> Option<Proxies> {
    let of = |path: &str| {
        let text = fs::read_to_string(below(root, path)).ok()?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("proxy")?.trim_start().strip_prefix('='));
        let value = lines.next_back()?.trim().to_owned();
        Proxies::of_url(&value, path).filter(|_| value != "_none_")
    };
    of("/etc/dnf/dnf.conf").or_else(|| of("/etc/yum.conf"))
}

/// `Acquire::http::Proxy "http://10.0.0.1:3128";`, by scheme; `DIRECT` is none.
fn apt_proxies(root: &Path) -> Option<Proxies> {
    let mut paths: Vec<PathBuf> = fs::read_dir(below(root, "/etc/apt/apt.conf.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths.push(below(root, "/etc/apt/apt.conf"));
    let texts = paths.iter().filter_map(|path| fs::read_to_string(path).ok());
    // The last one of a scheme holds.
    let mut values: HashMap<String, String> = HashMap::new();
    for text in texts {
        for line in text.lines().map(str::trim) {
            let Some(rest) = line.strip_prefix("Acquire::") else { continue };
            let Some((scheme, rest)) = rest.split_once("::") else { continue };
            let proxy = rest.strip_prefix("Proxy ").or_else(|| rest.strip_prefix("proxy "));
            let value = proxy.map(|rest| rest.trim().trim_end_matches(';').trim_matches('"').to_owned());
            values.extend(value.map(|value| (scheme.to_lowercase(), value)));
        }
    }
    if values.is_empty() {
        return None;
    }
    // What is said of http holds for https too, where nothing is said of that.
    let of = |scheme: &str| values.get(scheme).or_else(|| values.get("http"));
    let variables =
        ["http", "https"].map(|scheme| (format!("{scheme}_proxy"), of(scheme).cloned().unwrap_or_default()));
    let switched_off = ["direct", "false"];
    let variables = variables.map(|(name, value)| {
        let is_off = switched_off.contains(&value.to_lowercase().as_str());
        (name, if is_off { String::new() } else { value })
    });
    Some(Proxies::of_variables(&variables, "apt").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_by_its_own_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = below(root.path(), path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "/etc/apt/sources.list",
            "# deb http://old.example/ x\ndeb [arch=amd64] http://one.example/debian stable main\n",
        );
        write(
            "/etc/apt/sources.list.d/two.sources",
            "Types: deb\nURIs: https://two.example:8443/x http://one.example/y\nSuites: stable\n\nEnabled: no\nURIs: https://off.example/\n",
        );
        write(
            "/etc/yum.repos.d/r.repo",
            "[a]\nbaseurl=https://rpm.example/$releasever\n[b]\nmirrorlist = http://off.example/\nenabled=0\n",
        );
        write("/etc/systemd/timesyncd.conf", "[Time]\nNTP=t1.example t2.example\n#FallbackNTP=none.example\n");
        write("/etc/chrony/chrony.conf", "pool t3.example iburst\n! server none.example\n");
        write("/etc/datadog-agent/datadog.yaml", "api_key: x\nsite: datadoghq.eu # ours\n");
        let profiles = Profiles::read(Path::new("/nonexistent")).unwrap();
        let of = |entries: &[Entry]| -> Vec<String> {
            entries.iter().map(|entry| format!("{}:{}/{}", entry.host, entry.port, entry.transport)).collect()
        };
        assert_eq!(of(&sources(root.path(), "apt", None)), ["one.example:80/tcp", "two.example:8443/tcp"]);
        assert_eq!(of(&sources(root.path(), "dnf", None)), ["rpm.example:443/tcp"]);
        let (all, unread) = dependencies(root.path(), &profiles, None);
        let all = of(&all);
        for wanted in [
            "t1.example:123/udp",
            "t2.example:123/udp",
            "t3.example:123/udp",
            "api.datadoghq.eu:443/tcp",
            "rpm.example:443/tcp",
        ] {
            assert!(all.contains(&wanted.to_owned()), "{wanted} in {all:?}");
        }
        assert!(!all.iter().any(|place| place.contains("none.example")
            || place.contains("off.example")
            || place.contains("old.example")));
        // Resolvers are this machine's.
        assert!(unread.iter().all(|words| words.contains("resolv")), "{unread:?}");
        let shell = Proxies::of_url("http://shell.example:3128", "the environment");
        let (with_proxy, _) = dependencies(root.path(), &profiles, shell.as_ref());
        assert!(of(&with_proxy).contains(&"shell.example:3128/tcp".to_owned()));
        write("/etc/apt/apt.conf.d/90proxy", "Acquire::http::Proxy \"http://10.0.0.9:3128\";\n");
        assert_eq!(of(&sources(root.path(), "apt", None)), ["10.0.0.9:3128/tcp"]);
        write("/etc/apt/apt.conf.d/95https", "Acquire::https::Proxy \"DIRECT\";\n");
        assert_eq!(of(&sources(root.path(), "apt", None)), ["10.0.0.9:3128/tcp", "two.example:8443/tcp"]);
        write("/etc/apt/apt.conf.d/99none", "Acquire::http::Proxy \"false\";\n");
        let shell = Proxies::of_url("http://shell.example:1", "the environment");
        let direct = ["one.example:80/tcp", "two.example:8443/tcp"];
        assert_eq!(of(&sources(root.path(), "apt", shell.as_ref())), direct);
    }
}

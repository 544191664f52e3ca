//! Proxies that are configured: they are asked about in place of what is behind them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use url::Url;
use yaml_rust2::{Yaml, YamlLoader};

use super::{Entry, OfProfile};

/// Port of a proxy that speaks SOCKS and names none; others have that of their scheme.
const SOCKS_PORT: u16 = 1080;
/// Ports by which programs go through a proxy for HTTP, and the scheme for it.
const SCHEMES: [(u16, &str); 2] = [(80, "http"), (443, "https")];

/// Proxies of one program, or of all that are started by a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// By the scheme that goes through each.
    by_scheme: Vec<(String, Url)>,
    /// Hosts, domains and networks that are reached without.
    without: Vec<String>,
    /// Who says so: `HTTPS_PROXY`, `/etc/datadog-agent/datadog.yaml`.
    from: String,
}

impl Proxies {
    /// Of variables such as `https_proxy`; the lower case goes first, as with curl. `None` where there are none.
    pub fn of_variables(variables: &[(String, String)], from: &str) -> Option<Self> {
        let value = |name: &str| {
            let is_it = |wanted: &str| variables.iter().find(|(known, value)| known == wanted && !value.is_empty());
            is_it(name).or_else(|| is_it(&name.to_uppercase())).map(|(_, value)| value.as_str())
        };
        let all = value("all_proxy");
        let mut proxies = Self { from: from.to_owned(), ..Self::default() };
        for (_, scheme) in SCHEMES {
            let own = value(&format!("{scheme}_proxy")).or(all);
            proxies.by_scheme.extend(own.and_then(parse).map(|url| (scheme.to_owned(), url)));
        }
        let without = value("no_proxy").unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
        proxies.without = without.map(str::to_owned).collect();
        proxies.some()
    }

    /// Of an agent's file in YAML: `proxy: URL`, or `proxy:` with `http`, `https` and `no_proxy`.
    pub fn of_yaml(text: &str, from: &str) -> Option<Self> {
        // This part alone: the rest has secrets, and may be anything. An alias could make much of little.
        let is_inside = |line: &&str| line.starts_with([' ', '\t', '-', '#']) || line.trim().is_empty();
        let mut lines = text.lines().skip_while(|line| !line.starts_with("proxy:"));
        let first = lines.next()?;
        let part = std::iter::once(first).chain(lines.take_while(is_inside)).collect::<Vec<_>>().join("\n");
        if part.split_whitespace().any(|word| word.starts_with('&')) {
            return None;
        }
        let documents = YamlLoader::load_from_str(&part).ok()?;
        let proxy = &documents.first()?["proxy"];
        let mut proxies = Self { from: from.to_owned(), ..Self::default() };
        for (_, scheme) in SCHEMES {
            let url = proxy.as_str().or_else(|| proxy[scheme].as_str());
            proxies.by_scheme.extend(url.and_then(parse).map(|url| (scheme.to_owned(), url)));
        }
        let without = proxy["no_proxy"].as_vec().map(Vec::as_slice).unwrap_or_default();
        proxies.without = without.iter().filter_map(Yaml::as_str).map(str::to_owned).collect();
        proxies.some()
    }

    /// One for both schemes.
    pub fn of_url(url: &str, from: &str) -> Option<Self> {
        let url = parse(url)?;
        let by_scheme = SCHEMES.map(|(_, scheme)| (scheme.to_owned(), url.clone())).into();
        Some(Self { by_scheme, without: Vec::new(), from: from.to_owned() })
    }

    fn some(self) -> Option<Self> {
        (!self.by_scheme.is_empty()).then_some(self)
    }

    /// Who says so.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Hosts and ports of all of them.
    pub fn all(&self) -> Vec<(String, u16)> {
        let place = |url: &Url| {
            let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
            Some((host, url.port_or_known_default().unwrap_or(SOCKS_PORT)))
        };
        self.by_scheme.iter().filter_map(|(_, url)| place(url)).collect()
    }

    /// Host and port of the proxy for a scheme.
    pub fn for_scheme(&self, scheme: &str, host: &str) -> Option<(String, u16)> {
        if self.without.iter().any(|word| is_without(word, host)) {
            return None;
        }
        let (_, url) = self.by_scheme.iter().find(|(known, _)| known == scheme)?;
        let proxy = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
        Some((proxy.to_owned(), url.port_or_known_default().unwrap_or(SOCKS_PORT)))
    }

    /// The same of a destination, by its port.
    pub fn of(&self, host: &str, port: u16, transport: &str) -> Option<(String, u16)> {
        let (_, scheme) = SCHEMES.iter().find(|(known, _)| *known == port && transport == "tcp")?;
        self.for_scheme(scheme, host)
    }
}

/// A proxy is often written without its scheme.
fn parse(text: &str) -> Option<Url> {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Url::parse(&whole).ok().filter(Url::has_host)
}

/// A word of `no_proxy`: everything, a name with all below it, an address, a network.
fn is_without(word: &str, host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    if word == "*" {
        return true;
    }
    if let (Some(address), Ok(net)) = (address, word.parse::<IpNet>()) {
        return net.contains(&address);
    }
    let word = word.trim_start_matches('*').trim_start_matches('.').to_lowercase();
    let host = host.trim_start_matches("*.").to_lowercase();
    host == word || address.is_none() && host.strip_suffix(&word).is_some_and(|rest| rest.ends_with('.'))
}

/// Variables that a unit's files give its processes, below a root folder: its own, and what an administrator adds.
pub fn variables_of_unit(root: &Path, unit: &str) -> Vec<(String, String)> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let mut paths: Vec<PathBuf> = Vec::new();
    let own = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    paths.extend(own.iter().map(|folder| below(folder).join(unit)).find(|path| path.exists()));
    for folder in own.iter().rev() {
        let more = fs::read_dir(below(folder).join(format!("{unit}.d"))).into_iter().flatten().flatten();
        let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).collect();
        more.retain(|path| path.extension().is_some_and(|of| of == "conf"));
        more.sort();
        paths.extend(more);
    }
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set = |word: &str| {
        let Some((name, value)) = word.split_once('=') else { return };
        variables.retain(|(known, _)| known != name);
        variables.push((name.to_owned(), value.to_owned()));
    };
    for text in paths.iter().filter_map(|path| fs::read_to_string(path).ok()) {
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("Environment=") {
                shlex::split(rest).unwrap_or_default().iter().for_each(|word| set(word));
            } else if let Some(path) = line.strip_prefix("EnvironmentFile=") {
                let text = fs::read_to_string(below(path.trim_start_matches('-'))).unwrap_or_default();
                let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
                lines.filter_map(|line| shlex::split(line)?.into_iter().next()).for_each(|word| set(&word));
            }
        }
    }
    variables
}

/// What is asked in place of destinations that a profile's program reaches through a proxy: that, once a phase. `of` says which
/// proxies an entry's program has.
pub fn in_place<'a>(entries: Vec<Entry>, of: impl Fn(&OfProfile) -> Option<&'a Proxies>) -> Vec<Entry> {
    let mut asked: Vec<(Entry, Vec<String>)> = Vec::new();
    for entry in entries {
        let proxies = entry.profile.as_ref().and_then(&of);
        let through = proxies.and_then(|proxies| proxies.of(&entry.host, entry.port, entry.transport));
        let (Some(proxies), Some((host, port)), Some(profile)) = (proxies, through, &entry.profile) else {
            asked.push((entry, Vec::new()));
            continue;
        };
        let purpose = format!("proxy by {}", proxies.from);
        let is_same = |(known, behind): &&mut (Entry, Vec<String>)| {
            let of = known.profile.as_ref();
            !behind.is_empty()
                && (known.host.as_str(), known.port) == (host.as_str(), port)
                && of.is_some_and(|of| of.phase == profile.phase && of.name == profile.name && of.purpose == purpose)
        };
        if let Some((known, behind)) = asked.iter_mut().find(is_same) {
            behind.push(entry.host.clone());
            if let Some(of) = &mut known.profile {
                of.is_required |= profile.is_required;
            }
            continue;
        }
        let of = OfProfile { purpose, ..profile.clone() };
        let proxy = Entry { host, probe: None, transport: "tcp", port, is_proxy: true, profile: Some(of) };
        asked.push((proxy, vec![entry.host]));
    }
    let told = asked.into_iter().map(|(mut entry, behind)| {
        if let (Some(of), [first, rest @ ..]) = (&mut entry.profile, behind.as_slice()) {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            of.purpose = format!("{}, to {first}{more}", of.purpose);
        }
        entry
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_as_curl_takes_them() {
        let all = variables(&[
            ("https_proxy", "http://user:secret@proxy.example:8080/"),
            ("HTTP_PROXY", "10.0.0.9"),
            ("NO_PROXY", "localhost, .corp.example,10.1.0.0/16"),
        ]);
        let proxies = Proxies::of_variables(&all, "the environment").unwrap();
        let of = |host: &str, port| proxies.of(host, port, "tcp");
        assert_eq!(of("api.example", 443), Some(("proxy.example".to_owned(), 8080)));
        assert_eq!(of("api.example", 80), Some(("10.0.0.9".to_owned(), 80)));
        assert_eq!((of("api.example", 10516), proxies.of("api.example", 443, "udp")), (None, None));
        assert_eq!((of("x.corp.example", 443), of("corp.example", 443), of("10.1.2.3", 443)), (None, None, None));
        assert!(of("notcorp.example", 443).is_some() && of("*.example", 443).is_some());
        assert_eq!(Proxies::of_variables(&variables(&[("NO_PROXY", "*")]), ""), None);
        let socks = Proxies::of_variables(&variables(&[("ALL_PROXY", "socks5h://s.example")]), "").unwrap();
        assert_eq!(socks.of("a.example", 443, "tcp"), Some(("s.example".to_owned(), SOCKS_PORT)));
    }

    #[test]
    fn files_of_agents() {
        let text = "api_key: x\nproxy:\n  https: http://p.example:3129\n  no_proxy:\n    - internal.example\n";
        let datadog = Proxies::of_yaml(text, "datadog.yaml").unwrap();
        assert_eq!(datadog.of("api.datadoghq.eu", 443, "tcp"), Some(("p.example".to_owned(), 3129)));
        assert_eq!(datadog.of("internal.example", 443, "tcp"), None);
        assert_eq!(datadog.of("api.datadoghq.eu", 80, "tcp"), None);
        let newrelic = Proxies::of_yaml("license_key: x\nproxy: https://p.example:443\n", "x").unwrap();
        assert_eq!(newrelic.of("a.example", 80, "tcp"), Some(("p.example".to_owned(), 443)));
        assert_eq!(Proxies::of_yaml("proxy: [", "x"), None);
        assert_eq!(Proxies::of_yaml("site: x", "x"), None);
    }

    #[test]
    fn a_unit_and_what_is_added_to_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("lib/systemd/system/a.service", "[Service]\nEnvironmentFile=-/etc/default/a\nEnvironment=A=1 B=2\n");
        write("etc/systemd/system/a.service.d/proxy.conf", "[Service]\nEnvironment=\"HTTPS_PROXY=http://p:1\" A=3\n");
        write("etc/default/a", "# a\nC=\"4 5\"\n");
        let mut all = variables_of_unit(root.path(), "a.service");
        all.sort();
        assert_eq!(all, variables(&[("A", "3"), ("B", "2"), ("C", "4 5"), ("HTTPS_PROXY", "http://p:1")]));
        assert!(variables_of_unit(root.path(), "b.service").is_empty());
    }

    #[test]
    fn one_proxy_stands_for_all_behind_it() {
        let entry = |host: &str, port, is_required| Entry {
            host: host.to_owned(),
            probe: None,
            transport: "tcp",
            port,
            is_proxy: false,
            profile: Some(OfProfile {
                name: "p".to_owned(),
                phase: "run".to_owned(),
                purpose: "data".to_owned(),
                is_required,
            }),
        };
        let proxies = Proxies::of_url("http://proxy.example:3128", "p.yaml").unwrap();
        let entries =
            vec![entry("a.example", 443, false), entry("b.example", 443, true), entry("c.example", 5140, true)];
        let asked = in_place(entries, |_| Some(&proxies));
        let told: Vec<_> =
            asked.iter().map(|entry| (entry.host.as_str(), entry.port, entry.profile.clone().unwrap())).collect();
        assert_eq!(told.len(), 2);
        assert_eq!((told[0].0, told[0].1), ("proxy.example", 3128));
        assert_eq!(told[0].2.purpose, "proxy by p.yaml, to a.example and 1 more");
        assert!(told[0].2.is_required);
        assert_eq!((told[1].0, told[1].1), ("c.example", 5140));
    }
}

//! Destinations as they are typed: `HOST`, `HOST:PORT`, `HOST:PORT/udp`, `[2001:db8::1]:443`, `203.0.113.0/24:443`, a URL.

use std::net::IpAddr;

use ipnet::IpNet;
use url::Url;

use super::{Entry, services};

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` {what}")]
pub struct AskError {
    word: String,
    what: &'static str,
}

/// True for what is meant to be a destination, and no profile's name.
pub fn is_destination(word: &str) -> bool {
    word.contains([':', '.', '/'])
}

/// The port where none is typed.
const HTTPS: u16 = 443;

/// A destination. Without a port it is 443, or a URL's own.
pub fn destination(word: &str) -> Result<Entry, AskError> {
    let wrong = |what: &'static str| AskError { word: word.to_owned(), what };
    if word.contains("://") {
        return url(word);
    }
    let (place, transport) = match word.rsplit_once('/') {
        Some((place, of)) if of.eq_ignore_ascii_case("tcp") => (place, "tcp"),
        Some((place, of)) if of.eq_ignore_ascii_case("udp") => (place, "udp"),
        Some((network, length)) if network.parse::<IpAddr>().is_ok() && length.parse::<u32>().is_ok() => {
            if word.parse::<IpNet>().is_err() {
                return Err(wrong("is not a network: a prefix has at most 32 bits for IPv4 and 128 for IPv6"));
            }
            (word, "tcp")
        }
        // What follows may be the length of a network.
        Some((_, rest)) if !rest.contains(':') && word.parse::<IpNet>().is_err() => {
            return Err(wrong("has a protocol that is neither tcp nor udp"));
        }
        _ => (word, "tcp"),
    };
    let bare = |text: &str| text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() || is_name(text);
    let unwrapped = |host: &str| {
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map_or_else(|| host.to_owned(), str::to_owned)
    };
    let number = |port: &str| port.parse::<u16>().ok().filter(|port| *port != 0);
    let (host, port) = match place.rsplit_once(':') {
        // An IPv6 address without brackets may end in a port, or not.
        Some((host, port))
            if place.parse::<IpAddr>().is_ok() && host.parse::<IpAddr>().is_ok() && number(port).is_some() =>
        {
            return Err(wrong(
                "may be an address, or an address with a port; write [2001:db8::1]:443 or [2001:db8::1:443]",
            ));
        }
        Some(_) if place.parse::<IpAddr>().is_ok() => (place.to_owned(), Some(HTTPS)),
        Some((host, port)) if bare(&unwrapped(host)) => {
            if port.bytes().any(|byte| byte.is_ascii_alphabetic()) && services::port(port).is_err() {
                return Err(wrong("names a service that is not known; write the port's number"));
            }
            (unwrapped(host), number(port).or_else(|| services::port(port).ok()).filter(|port| *port != 0))
        }
        _ if bare(&unwrapped(place)) => (unwrapped(place), Some(HTTPS)),
        Some((host, _)) if host.contains(':') => {
            return Err(wrong("is not an IPv6 address with a port; write [2001:db8::1]:443"));
        }
        _ => return Err(wrong("names no host, address or network")),
    };
    let port = port.ok_or_else(|| wrong("has no port between 1 and 65535"))?;
    Ok(entry(&host, transport, port))
}

/// The server of a URL.
fn url(word: &str) -> Result<Entry, AskError> {
    let wrong = |what: &'static str| AskError { word: word.to_owned(), what };
    let url = Url::parse(word).map_err(|_| wrong("is not a URL"))?;
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    if host.parse::<IpAddr>().is_err() && !is_name(host) {
        return Err(wrong("names no host or address"));
    }
    let port =
        url.port_or_known_default().ok_or_else(|| wrong("has a scheme whose port is not known; write HOST:PORT"))?;
    if port == 0 {
        return Err(wrong("has no port between 1 and 65535"));
    }
    // What others are about is said by programs over TCP.
    Ok(entry(host, if url.scheme() == "udp" { "udp" } else { "tcp" }, port))
}

fn entry(host: &str, transport: &'static str, port: u16) -> Entry {
    let host = host.trim_end_matches('.').to_owned();
    Entry { host, probe: None, transport, port, is_proxy: false, profile: None }
}

/// Letters, digits, hyphens and underscores between dots.
pub fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    // An address that is none would be taken for a name.
    let is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(is_label) && !is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_typed() {
        let of = |word: &str| destination(word).map(|entry| (entry.host, entry.port, entry.transport));
        let is = |host: &str, port, transport| Ok((host.to_owned(), port, transport));
        assert_eq!(of("example.com:443"), is("example.com", 443, "tcp"));
        assert_eq!(of("trace.agent.datadoghq.com.:443"), is("trace.agent.datadoghq.com", 443, "tcp"));
        assert_eq!(of("0.pool.ntp.org:123/udp"), is("0.pool.ntp.org", 123, "udp"));
        assert_eq!(of("0.pool.ntp.org:123/UDP"), is("0.pool.ntp.org", 123, "udp"));
        assert_eq!(of("udp://0.pool.ntp.org:123"), is("0.pool.ntp.org", 123, "udp"));
        assert_eq!(of("tcp://[2001:db8::1]:22"), is("2001:db8::1", 22, "tcp"));
        assert_eq!(of("[2001:db8::1]:443/tcp"), is("2001:db8::1", 443, "tcp"));
        assert_eq!(of("2001:db8::8:800:200c"), is("2001:db8::8:800:200c", 443, "tcp"));
        assert_eq!(of("2001:db8::1:ssh"), is("2001:db8::1", 22, "tcp"));
        assert_eq!(of("203.0.113.0/24:443"), is("203.0.113.0/24", 443, "tcp"));
        assert_eq!(of("203.0.113.0/24:53/udp"), is("203.0.113.0/24", 53, "udp"));
        assert_eq!(of("example.com"), is("example.com", 443, "tcp"));
        assert_eq!(of("example.com/udp"), is("example.com", 443, "udp"));
        assert_eq!(of("example.com:ssh"), is("example.com", 22, "tcp"));
        assert_eq!(of("203.0.113.7"), is("203.0.113.7", 443, "tcp"));
        assert_eq!(of("203.0.113.0/24"), is("203.0.113.0/24", 443, "tcp"));
        assert_eq!(of("2001:db8::a"), is("2001:db8::a", 443, "tcp"));
        assert_eq!(of("[2001:db8::1]"), is("2001:db8::1", 443, "tcp"));
        assert_eq!(of("https://example.com/install.sh?x=1"), is("example.com", 443, "tcp"));
        assert_eq!(of("http://user@[2001:db8::1]:8080/"), is("2001:db8::1", 8080, "tcp"));
        for wrong in [
            "https://",
            "gopher://example.com/",
            "https://example.com:0/",
            "x://$(id):22",
            "[2001:db8::1]:x",
            "example.com:0",
            "example.com:99999",
            "example.com:htps",
            "2001:db8::1:443",
            "example.com:",
            ":443",
            "a b:443",
            "$(x):443",
            "host:443/sctp",
            "x:y:443",
            "-a.com:1",
            "203.0.113.300:443",
        ] {
            assert!(destination(wrong).is_err(), "{wrong}");
        }
    }
}
